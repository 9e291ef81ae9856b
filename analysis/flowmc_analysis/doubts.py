"""Signs that the weights of a flow mislead, where each error bar by itself looks fine.

Errors that come from weights know only what was drawn: a flow that misses part of the target, or draws that one weight
in a million would have corrected, give small errors around a wrong value. Three comparisons show it: the effective
sample size seen by the states against the one seen by the draws, ln Z from the draws against ln Z from the states, and
what was measured against what is known exactly. None of them is part of a judged family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flowmc_analysis.weight_analysis import WeightAnalysis
from flowmc_analysis.zscores import ZScore, z_score

__all__ = ["exact_doubts", "weight_doubts"]

_FORWARD_BELOW_REVERSE = 0.5
_LARGEST_Z_OF_LN_Z = 4.0
_LARGEST_Z_OF_EXACT = 5.0
# A perfect flow has weights, and so ln Z, without any error but rounding.
_ROUND_OFF = 1e-10


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
