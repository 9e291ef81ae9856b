r"""Importance weights of a flow: effective sample sizes and the autocorrelation of the independence chain they imply.

A flow :math:`q` proposes for the target :math:`p = e^{-S}/Z`; weights are :math:`w = e^{-S}/q`, given as their
logarithms (a log-weight of :math:`-\infty`, a proposal outside the support of the target or a non-finite one, is a
weight of zero).

**Independence Metropolis.** From a state of weight :math:`w` a proposal is accepted with probability :math:`a(w) =
E_q[\min(1, w'/w)]`. The n-step kernel is :math:`P^n = T_n(\max(w, w'))\,p(dw') + \lambda^n\delta` with
:math:`\lambda = 1 - a` [3]_, and for normalised weights :math:`\sum_{n\ge1}T_n(v) = \int_v^\infty du/(u\,a(u))^2`.
Hence, in the 0.5 convention,

.. math::

    \tau_{int}(O) = \tfrac12 + \frac{E_p[f^2\lambda/a] + \int_0^\infty G(v)^2/(v\,a(v))^2\,dv}
    {\mathrm{Var}_p(O)}, \qquad
    f = O - \langle O\rangle, \quad G(v) = E_p[f\,1(w \le v)] .

For an observable whose mean and variance do not depend on the weight this is :math:`E_p[1/a] - \tfrac12`, the sum
over the probabilities of :math:`n` rejections in a row [1]_. Observables that know the weight, like the action, can
be a few times slower.

On :math:`N` draws these are the exact results for the chain that proposes from the draws themselves, uniformly.
They approach those of the flow from below as :math:`N` grows, slowly where the weights have heavy tails: see
`pareto_k`.

References
----------
.. [1] M. Albergo, G. Kanwar, P. Shanahan, Phys. Rev. D 100 (2019) 034515, arXiv:1904.12072.
.. [2] K. Nicoli et al., arXiv:2302.14082 (mode dropping, and how samples of the target reveal it).
.. [3] R. Smith, L. Tierney, Exact transition probabilities for the independence Metropolis sampler (1996);
   J. Liu, Stat. Comput. 6 (1996) 113.
.. [4] A. Vehtari et al., Pareto smoothed importance sampling, arXiv:1507.02646;
   J. Zhang, M. Stephens, Technometrics 51 (2009) 316.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flowmc_analysis.errors import NonFiniteError, SampleShapeError, TooFewSamplesError, ZeroWeightError

__all__ = [
    "acceptance_independence",
    "check_log_weights",
    "ess_forward",
    "ess_reverse",
    "log_mean_exp",
    "pareto_k",
    "tau_int_independence",
    "tau_int_independence_observable",
]

Array = npt.NDArray[np.float64]

# Zhang and Stephens' prior scale and the weak prior on k of Vehtari et al. (ten observations of k = 1/2).
_GRID_SCALE = 3.0
_GRID_POINTS = 30
_PRIOR_OBSERVATIONS = 10
_PRIOR_K = 0.5
_MINIMAL_TAIL = 5


def check_log_weights(log_w: npt.ArrayLike, *, p_samples: bool = False) -> Array:
    """Check log-weights and flatten them.

    Parameters
    ----------
    log_w
        Log-weights of any shape.
    p_samples
        Whether they belong to samples of the target. Those may have ``+inf`` (the flow cannot go there) but not
        ``-inf``; for samples of the flow it is the other way round.

    Returns
    -------
    The same numbers, float64, shape ``(N,)``.

    Raises
    ------
    SampleShapeError
        If they are not real numbers.
    TooFewSamplesError
        If there are none.
    NonFiniteError
        If one is NaN or the infinity that is not legal.
    ZeroWeightError
        If all weights of flow samples are zero.
    """
    raw = np.asarray(log_w)
    if raw.dtype.kind not in "fiu":
        raise SampleShapeError(
            got=f"dtype {raw.dtype}", expected="real log-weights", fix="pass log |w| and keep the sign apart"
        )
    flat = raw.astype(np.float64).ravel()
    if flat.size == 0:
        raise TooFewSamplesError(got="no log-weights", expected="at least one", fix="draw from the flow first")
    legal, illegal = ("+inf", -math.inf) if p_samples else ("-inf", math.inf)
    bad = int(np.count_nonzero(np.isnan(flat) | (flat == illegal)))
    if bad:
        raise NonFiniteError(
            got=f"{bad} of {flat.size} log-weights NaN or {illegal}",
            expected=f"finite log-weights or {legal}",
            fix="find the configurations with a non-finite action or log_q; a failed proposal has log-weight -inf",
        )
    if not p_samples and np.max(flat) == -math.inf:
        raise ZeroWeightError(
            got=f"{flat.size} log-weights, all -inf",
            expected="at least one configuration of non-zero weight",
            fix="the flow never hits the support of the target: check the sign of log_q and the flow's certificate",
        )
    return flat


def log_mean_exp(log_w: npt.ArrayLike) -> float:
    """Logarithm of the mean weight, ``ln (1/N) sum exp(log_w)``, without overflow.

    Examples
    --------
    >>> log_mean_exp([1000.0, 1000.0])
    1000.0
    """
    flat = check_log_weights(log_w)
    top = float(flat.max())
    return top + math.log(float(np.mean(np.exp(flat - top))))


def ess_reverse(log_w: npt.ArrayLike) -> float:
    """Effective fraction of flow samples, ``(sum w)^2 / (N sum w^2)``, Kish.

    It lies between ``1/N`` and 1. It cannot see modes that the flow misses and is too large where N is small; compare
    it with `ess_forward`.

    Parameters
    ----------
    log_w
        Log-weights of samples of the flow, any shape.

    Examples
    --------
    >>> import numpy as np
    >>> ess_reverse([0.0, 0.0, -np.inf, -np.inf])
    0.5
    """
    flat = check_log_weights(log_w)
    w = np.exp(flat - flat.max())
    return float(np.sum(w) ** 2 / (w.size * np.sum(w**2)))


def ess_forward(log_w_of_p_samples: npt.ArrayLike, log_w_of_q_samples: npt.ArrayLike | None = None) -> float:
    """Effective fraction of flow samples as seen by samples of the target, ``Z / E_p[w]``.

    A flow that misses a mode has a forward value far below the reverse one: the mode-drop alarm.

    Parameters
    ----------
    log_w_of_p_samples
        Log-weights of samples of the target (a stationary chain), any shape; ``+inf`` where the flow has no support,
        which makes the result zero.
    log_w_of_q_samples
        Log-weights of samples of the flow, from which Z is taken. Without them ``Z = 1/E_p[1/w]``, which is blind to
        regions that neither set of samples has visited.
    """
    flat = check_log_weights(log_w_of_p_samples, p_samples=True)
    if flat.max() == math.inf:
        return 0.0
    log_z = -log_mean_exp(-flat) if log_w_of_q_samples is None else log_mean_exp(log_w_of_q_samples)
    return math.exp(log_z - log_mean_exp(flat))


def acceptance_independence(log_w: npt.ArrayLike) -> float:
    """Mean acceptance of the stationary independence chain, ``E_p E_q min(1, w'/w)``.

    Parameters
    ----------
    log_w
        Log-weights of at least two samples of the flow, any shape.

    Notes
    -----
    Over pairs of different draws the mean of ``min(w, w')`` is ``2 sum_i (N - i) w_i / (N (N - 1))`` with sorted
    weights.
    """
    flat = check_log_weights(log_w)
    if flat.size < 2:
        raise TooFewSamplesError(got="one log-weight", expected="two or more", fix="draw more from the flow")
    w = np.exp(np.sort(flat) - flat.max())
    above = np.arange(w.size - 1, -1, -1)
    return float(2.0 * np.sum(above * w) / ((w.size - 1) * np.sum(w)))


def tau_int_independence(log_w: npt.ArrayLike) -> float:
    """Integrated autocorrelation time of the independence chain for an observable that ignores the weight.

    ``E_p[1/a] - 1/2``, in updates, 0.5 convention.

    Parameters
    ----------
    log_w
        Log-weights of samples of the flow, any shape.

    References
    ----------
    .. [1] arXiv:1904.12072: rho(n) is the probability of n rejections in a row.

    Examples
    --------
    >>> tau_int_independence([2.0, 2.0, 2.0])
    0.5
    """
    w = np.sort(_normalised_weights(check_log_weights(log_w)))
    w = w[w > 0]
    # a = D/(N w) with D below; dropped zero weights lie under every positive one and add nothing to it.
    denominator = np.cumsum(w) + np.arange(w.size - 1, -1, -1) * w
    return float(np.sum(w**2 / denominator)) - 0.5


def tau_int_independence_observable(log_w: npt.ArrayLike, observable: npt.ArrayLike) -> float:
    """Integrated autocorrelation time of an observable in the independence chain, in updates, 0.5 convention.

    Exact for the chain that proposes uniformly from the given draws; O(N log N). NaN for an observable without
    variance under the reweighted draws.

    Parameters
    ----------
    log_w
        Log-weights of samples of the flow, any shape.
    observable
        The observable at the same samples, same shape; may be non-finite only where the weight is zero.

    Raises
    ------
    SampleShapeError
        If the shapes differ.
    NonFiniteError
        If the observable is not finite at a sample of non-zero weight.
    """
    flat = check_log_weights(log_w)
    values = np.asarray(observable, dtype=np.float64)
    if values.shape != np.shape(log_w):
        raise SampleShapeError(
            got=f"observable of shape {values.shape}, log-weights of shape {np.shape(log_w)}",
            expected="one value of the observable for each log-weight",
            fix="measure the observable on the flow's proposals, rejected ones included",
        )
    w = _normalised_weights(flat)
    order = np.argsort(w, kind="stable")
    order = order[w[order] > 0]
    w, f = w[order], values.ravel()[order]
    if not np.isfinite(f).all():
        raise NonFiniteError(
            got=f"{int(np.count_nonzero(~np.isfinite(f)))} non-finite values of the observable",
            expected="finite values wherever the weight is not zero",
            fix="give non-finite configurations the log-weight -inf",
        )
    probability = w / flat.size
    f = f - np.sum(probability * f)
    variance = float(np.sum(probability * f**2))
    if np.ptp(f) == 0:
        return math.nan
    # With D(v) = sum_{w_j <= v} w_j + v #{w_j > v} = N v a(v), linear and continuous between neighbouring weights:
    denominator = np.cumsum(w) + np.arange(w.size - 1, -1, -1) * w
    acceptance = denominator / (flat.size * w)
    rejected = float(np.sum(probability * f**2 * (1.0 - acceptance) / acceptance))
    moments = np.cumsum(probability * f)[:-1]
    # Each quotient stays of order one where the weights are tiny.
    moved = float(np.sum((moments / denominator[:-1]) * (moments / denominator[1:]) * np.diff(w))) * flat.size**2
    return 0.5 + (rejected + moved) / variance


def pareto_k(log_w: npt.ArrayLike) -> float:
    """Shape of the generalised Pareto tail of the weights.

    The weights have finite moments up to order ``1/k``: above 0.5 their variance is infinite (no central limit
    theorem for reweighting), above 0.7 estimates from any practical number of samples are unreliable. NaN for too
    few weights.

    Parameters
    ----------
    log_w
        Log-weights of samples of the flow, any shape.

    Notes
    -----
    The tail are the ``min(N/5, 3 sqrt N)`` largest weights; the fit is Zhang and Stephens' with the weak prior of
    [1]_.

    References
    ----------
    .. [1] A. Vehtari et al., arXiv:1507.02646; J. Zhang, M. Stephens, Technometrics 51 (2009) 316.
    """
    flat = np.sort(check_log_weights(log_w))
    tail = math.ceil(min(0.2 * flat.size, 3 * math.sqrt(flat.size)))
    if tail < _MINIMAL_TAIL:
        return math.nan
    top = np.exp(flat[-tail - 1 :] - flat[-1])
    exceedances = top[1:] - top[0]
    if exceedances[-1] == 0:  # equal weights: no tail at all
        return -math.inf
    return _fit_pareto(exceedances[exceedances > 0])


def _fit_pareto(x: Array) -> float:
    """Zhang-Stephens estimate of the shape k from ascending positive exceedances."""
    size = x.size
    if size < _MINIMAL_TAIL:
        return math.nan
    points = _GRID_POINTS + int(math.sqrt(size))
    grid = 1.0 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    b = grid / (_GRID_SCALE * x[int(size / 4 + 0.5) - 1]) + 1.0 / x[-1]
    k = np.mean(np.log1p(-b[:, None] * x), axis=1)
    log_likelihood = size * (np.log(-b / k) - k - 1.0)
    posterior = np.exp(log_likelihood - log_likelihood.max())
    b_mean = float(np.sum(b * posterior) / np.sum(posterior))
    shape = float(np.mean(np.log1p(-b_mean * x)))
    return (size * shape + _PRIOR_OBSERVATIONS * _PRIOR_K) / (size + _PRIOR_OBSERVATIONS)


def _normalised_weights(flat: Array) -> Array:
    w = np.exp(flat - flat.max())
    return np.asarray(w / w.mean(), dtype=np.float64)
