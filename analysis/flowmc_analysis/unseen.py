r"""How much of the target the draws of a flow have never seen: states whose weight exceeds that of every draw.

Where the flow misses a mode, its weight :math:`w = e^{-S}/q` there is larger than anywhere that it draws, often by tens
of nats. The share of the chains' states with such weights is an estimate of the missed probability that needs no moment
of the weights, unlike the gap between estimates of ln Z: heavy tails of the weights do not make it void. Tails alone are
not expected to put more than a few percent of the target beyond :math:`e` times the largest weight of many draws; where
they do, importance sampling with these draws is as wrong as if a mode were missing.

The test is a binomial one: under the hypothesis that the missed probability is `TOLERATED_SHARE`, of as many independent
states as the Γ-method finds. A chain that never leaves its mode counts as one state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betainc

from flowmc_analysis.errors import TooFewSamplesError
from flowmc_analysis.gamma import gamma_method

__all__ = ["TOLERATED_SHARE", "UnseenStates", "unseen_states"]

Array = npt.NDArray[np.float64]

TOLERATED_SHARE = 0.05
"""Missed probability of the target up to which nothing is said."""
# Weights that are equal up to rounding must not count, nor those of a tail that ends a little later.
_EXCESS = 1.0


@dataclass(frozen=True)
class UnseenStates:
    """States of the chains beyond all that was drawn.

    Parameters
    ----------
    share
        Part of the states whose weight exceeds e times that of every draw.
    n_eff
        Independent states that it rests on.
    p_value
        Probability of as large a share, were the missed probability no more than `TOLERATED_SHARE`.
    """

    share: float
    n_eff: float
    p_value: float


def unseen_states(log_w: Array, log_w_current: Array) -> UnseenStates:
    """Measure the share of states that the draws of the flow have never seen the like of.

    Parameters
    ----------
    log_w
        Log-weights of the proposals, shape ``(chains, updates)``, in nats; ``-inf`` where a proposal failed.
    log_w_current
        Log-weights of the states before the update, same shape; ``+inf`` where the flow cannot go.
    """
    unseen = (log_w_current > np.max(log_w) + _EXCESS).astype(np.float64)
    share = float(unseen.mean())
    chains = unseen.shape[0]
    n_eff = float(chains)
    if np.ptp(unseen, axis=1).any():
        try:
            n_eff = min(max(gamma_method(unseen).estimate.n_eff, 1.0), float(unseen.size))
        except TooFewSamplesError:
            n_eff = float(chains)
    # The binomial tail P(K >= k) of n, for real numbers.
    count = share * n_eff
    p_value = float(betainc(count, n_eff - count + 1.0, TOLERATED_SHARE)) if count > 0.0 else 1.0
    return UnseenStates(share, n_eff, p_value)
