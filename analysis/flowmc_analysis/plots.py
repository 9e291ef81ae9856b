"""Figures of an analysis: each function takes arrays or estimates and returns a ``matplotlib`` figure.

Nothing is shown or saved here and no global plotting state is touched; ``figure.savefig(path)`` does the rest.
Ensembles come as mappings from a label to its data. Labels get colours by order; pass ``styles`` (from
:func:`flowmc_analysis.plot_style.series_styles`) to keep them equal in figures that show different subsets.
``tau_int`` is in the convention in which white noise has 1/2, in units of stored configurations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.plot_style import (
    INK,
    MUTED,
    PALETTE,
    SeriesStyle,
    add_legend,
    new_figure,
    series_styles,
    set_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from flowmc_analysis.estimate import Estimate
    from flowmc_analysis.gamma import GammaResult

__all__ = [
    "plot_autocorrelation",
    "plot_correlation",
    "plot_effective_mass",
    "plot_history",
    "plot_log_weights",
    "plot_tau_int",
    "plot_two_point",
    "plot_z_scores",
]

_DECADE = 10.0
_MAX_POINTS = 1500  # per drawn history: more cannot be told apart on a page and only make the file large
_MAX_CHAINS = 3
_LARGEST_ROW_OFFSET = 0.35  # of the height of a row, to either side: points stay in their row
_ROW_HEIGHT = 0.27  # inches
_INCHES_PER_PAIR = 0.06


def plot_history(
    series: Mapping[str, NDArray[np.float64]],
    *,
    name: str,
    updates: Mapping[str, NDArray[np.int64]] | None = None,
    styles: Mapping[str, SeriesStyle] | None = None,
) -> Figure:
    """Show an observable along the chains, one panel per ensemble with a common vertical axis.

    Parameters
    ----------
    series
        Label to values of shape ``(chains, configurations)``; the first three chains are drawn, the mean is over all.
    name
        Name of the observable (axis label), with its unit where it has one.
    updates
        Label to update numbers of the configurations, shape ``(configurations,)``; counts configurations if absent.
    styles
        Look of each label.

    Returns
    -------
    The figure.
    """
    _require(series, "series")
    look = styles or series_styles(series)
    figure, axes = new_figure(len(series), height=1.0 + 1.45 * len(series), share_y=True)
    for axis, (label, values) in zip(axes, series.items(), strict=True):
        n = values.shape[1]
        steps = np.arange(1, n + 1) if updates is None else updates[label]
        kept = slice(None, None, max(1, -(-n // _MAX_POINTS)))
        for chain, alpha in zip(values[:_MAX_CHAINS], (0.9, 0.55, 0.3), strict=False):
            axis.plot(steps[kept], chain[kept], color=look[label].colour, alpha=alpha, linewidth=0.7, rasterized=True)
        axis.axhline(float(values.mean()), color=INK, linewidth=1.0)
        axis.margins(x=0.01)
        shown = min(_MAX_CHAINS, values.shape[0])
        set_title(axis, f"{label}: {shown} of {values.shape[0]} chains, line: mean of all")
        axis.set_ylabel(name)
    axes[-1].set_xlabel("stored configuration" if updates is None else "update")
    return figure


def plot_tau_int(
    results: Mapping[str, GammaResult], *, name: str, styles: Mapping[str, SeriesStyle] | None = None
) -> Figure:
    """Show ``tau_int(W)`` with its error band; the vertical lines mark the chosen windows.

    Parameters
    ----------
    results
        Label to the result of the Γ-method, in units of stored configurations.
    name
        Name of the observable (title).
    styles
        Look of each label.

    Returns
    -------
    The figure. Where the curve has no plateau at the line, the error is underestimated.
    """
    _require(results, "results")
    look = styles or series_styles(results)
    figure, (axis,) = new_figure()
    for label, result in results.items():
        tau, error = np.asarray(result.tau_of_window), np.asarray(result.tau_of_window_error)
        shown = slice(0, _windows_shown(result, tau.size))
        windows = np.arange(tau.size)[shown]
        style = look[label]
        axis.fill_between(windows, (tau - error)[shown], (tau + error)[shown], color=style.colour, alpha=0.2, lw=0)
        axis.plot(windows, tau[shown], color=style.colour, linestyle=style.line, linewidth=1.5, label=label)
        axis.axvline(result.window, color=style.colour, linestyle=style.line, linewidth=0.9, alpha=0.8)
        axis.plot([result.window], [tau[result.window]], marker=style.marker, color=style.colour, markersize=5)
    axis.axhline(0.5, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    axis.set_ylim(bottom=0.0)
    axis.set_xlabel("window W (stored configurations)")
    axis.set_ylabel(r"$\tau_\mathrm{int}(W)$ (stored configurations)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    set_title(axis, f"{name}: τ_int, white noise = 0.5 (dotted)")
    add_legend(axis)
    return figure


def plot_autocorrelation(
    results: Mapping[str, GammaResult], *, name: str, styles: Mapping[str, SeriesStyle] | None = None
) -> Figure:
    """Show the normalised autocorrelation function ``rho(t)`` with errors.

    Parameters
    ----------
    results
        Label to the result of the Γ-method, in units of stored configurations.
    name
        Name of the observable (title).
    styles
        Look of each label.

    Returns
    -------
    The figure.
    """
    _require(results, "results")
    look = styles or series_styles(results)
    figure, (axis,) = new_figure()
    for i, (label, result) in enumerate(results.items()):
        rho, error = np.asarray(result.rho), np.asarray(result.rho_error)
        shown = slice(0, _windows_shown(result, min(rho.size, error.size)))
        lags = np.arange(rho.size)[shown]
        _draw_points(axis, lags + _offset(i, len(results)), rho[shown], error[shown], look[label], label)
    axis.axhline(0.0, color=INK, linewidth=0.9)
    axis.set_xlabel("lag t (stored configurations)")
    axis.set_ylabel(r"$\rho(t)$")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    set_title(axis, f"{name}: normalised autocorrelation function")
    add_legend(axis)
    return figure


def plot_log_weights(
    flow_draws: Mapping[str, NDArray[np.float64]],
    chain_states: Mapping[str, NDArray[np.float64]] | None = None,
    *,
    styles: Mapping[str, SeriesStyle] | None = None,
) -> Figure:
    """Show the distribution of ``log_w = -S - log_q`` for draws of the flow and for states of the chains.

    Parameters
    ----------
    flow_draws
        Label to log-weights of fresh proposals (distributed as the flow), any shape, in nats.
    chain_states
        Label to log-weights of stationary states (distributed as the target), any shape, in nats.
    styles
        Look of each label.

    Returns
    -------
    The figure, one panel per ensemble, abscissa relative to ``ln Z`` estimated from the draws. With p the target and
    q the flow, the two densities obey ``p(log_w) = q(log_w) w / Z``; states right of all draws mean a dropped mode.
    """
    _require(flow_draws, "flow_draws")
    look = styles or series_styles(flow_draws)
    figure, axes = new_figure(1, len(flow_draws), width=3.4 + 3.0 * len(flow_draws), height=3.3, share_y=True)
    for axis, (label, draws) in zip(axes, flow_draws.items(), strict=True):
        log_w = draws[np.isfinite(draws)]
        top = float(log_w.max())
        log_z = top + float(np.log(np.mean(np.exp(log_w - top))))
        both = [log_w - log_z]
        if chain_states is not None and label in chain_states:
            states = chain_states[label]
            both.append(states[np.isfinite(states)] - log_z)
        pooled = np.concatenate(both)
        low, high = np.quantile(pooled, [0.001, 0.9999])
        pad = 0.05 * (high - low) + 1e-9
        edges = np.linspace(low - pad, high + pad, 61).tolist()
        colour = look[label].colour
        axis.hist(both[0], bins=edges, density=True, color=colour, alpha=0.4, label="flow draws")
        if len(both) > 1:
            axis.hist(
                both[1], bins=edges, density=True, histtype="step", color=INK, linewidth=1.3, label="chain states"
            )
        set_title(axis, label)
        axis.set_xlabel(r"$\log w - \ln\hat Z$ (nats)")
        add_legend(axis)
    axes[0].set_ylabel("density (1/nat)")
    return figure


def plot_two_point(
    correlators: Mapping[str, Sequence[Estimate]],
    masses: Mapping[str, float] | None = None,
    *,
    temporal_extent: int,
    title: str = "two-point function at zero momentum",
    styles: Mapping[str, SeriesStyle] | None = None,
) -> Figure:
    """Show a two-point function at zero momentum on a logarithmic axis, with a hyperbolic cosine.

    Parameters
    ----------
    correlators
        Label to ``C(t)``, one estimate per time separation ``t = 0, 1, ...``.
    masses
        Label to the mass m, in lattice units, of the curve ``A cosh(m (t - T/2))``; A is fitted to ``t >= 1``. Labels
        without one get no curve.
    temporal_extent
        Extent T of the lattice in time.
    title
        What it is the two-point function of.
    styles
        Look of each label.

    Returns
    -------
    The figure; separations whose estimate is not positive cannot be shown and are left out.
    """
    _require(correlators, "correlators")
    look = styles or series_styles(correlators)
    figure, (axis,) = new_figure()
    for i, (label, correlator) in enumerate(correlators.items()):
        value = np.array([point.value for point in correlator])
        error = np.array([point.error for point in correlator])
        time = np.arange(value.size)
        positive = value > 0.0
        # An error bar that reaches through zero has no lower end on a logarithmic axis: cut it short of that.
        mass = (masses or {}).get(label)
        lower = np.minimum(error, 0.95 * np.abs(value))
        has_mass = mass is not None and np.isfinite(mass)
        name = f"{label}, cosh with m = {mass:.3g}" if has_mass else label
        bars = np.stack([lower, error])[:, positive]
        x = time[positive] + _offset(i, len(correlators))
        _draw_points(axis, x, value[positive], bars, look[label], name)
        usable = positive & (time >= 1) & (error > 0.0)
        if mass is not None and np.isfinite(mass) and usable.any():
            middle = 0.5 * temporal_extent
            shape = np.cosh(mass * (time - middle))
            weight = np.where(usable, 1.0 / np.where(error > 0.0, error, 1.0) ** 2, 0.0)
            amplitude = float(np.sum(weight * shape * value) / np.sum(weight * shape**2))
            fine = np.linspace(0.0, time[-1], 200)
            axis.plot(
                fine,
                amplitude * np.cosh(mass * (fine - middle)),
                color=look[label].colour,
                linestyle=look[label].line,
                linewidth=1.0,
            )
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high < _DECADE * low:  # the ticks of a logarithmic axis are one or none here: take those of a linear one
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("time separation t (lattice units)")
    axis.set_ylabel("C(t)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    set_title(axis, title)
    add_legend(axis)
    return figure


def plot_effective_mass(
    masses: Mapping[str, Sequence[Estimate]],
    *,
    first_separation: int = 1,
    title: str = "effective mass (cosh)",
    styles: Mapping[str, SeriesStyle] | None = None,
) -> Figure:
    """Show an effective mass against the time separation.

    Parameters
    ----------
    masses
        Label to the effective mass in lattice units, one estimate per separation.
    first_separation
        Time separation of the first estimate.
    title
        What it is the mass of.
    styles
        Look of each label.

    Returns
    -------
    The figure; separations at which no mass exists (not a number) are left out.
    """
    _require(masses, "masses")
    figure, axis = _against_separation(masses, first_separation, styles)
    axis.set_xlabel("time separation t (lattice units)")
    axis.set_ylabel(r"$m_\mathrm{eff}(t)$ (lattice units)")
    set_title(axis, title)
    return figure


def plot_correlation(
    correlations: Mapping[str, Sequence[Estimate]],
    *,
    first_separation: int = 1,
    styles: Mapping[str, SeriesStyle] | None = None,
) -> Figure:
    """Show the spin-spin correlation along an axis against the distance.

    Parameters
    ----------
    correlations
        Label to the correlation, one estimate per distance.
    first_separation
        Distance of the first estimate, in lattice units.
    styles
        Look of each label.

    Returns
    -------
    The figure.
    """
    _require(correlations, "correlations")
    figure, axis = _against_separation(correlations, first_separation, styles)
    axis.set_xlabel("distance r (lattice units)")
    axis.set_ylabel(r"$\langle s_0 s_r\rangle$")
    set_title(axis, "spin-spin correlation on an axis")
    return figure


def plot_z_scores(scores: Mapping[str, Mapping[str, float]], *, bound: float | None = None) -> Figure:
    """Show differences between ensembles in units of their combined error.

    Parameters
    ----------
    scores
        Name of the pair to z-scores by observable.
    bound
        Size of ``|z|`` at which the family as a whole is rejected; drawn as dashed lines.

    Returns
    -------
    The figure, one line per observable; the shaded band is one standard error.
    """
    _require(scores, "scores")
    names = list(dict.fromkeys(name for pair in scores.values() for name in pair))
    look = series_styles(scores)
    height = max(_ROW_HEIGHT, _INCHES_PER_PAIR * len(scores))
    figure, (axis,) = new_figure(width=7.2, height=1.3 + height * len(names))
    # Two pairs stand close together, many spread over the row.
    step = min(0.5 * _LARGEST_ROW_OFFSET, 2.0 * _LARGEST_ROW_OFFSET / max(1, len(scores) - 1))
    axis.axvspan(-1.0, 1.0, color="#eef1f5", linewidth=0)
    axis.axvline(0.0, color=INK, linewidth=0.9)
    largest = 3.0
    for i, (pair, values) in enumerate(scores.items()):
        shown = [(row, values[name]) for row, name in enumerate(names) if name in values and np.isfinite(values[name])]
        rows = np.array([row for row, _ in shown], dtype=np.float64)
        z = np.array([value for _, value in shown], dtype=np.float64)
        largest = max(largest, float(np.max(np.abs(z), initial=0.0)))
        axis.plot(
            z,
            rows + step * (i - 0.5 * (len(scores) - 1)),
            color=look[pair].colour,
            marker=look[pair].marker,
            markersize=5,
            linewidth=0,
            label=pair,
        )
    if bound is not None:
        largest = max(largest, bound)
        for edge in (-bound, bound):
            axis.axvline(edge, color=PALETTE[1], linestyle="--", linewidth=1.0)
    axis.set_xlim(-1.1 * largest, 1.1 * largest)
    axis.set_yticks(np.arange(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel("difference / combined error (dashed: the family is rejected)")
    add_legend(axis, outside=True)
    return figure


def _require(data: Sequence[object] | Mapping[str, object], what: str) -> None:
    if len(data) == 0:
        raise AnalysisError(got=f"no {what}", expected="at least one entry to draw", fix="leave this figure out")


def _against_separation(
    series: Mapping[str, Sequence[Estimate]], first: int, styles: Mapping[str, SeriesStyle] | None
) -> tuple[Figure, Axes]:
    """Draw estimates against consecutive separations; those without a value or an error are left out."""
    look = styles or series_styles(series)
    figure, (axis,) = new_figure()
    for i, (label, estimates) in enumerate(series.items()):
        value = np.array([point.value for point in estimates])
        error = np.array([point.error for point in estimates])
        separation = first + np.arange(value.size)
        shown = np.isfinite(value) & np.isfinite(error)
        _draw_points(axis, separation[shown] + _offset(i, len(series)), value[shown], error[shown], look[label], label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(x=0.1, y=0.2)
    add_legend(axis)
    return figure, axis


def _draw_points(
    axis: Axes,
    x: NDArray[np.floating],
    y: NDArray[np.float64],
    error: NDArray[np.float64],
    style: SeriesStyle,
    label: str,
) -> None:
    """Draw points with error bars, unconnected."""
    axis.errorbar(
        x,
        y,
        yerr=error,
        color=style.colour,
        marker=style.marker,
        markersize=4,
        linewidth=0,
        elinewidth=1.2,
        capsize=2,
        label=label,
    )


def _offset(i: int, n: int) -> float:
    """Side step of series i of n, so that error bars at equal abscissae stay apart."""
    return 0.09 * (i - 0.5 * (n - 1))


def _windows_shown(result: GammaResult, size: int) -> int:
    """Lags worth showing: three windows beyond the chosen one, at least 12, at most all."""
    return max(2, min(size, max(4 * result.window + 1, 13)))
