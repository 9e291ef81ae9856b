r"""Neural importance sampling: expectation values and thermodynamics from the weights of a flow's independent draws.

With :math:`w = e^{-S}/q`, :math:`\hat w = w/E_q[w]`, and draws of the flow,

.. math::

    \langle O\rangle = E_q[\hat w\,O], \qquad \ln Z = \ln E_q[w], \qquad s = (\ln Z + \langle S\rangle)/V, \qquad
    f = -\ln Z/(\beta V).

Errors are those of the delta method. To first order one draw contributes :math:`\hat w - 1` to the fluctuation of ln Z
and :math:`\hat w(O - \langle O\rangle)` to that of :math:`\langle O\rangle`; the two are correlated, strongly so for
:math:`O = S`, and the error of the entropy comes from their sum, draw by draw. The bias of the ratio is
:math:`-E_q[\hat w^2(O - \langle O\rangle)]/N` to leading order and is removed, as that of ln Z is.

References
----------
.. [1] K. Nicoli et al., Phys. Rev. E 101 (2020) 023304, arXiv:1910.13496.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from flowmc_analysis.errors import NonFiniteError, SampleShapeError, TooFewSamplesError
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.free_energy import log_partition_function
from flowmc_analysis.weights import check_log_weights, ess_reverse, log_mean_exp

__all__ = ["importance_entropy", "importance_mean"]

Array = npt.NDArray[np.float64]


def importance_mean(log_w: npt.ArrayLike, values: npt.ArrayLike) -> Estimate:
    """Estimate the expectation value of an observable under the target from independent draws of the flow.

    Parameters
    ----------
    log_w
        Log-weights ``-S - log_q`` of independent proposals, any shape, at least two; ``-inf`` counts as weight zero.
    values
        The observable at the same proposals, same shape; may be non-finite only where the weight is zero.

    Returns
    -------
    The mean, its bias removed to leading order, with the error of the delta method, ``n_eff = N ESS``, and the warnings
    of `log_partition_function` about the weights.

    Raises
    ------
    AnalysisError
        As in `check_log_weights`, for fewer than two, for shapes that differ, or where the observable is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(5).normal(size=10000)
    >>> estimate = importance_mean(0.5 * x, x)  # the target is a Gaussian around 1/2
    >>> abs(estimate.value - 0.5) < 4 * estimate.error
    True
    """
    w, used, fraction = _normalised(log_w, values)
    return replace(_mean(w, used, fraction), warnings=log_partition_function(log_w).warnings)


def importance_entropy(log_w: npt.ArrayLike, action: npt.ArrayLike) -> Estimate:
    """Estimate the entropy ``ln Z + <S>`` of the target from independent draws of the flow.

    Parameters
    ----------
    log_w
        Log-weights ``-S - log_q`` of independent proposals, any shape, at least two; ``-inf`` counts as weight zero.
    action
        Action S of the same proposals, same shape; may be non-finite only where the weight is zero.

    Returns
    -------
    The entropy of the whole lattice in nats; its error has the covariance of ln Z and ``<S>``.

    Raises
    ------
    AnalysisError
        As in `importance_mean`.
    """
    w, used, fraction = _normalised(log_w, action)
    log_z, mean = log_partition_function(log_w), _mean(w, used, fraction)
    error = _standard_error(w - 1.0 + w * (used - np.mean(w * used)))
    bias = log_z.bias + mean.bias
    return Estimate(log_z.value + mean.value, error, 0.5, 0.0, mean.n_eff, bias, log_z.warnings)


def _normalised(log_w: npt.ArrayLike, values: npt.ArrayLike) -> tuple[Array, Array, float]:
    """Weights of mean one, the values (zero where the weight is), and the effective fraction."""
    flat = check_log_weights(log_w)
    raw = np.asarray(values, dtype=np.float64)
    if raw.shape != np.shape(log_w):
        raise SampleShapeError(
            got=f"an observable of shape {raw.shape}, log-weights of shape {np.shape(log_w)}",
            expected="one value of the observable for each log-weight",
            fix="measure the observable on the flow's proposals, rejected ones included",
        )
    if flat.size < 2:
        raise TooFewSamplesError(got="one log-weight", expected="two or more", fix="draw more from the flow")
    w = np.exp(flat - log_mean_exp(flat))
    used = np.where(np.isneginf(flat), 0.0, raw.ravel())
    bad = int(np.count_nonzero(~np.isfinite(used)))
    if bad:
        raise NonFiniteError(
            got=f"{bad} non-finite values of the observable",
            expected="finite values wherever the weight is not zero",
            fix="give non-finite configurations the log-weight -inf",
        )
    return w, used, ess_reverse(flat)


def _mean(w: Array, values: Array, fraction: float) -> Estimate:
    plain = float(np.mean(w * values))
    fluctuation = w * (values - plain)
    bias = -float(np.mean(w * fluctuation)) / w.size
    return Estimate(plain - bias, _standard_error(fluctuation), 0.5, 0.0, w.size * fraction, bias)


def _standard_error(fluctuation: Array) -> float:
    """Return the standard error of a mean of independent terms."""
    return math.sqrt(float(np.var(fluctuation)) / (fluctuation.size - 1))
