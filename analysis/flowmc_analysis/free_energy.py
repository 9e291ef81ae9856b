r"""Free energies: the logarithm of the partition function from importance weights.

With :math:`w = e^{-S}/q` the two sides are

.. math::

    Z = E_q[w] \quad\text{(forward, samples of the flow)}, \qquad
    1/Z = E_p[1/w] \quad\text{(reverse, samples of the target)} .

The logarithm of a mean is biased. Forward, to leading order, the variance and the bias of :math:`\ln\hat Z` are
:math:`(1/ESS - 1)/N` and minus half of that, with the fraction ESS of Kish; the jackknife removes the bias. The
reverse estimator is high by half its squared error. The free energy is :math:`F = -\ln Z`. By Jensen's inequality

.. math::  E_q[\ln w] \le \ln Z ,

with equality for a perfect flow: the variational bound, which has no bias and no heavy tails.

Both see only what is sampled: a mode the flow misses is missing from the forward value, and where the flow's mass
is not covered by the target's samples the reverse one is wrong. Their agreement is a check that both are right.

References
----------
.. [1] K. Nicoli et al., Phys. Rev. E 101 (2020) 023304, arXiv:1910.13496.
.. [2] K. Nicoli et al., Phys. Rev. Lett. 126 (2021) 032001, arXiv:2007.07115.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flowmc_analysis.errors import TooFewSamplesError
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.weights import check_log_weights, ess_reverse, log_mean_exp, pareto_k

__all__ = ["log_partition_function", "log_partition_function_reverse", "log_partition_function_variational"]

_RELIABLE_N_EFF = 100
_RELIABLE_PARETO_K = 0.7
_TOLERATED_ERROR_RATIO = 1.25


def log_partition_function(log_w: npt.ArrayLike) -> Estimate:
    """Estimate ``ln Z`` from independent samples of the flow.

    Parameters
    ----------
    log_w
        Log-weights ``-S - log_q`` of independent proposals, any shape, at least two; ``-inf`` counts as weight zero.

    Returns
    -------
    ``ln Z`` with the jackknife bias removed, the error ``sqrt((1/ESS - 1)/(N - 1))`` and ``n_eff = N ESS``. It
    warns where the jackknife error is a quarter larger or smaller, where few weights dominate, and where the
    weights' tail is heavy.

    Raises
    ------
    AnalysisError
        As in `check_log_weights`, or for fewer than two.

    Examples
    --------
    >>> import numpy as np
    >>> log_w = np.random.default_rng(3).normal(2.0, 1.0, size=10000)
    >>> estimate = log_partition_function(log_w)  # exactly 2 + 1/2
    >>> abs(estimate.value - 2.5) < 4 * estimate.error
    True
    """
    flat = check_log_weights(log_w)
    size = flat.size
    if size < 2:
        raise TooFewSamplesError(got="one log-weight", expected="two or more", fix="draw more from the flow")
    plain = log_mean_exp(flat)
    fraction = ess_reverse(flat)
    # ln of the means without one sample each, relative to the full one; a zero weight leaves a larger mean.
    share = np.exp(flat - plain) / size
    with np.errstate(divide="ignore"):
        without_one = np.log1p(-np.minimum(share, 1.0)) + math.log(size / (size - 1))
    warnings: list[str] = []
    error = math.sqrt(max(1.0 / fraction - 1.0, 0.0) / (size - 1))
    if np.isfinite(without_one).all():
        bias = float((size - 1) * np.mean(without_one))
        jackknife_error = math.sqrt((size - 1) * float(np.var(without_one)))
        if error > 0 and not 1 / _TOLERATED_ERROR_RATIO < jackknife_error / error < _TOLERATED_ERROR_RATIO:
            warnings.append(
                f"jackknife error {jackknife_error:.2g} against {error:.2g}: a few samples carry the result"
            )
    else:
        bias = 0.0
        warnings.append("one sample carries all the weight: the bias is unknown")
    if size * fraction < _RELIABLE_N_EFF:
        warnings.append(f"only {size * fraction:.1f} effective samples: the error is itself uncertain")
    tail = pareto_k(flat)
    if tail > _RELIABLE_PARETO_K:
        warnings.append(
            f"Pareto k = {tail:.2f} > {_RELIABLE_PARETO_K}: heavy-tailed weights, the error cannot be trusted"
        )
    return Estimate(plain - bias, error, 0.5, 0.0, size * fraction, bias, tuple(warnings))


def log_partition_function_reverse(
    log_w: npt.ArrayLike, s: float = 2.0, tau_exp: float | None = None, n_sigma: float = 1.0
) -> Estimate:
    """Estimate ``ln Z = -ln E_p[1/w]`` from stationary chains of the target.

    Parameters
    ----------
    log_w
        Log-weights ``-S - log_q`` of the chains' states, shape ``(n,)`` or ``(chains, n)``; ``+inf`` where the flow
        has no support.
    s, tau_exp, n_sigma
        As in `gamma_method`.

    Returns
    -------
    ``ln Z``, its error and ``tau_int`` from the Γ-method on ``1/w``, bias removed to leading order.

    Raises
    ------
    AnalysisError
        As in `check_log_weights` and `gamma_method`.
    """
    flat = check_log_weights(log_w, p_samples=True)
    log_inverse = -flat.reshape(np.shape(log_w))
    top = float(log_inverse.max())
    if top == -math.inf:
        reason = "the flow has no support at any of the samples"
        return Estimate(math.nan, math.nan, warnings=(reason,))
    inverse = gamma_method(np.exp(log_inverse - top), s, tau_exp, n_sigma).estimate
    error = inverse.error / inverse.value
    bias = 0.5 * error**2 if math.isfinite(error) else 0.0
    value = -top - math.log(inverse.value) - bias
    warnings = list(inverse.warnings)
    tail = pareto_k(np.maximum(log_inverse, np.finfo(np.float64).min))
    if tail > _RELIABLE_PARETO_K:
        warnings.append(
            f"Pareto k = {tail:.2f} > {_RELIABLE_PARETO_K} of 1/w: the flow's tails are wider than the samples'"
        )
    return Estimate(value, error, inverse.tau_int, inverse.tau_int_error, inverse.n_eff, bias, tuple(warnings))


def log_partition_function_variational(log_w: npt.ArrayLike) -> Estimate:
    """Estimate the variational lower bound ``E_q[log w] <= ln Z`` from independent samples of the flow.

    Parameters
    ----------
    log_w
        Log-weights ``-S - log_q`` of independent proposals, any shape, at least two.

    Returns
    -------
    The bound with its standard error; ``-inf``, with a warning, where a proposal has weight zero.

    Raises
    ------
    AnalysisError
        As in `check_log_weights`, or for fewer than two.

    Examples
    --------
    >>> print(log_partition_function_variational([1.0, 1.0, 4.0, 4.0]))
    2.50(87)
    """
    flat = check_log_weights(log_w)
    if flat.size < 2:
        raise TooFewSamplesError(got="one log-weight", expected="two or more", fix="draw more from the flow")
    empty = int(np.count_nonzero(np.isneginf(flat)))
    if empty:
        reason = f"{empty} of {flat.size} draws have weight zero: the variational bound is empty"
        return Estimate(-math.inf, math.nan, warnings=(reason,))
    error = math.sqrt(float(np.var(flat)) / (flat.size - 1))
    return Estimate(float(flat.mean()), error, 0.5, 0.0, float(flat.size))
