r"""The analysis of an ensemble: everything `flowmc analyze` prints, from one file.

Rows up to ``thermalisation_updates`` are dropped, configurations and history alike. Observables are measured on the
stored configurations of every chain, those that belong to the field (`flowmc_analysis.observable_sets`); errors and
autocorrelation times come from the Γ-method, the chains being replicas.

Units of autocorrelation times: ``tau_int`` counts *stored configurations* and has the convention in which white noise
is 1/2. ``tau_int_updates`` is the same in updates (HMC trajectories and flow proposals of the cycle, one by one):
``tau_int`` times ``updates_per_configuration``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flowmc_analysis.cost import Cost
from flowmc_analysis.doubts import exact_doubts, log_q_doubts, sector_doubts, weight_doubts
from flowmc_analysis.errors import TooFewSamplesError
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.exact_values import exact_values
from flowmc_analysis.gamma import GammaResult, gamma_method
from flowmc_analysis.history import BLACKJAX_KIND, FLOW_KIND, HMC_KINDS, History
from flowmc_analysis.jsonable import json_number
from flowmc_analysis.monitors import (
    IDENTITIES,
    Monitor,
    judge_monitors,
    mode_drop_alarm,
    monitor_energy_error,
    monitor_energy_symmetry,
    monitor_identity,
    monitor_mode_drop,
    monitor_weight_ratio,
)
from flowmc_analysis.observable_sets import observable_set
from flowmc_analysis.observables import ObservableSet, estimate_observables
from flowmc_analysis.production import Production, read_production
from flowmc_analysis.unseen import TOLERATED_SHARE, UnseenStates, unseen_states
from flowmc_analysis.weight_analysis import WeightAnalysis, analyze_weights
from flowmc_analysis.zscores import Verdict, ZScore, z_score

if TYPE_CHECKING:
    from flowmc_ensembles.descriptions import EnsembleDescription, StreamDescription
    from flowmc_ensembles.log_q import LogQAccuracy

__all__ = ["TAU_INT_CONVENTION", "EnsembleAnalysis", "analyze", "verdict_dict"]

Array = npt.NDArray[np.float64]

TAU_INT_CONVENTION = "white noise = 0.5; tau_int in stored configurations, tau_int_updates in updates"

_WEIGHT_ESTIMATES = (
    "ln_z",
    "ln_z_reverse",
    "ln_z_variational",
    "action_importance",
    "energy_importance",
    "entropy_per_site",
    "free_energy_per_site",
)
_TAU_ERRORS = 3.0


@dataclass(frozen=True)
class EnsembleAnalysis:
    """Everything measured on one ensemble.

    Parameters
    ----------
    label
        Name in tables and figures.
    description
        What was simulated.
    streams
        How, one description a stream.
    updates
        Update numbers of the configurations, shape ``(n,)``.
    updates_per_configuration
        Mean number of updates between stored configurations.
    n_updates
        Updates after thermalisation, of each chain.
    results
        Γ-method results of the observables by name; array-valued ones have an entry for each component,
        ``"two_point_zero_momentum[0]"`` and so on; correlators up to half the temporal extent. Unit of time: stored
        configurations.
    series
        Values per configuration of scalar observables, by name, shape ``(chains, n)``.
    action
        Action of the configurations, shape ``(chains, n)``.
    acceptance_by_kind
        Acceptance rate of each kind of update, with error.
    weights
        Analysis of the log-weights; None for a run without flow proposals.
    monitors
        Identities with known expectation, measured.
    verdict
        The monitors judged as a family; None where there are none.
    exact
        Measurements against exactly known values, where the theory has any: for information, they are not judged.
    cost
        Wall time.
    warnings
        Reasons for distrust, one sentence each.
    """

    label: str
    description: EnsembleDescription
    streams: tuple[StreamDescription, ...]
    updates: npt.NDArray[np.int64]
    updates_per_configuration: float
    n_updates: int
    results: Mapping[str, GammaResult]
    series: Mapping[str, Array]
    action: Array
    acceptance_by_kind: Mapping[str, Estimate]
    weights: WeightAnalysis | None
    monitors: tuple[Monitor, ...]
    verdict: Verdict | None
    exact: tuple[ZScore, ...]
    cost: Cost
    warnings: tuple[str, ...]

    @property
    def observable_set(self) -> ObservableSet:
        """Definitions of the observables, those that belong to the field."""
        return observable_set(self.streams[0].field_name)

    @property
    def observables(self) -> dict[str, Estimate]:
        """Estimates of the observables by name; times in stored configurations."""
        return {name: result.estimate for name, result in self.results.items()}

    @property
    def scalar_observables(self) -> dict[str, Estimate]:
        """Observables that are one number each."""
        return {name: estimate for name, estimate in self.observables.items() if not name.endswith("]")}

    def components(self, name: str) -> tuple[Estimate, ...]:
        """Estimates of an array-valued observable in order, empty if it was not measured."""
        return tuple(e for key, e in self.observables.items() if key.startswith(f"{name}["))

    @property
    def n_chains(self) -> int:
        """Number of chains, all streams together."""
        return int(self.action.shape[0])

    @property
    def n_configurations(self) -> int:
        """Stored configurations of each chain after thermalisation."""
        return int(self.action.shape[1])

    @property
    def acceptance(self) -> float:
        """Acceptance of the flow's proposals where there are any, else that of HMC, else of all updates."""
        for kind in (FLOW_KIND, *HMC_KINDS, BLACKJAX_KIND):
            if kind in self.acceptance_by_kind:
                return self.acceptance_by_kind[kind].value
        return float(np.mean([estimate.value for estimate in self.acceptance_by_kind.values()]))

    @property
    def slowest(self) -> str:
        """Name of the scalar observable with the longest autocorrelation time; constant ones come last."""
        return max(self.scalar_observables, key=lambda name: _sortable(self.observables[name].tau_int))

    @cached_property
    def unseen(self) -> UnseenStates | None:
        """States beyond all that the flow has drawn; None for a run without flow proposals."""
        return unseen_states(self.weights.log_weight, self.weights.log_weight_current) if self.weights else None

    @property
    def mode_drop_alarm(self) -> bool:
        """Whether the chains see target probability where the draws of the flow see none; see `monitors`."""
        return mode_drop_alarm(self.monitors, self.unseen)

    @property
    def log_q(self) -> LogQAccuracy | None:
        """How exact log q of the flow is; None without a flow, or where the file does not say."""
        return self.description.log_q

    @property
    def doubts(self) -> tuple[str, ...]:
        """Signs that log q, weights or chains mislead, or exact values are missed; among the warnings, too."""
        return (
            *log_q_doubts(self.log_q),
            *(weight_doubts(self.weights) if self.weights else ()),
            *sector_doubts(self.observable_set.sectors, self.series, self.results),
            *exact_doubts(self.exact),
        )

    def to_dict(self) -> dict[str, object]:
        """Give the result for JSON; what is not finite becomes ``None``.

        Returns
        -------
        ``acceptance`` is one number, see the property of that name; ``acceptance_by_kind`` has all of them. The entries
        on weights and ln Z are ``None`` for a run without flow proposals, and those per site where there is no ``beta``.
        ``log_q`` says how exact log q of the flow is, in nats: ``exact``, ``bound`` (stated), ``measured``, ``draws``.
        """
        weights = self.weights
        estimates = weights.estimates if weights else {}
        return {
            "label": self.label,
            "theory": self.description.theory,
            "action": dict(self.description.action),
            "lattice_size": list(self.description.lattice_size),
            "algorithm": self.streams[0].algorithm,
            "n_streams": len(self.streams),
            "n_chains": self.n_chains,
            "n_configurations": self.n_configurations,
            "n_updates": self.n_updates,
            "updates_per_configuration": self.updates_per_configuration,
            "tau_int_convention": TAU_INT_CONVENTION,
            "observables": {name: self._observable_dict(estimate) for name, estimate in self.observables.items()},
            "log_q": self.log_q.to_dict() if self.log_q else None,
            "acceptance": json_number(self.acceptance),
            "acceptance_by_kind": {kind: estimate.to_dict() for kind, estimate in self.acceptance_by_kind.items()},
            "ess_reverse": json_number(weights.ess_reverse) if weights else None,
            "ess_forward": json_number(weights.ess_forward) if weights else None,
            "pareto_k": json_number(weights.pareto_k) if weights else None,
            **{name: estimates[name].to_dict() if name in estimates else None for name in _WEIGHT_ESTIMATES},
            "tau_int_independence_updates": json_number(weights.tau_int_independence) if weights else None,
            "n_nonfinite_proposals": weights.n_nonfinite if weights else None,
            "n_offsupport_states": weights.n_offsupport if weights else None,
            "mode_drop_alarm": self.mode_drop_alarm,
            "unseen": asdict(self.unseen) if self.unseen else None,
            "monitors": [monitor.to_dict() for monitor in self.monitors],
            "monitors_verdict": verdict_dict(self.verdict),
            "exact": {score.name: _exact_dict(score) for score in self.exact},
            "cost": self._cost_dict(),
            "warnings": list(self.warnings),
        }

    def _observable_dict(self, estimate: Estimate) -> dict[str, object]:
        factor = self.updates_per_configuration
        return {
            **estimate.to_dict(),
            "tau_int_updates": json_number(factor * estimate.tau_int),
            "tau_int_updates_error": json_number(factor * estimate.tau_int_error),
        }

    def _cost_dict(self) -> dict[str, object]:
        independent = {
            name: {
                "without_training": json_number(self.cost.per_independent(estimate).value),
                "with_training": json_number(self.cost.per_independent(estimate, with_training=True).value),
                "without_training_error": json_number(self.cost.per_independent(estimate).error),
                "with_training_error": json_number(self.cost.per_independent(estimate, with_training=True).error),
                "upper_bound": self.cost.is_bound(estimate),
            }
            for name, estimate in self.scalar_observables.items()
        }
        plain = {name: json_number(value) for name, value in self.cost.to_dict().items()}
        return {**plain, "slowest": self.slowest, "seconds_per_independent_configuration": independent}


def analyze(
    path: str | PathLike[str], s: float = 2.0, *, label: str = "", streams: Sequence[int] | None = None
) -> EnsembleAnalysis:
    """Analyse an ensemble.

    Parameters
    ----------
    path
        The ensemble file.
    s
        Window parameter of the Γ-method: assumed ratio of exponential and integrated autocorrelation time.
    label
        Name in tables and figures; the algorithm's by default.
    streams
        Which streams to analyse together, as replicas; all by default.

    Returns
    -------
    The analysis.

    Raises
    ------
    EnsembleError
        (of ``flowmc_ensembles``) if the file is missing, damaged or no ensemble.
    AnalysisError
        If there is no production, the field has no observables here, streams do not fit together, or chains have fewer
        than five configurations.
    """
    production = read_production(path, streams)
    history = production.history
    context = production.context
    results = _without_mirror_images(
        estimate_observables(production.measurements, production.observables, context, s=s),
        production.observables.correlators,
        context.lattice_size[0],
    )
    extra = production.further_scalars()
    results.update({name: gamma_method(values, s=s) for name, values in extra.items()})
    weights = analyze_weights(history, context, s, inverse_temperature=production.observables.inverse_temperature)
    monitors = _monitors(production, weights)
    analysis = EnsembleAnalysis(
        label=label or production.streams[0].algorithm,
        description=production.description,
        streams=production.streams,
        updates=production.trajectory,
        updates_per_configuration=production.updates_per_configuration,
        n_updates=int(history.update.size),
        results=results,
        series=production.scalar_series(),
        action=production.measurements["action"],
        acceptance_by_kind={kind: _acceptance(history, kind, s) for kind in history.kind_names},
        weights=weights,
        monitors=monitors,
        verdict=judge_monitors(monitors),
        exact=_exact(production, results, weights),
        cost=Cost(
            sampling_seconds=history.seconds,
            sampling_seconds_error=history.seconds_error,
            thermalisation_seconds=history.thermalisation_seconds,
            training_seconds=_training_seconds(production) if production.streams[0].flow_sha256 else 0.0,
            n_configurations=int(production.measurements["action"].size),
            thinned=production.updates_per_configuration > 1.0,
        ),
        warnings=(),
    )
    unfinished = (f"the run is not finished{f': {why}' if why else ''}" for why in production.unfinished)
    unknown = (
        f"what the training of the flow took is not known ({stream.flow_sha256[:16]}): costs are stated without it"
        for stream in production.streams
        if stream.flow_sha256 and production.description.run.get("training_seconds", 0.0) is None
    )
    unused = (f"{name}, recorded in the run, is not analysed: {why}" for name, why in production.not_analysed.items())
    return dataclasses.replace(analysis, warnings=(*unfinished, *unknown, *unused, *_warnings(analysis, history)))


def verdict_dict(verdict: Verdict | None) -> dict[str, object] | None:
    """Give a verdict for JSON."""
    if verdict is None:
        return None
    return {
        "passed": verdict.passed,
        "p_value": json_number(verdict.p_value),
        "level": verdict.level,
        "count": verdict.count,
        "worst": verdict.worst.name,
        "worst_z": json_number(verdict.worst.z),
    }


def _without_mirror_images(
    results: dict[str, GammaResult], correlators: Iterable[str], temporal_extent: int
) -> dict[str, GammaResult]:
    """Drop C(t) for t > T/2, which repeats C(T - t) number by number."""
    mirror = {f"{name}[{t}]" for name in correlators for t in range(temporal_extent // 2 + 1, temporal_extent)}
    return {name: result for name, result in results.items() if name not in mirror}


def _monitors(production: Production, weights: WeightAnalysis | None) -> tuple[Monitor, ...]:
    monitors = []
    if production.history.delta_h.shape[1]:
        monitors.append(monitor_energy_error(production.history.delta_h))
        if monitors[0].void:
            monitors.append(monitor_energy_symmetry(production.history.delta_h))
    monitors += [
        monitor_identity(name, values, production.context.volume)
        for name, values in production.recorded.items()
        if name in IDENTITIES
    ]
    if weights is not None:
        monitors.append(monitor_weight_ratio(weights.log_weight, weights.log_weight_current))
        monitors.append(monitor_mode_drop(weights.log_weight, weights.log_weight_current))
    return tuple(monitors)


def _exact(
    production: Production, results: Mapping[str, GammaResult], weights: WeightAnalysis | None
) -> tuple[ZScore, ...]:
    """Hold what was measured against what is known; ln Z and its companions only where a flow proposed."""
    periodic = all(word == "periodic" for word in production.description.boundary_conditions)
    known = exact_values(production.description.theory, production.context) if periodic else {}
    measured = {name: result.estimate for name, result in results.items()}
    if weights is not None:
        measured |= weights.estimates
    return tuple(
        z_score(name, measured[name].value, value, measured[name].error)
        for name, value in known.items()
        if name in measured
    )


def _exact_dict(score: ZScore) -> dict[str, float | None]:
    return {
        "value": json_number(score.value),
        "error": json_number(score.error),
        "exact": json_number(score.expected),
        "z": json_number(score.z),
    }


def _acceptance(history: History, kind: str, s: float) -> Estimate:
    acceptance = history.of_kind(kind)
    rate = float(acceptance.mean())
    if np.ptp(acceptance) == 0.0:
        return Estimate(rate, 0.0)
    try:
        error = gamma_method(acceptance, s=s).estimate.error
    except TooFewSamplesError:
        error = math.nan
    return Estimate(rate, error)


def _training_seconds(production: Production) -> float:
    seconds = production.description.run.get("training_seconds", 0.0)
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _sortable(tau: float) -> tuple[bool, float]:
    """Order times: what never changed has no finite one, and says nothing beside what did."""
    return math.isfinite(tau), -math.inf if math.isnan(tau) else tau


def _warnings(analysis: EnsembleAnalysis, history: History) -> Iterator[str]:
    for name, estimate in analysis.observables.items():
        entry = analysis.observable_set.entry(name)
        if math.isinf(estimate.tau_int) and entry is not None and entry.may_be_constant:
            continue
        yield from (f"{name}: {warning}" for warning in estimate.warnings)
    for kind, estimate in analysis.acceptance_by_kind.items():
        if estimate.value == 0.0:
            yield f"{kind}: no proposal was accepted"
    broken = int(np.count_nonzero(~np.isfinite(history.delta_h)))
    if broken:
        yield f"{broken} of {history.delta_h.size} trajectories ended with an energy that is not finite"
    if history.n_nonfinite:
        yield f"{history.n_nonfinite} of {history.log_weight.size} proposals of the flow were not finite (rejected)"
    if history.n_offsupport:
        yield f"{history.n_offsupport} of {history.log_weight.size} states cannot be reached by the flow"
    yield from (f"{monitor.name}: z is void, {monitor.void}" for monitor in analysis.monitors if monitor.void)
    if analysis.verdict is not None and not analysis.verdict.passed:
        yield f"monitors: {analysis.verdict}"
    yield from analysis.doubts
    if analysis.weights is None:
        if FLOW_KIND in history.kind_names:
            yield "no proposal of the flow had a finite weight: effective sample sizes and ln Z do not exist"
        return
    weights = analysis.weights
    # Estimates from one set of weights share its weaknesses: each is said once, with the names of all it concerns.
    concerned: dict[str, list[str]] = {}
    for name, estimate in weights.estimates.items():
        for warning in estimate.warnings:
            concerned.setdefault(warning, []).append(name)
    yield from (f"{', '.join(names)}: {warning}" for warning, names in concerned.items())
    if analysis.mode_drop_alarm and analysis.unseen is not None:
        share, p_value = analysis.unseen.share, analysis.unseen.p_value
        yield (
            "mode drop: the chains visit regions that the draws of the flow miss; flow-only runs are biased"
            f" ({share:.2g} of the states have weights beyond all draws, p = {p_value:.1g} for no more than"
            f" {TOLERATED_SHARE:g})"
        )
    if history.kind_names == (FLOW_KIND,) and analysis.updates_per_configuration == 1.0:
        slowest = analysis.observables[analysis.slowest]
        if slowest.tau_int + _TAU_ERRORS * slowest.tau_int_error < weights.tau_int_independence:
            yield (
                f"tau_int of {analysis.slowest} is {slowest.tau_int:.3g}, but the weights imply"
                f" {weights.tau_int_independence:.3g} updates: long runs of rejections are missed, errors are too small"
            )
