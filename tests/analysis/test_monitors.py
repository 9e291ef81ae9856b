"""Monitors: quiet where the identity holds, raised where it is broken, void where they have no power."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from flowmc_analysis.monitors import (
    Monitor,
    judge_monitors,
    monitor_energy_error,
    monitor_energy_symmetry,
    monitor_identity,
    monitor_mode_drop,
    monitor_weight_ratio,
)

Array = npt.NDArray[np.float64]

LARGE_Z = 5.0


def independence_chain(rng: np.random.Generator, sigma: float, chains: int, n: int) -> tuple[Array, Array]:
    """Log-weights of proposals and of the states before, for log-normal weights, started from the target."""
    log_w = rng.normal(0.0, sigma, size=(chains, n))
    state = rng.normal(sigma**2, sigma, size=chains)  # p(log w) = q(log w) w / Z
    current = np.empty_like(log_w)
    for i in range(n):
        current[:, i] = state
        accepted = np.log(rng.random(chains)) < log_w[:, i] - state
        state = np.where(accepted, log_w[:, i], state)
    return log_w, current


def test_quiet_on_an_exact_chain(rng: np.random.Generator) -> None:
    log_w, current = independence_chain(rng, 0.4, chains=8, n=1000)
    monitors = (monitor_weight_ratio(log_w, current), monitor_mode_drop(log_w, current))
    assert [monitor.void for monitor in monitors] == ["", ""]
    verdict = judge_monitors(monitors)
    assert verdict is not None
    assert verdict.passed


@pytest.mark.parametrize("sigma", [0.01, 0.4])
@pytest.mark.parametrize("monitor", [monitor_weight_ratio, monitor_mode_drop])
def test_errors_contain_the_correlation_of_states_with_proposals(
    monitor: Callable[[Array, Array], Monitor], sigma: float, rng: np.random.Generator
) -> None:
    """The z-scores of many exact chains have unit variance, although states are accepted proposals."""
    z = np.array([monitor(*independence_chain(rng, sigma, chains=4, n=200)).score.z for _ in range(150)])
    variance = float(np.mean(z**2))
    # Errors estimated from short chains are a little noisy, which fattens the tails of z.
    assert abs(variance - 1.0) < 4.0 * math.sqrt(2.0 / z.size)


def test_forward_log_q_that_the_states_do_not_share_is_seen(rng: np.random.Generator) -> None:
    log_w, current = independence_chain(rng, 0.4, chains=8, n=1000)
    # A log_q that is off by part of the draw's own log-weight, in the forward direction only.
    assert abs(monitor_weight_ratio(1.3 * log_w, current).score.z) > LARGE_Z


def test_energy_error_identity(rng: np.random.Generator) -> None:
    sigma = 0.5
    delta_h = rng.normal(0.5 * sigma**2, sigma, size=(8, 500))  # the Gaussian law with <exp(-dH)> = 1
    assert abs(monitor_energy_error(delta_h).score.z) < LARGE_Z
    assert abs(monitor_energy_error(-delta_h).score.z) > LARGE_Z


def test_energy_error_that_rests_on_rare_trajectories_is_void(rng: np.random.Generator) -> None:
    # A law with p(-x) = e^-x p(x) and a share of it so far up that its reverse never comes.
    usual = rng.normal(0.5 * 0.3**2, 0.3, size=(8, 500))
    delta_h = np.where(rng.random((8, 500)) < 0.02, 30.0, usual)
    assert "reverse" in monitor_energy_error(delta_h).void
    assert not monitor_energy_error(usual).void
    assert abs(monitor_energy_symmetry(delta_h).score.z) < LARGE_Z
    assert abs(monitor_energy_symmetry(usual).score.z) < LARGE_Z
    # A force that does not belong to the action.
    assert abs(monitor_energy_symmetry(-delta_h).score.z) > LARGE_Z
    assert abs(monitor_energy_symmetry(usual + 0.05).score.z) > LARGE_Z


def test_overflowed_trajectory_counts_as_infinite_energy(rng: np.random.Generator) -> None:
    delta_h = rng.normal(0.02, 0.2, size=(4, 100))
    delta_h[0, 0], delta_h[1, 0] = np.nan, np.inf
    score = monitor_energy_error(delta_h).score
    boltzmann = np.exp(-delta_h)
    boltzmann[:2, 0] = 0.0
    assert score.value == pytest.approx(boltzmann.mean())


def test_schwinger_dyson_of_a_gaussian(rng: np.random.Generator) -> None:
    """One site with S = phi^2/2: phi dS/dphi = phi^2 has mean one; a wider distribution is seen."""
    phi = rng.normal(size=(4, 2000))
    monitor = monitor_identity("virial", phi**2, 1)
    assert monitor.name == "schwinger_dyson"
    assert abs(monitor.score.z) < LARGE_Z
    assert monitor_identity("virial", 1.2 * phi**2, 1).score.z > LARGE_Z


def test_local_field_of_one_spin(rng: np.random.Generator) -> None:
    """One spin in a field h has the mean tanh h; another field is seen."""
    h = 0.7
    for true, seen in ((h, False), (h + 0.3, True)):
        spins = np.where(rng.random((4, 2000)) < 0.5 * (1.0 + math.tanh(true)), 1.0, -1.0)
        monitor = monitor_identity("local_field", h * (spins - math.tanh(h)), 1)
        assert (abs(monitor.score.z) > LARGE_Z) == seen
        assert not monitor.void


def test_what_never_changes_is_judged_where_it_could_have_and_void_where_spins_are_frozen() -> None:
    frozen = monitor_identity("local_field", np.full((2, 50), 1e-3), 16)
    assert "same value" in frozen.void
    assert math.isnan(frozen.score.z)
    stuck = monitor_identity("virial", np.full((2, 50), 15.0), 16)
    assert not stuck.void
    assert abs(stuck.score.z) > LARGE_Z


def test_dropped_mode_shows_as_the_logarithm_of_what_is_missed(rng: np.random.Generator) -> None:
    """Target: two equal narrow Gaussians; flow: only one of them. The gap is ln 2, the draws alone look fine."""

    def log_normal(x: Array, centre: float, width: float) -> Array:
        return np.asarray(-0.5 * ((x - centre) / width) ** 2 - math.log(width * math.sqrt(2.0 * math.pi)))

    def log_weight(x: Array) -> Array:
        target = np.logaddexp(log_normal(x, -6.0, 1.0), log_normal(x, 6.0, 1.0)) - math.log(2.0)
        return np.asarray(target - log_normal(x, 6.0, 1.1))

    states = rng.choice([-6.0, 6.0], size=(8, 1000)) + rng.normal(size=(8, 1000))
    draws = 6.0 + 1.1 * rng.normal(size=(8, 1000))
    monitor = monitor_mode_drop(log_weight(draws), log_weight(states))
    assert not monitor.void
    assert monitor.score.z > LARGE_Z
    assert abs(monitor.score.value - math.log(2.0)) < LARGE_Z * monitor.score.error


def test_heavy_tails_make_the_weight_monitors_void(rng: np.random.Generator) -> None:
    log_w = rng.pareto(0.8, size=(8, 500))
    heavy = np.log1p(log_w)  # Pareto weights with shape k = 1/0.8
    monitors = (monitor_weight_ratio(heavy, heavy[::-1]), monitor_mode_drop(heavy, heavy[::-1]))
    assert all("Pareto" in monitor.void for monitor in monitors)
    assert judge_monitors(monitors) is None
    assert monitors[0].to_dict()["void"] is not None


def test_perfect_flow_is_quiet() -> None:
    log_w = np.full((2, 50), 3.0)
    for monitor in (monitor_weight_ratio(log_w, log_w), monitor_mode_drop(log_w, log_w)):
        assert abs(monitor.score.z) < 1e-3
        assert not monitor.void


def test_failed_proposals_and_unreachable_states(rng: np.random.Generator) -> None:
    log_w, current = independence_chain(rng, 0.3, chains=4, n=200)
    log_w[0, :3] = -np.inf
    current[1, :3] = np.inf
    for monitor in (monitor_weight_ratio(log_w, current), monitor_mode_drop(log_w, current)):
        assert math.isfinite(monitor.score.z)


def test_state_that_the_flow_never_reaches_raises_the_alarm() -> None:
    unreachable = monitor_mode_drop(np.zeros((2, 20)), np.full((2, 20), np.inf))
    verdict = judge_monitors((unreachable,))
    assert verdict is not None
    assert not verdict.passed


def test_few_samples_are_void_not_an_exception() -> None:
    assert "too few" in monitor_energy_error(np.array([[0.1, 0.2]])).void
