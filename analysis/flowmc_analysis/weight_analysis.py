"""What the log-weights of a run say: effective sample sizes, the tail, ln Z from both sides.

The draws of the flow come from every flow update, accepted or not: the draws are independent whatever the chain did.
The states are those before each flow update; every kernel of the run leaves the target invariant, so all of them count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowmc_analysis.estimate import Estimate
from flowmc_analysis.free_energy import log_partition_function, log_partition_function_reverse
from flowmc_analysis.history import History
from flowmc_analysis.weights import ess_forward, ess_reverse, pareto_k, tau_int_independence

__all__ = ["WeightAnalysis", "analyze_weights"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WeightAnalysis:
    """Importance weights of a run with a flow.

    Parameters
    ----------
    log_weight
        ``-S - log_q`` of the flow's proposals in nats, shape ``(chains, updates)``; ``-inf`` for failed ones.
    log_weight_current
        The same of the states before each flow update.
    ess_reverse
        Effective fraction of the draws, seen by the draws themselves; blind to modes they miss.
    ess_forward
        Effective fraction of the draws, seen by the states of the chains.
    pareto_k
        Shape of the tail of the weights of the draws.
    ln_z
        Logarithm of the partition function from the draws, bias removed.
    ln_z_reverse
        The same from the states, by the Γ-method on ``1/w``; ``tau_int`` in flow updates.
    tau_int_independence
        Autocorrelation time, in updates, of a chain of flow proposals alone, for observables that ignore the weight.
    n_nonfinite
        Number of failed proposals.
    n_offsupport
        Number of states that the flow cannot reach.
    """

    log_weight: Array
    log_weight_current: Array
    ess_reverse: float
    ess_forward: float
    pareto_k: float
    ln_z: Estimate
    ln_z_reverse: Estimate
    tau_int_independence: float
    n_nonfinite: int
    n_offsupport: int


def analyze_weights(history: History, s: float = 2.0) -> WeightAnalysis | None:
    """Analyse the weights of a production.

    Parameters
    ----------
    history
        The updates after thermalisation.
    s
        Window parameter of the Γ-method.

    Returns
    -------
    The analysis, or None where the flow proposed nothing, or nothing finite.
    """
    draws, states = history.log_weight, history.log_weight_current
    if np.isfinite(draws).sum() < 2:
        return None
    return WeightAnalysis(
        log_weight=draws,
        log_weight_current=states,
        ess_reverse=ess_reverse(draws),
        ess_forward=ess_forward(states),
        pareto_k=pareto_k(draws),
        ln_z=log_partition_function(draws),
        ln_z_reverse=log_partition_function_reverse(states, s=s),
        tau_int_independence=tau_int_independence(draws),
        n_nonfinite=history.n_nonfinite,
        n_offsupport=history.n_offsupport,
    )
