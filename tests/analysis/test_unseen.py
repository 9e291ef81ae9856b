"""States beyond all draws of a flow: a missed mode is seen whatever the tails, and tails alone are not taken for one."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from flowmc_analysis.monitors import monitor_mode_drop
from flowmc_analysis.unseen import unseen_states

Array = npt.NDArray[np.float64]

LEVEL = 1e-3
NARROW = 0.55
"""Width of a flow for a mode of width one: its weights have the Pareto shape 1 − 0.55² = 0.70."""


def log_weight(x: Array, width: float) -> Array:
    """Log-weights for two equal Gaussian modes at ±6 and a flow of the upper one alone."""
    target = np.logaddexp(-0.5 * (x + 6.0) ** 2, -0.5 * (x - 6.0) ** 2) - math.log(2.0)
    return np.asarray(target + 0.5 * ((x - 6.0) / width) ** 2 + math.log(width))


def chains(rng: np.random.Generator, modes: Array, n: int = 1000) -> Array:
    """Chains that stay in their modes, ±1 for each."""
    return np.asarray(6.0 * modes[:, None] + rng.normal(size=(len(modes), n)))


@pytest.fixture
def draws(rng: np.random.Generator) -> Array:
    return log_weight(6.0 + NARROW * rng.normal(size=(8, 1000)), NARROW)


def test_frozen_chains_in_a_mode_that_the_flow_misses(draws: Array, rng: np.random.Generator) -> None:
    states = log_weight(chains(rng, np.array([1.0, -1.0] * 4)), NARROW)
    # Heavy tails make the gap void; even without them its error, from eight chains that never move, is too large.
    gap = monitor_mode_drop(draws, states)
    assert "Pareto" in gap.void
    assert gap.score.z < 3.09
    found = unseen_states(draws, states)
    assert found.p_value < LEVEL
    assert found.share == pytest.approx(0.5, abs=0.03)
    assert found.n_eff < 20


def test_all_chains_in_the_other_mode(draws: Array, rng: np.random.Generator) -> None:
    assert unseen_states(draws, log_weight(chains(rng, np.full(8, -1.0)), NARROW)).p_value < LEVEL


def test_one_chain_of_many_is_no_evidence(rng: np.random.Generator) -> None:
    width = 0.9
    draws = log_weight(6.0 + width * rng.normal(size=(32, 200)), width)
    states = log_weight(chains(rng, np.array([-1.0] + 31 * [1.0]), 200), width)
    found = unseen_states(draws, states)
    assert found.share == pytest.approx(1 / 32, abs=0.01)
    assert found.p_value > LEVEL


def test_tails_of_the_one_mode_are_not_a_missed_mode(draws: Array, rng: np.random.Generator) -> None:
    found = unseen_states(draws, log_weight(chains(rng, np.ones(8)), NARROW))
    assert found.share < 0.02
    assert found.p_value > 0.1


@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.5])
def test_log_normal_weights_are_quiet(sigma: float, rng: np.random.Generator) -> None:
    # States of the target itself: p(log w) = q(log w) w / Z. The ESS is exp(−σ²), 0.1 for the last.
    draws, states = rng.normal(0.0, sigma, (8, 500)), rng.normal(sigma**2, sigma, (8, 500))
    assert unseen_states(draws, states).p_value > 0.1


def test_rounding_is_not_a_missed_mode(rng: np.random.Generator) -> None:
    draws = np.full((4, 100), 3.0)
    assert unseen_states(draws, draws + 1e-9 * rng.normal(size=(4, 100))).p_value == 1.0


def test_states_without_density_and_few_updates() -> None:
    assert unseen_states(np.zeros((4, 3)), np.full((4, 3), np.inf)).p_value < LEVEL
    some = np.zeros((4, 3))
    some[0, 0] = np.inf
    assert unseen_states(np.zeros((4, 3)), some).n_eff == 4
