"""Fourier-accelerated HMC: its momenta and kinetic energy, the integrators with them, exactness, and what it gains.

The contract of kernels is tested with the other kernels of run descriptions, in tests/workflows.
"""

from __future__ import annotations

from functools import partial
from math import pi, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowmc.errors import ParameterError
from flowmc.kernels import (
    HMC,
    INTEGRATORS,
    Cycle,
    CycleMember,
    FlowProposals,
    FourierHMC,
    Independence,
    Phase,
    Trajectories,
    TrajectoryKernel,
)
from flowmc.kernels.fourier_hmc import FourierSpace
from flowmc.lattice import momentum_squared
from flowmc.sampling import MemoryStore, SamplingPlan, sample
from flowmc.seeds import jax_key
from flowmc.testing import ExactStart, GaussianProposal, exact_start_scores
from flowmc.theories import (
    CallableTheory,
    FreeScalar,
    Ising,
    Phi4,
    RealSpace,
    Schwinger,
    SmoothTheory,
    Theory,
    U1Gauge2D,
)
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.zscores import ZScore, judge, z_score

PHI4 = Phi4((4, 4), -4.0, 8.0)
SPACE = FourierSpace(PHI4.shape, 0.7)
# The same everywhere: trajectories are compiled for each kernel and number of chains.
FREE = FreeScalar((4, 6), 0.3)
KERNEL = FourierHMC(FREE, "leapfrog", FREE.mass)
MANY = 4000
SHAPES = [(5,), (4, 3), (3, 2, 4), (2, 3, 2, 2)]


def trajectories(kernel: TrajectoryKernel, seed: int, length: float, step_size: float) -> Trajectories:
    return Trajectories.build(kernel, seed, 1, trajectory_length=length, step_size=step_size, target_acceptance=None)


def modes(field: np.ndarray) -> np.ndarray:
    """The unitary Fourier transform over the last two axes."""
    return np.fft.fft2(field, norm="ortho")


def mean_score(name: str, samples: np.ndarray, expected: float) -> ZScore:
    """Score of the mean of independent samples."""
    return z_score(name, samples.mean(), expected, samples.std(ddof=1) / sqrt(len(samples)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestSpace:
    """The mass matrix is that of the free action of mass M, which its force gives without a Fourier transform."""

    mass = 0.7

    def matrix(self, shape: tuple[int, ...]) -> np.ndarray:
        theory = FreeScalar(shape, self.mass)
        unit = np.eye(theory.volume).reshape(theory.volume, *shape)
        return -np.asarray(theory.force(unit)).reshape(theory.volume, theory.volume)

    def test_energy_and_drift_are_those_of_the_mass_matrix(self, shape: tuple[int, ...]) -> None:
        space, matrix = FourierSpace(shape, self.mass), self.matrix(shape)
        momentum, field = np.random.default_rng(1).standard_normal((2, 3, *shape))
        flat = momentum.reshape(3, -1)
        velocity = np.linalg.solve(matrix, flat.T).T
        energy = space.kinetic_energy(jnp.asarray(momentum))
        assert energy.dtype == jnp.float64
        np.testing.assert_allclose(energy, 0.5 * (flat * velocity).sum(1), rtol=1e-12)
        drifted = space.drift(jnp.asarray(field), jnp.asarray(momentum), 0.3)
        np.testing.assert_allclose(drifted, field + 0.3 * velocity.reshape(field.shape), atol=1e-12)

    def test_momenta_are_gaussian_with_the_mass_matrix(self, shape: tuple[int, ...], test_seed: int) -> None:
        space, exact = FourierSpace(shape, self.mass), self.matrix(shape)
        momentum = space.draw_momentum(jax_key(test_seed), jnp.zeros((MANY, *shape)))
        assert (momentum.shape, momentum.dtype) == ((MANY, *shape), jnp.float64)
        flat = np.asarray(momentum).reshape(MANY, -1)
        # The standard error of a covariance of Gaussian numbers.
        error = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / MANY)
        pairs = np.triu_indices(len(exact))
        scores = [
            z_score(f"covariance {i}", *numbers)
            for i, numbers in enumerate(zip((flat.T @ flat / MANY)[pairs], exact[pairs], error[pairs], strict=True))
        ]
        # S_kin is half a χ² of as many degrees of freedom as there are sites.
        energy = np.asarray(space.kinetic_energy(momentum))
        sites = len(exact)
        scores += [mean_score("energy", energy, sites / 2), mean_score("spread", (energy - sites / 2) ** 2, sites / 2)]
        assert judge(scores, level=1e-5).passed, judge(scores)


@partial(jax.jit, static_argnames=("theory", "space", "name"))
def end_of(theory: SmoothTheory, space: FourierSpace, name: str, start: Phase, step: float, n: int) -> Phase:
    return INTEGRATORS[name](space, theory.force, start, jnp.asarray(step), jnp.asarray(n))


@jax.jit
def energy_of(phase: Phase) -> jax.Array:
    return jnp.asarray(PHI4.action(phase.field) + SPACE.kinetic_energy(phase.momentum))


@pytest.mark.parametrize("name", INTEGRATORS)
class TestIntegrators:
    def start(self, theory: SmoothTheory, space: FourierSpace) -> Phase:
        field = jnp.asarray(theory.start(np.random.default_rng(1), 3, "hot"))
        return Phase(field, space.draw_momentum(jax_key(1), field), theory.force(field))

    def test_is_of_second_order(self, name: str) -> None:
        start = self.start(PHI4, SPACE)
        violations = [
            np.abs(energy_of(end_of(PHI4, SPACE, name, start, 1 / n, n)) - energy_of(start)).max()
            for n in (32, 64, 128)
        ]
        orders = np.log2(np.array(violations[:-1]) / violations[1:])
        np.testing.assert_allclose(orders, 2, atol=0.1)

    def test_is_reversible(self, name: str) -> None:
        start = self.start(PHI4, SPACE)
        there = end_of(PHI4, SPACE, name, start, 0.1, 20)
        back = end_of(PHI4, SPACE, name, there._replace(momentum=-there.momentum), 0.1, 20)
        assert np.abs(np.asarray(there.field - start.field)).max() > 0.1
        np.testing.assert_allclose(back.field, start.field, atol=1e-11)
        np.testing.assert_allclose(back.momentum, -start.momentum, atol=1e-11)

    def test_preserves_volume(self, name: str) -> None:
        theory, space = Phi4((2, 3), -1.0, 2.0), FourierSpace((2, 3), 0.7)

        def flat(point: jax.Array) -> jax.Array:
            field, momentum = point.reshape(2, 1, 2, 3)
            start = Phase(field, momentum, theory.force(field))
            end = end_of(theory, space, name, start, 0.3, 2)
            return jnp.concatenate([end.field.reshape(-1), end.momentum.reshape(-1)])

        point = jax.random.normal(jax_key(2), (12,))
        assert float(jnp.linalg.det(jax.jacfwd(flat)(point))) == pytest.approx(1, abs=1e-12)

    def test_all_modes_of_the_free_field_have_the_frequency_one(self, name: str) -> None:
        theory, space = FreeScalar((6, 5), 0.4), FourierSpace((6, 5), 0.4)
        start = self.start(theory, space)
        # After a quarter of a period field and momentum have changed places, after half of one both their signs.
        errors = []
        for n in (50, 100):
            quarter = end_of(theory, space, name, start, pi / 2 / n, n)
            errors.append(np.abs(np.asarray(quarter.field - space.velocity(start.momentum))).max())
        assert errors[1] < 1e-3
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
        half = end_of(theory, space, name, start, pi / 100, 100)
        np.testing.assert_allclose(half.field, -start.field, atol=2e-3)


def test_one_trajectory_forgets_every_mode(test_seed: int) -> None:
    before = FREE.draw(np.random.default_rng(test_seed), MANY)
    member = trajectories(KERNEL, test_seed, pi / 2, pi / 128)
    state, updates = member.run(0, 0, Cycle(FREE, (member,)).init(before), None)
    # A rejected trajectory forgets nothing: their fraction must be far below the noise.
    assert updates.accepted.mean() > 0.997
    products = np.conj(modes(before)) * modes(np.asarray(state.field))
    scores = [mean_score(f"mode {p}", products[:, *p].real, 0.0) for p in np.ndindex(FREE.shape)]
    assert judge(scores, level=1e-5).passed, judge(scores)


def test_mean_of_the_energy_change(test_seed: int) -> None:
    # From exact draws with a large step, and after trajectories still.
    member = trajectories(KERNEL, test_seed, 2.0, 1.0)
    state = Cycle(FREE, (member,)).init(FREE.draw(np.random.default_rng(test_seed), MANY))
    scores = []
    for number in range(3):
        state, updates = member.run(number, 0, state, None)
        assert 0.3 < updates.accepted.mean() < 0.99
        scores.append(mean_score("exp(-dH)", np.exp(-updates.delta_H[0]), 1.0))
    assert judge(scores, level=1e-5).passed, judge(scores)


class WrongSpace(FourierSpace):
    """The mistake to make: momenta of unit mass with the energy of Fourier acceleration."""

    def draw_momentum(self, key: jax.Array, field: jax.Array) -> jax.Array:
        return RealSpace().draw_momentum(key, field)


class WrongMomenta(FourierHMC):
    """A kernel that makes it."""

    @property
    def space(self) -> FourierSpace:
        return WrongSpace(self.theory.shape, self.mass)


def scores_of(members: tuple[CycleMember, ...], seed: int) -> list[ZScore]:
    """Scores of the exactness kit after three cycles from exact draws."""
    cycle = Cycle(FREE, members)

    def kernel(field: np.ndarray) -> np.ndarray:
        state = cycle.init(field)
        prepared, _ = cycle.prepare(seed, 3, len(field))
        for index in range(3):
            state, _ = cycle.run(seed + index, index, state, prepared)
        return np.asarray(state.field)

    observables = {"action": FREE.action, "mean": lambda f: f.mean((1, 2)), "step": lambda f: f[:, 0, 0] * f[:, 1, 0]}
    found = exact_start_scores(ExactStart(FREE.draw, observables), kernel, np.random.default_rng(seed), MANY)
    return [z_score(name, z, 0.0, 1.0) for name, z in found.items()]


def test_hybrid_with_a_flow_keeps_the_target(test_seed: int) -> None:
    proposals = FlowProposals(Independence(FREE), GaussianProposal(FREE.shape, 0.5), test_seed, 2)
    members = (trajectories(KERNEL, test_seed, 2.0, 1.0), proposals)
    assert Cycle(FREE, members).kinds == ("fourier_hmc", "flow")
    scores = scores_of(members, test_seed)
    assert judge(scores, level=1e-5).passed, judge(scores)


@pytest.mark.parametrize("kernel", [KERNEL, WrongMomenta(FREE, "leapfrog", FREE.mass)], ids=["right", "wrong"])
def test_momenta_of_other_masses_are_caught(kernel: FourierHMC, test_seed: int) -> None:
    scores = scores_of((trajectories(kernel, test_seed, 2.0, 1.0),), test_seed)
    assert judge(scores, level=1e-5).passed == (kernel is KERNEL), judge(scores)


def series_of(kernel: TrajectoryKernel, seed: int, length: float, step_size: float) -> MemoryStore:
    """A run of 64 chains from a cold start."""
    theory, store = kernel.theory, MemoryStore()
    plan = SamplingPlan(64, 200, thermalisation=40, tuning=0, cycles_per_block=40)
    cycle = Cycle(theory, (trajectories(kernel, seed, length, step_size),))
    sample(cycle, plan, store, lambda: theory.start(np.random.default_rng(1), 64, "cold"))
    return store


def test_every_mode_of_the_free_field_is_exact(test_seed: int) -> None:
    # With another mass than the field's, and steps that are rejected now and then.
    store = series_of(FourierHMC(FREE, mass=0.6), test_seed, 2.4, 1.2)
    assert 0.3 < store.table("history", "accepted").mean() < 0.999
    powers = np.abs(modes(store.table("configurations", "phi"))) ** 2
    exact = 1 / (2 * (momentum_squared(FREE.shape) + FREE.mass**2))
    scores = []
    for p in np.ndindex(FREE.shape):
        estimate = gamma_method(powers[..., *p].T).estimate
        scores.append(z_score(f"mode {p}", estimate.value, float(exact[p]), estimate.error))
    assert judge(scores, level=1e-5).passed, judge(scores)


def test_two_sites_of_phi4_are_exact(test_seed: int) -> None:
    theory = Phi4((2,), -1.0, 0.8)
    store = series_of(FourierHMC(theory, mass=0.6), test_seed, 1.0, 0.5)
    # The trapezoidal rule of an integrand that decays like a Gaussian or faster converges exponentially.
    axis = np.linspace(-5, 5, 201)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    weight = np.exp(-theory.action(grid))

    def observables(field: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "action": theory.action(field.reshape(-1, 2)).reshape(field.shape[:-1]),
            "square": field[..., 0] ** 2,
            "fourth": field[..., 0] ** 4,
            "neighbours": field[..., 0] * field[..., 1],
        }

    known = {name: float((values * weight).sum() / weight.sum()) for name, values in observables(grid).items()}
    scores = []
    for name, series in observables(store.table("configurations", "phi")).items():
        estimate = gamma_method(series.T).estimate
        scores.append(z_score(name, estimate.value, known[name], estimate.error))
    assert judge(scores, level=1e-5).passed, judge(scores)


def test_zero_mode_decorrelates_where_that_of_plain_hmc_does_not(test_seed: int) -> None:
    # A mode of frequency ω is multiplied with cos(ω π/2) by a trajectory: the sum over its powers gives tau_int.
    scores = []
    for kernel, frequency in ((KERNEL, 1.0), (HMC(FREE), sqrt(2) * FREE.mass)):
        store = series_of(kernel, test_seed, pi / 2, pi / 32)
        # Rejections would lengthen the autocorrelation by about their fraction.
        assert store.table("history", "accepted").mean() > 0.98
        estimate = gamma_method(store.table("configurations", "phi").mean((2, 3)).T).estimate
        correlation = np.cos(frequency * pi / 2)
        expected = 0.5 * (1 + correlation) / (1 - correlation)
        scores.append(z_score(kernel.kind, estimate.tau_int, expected, estimate.tau_int_error))
    assert judge(scores, level=1e-5).passed, judge(scores)
    assert scores[0].expected == pytest.approx(0.5)
    assert scores[1].value > 5 * scores[0].value


def test_the_member_is_described_and_tuned() -> None:
    member = Trajectories.build(KERNEL, 1, 1, trajectory_length=1.5, step_size=0.5, target_acceptance=0.8)
    assert (member.kind, member.needs, member.leaves) == ("fourier_hmc", HMC.needs, HMC.leaves)
    assert member.describe() == {
        "integrator": "leapfrog",
        "acceleration_mass": FREE.mass,
        "trajectory_length": 1.5,
        "trajectories_per_cycle": 1,
    }
    state = KERNEL.init(jnp.asarray(FREE.draw(np.random.default_rng(1), MANY)))
    moved, updates = member.run(0, 0, state, None)
    np.testing.assert_allclose(moved.action, FREE.action(np.asarray(moved.field)), rtol=1e-12)
    adapted = member.adapted(updates, last=False)
    assert adapted.adaptation()["step_size"] != 0.5
    assert adapted.restored(adapted.adaptation()) == adapted


def white_noise(field: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (field**2).sum(axis=(1, 2)))


REFUSED: list[Theory] = [
    Ising((4, 4), 0.4),
    U1Gauge2D((4, 4), 1.0),
    Schwinger((4, 4), 1.0, 0.2),
    CallableTheory((4, 4), white_noise, RealSpace(), "white noise"),
]


@pytest.mark.parametrize("theory", REFUSED, ids=lambda theory: theory.name)
def test_other_fields_and_theories_without_a_force_are_refused(theory: Any) -> None:
    with pytest.raises(ParameterError, match=theory.name) as caught:
        FourierHMC(theory)
    assert "real scalar field" in caught.value.expected
    assert '"hmc"' in caught.value.fix


@pytest.mark.parametrize("mass", [0.0, -1.0, float("nan"), float("inf"), 1e-200, 1e200])
def test_masses_that_are_none_are_refused(mass: float) -> None:
    with pytest.raises(ParameterError, match="acceleration mass") as caught:
        FourierHMC(PHI4, mass=mass)
    assert "acceleration_mass" in caught.value.fix


def test_unknown_integrator_is_refused() -> None:
    with pytest.raises(ParameterError, match="leapfrog"):
        FourierHMC(PHI4, "euler")
