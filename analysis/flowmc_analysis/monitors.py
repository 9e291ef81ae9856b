r"""Monitors that run with production: identities whose expectation is known, judged by their z-scores.

- ``exp(-delta_H)``: :math:`\langle e^{-\Delta H}\rangle = 1` over all HMC trajectories, accepted or not, started from
  the target (Creutz [1]_). It sees a force that does not belong to the action and an integrator that is not
  volume-preserving or not reversible. Where the energy changes much (fermions near a zero of their determinant) the mean
  rests on rare trajectories: of those that lose more energy than ln of their number, the reverse ones, which contribute
  as much as these are frequent, are not seen. Its z-score is then void, and ``delta_H_symmetry`` is measured instead:
  :math:`\langle\min(1, e^{-\Delta H})\rangle = 2P(\Delta H < 0)`, bounded, which follows from the same symmetry
  :math:`p(-\Delta H) = e^{-\Delta H}p(\Delta H)`.
- ``schwinger_dyson``: :math:`\langle\sum_x\phi_x\,\partial S/\partial\phi_x\rangle = V` for a real scalar field, by
  partial integration. It sees chains that are not distributed as :math:`e^{-S}`.
- ``local_field``: :math:`\langle\sum_xh_x(s_x - \tanh h_x)\rangle = 0` for Ising spins, with :math:`h_x =
  \beta(J\sum_{y\sim x}s_y + h)`, because a spin's mean, all others given, is :math:`\tanh h_x`. It sees the same.
- ``schwinger_dyson`` of link angles: :math:`\langle\sum_l[\partial_lS_g\,\partial_lS - \partial_l^2S_g]\rangle = 0` by
  the same integration, with the slope of the gauge action :math:`S_g`, which is periodic. It sees the same.
- ``weight_ratio``: :math:`E[w(y)/w(x)] = 1` for stationary x and a fresh, independent proposal y, where
  :math:`w = e^{-S}/q`, because :math:`E_q[w] = Z` and :math:`E_p[1/w] = 1/Z`. Every flow update is such a pair: each
  kernel leaves the target invariant, so the state before any of them is stationary. It sees a wrong ``log_q`` only
  where another kernel moves the state: independence Metropolis alone, run with a log q that is not the density of its
  draws, is stationary for a wrong target with which its weights are perfectly consistent. That error is seen by
  the two identities above, and before the run by the certificate, which compares draws with their density.
- ``mode_drop``: the gap :math:`g = -\ln E_p[1/w] - \ln E_q[w]` between the two estimates of ln Z (Nicoli et al. [2]_).
  Where the draws of the flow miss a region of target probability :math:`\epsilon` that the chain visits (by HMC),
  :math:`g = -\ln(1-\epsilon) > 0`. Nobody sees a region that neither visits. Where this gap is void, the alarm still
  rests on the states with weights beyond those of all draws (`flowmc_analysis.unseen`).

Both weight monitors rest on variances that exist only if the weights have light enough tails: their z-scores are void
where the Pareto shape of the weights, or of the inverse weights, exceeds 1/2 (Vehtari et al. [3]_).

Errors are from the Γ-method with the chains as replicas. An accepted proposal is the next update's state, so that
successive ratios are anticorrelated, which the Γ-method answers with an upper bound. With :math:`u_t = w(y_t)/\bar w`
and :math:`v_t = w(x_t)^{-1}/\overline{w^{-1}}`, each minus one, the ratio is :math:`(1 + u_t)(1 + v_t)` up to a factor,
and the sum over t of :math:`u_t + v_t + u_t v_t` is, up to its ends, that of :math:`u_t + v_{t+1} + u_t v_t`, in which
the cancellation takes place within one term. The error is taken from this series, with the ends added in quadrature.

References
----------
.. [1] M. Creutz, Phys. Rev. D 38 (1988) 1228.
.. [2] K. A. Nicoli et al., Phys. Rev. D 108 (2023) 114501, arXiv:2302.14082.
.. [3] A. Vehtari et al., J. Mach. Learn. Res. 25 (2024) 72, arXiv:1507.02646.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from flowmc_analysis.errors import TooFewSamplesError
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.jsonable import json_number
from flowmc_analysis.unseen import UnseenStates
from flowmc_analysis.weights import log_mean_exp, pareto_k
from flowmc_analysis.zscores import Verdict, ZScore, judge, z_score

__all__ = [
    "FAMILY_LEVEL",
    "IDENTITIES",
    "OF_WEIGHTS",
    "Identity",
    "Monitor",
    "judge_monitors",
    "mode_drop_alarm",
    "monitor_energy_error",
    "monitor_energy_symmetry",
    "monitor_identity",
    "monitor_mode_drop",
    "monitor_weight_ratio",
]

Array = npt.NDArray[np.float64]

FAMILY_LEVEL = 1e-3
_MODE_DROP_Z = 3.09  # one-sided 1e-3
_MODE_DROP_P = 1e-3
OF_WEIGHTS = ("weight_ratio", "mode_drop")
"""Names of the monitors that rest on the weights of a flow."""

_LARGEST_PARETO_K = 0.5
# Part of an error by which the mean of exp(-ΔH) may be too small for what it cannot see.
_LARGEST_UNSEEN = 0.5
# An identity that holds row by row (a perfect flow, a tiny step) deviates by rounding, which is no noise.
_ROUND_OFF = 1e-10


@dataclass(frozen=True)
class Monitor:
    """One identity, measured.

    Parameters
    ----------
    score
        Measurement, expectation, error and z.
    identity
        The identity in a line of text.
    void
        Why the z-score means nothing, where it means nothing; such a monitor is not judged.
    """

    score: ZScore
    identity: str
    void: str = ""

    @property
    def name(self) -> str:
        """Name of the monitor."""
        return self.score.name

    def to_dict(self) -> dict[str, float | str | None]:
        """Give the fields for JSON; what is not finite becomes ``None``, ``void`` is ``None`` where z is valid."""
        return {
            "name": self.name,
            "identity": self.identity,
            "value": json_number(self.score.value),
            "expected": json_number(self.score.expected),
            "error": json_number(self.score.error),
            "z": json_number(self.score.z),
            "void": self.void or None,
        }


@dataclass(frozen=True)
class Identity:
    """A number that a run records with every configuration, and what it is on average.

    Parameters
    ----------
    monitor
        Name of the monitor.
    text
        The identity in a line.
    expected
        Expectation value on a lattice of that many sites.
    discrete
        Whether the field takes discrete values: such a chain may be right and still never show a fluctuation (spins deep
        in the ordered phase), which says nothing about the identity.
    """

    monitor: str
    text: str
    expected: Callable[[int], float]
    discrete: bool = False


IDENTITIES: Mapping[str, Identity] = MappingProxyType(
    {
        "virial": Identity("schwinger_dyson", "<Σ φ ∂S/∂φ> = V", float),
        "link_slopes": Identity("schwinger_dyson", "<Σ (∂S_g ∂S − ∂²S_g)> = 0", lambda _: 0.0),
        "local_field": Identity("local_field", "<Σ h (s − tanh h)> = 0", lambda _: 0.0, discrete=True),
    }
)
"""Identities by the name under which a run records them."""


def monitor_energy_error(delta_h: Array) -> Monitor:
    """Measure ``<exp(-delta_H)> = 1``.

    Parameters
    ----------
    delta_h
        Energy errors of all HMC trajectories, accepted or not, shape ``(chains, trajectories)``; one that is not a
        number (a trajectory that overflowed) counts as infinite.
    """
    change = np.where(np.isnan(delta_h), np.inf, delta_h)
    monitor = _mean_monitor("exp(-delta_H)", np.exp(-change), 1.0, "<exp(-ΔH)> = 1", scale=1.0)
    unseen = float(np.mean(change > math.log(change.size)))
    if not monitor.void and unseen > _LARGEST_UNSEEN * monitor.score.error:
        reason = f"it misses about {unseen:.2g}, the share of trajectories whose reverse is too rare to be among these"
        return Monitor(monitor.score, monitor.identity, reason)
    return monitor


def monitor_energy_symmetry(delta_h: Array) -> Monitor:
    """Measure ``<min(1, exp(-delta_H))> = 2 P(delta_H < 0)``, as in `monitor_energy_error`; an exact zero counts half."""
    change = np.where(np.isnan(delta_h), np.inf, delta_h)
    falls = (change < 0.0).astype(np.float64) + 0.5 * (change == 0.0)
    samples = np.exp(-np.maximum(change, 0.0)) - 2.0 * falls
    return _mean_monitor("delta_H_symmetry", samples, 0.0, "<min(1, exp(-ΔH))> = 2 P(ΔH < 0)", scale=1.0)


def monitor_identity(name: str, recorded: Array, volume: int) -> Monitor:
    """Measure an identity that was recorded with the configurations.

    Parameters
    ----------
    name
        Name in `IDENTITIES`.
    recorded
        What the run recorded, shape ``(chains, configurations)``.
    volume
        Number of lattice sites.
    """
    identity = IDENTITIES[name]
    expected = identity.expected(volume)
    monitor = _mean_monitor(identity.monitor, recorded, expected, identity.text, scale=float(volume))
    if identity.discrete and np.ptp(recorded) == 0.0:
        score = z_score(identity.monitor, monitor.score.value, expected, math.nan)
        return Monitor(score, identity.text, "it has the same value on every configuration")
    return monitor


def monitor_weight_ratio(log_w: Array, log_w_current: Array) -> Monitor:
    """Measure ``E[w(y)/w(x)] = 1`` over the flow updates.

    Parameters
    ----------
    log_w
        Log-weights of the proposals y, shape ``(chains, updates)``, in nats; ``-inf`` where a proposal failed.
    log_w_current
        Log-weights of the states x before the update, same shape; ``+inf`` where the flow cannot go.
    """
    identity = "E[w(y)/w(x)] = 1"
    # -inf - inf: a failed proposal from an unreachable state has ratio zero, which is what exp(-inf) gives.
    log_ratio = log_w - log_w_current
    log_value = log_mean_exp(log_ratio) if np.isfinite(log_ratio).any() else -math.inf
    if log_value > math.log(np.finfo(np.float64).max):
        score = z_score("weight_ratio", math.inf, 1.0, math.nan)
        return Monitor(score, identity, "the mean ratio exceeds the range of float64")
    score = z_score("weight_ratio", math.exp(log_value), 1.0, math.nan)
    return _with_weight_error(Monitor(score, identity), log_w, log_w_current, logarithm=False)


def monitor_mode_drop(log_w: Array, log_w_current: Array) -> Monitor:
    """Measure the gap between ln Z seen by the chain and ln Z seen by the draws of the flow, expected to be zero.

    Parameters
    ----------
    log_w
        Log-weights of the proposals, shape ``(chains, updates)``, in nats; ``-inf`` where a proposal failed.
    log_w_current
        Log-weights of the states before the update, same shape; ``+inf`` where the flow cannot go.
    """
    name, identity = "mode_drop", "−ln E_p[1/w] − ln E_q[w] = 0"
    if np.isinf(log_w_current).all() or np.isinf(log_w).all():
        return Monitor(z_score(name, math.inf, 0.0, math.nan), identity)
    gap = -log_mean_exp(-log_w_current) - log_mean_exp(log_w)
    return _with_weight_error(
        Monitor(z_score(name, gap, 0.0, math.nan), identity), log_w, log_w_current, logarithm=True
    )


def mode_drop_alarm(monitors: Iterable[Monitor], unseen: UnseenStates | None) -> bool:
    """Whether states see target probability where the draws of a flow see none (one-sided, 1e-3).

    By the gap between the two estimates of ln Z where its error is known, and by the states beyond all draws.

    Parameters
    ----------
    monitors
        Monitors of a run; those of `monitor_mode_drop` count.
    unseen
        The states beyond all draws, if they were counted.
    """
    gap = any(m.name == "mode_drop" and not m.void and not m.score.z <= _MODE_DROP_Z for m in monitors)
    return gap or (unseen is not None and unseen.p_value < _MODE_DROP_P)


def judge_monitors(monitors: tuple[Monitor, ...], level: float = FAMILY_LEVEL) -> Verdict | None:
    """Judge the monitors that are not void as one family.

    Parameters
    ----------
    monitors
        The family.
    level
        False-alarm rate of the whole family.

    Returns
    -------
    The verdict, or None where there is nothing to judge.
    """
    scores = [monitor.score for monitor in monitors if not monitor.void]
    return judge(scores, level=level) if scores else None


def _mean_monitor(name: str, samples: Array, expected: float, identity: str, scale: float) -> Monitor:
    value = float(samples.mean())
    try:
        error = _standard_error(samples, scale)
    except TooFewSamplesError as reason:
        return Monitor(z_score(name, value, expected, math.nan), identity, f"too few samples: {reason.got}")
    return Monitor(z_score(name, value, expected, error), identity)


def _standard_error(samples: Array, scale: float) -> float:
    statistical = 0.0 if np.ptp(samples) == 0.0 else gamma_method(samples).estimate.error
    return math.hypot(statistical, _ROUND_OFF * scale)


def _with_weight_error(monitor: Monitor, log_w: Array, log_w_current: Array, *, logarithm: bool) -> Monitor:
    """Add the error of the mean ratio, or of its logarithm, as described at the top."""
    if np.isinf(log_w).all() or np.isinf(log_w_current).all():
        return monitor
    log_z, log_inverse = log_mean_exp(log_w), log_mean_exp(-log_w_current)
    u, v = np.exp(log_w - log_z) - 1.0, np.exp(-log_w_current - log_inverse) - 1.0
    series = u[:, :-1] + v[:, 1:]
    if not logarithm:  # to first order, the logarithm is free of the product
        series = series + (u * v)[:, :-1]
    try:
        relative = _standard_error(series, 1.0)
    except TooFewSamplesError as reason:
        return Monitor(monitor.score, monitor.identity, f"too few samples: {reason.got}")
    chains, n = log_w.shape
    ends = math.sqrt((float(np.var(u)) + float(np.var(v))) / chains) / n
    error = math.hypot(relative, ends) * (1.0 if logarithm else math.exp(log_z + log_inverse))
    score = z_score(monitor.name, monitor.score.value, monitor.score.expected, error)
    return Monitor(score, monitor.identity, _tail_void(log_w, log_w_current))


def _tail_void(log_w: Array, log_w_current: Array) -> str:
    reachable = log_w_current[np.isfinite(log_w_current)]
    for what, log_weights in (("weights of the draws", log_w), ("inverse weights of the states", -reachable)):
        k = pareto_k(log_weights)
        if not k <= _LARGEST_PARETO_K:
            return f"Pareto k = {k:.2f} of the {what}: their variance may not exist"
    return ""
