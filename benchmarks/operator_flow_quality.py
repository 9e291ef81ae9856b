"""How good an operator flow is on a lattice: weights of its draws and of configurations of HMC, ln Z and observables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import hypot, nan
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.kept import KeptEnsemble, KeptFlow
from benchmarks.operator_flow_trainings import KERNELS, M2, theory
from benchmarks.trivializing_reference import ReferenceLogZ, log_z_by_integration
from flowmc.flows import Flow, OperatorFlow, SavedFlow, build_flow, load_flow
from flowmc.seeds import torch_generator
from flowmc.theories import Phi4
from flowmc_analysis.ensemble import EnsembleAnalysis
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.free_energy import log_partition_function
from flowmc_analysis.importance import importance_mean
from flowmc_analysis.weights import ess_forward, ess_reverse
from flowmc_ensembles import Ensemble

__all__ = ["COMPARED", "EXACT", "Point", "Quality", "Reference", "make_reference", "measure_quality", "on_lattice"]

Array = NDArray[np.float64]

DRAWS, LARGE, DRAWS_OF_LARGE = 4096, 144, 2048
"""Draws on lattices of up to so many sites, and on larger ones."""
FORWARD = 256
"""Configurations of HMC for the forward ESS: the inverse map costs several times the forward one."""
INVERTED = 0.1
"""Reverse ESS below which the inverse map, slow to find where velocities are wild, is not asked for."""
CHUNK = 256
EFFECTIVE = 1000
"""Effective draws that observables are compared at."""
EXACT: Mapping[str, Any] = MappingProxyType({"integrator": "splitting", "steps": 5})
"""How flows with local kernels are drawn from: exactly, at about the cost of what they were trained with."""
COMPARED = ("phi_squared", "phi_fourth", "magnetisation_abs", "susceptibility")


@dataclass(frozen=True)
class Point:
    """A lattice and λ.

    Parameters
    ----------
    shape
        Lattice extents.
    lam
        Coupling λ, at the m² of the study.
    """

    shape: tuple[int, int]
    lam: float

    @property
    def name(self) -> str:
        """How it is called in names of files."""
        return f"{self.size}_{self.lam:g}"

    @property
    def size(self) -> str:
        """How the lattice is called in tables."""
        one, other = self.shape
        return str(one) if one == other else f"{one}x{other}"

    @property
    def theory(self) -> Phi4:
        """The theory."""
        return Phi4(self.shape, M2, self.lam)


@dataclass(frozen=True)
class Reference:
    """What is known of a lattice without a flow.

    Parameters
    ----------
    fields
        Configurations of HMC, (n, *shape), thinned.
    analysis
        The ensemble.
    log_z
        ln Z by integration over the hopping parameter; None where that was not done.
    """

    fields: Array
    analysis: EnsembleAnalysis
    log_z: ReferenceLogZ | None


def make_reference(point: Point, folder: Path, *, integrate: bool, quick: bool) -> Reference:
    """Make the ensemble of HMC on a lattice, and integrate to ln Z, or read what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    given = theory(point.shape, point.lam)
    # HMC knows of the theory only.
    training = KeptFlow(
        f"reference_{point.name}", given, {"kind": "operator", "networks": {"kernel": KERNELS["local"]}}, {}
    )
    sampling = {
        "seed": 5,
        "chains": 32,
        "cycles": 60 if quick else 1000,
        "thermalisation": 200,
        "tuning": 100,
        "cycles_per_block": 20 if quick else 100,
        "trajectory_length": 1.5,
        "step_size": 0.3,
        "target_acceptance": 0.9,
        "acceleration_mass": 4 / max(point.shape),
    }
    kernel = "fourier_hmc"
    analysis = KeptEnsemble(training, kernel, sampling).make(folder)
    stored = np.asarray(Ensemble(folder / f"{training.name}_{kernel}.h5").streams[0].configurations(), dtype=np.float64)
    fields = stored.reshape(-1, *point.shape)
    fields = fields[:: max(1, len(fields) // (64 if quick else FORWARD))]
    log_z = None
    if integrate:
        # In the convention of the hopping parameter λ = 1/2 makes m² = −4 at every κ.
        path = folder / f"log_z_{point.name}.json"
        log_z = log_z_by_integration(point.shape, (0.5 / point.lam) ** 0.5, 0.5, path, quick=quick)
    return Reference(fields, analysis, log_z)


@dataclass(frozen=True)
class Quality:
    """Weights of a flow on a lattice.

    Parameters
    ----------
    point
        The lattice.
    log_w
        Log-weights of draws, (n,).
    log_w_samples
        Those of configurations of HMC.
    values
        Observables of the draws by name, (n,) each.
    """

    point: Point
    log_w: Array
    log_w_samples: Array
    values: Mapping[str, Array]

    @cached_property
    def ess(self) -> float:
        """Reverse ESS, a fraction; 0 if no weight is finite."""
        if not np.isfinite(self.log_w).any():
            return 0.0
        return ess_reverse(self.log_w)

    @cached_property
    def ess_forward(self) -> float:
        """Forward ESS, over configurations of HMC; not a number where they were not weighed."""
        if not len(self.log_w_samples):
            return nan
        return ess_forward(self.log_w_samples, self.log_w)

    @property
    def variance_per_site(self) -> float:
        """Var(log w) / V."""
        finite = self.log_w[np.isfinite(self.log_w)]
        return float(finite.var(ddof=1) / self.point.theory.volume) if len(finite) > 1 else nan

    @property
    def effective(self) -> float:
        """Effective number of draws."""
        return self.ess * len(self.log_w)

    @cached_property
    def log_z(self) -> Estimate:
        """Logarithm of Z by importance sampling."""
        return log_partition_function(self.log_w)

    def scores(self, reference: Reference) -> dict[str, float]:
        """Return z-scores of observables, and of ln Z where it is known, against those of HMC."""
        found = {}
        for name in COMPARED:
            known, own = reference.analysis.observables[name], importance_mean(self.log_w, self.values[name])
            found[name] = (own.value - known.value) / hypot(own.error, known.error)
        if reference.log_z is not None:
            difference = self.log_z.value - reference.log_z.value
            found["ln_z"] = difference / hypot(self.log_z.error, reference.log_z.error)
        return found


def on_lattice(path: Path, point: Point) -> tuple[Flow, SavedFlow]:
    """Read a flow file and return its flow on a lattice, in float64, and what the file holds.

    Operator flows with local kernels are drawn from with the exact log-determinant of the splitting by colours, others
    with the integral of the divergence, as they were trained. A flow of convolutions takes their weights over.
    """
    flow, saved = load_flow(path)
    target = point.theory
    changed: Mapping[str, Any] = {}
    if isinstance(flow, OperatorFlow):
        changed = EXACT if flow.config.networks.kernel.family == "local" else {}
    if flow.theory != target or changed:
        other = build_flow({**saved.flow, **changed}, target)
        other.start_from(flow)
        flow = other
    return flow.double(), saved


def measure_quality(name: str, point: Point, folder: Path, reference: Reference, *, quick: bool) -> Quality:
    """Weigh draws of a flow on a lattice and configurations of HMC, or read what was found.

    Parameters
    ----------
    name
        Name of the training.
    point
        The lattice.
    folder
        Where flows are kept.
    reference
        What is known of the lattice.
    quick
        Whether a few draws are enough.
    """
    flow, saved = on_lattice(folder / f"{name}.safetensors", point)
    kept = folder / f"weights_{name}_on_{point.name}.npz"
    draws = 512 if quick else DRAWS if point.theory.volume <= LARGE else DRAWS_OF_LARGE
    if kept.is_file():
        with np.load(kept) as found:
            same = str(found["fingerprint"]) == saved.fingerprint and np.array_equal(found["samples"], reference.fields)
            if same and len(found["log_w"]) == draws:
                values = {key: found[key] for key in COMPARED}
                return Quality(point, found["log_w"], found["log_w_samples"], values)
    parts: list[tuple[Array, Array]] = []
    with torch.inference_mode():
        for number in range(draws // CHUNK):
            field, log_q = flow.sample(CHUNK, torch_generator(6, "quality", number))
            parts.append((field.numpy(), (-cast(torch.Tensor, point.theory.action(field)) - log_q).numpy()))
        fields = np.concatenate([field for field, _ in parts])
        log_w = np.concatenate([log_w for _, log_w in parts])
        log_w = np.where(np.isfinite(log_w), log_w, -np.inf)
        log_w_samples = np.empty(0)
        if np.isfinite(log_w).any() and ess_reverse(log_w) > INVERTED:
            samples = torch.tensor(reference.fields)
            found_q = [flow.log_prob(part) for part in torch.split(samples, CHUNK)]
            log_w_samples = (-cast(torch.Tensor, point.theory.action(samples)) - torch.cat(found_q)).numpy()
    values = _observables(fields)
    facts = {"fingerprint": saved.fingerprint, "samples": reference.fields, "log_w": log_w}
    np.savez(kept, log_w_samples=log_w_samples, **cast(Any, facts), **cast(Any, values))
    return Quality(point, log_w, log_w_samples, values)


def _observables(fields: Array) -> dict[str, Array]:
    """Return the observables of `COMPARED`, with the definitions of the analysis of ensembles."""
    axes = (1, 2)
    mean = fields.mean(axes)
    volume = fields[0].size
    return {
        "phi_squared": (fields**2).mean(axes),
        "phi_fourth": (fields**4).mean(axes),
        "magnetisation_abs": np.abs(mean),
        "susceptibility": volume * mean**2,
    }
