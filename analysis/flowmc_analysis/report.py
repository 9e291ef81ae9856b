"""The report of a run: one HTML file that holds everything, pictures included, and needs no network and no script."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from flowmc_analysis.arviz_export import chain_diagnostics
from flowmc_analysis.comparison import Comparison, compare_analyses
from flowmc_analysis.doubts import weight_doubts
from flowmc_analysis.ensemble import TAU_INT_CONVENTION
from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.headlines import headlines
from flowmc_analysis.report_figures import draw_pictures
from flowmc_analysis.tables import (
    ABSENT,
    Table,
    exact_table,
    format_number,
    monitor_table,
    observable_table,
    sampler_table,
    tau_table,
)

if TYPE_CHECKING:
    from flowmc_analysis.ensemble import EnsembleAnalysis
    from flowmc_analysis.training_plots import Row
    from flowmc_ensembles.descriptions import EnsembleDescription

__all__ = ["render_report", "write_report"]

_LARGE_Z = 3.0
_SHORT_FINGERPRINT = 16


def write_report(
    path: str | os.PathLike[str],
    analyses: Sequence[EnsembleAnalysis],
    comparison: Comparison | None = None,
    *,
    title: str = "",
    training_history: Sequence[Row] | None = None,
    run_info: Mapping[str, object] | None = None,
) -> Path:
    """Write the report; a file of that name is replaced in one step, or not at all.

    Parameters
    ----------
    path
        The HTML file; its folder exists.
    analyses
        The ensembles, the main one first.
    comparison
        Their comparison; made here if absent and there are two or more.
    title
        Heading; theory, lattice and couplings by default.
    training_history
        One mapping per recorded training step, as for
        :func:`~flowmc_analysis.training_plots.plot_training_history`.
    run_info
        Further facts for the run card (configuration, versions, certificate); nested mappings are flattened.

    Returns
    -------
    The path.

    Raises
    ------
    AnalysisError
        If there are no analyses, or as in `flowmc_analysis.comparison.compare_analyses`.
    """
    target = Path(path)
    html = render_report(analyses, comparison, title=title, training_history=training_history, run_info=run_info)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def render_report(
    analyses: Sequence[EnsembleAnalysis],
    comparison: Comparison | None = None,
    *,
    title: str = "",
    training_history: Sequence[Row] | None = None,
    run_info: Mapping[str, object] | None = None,
) -> str:
    """Give the report as HTML text; parameters as in :func:`write_report`."""
    if not analyses:
        raise AnalysisError(got="no analyses", expected="at least one", fix="analyse an ensemble first")
    if comparison is None and len(analyses) > 1:
        comparison = compare_analyses(analyses)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flowmc_analysis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = draw_pictures(analyses, comparison, training_history)
    return environment.get_template("report.html.j2").render(
        title=title or _title(analyses[0].description),
        made_at=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headlines=headlines(analyses, comparison),
        tiles=_tiles(analyses, comparison),
        run_card=_run_card(analyses, run_info or {}),
        monitors=monitor_table(analyses),
        observables=observable_table(analyses) if comparison is None else comparison.observable_table(),
        exact=exact_table(analyses),
        samplers=sampler_table(analyses),
        costs=[] if comparison is None else [comparison.cost_table(), comparison.ratio_table()],
        autocorrelations=[tau_table(analyses), _diagnostics_table(analyses)],
        pictures={section: [p for p in pictures if p.section == section] for section in {p.section for p in pictures}},
        warnings=[(analysis.label, analysis.warnings) for analysis in analyses if analysis.warnings],
        convention=TAU_INT_CONVENTION,
        is_large=_is_large,
    )


def _title(description: EnsembleDescription) -> str:
    lattice = "×".join(str(extent) for extent in description.lattice_size)
    numbers = {key: value for key, value in description.action.items() if isinstance(value, int | float)}
    couplings = (f"{key} = {value:g}" for key, value in numbers.items() if not isinstance(value, bool))
    return ", ".join((description.theory, f"{lattice} lattice", *couplings))


def _tiles(analyses: Sequence[EnsembleAnalysis], comparison: Comparison | None) -> list[tuple[str, str, str]]:
    """Give the numbers shown large: heading, number, explanation."""
    tiles = []
    with_flow = next((analysis for analysis in analyses if analysis.weights), None)
    if with_flow is not None and with_flow.weights is not None:
        weights, label = with_flow.weights, with_flow.label
        tiles.append(("Acceptance", f"{with_flow.acceptance:.1%}", f"of flow proposals, {label}"))
        forward = f"reverse; forward {format_number(weights.ess_forward)}"
        tiles.append(("ESS per draw", format_number(weights.ess_reverse), forward))
        doubted = "in doubt, see warnings; " if weight_doubts(weights) or weights.ln_z.warnings else ""
        tiles.append(("ln Z", str(weights.ln_z), f"{doubted}from chain states {weights.ln_z_reverse}"))
    else:
        tiles.append(("Acceptance", f"{analyses[0].acceptance:.1%}", f"of {analyses[0].label} updates"))
    ratios = () if comparison is None else comparison.cost_ratios
    return tiles + [
        (
            f"Cost, {ratio.label} / {ratio.baseline}",
            format_number(ratio.without_training.value),
            "per independent configuration"
            + (f"; {format_number(ratio.with_training.value)} with training" if ratio.break_even else ""),
        )
        for ratio in ratios
        if ratio.observable == analyses[0].observable_set.cost_observable
    ]


def _run_card(analyses: Sequence[EnsembleAnalysis], run_info: Mapping[str, object]) -> list[Table]:
    description = analyses[0].description
    theory = [
        ("theory", description.theory),
        *((key, str(value)) for key, value in description.action.items() if key not in ("name", "shape")),
        ("lattice", " × ".join(str(extent) for extent in description.lattice_size) + " (t first)"),
        ("boundary conditions", ", ".join(description.boundary_conditions)),
        ("convention", description.convention),
    ]
    tables = [Table("Theory", ("quantity", "value"), tuple(theory)), _stream_table(analyses)]
    facts = dict(_flatten(run_info))
    for analysis in analyses:
        run = {key: value for key, value in analysis.description.run.items() if key != "certificate"}
        facts |= {key: value for key, value in _flatten(run) if key not in facts}
    certificate = next((a.description.run["certificate"] for a in analyses if "certificate" in a.description.run), None)
    if isinstance(certificate, Mapping):
        tables.append(_certificate_table(certificate))
    if facts:
        tables.append(Table("Run", ("quantity", "value"), tuple(facts.items())))
    return tables


def _stream_table(analyses: Sequence[EnsembleAnalysis]) -> Table:
    """Tabulate how the streams were made, a column each."""
    columns: dict[str, dict[str, str]] = {}
    for analysis in analyses:
        for index, stream in enumerate(analysis.streams):
            label = analysis.label if len(analysis.streams) == 1 else f"{analysis.label}, stream {index}"
            columns[label] = {
                "algorithm": stream.algorithm,
                "chains": str(stream.n_chains),
                "thermalisation (updates)": str(stream.thermalisation_updates),
                "adaptation frozen at update": str(stream.freeze_update),
                "seed": str(stream.seed),
                "field type": stream.field_dtype.name,
                "started from": stream.parent_stream or ABSENT,
                "flow SHA-256": stream.flow_sha256[:_SHORT_FINGERPRINT] or ABSENT,
                **{key: value for key, value in _flatten(stream.algorithm_parameters) if "sha256" not in key},
            }
    quantities = dict.fromkeys(key for column in columns.values() for key in column)
    rows = tuple((key, *(column.get(key, ABSENT) for column in columns.values())) for key in quantities)
    return Table("Streams", ("quantity", *columns), rows)


def _certificate_table(certificate: Mapping[str, object]) -> Table:
    """Tabulate the checks that the flow passed before it proposed."""
    checks = certificate.get("checks", [])
    rows = tuple(
        (
            str(check["name"]),
            "not finite" if check["value"] is None else f"{check['value']:.2g} {check['unit']}".strip(),
            f"{check['tolerance']:.2g}",
            "yes" if check["passed"] else "NO",
            str(check["detail"]),
        )
        for check in (checks if isinstance(checks, Sequence) else ())
    )
    mark = str(certificate.get("fingerprint"))[:_SHORT_FINGERPRINT]
    note = f"Networks in {certificate.get('dtype')}; fingerprint {mark}."
    return Table("Certificate of the flow", ("check", "value", "limit", "passed", "detail"), rows, note)


def _flatten(mapping: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)))
    return rows


def _diagnostics_table(analyses: Sequence[EnsembleAnalysis]) -> Table:
    rows = tuple(
        (
            analysis.label,
            entry.name,
            format_number(entry.r_hat, ".4f"),
            format_number(entry.ess_bulk, ".0f"),
            format_number(entry.ess_tail, ".0f"),
            format_number(entry.tau_int_bulk),
            format_number(analysis.observables[entry.name].tau_int),
        )
        for analysis in analyses
        for entry in chain_diagnostics(analysis)
    )
    columns = ("ensemble", "observable", "R-hat", "bulk ESS", "tail ESS", "N/(2 bulk ESS)", "tau_int (Γ-method)")
    note = "ArviZ counts effective draws of N: 2 tau_int = N/ESS. Its bulk ESS is of rank-transformed draws."
    return Table("R-hat and effective sample sizes (ArviZ)", columns, rows, note)


def _is_large(column: str, cell: str) -> bool:
    """Whether a cell of a z column calls for attention."""
    if not column.startswith("z"):
        return False
    try:
        return abs(float(cell)) > _LARGE_Z
    except ValueError:
        return cell.startswith("void")
