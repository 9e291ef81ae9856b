"""Figures of trainings: loss, quality of the flow, gradient and learning rate, from the lines of training logs.

As in :mod:`flowmc_analysis.plots`, nothing is shown or saved here and no global plotting state is touched. Curves that
scatter from batch to batch are drawn faintly, and a running median of them boldly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from scipy.ndimage import median_filter

from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.plot_style import INK, MUTED, PALETTE, add_legend, new_figure, series_styles, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["Row", "plot_training_history", "running_median"]

Row = Mapping[str, float | None]
"""One line of a training log."""

_WINDOWS = 50  # widths of the running median in a training: short enough to follow it, long enough to be smooth
_MAX_POINTS = 1500  # per curve: more cannot be told apart on a page and only make the file large
_TRANSIENT = 0.1  # of a training, at its start, may leave the panel of the loss, which it would flatten
_FLAT = 3.0  # times the range of the loss after that: so much higher a beginning is left out
_SCATTER = (0.002, 0.998)  # quantiles between which the loss is shown after that
_UNITS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
_SMALLEST_TIME = 2.0  # in the unit that is chosen


def running_median(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the median over a window around each value; beyond the ends the values are reflected.

    Parameters
    ----------
    values
        Numbers in the order of time, shape ``(n,)``.
    window
        Width of the window, odd.

    Examples
    --------
    >>> running_median(np.array([0.0, 9.0, 2.0, 3.0, 4.0]), 3).tolist()
    [0.0, 2.0, 3.0, 3.0, 4.0]
    """
    smooth: NDArray[np.float64] = median_filter(values, size=window, mode="reflect")
    return smooth


def plot_training_history(histories: Mapping[str, Sequence[Row]], *, wall_time: bool = False) -> Figure:
    """Show loss, effective sample size and acceptance estimate, gradient norm and learning rate during trainings.

    Parameters
    ----------
    histories
        Label to the lines of its log, one mapping per recorded step with keys ``step``, ``loss`` (nats), ``ess``,
        ``acceptance`` (fractions), ``gradient_norm``, ``learning_rate``, ``seconds`` (since the start) and, where there
        is one, ``forward_loss`` (nats).
    wall_time
        Whether two more panels show loss and quality against wall time.

    Returns
    -------
    The figure, four panels or six. Several trainings share them, each in a colour of its own.

    Raises
    ------
    AnalysisError
        If there are no trainings, or one has no lines.
    """
    if not histories or not all(histories.values()):
        raise AnalysisError(
            got="no trainings, or one without lines", expected="at least one entry to draw", fix="leave this figure out"
        )
    longest = max(float(rows[-1]["seconds"] or 0.0) for rows in histories.values())
    unit = next((name for name, size in _UNITS.items() if longest >= _SMALLEST_TIME * size), "seconds")
    looks = series_styles(histories)
    trainings = [
        _Training.of(label, rows, looks[label].colour, len(histories) == 1, _UNITS[unit])
        for label, rows in histories.items()
    ]
    n_rows = 3 if wall_time else 2
    figure, axes = new_figure(n_rows, 2, width=9.6, height=2.75 * n_rows)
    for axis in axes:
        axis.set_xlabel("training step")
        axis.margins(x=0.02)
    _draw_loss(axes[0], trainings, "step")
    _draw_quality(axes[1], trainings, "step")
    if wall_time:
        _draw_loss(axes[2], trainings, "time")
        _draw_quality(axes[3], trainings, "time")
        for axis in axes[2:4]:
            axis.set_xlabel(f"wall time ({unit})")
    gradient, rate = axes[-2:]
    for training in trainings:
        training.draw(gradient, "step", "gradient_norm", training.colour)
        rate.plot(*training.points("step", "learning_rate"), color=training.colour, linewidth=1.6)
    if all((training.values["gradient_norm"] > 0).all() for training in trainings):
        gradient.set_yscale("log")
    rate.set_ylim(bottom=0.0)
    set_title(gradient, "gradient norm (before clipping)")
    set_title(rate, "learning rate")
    if len(trainings) == 1:
        (training,) = trainings
        steps, seconds = training.values["step"][-1], training.values["seconds"][-1]
        set_title(axes[0], f"loss ({steps:.0f} steps, {seconds:.0f} s)")
    else:
        lines = [Line2D([], [], color=training.colour, linewidth=1.6, label=training.label) for training in trainings]
        figure.legend(handles=lines, loc="outside upper center", ncols=min(4, len(lines)), frameon=False)
    return figure


@dataclass(frozen=True)
class _Training:
    """One log as arrays, and how it is drawn."""

    label: str
    values: dict[str, NDArray[np.float64]]
    colour: str
    alone: bool

    @classmethod
    def of(cls, label: str, rows: Sequence[Row], colour: str, alone: bool, time_unit: float) -> _Training:
        names = ("step", "loss", "ess", "acceptance", "gradient_norm", "learning_rate", "seconds", "forward_loss")
        values = {name: np.array([row.get(name) for row in rows], dtype=np.float64) for name in names}
        return cls(label, {**values, "time": values["seconds"] / time_unit}, colour, alone)

    @property
    def has_forward_part(self) -> bool:
        """Whether the loss is a mixture, so that its forward part is another number."""
        forward = self.values["forward_loss"]
        return bool(np.isfinite(forward).any() and (forward != self.values["loss"]).any())

    def points(
        self, abscissa: str, name: str, *, smooth: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the points of a curve, thinned to what a page can show."""
        x, y = self.values[abscissa], self.values[name]
        if smooth:
            # An odd number of lines; a single one in short trainings, which are drawn as they are.
            y = running_median(y, 2 * (len(y) // (2 * _WINDOWS)) + 1)
        kept = slice(None, None, max(1, -(-len(x) // _MAX_POINTS)))
        return x[kept], y[kept]

    def draw(self, axis: Axes, abscissa: str, name: str, colour: str, *, line: str = "-") -> None:
        """Draw a curve that scatters, and its running median."""
        axis.plot(*self.points(abscissa, name), color=colour, alpha=0.25, linewidth=0.6, rasterized=True)
        axis.plot(*self.points(abscissa, name, smooth=True), color=colour, linestyle=line, linewidth=1.6)


def _draw_loss(axis: Axes, trainings: Sequence[_Training], abscissa: str) -> None:
    for training in trainings:
        training.draw(axis, abscissa, "loss", training.colour)
    cut = _show_settled(axis, trainings, "loss")
    set_title(axis, f"loss{' (its beginning is off the scale)' if cut else ''}")
    axis.set_ylabel("loss (nats)")
    mixed = [training for training in trainings if training.has_forward_part]
    if not mixed:
        return
    right = axis.twinx()
    right.spines[["top", "left", "bottom"]].set_visible(False)
    right.spines["right"].set_color(MUTED)
    size = axis.yaxis.label.get_fontsize()
    right.tick_params(labelsize=size, colors=INK, color=MUTED)
    right.set_ylabel("forward part, dashed (nats)", size=size, color=INK)
    for training in mixed:
        training.draw(right, abscissa, "forward_loss", PALETTE[3] if training.alone else training.colour, line="--")
    _show_settled(right, mixed, "forward_loss")


def _show_settled(axis: Axes, trainings: Sequence[_Training], name: str) -> bool:
    """Leave the transient at the start of the trainings out of a panel which it would flatten; return whether it did."""
    settled = [training.values[name][int(_TRANSIENT * len(training.values[name])) :] for training in trainings]
    low = min(float(np.nanquantile(values, _SCATTER[0])) for values in settled)
    high = max(float(np.nanquantile(values, _SCATTER[1])) for values in settled)
    highest = max(float(np.nanmax(training.values[name])) for training in trainings)
    if high == low or highest - high < _FLAT * (high - low):
        return False
    axis.set_ylim(low - 0.08 * (high - low), high + 0.25 * (high - low))
    return True


def _draw_quality(axis: Axes, trainings: Sequence[_Training], abscissa: str) -> None:
    for training in trainings:
        ess, acceptance = (PALETTE[2], PALETTE[1]) if training.alone else (training.colour, training.colour)
        training.draw(axis, abscissa, "ess", ess)
        training.draw(axis, abscissa, "acceptance", acceptance, line="--")
    axis.set_ylim(0.0, 1.02)
    axis.set_ylabel("fraction")
    set_title(axis, "quality of the flow")
    if abscissa == "step":
        alone = len(trainings) == 1
        axis.plot([], [], color=PALETTE[2] if alone else INK, linewidth=1.6, label="ESS per draw (reverse)")
        axis.plot([], [], color=PALETTE[1] if alone else INK, linewidth=1.6, linestyle="--", label="acceptance")
        add_legend(axis)
