"""What stands at the top of a report: nothing green over what could not be judged, or over what weights got wrong."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmc_analysis import report
from flowmc_analysis.comparison import compare_analyses
from flowmc_analysis.doubts import exact_doubts, weight_doubts
from flowmc_analysis.ensemble import EnsembleAnalysis, analyze
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.exact_values import exact_values
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.headlines import State, headlines
from flowmc_analysis.monitors import Monitor
from flowmc_analysis.observables import ObservableContext
from flowmc_analysis.report import render_report
from flowmc_analysis.weight_analysis import WeightAnalysis
from flowmc_analysis.zscores import z_score


@pytest.fixture(scope="module")
def hybrid(ising_ensembles: Mapping[str, Path]) -> EnsembleAnalysis:
    return analyze(ising_ensembles["metropolis+flow"], label="hybrid")


@pytest.fixture(scope="module")
def weights(hybrid: EnsembleAnalysis) -> WeightAnalysis:
    assert hybrid.weights is not None
    return hybrid.weights


@pytest.fixture(scope="module")
def bad_flow(tmp_path_factory: pytest.TempPathFactory, ising_runs: Mapping[str, Any]) -> EnsembleAnalysis:
    """A flow that likes opposite neighbours, for a target that hardly has any."""
    run = dataclasses.replace(ising_runs["metropolis+flow"], beta=0.6, flow_beta=-0.3, n_cycles=120)
    path = tmp_path_factory.mktemp("bad") / "bad.h5"
    return analyze(run.write(path, np.random.default_rng(zlib.crc32(b"headlines/bad"))), label="bad")


def states(analysis: EnsembleAnalysis) -> list[State]:
    return [headline.state for headline in headlines([analysis])]


def test_good_run_has_good_headlines_only(hybrid: EnsembleAnalysis, ising_ensembles: Mapping[str, Path]) -> None:
    assert states(hybrid) == [State.GOOD]
    assert hybrid.doubts == ()
    plain = analyze(ising_ensembles["metropolis"])
    (headline,) = headlines([plain])
    assert "1 identity quiet, p = " in headline.sentence
    first, *_ = headlines([hybrid, plain], compare_analyses([hybrid, plain]))
    assert first.state is State.GOOD
    assert "p ≤" in first.sentence
    assert "upper bound" in first.sentence


def test_bad_flow_is_seen_at_the_top(bad_flow: EnsembleAnalysis, monkeypatch: pytest.MonkeyPatch) -> None:
    assert State.GOOD not in states(bad_flow)
    assert any("forward ESS" in headline.sentence for headline in headlines([bad_flow]))
    assert all(any(doubt in warning for warning in bad_flow.warnings) for doubt in bad_flow.doubts)
    monkeypatch.setattr(report, "draw_pictures", lambda *_: ())
    html = render_report([bad_flow])
    assert '<li class="attention">' in html
    assert "in doubt" in html
    assert bad_flow.weights is not None
    assert 0.0 < bad_flow.weights.ess_forward < 1e-4
    assert f"forward {bad_flow.weights.ess_forward:#.3g}" in html


def test_weakness_of_the_weights_is_said_once_with_all_it_concerns(bad_flow: EnsembleAnalysis) -> None:
    assert bad_flow.weights is not None
    shared = bad_flow.weights.ln_z.warnings
    assert shared
    for text in shared:
        (warning,) = [warning for warning in bad_flow.warnings if warning.endswith(f": {text}")]
        for name in ("ln_z", "action_importance", "energy_importance", "entropy_per_site", "free_energy_per_site"):
            assert name in warning.split(": ", 1)[0].split(", ")


@pytest.mark.parametrize(("name", "state"), [("mode_drop", State.ATTENTION), ("local_field", State.GOOD)])
def test_void_monitors_are_named_and_those_of_weights_call_for_attention(
    hybrid: EnsembleAnalysis, name: str, state: State
) -> None:
    """Spins that are frozen are no fault of anyone; weights that cannot be judged are."""
    monitors = tuple(dataclasses.replace(m, void="no variance") if m.name == name else m for m in hybrid.monitors)
    (headline,) = headlines([dataclasses.replace(hybrid, monitors=monitors)])
    assert headline.state is state
    assert f"1 void ({name}): no variance" in headline.sentence


def test_nothing_to_judge_calls_for_attention(hybrid: EnsembleAnalysis) -> None:
    void = (Monitor(z_score("weight_ratio", 1.0, 1.0, math.nan), "identity", "Pareto k = 0.9"),)
    (headline,) = headlines([dataclasses.replace(hybrid, monitors=void, verdict=None)])
    assert headline.state is State.ATTENTION
    assert "no monitor could be judged; 1 void (weight_ratio): Pareto k = 0.9" in headline.sentence


def test_raised_monitors_stay_bad_whatever_is_void(hybrid: EnsembleAnalysis) -> None:
    assert hybrid.verdict is not None
    failed = dataclasses.replace(hybrid, verdict=dataclasses.replace(hybrid.verdict, passed=False))
    assert states(failed) == [State.BAD]


def test_doubts_of_weights(weights: WeightAnalysis) -> None:
    assert weight_doubts(weights) == ()
    (far,) = weight_doubts(dataclasses.replace(weights, ess_forward=0.4 * weights.ess_reverse))
    assert "forward ESS" in far
    draws, chain = Estimate(59.764, 0.023), Estimate(60.099, 0.018)
    (apart,) = weight_doubts(dataclasses.replace(weights, ln_z=draws, ln_z_reverse=chain))
    assert f"{0.335 / math.hypot(0.023, 0.018):.1f} combined errors" in apart
    perfect = dataclasses.replace(weights, ln_z=Estimate(60.0, 0.0), ln_z_reverse=Estimate(60.0 + 1e-13, 0.0))
    assert weight_doubts(perfect) == ()
    unknown = dataclasses.replace(weights, ln_z_reverse=Estimate(math.nan, math.nan))
    assert weight_doubts(unknown) == ()


def test_doubts_of_exact_values() -> None:
    near, far = z_score("energy", 1.004, 1.0, 0.001), z_score("ln_z", 1.02, 1.0, 0.001)
    frozen = z_score("specific_heat", 0.0, 1.0, math.nan)
    assert exact_doubts([]) == exact_doubts([near, frozen]) == ()
    (doubt,) = exact_doubts([near, far, frozen])
    assert "1 of 3" in doubt
    assert "ln_z (z = +20.0)" in doubt
    assert "energy" not in doubt


@pytest.mark.parametrize(("signs", "doubted"), [((1,) * 8, True), ((1, -1, 1, -1, 1, 1, -1, 1), False)])
def test_chains_that_all_stay_in_one_of_two_modes_are_doubted(
    signs: tuple[int, ...], doubted: bool, rng: np.random.Generator
) -> None:
    mean_field = np.array(signs)[:, None] * rng.normal(0.65, 0.05, (8, 400))
    estimate = gamma_method(mean_field).estimate
    exact = exact_values("phi4", ObservableContext((8, 8), {"m2": -4.0, "lam": 3.2}))
    score = z_score("magnetisation", estimate.value, exact["magnetisation"], estimate.error)
    assert bool(exact_doubts([score])) == doubted
