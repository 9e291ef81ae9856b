"""One look for every figure: canvas, palette and axes without global plotting state.

Figures are built from ``matplotlib.figure.Figure`` directly, so that neither a window system nor ``pyplot``'s list of
open figures is involved. The palette is that of Okabe and Ito [1]_, distinguishable under the common forms of colour
blindness; markers and line styles change with the colour, so that a black-and-white print can be read as well.

References
----------
.. [1] M. Okabe, K. Ito, Color Universal Design (2008); B. Wong, Nature Methods 8 (2011) 441.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["INK", "MUTED", "PALETTE", "SeriesStyle", "add_legend", "new_figure", "series_styles", "set_title"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#222222"
MUTED = "#8a8f98"
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_LINES = ("-", "--", "-.", ":", "-", "--", "-.")
_FONT_SIZE = 9.5


@dataclass(frozen=True)
class SeriesStyle:
    """How one ensemble is drawn in every figure."""

    colour: str
    marker: str
    line: str


def series_styles(labels: Iterable[str]) -> dict[str, SeriesStyle]:
    """Give each label its colour, marker and line style, in the order of the labels.

    Parameters
    ----------
    labels
        Names of the ensembles; from the eighth on the colours come again with other markers and lines.

    Examples
    --------
    >>> series_styles(["flow", "hmc"])["hmc"].colour
    '#D55E00'
    """
    n = len(PALETTE)  # as many as markers and lines
    return {
        label: SeriesStyle(PALETTE[i % n], _MARKERS[(i + i // n) % n], _LINES[(i + i // n) % n])
        for i, label in enumerate(labels)
    }


def new_figure(
    n_rows: int = 1,
    n_columns: int = 1,
    *,
    width: float = 6.4,
    height: float = 3.6,
    share_x: bool = False,
    share_y: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Make a figure and its axes, row by row.

    Parameters
    ----------
    n_rows, n_columns
        Panels.
    width, height
        Size of the whole figure in inches.
    share_x, share_y
        Whether the panels share that axis.

    Returns
    -------
    The figure (constrained layout, nothing overlaps) and its ``n_rows * n_columns`` axes.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=share_x, sharey=share_y)
    axes: list[Axes] = list(grid.ravel())
    for axis in axes:
        _dress(axis)
    return figure, axes


def _dress(axis: Axes) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(MUTED)
    axis.tick_params(labelsize=_FONT_SIZE, colors=INK, color=MUTED)
    axis.xaxis.label.set(size=_FONT_SIZE + 0.5, color=INK)
    axis.yaxis.label.set(size=_FONT_SIZE + 0.5, color=INK)
    axis.title.set(size=_FONT_SIZE + 0.5, color=INK)
    axis.grid(visible=True, color="#e6e8eb", linewidth=0.7)
    axis.set_axisbelow(True)


def set_title(axis: Axes, text: str) -> None:
    """Title a panel, left-aligned, in the size of the labels."""
    axis.set_title(text, loc="left", fontsize=_FONT_SIZE + 0.5, color=INK)


def add_legend(axis: Axes, *, outside: bool = False) -> None:
    """Name what is drawn, if anything is named.

    Parameters
    ----------
    axis
        The panel.
    outside
        Put the legend to the right of the panel, for panels with no free corner.
    """
    handles, labels = axis.get_legend_handles_labels()
    if not handles:
        return
    if outside:
        axis.legend(
            handles, labels, fontsize=_FONT_SIZE - 1, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0)
        )
    else:
        axis.legend(handles, labels, fontsize=_FONT_SIZE - 1, framealpha=0.85, edgecolor="none", loc="best")
