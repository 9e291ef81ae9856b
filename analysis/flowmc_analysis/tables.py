"""Tables of an analysis as plain text cells, for a terminal and for the report alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowmc_analysis.estimate import Estimate, format_value_error

if TYPE_CHECKING:
    from flowmc_analysis.ensemble import EnsembleAnalysis
    from flowmc_analysis.zscores import ZScore
    from flowmc_ensembles.log_q import LogQAccuracy

__all__ = [
    "ABSENT",
    "Table",
    "analysis_tables",
    "exact_table",
    "format_number",
    "format_seconds",
    "monitor_table",
    "observable_table",
    "sampler_table",
    "tau_table",
]

ABSENT = "–"

_IMPORTANCE_HEADINGS = {
    "ln_z_variational": "variational bound of ln Z, from flow draws",
    "action_importance": "action <S> by importance sampling",
    "energy_importance": "energy per site by importance sampling",
    "entropy_per_site": "entropy per site by importance sampling",
    "free_energy_per_site": "free energy per site",
}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Parameters
    ----------
    title
        What it shows, with units.
    columns
        Headings; the first column names the row.
    rows
        Cells, as many in each row as there are columns.
    note
        A sentence on how to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def to_dict(self) -> dict[str, object]:
        """Give the fields for JSON."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "note": self.note,
        }


def format_number(x: float, pattern: str = "#.3g") -> str:
    """Print a number, or a dash for NaN.

    Examples
    --------
    >>> format_number(0.87), format_number(103.4), format_number(-1.234, "+.2f")
    ('0.870', '103', '-1.23')
    """
    return ABSENT if math.isnan(x) else format(x, pattern).rstrip(".")


def format_seconds(seconds: float) -> str:
    """Print a time in a unit that suits it.

    Examples
    --------
    >>> format_seconds(0.00123), format_seconds(686e-3), format_seconds(600.0)
    ('1.23 ms', '686 ms', '10.0 min')
    """
    if not math.isfinite(seconds):
        return ABSENT
    scale, name = 3600.0, "h"
    for limit, unit, unit_name in ((1e-3, 1e-6, "µs"), (1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min")):
        if seconds < limit:
            scale, name = unit, unit_name
            break
    digits = f"{seconds / scale:#.3g}".rstrip(".")
    return f"{digits} {name}"


def analysis_tables(analyses: Sequence[EnsembleAnalysis]) -> tuple[Table, ...]:
    """Tabulate everything about ensembles, side by side."""
    exact = exact_table(analyses)
    return (
        observable_table(analyses),
        *([exact] if exact.rows else []),
        tau_table(analyses),
        sampler_table(analyses),
        monitor_table(analyses),
    )


def exact_table(analyses: Sequence[EnsembleAnalysis]) -> Table:
    """Tabulate measurements beside exactly known values; no rows where the theory has none."""
    exact = {score.name: score.expected for analysis in analyses for score in analysis.exact}
    by_label = {analysis.label: {score.name: score for score in analysis.exact} for analysis in analyses}
    rows = []
    for name, value in exact.items():
        row = [name, f"{value:.8g}"]
        for scores in by_label.values():
            score = scores.get(name)
            row += [ABSENT, ABSENT] if score is None else [_measured(score), format_number(score.z, "+.2f")]
        rows.append(tuple(row))
    columns = ["quantity", "exact"]
    for label in by_label:
        columns += [label, f"z: {label}"]
    note = "z = (measured − exact)/error; for information, these are not judged. |z| > 5 is repeated as a warning."
    return Table("Exact values", tuple(columns), tuple(rows), note)


def observable_table(analyses: Sequence[EnsembleAnalysis]) -> Table:
    """Tabulate value and error of every observable, ensembles side by side."""
    names = list(dict.fromkeys(name for analysis in analyses for name in analysis.observables))
    rows = tuple((name, *(_estimate(analysis.observables.get(name)) for analysis in analyses)) for name in names)
    note = "Lattice units; errors of one standard deviation from the Γ-method."
    return Table("Observables", ("observable", *(a.label for a in analyses)), rows, note)


def tau_table(analyses: Sequence[EnsembleAnalysis]) -> Table:
    """Tabulate the integrated autocorrelation times of scalar observables, in stored configurations and updates."""
    names = list(dict.fromkeys(name for analysis in analyses for name in analysis.scalar_observables))
    columns = ["observable"]
    for analysis in analyses:
        columns += [f"{analysis.label} (configurations)", f"{analysis.label} (updates)"]
    rows = []
    for name in names:
        row = [name]
        for analysis in analyses:
            estimate = analysis.observables.get(name)
            factor = analysis.updates_per_configuration
            row += [_tau(estimate, 1.0), _tau(estimate, factor)]
        rows.append(tuple(row))
    note = "Convention: white noise has tau_int = 0.5. N configurations hold N/(2 tau_int) independent ones."
    return Table("Integrated autocorrelation times", tuple(columns), tuple(rows), note)


def sampler_table(analyses: Sequence[EnsembleAnalysis]) -> Table:
    """Tabulate lengths, acceptance, effective sample sizes and ln Z, one column an ensemble."""
    kinds = sorted({kind for analysis in analyses for kind in analysis.acceptance_by_kind})
    rows: list[tuple[str, ...]] = [
        ("chains × configurations", *(f"{a.n_chains} × {a.n_configurations}" for a in analyses)),
        ("updates per configuration", *(format_number(a.updates_per_configuration, ".4g") for a in analyses)),
    ]
    rows += [(f"acceptance, {kind}", *(_estimate(a.acceptance_by_kind.get(kind)) for a in analyses)) for kind in kinds]
    if any(a.log_q for a in analyses):
        rows += [
            ("log q of the flow off by at most (nats, stated)", *(_stated_error(a.log_q) for a in analyses)),
            ("log q of the flow off by (nats, measured)", *(_measured_error(a.log_q) for a in analyses)),
        ]
    if any(a.weights for a in analyses):
        rows += [
            (
                "ESS per draw, reverse",
                *(format_number(a.weights.ess_reverse) if a.weights else ABSENT for a in analyses),
            ),
            (
                "ESS per draw, forward",
                *(format_number(a.weights.ess_forward) if a.weights else ABSENT for a in analyses),
            ),
            (
                "Pareto k of the weights",
                *(format_number(a.weights.pareto_k) if a.weights else ABSENT for a in analyses),
            ),
            (
                "tau_int of flow alone, from weights (updates)",
                *(format_number(a.weights.tau_int_independence) if a.weights else ABSENT for a in analyses),
            ),
            ("ln Z from flow draws", *(_estimate(a.weights.ln_z if a.weights else None) for a in analyses)),
            ("ln Z from chain states", *(_estimate(a.weights.ln_z_reverse if a.weights else None) for a in analyses)),
            *_importance_rows(analyses),
            ("failed proposals", *(str(a.weights.n_nonfinite) if a.weights else ABSENT for a in analyses)),
            (
                "states off the flow's support",
                *(str(a.weights.n_offsupport) if a.weights else ABSENT for a in analyses),
            ),
        ]
    note = (
        "Reverse ESS: seen by draws of the flow; forward: by states of the chains, far smaller where modes are missed."
    )
    return Table("Samplers", ("quantity", *(a.label for a in analyses)), tuple(rows), note)


def _stated_error(accuracy: LogQAccuracy | None) -> str:
    if accuracy is None:
        return ABSENT
    return "exact" if accuracy.exact else "no bound" if accuracy.bound is None else f"{accuracy.bound:g}"


def _measured_error(accuracy: LogQAccuracy | None) -> str:
    if accuracy is None or accuracy.measured is None:
        return ABSENT
    return f"{accuracy.measured:.2g} on {accuracy.draws} draws"


def _importance_rows(analyses: Sequence[EnsembleAnalysis]) -> list[tuple[str, ...]]:
    """Give a row for each estimate beside ln Z that any of the ensembles has."""
    found = [analysis.weights.estimates if analysis.weights else {} for analysis in analyses]
    return [
        (heading, *(_estimate(estimates.get(name)) for estimates in found))
        for name, heading in _IMPORTANCE_HEADINGS.items()
        if any(name in estimates for estimates in found)
    ]


def monitor_table(analyses: Sequence[EnsembleAnalysis]) -> Table:
    """Tabulate the monitors of every ensemble with their z-scores."""
    rows = tuple(
        (
            analysis.label,
            monitor.identity,
            format_value_error(monitor.score.value, monitor.score.error),
            f"{monitor.score.expected:g}",
            f"void ({monitor.void})" if monitor.void else format_number(monitor.score.z, "+.2f"),
        )
        for analysis in analyses
        for monitor in analysis.monitors
    )
    note = "z = (measured − expected)/error; each ensemble's monitors are judged as one family at level 1e-3."
    return Table("Monitors", ("ensemble", "identity", "measured", "expected", "z"), rows, note)


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return ABSENT
    return str(estimate) if math.isfinite(estimate.value) else f"{estimate.value:+}"


def _measured(score: ZScore) -> str:
    return ABSENT if math.isnan(score.value) else format_value_error(score.value, score.error)


def _tau(estimate: Estimate | None, factor: float) -> str:
    if estimate is None or math.isnan(estimate.tau_int):
        return ABSENT
    if math.isinf(estimate.tau_int):
        return "∞"
    return format_value_error(factor * estimate.tau_int, factor * estimate.tau_int_error)
