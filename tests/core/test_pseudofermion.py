"""Pseudofermions: their action and force, the trajectories, the determinant that they stand for, and failing solvers.

That the kernel keeps its target is tested with the other kernels of run descriptions, in tests/workflows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowmc.errors import ParameterError
from flowmc.kernels import HMC, INTEGRATORS, Cycle, Phase, PseudofermionHMC, Trajectories
from flowmc.seeds import jax_key
from flowmc.testing import schwinger_draws, u1_draws
from flowmc.theories import Schwinger, U1Gauge2D
from flowmc.theories.wilson import dirac_matrix, log_determinant
from flowmc_analysis.zscores import judge, z_score

THEORY = Schwinger((4, 4), 2.0, 0.2)
KERNEL = PseudofermionHMC(THEORY)
# The same everywhere: a trajectory is compiled for each number of chains.
CHAINS = 20


# Compiled once for all tests.
pseudofermion_action = jax.jit(PseudofermionHMC.pseudofermion_action, static_argnums=0)
force = jax.jit(PseudofermionHMC.force, static_argnums=0)
solve = jax.jit(PseudofermionHMC.solve, static_argnums=0)


def trajectories(kernel: PseudofermionHMC, step_size: float = 0.25, seed: int = 3) -> Trajectories:
    return Trajectories.build(kernel, seed, 2, trajectory_length=1.0, step_size=step_size, target_acceptance=None)


@pytest.fixture(scope="module")
def field() -> np.ndarray:
    return u1_draws(U1Gauge2D(THEORY.shape, THEORY.beta), np.random.default_rng(5), CHAINS)


@pytest.fixture
def exact_draws(test_seed: int) -> np.ndarray:
    return schwinger_draws(THEORY, np.random.default_rng(test_seed), 2000)


@pytest.fixture(scope="module")
def pseudofermion(field: np.ndarray) -> jax.Array:
    return KERNEL.draw(jax_key(8), jnp.asarray(field))[0]


def test_action_is_that_of_the_inverse_matrix(field: np.ndarray, pseudofermion: jax.Array) -> None:
    matrix = dirac_matrix(field, THEORY.kappa)
    flat = np.asarray(pseudofermion).reshape(CHAINS, -1)
    normal = matrix.conj().swapaxes(1, 2) @ matrix
    expected = np.einsum("ni,ni->n", flat.conj(), np.linalg.solve(normal, flat[..., None])[..., 0])
    np.testing.assert_allclose(expected.imag, 0, atol=1e-10)
    np.testing.assert_allclose(pseudofermion_action(KERNEL, field, pseudofermion), expected.real, rtol=1e-9)


def test_draws_have_their_action(field: np.ndarray) -> None:
    drawn, action = KERNEL.draw(jax_key(9), jnp.asarray(field))
    np.testing.assert_allclose(pseudofermion_action(KERNEL, field, drawn), action, rtol=1e-9)


def test_draws_are_gaussian(test_seed: int) -> None:
    # ⟨φ φ†⟩ = D†D, and S_pf is half a χ² of as many degrees of freedom as there are real numbers.
    one = THEORY.start(np.random.default_rng(3), 1, "hot")
    n = 4000
    drawn, action = KERNEL.draw(jax_key(test_seed), jnp.broadcast_to(one, (n, *THEORY.field_shape)))
    flat = np.asarray(drawn).reshape(n, -1)
    assert abs(action.mean() - 32) < 5 * np.sqrt(32 / n)
    matrix = dirac_matrix(one, THEORY.kappa)[0]
    exact = matrix.conj().T @ matrix
    covariance = flat.T @ flat.conj() / n
    error = np.sqrt(np.outer(np.diag(exact), np.diag(exact)).real / n)
    assert np.abs((covariance - exact) / error).max() < 6
    assert np.abs((flat.T @ flat / n) / error).max() < 6


def test_weights_are_the_squared_determinant(test_seed: int) -> None:
    # ∫ dφ exp(−S_pf(θ')) against the one at θ: for φ drawn at θ, ⟨exp(S_pf(θ) − S_pf(θ'))⟩ = (det D' / det D)².
    n = 4000
    start = THEORY.start(np.random.default_rng(3), 1, "hot")
    end = start + 0.1 * np.random.default_rng(4).standard_normal(start.shape)
    drawn, action = KERNEL.draw(jax_key(test_seed), jnp.broadcast_to(start, (n, *THEORY.field_shape)))
    matrix = dirac_matrix(end, THEORY.kappa)[0]
    image = np.linalg.solve(matrix.conj().T, np.asarray(drawn).reshape(n, -1).T)
    ratio = np.exp(np.asarray(action) - (np.abs(image) ** 2).sum(0))
    logs = [log_determinant(links, THEORY.kappa)[0][0] for links in (start, end)]
    score = z_score("ratio", ratio.mean(), np.exp(2 * (logs[1] - logs[0])), ratio.std() / np.sqrt(n))
    assert judge([score], level=1e-5).passed, score


def test_force_is_minus_the_gradient(field: np.ndarray, pseudofermion: jax.Array) -> None:
    kernel = PseudofermionHMC(THEORY, tolerance=1e-13)
    direction = np.random.default_rng(6).standard_normal(field.shape)

    def energy(links: np.ndarray) -> np.ndarray:
        return np.asarray(THEORY.gauge_action(links) + pseudofermion_action(kernel, links, pseudofermion))

    step = 1e-4
    numerical = (energy(field + step * direction) - energy(field - step * direction)) / (2 * step)
    found = np.asarray(force(kernel, field, pseudofermion))
    np.testing.assert_allclose(-(found * direction).sum((1, 2, 3)), numerical, rtol=1e-5, atol=1e-5)


def test_chains_are_solved_to_their_own_tolerance(field: np.ndarray, pseudofermion: jax.Array) -> None:
    # Together or alone, whatever the scale of each right-hand side, the solution of a chain is the same.
    scale = 10.0 ** np.arange(-10, 10)[:, None, None, None]
    together = solve(KERNEL, field, scale * pseudofermion) / scale
    for i in range(0, CHAINS, 5):
        alone = solve(KERNEL, field[i : i + 1], pseudofermion[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], atol=1e-8)


def test_trajectories_are_reversible_and_of_second_order(field: np.ndarray, pseudofermion: jax.Array) -> None:
    @jax.jit
    def end(phase: Phase, step_size: float, n_steps: int) -> Phase:
        return INTEGRATORS[KERNEL.integrator](
            THEORY.space, lambda x: KERNEL.force(x, pseudofermion), phase, jnp.asarray(step_size), jnp.asarray(n_steps)
        )

    @jax.jit
    def energy(phase: Phase) -> jax.Array:
        potential = THEORY.gauge_action(phase.field) + KERNEL.pseudofermion_action(phase.field, pseudofermion)
        return jnp.asarray(THEORY.space.kinetic_energy(phase.momentum) + potential)

    links = jnp.asarray(field)
    start = Phase(links, jax.random.normal(jax_key(1), links.shape), force(KERNEL, links, pseudofermion))
    there = end(start, 0.1, 8)
    back = end(there._replace(momentum=-there.momentum), 0.1, 8)
    np.testing.assert_allclose(back.field, start.field, atol=1e-9)
    np.testing.assert_allclose(back.momentum, -start.momentum, atol=1e-9)
    violations = [np.abs(energy(end(start, 0.5 / n, n)) - energy(start)).max() for n in (16, 32, 64)]
    orders = np.log2(np.array(violations[:-1]) / violations[1:])
    np.testing.assert_allclose(orders, 2, atol=0.15)


def test_mean_of_the_energy_change(exact_draws: np.ndarray, test_seed: int) -> None:
    # From exact starts, and after a trajectory still.
    member = trajectories(KERNEL, step_size=0.5, seed=test_seed)
    state = Cycle(THEORY, (member,)).init(exact_draws)
    _, updates = member.run(0, 0, state, None)
    weight = np.exp(-updates.delta_H)
    assert 0.5 < updates.accepted.mean() < 0.999
    scores = [z_score("exp(-dH)", one.mean(), 1.0, one.std() / np.sqrt(one.size)) for one in weight]
    # The same without the weight of rare events: every trajectory there has one back.
    for one in updates.delta_H:
        balance = np.where(one > 0, np.exp(-np.abs(one)), -1.0)
        scores.append(z_score("acceptance - 2 P(dH < 0)", balance.mean(), 0.0, balance.std() / np.sqrt(one.size)))
    assert judge(scores, level=1e-5).passed, scores


def test_a_solver_that_does_not_converge_rejects_and_says_so(field: np.ndarray, test_seed: int) -> None:
    member = trajectories(PseudofermionHMC(THEORY, "leapfrog", tolerance=1e-30), seed=test_seed)
    state = Cycle(THEORY, (member,)).init(field)
    after, updates = member.run(0, 0, state, None)
    assert not updates.accepted.any()
    assert np.isposinf(updates.delta_H).all()
    np.testing.assert_array_equal(after.field, field)
    np.testing.assert_allclose(after.action, THEORY.action(field), rtol=1e-12)


def test_a_sloppy_solver_shows_in_the_energy_change(exact_draws: np.ndarray, test_seed: int) -> None:
    # Conjugate gradients approach φ†(D†D)⁻¹φ from below: the end of a trajectory looks too good.
    member = trajectories(PseudofermionHMC(THEORY, "leapfrog", tolerance=0.3), seed=test_seed)
    state = Cycle(THEORY, (member,)).init(exact_draws)
    weight = np.minimum(2, np.exp(-member.run(0, 0, state, None)[1].delta_H[0]))
    # Cut off, the mean of exp(−ΔH) is below one for every exact kernel.
    assert (weight.mean() - 1) / (weight.std() / np.sqrt(len(weight))) > 10


def test_both_kernels_in_one_cycle_keep_the_state_valid(field: np.ndarray, test_seed: int) -> None:
    exact = Trajectories.build(HMC(THEORY), test_seed, 1, trajectory_length=1.0, step_size=0.25, target_acceptance=None)
    cycle = Cycle(THEORY, (exact, trajectories(KERNEL, seed=test_seed)))
    assert cycle.kinds == ("hmc", "pseudofermion_hmc")
    state = cycle.init(field)
    for number in range(2):
        prepared, _ = cycle.prepare(number, 1, len(field))
        state, _ = cycle.run(number, 0, state, prepared)
    np.testing.assert_allclose(state.action, THEORY.action(np.asarray(state.field)), rtol=1e-12)


def test_the_member_is_described_and_tuned(field: np.ndarray) -> None:
    member = Trajectories.build(KERNEL, 1, 2, trajectory_length=1.0, step_size=0.5, target_acceptance=0.8)
    assert member.describe() == {
        "integrator": "minimum_norm",
        "solver_tolerance": 1e-10,
        "trajectory_length": 1.0,
        "trajectories_per_cycle": 2,
    }
    _, updates = member.run(0, 0, Cycle(THEORY, (member,)).init(field), None)
    adapted = member.adapted(updates, last=False)
    assert adapted.adaptation()["step_size"] != 0.5
    assert adapted.restored(adapted.adaptation()) == adapted


def test_init_is_a_valid_state(field: np.ndarray) -> None:
    state = KERNEL.init(jnp.asarray(field))
    moved, _ = trajectories(KERNEL).run(0, 0, state, None)
    np.testing.assert_allclose(moved.action, THEORY.action(np.asarray(moved.field)), rtol=1e-12)


def test_what_the_kernel_cannot_do_is_refused() -> None:
    for theory in (Schwinger((4, 4), 2.0, 0.2, 1), Schwinger((4, 4), 2.0, 0.2, 4), U1Gauge2D((4, 4), 1.0)):
        with pytest.raises(ParameterError, match="n_flavours = 2") as caught:
            PseudofermionHMC(theory)  # type: ignore[arg-type]
        assert '"hmc"' in caught.value.fix
    for tolerance in (0.0, 1.0, float("nan")):
        with pytest.raises(ParameterError, match="tolerance"):
            PseudofermionHMC(THEORY, tolerance=tolerance)
    with pytest.raises(ParameterError, match="integrator"):
        PseudofermionHMC(THEORY, "euler")
