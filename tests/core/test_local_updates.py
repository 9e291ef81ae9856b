"""Checkerboard updates of the Ising model: exact transition matrices, and that a sweep has them.

The distributions that they reach are tested together with those of the cluster updates, in test_ising_updates.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from flowmc.errors import ParameterError
from flowmc.kernels import Cycle, HybridState
from flowmc.kernels.local import LOCAL_RULES, Checkerboard, LocalUpdates
from flowmc.lattice import checkerboard
from flowmc.theories import Ising, Phi4

THEORIES = [
    Ising((6,), 0.5, field=0.2),
    Ising((2, 2), 0.4),
    Ising((2, 2), 0.3, field=-0.3),
    Ising((4, 2), 0.5, coupling=-1.0),
    Ising((4, 2), 0.0),
    Ising((2, 2, 2), 0.2, field=0.1),
]
FALSE_ALARM = 1e-5

every_rule = pytest.mark.parametrize("rule", LOCAL_RULES)
every_theory = pytest.mark.parametrize("theory", THEORIES, ids=str)


def enumerate_states(theory: Ising) -> np.ndarray:
    """All configurations, (2^V, *shape); the first site is the highest bit of the number, and up is 0."""
    bits = np.indices((2,) * theory.volume, dtype=np.int8).reshape(theory.volume, -1).T
    return (1 - 2 * bits).reshape(-1, *theory.shape)


def distribution(theory: Ising) -> np.ndarray:
    weight = np.exp(-theory.action(enumerate_states(theory)))
    normalised: np.ndarray = weight / weight.sum()
    return normalised


def update_matrix(kernel: Checkerboard, sites: np.ndarray) -> np.ndarray:
    """Transition matrix of updating the marked sites at once, from the kernel's own flip probabilities."""
    states = enumerate_states(kernel.theory)
    flip = np.asarray(kernel.flip_probability(jnp.asarray(states))).reshape(len(states), -1)
    flat = states.reshape(len(states), -1)
    differs = flat[:, None, :] != flat[None, :, :]
    each = np.where(sites.reshape(-1), np.where(differs, flip[:, None], 1 - flip[:, None]), ~differs)
    matrix: np.ndarray = each.prod(axis=2)
    return matrix


@cache
def half_matrices(kernel: Checkerboard) -> tuple[np.ndarray, np.ndarray]:
    even = checkerboard(kernel.theory.shape)
    return update_matrix(kernel, even), update_matrix(kernel, ~even)


def sweep_matrix(kernel: Checkerboard) -> np.ndarray:
    even, odd = half_matrices(kernel)
    matrix: np.ndarray = even @ odd
    return matrix


@every_rule
@every_theory
def test_half_sweeps_balance_and_sweeps_keep_the_target(theory: Ising, rule: str) -> None:
    kernel, target = Checkerboard(theory, rule), distribution(theory)
    for half in half_matrices(kernel):
        flow = target[:, None] * half
        np.testing.assert_allclose(flow, flow.T, atol=1e-14)
    np.testing.assert_allclose(target @ sweep_matrix(kernel), target, atol=1e-12)


@every_rule
@every_theory
def test_one_sweep_can_lead_everywhere(theory: Ising, rule: str) -> None:
    assert sweep_matrix(Checkerboard(theory, rule)).min() > 0


def test_metropolis_that_always_proposes_is_not_ergodic(monkeypatch: pytest.MonkeyPatch) -> None:
    # The reason why it does not: from an ordered start, a part of the configurations is never seen.
    monkeypatch.setitem(LOCAL_RULES, "always", replace(LOCAL_RULES["metropolis"], proposed=1.0))
    theory = Ising((4, 2), 0.4)
    matrix = sweep_matrix(Checkerboard(theory, "always"))
    target = distribution(theory)
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12)
    assert np.linalg.matrix_power(matrix, 1000)[0].min() == 0


def test_updating_all_sites_at_once_is_caught() -> None:
    theory = Ising((2, 2), 0.4)
    matrix = update_matrix(Checkerboard(theory, "heat_bath"), np.ones(theory.shape, bool))
    target = distribution(theory)
    assert np.abs(target @ matrix - target).max() > 1e-3


@every_theory
def test_heat_bath_forgets_the_spin(theory: Ising) -> None:
    states = enumerate_states(theory)
    flip = np.asarray(Checkerboard(theory, "heat_bath").flip_probability(jnp.asarray(states)))
    up = np.where(states == 1, 1 - flip, flip)
    np.testing.assert_allclose(up, 1 / (1 + np.exp(-2 * theory.local_field(states))), rtol=1e-12)


@every_rule
def test_a_sweep_has_the_transition_matrix(rule: str, test_seed: int) -> None:
    theory, copies = Ising((2, 2), 0.3, field=0.2), 4000
    kernel = Checkerboard(theory, rule)
    member = LocalUpdates(kernel, test_seed, 1)
    states = enumerate_states(theory)
    state = Cycle(theory, (member,)).init(np.repeat(states, copies, axis=0))
    after = np.asarray(member.run(0, 0, state, None)[0].field).reshape(len(states), copies, -1)
    number = (after == -1) @ (2 ** np.arange(theory.volume)[::-1])
    counts = np.array([np.bincount(row, minlength=len(states)) for row in number])
    expected = copies * sweep_matrix(kernel)
    # Cells that are too rare for normal errors are judged together, row by row.
    common = expected > 10
    rare, rare_expected = (counts * ~common).sum(axis=1), (expected * ~common).sum(axis=1)
    pooled = rare_expected > 10
    statistic = ((counts - expected) ** 2 / expected)[common].sum()
    statistic += ((rare - rare_expected) ** 2 / np.maximum(rare_expected, 1))[pooled].sum()
    freedom = common.sum() + pooled.sum() - len(states)
    assert chi2.sf(statistic, freedom) > FALSE_ALARM, (statistic, freedom)


class TestMember:
    theory = Ising((4, 6), 0.4, field=0.1)

    def member(self, rule: str) -> LocalUpdates:
        return LocalUpdates(Checkerboard(self.theory, rule), 5, 3)

    def state(self, rule: str) -> HybridState:
        return Cycle(self.theory, (self.member(rule),)).init(self.theory.start(np.random.default_rng(1), 7, "hot"))

    @every_rule
    def test_leaves_what_it_says(self, rule: str) -> None:
        after, updates = self.member(rule).run(0, 0, self.state(rule), None)
        field = np.asarray(after.field)
        assert field.dtype == np.int8
        assert set(np.unique(field)) == {-1, 1}
        np.testing.assert_allclose(after.action, self.theory.action(field), rtol=1e-14)
        np.testing.assert_array_equal(updates.action[-1], after.action)
        assert after.action.dtype == np.float64
        assert updates.accepted.shape == updates.acceptance.shape == updates.action.shape == (3, 7)

    @every_rule
    def test_repeats_bit_by_bit(self, rule: str) -> None:
        one, first = self.member(rule).run(3, 0, self.state(rule), None)
        other, second = self.member(rule).run(3, 5, self.state(rule), None)
        np.testing.assert_array_equal(one.field, other.field)
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(first.acceptance, second.acceptance)
        third, _ = self.member(rule).run(4, 0, self.state(rule), None)
        assert not np.array_equal(one.field, third.field)

    @every_rule
    def test_accepted_says_whether_spins_changed(self, rule: str) -> None:
        # Cold and in a strong field, so that many sweeps change nothing.
        theory = Ising((2, 2), 0.5, field=1.0)
        member = LocalUpdates(Checkerboard(theory, rule), 6, 1)
        state = Cycle(theory, (member,)).init(np.ones((200, 2, 2), np.int8))
        after, updates = member.run(0, 0, state, None)
        changed = (np.asarray(after.field) != 1).reshape(200, -1)
        np.testing.assert_array_equal(updates.accepted[0], changed.any(axis=1))
        assert 0 < updates.accepted.mean() < 1
        if rule == "heat_bath":
            assert (updates.acceptance == 1).all()
        else:
            np.testing.assert_array_equal(updates.acceptance[0] == 0, ~changed.any(axis=1))

    def test_metropolis_accepts_all_where_all_states_are_alike(self) -> None:
        theory = Ising((4, 6), 0.0)
        member = LocalUpdates(Checkerboard(theory, "metropolis"), 7, 2)
        _, updates = member.run(0, 0, Cycle(theory, (member,)).init(np.ones((50, 4, 6), np.int8)), None)
        assert (updates.acceptance == 1).all()

    def test_adapts_nothing(self) -> None:
        member = self.member("metropolis")
        _, updates = member.run(0, 0, self.state("metropolis"), None)
        assert member.adapted(updates, last=True) == member.restored(member.adaptation()) == member
        assert member.describe() == {"sweeps_per_cycle": 3}
        assert (member.kind, member.kernel.rule) == ("metropolis", "metropolis")

    def test_two_rules_make_a_cycle(self) -> None:
        cycle = Cycle(self.theory, (self.member("metropolis"), self.member("heat_bath")))
        state = cycle.init(self.theory.start(np.random.default_rng(2), 7, "cold"))
        after, happened = cycle.run(0, 0, state, cycle.prepare(0, 1, 7)[0])
        assert cycle.kinds == ("metropolis", "heat_bath")
        assert [len(updates.action) for updates in happened.updates] == [3, 3]
        np.testing.assert_allclose(after.action, self.theory.action(np.asarray(after.field)), rtol=1e-14)


class TestRefusals:
    @every_rule
    def test_odd_extent(self, rule: str) -> None:
        with pytest.raises(ParameterError, match="swendsen_wang") as caught:
            Checkerboard(Ising((4, 3), 0.4), rule)
        assert "(4, 3)" in caught.value.got

    @every_rule
    def test_other_theory(self, rule: str) -> None:
        with pytest.raises(ParameterError, match="phi4"):
            Checkerboard(Phi4((4, 4), -4.0, 8.0), rule)  # type: ignore[arg-type]

    def test_unknown_rule(self) -> None:
        with pytest.raises(ParameterError, match="heat_bath"):
            Checkerboard(Ising((4, 4), 0.4), "glauber")

    def test_no_sweep(self) -> None:
        with pytest.raises(ParameterError, match="at least one"):
            LocalUpdates(Checkerboard(Ising((4, 4), 0.4), "metropolis"), 1, 0)
