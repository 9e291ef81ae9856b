"""Neural importance sampling: exact means of a two-point distribution, coverage of the errors, the variational bound."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flowmc_analysis.errors import AnalysisError, NonFiniteError, SampleShapeError, TooFewSamplesError
from flowmc_analysis.free_energy import log_partition_function_variational
from flowmc_analysis.importance import importance_entropy, importance_mean


def gaussian_flow(rng: np.random.Generator, size: int, width: float) -> tuple[np.ndarray, np.ndarray]:
    """S = x^2/2 sampled by a Gaussian of that width: log-weights and actions. ln Z = ln(2 pi)/2, <S> = 1/2."""
    x = width * rng.normal(size=size)
    action = 0.5 * x**2
    log_q = -0.5 * (x / width) ** 2 - math.log(width) - 0.5 * math.log(2.0 * math.pi)
    return -action - log_q, action


def test_values_errors_and_covariance(rng: np.random.Generator) -> None:
    """Over many repetitions the z-scores of <S> and of ln Z + <S> have mean zero and unit variance."""
    repetitions = 400
    exact = {"mean": 0.5, "entropy": 0.5 * math.log(2.0 * math.pi) + 0.5}
    z: dict[str, list[float]] = {"mean": [], "entropy": []}
    for _ in range(repetitions):
        log_w, action = gaussian_flow(rng, 1000, 1.3)
        for name, estimate in (
            ("mean", importance_mean(log_w, action)),
            ("entropy", importance_entropy(log_w, action)),
        ):
            z[name].append((estimate.value - exact[name]) / estimate.error)
    for values in z.values():
        assert abs(np.mean(values)) < 4.0 / math.sqrt(repetitions)
        # Errors that are themselves estimated fatten the tails a little.
        assert abs(np.var(values) - 1.0) < 5.0 * math.sqrt(2.0 / repetitions)


def test_bias_of_the_ratio_is_removed(rng: np.random.Generator) -> None:
    """With 20 draws the plain ratio is off by many errors of the mean over repetitions; the corrected one by far less."""
    estimates = [importance_mean(*gaussian_flow(rng, 20, 1.4)) for _ in range(8000)]
    values = np.array([estimate.value for estimate in estimates])
    plain = values + np.array([estimate.bias for estimate in estimates])
    error = values.std() / math.sqrt(values.size)
    assert abs(plain.mean() - 0.5) > 5.0 * error
    assert abs(values.mean() - 0.5) < 0.3 * abs(plain.mean() - 0.5) + 4.0 * error


def test_perfect_flow_has_an_entropy_without_error_of_ln_z(rng: np.random.Generator) -> None:
    """Equal weights: ln Z is exact, and the error of the entropy is that of the mean action."""
    log_w, action = gaussian_flow(rng, 500, 1.0)
    assert importance_mean(log_w, action).error == pytest.approx(importance_entropy(log_w, action).error)
    assert importance_mean(log_w, action).value == pytest.approx(action.mean())
    bound = log_partition_function_variational(log_w)
    assert bound.value == pytest.approx(0.5 * math.log(2.0 * math.pi))
    assert bound.error == pytest.approx(0.0, abs=1e-12)


def test_variational_bound_misses_by_the_divergence(rng: np.random.Generator) -> None:
    """E_q[log w] = ln Z - KL(q, p), and for Gaussians KL = (width^2 - 1)/2 - ln(width)."""
    log_w, _ = gaussian_flow(rng, 20000, 1.3)
    bound = log_partition_function_variational(log_w)
    exact = 0.5 * math.log(2.0 * math.pi) - 0.5 * (1.3**2 - 1.0) + math.log(1.3)
    assert abs(bound.value - exact) < 5.0 * bound.error


def test_draws_of_weight_zero() -> None:
    """They count in the normalisation of ln Z and in nothing else; their observable may be anything."""
    log_w = np.array([0.0, 0.0, -np.inf, -np.inf])
    values = np.array([1.0, 3.0, np.nan, np.inf])
    assert importance_mean(log_w, values).value == pytest.approx(2.0)
    bound = log_partition_function_variational(log_w)
    assert bound.value == -math.inf
    assert "2 of 4 draws" in bound.warnings[0]


def test_bad_input_is_refused() -> None:
    with pytest.raises(SampleShapeError):
        importance_mean(np.zeros(3), np.zeros(4))
    with pytest.raises(TooFewSamplesError):
        importance_entropy(np.zeros(1), np.zeros(1))
    with pytest.raises(NonFiniteError, match="1 non-finite"):
        importance_mean(np.zeros(3), np.array([0.0, 1.0, np.nan]))
    with pytest.raises(AnalysisError):
        log_partition_function_variational(np.zeros(1))
