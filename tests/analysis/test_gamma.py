from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.signal import lfilter

from flowmc_analysis.errors import AnalysisError, NonFiniteError, SampleShapeError, TooFewSamplesError
from flowmc_analysis.gamma import gamma_method, gamma_method_derived, gamma_method_vector

with warnings.catch_warnings():  # its own dependencies' affair
    warnings.simplefilter("ignore")
    import pyerrors

__all__: list[str] = []

Array = npt.NDArray[np.float64]


def coefficient(tau_int: float) -> float:
    return (2 * tau_int - 1) / (2 * tau_int + 1)


def ar1(rng: np.random.Generator, a: float, shape: tuple[int, ...]) -> Array:
    """Stationary x_{t+1} = a x_t + noise with unit variance; tau_int = (1 + a) / (2 (1 - a))."""
    noise = rng.normal(size=shape) * math.sqrt(1 - a * a)
    noise[..., 0] /= math.sqrt(1 - a * a)
    return np.asarray(lfilter([1.0], [1.0, -a], noise, axis=-1))


def pyerrors_obs(chains: Array, **options: float) -> Any:
    """The same data in pyerrors, made to take fluctuations around the overall mean as Wolff does."""
    names = [f"e|r{i:03d}" for i in range(len(chains))]
    obs = pyerrors.Obs(list(chains - chains.mean()), names, means=list(chains.mean(axis=1)))
    obs.gamma_method(**options)
    return obs


@pytest.mark.parametrize("tau_int", [1.0, 4.5, 40.0])
@pytest.mark.parametrize("shape", [(1, 4000), (1, 4001), (8, 1000), (3, 50)])
@pytest.mark.parametrize("s", [1.5, 2.0, 4.0])
def test_agrees_with_pyerrors(rng: np.random.Generator, tau_int: float, shape: tuple[int, int], s: float) -> None:
    x = 3.0 + ar1(rng, coefficient(tau_int), shape)
    result = gamma_method(x if shape[0] > 1 else x[0], s=s)
    reference = pyerrors_obs(x, S=s)
    assert result.window == reference.e_windowsize["e"]
    assert result.w_max == shape[1] // 2
    np.testing.assert_allclose(result.estimate.value, x.mean(), rtol=1e-13)
    np.testing.assert_allclose(result.estimate.error, reference.dvalue, rtol=1e-11)
    np.testing.assert_allclose(result.estimate.tau_int, reference.e_tauint["e"], rtol=1e-11)
    np.testing.assert_allclose(result.estimate.tau_int_error, reference.e_dtauint["e"], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(result.error_of_error, reference.e_ddvalue["e"], rtol=1e-11)
    np.testing.assert_allclose(result.rho, reference.e_rho["e"][: result.rho.size], atol=1e-12)


def test_derived_observables_agree_with_pyerrors(rng: np.random.Generator) -> None:
    x = 2.0 + 0.3 * ar1(rng, 0.8, (2, 3000))
    y = x**2 + 0.1 * ar1(rng, 0.5, (2, 3000))
    primaries = np.stack([x, y])

    def obs(data: Array) -> Any:
        return pyerrors.Obs(list(data), ["e|r0", "e|r1"])

    # pyerrors takes fluctuations around each replica's mean: give both replicas the same one.
    primaries -= primaries.mean(axis=2, keepdims=True) - primaries.mean(axis=(1, 2))[:, None, None]
    a, b = obs(primaries[0]), obs(primaries[1])
    for ours, theirs, tolerance in [
        (lambda m: m[0] * m[1], a * b, 1e-10),  # central differences of a quadratic function are exact
        (lambda m: 1 - m[1] / (3 * m[0] ** 2), 1 - b / (3 * a**2), 1e-9),
        (lambda m: math.acosh(m[1]), np.arccosh(b), 1e-9),
    ]:
        theirs.gamma_method()
        result = gamma_method_derived(ours, primaries)
        np.testing.assert_allclose(result.estimate.value, theirs.value, rtol=1e-12)
        np.testing.assert_allclose(result.estimate.error, theirs.dvalue, rtol=tolerance)
        np.testing.assert_allclose(result.estimate.tau_int, theirs.e_tauint["e"], rtol=tolerance)


def test_a_linear_function_of_one_primary_gives_what_the_primary_gives(rng: np.random.Generator) -> None:
    x = ar1(rng, 0.7, (4, 500)) + 1e4  # a large mean must not cost digits
    direct = gamma_method(x)
    derived, shifted = gamma_method_vector(lambda m: np.array([m[0], 5 - 2 * m[0]]), x[None])
    np.testing.assert_allclose(derived.estimate.error, direct.estimate.error, rtol=1e-8)
    np.testing.assert_allclose(shifted.estimate.error, 2 * direct.estimate.error, rtol=1e-8)
    np.testing.assert_allclose(shifted.rho, direct.rho, atol=1e-8)


@pytest.mark.parametrize("tau_int", [0.5, 1.5, 19.5])
def test_direct_lags_and_fourier_transform_agree(rng: np.random.Generator, tau_int: float) -> None:
    x = ar1(rng, coefficient(tau_int), (3, 20000))
    window_path = gamma_method(x)
    fourier_path = gamma_method(x, tau_exp=1e-9)  # the tail option computes all lags; its tail is nothing here
    common = min(window_path.rho.size, fourier_path.rho.size)
    np.testing.assert_allclose(window_path.rho[:common], fourier_path.rho[:common], atol=1e-12)
    np.testing.assert_allclose(window_path.tau_of_window[:common], fourier_path.tau_of_window[:common], atol=1e-10)
    assert window_path.tau_of_window[window_path.window] == pytest.approx(window_path.estimate.tau_int)


@pytest.mark.parametrize("tau_int", [0.5, 4.5, 20.0])
def test_ar1_time_is_found_and_errors_cover(rng: np.random.Generator, tau_int: float) -> None:
    """300 replayed measurements: tau, its quoted error, the error of the mean and the coverage, against theory."""
    repeats, length, a = 300, max(2000, int(400 * tau_int)), coefficient(tau_int)
    data = ar1(rng, a, (repeats, length))
    results = [gamma_method(x).estimate for x in data]
    tau = np.array([r.tau_int for r in results])
    # The window truncates and white noise is clipped: a bias of a few per cent is the method's; 4 sigma for the rest.
    assert abs(tau.mean() - tau_int) < 0.04 * tau_int + 4 * tau.std() / math.sqrt(repeats)
    quoted_tau_error = np.mean([r.tau_int_error for r in results])
    if tau_int > 0.5:  # white noise is clipped at 1/2
        assert quoted_tau_error == pytest.approx(tau.std(), rel=0.35)
    # Exact variance of the mean of a finite AR(1) series
    variance = ((1 + a) / (1 - a) - 2 * a * (1 - a**length) / (length * (1 - a) ** 2)) / length
    errors = np.array([r.error for r in results])
    assert math.sqrt(np.mean(errors**2)) == pytest.approx(math.sqrt(variance), rel=0.06)
    covered = np.mean([abs(r.value) < r.error for r in results])
    assert abs(covered - 0.683) < 4 * math.sqrt(0.683 * 0.317 / repeats) + 0.01


def test_error_of_rho_is_its_scatter(rng: np.random.Generator) -> None:
    """At the lags where rho has died out too; summed over all lags, the formula would be too large by sqrt 2."""
    results = [gamma_method(x) for x in ar1(rng, coefficient(4.5), (200, 4000))]
    for lag in (1, 5, 15, 30):
        scatter = np.std([r.rho[lag] for r in results])
        quoted = np.mean([r.rho_error[lag] for r in results])
        assert quoted == pytest.approx(scatter, rel=4 / math.sqrt(2 * 200))


def test_error_of_rho_is_bartletts_sum(rng: np.random.Generator) -> None:
    result = gamma_method(ar1(rng, 0.6, (1, 2000)))
    size, rho = result.rho.size, np.zeros(4 * result.rho.size)
    rho[:size] = result.rho
    for t in range(1, size):
        terms = [rho[k + t] + rho[abs(k - t)] - 2 * rho[k] * rho[t] for k in range(1, 2 * size)]
        np.testing.assert_allclose(result.rho_error[t], math.sqrt(np.sum(np.square(terms)) / 2000), rtol=1e-9)


def test_replicas_give_the_error_of_one_long_chain(rng: np.random.Generator) -> None:
    x = ar1(rng, coefficient(3.0), (40, 500))
    together = gamma_method(x)
    exact_error = math.sqrt(2 * 3.0 / x.size)
    assert together.estimate.error == pytest.approx(exact_error, rel=0.1)
    assert together.estimate.n_eff == pytest.approx(x.size / 6.0, rel=0.2)
    assert together.replica_p_value > 1e-4
    assert not together.estimate.warnings


def test_chains_that_disagree_are_reported(rng: np.random.Generator) -> None:
    x = ar1(rng, 0.5, (4, 1000))
    x[2] += 5.0
    assert any("disagree" in w for w in gamma_method(x).estimate.warnings)
    x[2] -= 4.6
    result = gamma_method(x)
    assert result.replica_p_value < 1e-4
    assert any("disagree" in w for w in result.estimate.warnings)


def test_tail_option_finds_a_slow_mode_that_the_window_misses(rng: np.random.Generator) -> None:
    fast, slow, share = 1.5, 99.5, 0.1
    tau_int = (1 - share) * fast + share * slow
    found, with_tail, z = [], [], []
    for _ in range(12):
        x = math.sqrt(1 - share) * ar1(rng, coefficient(fast), (100000,))
        x += math.sqrt(share) * ar1(rng, coefficient(slow), (100000,))
        found.append(gamma_method(x).estimate.tau_int)
        tail = gamma_method(x, tau_exp=-1 / math.log(coefficient(slow))).estimate
        with_tail.append(tail.tau_int)
        z.append((tail.tau_int - tau_int) / tail.tau_int_error)
    assert np.mean(found) < 0.8 * tau_int
    assert abs(np.mean(with_tail) - tau_int) < 0.15 * tau_int
    assert np.std(z) < 2.5


def test_tail_option_is_harmless_on_a_single_exponential(rng: np.random.Generator) -> None:
    x = ar1(rng, coefficient(4.5), (200000,))
    result = gamma_method(x, tau_exp=4.5)
    assert abs(result.estimate.tau_int - 4.5) < 4 * result.estimate.tau_int_error
    reference = pyerrors_obs(x[None], tau_exp=4.5)  # with a larger error of rho and so an earlier window
    assert result.estimate.tau_int == pytest.approx(reference.e_tauint["e"], abs=3 * result.estimate.tau_int_error)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
@pytest.mark.parametrize("shape", [(100,), (4, 100)])
def test_constant_data_have_no_error_to_quote(value: float, shape: tuple[int, ...]) -> None:
    result = gamma_method(np.full(shape, value))
    assert result.estimate.value == pytest.approx(value)
    assert math.isnan(result.estimate.error)
    assert result.estimate.tau_int == math.inf
    assert result.estimate.n_eff == 0
    assert "never moved" in result.estimate.warnings[0]


def test_chains_that_rejected_everything_are_reported(rng: np.random.Generator) -> None:
    stuck = np.repeat(rng.normal(size=(4, 1)), 200, axis=1)  # every chain constant, each at its own start
    assert gamma_method(stuck).estimate.tau_int == math.inf
    moving = ar1(rng, 0.5, (4, 200))
    moving[1] = 0.3
    assert any("1 of 4 chains never moved" in w for w in gamma_method(moving).estimate.warnings)


def test_fluctuations_that_cancel_are_none(rng: np.random.Generator) -> None:
    x = ar1(rng, 0.5, (1, 200)) + 7.0
    result = gamma_method_derived(lambda m: m[0] / m[1], np.stack([x, x]))
    assert result.estimate.value == 1
    assert math.isnan(result.estimate.error)


def test_a_function_outside_its_domain_is_reported(rng: np.random.Generator) -> None:
    result = gamma_method_derived(lambda m: float(np.arccosh(m[0])), ar1(rng, 0.5, (1, 300)))
    assert math.isnan(result.estimate.value)
    assert math.isnan(result.estimate.error)
    assert "not finite" in result.estimate.warnings[0]


def test_too_few_effective_samples_and_short_chains_are_reported(rng: np.random.Generator) -> None:
    found = " ".join(gamma_method(ar1(rng, coefficient(60.0), (1, 600))).estimate.warnings)
    assert "effective samples" in found
    drift = np.linspace(0.0, 1.0, 400)
    assert any("tau_int long" in w for w in gamma_method(drift).estimate.warnings)


def test_anticorrelated_samples_get_an_upper_bound(rng: np.random.Generator) -> None:
    result = gamma_method(ar1(rng, -0.5, (2000,)))
    assert result.estimate.tau_int == pytest.approx(0.5, abs=2e-3)
    assert any("anticorrelated" in w for w in result.estimate.warnings)
    assert result.estimate.error > math.sqrt(2 * (1 / 6) / 2000)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_samples_are_refused(bad: float) -> None:
    x = np.arange(20.0)
    x[7] = bad
    with pytest.raises(NonFiniteError, match="1 NaN or infinite values among 20"):
        gamma_method(x)


@pytest.mark.parametrize("shape", [(0,), (4,), (100, 4), (0, 100)])
def test_too_few_samples_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TooFewSamplesError, match="5 samples or more"):
        gamma_method(np.ones(shape))


@pytest.mark.parametrize("length", [5, 6, 7, 8, 9, 11])
def test_the_shortest_chains_work_and_warn(rng: np.random.Generator, length: int) -> None:
    for options in ({}, {"tau_exp": 2.0}):
        result = gamma_method(rng.normal(size=length), **options)
        assert result.estimate.error > 0
        assert result.estimate.warnings
        assert result.rho.shape == result.rho_error.shape == result.tau_of_window.shape


def test_wrong_shapes_types_and_parameters_are_refused(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 100))
    for data in (x[None], np.float64(1.0), x + 1j, np.array(["a"] * 10)):
        with pytest.raises(SampleShapeError):
            gamma_method(data)
    with pytest.raises(SampleShapeError):
        gamma_method_derived(lambda m: m[0], x[0])
    for options in ({"s": 0.0}, {"tau_exp": -1.0}, {"n_sigma": math.nan}):
        with pytest.raises(AnalysisError, match="choose"):
            gamma_method(x, **options)
