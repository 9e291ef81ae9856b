"""Comparison of ensembles: agreement for one theory, disagreement for two, and what each costs."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmc_analysis.comparison import Comparison, compare, compare_analyses, compare_many
from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.estimate import Estimate


@pytest.fixture(scope="module")
def comparison(ensembles: Mapping[str, Path]) -> Comparison:
    return compare_many(list(ensembles.values()), list(ensembles))


def test_samplers_of_one_theory_agree(comparison: Comparison) -> None:
    assert comparison.verdict.passed, str(comparison.verdict)
    assert comparison.passed
    assert set(comparison.scores) == {"hybrid - flow", "hybrid - hmc", "flow - hmc"}
    assert {"susceptibility", "action_density", "two_point_zero_momentum[0]"} <= set(comparison.judged)
    # C(T - t) repeats C(t) and must not be counted twice.
    assert "two_point_zero_momentum[4]" not in comparison.judged


def test_ensemble_of_another_distribution_disagrees(
    ensembles: Mapping[str, Path], tmp_path: Path, synthetic_runs: Mapping[str, Any], rng: np.random.Generator
) -> None:
    run = synthetic_runs["flow"]
    wrong = dataclasses.replace(run, sampled=dataclasses.replace(run.target, mass=1.1)).write(tmp_path / "w.h5", rng)
    result = compare(wrong, ensembles["hmc"], labels=("wrong", "hmc"))
    assert not result.verdict.passed
    assert not result.passed


def test_z_scores_are_differences_over_combined_errors(comparison: Comparison) -> None:
    hybrid, _, hmc = comparison.analyses
    a, b = hybrid.observables["susceptibility"], hmc.observables["susceptibility"]
    score = next(score for score in comparison.scores["hybrid - hmc"] if score.name == "susceptibility")
    assert score.z == pytest.approx((a.value - b.value) / math.hypot(a.error, b.error))


def test_cost_ratios_and_break_even(comparison: Comparison) -> None:
    flow, hmc = comparison.analyses[1:]
    ratio = next(r for r in comparison.cost_ratios if (r.label, r.observable) == ("flow", "susceptibility"))
    costs = [a.cost.per_independent(a.observables["susceptibility"]).value for a in (flow, hmc)]
    assert ratio.baseline == "hmc"
    assert ratio.without_training.value == pytest.approx(costs[0] / costs[1])
    assert ratio.with_training.value > ratio.without_training.value
    # Make sampling cheap: training is then paid off where both have cost the same.
    cheap = dataclasses.replace(flow, cost=dataclasses.replace(flow.cost, sampling_seconds=1e-3))
    ratio = next(r for r in compare_analyses([cheap, hmc]).cost_ratios if r.observable == "susceptibility")
    cheap_cost = cheap.cost.per_independent(cheap.observables["susceptibility"]).value
    assert cheap_cost * ratio.break_even + cheap.cost.training_seconds == pytest.approx(costs[1] * ratio.break_even)


def test_baseline_is_the_cheapest_that_needs_no_training(comparison: Comparison) -> None:
    hybrid, flow, hmc = comparison.analyses
    assert comparison.baseline is hmc
    dear = dataclasses.replace(hmc, label="dear", cost=dataclasses.replace(hmc.cost, sampling_seconds=1e6))
    result = compare_analyses([hmc, flow, dear])
    assert result.baseline.label == "hmc"
    assert {(ratio.label, ratio.baseline) for ratio in result.cost_ratios} == {("flow", "hmc"), ("dear", "hmc")}
    note = result.ratio_table().note
    assert note.startswith("Baseline: hmc, the cheapest")
    assert "repeat the runs" in note
    trained = compare_analyses([flow, hybrid])
    assert trained.baseline is hybrid
    assert trained.ratio_table().note.startswith("Baseline: hybrid, the last")


def test_many_ensembles_are_all_judged_and_shown_with_the_main_one(comparison: Comparison) -> None:
    main = comparison.analyses[0]
    others = [dataclasses.replace(comparison.analyses[2], label=f"hmc {i}") for i in range(4)]
    result = compare_analyses([main, *others])
    assert len(result.scores) == 10
    assert list(result.shown_scores) == [f"hybrid - hmc {i}" for i in range(4)]
    table = result.observable_table()
    assert [column for column in table.columns if column.startswith("z: ")] == [f"z: {p}" for p in result.shown_scores]
    assert "All 10 pairs are judged" in table.note
    assert result.verdict.count == sum(
        sum(score.name in result.judged for score in scores) for scores in result.scores.values()
    )
    assert any(score is result.verdict.worst for score in result.scores[result.worst_pair])
    few = compare_analyses([main, *others[:3]])
    assert few.shown_scores == few.scores
    assert "pairs are judged" not in few.observable_table().note


def test_undefined_and_noisy_observables(comparison: Comparison) -> None:
    """NaN values cannot be compared, NaN errors of finite values fail, noisy masses are shown but not judged."""
    a, _, b = comparison.analyses

    def with_estimate(name: str, estimate: Estimate) -> Comparison:
        result = dataclasses.replace(a.results[name], estimate=estimate)
        return compare_analyses([dataclasses.replace(a, results={**a.results, name: result}), b])

    undefined = with_estimate("effective_mass[1]", Estimate(math.nan, math.nan))
    assert "effective_mass[1]" not in {score.name for score in undefined.scores["hybrid - hmc"]}
    assert undefined.verdict.passed
    noisy = with_estimate("effective_mass[1]", Estimate(0.8, 0.5))
    assert "effective_mass[1]" in {score.name for score in noisy.scores["hybrid - hmc"]}
    assert "effective_mass[1]" not in noisy.judged
    stuck = with_estimate("susceptibility", Estimate(0.8, math.nan, math.inf))
    assert not stuck.verdict.passed


def test_tables_are_rectangular_and_json_is_valid(comparison: Comparison) -> None:
    for table in comparison.tables():
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert all(isinstance(cell, str) for row in table.rows for cell in row)
    result = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert set(result["ensembles"]) == {"hybrid", "flow", "hmc"}
    assert result["verdict"]["passed"] is True


def test_equal_algorithms_get_distinct_labels(ensembles: Mapping[str, Path], tmp_path: Path) -> None:
    other = shutil.copy(ensembles["hmc"], tmp_path / "other.h5")
    assert compare(ensembles["hmc"], other).labels == ("hmc 1", "hmc 2")


def test_ensemble_against_itself_is_refused(ensembles: Mapping[str, Path]) -> None:
    with pytest.raises(AnalysisError, match="same file twice"):
        compare(ensembles["hmc"], ensembles["hmc"])


def test_meaningless_comparisons_are_refused(
    ensembles: Mapping[str, Path], tmp_path: Path, synthetic_runs: Mapping[str, Any], rng: np.random.Generator
) -> None:
    run = synthetic_runs["hmc"]
    other = dataclasses.replace(run, target=dataclasses.replace(run.target, mass=0.9), n_cycles=40)
    path = other.write(tmp_path / "other.h5", rng)
    with pytest.raises(AnalysisError, match="equal couplings"):
        compare(ensembles["hmc"], path, labels=("a", "b"))
    with pytest.raises(AnalysisError, match="its own label"):
        compare(ensembles["hmc"], ensembles["flow"], labels=("a", "a"))
    with pytest.raises(AnalysisError, match="1 labels for 2"):
        compare_many([ensembles["hmc"], ensembles["flow"]], ["a"])
    with pytest.raises(AnalysisError, match="two or more"):
        compare_many([ensembles["hmc"]])
