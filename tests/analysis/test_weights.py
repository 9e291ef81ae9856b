from __future__ import annotations

import math
import warnings

import arviz
import numpy as np
import numpy.typing as npt
import pytest

from flowmc_analysis.errors import NonFiniteError, SampleShapeError, TooFewSamplesError, ZeroWeightError
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.weights import (
    acceptance_independence,
    ess_forward,
    ess_reverse,
    log_mean_exp,
    pareto_k,
    tau_int_independence,
    tau_int_independence_observable,
)

__all__: list[str] = []

Array = npt.NDArray[np.float64]


def independence_chain(rng: np.random.Generator, log_w: Array, start: int) -> npt.NDArray[np.int64]:
    """Indices of the states of an independence Metropolis chain over given proposals, each used once."""
    log_u = np.log(rng.uniform(size=log_w.size))
    states = np.empty(log_w.size, dtype=np.int64)
    current = start
    for i, (proposal, threshold) in enumerate(zip(log_w.tolist(), log_u.tolist(), strict=True)):
        if threshold < proposal - log_w[current]:
            current = i
        states[i] = current
    return states


def transition_matrix(w: Array) -> Array:
    """The independence chain that proposes uniformly from so many states of weights w."""
    matrix = np.minimum(1.0, w[None, :] / w[:, None]) / w.size
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, 1.0 - matrix.sum(axis=1))
    return matrix


def tau_int_by_linear_algebra(w: Array, observable: Array) -> float:
    p = w / w.sum()
    f = observable - p @ observable
    # sum_{n >= 1} P^n f = (1 - P + 1 p)^-1 f - f for f of zero mean
    summed = np.linalg.solve(np.eye(w.size) - transition_matrix(w) + p[None, :], f) - f
    return float(0.5 + (p * f) @ summed / (p @ f**2))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_tau_int_of_an_observable_is_that_of_the_finite_chain(rng: np.random.Generator, sigma: float) -> None:
    log_w = rng.normal(scale=sigma, size=60)
    log_w[7] = log_w[11]  # equal weights
    for observable in (rng.normal(size=60), log_w, np.arange(60.0), np.exp(-log_w)):
        expected = tau_int_by_linear_algebra(np.exp(log_w), observable)
        assert tau_int_independence_observable(log_w, observable) == pytest.approx(expected, rel=1e-10)


def test_mean_over_random_observables_is_the_weight_blind_time(rng: np.random.Generator) -> None:
    """An observable that ignores the weight: tau = E_p[1/a] - 1/2, up to O(1/N) of the finite chain."""
    log_w = rng.normal(size=20000)
    blind = tau_int_independence(log_w)
    times = [tau_int_independence_observable(log_w, rng.normal(size=log_w.size)) for _ in range(40)]
    assert abs(np.mean(times) - blind) < 4 * np.std(times) / math.sqrt(len(times)) + 1e-3


def test_weight_blind_time_is_the_mean_inverse_acceptance(rng: np.random.Generator) -> None:
    w = np.exp(rng.normal(size=50))
    matrix = transition_matrix(w)
    acceptance = 1.0 - np.diag(matrix) + 1.0 / w.size  # proposing oneself counts as accepted
    assert tau_int_independence(np.log(w)) == pytest.approx(np.sum(w / w.sum() / acceptance) - 0.5, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_closed_forms_for_log_normal_weights(rng: np.random.Generator, sigma: float) -> None:
    """Flow samples have log w ~ N(0, sigma^2), target samples N(sigma^2, sigma^2)."""

    def scatter(function: object, mean: float, expected: float, repeats: int = 30, size: int = 20000) -> None:
        values = [function(rng.normal(mean, sigma, size=size)) for _ in range(repeats)]  # type: ignore[operator]
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(repeats) + 30 / size

    scatter(ess_reverse, 0.0, math.exp(-(sigma**2)))
    scatter(ess_forward, sigma**2, math.exp(-(sigma**2)))
    scatter(acceptance_independence, 0.0, math.erfc(sigma / 2))
    scatter(log_mean_exp, 0.0, sigma**2 / 2)


def test_forward_ess_with_a_known_partition_function_sees_a_missed_mode(rng: np.random.Generator) -> None:
    covered = rng.normal(0.0, 0.1, size=5000)
    missed = np.concatenate([covered[:2500], covered[2500:] + 12.0])  # half the target has hardly any flow
    assert ess_reverse(covered) > 0.9
    assert ess_forward(missed, covered) < 1e-4
    assert ess_forward(covered, covered) == pytest.approx(math.exp(-0.01), rel=0.02)


# Wider weights have runs of rejections so long and rare that one chain's error does not know them.
@pytest.mark.parametrize("sigma", [0.3, 0.6])
def test_a_simulated_chain_has_the_predicted_acceptance_and_time(rng: np.random.Generator, sigma: float) -> None:
    size = 100_000
    log_w = rng.normal(scale=sigma, size=size)
    # The chain starts in equilibrium: one draw of the target.
    log_w[0] = rng.normal(sigma**2, sigma)
    blind = rng.normal(size=size)
    states = independence_chain(rng, log_w, start=0)
    moved = np.diff(states) != 0
    acceptance = gamma_method(moved).estimate
    assert abs(acceptance.value - math.erfc(sigma / 2)) < 4 * acceptance.error
    fresh = rng.normal(scale=sigma, size=400_000)
    for observable, predicted in [
        (blind[states], tau_int_independence(fresh)),
        (log_w[states], tau_int_independence_observable(fresh, fresh)),
    ]:
        measured = gamma_method(observable, s=5.0).estimate
        assert abs(measured.tau_int - predicted) < 4 * measured.tau_int_error + 0.02 * predicted


def test_observables_that_know_the_weight_are_slower(rng: np.random.Generator) -> None:
    log_w = rng.normal(size=50000)
    assert tau_int_independence_observable(log_w, log_w) > 1.5 * tau_int_independence(log_w)


def test_bounds_on_the_time(rng: np.random.Generator) -> None:
    """Jensen: tau + 1/2 is at least the inverse acceptance and the inverse effective fraction."""
    for sigma in (0.2, 1.0, 2.0):
        log_w = rng.normal(scale=sigma, size=4000)
        time = tau_int_independence(log_w) + 0.5
        assert time >= 0.999 / acceptance_independence(log_w)
        assert time >= 0.999 / ess_reverse(log_w)


def test_a_perfect_flow() -> None:
    log_w = np.full(100, -321.5)
    assert ess_reverse(log_w) == pytest.approx(1.0)
    assert ess_forward(log_w) == pytest.approx(1.0)
    assert acceptance_independence(log_w) == pytest.approx(1.0)
    assert tau_int_independence(log_w) == pytest.approx(0.5)
    assert tau_int_independence_observable(log_w, np.arange(100.0)) == pytest.approx(0.5)
    assert log_mean_exp(log_w) == pytest.approx(-321.5)
    assert pareto_k(log_w) == -math.inf


@pytest.mark.parametrize("offset", [0.0, 5000.0, -5000.0])
def test_only_ratios_of_weights_matter(rng: np.random.Generator, offset: float) -> None:
    log_w = rng.normal(size=500)
    for function in (ess_reverse, ess_forward, acceptance_independence, tau_int_independence, pareto_k):
        assert function(log_w + offset) == pytest.approx(function(log_w), rel=1e-9)


def test_zero_weights_are_proposals_that_are_never_accepted(rng: np.random.Generator) -> None:
    finite = rng.normal(size=300)
    log_w = np.concatenate([finite, np.full(100, -np.inf)])
    tiny = np.concatenate([finite, np.full(100, -600.0)])
    observable = rng.normal(size=400)
    assert ess_reverse(log_w) == pytest.approx(0.75 * ess_reverse(finite))
    for function in (ess_reverse, acceptance_independence, tau_int_independence, log_mean_exp):
        assert function(log_w) == pytest.approx(function(tiny), rel=1e-12)
    expected = tau_int_independence_observable(tiny, observable)
    observable[300:] = np.nan  # what a non-finite proposal measures
    assert tau_int_independence_observable(log_w, observable) == pytest.approx(expected, rel=1e-12)


def test_pareto_k_agrees_with_arviz_and_finds_the_tail(rng: np.random.Generator) -> None:
    for shape in (0.2, 0.5, 1.0):
        estimates = [pareto_k(-shape * np.log(rng.uniform(size=5000))) for _ in range(20)]
        prior_pull = 10 / (10 + 3 * math.sqrt(5000)) * abs(0.5 - shape)
        assert abs(np.mean(estimates) - shape) < 4 * np.std(estimates) / math.sqrt(20) + prior_pull + 0.01
    if int(arviz.__version__.split(".")[0]) == 0:  # 1.x moved it
        log_w = rng.normal(scale=2.0, size=3000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = float(arviz.psislw(log_w)[1])  # type: ignore[no-untyped-call]
        assert pareto_k(log_w) == pytest.approx(expected, rel=1e-6)


def test_pareto_k_of_few_weights_is_unknown() -> None:
    assert math.isnan(pareto_k([0.0, 1.0, 2.0]))
    assert math.isnan(pareto_k(np.concatenate([np.zeros(3), np.full(40, -np.inf)])))


def test_the_shape_does_not_matter(rng: np.random.Generator) -> None:
    log_w, observable = rng.normal(size=(2, 40, 5))
    assert ess_reverse(log_w) == ess_reverse(log_w.ravel())
    assert tau_int_independence_observable(log_w, observable) == tau_int_independence_observable(
        log_w.ravel(), observable.ravel()
    )


@pytest.mark.parametrize(
    "function", [ess_reverse, acceptance_independence, tau_int_independence, pareto_k, log_mean_exp]
)
def test_bad_log_weights_are_refused(function: object) -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="1 of 3 log-weights NaN or"):
            function([0.0, bad, 1.0])  # type: ignore[operator]
    with pytest.raises(ZeroWeightError, match="all -inf"):
        function([-math.inf, -math.inf])  # type: ignore[operator]
    with pytest.raises(TooFewSamplesError):
        function([])  # type: ignore[operator]
    with pytest.raises(SampleShapeError):
        function([1j])  # type: ignore[operator]


def test_bad_log_weights_of_target_samples_are_refused() -> None:
    assert ess_forward([0.0, math.inf]) == 0.0  # the flow cannot go where the target is
    for bad in (math.nan, -math.inf):
        with pytest.raises(NonFiniteError):
            ess_forward([0.0, bad])


def test_an_observable_must_fit_its_weights() -> None:
    with pytest.raises(SampleShapeError, match="one value of the observable"):
        tau_int_independence_observable([0.0, 1.0], [1.0])
    with pytest.raises(NonFiniteError, match="1 non-finite"):
        tau_int_independence_observable([0.0, 1.0], [1.0, math.nan])
    assert math.isnan(tau_int_independence_observable([0.0, 1.0], [3.0, 3.0]))
    with pytest.raises(TooFewSamplesError):
        acceptance_independence([0.0])
