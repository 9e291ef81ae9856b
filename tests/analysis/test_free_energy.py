from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.signal import lfilter

from flowmc_analysis.errors import NonFiniteError, TooFewSamplesError, ZeroWeightError
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.exact import free_scalar_log_z
from flowmc_analysis.free_energy import log_partition_function, log_partition_function_reverse

__all__: list[str] = []

Array = npt.NDArray[np.float64]


def free_field_draws(rng: np.random.Generator, shape: tuple[int, ...], mass: float, size: int) -> Array:
    """Exact draws of the free field by FFT: each mode has the variance 1 / (2 (p^2 + m^2))."""
    p_squared = sum(4 * np.sin(np.pi * np.indices(shape)[axis] / extent) ** 2 for axis, extent in enumerate(shape))
    axes = tuple(range(1, len(shape) + 1))
    noise = np.fft.fftn(rng.normal(size=(size, *shape)), axes=axes)
    return np.asarray(np.fft.ifftn(noise / np.sqrt(2 * (p_squared + mass**2)), axes=axes).real)


def free_action(phi: Array, mass: float) -> Array:
    axes = tuple(range(1, phi.ndim))
    gradients = sum((np.roll(phi, -1, axis=axis) - phi) ** 2 for axis in axes)
    return np.asarray((gradients + mass**2 * phi**2).sum(axis=axes))


@pytest.mark.parametrize("shape", [(6,), (4, 4)])
def test_free_field_from_a_free_field_of_another_mass(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    target, flow, size = 0.9, 1.0, 20000
    log_z, log_z_flow = free_scalar_log_z(shape, target), free_scalar_log_z(shape, flow)

    def log_w(phi: Array) -> Array:
        return -free_action(phi, target) + free_action(phi, flow) + log_z_flow

    forward = log_partition_function(log_w(free_field_draws(rng, shape, flow, size)))
    reverse = log_partition_function_reverse(log_w(free_field_draws(rng, shape, target, size)))
    for estimate in (forward, reverse):
        assert abs(estimate.value - log_z) < 4 * estimate.error
        assert estimate.error < 0.01


@pytest.mark.parametrize(("sigma", "size"), [(0.5, 1000), (1.0, 100)])
def test_log_normal_weights_value_bias_and_error(rng: np.random.Generator, sigma: float, size: int) -> None:
    repeats = 4000
    estimates = [log_partition_function(log_w) for log_w in rng.normal(scale=sigma, size=(repeats, size))]
    values = np.array([e.value for e in estimates])
    biases = np.array([e.bias for e in estimates])
    relative_variance = math.expm1(sigma**2)  # 1/ESS - 1
    tolerance = 4 * values.std() / math.sqrt(repeats)
    assert abs(values.mean() - sigma**2 / 2) < tolerance
    assert abs((values + biases).mean() - sigma**2 / 2 + relative_variance / (2 * size)) < tolerance + 0.1 / size
    quoted = math.sqrt(np.mean([e.error**2 for e in estimates]))
    assert quoted == pytest.approx(values.std(), rel=0.1)
    assert values.std() == pytest.approx(math.sqrt(relative_variance / size), rel=0.1)


def test_reverse_errors_of_correlated_chains(rng: np.random.Generator) -> None:
    """log w of target samples is N(s^2, s^2): ln Z = s^2/2, here along AR(1) chains."""
    sigma, a, repeats = 0.5, 0.8, 200
    noise = rng.normal(size=(repeats, 4, 1000)) * math.sqrt(1 - a * a)
    noise[..., 0] /= math.sqrt(1 - a * a)
    chains = sigma**2 + sigma * lfilter([1.0], [1.0, -a], noise, axis=-1)
    estimates = [log_partition_function_reverse(log_w) for log_w in chains]
    z = np.array([(e.value - sigma**2 / 2) / e.error for e in estimates])
    assert abs(z.mean()) < 4 / math.sqrt(repeats)
    assert z.std() == pytest.approx(1.0, rel=4 / math.sqrt(2 * repeats))
    assert np.mean([e.tau_int for e in estimates]) > 2


def test_a_shift_of_the_weights_shifts_the_result(rng: np.random.Generator) -> None:
    log_w = rng.normal(size=(2, 500))
    for function in (log_partition_function, log_partition_function_reverse):
        plain: Estimate = function(log_w)
        shifted: Estimate = function(log_w + 3000.0)
        assert shifted.value - plain.value == pytest.approx(3000.0, abs=1e-9)
        assert shifted.error == pytest.approx(plain.error, rel=1e-9)


def test_a_perfect_flow_has_no_error() -> None:
    estimate = log_partition_function(np.full(1000, 12.5))
    assert estimate.value == pytest.approx(12.5)
    assert estimate.error == pytest.approx(0.0, abs=1e-9)
    assert not estimate.warnings


def test_zero_weights_count(rng: np.random.Generator) -> None:
    log_w = rng.normal(scale=0.1, size=4000)
    log_w[::4] = -np.inf
    estimate = log_partition_function(log_w)
    assert abs(estimate.value - (math.log(0.75) + 0.005)) < 4 * estimate.error
    # A target sample where the flow has no support has 1/w = 0, and so it counts as well.
    off_support = log_partition_function_reverse(np.where(np.isinf(log_w), np.inf, log_w))
    assert off_support.value == pytest.approx(-math.log(0.75) - 0.005, abs=4 * off_support.error)


def test_untrustworthy_weights_are_reported(rng: np.random.Generator) -> None:
    heavy = log_partition_function(-1.2 * np.log(rng.uniform(size=20000)))
    assert any("Pareto k" in w for w in heavy.warnings)
    few = log_partition_function(rng.normal(scale=2.0, size=100))
    assert any("effective samples" in w for w in few.warnings)
    single = log_partition_function([0.0, -800.0, -800.0])
    assert any("all the weight" in w for w in single.warnings)
    nowhere = log_partition_function_reverse(np.full(100, np.inf))
    assert math.isnan(nowhere.value)
    assert nowhere.warnings
    stuck = log_partition_function_reverse(np.full(100, 1.5))
    assert math.isnan(stuck.error)
    assert stuck.warnings


def test_bad_weights_are_refused() -> None:
    with pytest.raises(NonFiniteError):
        log_partition_function([0.0, math.nan])
    with pytest.raises(ZeroWeightError):
        log_partition_function([-math.inf, -math.inf])
    with pytest.raises(TooFewSamplesError):
        log_partition_function([0.0])
    with pytest.raises(NonFiniteError):
        log_partition_function_reverse(np.append(np.zeros(10), -math.inf))
