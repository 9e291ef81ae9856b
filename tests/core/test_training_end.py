"""Trainings that end early: when the acceptance is reached, at the same step however often they are interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowmc.flows import Flow, build_flow, fingerprint
from flowmc.theories import Ising, Phi4
from flowmc.training import STOP_WINDOW, TrainingConfig, TrainingFiles, TrainingResult, train

THEORY = Phi4((4, 4), m2=-4.0, lam=8.0)
COUPLING: dict[str, object] = {
    "kind": "coupling",
    "layers": [{"kind": "affine", "hidden": [4]}, {"kind": "sinh_arcsinh"}],
    "repeat": 1,
}
CONFIG = TrainingConfig(
    steps=110, batch_size=16, learning_rate=5e-3, warmup_steps=5, seed=3, checkpoint_every=40, threads=1
)
FIELDS = 0.5 * np.random.default_rng(1).standard_normal((50, 4, 4))
# Objectives and samples: draws that serve the gradient, draws for the log alone, and both.
CASES = {
    "reverse": (CONFIG, None),
    "forward": (replace(CONFIG, objective="forward_kl"), FIELDS),
    "mixed": (replace(CONFIG, forward_weight=0.2), FIELDS),
}


def fresh() -> Flow:
    return build_flow(COUPLING, THEORY, seed=1)


def reached_at(result: TrainingResult, target: float) -> int:
    """Return the first step whose window has the target as its mean, by hand."""
    acceptance = np.array([record.acceptance for record in result.records])
    means = np.convolve(acceptance, np.full(STOP_WINDOW, 1 / STOP_WINDOW), mode="valid")
    return STOP_WINDOW + int(np.argmax(means >= target))


def interrupted(config: TrainingConfig, path: Path, samples: np.ndarray | None, moment: int) -> TrainingResult:
    """Go on with a training up to a step."""
    seen: list[int] = []
    return train(
        fresh(),
        THEORY,
        config,
        path,
        samples=samples,
        resume=True,
        on_record=lambda record: seen.append(record.step),
        should_stop=lambda: "now" if seen[-1] == moment else "",
    )


@pytest.mark.parametrize("case", CASES)
def test_ends_where_the_mean_over_the_window_reaches_the_target(case: str, tmp_path: Path) -> None:
    config, samples = CASES[case]
    whole = train(fresh(), THEORY, config, tmp_path / "whole.safetensors", samples=samples)
    assert (whole.step, whole.ended_by) == (110, "steps")
    window = [record.acceptance for record in whole.records if 21 <= record.step <= 70]
    # A hair below a mean that was seen, so that rounding decides nothing.
    ending = replace(config, target_acceptance=float(np.mean(window)) - 1e-9)
    expected = reached_at(whole, ending.target_acceptance)
    assert STOP_WINDOW <= expected <= 70
    flow = fresh()
    early = train(flow, THEORY, ending, tmp_path / "early.safetensors", samples=samples)
    assert (early.step, early.ended_by, early.finished) == (expected, "target_acceptance", True)
    assert [replace(record, seconds=0) for record in early.records] == [
        replace(record, seconds=0) for record in whole.records[:expected]
    ]
    # Interrupted at these steps, it ends at the same one, with the same weights and log.
    path = tmp_path / "parts.safetensors"
    for moment in (20, 45, expected - 1):
        assert not interrupted(ending, path, samples, moment).finished
    resumed = fresh()
    result = train(resumed, THEORY, ending, path, samples=samples, resume=True)
    assert (result.step, result.ended_by) == (expected, "target_acceptance")
    assert fingerprint(resumed) == fingerprint(flow)
    logs = [TrainingFiles(tmp_path / f"{name}.safetensors").log.read_text() for name in ("early", "parts")]
    plain = [[{**json.loads(line), "seconds": 0} for line in log.splitlines()] for log in logs]
    assert plain[0] == plain[1]
    # A process that was killed after the last checkpoint, before the flow file was written, adds no step.
    again = fresh()
    result = train(again, THEORY, ending, path, samples=samples, resume=True)
    assert (result.step, result.ended_by) == (expected, "target_acceptance")
    assert fingerprint(again) == fingerprint(flow)


def test_waits_for_a_whole_window(tmp_path: Path) -> None:
    # Whatever is reached before.
    result = train(fresh(), THEORY, replace(CONFIG, target_acceptance=1e-9), tmp_path / "flow.safetensors")
    assert (result.step, result.ended_by) == (STOP_WINDOW, "target_acceptance")


def test_takes_the_estimates_that_there_are(tmp_path: Path) -> None:
    config = replace(CONFIG, target_acceptance=1e-9, log_every=15)
    result = train(fresh(), THEORY, config, tmp_path / "flow.safetensors")
    # The first line of the log that ends a window of 50 steps.
    assert (result.step, result.ended_by) == (60, "target_acceptance")
    assert [record.step for record in result.records] == [1, 15, 30, 45, 60]


def test_is_off_by_default(tmp_path: Path) -> None:
    theory = Ising((4, 4), 0.0)
    flow = build_flow({"kind": "autoregressive"}, theory, seed=1)
    result = train(flow, theory, replace(CONFIG, steps=60), tmp_path / "flow.safetensors")
    assert min(record.acceptance for record in result.records[-10:]) > 0.9
    assert (result.step, result.ended_by) == (60, "steps")


@pytest.mark.parametrize("path", ["couplings", "temperature"])
def test_annealing_must_have_arrived(path: str, tmp_path: Path) -> None:
    config = replace(CONFIG, target_acceptance=1e-9, annealing=0.8, annealing_path=path)
    arrival = next(step for step in range(1, 111) if config.theory_at(step, THEORY) is THEORY)
    assert arrival > 1
    result = train(fresh(), THEORY, config, tmp_path / "flow.safetensors")
    assert (result.step, result.ended_by) == (arrival + STOP_WINDOW - 1, "target_acceptance")


def test_without_its_log_a_training_waits_for_another_window(tmp_path: Path) -> None:
    config = replace(CONFIG, target_acceptance=1e-9)
    path = tmp_path / "flow.safetensors"
    interrupted(config, path, None, 40)
    TrainingFiles(path).log.unlink()
    result = train(fresh(), THEORY, config, path, resume=True)
    assert (result.step, result.ended_by) == (40 + STOP_WINDOW, "target_acceptance")
