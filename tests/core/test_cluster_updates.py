"""Cluster updates of the Ising model: exact transition matrices of the compiled kernels, and the member of a cycle.

The kernels are functions of the spins and of random numbers that only matter through a few thresholds. With one number
from between any two thresholds, weighted by the distance of these, the transition matrix follows to rounding.

The distributions that they reach are tested together with those of the local updates, in test_ising_updates.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.kernels import Cycle, HybridState
from flowmc.kernels.cluster import CLUSTER_RULES, ClusterKernel, ClusterNumbers, ClusterUpdates, neighbour_table
from flowmc.lattice import neighbour_sum
from flowmc.theories import Ising, Phi4

every_rule = pytest.mark.parametrize("rule", CLUSTER_RULES)

WITHOUT_FIELD = [
    Ising((2,), 0.5),
    Ising((3,), 0.6),
    Ising((3,), 0.4, coupling=-1.0),
    Ising((4,), 0.4, coupling=-0.7),
    Ising((2, 2), 0.4),
    Ising((2, 2), 0.3, coupling=-1.0),
    Ising((3,), 0.5, coupling=0.0),
]
WITH_FIELD = [
    Ising((2,), 0.5, field=0.3),
    Ising((3,), 0.6, field=-0.4),
    Ising((3,), 0.4, coupling=-1.0, field=0.5),
]


def enumerate_states(theory: Ising) -> np.ndarray:
    """All configurations, (2^V, *shape); the first site is the highest bit of the number, and up is 0."""
    bits = np.indices((2,) * theory.volume, dtype=np.int8).reshape(theory.volume, -1).T
    return (1 - 2 * bits).reshape(-1, *theory.shape)


def intervals(thresholds: np.ndarray) -> list[tuple[float, float]]:
    """A number of every interval between thresholds on [0, 1), with the interval's width."""
    edges = np.unique([0.0, *np.clip(thresholds, 0.0, 1.0), 1.0])
    return [((low + high) / 2, high - low) for low, high in itertools.pairwise(edges.tolist())]


def choices(each: list[tuple[float, float]], n: int) -> tuple[np.ndarray, np.ndarray]:
    """All ways to choose n numbers, (ways, n), and their weights, (ways,)."""
    numbers = np.array(list(itertools.product([number for number, _ in each], repeat=n)))
    weights = np.array(list(itertools.product([weight for _, weight in each], repeat=n))).prod(axis=1)
    return numbers, weights


def all_numbers(kernel: ClusterKernel) -> tuple[ClusterNumbers, np.ndarray]:
    """Everything that the kernel can draw, as far as it makes a difference, with its probability."""
    theory = kernel.theory
    sites, dimensions = theory.volume, len(theory.shape)
    links, link_weights = choices(intervals(np.array([kernel.bond_probability])), sites * dimensions)
    cost = 2 * theory.beta * theory.field * np.arange(-sites, sites + 1)
    if kernel.rule == "swendsen_wang":
        turns, turn_weights = choices(intervals(1 / (1 + np.exp(cost))), sites)
        start, start_weights = np.zeros(1, np.int64), np.ones(1)
    else:
        turns, turn_weights = choices(intervals(np.exp(-cost)), 1)
        start, start_weights = np.arange(sites), np.full(sites, 1 / sites)
    link, turn, first = (index.ravel() for index in np.indices((len(links), len(turns), len(start))))
    weights = link_weights[link] * turn_weights[turn] * start_weights[first]
    return ClusterNumbers(links[link].reshape(-1, sites, dimensions), turns[turn], start[first]), weights


def transition_matrix(kernel: ClusterKernel) -> np.ndarray:
    states = enumerate_states(kernel.theory)
    numbers, weights = all_numbers(kernel)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    rows = []
    for state in states:
        after, _ = kernel.step(np.repeat(state[None], len(weights), axis=0), numbers)
        index = (after.reshape(len(after), -1) == -1) @ (2 ** np.arange(kernel.theory.volume)[::-1])
        rows.append(np.bincount(index, weights, len(states)))
    return np.array(rows)


def distribution(theory: Ising) -> np.ndarray:
    weight = np.exp(-theory.action(enumerate_states(theory)))
    normalised: np.ndarray = weight / weight.sum()
    return normalised


@every_rule
@pytest.mark.parametrize("theory", WITHOUT_FIELD + WITH_FIELD, ids=str)
def test_target_is_invariant_and_balanced(rule: str, theory: Ising) -> None:
    matrix, target = transition_matrix(ClusterKernel(theory, rule)), distribution(theory)
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12)
    flow = target[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)


@every_rule
@pytest.mark.parametrize("theory", WITHOUT_FIELD[:-1] + WITH_FIELD, ids=str)
def test_every_state_can_be_reached(rule: str, theory: Ising) -> None:
    matrix = transition_matrix(ClusterKernel(theory, rule))
    # All of them at the same time, so that the chain is not periodic either.
    assert np.linalg.matrix_power(matrix, 4 * theory.volume).min() > 0


def test_swendsen_wang_draws_the_signs_of_all_clusters() -> None:
    # Without bonds it is the heat bath of free spins, with all bonds the global flip.
    theory = Ising((3,), 0.5, coupling=0.0, field=0.4)
    np.testing.assert_allclose(
        transition_matrix(ClusterKernel(theory, "swendsen_wang")), np.tile(distribution(theory), (8, 1)), atol=1e-12
    )
    cold = transition_matrix(ClusterKernel(Ising((2, 2), 20.0), "swendsen_wang"))
    assert cold[0, 0] == pytest.approx(0.5)
    assert cold[0, -1] == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 2, 3)])
def test_neighbour_table_is_that_of_the_theory(shape: tuple[int, ...]) -> None:
    field = np.random.default_rng(1).integers(0, 100, (1, *shape))
    table = neighbour_table(shape)
    np.testing.assert_array_equal(field.ravel()[table].sum(axis=1), neighbour_sum(field, len(shape)).ravel())
    for direction in range(len(shape)):
        forward, backward = table[:, direction], table[:, len(shape) + direction]
        np.testing.assert_array_equal(forward[backward], np.arange(field.size))


class TestMember:
    theory = Ising((4, 3), 0.4, field=0.05)

    def member(self, rule: str) -> ClusterUpdates:
        return ClusterUpdates(ClusterKernel(self.theory, rule), 5, 3)

    def state(self, rule: str) -> HybridState:
        return Cycle(self.theory, (self.member(rule),)).init(self.theory.start(np.random.default_rng(1), 7, "hot"))

    @every_rule
    def test_leaves_what_it_says(self, rule: str) -> None:
        before = self.state(rule)
        copy = np.array(before.field)
        after, updates = self.member(rule).run(0, 0, before, None)
        np.testing.assert_array_equal(before.field, copy)
        field = np.asarray(after.field)
        assert field.dtype == np.int8
        assert set(np.unique(field)) == {-1, 1}
        np.testing.assert_allclose(after.action, self.theory.action(field), rtol=1e-14)
        np.testing.assert_array_equal(updates.action[-1], after.action)
        assert after.action.dtype == np.float64
        assert updates.accepted.shape == updates.acceptance.shape == updates.action.shape == (3, 7)

    @every_rule
    def test_repeats_bit_by_bit(self, rule: str) -> None:
        one, _ = self.member(rule).run(3, 0, self.state(rule), None)
        other, _ = self.member(rule).run(3, 5, self.state(rule), None)
        np.testing.assert_array_equal(one.field, other.field)
        np.testing.assert_array_equal(one.action, other.action)
        third, _ = self.member(rule).run(4, 0, self.state(rule), None)
        assert not np.array_equal(one.field, third.field)

    @every_rule
    def test_accepted_says_whether_spins_changed(self, rule: str) -> None:
        theory = Ising((3, 3), 0.3, field=0.3)
        member = ClusterUpdates(ClusterKernel(theory, rule), 6, 1)
        state = Cycle(theory, (member,)).init(np.ones((200, 3, 3), np.int8))
        after, updates = member.run(0, 0, state, None)
        changed = (np.asarray(after.field) != 1).reshape(200, -1).any(axis=1)
        np.testing.assert_array_equal(updates.accepted[0], changed)
        assert 0 < updates.accepted.mean() < 1
        np.testing.assert_array_equal(updates.acceptance[0], changed if rule == "wolff" else 1.0)

    def test_wolff_always_moves_without_a_field(self) -> None:
        theory = Ising((4, 4), 0.4)
        member = ClusterUpdates(ClusterKernel(theory, "wolff"), 6, 5)
        _, updates = member.run(0, 0, Cycle(theory, (member,)).init(np.ones((20, 4, 4), np.int8)), None)
        assert (updates.acceptance == 1).all()
        assert updates.accepted.all()

    def test_adapts_nothing(self) -> None:
        member = self.member("wolff")
        _, updates = member.run(0, 0, self.state("wolff"), None)
        assert member.adapted(updates, last=True) == member.restored(member.adaptation()) == member
        assert member.describe() == {"updates_per_cycle": 3}
        assert member.kind == "wolff"

    def test_two_kernels_make_a_cycle(self) -> None:
        cycle = Cycle(self.theory, (self.member("wolff"), self.member("swendsen_wang")))
        state = cycle.init(self.theory.start(np.random.default_rng(2), 3, "cold"))
        after, happened = cycle.run(0, 0, state, cycle.prepare(0, 1, 3)[0])
        assert cycle.kinds == ("wolff", "swendsen_wang")
        assert [len(updates.action) for updates in happened.updates] == [3, 3]
        np.testing.assert_allclose(after.action, self.theory.action(np.asarray(after.field)), rtol=1e-14)


class TestRefusals:
    @every_rule
    def test_other_theory(self, rule: str) -> None:
        with pytest.raises(ParameterError, match="phi4"):
            ClusterKernel(Phi4((4, 4), -4.0, 8.0), rule)  # type: ignore[arg-type]

    @every_rule
    def test_other_lattice(self, rule: str) -> None:
        one = ClusterKernel(Ising((4, 4), 0.4), rule)
        with pytest.raises(LatticeMismatchError, match="4, 3"):
            one.step(np.ones((2, 4, 3), np.int8), one.draw(np.random.default_rng(1), 2))

    def test_unknown_rule(self) -> None:
        with pytest.raises(ParameterError, match="swendsen_wang"):
            ClusterKernel(Ising((4, 4), 0.4), "invaded")

    def test_no_update(self) -> None:
        with pytest.raises(ParameterError, match="at least one"):
            ClusterUpdates(ClusterKernel(Ising((4, 4), 0.4), "wolff"), 1, 0)
