"""Figures of the study of operator flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.operator_flow_cost import FAMILY_OF, Scaling
from benchmarks.operator_flow_gain import Curve
from benchmarks.operator_flow_quality import Quality
from flowmc_analysis.plot_style import MUTED, PALETTE, add_legend, new_figure, series_styles, set_title

__all__ = ["draw_gain", "draw_scaling", "draw_sizes"]


def draw_sizes(qualities: Mapping[str, Sequence[Quality]], path: Path, *, title: str, trained: tuple[int, ...]) -> None:
    """Draw the ESS and Var(log w) / V of flows against the extent, of square lattices."""
    figure, axes = new_figure(1, 2, width=9.4, height=3.9)
    styles = series_styles(qualities)
    extents = sorted({quality.point.shape[0] for found in qualities.values() for quality in found})
    for name, style in styles.items():
        square = [quality for quality in qualities[name] if len(set(quality.point.shape)) == 1]
        at = [quality.point.shape[0] for quality in square]
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker}
        axes[0].plot(at, [quality.ess for quality in square], ls=style.line, label=name, **look)
        axes[0].plot(at, [quality.ess_forward for quality in square], ls="none", mfc="none", ms=9, **look)
        axes[1].plot(at, [quality.variance_per_site for quality in square], ls=style.line, label=name, **look)
    for axis in axes:
        axis.axvspan(min(trained), max(trained), color=MUTED, alpha=0.15, lw=0)
        axis.set_xticks(extents, [str(extent) for extent in extents])
        axis.minorticks_off()
        axis.set_xlabel("L")
    axes[0].set(ylabel="ESS", ylim=(0, 1))
    axes[1].set(ylabel="Var(log w) / V", yscale="log")
    set_title(axes[0], f"{title}; open: forward; shaded: trained on")
    set_title(axes[1], "spread of the weights per site")
    add_legend(axes[1], outside=True)
    figure.savefig(path, dpi=150)


def draw_gain(curves: Mapping[int, Sequence[tuple[Curve, Curve]]], path: Path) -> None:
    """Draw the ESS of batches against processor time."""
    figure, axes = new_figure(1, len(curves), width=9.4, height=3.7)
    for axis, (extent, pairs) in zip(axes, curves.items(), strict=True):
        for number, (fine, scratch) in enumerate(pairs):
            first = number == 0
            axis.plot(scratch.seconds, scratch.ess, color=PALETTE[1], label="from scratch" if first else None)
            axis.plot(fine.seconds, fine.ess, color=PALETTE[0], label="pretrained, from then on" if first else None)
            label = "pretrained, with the pretraining" if first else None
            axis.plot(fine.before + fine.seconds, fine.ess, color=PALETTE[0], ls=":", label=label)
        axis.set(xlabel="processor seconds", ylabel="ESS of batches", ylim=(0, 1))
        set_title(axis, f"L = {extent}, three seeds")
    add_legend(axes[-1])
    figure.savefig(path, dpi=150)


def draw_scaling(scalings: Sequence[Scaling], path: Path) -> None:
    """Draw the cost of an evaluation against the number of sites."""
    figure, axes = new_figure(width=5.6, height=3.8)
    labels = {scaling.sums: f"{FAMILY_OF[scaling.sums]}, {scaling.sums}" for scaling in scalings}
    for scaling, style in zip(scalings, series_styles(labels.values()).values(), strict=True):
        at = sorted(scaling.seconds)
        values = [1e6 * scaling.seconds[extent] for extent in at]
        spread = [
            [1e6 * (scaling.seconds[extent] - scaling.spread[extent][0]) for extent in at],
            [1e6 * (scaling.spread[extent][1] - scaling.seconds[extent]) for extent in at],
        ]
        exponent, error = scaling.exponent
        axes[0].errorbar(
            [extent**2 for extent in at],
            values,
            spread,
            color=style.colour,
            marker=style.marker,
            ls=style.line,
            capsize=2,
            label=f"{labels[scaling.sums]}: V^{exponent:.2f}({100 * error:.0f})",
        )
    axes[0].set(xscale="log", yscale="log", xlabel="V", ylabel="µs per field")
    set_title(axes[0], "velocity and divergence, one core")
    add_legend(axes[0])
    figure.savefig(path, dpi=150)
