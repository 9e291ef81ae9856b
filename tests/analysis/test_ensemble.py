"""Analysis of whole ensembles against the exact free field, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmc_analysis.ensemble import EnsembleAnalysis, analyze
from flowmc_analysis.errors import AnalysisError, NonFiniteError
from flowmc_analysis.history import read_history
from flowmc_analysis.monitors import monitor_mode_drop
from flowmc_analysis.tables import analysis_tables
from flowmc_analysis.zscores import judge, z_score
from flowmc_ensembles import Ensemble

LABELS = ("hybrid", "flow", "hmc")


@pytest.fixture(scope="module")
def analyses(ensembles: Mapping[str, Path]) -> dict[str, EnsembleAnalysis]:
    return {label: analyze(path, label=label) for label, path in ensembles.items()}


@pytest.mark.parametrize("label", LABELS)
def test_observables_agree_with_the_free_field(
    label: str, analyses: Mapping[str, EnsembleAnalysis], synthetic_runs: Mapping[str, Any]
) -> None:
    target = synthetic_runs[label].target
    variances = 0.5 / target.kernel  # of the Fourier modes
    extent = target.shape[0]
    momenta = 2.0 * np.pi * np.arange(extent) / extent
    expected = {
        "magnetisation": 0.0,
        "susceptibility": float(variances[0, 0]),
        "phi_squared": float(variances.mean()),
        "action_density": 0.5,
        "binder_cumulant": 0.0,
        "effective_mass[1]": math.acosh(1.0 + 0.5 * target.mass**2),
        "correlation_length": 1.0 / target.mass,
        **{
            f"two_point_zero_momentum[{t}]": float(np.mean(variances[:, 0] * np.cos(momenta * t)))
            for t in range(extent // 2 + 1)
        },
    }
    observables = analyses[label].observables
    verdict = judge(
        [z_score(name, observables[name].value, e, observables[name].error) for name, e in expected.items()]
    )
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize("label", ["hybrid", "flow"])
def test_partition_function_is_the_exact_one(
    label: str, analyses: Mapping[str, EnsembleAnalysis], synthetic_runs: Mapping[str, Any]
) -> None:
    weights = analyses[label].weights
    assert weights is not None
    scores = [
        z_score(name, estimate.value, synthetic_runs[label].target.log_z, estimate.error)
        for name, estimate in (("forward", weights.ln_z), ("reverse", weights.ln_z_reverse))
    ]
    assert judge(scores).passed


@pytest.mark.parametrize("label", LABELS)
def test_exact_values_stand_beside_the_measured_ones(
    label: str, analyses: Mapping[str, EnsembleAnalysis], synthetic_runs: Mapping[str, Any]
) -> None:
    target, analysis = synthetic_runs[label].target, analyses[label]
    exact = {score.name: score for score in analysis.exact}
    assert exact["phi_squared"].expected == pytest.approx(float((0.5 / target.kernel).mean()))
    assert ("ln_z" in exact) == (label != "hmc")
    if "ln_z" in exact:
        assert exact["ln_z"].expected == pytest.approx(target.log_z)
    assert exact["susceptibility"].value == analysis.observables["susceptibility"].value
    assert judge(exact.values()).passed
    titles = [table.title for table in analysis_tables([analysis])]
    assert titles == ["Observables", "Exact values", "Integrated autocorrelation times", "Samplers", "Monitors"]


@pytest.mark.parametrize("label", LABELS)
def test_thermodynamics_per_site_are_not_given_without_a_temperature(
    label: str, analyses: Mapping[str, EnsembleAnalysis]
) -> None:
    result = analyses[label].to_dict()
    for name in ("action_importance", "energy_importance", "entropy_per_site", "free_energy_per_site"):
        assert result[name] is None
    assert (result["ln_z_variational"] is not None) == (label != "hmc")


@pytest.mark.parametrize("label", LABELS)
def test_monitors_are_quiet(label: str, analyses: Mapping[str, EnsembleAnalysis]) -> None:
    expected = {
        "hybrid": {"exp(-delta_H)", "schwinger_dyson", "weight_ratio", "mode_drop"},
        "flow": {"schwinger_dyson", "weight_ratio", "mode_drop"},
        "hmc": {"exp(-delta_H)", "schwinger_dyson"},
    }
    analysis = analyses[label]
    assert {monitor.name for monitor in analysis.monitors} == expected[label]
    assert analysis.verdict is not None
    assert analysis.verdict.passed, str(analysis.verdict)
    assert not analysis.mode_drop_alarm


def test_mode_drop_alarm_where_the_gap_says_nothing(
    analyses: Mapping[str, EnsembleAnalysis], rng: np.random.Generator
) -> None:
    analysis = analyses["hybrid"]
    assert analysis.weights is not None
    draws, states = np.log1p(rng.pareto(1.2, size=(2, 8, 500)))
    states[::2] += 40.0
    gap = monitor_mode_drop(draws, states)
    assert "Pareto" in gap.void
    quiet = dataclasses.replace(analysis, monitors=(gap,))
    assert not quiet.mode_drop_alarm
    weights = dataclasses.replace(analysis.weights, log_weight=draws, log_weight_current=states)
    assert dataclasses.replace(quiet, weights=weights).mode_drop_alarm


@pytest.mark.parametrize("label", LABELS)
def test_thermalisation_is_dropped(
    label: str, analyses: Mapping[str, EnsembleAnalysis], synthetic_runs: Mapping[str, Any]
) -> None:
    run, analysis = synthetic_runs[label], analyses[label]
    cycles = run.n_cycles - run.thermalisation_cycles
    assert (analysis.n_chains, analysis.n_configurations) == (run.n_chains, cycles)
    assert analysis.n_updates == cycles * run.updates_per_cycle
    assert analysis.updates[0] == (run.thermalisation_cycles + 1) * run.updates_per_cycle
    assert analysis.cost.thermalisation_seconds > 0.0


@pytest.mark.parametrize("label", LABELS)
def test_json_form(label: str, analyses: Mapping[str, EnsembleAnalysis]) -> None:
    result = json.loads(json.dumps(analyses[label].to_dict(), allow_nan=False))
    for name in ("magnetisation_abs", "susceptibility", "action_density", "binder_cumulant", "correlation_length"):
        assert {"value", "error", "tau_int", "tau_int_error"} <= set(result["observables"][name])
    assert isinstance(result["acceptance"], float)
    assert "0.5" in result["tau_int_convention"]
    has_flow = label != "hmc"
    for key in ("ess_reverse", "ess_forward", "ln_z", "ln_z_reverse"):
        assert (result[key] is not None) == has_flow
    assert {"name", "value", "expected", "error", "z"} <= set(result["monitors"][0])
    assert (result["cost"]["training_seconds"] > 0.0) == has_flow


def test_acceptance_is_that_of_the_flow_where_there_is_one(
    analyses: Mapping[str, EnsembleAnalysis], ensembles: Mapping[str, Path]
) -> None:
    stream = Ensemble(ensembles["hybrid"]).streams[0]
    kept = np.asarray(stream.history("update")) > stream.description.thermalisation_updates
    accepted, kind = np.asarray(stream.history("accepted"))[kept], np.asarray(stream.history("proposal_kind"))[kept]
    hybrid = analyses["hybrid"]
    assert hybrid.acceptance == pytest.approx(accepted[kind == 1].mean())
    assert hybrid.acceptance_by_kind["hmc"].value == pytest.approx(accepted[kind == 0].mean())
    assert analyses["hmc"].acceptance == analyses["hmc"].acceptance_by_kind["hmc"].value


def test_units_of_autocorrelation_times(analyses: Mapping[str, EnsembleAnalysis]) -> None:
    result: Any = analyses["hybrid"].to_dict()
    entry = result["observables"]["susceptibility"]
    assert result["updates_per_configuration"] == 3.0
    assert entry["tau_int_updates"] == pytest.approx(3.0 * entry["tau_int"])


def test_cost_per_independent_configuration(analyses: Mapping[str, EnsembleAnalysis]) -> None:
    analysis = analyses["flow"]
    estimate, cost = analysis.observables["susceptibility"], analysis.cost
    n = analysis.n_chains * analysis.n_configurations
    assert cost.per_independent(estimate).value == pytest.approx(2.0 * estimate.tau_int * cost.sampling_seconds / n)
    training = cost.per_independent(estimate, with_training=True).value - cost.per_independent(estimate).value
    assert training == pytest.approx(2.0 * estimate.tau_int * cost.training_seconds / n)


def test_streams_become_replicas(tmp_path: Path, synthetic_runs: Mapping[str, Any], rng: np.random.Generator) -> None:
    run = dataclasses.replace(synthetic_runs["hybrid"], n_cycles=40, thermalisation_cycles=5, n_chains=3)
    path = run.write(tmp_path / "two.h5", rng, n_streams=2)
    both, one = analyze(path), analyze(path, streams=[1])
    assert (both.n_chains, one.n_chains) == (6, 3)
    assert both.n_configurations == one.n_configurations
    np.testing.assert_array_equal(both.series["susceptibility"][3:], one.series["susceptibility"])
    assert both.cost.sampling_seconds > one.cost.sampling_seconds


def test_streams_that_do_not_fit_are_refused(
    tmp_path: Path, synthetic_runs: Mapping[str, Any], rng: np.random.Generator
) -> None:
    short = dataclasses.replace(synthetic_runs["hmc"], n_cycles=20, thermalisation_cycles=2, n_chains=2)
    path = short.write(tmp_path / "mixed.h5", rng)
    dataclasses.replace(short, n_cycles=30).add_to(path, rng)
    with pytest.raises(AnalysisError, match=r"streams=\[1\]"):
        analyze(path)
    assert analyze(path, streams=[1]).n_configurations == 28
    with pytest.raises(AnalysisError, match="0 to 1"):
        analyze(path, streams=[2])


def test_no_production_is_refused(tmp_path: Path, synthetic_runs: Mapping[str, Any], rng: np.random.Generator) -> None:
    run = dataclasses.replace(synthetic_runs["hmc"], n_cycles=10, thermalisation_cycles=10)
    with pytest.raises(AnalysisError, match="continue the run"):
        analyze(run.write(tmp_path / "young.h5", rng))


def test_wrong_distribution_raises_the_schwinger_dyson_monitor(
    tmp_path: Path, synthetic_runs: Mapping[str, Any], rng: np.random.Generator
) -> None:
    """The chain samples another mass than the file says: its own virial is V, that of the stated action is not."""
    run = synthetic_runs["flow"]
    wrong = dataclasses.replace(run, sampled=dataclasses.replace(run.target, mass=1.1))
    analysis = analyze(wrong.write(tmp_path / "wrong.h5", rng))
    assert analysis.verdict is not None
    assert not analysis.verdict.passed
    assert any(warning.startswith("monitors:") for warning in analysis.warnings)


class _EditedStream:
    """A stream whose history columns are partly replaced."""

    def __init__(self, stream: Any, columns: Mapping[str, np.ndarray]) -> None:
        self._stream, self._columns = stream, columns
        self.description, self.history_names = stream.description, stream.history_names

    def history(self, name: str) -> np.ndarray:
        return self._columns.get(name, self._stream.history(name))


def test_failed_proposals_are_counted_and_weigh_nothing(ensembles: Mapping[str, Path]) -> None:
    stream = Ensemble(ensembles["flow"]).streams[0]
    proposals, states = (np.array(stream.history(name)) for name in ("log_weight", "log_weight_current"))
    proposals[-1, :3] = np.nan, np.inf, -np.inf
    states[-1, 0] = np.inf
    history = read_history([_EditedStream(stream, {"log_weight": proposals, "log_weight_current": states})])  # type: ignore[list-item]
    assert (history.n_nonfinite, history.n_offsupport) == (3, 1)
    assert np.all(history.log_weight[:3, -1] == -np.inf)
    states[-1, 1] = np.nan
    with pytest.raises(NonFiniteError, match="1 states"):
        read_history([_EditedStream(stream, {"log_weight_current": states})])  # type: ignore[list-item]
