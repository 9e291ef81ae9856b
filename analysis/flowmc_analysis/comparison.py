r"""Comparing ensembles of one theory: whether they agree, and what each costs.

For every observable and every pair of ensembles :math:`z = (a - b)/\sqrt{\sigma_a^2 + \sigma_b^2}`; all z-scores
together are judged as one family (Šidák), so that the number of observables does not matter. Observables that are
undefined at the measured means (an effective mass in the noise) cannot be compared, nor can those that had one and the
same value on every configuration of both (frozen spins); the strongly non-linear ones
are judged only where their relative error is small enough for linear propagation; both are shown all the same.

Cost is counted in seconds per independent configuration, see `flowmc_analysis.cost`. The baseline is the cheapest
ensemble for which no flow had to be trained, by its slowest observable, and the last one where all needed a flow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from flowmc_analysis.ensemble import EnsembleAnalysis, analyze, verdict_dict
from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.jsonable import json_number
from flowmc_analysis.monitors import FAMILY_LEVEL
from flowmc_analysis.tables import (
    ABSENT,
    Table,
    analysis_tables,
    format_number,
    format_seconds,
    observable_table,
)
from flowmc_analysis.zscores import Verdict, ZScore, compare_estimates, judge

__all__ = ["Comparison", "CostRatio", "compare", "compare_analyses", "compare_many"]

_LARGEST_RELATIVE_ERROR = 1.0 / 3.0
_ENSEMBLES_SHOWN_IN_ALL_PAIRS = 4


@dataclass(frozen=True)
class CostRatio:
    """Cost of one ensemble relative to the baseline, per independent configuration.

    Parameters
    ----------
    label, baseline
        The two ensembles.
    observable
        Whose ``tau_int`` counts; ``"slowest"`` compares the slowest scalar observable of each.
    without_training
        Ratio of the sampling seconds; below one, the ensemble is cheaper than the baseline.
    with_training
        The same with the training spread over the configurations produced.
    bound
        "≤" where the ensemble's cost is an upper bound (see `Cost.is_bound`), "≥" where the baseline's is, "?" where both
        are, and an empty text for a plain ratio.
    break_even
        Number of independent configurations from which on training has paid off; infinite if it never does, zero
        without training.
    """

    label: str
    baseline: str
    observable: str
    without_training: Estimate
    with_training: Estimate
    bound: str
    break_even: float

    def to_dict(self) -> dict[str, object]:
        """Give the fields for JSON."""
        return {
            "label": self.label,
            "baseline": self.baseline,
            "observable": self.observable,
            "without_training": json_number(self.without_training.value),
            "without_training_error": json_number(self.without_training.error),
            "with_training": json_number(self.with_training.value),
            "with_training_error": json_number(self.with_training.error),
            "bound": self.bound,
            "break_even_independent_configurations": json_number(self.break_even),
        }


@dataclass(frozen=True)
class Comparison:
    """Ensembles of one theory side by side.

    Parameters
    ----------
    analyses
        The ensembles; the first is the main one.
    scores
        Pair (``"flow - hmc"``) to the z-scores of its observables, all that can be compared.
    judged
        Names of the observables in the judged family.
    verdict
        The family judged.
    cost_ratios
        Costs relative to the baseline.
    """

    analyses: tuple[EnsembleAnalysis, ...]
    scores: Mapping[str, tuple[ZScore, ...]]
    judged: tuple[str, ...]
    verdict: Verdict
    cost_ratios: tuple[CostRatio, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the ensembles."""
        return tuple(analysis.label for analysis in self.analyses)

    @property
    def baseline(self) -> EnsembleAnalysis:
        """The ensemble that the others' costs are relative to."""
        return _baseline(self.analyses)

    @property
    def worst_pair(self) -> str:
        """The pair with the largest z-score of the judged family."""
        return next(
            pair for pair, scores in self.scores.items() if any(score is self.verdict.worst for score in scores)
        )

    @property
    def shown_scores(self) -> Mapping[str, tuple[ZScore, ...]]:
        """The pairs that tables and figures show: all, or those with the first ensemble where there are many."""
        if len(self.analyses) <= _ENSEMBLES_SHOWN_IN_ALL_PAIRS:
            return self.scores
        with_main = [_pair(self.analyses[0], other) for other in self.analyses[1:]]
        return {pair: self.scores[pair] for pair in with_main}

    @property
    def note_on_pairs(self) -> str:
        """A sentence on the pairs that are judged and not shown, empty where all are shown."""
        shown, judged = len(self.shown_scores), len(self.scores)
        if shown == judged:
            return ""
        return f"All {judged} pairs are judged; the {shown} pairs with {self.labels[0]} are shown."

    @property
    def passed(self) -> bool:
        """Whether the ensembles agree and all their monitors are quiet."""
        verdicts = [analysis.verdict for analysis in self.analyses]
        return self.verdict.passed and all(verdict.passed for verdict in verdicts if verdict is not None)

    def tables(self) -> tuple[Table, ...]:
        """Give everything as tables of text: observables, z-scores, autocorrelation, samplers, monitors, cost."""
        _, *others = analysis_tables(self.analyses)
        return (self.observable_table(), *others, self.cost_table(), self.ratio_table())

    def observable_table(self) -> Table:
        """Tabulate the observables with the z-scores of the pairs that are shown."""
        plain = observable_table(self.analyses)
        by_pair = {pair: {score.name: score.z for score in scores} for pair, scores in self.shown_scores.items()}
        rows = tuple(
            (*row, *(format_number(table.get(row[0], math.nan), "+.2f") for table in by_pair.values()))
            for row in plain.rows
        )
        verdict = self.verdict
        note = (
            f"{plain.note} z: difference over combined error; {verdict.count} of them judged as one family,"
            f" {verdict.p_text} ({'passes' if verdict.passed else 'FAILS'} at level {verdict.level:g})."
            f" {self.note_on_pairs}"
        ).rstrip()
        return Table("Observables", (*plain.columns, *(f"z: {pair}" for pair in by_pair)), rows, note)

    def cost_table(self) -> Table:
        """Tabulate seconds per independent configuration, with and without training."""
        rows = []
        for analysis in self.analyses:
            cost = analysis.cost
            for name in dict.fromkeys((analysis.observable_set.cost_observable, analysis.slowest)):
                estimate = analysis.observables[name]
                rows.append(
                    (
                        analysis.label,
                        format_seconds(cost.sampling_seconds),
                        format_seconds(cost.training_seconds) if cost.training_seconds else ABSENT,
                        f"{name} (slowest)" if name == analysis.slowest else name,
                        format_number(estimate.tau_int),
                        _bounded(format_seconds(cost.per_independent(estimate).value), cost.is_bound(estimate)),
                        _bounded(
                            format_seconds(cost.per_independent(estimate, with_training=True).value),
                            cost.is_bound(estimate),
                        ),
                    )
                )
        columns = ("ensemble", "sampling", "training", "observable", "tau_int", "per independent one", "with training")
        note = (
            "Wall time after thermalisation; 2 tau_int configurations make an independent one (white noise = 0.5). "
            "≤: stored configurations are already independent, and denser storage could show a lower cost."
        )
        return Table("Cost per independent configuration", columns, tuple(rows), note)

    def ratio_table(self) -> Table:
        """Tabulate the costs relative to the baseline."""
        rows = tuple(
            (
                f"{ratio.label} / {ratio.baseline}",
                ratio.observable,
                f"{ratio.bound} {ratio.without_training}".strip(),
                f"{ratio.bound} {ratio.with_training}".strip(),
                _break_even(ratio.break_even),
            )
            for ratio in self.cost_ratios
        )
        columns = ("ensembles", "observable", "cost ratio", "with training", "training pays off after")
        reason = (
            "the last ensemble, as all needed a trained flow"
            if _needs_flow(self.baseline)
            else "the cheapest ensemble that needs no trained flow, by its slowest observable"
        )
        note = (
            f"Baseline: {self.baseline.label}, {reason}. Below one: cheaper than the baseline. Errors include the scatter"
            " of the wall time over the run. The wall time of a shared machine changes from run to run: repeat the runs"
            " before drawing conclusions."
        )
        return Table("Cost relative to the baseline", columns, rows, note)

    def to_dict(self) -> dict[str, object]:
        """Give the result for JSON; what is not finite becomes ``None``."""
        return {
            "labels": list(self.labels),
            "passed": self.passed,
            "verdict": verdict_dict(self.verdict),
            "baseline": self.baseline.label,
            "z_scores": {
                pair: {score.name: json_number(score.z) for score in scores} for pair, scores in self.scores.items()
            },
            "judged": list(self.judged),
            "cost_ratios": [ratio.to_dict() for ratio in self.cost_ratios],
            "ensembles": {analysis.label: analysis.to_dict() for analysis in self.analyses},
        }


def compare(
    path_a: str | PathLike[str],
    path_b: str | PathLike[str],
    s: float = 2.0,
    *,
    labels: tuple[str, str] | None = None,
    level: float = FAMILY_LEVEL,
) -> Comparison:
    """Compare two ensembles of one theory.

    Parameters
    ----------
    path_a, path_b
        The ensemble files.
    s
        Window parameter of the Γ-method.
    labels
        Names in the output; the algorithms by default.
    level
        False-alarm rate of the whole family of z-scores.

    Raises
    ------
    AnalysisError
        As in :func:`compare_many`.
    """
    return compare_many((path_a, path_b), labels, s, level=level)


def compare_many(
    paths: Sequence[str | PathLike[str]],
    labels: Sequence[str] | None = None,
    s: float = 2.0,
    *,
    level: float = FAMILY_LEVEL,
) -> Comparison:
    """Compare ensembles of one theory pair by pair.

    Parameters
    ----------
    paths
        Two or more ensemble files.
    labels
        Names in the output, one each; the algorithms by default.
    s
        Window parameter of the Γ-method.
    level
        False-alarm rate of the whole family of z-scores.

    Raises
    ------
    EnsembleError
        (of ``flowmc_ensembles``) if a file is missing, damaged or no ensemble.
    AnalysisError
        If there are fewer than two, labels do not fit, or the ensembles are not of one theory; as in
        `flowmc_analysis.ensemble.analyze`.
    """
    if labels is not None and len(labels) != len(paths):
        raise AnalysisError(
            got=f"{len(labels)} labels for {len(paths)} ensembles", expected="one label each", fix="count them again"
        )
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise AnalysisError(
            got=f"the same file twice among {[str(path) for path in paths]}",
            expected="different ensembles: their errors are added as independent",
            fix="name another file",
        )
    names = [""] * len(paths) if labels is None else list(labels)
    analyses = [analyze(path, s, label=name) for path, name in zip(paths, names, strict=True)]
    if labels is None:
        analyses = _with_distinct_labels(analyses)
    return compare_analyses(analyses, level=level)


def compare_analyses(analyses: Sequence[EnsembleAnalysis], *, level: float = FAMILY_LEVEL) -> Comparison:
    """Compare ensembles that are analysed already.

    Parameters
    ----------
    analyses
        Two or more, with different labels.
    level
        False-alarm rate of the whole family of z-scores.

    Raises
    ------
    AnalysisError
        If there are fewer than two, two labels are equal, or the ensembles are not of one theory.
    """
    _check_comparable(analyses)
    scores: dict[str, tuple[ZScore, ...]] = {}
    family: list[ZScore] = []
    judged: dict[str, None] = {}
    for a, b in itertools.combinations(analyses, 2):
        row = []
        for name, estimate in a.observables.items():
            other = b.observables.get(name)
            if other is None or not (math.isfinite(estimate.value) and math.isfinite(other.value)):
                continue
            if _frozen(estimate) and _frozen(other) and estimate.value == other.value:
                continue
            score = compare_estimates(name, estimate, other)
            row.append(score)
            entry = a.observable_set.entry(name)
            non_linear = entry is not None and entry.non_linear
            if not non_linear or (_well_known(estimate) and _well_known(other)):
                family.append(score)
                judged[name] = None
        scores[_pair(a, b)] = tuple(row)
    return Comparison(
        analyses=tuple(analyses),
        scores=scores,
        judged=tuple(judged),
        verdict=judge(family, level=level),
        cost_ratios=tuple(_cost_ratios(analyses)),
    )


def _check_comparable(analyses: Sequence[EnsembleAnalysis]) -> None:
    labels = [analysis.label for analysis in analyses]
    if len(analyses) < 2 or len(set(labels)) < len(labels):
        raise AnalysisError(
            got=f"ensembles {labels}",
            expected="two or more ensembles, each with its own label",
            fix="pass labels=[...]",
        )
    first = analyses[0].description
    for analysis in analyses[1:]:
        other = analysis.description
        if (other.theory, other.action, other.lattice_size) != (first.theory, first.action, first.lattice_size):
            raise AnalysisError(
                got=f"{labels[0]}: {dict(first.action)}, {analysis.label}: {dict(other.action)}",
                expected="ensembles of one theory on one lattice with equal couplings",
                fix="compare runs of the same action",
            )


def _with_distinct_labels(analyses: Sequence[EnsembleAnalysis]) -> list[EnsembleAnalysis]:
    """Append a number to labels that occur more than once."""
    labels = [analysis.label for analysis in analyses]
    numbered = []
    for i, (analysis, label) in enumerate(zip(analyses, labels, strict=True)):
        number = labels[: i + 1].count(label)
        numbered.append(replace(analysis, label=f"{label} {number}") if labels.count(label) > 1 else analysis)
    return numbered


def _pair(a: EnsembleAnalysis, b: EnsembleAnalysis) -> str:
    return f"{a.label} - {b.label}"


def _needs_flow(analysis: EnsembleAnalysis) -> bool:
    return any(stream.flow_sha256 for stream in analysis.streams)


def _baseline(analyses: Sequence[EnsembleAnalysis]) -> EnsembleAnalysis:
    """Choose the cheapest ensemble that needs no training, or the last one."""

    def cost(analysis: EnsembleAnalysis) -> float:
        seconds = analysis.cost.per_independent(analysis.observables[analysis.slowest]).value
        return math.inf if math.isnan(seconds) else seconds

    untrained = [analysis for analysis in analyses if not _needs_flow(analysis)]
    return min(untrained, key=cost) if untrained else analyses[-1]


def _frozen(estimate: Estimate) -> bool:
    """Whether the observable had one value throughout: spins deep in the ordered phase, or a chain that never moved."""
    return math.isinf(estimate.tau_int)


def _well_known(estimate: Estimate) -> bool:
    """Whether linear error propagation can be trusted for a strongly non-linear observable."""
    return estimate.error <= _LARGEST_RELATIVE_ERROR * abs(estimate.value)


def _cost_ratios(analyses: Sequence[EnsembleAnalysis]) -> list[CostRatio]:
    baseline = _baseline(analyses)
    common = baseline.observable_set.cost_observable
    ratios = []
    for analysis in analyses:
        if analysis is baseline:
            continue
        for observable, own, reference in (
            (common, common, common),
            ("slowest", analysis.slowest, baseline.slowest),
        ):
            numerator, denominator = analysis.observables[own], baseline.observables[reference]
            plain = [analysis.cost.per_independent(numerator), baseline.cost.per_independent(denominator)]
            trained = [
                analysis.cost.per_independent(numerator, with_training=True),
                baseline.cost.per_independent(denominator, with_training=True),
            ]
            gain = plain[1].value - plain[0].value
            training = analysis.cost.training_seconds
            ratios.append(
                CostRatio(
                    label=analysis.label,
                    baseline=baseline.label,
                    observable=observable,
                    without_training=_ratio(*plain),
                    with_training=_ratio(*trained),
                    bound=_bound(analysis.cost.is_bound(numerator), baseline.cost.is_bound(denominator)),
                    break_even=0.0 if training == 0.0 else training / gain if gain > 0.0 else math.inf,
                )
            )
    return ratios


def _ratio(a: Estimate, b: Estimate) -> Estimate:
    if not (a.value > 0.0 and b.value > 0.0):
        return Estimate(math.nan, math.nan)
    value = a.value / b.value
    return Estimate(value, value * math.hypot(a.error / a.value, b.error / b.value))


def _bounded(text: str, upper_bound: bool) -> str:
    return f"≤ {text}" if upper_bound else text


def _bound(numerator: bool, denominator: bool) -> str:
    return {(True, False): "≤", (False, True): "≥", (True, True): "?"}.get((numerator, denominator), "")


def _break_even(n: float) -> str:
    if n == 0.0:
        return ABSENT
    return "never" if math.isinf(n) else f"{n:.3g} independent configurations"
