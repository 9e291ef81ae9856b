"""Coupling flows for phi^4 and their scaling: what training and sampling cost as the lattice grows at fixed m_p L.

Run from the checkout: ``python -m benchmarks.trivializing_maps [--quick] [--json PATH] [--folder DIR] [--figures DIR]``.
Flows and ensembles are kept in the folder (by default runs/trivializing), so that the command is interrupted and repeated
at will; all of it takes some three hours on one core. `benchmarks.trivializing_flows` trains single flows beforehand.

The theory is phi^4 on the lines of arXiv:2105.12481 (beta, lambda = 0.5) and arXiv:1904.12072, which are one line in the
convention of `Phi4`, m^2 = -4, with lambda such that m_p L is about 4: the continuum limit at fixed physical volume.
Compared with: HMC and Fourier-accelerated HMC here, and ln Z by integration over the hopping parameter.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import Claim, parser, write_claims
from benchmarks.ising import show
from benchmarks.trivializing_ensembles import (
    KERNELS,
    SLOW,
    cost_table,
    forward_ess_of_hmc,
    make_ensembles,
    physics_table,
)
from benchmarks.trivializing_flows import BETA, VARIANTS, folder_of, scaling_flows
from benchmarks.trivializing_reference import log_z_by_integration
from benchmarks.trivializing_training import (
    THRESHOLDS,
    PowerLaw,
    TrainingCost,
    growth_table,
    training_cost,
    training_table,
)
from flowmc_analysis.ensemble import EnsembleAnalysis
from flowmc_analysis.plot_style import add_legend, new_figure, series_styles, set_title

LARGEST_Z = 4.0
# Below, a flow makes no ensembles.
LEAST_ACCEPTANCE = 0.4
# ln Z by integration in the hopping term, calculated for this project beforehand, independently of its code.
KNOWN_LOG_Z = {6: (30.730 + 18 * np.log(0.537 / 2), 0.003), 8: (55.741 + 32 * np.log(0.576 / 2), 0.004)}
ACCEPTANCE_TARGETS = (
    *((f"direct{seed}_6", 0.7, 3.0) for seed in (1, 2, 3)),
    ("albergo_6", 0.7, 3.0),
    ("direct1_12", 0.5, 45.0),
    ("best_12", 0.7, 45.0),
)
"""Acceptances that must be reached, and in how many minutes."""
ESS_TARGETS = (*((f"direct{seed}_8", 0.9, 15.0) for seed in (1, 2, 3)), ("albergo_8", 0.9, 15.0))
"""Reverse ESS at the end of the training, and its minutes."""


def target_claims(costs: Mapping[str, TrainingCost]) -> list[Claim]:
    """Hold the trainings against what they must reach."""
    claims = []
    for name, acceptance, minutes in ACCEPTANCE_TARGETS:
        if name in costs:
            spent = costs[name].wall_minutes[THRESHOLDS.index(acceptance)]
            title = f"wall minutes to {100 * acceptance:.0f} % acceptance, {name}, trainings before included"
            detail = f"acceptance {costs[name].acceptance:.3f} at the end"
            claims.append(Claim(title, spent, detail, f"<= {minutes:g}", "min", bool(spent <= minutes)))
    for name, ess, minutes in ESS_TARGETS:
        if name in costs:
            cost, spent = costs[name], costs[name].wall_minutes[-1]
            detail = f"8192 draws, {spent:.1f} min of wall time, trainings before included"
            target = f">= {ess:g} in {minutes:g} min"
            claims.append(
                Claim(f"reverse ESS, {name}", cost.ess, detail, target, "", bool(cost.ess >= ess and spent <= minutes))
            )
    for name, cost in costs.items():
        spent = (cost.before + cost.seconds[-1]) / 60
        detail = f"ESS {cost.ess:.3f}, {cost.steps[-1]:.0f} steps, {spent:.1f} processor min in all"
        claims.append(Claim(f"acceptance at the end, {name}", cost.acceptance, detail, "informative", "", holds=True))
    return claims


def growth_claims(fits: Mapping[str, PowerLaw]) -> list[Claim]:
    """Return the fitted exponents."""
    return [
        Claim(
            f"exponent, {name}", fit.exponent, f"± {fit.error:.2f}, {fit.points} points", "informative", "", holds=True
        )
        for name, fit in fits.items()
    ]


def crossover_claims(by_extent: Mapping[int, Mapping[str, EnsembleAnalysis]]) -> list[Claim]:
    """Return what an independent configuration from the flow costs, relative to the cheapest kernel without one."""
    claims = []
    for extent, analyses in by_extent.items():
        plain = {
            kernel: analyses[kernel].cost.per_independent(analyses[kernel].observables[SLOW]).value
            for kernel in ("hmc", "fourier_hmc")
        }
        cheapest = min(plain, key=lambda kernel: plain[kernel])
        for kernel in ("flow", "hybrid"):
            cost, slow = analyses[kernel].cost, analyses[kernel].observables[SLOW]
            alone, trained = (
                cost.per_independent(slow, with_training=with_training).value / plain[cheapest]
                for with_training in (False, True)
            )
            detail = f"with training {trained:.3g}; per update tau_int {slow.tau_int:.2f}"
            name = f"cost of an independent chi, {kernel} over {cheapest}, L = {extent}"
            claims.append(Claim(name, alone, detail, "informative", "", holds=True))
    return claims


def draw_training(costs: Sequence[TrainingCost], path: Path) -> None:
    """Draw the seconds to each acceptance, and the quality at the end, against L."""
    figure, axes = new_figure(2, 2, width=9.0, height=6.6)
    styles = series_styles(VARIANTS)
    for number, threshold in enumerate(THRESHOLDS):
        for variant, style in styles.items():
            own = [cost for cost in costs if cost.variant == variant]
            seconds = [cost.before + cost.seconds[number] for cost in own]
            axes[number].plot(
                [cost.extent for cost in own],
                seconds,
                color=style.colour,
                marker=style.marker,
                ls=style.line,
                label=variant,
            )
        reached = any(np.isfinite(cost.seconds[number]) for cost in costs if cost.variant in VARIANTS)
        # A smoke run reaches nothing, and there is no logarithm of that.
        axes[number].set(xscale="log", yscale="log" if reached else "linear", xlabel="L", ylabel="seconds of training")
        set_title(axes[number], f"to {100 * threshold:.0f} % acceptance")
    for variant, style in styles.items():
        own = [cost for cost in costs if cost.variant == variant]
        spread = [cost.log_weight_variance for cost in own]
        axes[3].plot(
            [cost.extent for cost in own], spread, color=style.colour, marker=style.marker, ls=style.line, label=variant
        )
    axes[3].set(xscale="log", yscale="log", xlabel="L", ylabel="Var(log w)")
    set_title(axes[3], "at the end of the training")
    for axis in axes:
        axis.set_xticks(list(BETA), [str(extent) for extent in BETA])
        axis.minorticks_off()
    add_legend(axes[3])
    figure.savefig(path, dpi=150)


def draw_sampling(by_extent: Mapping[int, Mapping[str, EnsembleAnalysis]], path: Path) -> None:
    """Draw autocorrelation and cost of an independent susceptibility against the correlation length."""
    figure, axes = new_figure(1, 2, width=9.0, height=3.8)
    styles = series_styles(KERNELS)
    xi = [analyses["hmc"].observables["correlation_length"].value for analyses in by_extent.values()]
    for kernel, style in styles.items():
        found = [analyses[kernel] for analyses in by_extent.values()]
        slow = [analysis.observables[SLOW] for analysis in found]
        updates = [analysis.updates_per_configuration for analysis in found]
        tau = [estimate.tau_int * per for estimate, per in zip(slow, updates, strict=True)]
        error = [estimate.tau_int_error * per for estimate, per in zip(slow, updates, strict=True)]
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "ls": style.line, "capsize": 2}
        axes[0].errorbar(xi, tau, error, label=kernel, **look)
        cost = [one.cost.per_independent(estimate) for one, estimate in zip(found, slow, strict=True)]
        axes[1].errorbar(xi, [one.value for one in cost], [one.error for one in cost], label=kernel, **look)
        if kernel in ("flow", "hybrid"):
            whole = [
                one.cost.per_independent(estimate, with_training=True).value
                for one, estimate in zip(found, slow, strict=True)
            ]
            axes[1].plot(xi, whole, color=style.colour, marker=style.marker, ls=":", mfc="none")
    axes[0].set(
        xscale="log", yscale="log", xlabel="correlation length", ylabel="tau_int of the susceptibility, updates"
    )
    axes[1].set(
        xscale="log", yscale="log", xlabel="correlation length", ylabel="seconds per independent susceptibility"
    )
    set_title(axes[0], "autocorrelation (white noise: 0.5)")
    set_title(axes[1], "cost; dotted: with the training")
    for axis in axes:
        ticks = [1.5, 2, 3, 4, 5]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    add_legend(axes[1])
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the benchmark."""
    options: argparse.ArgumentParser = parser(__doc__ or "")
    options.add_argument("--folder", type=Path, help="where flows and ensembles are kept")
    options.add_argument("--figures", type=Path, help="where the figures are drawn; the folder by default")
    arguments = options.parse_args()
    quick = arguments.quick
    folder = folder_of(arguments.folder, quick=quick)
    figures = arguments.figures or folder
    known = scaling_flows(quick=quick)
    for training in known.values():
        training.make(folder, known)
    costs = {name: training_cost(name, known, folder, quick=quick) for name in known}
    claims = target_claims(costs)
    by_extent: dict[int, dict[str, EnsembleAnalysis]] = {}
    for name, cost in costs.items():
        if cost.variant not in ("best", "albergo") or cost.acceptance < (0.0 if quick else LEAST_ACCEPTANCE):
            continue
        extent, lam = cost.extent, known[name].theory["lam"]
        analyses = make_ensembles(known[name], folder, quick=quick)
        # In the convention of the hopping parameter lambda = 1/2 makes m^2 = -4 at every kappa.
        log_z = log_z_by_integration(
            (extent, extent), (0.5 / lam) ** 0.5, 0.5, folder / f"log_z_{name.split('_')[0]}_{extent}.json", quick=quick
        )
        table, worst = physics_table(f"{name}: observables", analyses, log_z)
        show(table)
        forward = forward_ess_of_hmc(known[name], folder, analyses["flow"], quick=quick)
        detail = f"reverse {cost.ess:.3f}"
        claims.append(
            Claim(f"forward ESS on HMC's configurations, {name}", forward, detail, "informative", "", holds=True)
        )
        for kernel, z in worst.items():
            claims.append(Claim(f"largest |z|, {name}, {kernel}", z, "", f"< {LARGEST_Z:g}", "", bool(z < LARGEST_Z)))
        if cost.variant == "best":
            by_extent[extent] = analyses
            if extent in KNOWN_LOG_Z and not quick:
                value, error = KNOWN_LOG_Z[extent]
                z = abs(log_z.value - value) / float(np.hypot(log_z.error, error))
                detail = f"{log_z.value:.4f} ± {log_z.error:.1g} against {value:.4f} ± {error:.1g}"
                claims.append(
                    Claim(f"|z| of ln Z by integration, L = {extent}", z, detail, "< 4", "", bool(z < LARGEST_Z))
                )
    xi = {extent: analyses["hmc"].observables["correlation_length"].value for extent, analyses in by_extent.items()}
    show(training_table(list(costs.values())))
    table, fits = growth_table(list(costs.values()), xi)
    show(table)
    show(cost_table(by_extent))
    claims += growth_claims(fits) + crossover_claims(by_extent)
    figures.mkdir(parents=True, exist_ok=True)
    draw_training(list(costs.values()), figures / "trivializing_training.png")
    draw_sampling(by_extent, figures / "trivializing_sampling.png")
    print(f"\nfigures: {figures / 'trivializing_training.png'}, {figures / 'trivializing_sampling.png'}\n")
    write_claims(claims, arguments.json)
    raise SystemExit(0 if all(claim.holds for claim in claims) else 1)


if __name__ == "__main__":
    main()
