"""The figures of the broken phase: the mean field in flow draws beside that of the target, and along chains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.broken_phase_flows import LABELS
from benchmarks.broken_phase_modes import FlowQuality
from flowmc_analysis.ensemble import EnsembleAnalysis
from flowmc_analysis.plot_style import MUTED, PALETTE, new_figure, set_title

__all__ = ["draw_modes", "draw_traces"]

EDGES = [float(edge) for edge in np.linspace(-0.95, 0.95, 58)]
SHOWN_CYCLES = 150


def draw_modes(
    qualities: Mapping[str, FlowQuality], samples: NDArray[np.float64], chains: NDArray[np.float64], path: Path
) -> None:
    """Draw the histogram of the mean field of each flow, and of HMC's chains, over that of the target.

    Parameters
    ----------
    qualities
        The flows.
    samples
        Samples of the target.
    chains
        Mean field along chains of HMC that stay in their modes.
    path
        Where the figure is written.
    """
    columns = 4
    rows = -(-(len(qualities) + 1) // columns)
    figure, axes = new_figure(rows, columns, width=11.0, height=2.5 * rows, share_x=True, share_y=True)
    target = samples.mean(axis=(1, 2))
    panels = [
        (LABELS[name], one.magnetisation, f"ESS {one.ess_reverse:.2f}\nforward {one.ess_forward:.1g}")
        for name, one in qualities.items()
    ]
    panels.append((f"HMC, {len(chains)} hot starts", chains.ravel(), f"m > 0: {(chains > 0).mean():.2f}"))
    for axis, (title, values, text) in zip(axes, panels, strict=False):
        axis.hist(target, EDGES, density=True, color="#d9dce1", label="HMC and its mirror image")
        axis.hist(
            values, EDGES, density=True, histtype="step", color=PALETTE[0], lw=1.4, label="draws of the flow, or HMC"
        )
        axis.set(yscale="log", ylim=(3e-3, 30), xlim=(-0.95, 0.95))
        set_title(axis, title)
        axis.text(0.5, 0.95, text, transform=axis.transAxes, ha="center", va="top", fontsize=8.5)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[-columns:]:
        axis.set_xlabel("m")
    for axis in axes[::columns]:
        axis.set_ylabel("density")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def draw_traces(analyses: Mapping[str, EnsembleAnalysis], path: Path) -> None:
    """Draw the mean field of two chains of each run against the cycle."""
    figure, axes = new_figure(len(analyses), 1, width=9.0, height=1.6 * len(analyses), share_x=True, share_y=True)
    for axis, (label, analysis) in zip(axes, analyses.items(), strict=True):
        m = analysis.series["magnetisation"][:, :SHOWN_CYCLES]
        # Where chains stay in their modes: one of each.
        first, second = int(np.argmax(m[:, 0])), int(np.argmin(m[:, 0]))
        axis.axhline(0.0, color=MUTED, lw=0.7)
        for number, colour in ((first, PALETTE[0]), (second, PALETTE[1])):
            axis.plot(m[number], color=colour, lw=0.9, alpha=0.9)
        axis.set(ylabel="m", ylim=(-1, 1), xlim=(0, SHOWN_CYCLES))
        set_title(axis, "HMC from hot starts" if label == "hmc" else label)
    axes[-1].set_xlabel("cycle")
    figure.savefig(path, dpi=150)
