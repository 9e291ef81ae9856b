"""The ensembles of the Ising benchmark: every flow by itself, and at L = 16 and 32 the kernels side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path

import jax

from benchmarks.ising_flows import Training
from flowmc.config import parse_run
from flowmc.display import TerminalDisplay
from flowmc.workflows import sample_ensemble
from flowmc_analysis.ensemble import EnsembleAnalysis, analyze
from flowmc_analysis.tables import Table, format_seconds

__all__ = ["COMPARED", "Chain", "chains_of", "tau_table", "z_scores"]

jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]

COMPARED = ("heat_bath+flow", "blocks", "blocks+flow", "heat_bath", "metropolis", "swendsen_wang", "wolff")
SMALLER_BLOCKS = {16: (3,), 32: (7, 3)}


@dataclass(frozen=True)
class Chain:
    """One ensemble.

    Parameters
    ----------
    training
        The flow; its theory is sampled.
    kernel
        The kernel.
    cycles
        Cycles of production, of 32 chains.
    side
        Side of the blocks of block moves; 0 is the largest.
    """

    training: Training
    kernel: str
    cycles: int
    side: int = 0

    @property
    def label(self) -> str:
        """Name in tables."""
        blocks = f"blocks of {self.side or self.training.extent // 2 - 1}"
        return self.kernel.replace("flow", self.training.name.split("_")[0].upper()).replace("blocks", blocks)

    def make(self, folder: Path) -> EnsembleAnalysis:
        """Sample, resume or just read the ensemble, and analyse it."""
        path = folder / f"{self.training.name}_{self.kernel}{self.side or ''}.h5"
        thermalisation = 0 if self.kernel == "flow" else max(100, self.cycles // 10 // 50 * 50)
        sampling = {
            "kernel": self.kernel,
            "seed": 7,
            "chains": 32,
            "cycles": self.cycles,
            "thermalisation": thermalisation,
            "cycles_per_block": 50,
            "flow_proposals": 1,
            "block_side": self.side,
        }
        theory = self.training.config().theory.describe()
        config = parse_run({"theory": theory, "flow": self.training.flow, "sampling": sampling})
        sample_ensemble(
            config,
            config.sampling,
            path,
            flow_path=folder / f"{self.training.name}.safetensors" if config.sampling.needs_flow else None,
            resume=True,
            should_stop=lambda: "",
            display=TerminalDisplay(),
            base=folder,
        )
        return analyze(path, label=self.label)


def chains_of(training: Training, cycles: int, *, compared: bool) -> list[Chain]:
    """Return the ensembles of a flow: its proposals alone and, if it is compared, the other kernels."""
    alone = Chain(training, "flow", cycles)
    if not compared:
        return [alone]
    smaller = [Chain(training, "blocks", cycles, side) for side in SMALLER_BLOCKS.get(training.extent, ())]
    return [alone, *smaller, *(Chain(training, kernel, cycles) for kernel in COMPARED)]


def tau_table(extent: int, analyses: Sequence[EnsembleAnalysis]) -> Table:
    """Tabulate autocorrelation times and the cost of an independent configuration, with and without training."""
    rows = []
    for analysis in analyses:
        estimates = [analysis.observables[name] for name in ("energy", "magnetisation_abs")]
        slowest = max(estimates, key=lambda estimate: estimate.tau_int)
        cost = analysis.cost
        acceptance = "; ".join(f"{rate.value:.3f}" for rate in analysis.acceptance_by_kind.values())
        updates = [analysis.updates_per_configuration * estimate.tau_int for estimate in estimates]
        rows.append(
            (
                analysis.label,
                acceptance,
                *(f"{tau:.2f}" for tau in updates),
                format_seconds(cost.per_independent(slowest).value),
                format_seconds(cost.per_independent(slowest, with_training=True).value),
            )
        )
    columns = ("kernel", "acceptance", "tau_int(E)", "tau_int(|m|)", "per independent", "with training")
    note = "tau_int in updates, white noise = 0.5; cost of an independent configuration, by the slower of the two."
    return Table(f"L = {extent}, beta = 0.44", columns, tuple(rows), note)


def z_scores(analyses: Sequence[EnsembleAnalysis]) -> dict[str, float]:
    """Return z-scores of energy and specific heat against Kaufman's values, and of |m| against the last ensemble's."""
    found: dict[str, float] = {}
    reference = analyses[-1].observables["magnetisation_abs"]
    for analysis in analyses:
        known = {score.name: score.z for score in analysis.exact}
        found |= {f"{analysis.label} {name}": known[name] for name in ("energy", "specific_heat")}
        if analysis is not analyses[-1]:
            measured = analysis.observables["magnetisation_abs"]
            z = (measured.value - reference.value) / hypot(measured.error, reference.error)
            found[f"{analysis.label} |m|"] = z
    return found
