"""Signs that weights or chains mislead, where each error bar by itself looks fine.

Errors that come from weights know only what was drawn: a flow that misses part of the target, or draws that one weight
in a million would have corrected, give small errors around a wrong value. Three comparisons show it: the effective
sample size seen by the states against the one seen by the draws, ln Z from the draws against ln Z from the states, and
what was measured against what is known exactly. None of them is part of a judged family. Nor does any of them see a log
q that is off by little, which a flow may state: that is repeated beside its numbers.

Errors that come from chains know only where these were: a chain that never leaves its topological sector looks perfect
within it. The label of the sector shows it: it hardly ever changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from flowmc_analysis.gamma import GammaResult
from flowmc_analysis.weight_analysis import WeightAnalysis
from flowmc_analysis.zscores import ZScore, z_score
from flowmc_ensembles.log_q import LogQAccuracy

__all__ = ["exact_doubts", "log_q_doubts", "sector_doubts", "weight_doubts"]

Array = npt.NDArray[np.float64]

_FORWARD_BELOW_REVERSE = 0.5
_LARGEST_Z_OF_LN_Z = 4.0
_LARGEST_Z_OF_EXACT = 5.0
_SHORTEST_CHAIN = 10.0  # in autocorrelation times of the sector
_CHAINS_DISAGREE = 1e-4
# A perfect flow has weights, and so ln Z, without any error but rounding.
_ROUND_OFF = 1e-10


def log_q_doubts(accuracy: LogQAccuracy | None) -> tuple[str, ...]:
    """Give a sentence on a flow whose log q is not exact, with what follows to first order; empty for an exact one."""
    if accuracy is None or accuracy.exact:
        return ()
    if accuracy.bound is None:
        return (f"{accuracy}; nothing bounds the bias of averages and of ln Z",)
    consequence = (
        f"averages may be biased by up to {accuracy.bound:g} standard deviations of their observable over the"
        f" configurations, and ln Z by up to {accuracy.bound:g}"
    )
    return (f"{accuracy}; {consequence}",)


def weight_doubts(weights: WeightAnalysis) -> tuple[str, ...]:
    """Give the reasons to doubt what the weights of the draws say, one sentence each; empty where there are none."""
    doubts = []
    if weights.ess_forward < _FORWARD_BELOW_REVERSE * weights.ess_reverse:
        doubts.append(
            f"forward ESS {weights.ess_forward:.3g} is far below reverse ESS {weights.ess_reverse:.3g}: the flow misses"
            " regions of the target or has lighter tails"
        )
    draws, states = weights.ln_z, weights.ln_z_reverse
    score = z_score("ln_z", draws.value, states.value, math.hypot(draws.error, states.error))
    if _is_missed(score, _LARGEST_Z_OF_LN_Z):
        doubts.append(
            f"ln Z from flow draws, {draws}, and from chain states, {states}, differ by {abs(score.z):.1f} combined"
            " errors: importance sampling cannot be trusted"
        )
    return tuple(doubts)


def sector_doubts(
    labels: Iterable[str], series: Mapping[str, Array], results: Mapping[str, GammaResult]
) -> tuple[str, ...]:
    """Say whether chains hardly leave the sector in which they are.

    Parameters
    ----------
    labels
        Observables that label sectors, of discrete values, or functions of such a label.
    series
        Their values on the configurations, ``(chains, n)``.
    results
        What the Γ-method found for them.

    Returns
    -------
    A sentence on the first label that never changed, or on which the chains disagree or are too short for its
    autocorrelation time to be known (shorter than ten of it, or without a window). Empty where there is none.
    """
    for name in labels:
        if name not in series or name not in results:
            continue
        values, result = series[name], results[name]
        changes = int(np.count_nonzero(np.diff(values, axis=1)))
        tau = result.estimate.tau_int
        if changes == 0:
            consequence = "nothing shows that other sectors were sampled with their weight"
        elif result.replica_p_value < _CHAINS_DISAGREE:
            consequence = f"the chains disagree on it (p = {result.replica_p_value:.1e})"
        elif not tau * _SHORTEST_CHAIN < values.shape[1] or result.window >= result.w_max - 1:
            consequence = f"the chains are too short to determine its autocorrelation time ({tau:.3g} or more)"
        else:
            continue
        sentence = (
            f"{name} {'may be ' if changes else ''}frozen: it changed {changes} times in {values.size} configurations of"
            f" {values.shape[0]} chains; {consequence}, and errors of all that depends on it are too small"
        )
        return (sentence,)
    return ()


def exact_doubts(scores: Sequence[ZScore]) -> tuple[str, ...]:
    """Give a sentence on the exact values that were missed by more than five errors; empty where none was."""
    missed = [score for score in scores if _is_missed(score, _LARGEST_Z_OF_EXACT)]
    if not missed:
        return ()
    names = ", ".join(f"{score.name} (z = {score.z:+.1f})" for score in missed)
    return (f"{len(missed)} of {len(scores)} exact values missed by more than {_LARGEST_Z_OF_EXACT:g} errors: {names}",)


def _is_missed(score: ZScore, largest: float) -> bool:
    """Whether a deviation is too large, rounding allowed for; an unknown error or value says nothing."""
    deviation, tolerance = abs(score.value - score.expected), _ROUND_OFF * max(1.0, abs(score.expected))
    return bool(deviation > largest * math.hypot(score.error, tolerance))
