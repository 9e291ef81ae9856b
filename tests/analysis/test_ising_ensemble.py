"""Ensembles of spins end to end: exact values, monitors, importance sampling, comparison, report, export."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmc_analysis.arviz_export import chain_diagnostics, to_datasets
from flowmc_analysis.comparison import Comparison, compare, compare_analyses, compare_many
from flowmc_analysis.ensemble import EnsembleAnalysis, analyze
from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.exact_ising import enumerate_ising
from flowmc_analysis.history import read_history
from flowmc_analysis.ising_observables import ISING_OBSERVABLES
from flowmc_analysis.observables import Configurations, ObservableContext, measure
from flowmc_analysis.production import read_production
from flowmc_analysis.report import render_report
from flowmc_analysis.tables import exact_table
from flowmc_analysis.zscores import judge, z_score
from flowmc_ensembles import Ensemble

LABELS = ("metropolis+flow", "flow", "metropolis")


@pytest.fixture(scope="module")
def comparison(ising_ensembles: Mapping[str, Path]) -> Comparison:
    return compare_many(list(ising_ensembles.values()), list(ising_ensembles))


@pytest.fixture(scope="module")
def analyses(comparison: Comparison) -> dict[str, EnsembleAnalysis]:
    return {analysis.label: analysis for analysis in comparison.analyses}


@pytest.mark.parametrize("label", LABELS)
def test_every_observable_is_the_enumerated_one(
    label: str, analyses: Mapping[str, EnsembleAnalysis], ising_runs: Mapping[str, Any]
) -> None:
    run = ising_runs[label]
    sums = run.exact
    context = ObservableContext(run.shape, {"beta": run.beta, "coupling": run.coupling, "field": run.field})
    states = measure(Configurations(sums.states, 2, sums.action), ISING_OBSERVABLES)
    means = {name: np.tensordot(sums.probability, values, axes=1) for name, values in states.items()}
    expected: dict[str, float] = {}
    for name, entry in ISING_OBSERVABLES.observables.items():
        if not entry.applies(context):
            continue
        values = entry.function(means, context)
        if values.ndim == 0:
            expected[name] = float(values)
        else:
            expected |= {f"{name}[{i + entry.first_index}]": float(value) for i, value in enumerate(values)}
    observables = analyses[label].observables
    assert set(observables) == set(expected) - {"two_point_zero_momentum[3]"}  # C(T - t) = C(t)
    verdict = judge(z_score(name, e.value, expected[name], e.error) for name, e in observables.items())
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize("label", LABELS)
def test_monitors_are_quiet(label: str, analyses: Mapping[str, EnsembleAnalysis]) -> None:
    expected = {"local_field"} | (set() if label == "metropolis" else {"weight_ratio", "mode_drop"})
    analysis = analyses[label]
    assert {monitor.name for monitor in analysis.monitors} == expected
    assert analysis.verdict is not None
    assert analysis.verdict.passed, str(analysis.verdict)
    assert not any(warning.startswith("monitors") for warning in analysis.warnings)
    assert "local_field" not in analysis.observables


@pytest.mark.parametrize("label", ["flow", "metropolis"])
def test_a_chain_at_another_temperature_raises_the_local_field_monitor(
    label: str, tmp_path: Path, ising_runs: Mapping[str, Any], rng: np.random.Generator
) -> None:
    wrong = dataclasses.replace(ising_runs[label], sampled_beta=0.36)
    analysis = analyze(wrong.write(tmp_path / "wrong.h5", rng))
    assert analysis.verdict is not None
    assert not analysis.verdict.passed
    assert analysis.verdict.worst.name == "local_field"


@pytest.mark.parametrize("label", ["metropolis+flow", "flow"])
def test_importance_sampling_is_exact(
    label: str, analyses: Mapping[str, EnsembleAnalysis], ising_runs: Mapping[str, Any]
) -> None:
    run, weights = ising_runs[label], analyses[label].weights
    sums, volume = run.exact, math.prod(run.shape)
    assert weights is not None
    mean_action = float(sums.probability @ sums.action)
    expected = {
        "ln_z": sums.log_z,
        "ln_z_reverse": sums.log_z,
        "action_importance": mean_action,
        "energy_importance": sums.energy,
        "entropy_per_site": (sums.log_z + mean_action) / volume,
        "free_energy_per_site": -sums.log_z / (run.beta * volume),
    }
    found = weights.estimates
    verdict = judge(z_score(name, found[name].value, value, found[name].error) for name, value in expected.items())
    assert verdict.passed, str(verdict)
    assert found["ln_z_variational"].value < sums.log_z
    # ln Z and <S> are anticorrelated: the entropy is better known than their independent errors would have it.
    apart = math.hypot(found["ln_z"].error, found["action_importance"].error) / volume
    assert found["entropy_per_site"].error < apart


@pytest.mark.parametrize("label", LABELS)
def test_exact_values_stand_beside_the_measured_ones(
    label: str, analyses: Mapping[str, EnsembleAnalysis], ising_runs: Mapping[str, Any]
) -> None:
    """Kaufman's values are those of the enumeration, and the measured ones are where their errors say."""
    sums = ising_runs[label].exact
    exact = {score.name: score for score in analyses[label].exact}
    assert exact["energy"].expected == pytest.approx(sums.energy)
    assert exact["specific_heat"].expected == pytest.approx(sums.specific_heat)
    assert ("ln_z" in exact) == ("entropy_per_site" in exact) == (label != "metropolis")
    if "ln_z" in exact:
        assert exact["ln_z"].expected == pytest.approx(sums.log_z)
    assert judge(exact.values()).passed
    table = exact_table([analyses[label]])
    assert table.columns == ("quantity", "exact", label, f"z: {label}")
    assert [row[0] for row in table.rows] == list(exact)


def test_exact_values_are_given_only_where_they_hold(
    tmp_path: Path, ising_runs: Mapping[str, Any], rng: np.random.Generator
) -> None:
    short = dataclasses.replace(ising_runs["metropolis"], n_cycles=40, n_chains=2)
    changes: tuple[dict[str, Any], ...] = (
        {"field": 0.1},
        {"coupling": -1.0, "shape": (4, 3)},
        {"shape": (2, 2, 3)},
        {"beta": 0.0},
    )
    for number, change in enumerate(changes):
        analysis = analyze(dataclasses.replace(short, **change).write(tmp_path / f"{number}.h5", rng))
        assert not analysis.exact
        assert exact_table([analysis]).rows == ()


def test_antiferromagnet(tmp_path: Path, ising_runs: Mapping[str, Any], rng: np.random.Generator) -> None:
    """On even extents it has exact values, and it orders in the staggered magnetisation."""
    run = dataclasses.replace(ising_runs["flow"], coupling=-1.0)
    analysis = analyze(run.write(tmp_path / "opposite.h5", rng))
    exact = {score.name: score for score in analysis.exact}
    assert {"energy", "specific_heat", "ln_z"} <= set(exact)
    assert exact["energy"].expected == pytest.approx(run.exact.energy)
    assert judge(exact.values()).passed
    mirrored = enumerate_ising(run.shape, run.beta, 1.0)  # one sublattice flipped
    expected = {"magnetisation_staggered_abs": "magnetisation_abs", "susceptibility_staggered": "susceptibility"}
    found = analysis.observables
    scores = [z_score(n, found[n].value, getattr(mirrored, of), found[n].error) for n, of in expected.items()]
    assert judge(scores).passed
    assert set(expected) <= set(analysis.series)


def test_acceptance_of_sweeps_is_a_fraction(
    analyses: Mapping[str, EnsembleAnalysis], ising_ensembles: Mapping[str, Path]
) -> None:
    stream = Ensemble(ising_ensembles["metropolis+flow"]).streams[0]
    kept = np.asarray(stream.history("update")) > stream.description.thermalisation_updates
    kind = np.asarray(stream.history("proposal_kind"))[kept]
    acceptance = np.asarray(stream.history("acceptance"), dtype=np.float64)[kept]
    rates = analyses["metropolis+flow"].acceptance_by_kind
    assert rates["metropolis"].value == pytest.approx(acceptance[kind == 0].mean())
    assert 0.0 < rates["metropolis"].value < np.asarray(stream.history("accepted"))[kept][kind == 0].mean()
    assert rates["flow"].value == analyses["metropolis+flow"].acceptance


class _WithoutColumns:
    """A stream of an older file, whose history lacks columns."""

    def __init__(self, stream: Any, *missing: str) -> None:
        self._stream = stream
        self.description, self.history = stream.description, stream.history
        self.history_names = tuple(name for name in stream.history_names if name not in missing)


def test_older_histories_fall_back_to_accept_bits(ising_ensembles: Mapping[str, Path]) -> None:
    stream = Ensemble(ising_ensembles["flow"]).streams[0]
    old = read_history([_WithoutColumns(stream, "acceptance", "action_proposed")])  # type: ignore[list-item]
    new = read_history([stream])
    np.testing.assert_array_equal(old.acceptance, new.acceptance)
    assert old.action_proposed is None
    assert new.action_proposed is not None
    assert new.action_proposed.shape == new.log_weight.shape


@pytest.mark.parametrize("label", LABELS)
def test_json_form(label: str, analyses: Mapping[str, EnsembleAnalysis]) -> None:
    result = json.loads(json.dumps(analyses[label].to_dict(), allow_nan=False))
    assert {"energy", "specific_heat", "correlation[1]", "magnetisation_abs"} <= set(result["observables"])
    names = ("ln_z", "ln_z_variational", "action_importance", "energy_importance")
    for name in (*names, "entropy_per_site", "free_energy_per_site"):
        assert (result[name] is not None) == (label != "metropolis")
    assert set(result["exact"]["energy"]) == {"value", "error", "exact", "z"}


def test_samplers_agree_and_the_report_renders(comparison: Comparison) -> None:
    assert comparison.passed, str(comparison.verdict)
    assert {"energy", "specific_heat", "correlation[2]"} <= set(comparison.judged)
    titles = [table.title for table in comparison.tables()]
    assert titles.count("Exact values") == 1
    html = render_report([analysis for analysis in comparison.analyses if analysis.label != "flow"])
    for words in (
        "metropolis+flow",
        "s − tanh h",
        "Exact values",
        "entropy per site",
        "variational bound",
        "History of energy",
        "History of magnetisation_abs",
        "Correlation of two spins",
    ):
        assert words in html
    assert "cosh(m(t" not in html  # there is no effective mass to draw it with


def test_export_to_arviz(ising_ensembles: Mapping[str, Path], analyses: Mapping[str, EnsembleAnalysis]) -> None:
    groups = to_datasets(read_production(ising_ensembles["metropolis+flow"]))
    energy, lp = groups["posterior"]["energy"].values, groups["sample_stats"]["lp"].values
    np.testing.assert_allclose(lp, -0.4 * 16 * energy)
    assert {"magnetisation", "magnetisation_abs", "susceptibility"} <= set(groups["posterior"].data_vars)
    entries = chain_diagnostics(analyses["metropolis+flow"])
    assert {entry.name for entry in entries} == set(analyses["metropolis+flow"].series)


def test_diagnostics_of_spins_that_hardly_move(
    analyses: Mapping[str, EnsembleAnalysis], rng: np.random.Generator
) -> None:
    """What never changes has no diagnostics; what has two values has what ArviZ makes of it, without warnings."""
    signs = np.where(rng.random((4, 100)) < 0.5, 1.0, -1.0)
    stuck = np.array([1.0, 1.0, -1.0, -1.0])[:, None] * np.ones(100)
    series = {"constant": np.ones((4, 100)), "signs": signs, "stuck": stuck}
    constant, two_values, _ = chain_diagnostics(dataclasses.replace(analyses["flow"], series=series))
    assert math.isnan(constant.r_hat)
    assert math.isnan(constant.ess_bulk)
    assert two_values.ess_bulk > 100.0


def test_frozen_spins_are_analysed_compared_and_reported(
    tmp_path: Path, ising_runs: Mapping[str, Any], rng: np.random.Generator
) -> None:
    """So cold that no flip is ever accepted: all observables but the noise of nothing are constant."""
    cold = dataclasses.replace(ising_runs["metropolis"], beta=6.0, n_cycles=40, n_chains=3)
    a, b = (analyze(cold.write(tmp_path / f"{label}.h5", rng), label=label) for label in ("a", "b"))
    assert a.observables["energy"].value == -2.0
    assert math.isnan(a.observables["energy"].error)
    (monitor,) = a.monitors
    assert "same value" in monitor.void
    assert any("constant" in warning for warning in a.warnings)
    with pytest.raises(AnalysisError, match="no z-scores"):
        compare_analyses([a, b])
    assert "exact" in json.dumps(a.to_dict(), allow_nan=False)
    assert "Exact values" in render_report([a])


def test_what_is_frozen_alike_is_not_judged_and_what_is_not_fails(comparison: Comparison) -> None:
    a, _, b = comparison.analyses

    def frozen(analysis: EnsembleAnalysis, value: float) -> EnsembleAnalysis:
        result = analysis.results["correlation[1]"]
        estimate = dataclasses.replace(result.estimate, value=value, error=math.nan, tau_int=math.inf)
        results = {**analysis.results, "correlation[1]": dataclasses.replace(result, estimate=estimate)}
        return dataclasses.replace(analysis, results=results)

    alike = compare_analyses([frozen(a, 1.0), frozen(b, 1.0)])
    assert alike.verdict.passed
    assert "correlation[1]" not in alike.judged
    assert not compare_analyses([frozen(a, 1.0), frozen(b, 0.5)]).verdict.passed
    assert not compare_analyses([frozen(a, 1.0), b]).verdict.passed


def test_fields_that_are_no_spins_are_refused(
    ising_ensembles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowmc_analysis import production

    broken = dataclasses.replace(ISING_OBSERVABLES, accepts=lambda field: not np.any(field == -1))
    monkeypatch.setattr(production, "observable_set", lambda _: broken)
    with pytest.raises(AnalysisError, match="int8 between -1 and 1"):
        analyze(ising_ensembles["flow"])


def test_ensembles_of_different_temperatures_are_not_compared(
    tmp_path: Path, ising_ensembles: Mapping[str, Path], ising_runs: Mapping[str, Any], rng: np.random.Generator
) -> None:
    other = dataclasses.replace(ising_runs["metropolis"], beta=0.41, n_cycles=40)
    with pytest.raises(AnalysisError, match="equal couplings"):
        compare(ising_ensembles["metropolis"], other.write(tmp_path / "other.h5", rng), labels=("a", "b"))
