r"""The Γ-method: statistical errors of autocorrelated Monte Carlo data.

For :math:`R` replicas (chains) of :math:`n` samples each, :math:`N = Rn`, with fluctuations :math:`\delta_i^r =
a_i^r - \bar a` around the overall mean,

.. math::

    \Gamma(t) = \frac{1}{N - Rt}\sum_r\sum_{i \le n-t}\delta_i^r\delta_{i+t}^r, \quad \rho = \Gamma/\Gamma(0), \\
    \tau(W) = \tfrac12 + \sum_{t=1}^W\rho(t), \quad
    \sigma^2 = \frac{2\tau(W)\Gamma(0)}{N}\Bigl(1 + \frac{2W+1}{N}\Bigr).

White noise has :math:`\tau = 1/2`. The automatic window is the first :math:`W` at which the noise outweighs the
truncation error: :math:`e^{-W/\tau_W} < \tau_W/\sqrt{WN}`, :math:`\tau_W = S / \ln\frac{2\tau+1}{2\tau-1}`. Below
:math:`\tau = 1/2` (anticorrelated data) the window procedure fails and 1/2 is used, an upper bound.

A slow mode of small amplitude can hide behind this window. Given an estimate of the slowest time, the tail option
adds :math:`\tau_{exp}|\rho(W^*+1)|`, where :math:`W^*` is the first lag with :math:`\rho < N_\sigma\,\delta\rho`.

The error of :math:`\rho` is Bartlett's, :math:`(\delta\rho(t))^2 = \frac1N\sum_{k\ge1}[\rho(k+t) + \rho(k-t) -
2\rho(k)\rho(t)]^2`, with :math:`\rho` taken as zero beyond about twice the window: summed over all measured lags,
the noise would add a term as large as the result.

References
----------
.. [1] U. Wolff, Comput. Phys. Commun. 156 (2004) 143, hep-lat/0306017: eqs. (42), (49) and section 3.
.. [2] S. Schaefer, R. Sommer, F. Virotta, Nucl. Phys. B 845 (2011) 93, arXiv:1009.5228 (tail).
.. [3] M. Lüscher, Comput. Phys. Commun. 165 (2005) 199, hep-lat/0409106, appendix E (error of ρ).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.special

from flowmc_analysis.autocovariance import (
    bartlett_error,
    tail_window,
    tau_of_window,
    windowed_autocovariance,
)
from flowmc_analysis.errors import AnalysisError, NonFiniteError, SampleShapeError, TooFewSamplesError
from flowmc_analysis.estimate import Estimate

__all__ = ["GammaResult", "gamma_method", "gamma_method_derived", "gamma_method_vector"]

Array = npt.NDArray[np.float64]

_MINIMAL_LENGTH = 5
_RELIABLE_N_EFF = 50
_RELIABLE_CHAIN_LENGTH = 10
_REPLICA_LEVEL = 1e-4
# Step of the central differences per naive error: truncation is O(1e-8/N^2), round-off O(1e-13 / relative error).
_STEP_PER_ERROR = 1e-2
_STEP_PER_MEAN = 1e-7


@dataclass(frozen=True)
class GammaResult:
    """What the Γ-method found.

    Parameters
    ----------
    estimate
        Value, error and integrated autocorrelation time.
    window
        Summation window ``W``, in samples.
    rho
        Normalised autocorrelation at the lags ``0 ... len(rho) - 1`` (about twice the window).
    rho_error
        One standard deviation of ``rho``, same shape.
    tau_of_window
        Integrated autocorrelation time for every window, bias-corrected, without tail; same shape.
    tau_of_window_error
        One standard deviation of ``tau_of_window``, same shape.
    w_max
        Number of lags available (half the chain length); lags 0 to ``w_max - 1`` exist.
    error_of_error
        One standard deviation of ``estimate.error``.
    replica_p_value
        Probability of chain means as scattered as these if all chains sample the same distribution; NaN for one
        chain.
    """

    estimate: Estimate
    window: int
    rho: Array
    rho_error: Array
    tau_of_window: Array
    tau_of_window_error: Array
    w_max: int
    error_of_error: float
    replica_p_value: float


def gamma_method(
    samples: npt.ArrayLike, s: float = 2.0, tau_exp: float | None = None, n_sigma: float = 1.0
) -> GammaResult:
    """Estimate the mean of autocorrelated samples, its error and the integrated autocorrelation time.

    Parameters
    ----------
    samples
        Real data of shape ``(n,)`` or ``(chains, n)``, at least five samples a chain.
    s
        Assumed ratio of the exponential and the integrated autocorrelation time in the choice of the window. Larger
        is safer and noisier.
    tau_exp
        Slowest autocorrelation time in samples. If given, the tail estimate replaces the automatic window.
    n_sigma
        Significance at which the tail is attached.

    Returns
    -------
    The result. Data in which no chain ever moves get the error NaN, an infinite ``tau_int`` and a warning.

    Raises
    ------
    SampleShapeError
        If the data are not real or have no or more than two axes.
    NonFiniteError
        If they hold NaN or infinity.
    TooFewSamplesError
        If a chain has fewer than five samples.
    AnalysisError
        If ``s``, ``tau_exp`` or ``n_sigma`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(1).normal(size=(4, 1000))
    >>> result = gamma_method(noise)
    >>> abs(result.estimate.value) < 4 * result.estimate.error, abs(result.estimate.tau_int - 0.5) < 0.1
    (True, True)
    """
    data = _as_chains(samples, axes=1)
    mean = float(data.mean())
    return _analyse(mean, data - mean, np.ptp(data, axis=1) > 0, s, tau_exp, n_sigma)


def gamma_method_derived(
    function: Callable[[Array], float],
    primaries: npt.ArrayLike,
    s: float = 2.0,
    tau_exp: float | None = None,
    n_sigma: float = 1.0,
) -> GammaResult:
    """Estimate a function of expectation values, by linear propagation of the fluctuations.

    The Γ-method is applied to the projection ``sum_k (dF/dA_k) (a_k - mean a_k)``, with central differences for the
    gradient.

    Parameters
    ----------
    function
        Maps the means of the primary observables, shape ``(k,)``, to a number. Floating-point warnings in it are
        silenced; where its result or gradient is not finite, the estimate says so.
    primaries
        Real data of shape ``(k, n)`` or ``(k, chains, n)``.
    s, tau_exp, n_sigma
        As in `gamma_method`.

    Returns
    -------
    The result; its value is the function of the means.

    Raises
    ------
    AnalysisError
        As in `gamma_method`.

    References
    ----------
    .. [1] U. Wolff, hep-lat/0306017, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(1).normal(2.0, 1.0, size=1000)
    >>> ratio = gamma_method_derived(lambda means: means[1] / means[0], np.stack([x, 3 * x]))
    >>> round(ratio.estimate.value, 12)
    3.0
    """
    return gamma_method_vector(lambda means: np.array([function(means)]), primaries, s, tau_exp, n_sigma)[0]


def gamma_method_vector(
    function: Callable[[Array], Array],
    primaries: npt.ArrayLike,
    s: float = 2.0,
    tau_exp: float | None = None,
    n_sigma: float = 1.0,
) -> tuple[GammaResult, ...]:
    """Estimate several functions of the same primary observables, as `gamma_method_derived` does one.

    Parameters
    ----------
    function
        Maps the means of the primary observables, shape ``(k,)``, to an array of shape ``(m,)``.
    primaries
        Real data of shape ``(k, n)`` or ``(k, chains, n)``.
    s, tau_exp, n_sigma
        As in `gamma_method`.

    Returns
    -------
    One result for each of the ``m`` functions.

    Raises
    ------
    AnalysisError
        As in `gamma_method`.
    """
    data = _as_chains(primaries, axes=2)
    means = data.mean(axis=(1, 2))
    values, jacobian, noise = _differentiate(function, means, data.std(axis=(1, 2)) / math.sqrt(data[0].size))
    fluctuations = data - means[:, None, None]
    moving = np.ptp(data, axis=2) > 0
    extent = np.abs(fluctuations).max(axis=(1, 2))
    results = []
    for value, gradient, gradient_noise in zip(values, jacobian, noise, strict=True):
        if not np.isfinite(value) or not np.isfinite(gradient).all():
            reason = "the function or its gradient is not finite at the measured means"
            results.append(_undetermined(float(value), data.shape[2], math.nan, reason))
            continue
        used = np.flatnonzero(gradient)
        projected = np.tensordot(gradient[used], fluctuations[used], axes=1)
        # Fluctuations that cancel up to the round-off of the gradient are none.
        significant = float(np.abs(projected).max()) > float(gradient_noise @ extent)
        results.append(_analyse(float(value), projected, moving[used].any(axis=0) & significant, s, tau_exp, n_sigma))
    return tuple(results)


def _as_chains(samples: npt.ArrayLike, axes: int) -> Array:
    """Check the data; give them the shape ``(chains, n)`` (axes = 1) or ``(k, chains, n)`` (axes = 2)."""
    raw = np.asarray(samples)
    expected = "real numbers of shape (n,) or (chains, n)" if axes == 1 else "real numbers of shape (k, [chains,] n)"
    if raw.ndim not in (axes, axes + 1) or raw.dtype.kind not in "fiub":
        raise SampleShapeError(
            got=f"an array of dtype {raw.dtype} and shape {raw.shape}",
            expected=expected,
            fix="move the sample axis last; analyse real and imaginary part apart",
        )
    data = raw.astype(np.float64, copy=False)
    if data.ndim == axes:
        data = data[..., None, :]
    if data.size == 0 or data.shape[-1] < _MINIMAL_LENGTH:
        raise TooFewSamplesError(
            got=f"samples of shape {raw.shape}",
            expected=f"at least one chain of {_MINIMAL_LENGTH} samples or more (the last axis counts samples)",
            fix="run longer chains, or check the order of the axes",
        )
    bad = int(np.count_nonzero(~np.isfinite(data)))
    if bad:
        raise NonFiniteError(
            got=f"{bad} NaN or infinite values among {data.size}",
            expected="finite samples",
            fix="find the updates that produced them; they cannot be averaged away",
        )
    return data


def _differentiate(function: Callable[[Array], Array], means: Array, errors: Array) -> tuple[Array, Array, Array]:
    """Values ``(m,)``, fourth-order Jacobian ``(m, k)`` and its round-off; constant primaries get a zero column."""
    with np.errstate(all="ignore"):
        values = np.asarray(function(means.copy()), dtype=np.float64)
        jacobian, noise = np.zeros((2, values.size, means.size))
        for k in np.flatnonzero(errors > 0):
            step = max(_STEP_PER_ERROR * errors[k], _STEP_PER_MEAN * abs(means[k]))
            slopes = []
            for multiple in (1, 2):
                up, down = means.copy(), means.copy()
                up[k] += multiple * step
                down[k] -= multiple * step
                slopes.append((np.asarray(function(up)) - np.asarray(function(down))) / (up[k] - down[k]))
            jacobian[:, k] = (4 * slopes[0] - slopes[1]) / 3
            noise[:, k] = 8 * np.finfo(np.float64).eps * np.abs(values) / step
    return values, jacobian, noise


def _undetermined(value: float, length: int, tau_int: float, reason: str) -> GammaResult:
    n_eff = 0.0 if tau_int == math.inf else math.nan
    return GammaResult(
        estimate=Estimate(value, math.nan, tau_int, math.nan, n_eff, warnings=(reason,)),
        window=0,
        rho=np.ones(1),
        rho_error=np.zeros(1),
        tau_of_window=np.full(1, tau_int),
        tau_of_window_error=np.full(1, math.nan),
        w_max=length // 2,
        error_of_error=math.nan,
        replica_p_value=math.nan,
    )


def _analyse(
    value: float,
    fluctuations: Array,
    moving: npt.NDArray[np.bool_],
    s: float,
    tau_exp: float | None,
    n_sigma: float,
) -> GammaResult:
    """Apply the Γ-method to fluctuations of shape ``(chains, n)`` with zero overall mean; ``moving`` is by chain."""
    for name, parameter in (("s", s), ("tau_exp", 1.0 if tau_exp is None else tau_exp), ("n_sigma", n_sigma)):
        if not (parameter > 0 and math.isfinite(parameter)):
            raise AnalysisError(got=f"{name} = {parameter}", expected="a positive number", fix=f"choose {name} > 0")
    chains, length = fluctuations.shape
    if not moving.any():
        reason = "every chain is constant: a chain that never moved, or an observable without fluctuations"
        return _undetermined(value, length, math.inf, reason)
    warnings: list[str] = []
    if not moving.all():
        warnings.append(f"{np.count_nonzero(~moving)} of {chains} chains never moved")

    total, w_max = chains * length, length // 2
    scale = float(np.abs(fluctuations).max())  # squares of very large or small numbers leave the floating-point range
    fluctuations = fluctuations / scale
    gamma, window, found = windowed_autocovariance(fluctuations, s, w_max, all_lags=tau_exp is not None)
    variance, rho = gamma[0], gamma / gamma[0]
    n_lags = min(w_max, 2 * window + 10)
    rho_error = bartlett_error(rho[:n_lags], total)
    if tau_exp is not None:
        window, found, rho_error = tail_window(rho, n_sigma, window, total)
        n_lags = len(rho_error)
    if not found:
        warnings.append(
            "no window found: the autocorrelation does not decay within half a chain, the error is too small"
        )
    rho = rho[:n_lags]

    unclipped_tau = tau_of_window(rho)
    raw_tau = np.maximum(unclipped_tau, 0.5)
    lags = np.arange(n_lags)
    tau_error = 2 * raw_tau * np.sqrt(np.abs(lags + 0.5 - raw_tau) / total)
    # Normalised so that white noise keeps exactly 1/2; the error below is Wolff's (49) all the same.
    tau = raw_tau * (1 + (2 * lags + 1) / total) / (1 + 1 / total)
    tau_int, tau_int_error = float(tau[window]), float(tau_error[window])
    if tau_exp is not None:
        tau_int += tau_exp * abs(float(rho[window + 1]))
        tau_int_error = math.hypot(tau_int_error, tau_exp * float(rho_error[window + 1]))
    error = scale * math.sqrt(2 * tau_int * variance * (1 + 1 / total) / total)

    n_eff = total / (2 * tau_int)
    if rho[1] < -3 / math.sqrt(total) and unclipped_tau[window] < 0.5:
        warnings.append("anticorrelated samples: tau_int is set to 1/2, the error is an upper bound")
    if n_eff < _RELIABLE_N_EFF:
        warnings.append(f"only {n_eff:.1f} effective samples: the error is itself uncertain")
    if length < _RELIABLE_CHAIN_LENGTH * tau_int:
        warnings.append(f"chains are only {length / tau_int:.1f} tau_int long: the error is probably too small")
    replica_p_value = math.nan
    if chains > 1:
        replica_p_value, trustworthy = _replica_test(fluctuations, s)
        if trustworthy and replica_p_value < _REPLICA_LEVEL:
            warnings.append(f"the chains disagree (p = {replica_p_value:.1e}): they do not sample one distribution")
    return GammaResult(
        estimate=Estimate(value, error, tau_int, tau_int_error, n_eff, warnings=tuple(warnings)),
        window=window,
        rho=rho,
        rho_error=rho_error,
        tau_of_window=tau,
        tau_of_window_error=tau_error,
        w_max=w_max,
        error_of_error=error * math.sqrt((window + 0.5) / total),
        replica_p_value=replica_p_value,
    )


def _replica_test(fluctuations: Array, s: float) -> tuple[float, bool]:
    """Probability of chain means at least as scattered, and whether the chains are long enough to trust it.

    The expected scatter comes from the fluctuations within the chains alone: those around the overall mean would hold
    the disagreement itself.
    """
    chains, length = fluctuations.shape
    means = fluctuations.mean(axis=1)
    within = fluctuations - means[:, None]
    gamma, window, found = windowed_autocovariance(within, s, length // 2, all_lags=False)
    if gamma[0] == 0:
        return 0.0, True
    tau = max(float(tau_of_window(gamma[: window + 1] / gamma[0])[-1]), 0.5)
    variance_of_mean = 2 * tau * gamma[0] / length * (1 + (2 * window + 1) / length)
    chi_squared = float(np.sum(means**2)) / variance_of_mean
    # With many chains the truncation error of the expected scatter would already be significant, hence the factor two.
    trustworthy = found and length >= 5 * _RELIABLE_CHAIN_LENGTH * tau and chi_squared > 2 * (chains - 1)
    return float(scipy.special.chdtrc(chains - 1, chi_squared)), trustworthy
