"""The ensembles of the scaling study: flow, hybrid, HMC and Fourier-accelerated HMC on each lattice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot, isnan, pi, sqrt
from pathlib import Path

import numpy as np
import torch

from benchmarks.kept import KeptEnsemble, KeptFlow
from benchmarks.trivializing_reference import ReferenceLogZ
from flowmc.flows import load_flow
from flowmc_analysis.ensemble import EnsembleAnalysis
from flowmc_analysis.tables import Table, format_seconds
from flowmc_analysis.weights import ess_forward
from flowmc_ensembles import Ensemble

__all__ = ["COMPARED", "KERNELS", "cost_table", "forward_ess_of_hmc", "make_ensembles", "physics_table", "worst_score"]

FORWARD_CONFIGURATIONS = 4096
# Largest lattice with the full number of cycles; larger ones have half of it.
LONG = 12
KERNELS = ("flow", "hybrid", "hmc", "fourier_hmc")
COMPARED = (
    "magnetisation_abs",
    "susceptibility",
    "binder_cumulant",
    "phi_squared",
    "action_density",
    "correlation_length",
    "two_point_zero_momentum[1]",
)
SLOW = "susceptibility"
"""The observable whose autocorrelation is compared: that of the zero mode, the slowest one."""


def make_ensembles(training: KeptFlow, folder: Path, *, quick: bool) -> dict[str, EnsembleAnalysis]:
    """Make the ensembles of a flow's theory, or read those that are there."""
    extent = training.theory["shape"][0]
    # On this line of couplings the mass is about 4 / L, and a mode of mass m turns with the frequency sqrt(2) m: a
    # trajectory of a quarter period of the slowest mode is the best that plain HMC can do.
    mass = 4 / extent
    quarter = 0.5 * pi / (sqrt(2) * mass)
    length = {"hmc": quarter, "hybrid": quarter, "flow": quarter, "fourier_hmc": 0.5 * pi}
    cycles = {"flow": 1000, "hybrid": 600, "hmc": 4000, "fourier_hmc": 4000}
    if extent > LONG:
        cycles = {kernel: count // 2 for kernel, count in cycles.items()}
    found = {}
    for kernel in KERNELS:
        sampling = {
            "seed": 11,
            "chains": 32,
            "cycles": 100 if quick else cycles[kernel],
            "thermalisation": 100,
            "tuning": 80,
            "cycles_per_block": 100,
            "flow_proposals": 2,
            "trajectory_length": length[kernel],
            "step_size": 0.1,
            "target_acceptance": 0.9,
            "acceleration_mass": mass,
        }
        found[kernel] = KeptEnsemble(training, kernel, sampling).make(folder)
    return found


def forward_ess_of_hmc(training: KeptFlow, folder: Path, alone: EnsembleAnalysis, *, quick: bool) -> float:
    """Return the forward ESS of a flow over configurations of HMC, which know every mode that HMC has visited.

    Parameters
    ----------
    training, folder
        The flow, and where it and the ensemble of HMC are kept.
    alone
        The ensemble of the flow alone, whose draws give Z.
    quick
        Whether a few configurations are enough.
    """
    if alone.weights is None:
        return float("nan")
    flow, saved = load_flow(folder / f"{training.name}.safetensors")
    stream = Ensemble(folder / f"{training.name}_hmc.h5").streams[0]
    fields = np.asarray(stream.configurations(), dtype=np.float64)
    fields = fields.reshape(-1, *saved.theory.shape)
    fields = fields[:: max(1, len(fields) // (256 if quick else FORWARD_CONFIGURATIONS))]
    flow.double()
    with torch.inference_mode():
        log_q = np.concatenate([flow.log_prob(torch.tensor(part)).numpy() for part in np.array_split(fields, 16)])
    return ess_forward(-saved.theory.action(fields) - log_q, alone.weights.log_weight)


def physics_table(
    title: str, analyses: Mapping[str, EnsembleAnalysis], log_z: ReferenceLogZ
) -> tuple[Table, dict[str, float]]:
    """Tabulate observables with their z-scores against HMC, and ln Z with those against integration over couplings.

    Returns
    -------
    The table, and the largest score, in absolute value, of each ensemble but that of HMC.
    """
    reference = analyses["hmc"]
    rows, scores = [], {kernel: [0.0] for kernel in analyses if kernel != "hmc"}
    for name in COMPARED:
        known = reference.observables[name]
        cells = []
        for kernel, analysis in analyses.items():
            estimate = analysis.observables[name]
            if kernel == "hmc":
                cells.append(str(estimate))
                continue
            z = (estimate.value - known.value) / hypot(estimate.error, known.error)
            scores[kernel].append(abs(z))
            cells.append(f"{estimate} ({z:+.2f})")
        rows.append((name, *cells, ""))
    cells = []
    for kernel, analysis in analyses.items():
        if analysis.weights is None:
            cells.append("")
            continue
        estimate = analysis.weights.ln_z
        z = (estimate.value - log_z.value) / hypot(estimate.error, log_z.error)
        scores[kernel].append(abs(z))
        cells.append(f"{estimate} ({z:+.2f})")
    rows.append(("ln Z", *cells, f"{log_z.value:.4f} ± {log_z.error:.1g}"))
    table = Table(title, ("observable", *analyses, "integration"), tuple(rows), "In brackets: z-scores against HMC.")
    return table, {kernel: worst_score(values) for kernel, values in scores.items()}


def worst_score(values: Sequence[float]) -> float:
    """Return the largest score; NaN, which says nothing, counts as infinite."""
    return max(float("inf") if isnan(value) else value for value in values)


def cost_table(by_extent: Mapping[int, Mapping[str, EnsembleAnalysis]]) -> Table:
    """Tabulate acceptance, autocorrelation and cost of every kernel on every lattice."""
    rows = []
    for extent, analyses in by_extent.items():
        xi = analyses["hmc"].observables["correlation_length"]
        for kernel, analysis in analyses.items():
            slow, cost = analysis.observables[SLOW], analysis.cost
            weights, per = analysis.weights, analysis.updates_per_configuration
            rows.append(
                (
                    str(extent),
                    str(xi),
                    kernel,
                    "; ".join(f"{kind} {rate.value:.3f}" for kind, rate in analysis.acceptance_by_kind.items()),
                    f"{slow.tau_int * per:.2f} ± {slow.tau_int_error * per:.1g}",
                    format_seconds(cost.per_independent(slow).value),
                    format_seconds(cost.per_independent(slow, with_training=True).value),
                    "" if weights is None else f"{weights.ess_reverse:.3f}",
                    "" if weights is None else f"{weights.ess_forward:.3f}",
                )
            )
    columns = (
        "L",
        "xi",
        "kernel",
        "acceptance",
        "tau_int(chi), updates",
        "per independent chi",
        "with training",
        "ESS, reverse",
        "ESS, forward",
    )
    note = "tau_int: white noise = 0.5. Of the hybrid an update is a trajectory or a flow proposal."
    return Table("Autocorrelation and cost", columns, tuple(rows), note)
