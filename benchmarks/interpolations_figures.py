"""The figures of the study of interpolations: densities and trajectories over t, and the double well against exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from benchmarks.interpolations_exact import WellPaths
from benchmarks.interpolations_mixtures import mixture_label
from benchmarks.interpolations_wells import WellQuality
from flowmc.flows import InterpolatingFlow, load_flow
from flowmc.seeds import numpy_generator, torch_generator
from flowmc.theories import DoubleWell, GaussianMixture
from flowmc_analysis.plot_style import INK, MUTED, PALETTE, add_legend, new_figure, series_styles, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_densities", "draw_mixture_paths", "draw_well_paths", "draw_wells"]

Array = NDArray[np.float64]

TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS = 20
LARGEST_MEAN = 2.5
"""Where the pictures of the mean of a path end."""
REACH = 12.0
"""Half the width of the maps of mixtures."""
BINS = 60
FAINTEST = 4e-4
"""Density that is not drawn any more: about one draw of ten thousand in a cell."""


def trajectories(path: Path, n: int) -> tuple[InterpolatingFlow, dict[float, Array]]:
    """Return a flow, and what it makes of ``n`` base draws at every time, (n, V)."""
    flow, _ = load_flow(path)
    assert isinstance(flow, InterpolatingFlow)
    flow.double()
    with torch.inference_mode():
        latent = flow.base.draw(n, torch_generator(6, "drawn", path.stem))
        return flow, {round(time, 6): field.flatten(1).numpy() for time, field in flow.trajectory(latent, STEPS)}


def draw_densities(flows: Mapping[str, Path], path: Path, *, n: int) -> None:
    """Draw the density of draws over t for flows of a mixture, a row for each, and of the learned path on top.

    Parameters
    ----------
    flows
        Flow files by method.
    path
        Where the figure is written.
    n
        Draws of each.
    """
    rows = len(flows) + ("learned" in flows)
    figure, axes = new_figure(rows, len(TIMES), width=9.6, height=2.0 * rows + 0.3, share_x=True, share_y=True)
    edges = np.linspace(-REACH, REACH, BINS + 1)
    cell, row = (edges[1] - edges[0]) ** 2, 0
    for method, file in flows.items():
        flow, fields = trajectories(file, n)
        theory = flow.theory
        assert isinstance(theory, GaussianMixture)
        if method == "learned":
            for axis, time in zip(axes, TIMES, strict=False):
                _map(axis, _path_density(flow, time), theory)
            axes[0].set_ylabel("exp(−f_t), learned", fontsize=9)
            row = 1
        for axis, time in zip(axes[len(TIMES) * row :], TIMES, strict=False):
            x = fields[time]
            _map(axis, np.histogram2d(x[:, 0], x[:, 1], [edges, edges])[0] / (n * cell), theory)
        axes[len(TIMES) * row].set_ylabel(f"flow, {mixture_label(method)}", fontsize=9)
        row += 1
    for axis, time in zip(axes, TIMES, strict=False):
        set_title(axis, f"t = {time:g}")
    figure.savefig(path, dpi=100)


def _path_density(flow: InterpolatingFlow, time: float) -> Array:
    """Return exp(−f_t), normalised on the map."""
    places = torch.linspace(-REACH, REACH, BINS, dtype=torch.float64)
    grid = torch.cartesian_prod(places, places)
    with torch.no_grad():
        times = torch.full((len(grid),), time, dtype=torch.float64)
        energy = flow.interpolation.energy(times, grid, flow.base, flow.theory).reshape(BINS, BINS).numpy()  # type: ignore[arg-type]
    density = np.exp(energy.min() - energy)
    return np.asarray(density / (density.sum() * (2 * REACH / (BINS - 1)) ** 2))


def _map(axis: Axes, density: Array, theory: GaussianMixture) -> None:
    """Draw a density in the plane, on a logarithmic scale, and circles of two standard deviations at the modes."""
    extent = (-REACH, REACH, -REACH, REACH)
    shown = np.where(density > FAINTEST, density, np.nan).T
    axis.imshow(
        shown, origin="lower", extent=extent, cmap="viridis_r", norm=LogNorm(FAINTEST, 0.2), interpolation="nearest"
    )
    _circles(axis, theory)
    axis.grid(visible=False)
    axis.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=(-8, 0, 8), yticks=(-8, 0, 8))


def _circles(axis: Axes, theory: GaussianMixture) -> None:
    angle = np.linspace(0, 2 * np.pi, 60)
    for (x, y), scale in zip(theory.means, theory.scales, strict=True):
        axis.plot(x + 2 * scale * np.cos(angle), y + 2 * scale * np.sin(angle), color=PALETTE[1], lw=0.9)


def draw_mixture_paths(flows: Mapping[str, Mapping[str, Path]], path: Path, *, n: int) -> None:
    """Draw trajectories in the plane, a row for each mixture and a panel for each method."""
    columns = max(len(methods) for methods in flows.values())
    figure, axes = new_figure(len(flows), columns, width=3.1 * columns, height=3.1 * len(flows))
    for row, methods in enumerate(flows.values()):
        for column in range(columns):
            axes[row * columns + column].set_visible(column < len(methods))
        for axis, (method, file) in zip(axes[row * columns :], methods.items(), strict=False):
            flow, fields = trajectories(file, n)
            theory = flow.theory
            assert isinstance(theory, GaussianMixture)
            ways = np.stack(list(fields.values()))
            last = np.argmax(theory.posterior(ways[-1]), axis=1)
            for number in range(n):
                colour = PALETTE[(0, 2, 3, 4)[last[number] % 4]]
                axis.plot(ways[:, number, 0], ways[:, number, 1], color=colour, lw=0.6, alpha=0.5)
            axis.plot(ways[0, :, 0], ways[0, :, 1], ".", color=INK, ms=1.5, zorder=3)
            _circles(axis, theory)
            axis.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=(-8, 0, 8), yticks=(-8, 0, 8), aspect="equal")
            set_title(axis, f"{len(theory.means)} modes, {mixture_label(method)}")
    figure.savefig(path, dpi=100)


def draw_well_paths(flows: Mapping[str, Sequence[Path]], path: Path, *, n: int, shown: int = 60) -> None:
    """Draw the mean of some paths of the double well over t, and its histogram at the end beside that of exact paths.

    Parameters
    ----------
    flows
        Flow files by title, one for each seed; lines over t are those of the first.
    path
        Where the figure is written.
    n, shown
        Draws for the histograms, and lines.
    """
    figure, axes = new_figure(1, 2 * len(flows), width=4.4 * len(flows), height=3.4, share_y=True)
    for number, (label, files) in enumerate(flows.items()):
        left, right = axes[2 * number], axes[2 * number + 1]
        flow, fields = trajectories(files[0], n)
        theory = flow.theory
        assert isinstance(theory, DoubleWell)
        times, means = np.asarray(list(fields)), np.stack([field.mean(axis=1) for field in fields.values()])
        for draw in range(shown):
            colour = PALETTE[0] if means[-1, draw] > 0 else PALETTE[1]
            left.plot(times, means[:, draw], color=colour, lw=0.7, alpha=0.6)
        edges = [float(edge) for edge in np.linspace(-LARGEST_MEAN, LARGEST_MEAN, 51)]
        exact = WellPaths(theory).draw(numpy_generator(6, "drawn"), n).mean(axis=1)
        style: dict[str, Any] = {"density": True, "orientation": "horizontal"}
        right.hist(exact, edges, color="#d9dce1", label="exact", **style)
        for seed, file in enumerate(files):
            _, ends = trajectories(file, n) if seed else (flow, fields)
            name, colour = f"draws, flow {seed + 1}", (INK, PALETTE[2], PALETTE[3])[seed % 3]
            mean = ends[1.0].mean(axis=1)
            right.hist(mean, edges, histtype="step", color=colour, lw=1.2, label=name, **style)
        left.set(xlabel="t", xlim=(0, 1), xticks=(0, 0.5, 1), ylim=(-LARGEST_MEAN, LARGEST_MEAN))
        right.set(xlabel="density")
        set_title(left, label)
    add_legend(axes[-1])
    axes[0].set_ylabel("x̄")
    figure.savefig(path, dpi=110)


def draw_wells(qualities: Mapping[str, Sequence[WellQuality]], path: Path) -> None:
    """Draw the distribution of x and the correlator of flows of every seed against what is exact, a row for each well."""
    figure, axes = new_figure(len(qualities), 2, width=9.6, height=3.3 * len(qualities))
    styles = list(series_styles([str(number) for number in range(7)]).values())
    for row, (label, found) in enumerate(qualities.items()):
        left, right = axes[2 * row], axes[2 * row + 1]
        theory = found[0].weighed.theory
        assert isinstance(theory, DoubleWell)
        exact = WellPaths(theory)
        left.plot(exact.positions, exact.density, color=INK, lw=1.2, label="exact", zorder=3)
        reach = 1.25 * (theory.mass / theory.coupling) ** 0.5 + 1
        edges = np.linspace(-reach, reach, 61)
        time = theory.spacing * np.arange(theory.n_sites // 2 + 1)
        right.plot(time, found[0].exact.two_point_zero_momentum[: len(time)], color=INK, lw=1.2, label="exact")
        for number, one in enumerate(found):
            weights = np.exp(one.weighed.log_w - one.weighed.log_w.max())
            each = np.repeat(weights, theory.n_sites)
            style, seed = styles[number], one.weighed.seed
            for values, alpha, line in ((None, 0.5, ":"), (each, 1.0, "-")):
                name = f"reweighted, seed {seed}" if values is not None else "draws" if number == 0 else None
                height, _ = np.histogram(one.weighed.field.ravel(), edges, weights=values, density=True)
                left.stairs(height, edges, color=style.colour, alpha=alpha, lw=1.0, ls=line, label=name)
            value, error = ([getattr(point, what) for point in one.correlator] for what in ("value", "error"))
            shift = 0.02 * (number - 0.5 * (len(found) - 1))
            right.errorbar(
                time + shift,
                value,
                error,
                fmt=style.marker,
                color=style.colour,
                ms=3.5,
                capsize=2,
                label=f"reweighted, seed {seed}",
            )
        left.set(xlim=(-reach, reach), ylabel="density of x", xlabel="x", ylim=(0, None))
        right.set(xlabel="imaginary time t", ylabel="⟨x(0) x(t)⟩")
        set_title(left, label)
        set_title(right, label)
        add_legend(left)
        add_legend(right)
        left.axvline(0, color=MUTED, lw=0.6)
    figure.savefig(path, dpi=110)
