"""Kernels: contracts, integrators' order and reversibility, exactness on finite spaces, and the tuner."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfc

from flowmc.errors import LatticeMismatchError, NonFiniteError, ParameterError, PrecisionError
from flowmc.kernels import (
    HMC,
    INTEGRATORS,
    Cycle,
    CycleMember,
    FlowProposals,
    HybridState,
    Independence,
    Phase,
    Proposals,
    StepSizeTuner,
    Trajectories,
    log_ratio,
)
from flowmc.proposals import ProposalMetadata
from flowmc.seeds import jax_key
from flowmc.testing import ExactStart, GaussianProposal, KernelContract, acceptance_probabilities, exact_start_scores
from flowmc.theories import FreeScalar, Phi4
from flowmc_analysis.zscores import family_p_value


def trajectories(theory: FreeScalar | Phi4, integrator: str = "minimum_norm", step_size: float = 0.5) -> Trajectories:
    kernel = HMC(theory, integrator)
    return Trajectories.build(kernel, 11, 2, trajectory_length=1.0, step_size=step_size, target_acceptance=None)


def proposals(theory: FreeScalar | Phi4, k: int = 3, width: float = 0.5) -> FlowProposals:
    return FlowProposals(Independence(theory), GaussianProposal(theory.shape, width), 12, k)


class TestLeapfrog(KernelContract):
    @pytest.fixture
    def member(self, theory: FreeScalar) -> CycleMember:
        return trajectories(theory, "leapfrog", step_size=0.25)


class TestMinimumNorm(KernelContract):
    @pytest.fixture
    def member(self, theory: FreeScalar) -> CycleMember:
        return trajectories(theory, "minimum_norm")


class TestFlowProposals(KernelContract):
    @pytest.fixture
    def member(self, theory: FreeScalar) -> CycleMember:
        return proposals(theory)


def test_hybrid_keeps_the_target(rng: np.random.Generator, test_seed: int) -> None:
    theory = FreeScalar((4, 2), 0.8)
    cycle = Cycle(theory, (trajectories(theory), proposals(theory)))

    def kernel(field: np.ndarray) -> np.ndarray:
        state = cycle.init(field)
        prepared, _ = cycle.prepare(test_seed, 3, len(field))
        for index in range(3):
            state, _ = cycle.run(test_seed + index, index, state, prepared)
        return np.asarray(state.field)

    observables = {
        "action": theory.action,
        "first": lambda field: field[:, 0, 0],
        "step": lambda f: f[:, 0, 0] * f[:, 1, 0],
    }
    scores = exact_start_scores(ExactStart(theory.draw, observables), kernel, rng, 4000)
    assert family_p_value(np.array(list(scores.values()))) > 1e-5, scores


class TestIntegrators:
    @pytest.fixture
    def theory(self) -> Phi4:
        return Phi4((4, 4), -4.0, 8.0)

    def end(self, theory: Phi4, name: str, phase: Phase, step_size: float, n_steps: int) -> Phase:
        return INTEGRATORS[name](theory.space, theory.force, phase, jnp.asarray(step_size), jnp.asarray(n_steps))

    def start(self, theory: Phi4) -> Phase:
        field = jnp.asarray(theory.start(np.random.default_rng(1), 3, "hot"))
        return Phase(field, jax.random.normal(jax_key(1), field.shape), theory.force(field))

    def energy(self, theory: Phi4, phase: Phase) -> np.ndarray:
        return np.asarray(theory.action(phase.field) + theory.space.kinetic_energy(phase.momentum))

    @pytest.mark.parametrize("name", INTEGRATORS)
    def test_is_of_second_order(self, theory: Phi4, name: str) -> None:
        start = self.start(theory)
        violations = [
            np.abs(self.energy(theory, self.end(theory, name, start, 0.5 / n, n)) - self.energy(theory, start)).max()
            for n in (32, 64, 128)
        ]
        orders = np.log2(np.array(violations[:-1]) / violations[1:])
        np.testing.assert_allclose(orders, 2, atol=0.1)

    @pytest.mark.parametrize("name", INTEGRATORS)
    def test_is_reversible(self, theory: Phi4, name: str) -> None:
        start = self.start(theory)
        end = self.end(theory, name, start, 0.05, 20)
        back = self.end(theory, name, end._replace(momentum=-end.momentum), 0.05, 20)
        np.testing.assert_allclose(back.field, start.field, atol=1e-11)
        np.testing.assert_allclose(back.momentum, -start.momentum, atol=1e-11)

    @pytest.mark.parametrize("name", INTEGRATORS)
    def test_preserves_volume(self, name: str) -> None:
        theory = Phi4((2, 2), -1.0, 2.0)

        def flat(point: jax.Array) -> jax.Array:
            field, momentum = point.reshape(2, 1, 2, 2)
            end = INTEGRATORS[name](
                theory.space,
                theory.force,
                Phase(field, momentum, theory.force(field)),
                jnp.asarray(0.3),
                jnp.asarray(2),
            )
            return jnp.concatenate([end.field.reshape(-1), end.momentum.reshape(-1)])

        point = jax.random.normal(jax_key(2), (8,))
        assert float(jnp.linalg.det(jax.jacfwd(flat)(point))) == pytest.approx(1, abs=1e-12)

    def test_minimum_norm_beats_leapfrog_at_equal_cost(self, theory: Phi4) -> None:
        start = self.start(theory)
        leapfrog = self.end(theory, "leapfrog", start, 0.02, 40)
        minimum_norm = self.end(theory, "minimum_norm", start, 0.04, 20)
        violation = [
            np.abs(self.energy(theory, p) - self.energy(theory, start)).max() for p in (leapfrog, minimum_norm)
        ]
        assert violation[1] < violation[0]


class TestFiniteSpace:
    """Five states, every transition: πP = π and detailed balance hold to rounding."""

    theory = FreeScalar((2,), 1.0)
    fields = np.random.default_rng(5).standard_normal((5, 2))

    def transition_matrix(self, log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        action = self.theory.action(self.fields)
        kernel = Independence(self.theory)
        pairs = [(x, y) for x in range(5) for y in range(5)]
        old, new = np.array(pairs).T

        state = HybridState(
            jnp.asarray(self.fields[old]), jnp.asarray(action[old]), jnp.zeros((25, 2)), jnp.asarray(log_q[old])
        )
        step = jax.jit(kernel.step)

        def accepts(log_u: np.ndarray) -> np.ndarray:
            block = kernel.weigh(
                jnp.asarray(self.fields[new][None]), jnp.asarray(log_q[new][None]), jnp.asarray(log_u[None])
            )
            after, info = step(state, block)
            accepted = np.asarray(info.accepted[0])
            np.testing.assert_array_equal(after.field, np.where(accepted[:, None], self.fields[new], self.fields[old]))
            return accepted

        matrix = (acceptance_probabilities(accepts, 25).reshape(5, 5)) * np.exp(log_q)[None, :]
        np.fill_diagonal(matrix, 0)
        np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
        target = np.exp(-action)
        return matrix, target / target.sum()

    def test_target_is_invariant_and_balanced(self) -> None:
        q = np.array([0.1, 0.3, 0.25, 0.05, 0.3])
        matrix, target = self.transition_matrix(np.log(q))
        np.testing.assert_allclose(target @ matrix, target, atol=1e-12)
        flow = target[:, None] * matrix
        np.testing.assert_allclose(flow, flow.T, atol=1e-12)

    def test_cycle_of_two_is_invariant_though_not_balanced(self) -> None:
        one, target = self.transition_matrix(np.log([0.1, 0.3, 0.25, 0.05, 0.3]))
        other, _ = self.transition_matrix(np.log([0.5, 0.1, 0.1, 0.2, 0.1]))
        np.testing.assert_allclose(target @ one @ other, target, atol=1e-12)
        flow = target[:, None] * (one @ other)
        assert np.abs(flow - flow.T).max() > 1e-6


class TestIndependence:
    theory = FreeScalar((2,), 1.0)

    def state(self, log_q: float) -> HybridState:
        return Cycle(self.theory, (trajectories(self.theory),)).init(np.ones((3, 2)))._replace(log_q=jnp.full(3, log_q))

    def block(self, field: np.ndarray, log_q: np.ndarray) -> Proposals:
        return Independence(self.theory).weigh(jnp.asarray(field), jnp.asarray(log_q), jnp.full(log_q.shape, -1e-9))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
    def test_non_finite_proposals_are_rejected_and_counted(self, bad: float) -> None:
        field = np.zeros((2, 3, 2))
        field[0, 1, 0] = bad
        block = self.block(field, np.full((2, 3), -50.0))
        after, info = Independence(self.theory).step(self.state(0.0), block)
        np.testing.assert_array_equal(info.accepted[0], [True, False, True])
        assert np.isneginf(block.log_weight[0, 1])
        assert np.isfinite(after.field).all()
        assert np.isfinite(after.action).all()

    def test_non_finite_log_q_is_rejected(self) -> None:
        for bad in (np.nan, np.inf, -np.inf):
            block = self.block(np.zeros((1, 3, 2)), np.array([[bad, -50.0, -50.0]]))
            _, info = Independence(self.theory).step(self.state(0.0), block)
            np.testing.assert_array_equal(info.accepted[0], [False, True, True])

    def test_state_off_the_support_rejects_every_proposal(self) -> None:
        block = self.block(np.zeros((4, 3, 2)), np.full((4, 3), -50.0))
        after, info = Independence(self.theory).step(self.state(-np.inf), block)
        assert not info.accepted.any()
        assert np.isposinf(info.log_weight_current).all()
        np.testing.assert_array_equal(after.field, np.ones((3, 2)))

    def test_scan_equals_the_loop_written_out(self, rng: np.random.Generator) -> None:
        k, chains = 40, 6
        field, log_q, log_u = (
            rng.standard_normal((k, chains, 2)),
            rng.standard_normal((k, chains)),
            np.log(rng.random((k, chains))),
        )
        start = rng.standard_normal((chains, 2))
        kernel = Independence(self.theory)
        state = Cycle(self.theory, (trajectories(self.theory),)).init(start)._replace(log_q=jnp.zeros(chains))
        after, info = kernel.step(state, kernel.weigh(*(jnp.asarray(part) for part in (field, log_q, log_u))))
        for chain in range(chains):
            current, weight = start[chain], -self.theory.action(start[chain][None])[0]
            for j in range(k):
                proposed = -self.theory.action(field[j, chain][None])[0] - log_q[j, chain]
                assert float(info.log_weight_current[j, chain]) == pytest.approx(weight)
                accepted = log_u[j, chain] < proposed - weight
                assert bool(info.accepted[j, chain]) == accepted
                if accepted:
                    current, weight = field[j, chain], proposed
                assert float(info.action[j, chain]) == pytest.approx(self.theory.action(current[None])[0])
            np.testing.assert_array_equal(after.field[chain], current)

    def test_wrong_lattice_is_refused(self) -> None:
        with pytest.raises(LatticeMismatchError, match="3, 3"):
            FlowProposals(Independence(self.theory), GaussianProposal((3, 3), 1.0), 1, 2)


def test_not_a_number_rejects() -> None:
    inf = jnp.inf
    proposed = jnp.array([jnp.nan, 0.0, inf, -inf, 1.0])
    current = jnp.array([0.0, jnp.nan, inf, -inf, 0.5])
    np.testing.assert_array_equal(log_ratio(proposed, current), [-inf, -inf, -inf, -inf, 0.5])


def test_diverging_trajectory_is_rejected() -> None:
    theory = Phi4((4, 4), -4.0, 8.0)
    member = Trajectories(HMC(theory), 1, 1, 100.0, 10.0, 10, None)
    cycle = Cycle(theory, (member,))
    field = theory.start(np.random.default_rng(0), 3, "hot")
    state, updates = cycle.run(0, 0, cycle.init(field), cycle.prepare(0, 1, 3)[0])
    assert not updates.updates[0].accepted.any()
    np.testing.assert_array_equal(state.field, field)


class TestTuner:
    def test_reaches_the_target_acceptance(self) -> None:
        theory = Phi4((8, 8), -4.0, 8.0)
        member: CycleMember = Trajectories.build(
            HMC(theory), 1, 1, trajectory_length=2.0, step_size=0.02, target_acceptance=0.8
        )
        cycle = Cycle(theory, (member,))
        state = cycle.init(theory.start(np.random.default_rng(0), 64, "hot"))
        for number in range(60):
            state, happened = cycle.run(number, 0, state, (None,))
            cycle = cycle.adapted(happened, last=number == 59)
        frozen = cycle.members[0]
        assert isinstance(frozen, Trajectories)
        assert frozen.tuner is None
        assert frozen.step_size * frozen.n_steps == pytest.approx(2.0)
        accepted = []
        for number in range(60, 90):
            state, happened = cycle.run(number, 0, state, (None,))
            accepted.append(happened.updates[0].accepted)
        # Whole steps reach the target roughly: one step more or fewer changes the acceptance by about 0.15 here.
        assert abs(np.mean(accepted) - 0.8) < 0.15

    def test_frozen_member_learns_nothing(self) -> None:
        member = trajectories(FreeScalar((4, 2), 0.8))
        cycle = Cycle(member.kernel.theory, (member,))
        _, happened = cycle.run(0, 0, cycle.init(np.zeros((3, 4, 2))), (None,))
        assert member.adapted(happened.updates[0], last=False) is member

    def test_checkpoint_restores_the_tuner(self) -> None:
        theory = FreeScalar((4, 2), 0.8)
        member = Trajectories.build(HMC(theory), 1, 1, trajectory_length=1.0, step_size=0.3, target_acceptance=0.7)
        cycle = Cycle(theory, (member,))
        _, happened = cycle.run(0, 0, cycle.init(np.zeros((3, 4, 2))), (None,))
        adapted = cycle.adapted(happened, last=False)
        assert cycle.restored(adapted.adaptation()) == adapted
        finished = adapted.adapted(happened, last=True)
        assert cycle.restored(finished.adaptation()) == finished

    @pytest.mark.parametrize("chains", [1, 2, 32])
    def test_noise_of_few_chains_does_not_bias_it(self, chains: int, rng: np.random.Generator) -> None:
        # ΔH is Gaussian with variance twice its mean, the mean grows like the fourth power of the step.
        coefficient, target = 40.0, 0.85
        results = []
        for _ in range(60):
            tuner = StepSizeTuner.start(0.05, target)
            for _ in range(150):
                mean = coefficient * tuner.step_size**4
                delta_h = rng.normal(mean, np.sqrt(2 * mean), chains)
                tuner = tuner.update(float(np.exp(np.minimum(0, -delta_h)).mean()))
            results.append(float(erfc(0.5 * np.sqrt(coefficient) * tuner.result**2)))
        assert abs(np.mean(results) - target) < 0.02 + 4 * np.std(results) / np.sqrt(len(results))
        assert min(results) > target - 0.25

    def test_bad_guesses_are_left_at_a_bounded_rate(self) -> None:
        tuner = StepSizeTuner.start(0.1, 0.8)
        assert 0.05 <= tuner.update(0.0).step_size < 0.1 < tuner.update(1.0).step_size <= 0.2


@pytest.mark.parametrize(
    "parameters",
    [
        {"step_size": -0.1},
        {"step_size": 2.0},
        {"trajectory_length": float("inf")},
    ],
)
def test_meaningless_trajectories_are_refused(parameters: dict[str, float]) -> None:
    given = {"trajectory_length": 1.0, "step_size": 0.1, **parameters}
    with pytest.raises(ParameterError):
        Trajectories.build(HMC(FreeScalar((4,), 1.0)), 1, 1, target_acceptance=None, **given)


def test_unknown_integrator_is_refused() -> None:
    with pytest.raises(ParameterError, match="leapfrog"):
        HMC(FreeScalar((4,), 1.0), "euler")


def test_non_finite_start_is_refused() -> None:
    cycle = Cycle(FreeScalar((4,), 1.0), (trajectories(FreeScalar((4,), 1.0)),))
    with pytest.raises(NonFiniteError):
        cycle.init(np.full((2, 4), np.nan))
    with pytest.raises(LatticeMismatchError):
        cycle.init(np.zeros((2, 5)))


def test_x64_off_is_refused() -> None:
    theory = FreeScalar((4,), 1.0)
    jax.config.update("jax_enable_x64", False)  # type: ignore[no-untyped-call]
    try:
        with pytest.raises(PrecisionError, match="JAX_ENABLE_X64"):
            HMC(theory).init(jnp.zeros((2, 4)))
        with pytest.raises(PrecisionError):
            proposals(theory).prepare(0, 1, 2)
    finally:
        jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]


class NarrowProposal(GaussianProposal):
    """A proposal that says of itself that it cannot go everywhere."""

    @property
    def metadata(self) -> ProposalMetadata:
        return replace(super().metadata, full_support=False)


def test_narrow_support_is_refused_alone_and_warned_of_in_a_hybrid() -> None:
    theory = FreeScalar((4, 2), 0.8)
    narrow = NarrowProposal(theory.shape, 0.5)
    with pytest.raises(ParameterError, match="mix it"):
        Cycle(theory, (FlowProposals(Independence(theory), narrow, 1, 2),))
    with pytest.warns(UserWarning, match="support"):
        Cycle(theory, (trajectories(theory), FlowProposals(Independence(theory), narrow, 1, 2)))
