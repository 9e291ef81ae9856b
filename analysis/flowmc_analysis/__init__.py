"""Analysis of Markov-chain data: errors, autocorrelation, weights, free energies, observables, exact results.

This package's top level holds what works on arrays and needs NumPy and SciPy only. What reads ensembles, draws or
exports is imported from its own module: `flowmc_analysis.ensemble`, `flowmc_analysis.arviz_export`,
`flowmc_analysis.plots`, `flowmc_analysis.report`. Everything is in lattice units; ``tau_int`` is in the convention
in which white noise has 1/2.
"""

from __future__ import annotations

from flowmc_analysis.errors import AnalysisError, NonFiniteError, SampleShapeError, TooFewSamplesError, ZeroWeightError
from flowmc_analysis.estimate import Estimate, format_value_error
from flowmc_analysis.free_energy import (
    log_partition_function,
    log_partition_function_reverse,
    log_partition_function_variational,
)
from flowmc_analysis.gamma import GammaResult, gamma_method, gamma_method_derived, gamma_method_vector
from flowmc_analysis.importance import importance_entropy, importance_mean
from flowmc_analysis.observable_sets import OBSERVABLE_SETS, observable_set
from flowmc_analysis.observables import (
    Configurations,
    Observable,
    ObservableContext,
    ObservableSet,
    estimate_observables,
    measure,
)
from flowmc_analysis.weights import (
    acceptance_independence,
    ess_forward,
    ess_reverse,
    log_mean_exp,
    pareto_k,
    tau_int_independence,
    tau_int_independence_observable,
)
from flowmc_analysis.zscores import Verdict, ZScore, compare_estimates, family_p_value, judge, z_score

__all__ = [
    "OBSERVABLE_SETS",
    "AnalysisError",
    "Configurations",
    "Estimate",
    "GammaResult",
    "NonFiniteError",
    "Observable",
    "ObservableContext",
    "ObservableSet",
    "SampleShapeError",
    "TooFewSamplesError",
    "Verdict",
    "ZScore",
    "ZeroWeightError",
    "acceptance_independence",
    "compare_estimates",
    "ess_forward",
    "ess_reverse",
    "estimate_observables",
    "family_p_value",
    "format_value_error",
    "gamma_method",
    "gamma_method_derived",
    "gamma_method_vector",
    "importance_entropy",
    "importance_mean",
    "judge",
    "log_mean_exp",
    "log_partition_function",
    "log_partition_function_reverse",
    "log_partition_function_variational",
    "measure",
    "observable_set",
    "pareto_k",
    "tau_int_independence",
    "tau_int_independence_observable",
    "z_score",
]
