"""Chains on 16 × 16 sites: a flow that was trained on 6 × 6 and 8 × 8 proposes, as it is, beside HMC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import pi, sqrt
from pathlib import Path
from typing import Any

from benchmarks.claims import Claim
from benchmarks.kept import KeptEnsemble, KeptFlow
from benchmarks.measuring import INFORMATIVE
from benchmarks.operator_flow_quality import EXACT
from benchmarks.operator_flow_trainings import TRAINED, theory
from benchmarks.trivializing_ensembles import KERNELS, SLOW, cost_table, physics_table
from benchmarks.trivializing_reference import ReferenceLogZ
from flowmc_analysis.ensemble import EnsembleAnalysis
from flowmc_analysis.tables import Table

__all__ = ["EXTENT", "chain_claims", "chain_tables", "make_chains"]

EXTENT = 16
LARGEST_Z = 4.0
MULTISCALE = "flow, multiscale"
"""Chains of the flow with multi-scale kernels alone: its inverse, which a hybrid needs, is slow."""
MASS = 4 / max(TRAINED)
"""m_p of these couplings in lattice units: m_p L ≈ 4 at L = 8."""


def _transferred(name: str, known: Mapping[str, KeptFlow], **changed: Any) -> KeptFlow:
    """Return a flow as it was trained, on the lattice of the chains."""
    trained = known[name]
    return replace(
        trained,
        name=f"{name}_on_{EXTENT}",
        theory=theory(EXTENT),
        flow={**trained.flow, **changed},
        training={"steps": 0, "threads": 1},
        start_from=name,
    )


def make_chains(known: Mapping[str, KeptFlow], folder: Path, *, quick: bool) -> dict[str, EnsembleAnalysis]:
    """Make the ensembles, or read those that are there."""
    local, multiscale = _transferred("local_0", known, **EXACT), _transferred("multiscale_0", known)
    # A quarter period of the slowest mode, of frequency √2 m, is the best that plain HMC can do.
    quarter = 0.5 * pi / (sqrt(2) * MASS)
    length = {"hmc": quarter, "hybrid": quarter, "flow": quarter, "fourier_hmc": 0.5 * pi}
    cycles = {"flow": 200, "hybrid": 200, "hmc": 2000, "fourier_hmc": 2000}

    def make(flow: KeptFlow, kernel: str) -> EnsembleAnalysis:
        flow.make(folder, known)
        sampling = {
            "seed": 11,
            "chains": 16,
            "cycles": 20 if quick else cycles[kernel],
            "thermalisation": 50,
            "tuning": 40,
            "cycles_per_block": 10 if quick else 50,
            "flow_proposals": 2,
            "trajectory_length": length[kernel],
            "step_size": 0.15,
            "target_acceptance": 0.9,
            "acceleration_mass": MASS,
        }
        return KeptEnsemble(flow, kernel, sampling).make(folder)

    return {kernel: make(local, kernel) for kernel in KERNELS} | {MULTISCALE: make(multiscale, "flow")}


def chain_tables(chains: Mapping[str, EnsembleAnalysis], log_z: ReferenceLogZ) -> tuple[list[Table], dict[str, float]]:
    """Return tables of physics and cost, and the largest z-score of each kernel."""
    physics, worst = physics_table(f"Chains, L = {EXTENT}: observables", chains, log_z)
    return [physics, cost_table({EXTENT: chains})], worst


def chain_claims(chains: Mapping[str, EnsembleAnalysis], worst: Mapping[str, float]) -> list[Claim]:
    """Return agreement, acceptance and cost."""
    claims = []
    for kernel, z in worst.items():
        name = f"largest |z| of observables and ln Z, {kernel}, L = {EXTENT}"
        claims.append(Claim(name, z, "against HMC and integration", f"< {LARGEST_Z:g}", "", z < LARGEST_Z))

    def seconds(kernel: str, *, with_training: bool = False) -> float:
        run = chains[kernel]
        return float(run.cost.per_independent(run.observables[SLOW], with_training=with_training).value)

    cheapest = min(("hmc", "fourier_hmc"), key=seconds)
    for kernel in ("flow", "hybrid", MULTISCALE):
        slow = chains[kernel].observables[SLOW]
        detail = (
            f"with training {seconds(kernel, with_training=True) / seconds(cheapest):.3g}; "
            f"tau_int {slow.tau_int:.2f} ± {slow.tau_int_error:.1g} stored configurations"
        )
        name = f"cost of an independent chi, {kernel} with the transferred flow over {cheapest}, L = {EXTENT}"
        claims.append(Claim(name, seconds(kernel) / seconds(cheapest), detail, INFORMATIVE, "", holds=True))
    return claims
