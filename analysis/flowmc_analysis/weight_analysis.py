"""What the log-weights of a run say: effective sample sizes, the tail, ln Z from both sides, thermodynamics.

The draws of the flow come from every flow update, accepted or not: the draws are independent whatever the chain did.
The states are those before each flow update; every kernel of the run leaves the target invariant, so all of them count.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowmc_analysis.estimate import Estimate
from flowmc_analysis.free_energy import (
    log_partition_function,
    log_partition_function_reverse,
    log_partition_function_variational,
)
from flowmc_analysis.history import History
from flowmc_analysis.importance import importance_entropy, importance_mean
from flowmc_analysis.observables import ObservableContext
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
    ln_z_variational
        The variational lower bound of ln Z, ``E_q[log w]``, from the draws.
    action_importance
        ``<S>`` from the weighted draws; None where the run did not store the action of its proposals.
    energy_importance
        ``<S>/(beta V)``, the energy per site, from the weighted draws; None as above, or without a temperature.
    entropy_per_site
        ``(ln Z + <S>)/V`` in nats, from the weighted draws; None likewise.
    free_energy_per_site
        ``-ln Z/(beta V)`` from the draws; None without a temperature.
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
    ln_z_variational: Estimate
    action_importance: Estimate | None
    energy_importance: Estimate | None
    entropy_per_site: Estimate | None
    free_energy_per_site: Estimate | None
    tau_int_independence: float
    n_nonfinite: int
    n_offsupport: int

    @property
    def estimates(self) -> dict[str, Estimate]:
        """What the weights measure, by name: ln Z, the energy and what follows from them."""
        found = {
            "ln_z": self.ln_z,
            "ln_z_reverse": self.ln_z_reverse,
            "ln_z_variational": self.ln_z_variational,
            "action_importance": self.action_importance,
            "energy_importance": self.energy_importance,
            "entropy_per_site": self.entropy_per_site,
            "free_energy_per_site": self.free_energy_per_site,
        }
        return {name: estimate for name, estimate in found.items() if estimate is not None}


def analyze_weights(
    history: History, context: ObservableContext, s: float = 2.0, *, inverse_temperature: str = ""
) -> WeightAnalysis | None:
    """Analyse the weights of a production.

    Parameters
    ----------
    history
        The updates after thermalisation.
    context
        Lattice and couplings.
    s
        Window parameter of the Γ-method.
    inverse_temperature
        Name of the coupling beta of ``S = beta H``; thermodynamics per site are given where there is one, not zero.

    Returns
    -------
    The analysis, or None where the flow proposed nothing, or nothing finite.
    """
    draws, states = history.log_weight, history.log_weight_current
    if np.isfinite(draws).sum() < 2:
        return None
    beta, volume, action = context.couplings.get(inverse_temperature, 0.0), context.volume, history.action_proposed
    ln_z = log_partition_function(draws)
    mean_action = None if action is None else importance_mean(draws, action)
    entropy = None if action is None or not beta else importance_entropy(draws, action)
    return WeightAnalysis(
        log_weight=draws,
        log_weight_current=states,
        ess_reverse=ess_reverse(draws),
        ess_forward=ess_forward(states),
        pareto_k=pareto_k(draws),
        ln_z=ln_z,
        ln_z_reverse=log_partition_function_reverse(states, s=s),
        ln_z_variational=log_partition_function_variational(draws),
        action_importance=mean_action,
        energy_importance=_scaled(mean_action, 1.0 / (beta * volume)) if mean_action and beta else None,
        entropy_per_site=_scaled(entropy, 1.0 / volume) if entropy else None,
        free_energy_per_site=_scaled(ln_z, -1.0 / (beta * volume)) if beta else None,
        tau_int_independence=tau_int_independence(draws),
        n_nonfinite=history.n_nonfinite,
        n_offsupport=history.n_offsupport,
    )


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return dataclasses.replace(
        estimate, value=factor * estimate.value, error=abs(factor) * estimate.error, bias=factor * estimate.bias
    )
