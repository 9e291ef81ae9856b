"""Synthetic ensembles of the free scalar field and of the Ising model, written with the project's own writer; U(1) links.

The target and the "flow" are free fields of different mass, or enumerated Ising models of different temperature, so that
log-weights, ln Z and every correlator are known. The kernels are a few lines of NumPy, independent of the project's.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flowmc_analysis.exact_ising import EnumeratedIsing, enumerate_ising
from flowmc_ensembles.descriptions import EnsembleDescription, StreamDescription
from flowmc_ensembles.writer import EnsembleWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["FreeField", "SyntheticIsing", "SyntheticRun"]

CONVENTION = "S = sum_x [ sum_mu (phi(x+mu) - phi(x))^2 + m^2 phi^2 ]"


@dataclass(frozen=True)
class FreeField:
    """A free scalar field: exact draws, action, force and density."""

    shape: tuple[int, ...]
    mass: float

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(-len(self.shape), 0))

    @property
    def kernel(self) -> Array:
        momenta = np.meshgrid(*[2.0 * np.sin(np.pi * np.arange(n) / n) for n in self.shape], indexing="ij")
        return np.asarray(np.sum(np.square(momenta), axis=0) + self.mass**2)

    @property
    def log_z(self) -> float:
        return float(0.5 * np.sum(np.log(np.pi / self.kernel)))

    def sample(self, rng: np.random.Generator, n: int) -> Array:
        white = np.fft.fftn(rng.normal(size=(n, *self.shape)), axes=self.axes)
        return np.asarray(np.fft.ifftn(white / np.sqrt(2.0 * self.kernel), axes=self.axes).real)

    def action(self, phi: Array) -> Array:
        return np.asarray(-0.5 * np.sum(phi * self.force(phi), axis=self.axes))

    def force(self, phi: Array) -> Array:
        hop = sum(np.roll(phi, 1, axis) + np.roll(phi, -1, axis) for axis in self.axes)
        return -2.0 * ((2.0 * len(self.shape) + self.mass**2) * phi - hop)

    def log_prob(self, phi: Array) -> Array:
        return -self.action(phi) - self.log_z


@dataclass(frozen=True)
class SyntheticRun:
    """What is run: ``hmc`` trajectories and ``flow`` proposals per cycle; one configuration is stored per cycle."""

    target: FreeField
    flow: FreeField
    algorithm: str
    n_hmc: int
    n_flow: int
    n_cycles: int = 400
    n_chains: int = 8
    thermalisation_cycles: int = 20
    training_seconds: float = 30.0
    step_size: float = 0.25
    n_steps: int = 4
    sampled: FreeField | None = None
    """What the chain samples, if not the target it claims to."""

    @property
    def simulated(self) -> FreeField:
        return self.sampled or self.target

    @property
    def updates_per_cycle(self) -> int:
        return self.n_hmc + self.n_flow

    def write(self, path: Path, rng: np.random.Generator, *, n_streams: int = 1) -> Path:
        """Run and write a new ensemble."""
        with EnsembleWriter.create(path, self.description(), self.stream()) as writer:
            self._fill(writer, rng)
        for _ in range(1, n_streams):
            self.add_to(path, rng)
        return path

    def add_to(self, path: Path, rng: np.random.Generator) -> None:
        """Run and write one more stream of an ensemble."""
        with EnsembleWriter.add_stream(path, self.stream()) as writer:
            self._fill(writer, rng)

    def stream(self) -> StreamDescription:
        return StreamDescription(
            seed=17,
            algorithm=self.algorithm,
            algorithm_parameters={"n_hmc": self.n_hmc, "n_flow": self.n_flow, "step_size": self.step_size},
            n_chains=self.n_chains,
            field_name="phi",
            field_dtype=np.dtype(np.float64),
            thermalisation_updates=self.thermalisation_cycles * self.updates_per_cycle,
            freeze_update=0,
            flow_sha256="ab" * 32 if self.n_flow else "",
            proposal_kinds={0: "hmc", 1: "flow"},
        )

    def description(self) -> EnsembleDescription:
        return EnsembleDescription(
            theory="free_scalar",
            action={"name": "free_scalar", "shape": list(self.target.shape), "mass": self.target.mass},
            lattice_size=self.target.shape,
            convention=CONVENTION,
            boundary_conditions=("periodic",) * len(self.target.shape),
            run={"training_seconds": self.training_seconds, "versions": {"numpy": np.__version__}},
        )

    def _fill(self, writer: EnsembleWriter, rng: np.random.Generator) -> None:
        phi = self.simulated.sample(rng, self.n_chains)
        update = 0
        configurations, trajectories = [], []
        rows: list[dict[str, Array | float]] = []
        for _ in range(self.n_cycles):
            for kind in [0] * self.n_hmc + [1] * self.n_flow:
                update += 1
                start = time.perf_counter()
                phi, row = self._flow_update(phi, rng) if kind else self._hmc_update(phi, rng)
                seconds = time.perf_counter() - start
                rows.append({**row, "update": update, "proposal_kind": kind, "walltime": seconds})
            configurations.append(phi)
            trajectories.append(update)
        fields = np.stack(configurations)
        types = {"update": np.int64, "proposal_kind": np.uint8, "accepted": np.uint8}
        history = {
            name: np.stack([np.asarray(row[name]) for row in rows]).astype(types.get(name, np.float64))
            for name in rows[0]
        }
        virial = -np.sum(fields * self.target.force(fields), axis=self.target.axes)
        writer.append(
            trajectory=np.array(trajectories, dtype=np.int64),
            configurations={"phi": fields, "action": self.target.action(fields)},
            history=history,
            observables={"virial": virial},
            checkpoint={"update": update},
        )

    def _log_weight(self, phi: Array) -> Array:
        return -self.simulated.action(phi) - self.flow.log_prob(phi)

    def _flow_update(self, phi: Array, rng: np.random.Generator) -> tuple[Array, dict[str, Array | float]]:
        proposal = self.flow.sample(rng, self.n_chains)
        new, old = self._log_weight(proposal), self._log_weight(phi)
        accepted = np.log(rng.random(self.n_chains)) < new - old
        phi = np.where(accepted.reshape(-1, *[1] * len(self.target.shape)), proposal, phi)
        return phi, self._row(phi, accepted, log_weight=new, log_weight_current=old)

    def _hmc_update(self, phi: Array, rng: np.random.Generator) -> tuple[Array, dict[str, Array | float]]:
        target, axes = self.simulated, self.target.axes
        momentum = rng.normal(size=phi.shape)
        start = 0.5 * np.sum(momentum**2, axis=axes) + target.action(phi)
        new, p = phi, momentum + 0.5 * self.step_size * target.force(phi)
        n_steps = int(rng.integers(2, 2 * self.n_steps))  # a fixed length is periodic for some momentum
        for step in range(n_steps):
            new = new + self.step_size * p
            p = p + (self.step_size if step < n_steps - 1 else 0.5 * self.step_size) * target.force(new)
        delta = 0.5 * np.sum(p**2, axis=axes) + target.action(new) - start
        accepted = np.log(rng.random(self.n_chains)) < -delta
        phi = np.where(accepted.reshape(-1, *[1] * len(target.shape)), new, phi)
        return phi, self._row(phi, accepted, delta_H=delta)

    def _row(self, phi: Array, accepted: NDArray[np.bool_], **columns: Array) -> dict[str, Array | float]:
        absent = np.full(self.n_chains, np.nan)
        row = {"delta_H": absent, "log_weight": absent, "log_weight_current": absent, **columns}
        return {**row, "accepted": accepted.astype(np.float64), "action": self.target.action(phi)}


TARGET = FreeField((6, 4), 0.8)
FLOW = FreeField((6, 4), 0.95)
RUNS = {
    "hybrid": SyntheticRun(TARGET, FLOW, "hybrid", n_hmc=1, n_flow=2),
    "flow": SyntheticRun(TARGET, FLOW, "flow", n_hmc=0, n_flow=2),
    "hmc": SyntheticRun(TARGET, FLOW, "hmc", n_hmc=2, n_flow=0),
}


@pytest.fixture(scope="session")
def ensembles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three ensembles of one free theory, ``hybrid``, ``flow`` and ``hmc``, by label."""
    folder = tmp_path_factory.mktemp("synthetic")
    paths = {}
    for label, run in RUNS.items():
        seed = zlib.crc32(f"ensembles/{label}".encode())
        paths[label] = run.write(folder / f"{label}.h5", np.random.default_rng(seed))
    return paths


@pytest.fixture(scope="session")
def synthetic_runs() -> dict[str, SyntheticRun]:
    """What the ensembles of :func:`ensembles` hold."""
    return RUNS


@dataclass(frozen=True)
class SyntheticIsing:
    """Metropolis sweeps over the sites and draws from another temperature; one configuration is stored per cycle."""

    algorithm: str
    n_sweeps: int
    n_flow: int
    shape: tuple[int, ...] = (4, 4)
    beta: float = 0.4
    coupling: float = 1.0
    field: float = 0.0
    flow_beta: float = 0.37
    sampled_beta: float | None = None
    """What the chain samples, if not the temperature it claims to."""
    n_cycles: int = 500
    n_chains: int = 8
    thermalisation_cycles: int = 20

    @property
    def exact(self) -> EnumeratedIsing:
        return enumerate_ising(self.shape, self.beta, self.coupling, self.field)

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(-len(self.shape), 0))

    def hamiltonian(self, spins: NDArray[np.int8]) -> Array:
        s = spins.astype(np.float64)
        links = sum(s * np.roll(s, -1, axis) for axis in self.axes)
        return np.asarray(np.sum(-self.coupling * links - self.field * s, axis=self.axes))

    def write(self, path: Path, rng: np.random.Generator) -> Path:
        """Run and write a new ensemble."""
        couplings = {"beta": self.beta, "coupling": self.coupling, "field": self.field}
        description = EnsembleDescription(
            theory="ising",
            action={"name": "ising", "shape": list(self.shape), **couplings},
            lattice_size=self.shape,
            convention="S = beta H, H = -coupling sum_x sum_mu s(x) s(x+mu) - field sum_x s(x)",
            run={"training_seconds": 10.0},
        )
        updates_per_cycle = self.n_sweeps + self.n_flow
        stream = StreamDescription(
            seed=17,
            algorithm=self.algorithm,
            algorithm_parameters={"n_sweeps": self.n_sweeps, "n_flow": self.n_flow},
            n_chains=self.n_chains,
            field_name="spin",
            field_dtype=np.dtype(np.int8),
            thermalisation_updates=self.thermalisation_cycles * updates_per_cycle,
            freeze_update=0,
            flow_sha256="cd" * 32 if self.n_flow else "",
            proposal_kinds={0: "metropolis", 1: "flow"},
        )
        with EnsembleWriter.create(path, description, stream) as writer:
            self._fill(writer, rng)
        return path

    def _fill(self, writer: EnsembleWriter, rng: np.random.Generator) -> None:
        beta = self.beta if self.sampled_beta is None else self.sampled_beta
        flow = enumerate_ising(self.shape, self.flow_beta, self.coupling, self.field)
        cumulative = np.cumsum(flow.probability)
        absent = np.full(self.n_chains, np.nan)
        spins = np.ones((self.n_chains, *self.shape), dtype=np.int8)
        stored, updates = [], []
        rows: list[dict[str, NDArray[Any]]] = []

        def log_weight(s: NDArray[np.int8]) -> Array:
            energy = self.hamiltonian(s)
            return np.asarray((self.flow_beta - beta) * energy + flow.log_z)

        for _ in range(self.n_cycles):
            for kind in [0] * self.n_sweeps + [1] * self.n_flow:
                row: dict[str, NDArray[Any]] = dict.fromkeys(
                    ("log_weight", "log_weight_current", "action_proposed"), absent
                )
                if kind:
                    proposal = flow.states[np.searchsorted(cumulative, rng.random(self.n_chains) * cumulative[-1])]
                    new, old = log_weight(proposal), log_weight(spins)
                    accepted = np.log(rng.random(self.n_chains)) < new - old
                    spins = np.where(accepted.reshape(-1, *[1] * len(self.shape)), proposal, spins)
                    acceptance = accepted.astype(np.float64)
                    row = {
                        "log_weight": new,
                        "log_weight_current": old,
                        "action_proposed": self.beta * self.hamiltonian(proposal),
                    }
                else:
                    spins, acceptance = self._sweep(spins, beta, rng)
                row |= {
                    "update": np.array(len(rows) + 1),
                    "proposal_kind": np.array(kind),
                    "accepted": acceptance > 0.0,
                    "acceptance": acceptance,
                    "delta_H": absent,
                    "walltime": np.array(1e-3),
                }
                rows.append(row)
            stored.append(spins)
            updates.append(len(rows))
        fields = np.stack(stored)
        types = {"update": np.int64, "proposal_kind": np.uint8, "accepted": np.uint8, "acceptance": np.float32}
        local = self.beta * (
            self.coupling * sum(np.roll(fields, shift, axis) for axis in self.axes for shift in (1, -1)) + self.field
        )
        writer.append(
            trajectory=np.array(updates, dtype=np.int64),
            configurations={"spin": fields, "action": self.beta * self.hamiltonian(fields)},
            history={name: np.stack([row[name] for row in rows]).astype(types.get(name, np.float64)) for name in row},
            observables={"local_field": np.sum(local * (fields - np.tanh(local)), axis=self.axes)},
            checkpoint={"update": len(rows)},
        )

    def _sweep(self, spins: NDArray[np.int8], beta: float, rng: np.random.Generator) -> tuple[NDArray[np.int8], Array]:
        """Offer each spin a flip; gives the spins and the fraction of flips that were accepted."""
        spins = spins.copy()
        accepted = np.zeros(self.n_chains)
        for site in np.ndindex(*self.shape):
            neighbours = np.zeros(self.n_chains)
            for axis, extent in enumerate(self.shape):
                for shift in (1, -1):
                    there = (*site[:axis], (site[axis] + shift) % extent, *site[axis + 1 :])
                    neighbours += spins[:, *there]
            cost = 2.0 * beta * spins[:, *site] * (self.coupling * neighbours + self.field)
            flips = np.log(rng.random(self.n_chains)) < -cost
            spins[:, *site] *= np.where(flips, -1, 1).astype(np.int8)
            accepted += flips
        return spins, accepted / math.prod(self.shape)


ISING_RUNS = {
    "metropolis+flow": SyntheticIsing("hybrid", n_sweeps=1, n_flow=1),
    "flow": SyntheticIsing("flow", n_sweeps=0, n_flow=2),
    "metropolis": SyntheticIsing("metropolis", n_sweeps=2, n_flow=0),
}


@pytest.fixture(scope="session")
def ising_ensembles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three ensembles of one Ising model by label."""
    folder = tmp_path_factory.mktemp("ising")
    paths = {}
    for label, run in ISING_RUNS.items():
        seed = zlib.crc32(f"ising/{label}".encode())
        paths[label] = run.write(folder / f"{label}.h5", np.random.default_rng(seed))
    return paths


@pytest.fixture(scope="session")
def ising_runs() -> dict[str, SyntheticIsing]:
    """What the ensembles of :func:`ising_ensembles` hold."""
    return ISING_RUNS


def _draw_links(rng: np.random.Generator, n: int, shape: tuple[int, int], beta: float) -> Array:
    """Draw independent U(1) link fields, ``(n, T, X, 2)``, exactly from exp(beta sum cos P).

    All plaquettes but the last are independent von Mises angles, the last is what their sum leaves, and is accepted with
    probability exp(beta (cos P - 1)). Links follow by integration, up to two holonomies and a gauge transformation.
    """
    time, space = shape
    volume, kept = time * space, np.empty((0, time * space))
    while len(kept) < n:
        angles = rng.vonmises(0.0, beta, size=(4 * n, volume))
        angles[:, -1] = -angles[:, :-1].sum(axis=1)
        accepted = np.log(rng.random(len(angles))) < beta * (np.cos(angles[:, -1]) - 1.0)
        kept = np.concatenate([kept, angles[accepted]])
    plaquettes = kept[:n].reshape(n, time, space)
    links = np.zeros((n, time, space, 2))
    links[:, 0, :, 1] = rng.uniform(-np.pi, np.pi, size=(n, 1))
    links[:, 1:, :, 1] = links[:, :1, :, 1] + np.cumsum(plaquettes[:, :-1], axis=1)
    steps = links[:, 0, :, 1] - links[:, -1, :, 1] - plaquettes[:, -1]
    links[:, -1, :, 0] = rng.uniform(-np.pi, np.pi, size=(n, 1))
    links[:, -1, 1:, 0] += np.cumsum(steps[:, :-1], axis=1)
    gauge = rng.uniform(-np.pi, np.pi, size=(n, time, space))
    for direction in (0, 1):
        links[..., direction] += gauge - np.roll(gauge, -1, axis=direction + 1)
    return np.asarray((links + np.pi) % (2.0 * np.pi) - np.pi)


@pytest.fixture(scope="session")
def draw_links() -> Callable[[np.random.Generator, int, tuple[int, int], float], Array]:
    """Exact draws of U(1) link fields: generator, number, lattice, beta."""
    return _draw_links
