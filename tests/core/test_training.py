"""Training: objective and gradient, schedules, resumption, log, and errors that leave the checkpoint."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmc.errors import FlowFileError, NonFiniteError, ParameterError
from flowmc.flows import Flow, build_flow, fingerprint
from flowmc.seeds import torch_generator
from flowmc.theories import FreeScalar, Phi4, Theory
from flowmc.training import (
    OBJECTIVES,
    SCHEDULES,
    TrainingConfig,
    TrainingFiles,
    TrainingRecord,
    read_log,
    reverse_kl,
    train,
)
from flowmc_analysis.exact import free_scalar_log_z
from flowmc_analysis.weights import ess_reverse

THEORY = Phi4((4, 4), m2=-4.0, lam=8.0)
COUPLING: dict[str, object] = {
    "kind": "coupling",
    "layers": [{"kind": "affine", "hidden": [4]}, {"kind": "sinh_arcsinh"}],
    "repeat": 1,
}
CONFIG = TrainingConfig(
    steps=60, batch_size=64, learning_rate=5e-3, warmup_steps=5, seed=3, checkpoint_every=20, threads=1
)


def fresh(theory: Theory = THEORY, **hyper: object) -> Flow:
    return build_flow({**COUPLING, **hyper}, theory, seed=1)


def test_training_lowers_the_loss_and_raises_the_ess(tmp_path: Path) -> None:
    def evaluate(flow: Flow) -> tuple[float, float, float]:
        log_w = next(reverse_kl(flow, THEORY, 4000, torch_generator(9))).log_w.numpy()
        return -log_w.mean(), log_w.std() / np.sqrt(4000), ess_reverse(log_w)

    flow = fresh()
    before, before_error, before_ess = evaluate(flow)
    result = train(flow, THEORY, replace(CONFIG, steps=300), tmp_path / "flow.safetensors")
    after, after_error, after_ess = evaluate(flow)
    assert result.finished
    assert after < before - 10 * np.hypot(before_error, after_error)
    assert after_ess > before_ess
    assert all(0 < record.ess <= 1 and 0 < record.acceptance <= 1 for record in result.records)
    assert all(record.forward_loss is None for record in result.records)
    assert result.ended_by == "steps"
    assert result.samples == {}


def test_loss_is_minus_log_z_for_the_exact_flow() -> None:
    # A base at the theory's own mass and couplings at the identity: q = p, so log w is ln Z for every draw.
    theory = FreeScalar((4, 4), 0.8)
    flow = fresh(theory, base="free_field", base_mass=0.8, dtype="float64")
    (loss,) = reverse_kl(flow, theory, 50, torch_generator(1))
    np.testing.assert_allclose(loss.log_w.numpy(), free_scalar_log_z((4, 4), 0.8), atol=1e-10)
    assert float(loss.value.detach()) == pytest.approx(-free_scalar_log_z((4, 4), 0.8), abs=1e-10)


def test_gradient_is_that_of_the_expectation() -> None:
    # Common random numbers: the derivative of the loss by finite differences, weight by weight.
    flow = fresh(dtype="float64", base="gaussian")
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch_generator(2), dtype=torch.float64))
    next(reverse_kl(flow, THEORY, 20, torch_generator(4))).value.backward()  # type: ignore[no-untyped-call]
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None
        flat, step = parameter.data.view(-1), 1e-6
        ends = []
        for sign in (1, -1):
            flat[0] += sign * step
            ends.append(float(next(reverse_kl(flow, THEORY, 20, torch_generator(4))).value.detach()))
            flat[0] -= sign * step
        assert float(parameter.grad.view(-1)[0]) == pytest.approx(
            (ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-6
        ), name


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("micro_batch", [0, 16])
def test_resumed_training_is_bit_identical(objective: str, micro_batch: int, tmp_path: Path) -> None:
    config = replace(CONFIG, objective=objective, micro_batch=micro_batch)
    whole, parts = fresh(), fresh()
    train(whole, THEORY, config, tmp_path / "whole.safetensors")
    stops = iter([False] * 24 + [True])
    first = train(
        parts, THEORY, config, tmp_path / "parts.safetensors", should_stop=lambda: "now" if next(stops) else ""
    )
    assert (first.step, first.finished) == (25, False)
    resumed = fresh()
    second = train(resumed, THEORY, config, tmp_path / "parts.safetensors", resume=True)
    assert second.finished
    assert fingerprint(resumed) == fingerprint(whole)
    logs = [TrainingFiles(tmp_path / f"{name}.safetensors").log.read_text() for name in ("whole", "parts")]
    plain = [[{**json.loads(line), "seconds": 0} for line in log.splitlines()] for log in logs]
    assert plain[0] == plain[1]


def test_log_ahead_of_the_checkpoint_is_cut_back(tmp_path: Path) -> None:
    config = replace(CONFIG, log_every=20)
    files = TrainingFiles(tmp_path / "flow.safetensors")
    stops = iter([False] * 24 + [True])
    train(fresh(), THEORY, config, files.flow, should_stop=lambda: "now" if next(stops) else "")
    with files.log.open("a") as log:
        log.write(files.log.read_text().splitlines()[-1].replace('"step": 20', '"step": 40') + "\n")
        # Killed in the middle of a line.
        log.write('{"step": 60, "lo')
    result = train(fresh(), THEORY, config, files.flow, resume=True)
    assert [record.step for record in result.records] == [1, 20, 40, 60]
    assert [json.loads(line)["step"] for line in files.log.read_text().splitlines()] == [1, 20, 40, 60]


def test_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flow.safetensors"
    train(fresh(), THEORY, CONFIG, path)
    with pytest.raises(FlowFileError, match="training"):
        train(fresh(), THEORY, replace(CONFIG, micro_batch=32), path, resume=True)
    other = Phi4((4, 4), -4.0, 7.0)
    with pytest.raises(FlowFileError, match="theory"):
        train(fresh(other), other, CONFIG, path, resume=True)


class TestLog:
    def steps(self, config: TrainingConfig, path: Path) -> list[int]:
        train(fresh(), THEORY, config, path)
        return [json.loads(line)["step"] for line in TrainingFiles(path).log.read_text().splitlines()]

    def test_has_a_line_for_every_step(self, tmp_path: Path) -> None:
        told: list[TrainingRecord] = []
        path = tmp_path / "flow.safetensors"
        result = train(fresh(), THEORY, CONFIG, path, on_record=told.append)
        assert [record.step for record in result.records] == list(range(1, 61))
        assert told == list(result.records) == read_log(TrainingFiles(path).log)
        np.testing.assert_array_equal(
            [record.learning_rate for record in told], [CONFIG.learning_rate_at(step) for step in range(60)]
        )
        assert all(later.seconds >= earlier.seconds for earlier, later in itertools.pairwise(told))

    def test_may_have_fewer(self, tmp_path: Path) -> None:
        path = tmp_path / "flow.safetensors"
        assert self.steps(replace(CONFIG, log_every=25, steps=65), path) == [1, 25, 50, 65]

    def test_how_often_changes_nothing_else(self, tmp_path: Path) -> None:
        flows = [fresh(), fresh()]
        for flow, every in zip(flows, (1, 7), strict=True):
            train(flow, THEORY, replace(CONFIG, log_every=every), tmp_path / f"{every}.safetensors")
        assert fingerprint(flows[0]) == fingerprint(flows[1])
        assert CONFIG.identity() == replace(CONFIG, log_every=7, checkpoint_every=9).identity()
        # But where it decides which estimates end a training, it is part of the training.
        ending = replace(CONFIG, target_acceptance=0.9)
        assert ending.identity() != replace(ending, log_every=7).identity()

    def test_of_an_earlier_training_stays_until_there_is_a_checkpoint(self, tmp_path: Path) -> None:
        files = TrainingFiles(tmp_path / "flow.safetensors")
        train(fresh(), THEORY, CONFIG, files.flow)
        before = files.log.read_bytes()

        def fail(record: TrainingRecord) -> None:
            assert files.log.read_bytes() == before
            if record.step == 10:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(fresh(), THEORY, replace(CONFIG, seed=8), files.flow, on_record=fail)
        assert files.log.read_bytes() == before

    def test_that_is_garbled_is_refused(self, tmp_path: Path) -> None:
        files = TrainingFiles(tmp_path / "flow.safetensors")
        train(fresh(), THEORY, CONFIG, files.flow)
        good = files.log.read_text()
        for bad in (good.replace('"ess"', '"es"', 1), good.replace("}\n{", "{", 1), "[1]\n" + good, "\n" + good):
            files.log.write_text(bad)
            with pytest.raises(FlowFileError, match="line 1"):
                read_log(files.log)
            with pytest.raises(FlowFileError, match="line 1"):
                train(fresh(), THEORY, CONFIG, files.flow, resume=True)
        files.log.write_text("")
        with pytest.raises(FlowFileError, match="no complete line"):
            read_log(files.log)
        files.log.unlink()
        with pytest.raises(FlowFileError, match="does not exist"):
            read_log(files.log)
        # The flow does not need it.
        assert train(fresh(), THEORY, CONFIG, files.flow, resume=True).finished


def test_divergence_is_an_error_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "flow.safetensors"
    train(fresh(), THEORY, CONFIG, path)
    before = TrainingFiles(path).checkpoint.read_bytes()
    broken = fresh()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="learning_rate") as caught:
        train(broken, THEORY, CONFIG, path)
    assert "64 of 64 draws" in caught.value.got
    assert TrainingFiles(path).checkpoint.read_bytes() == before


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_start_at_one_and_stay_in_range(name: str) -> None:
    values = [SCHEDULES[name](fraction) for fraction in np.linspace(0, 1, 50)]
    assert values[0] == 1
    assert all(0 <= value <= 1 for value in values)
    assert all(np.diff(values) <= 0)
    ends = {"constant": 1.0, "cosine": 0.0, "exponential": 0.01, "linear": 0.0}
    assert values[-1] == pytest.approx(ends[name], abs=1e-12)


def test_shapes_of_schedules() -> None:
    fraction = np.linspace(0, 1, 50)
    np.testing.assert_allclose(np.diff([SCHEDULES["linear"](t) for t in fraction]), -1 / 49)
    np.testing.assert_allclose(np.diff([np.log(SCHEDULES["exponential"](t)) for t in fraction]), np.log(0.01) / 49)


def test_warm_up_is_linear() -> None:
    config = replace(CONFIG, schedule="constant", warmup_steps=4, learning_rate=1.0)
    np.testing.assert_allclose([config.learning_rate_at(step) for step in range(6)], [0.2, 0.4, 0.6, 0.8, 1, 1])


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"learning_rate": -1.0},
        {"objective": "kl"},
        {"schedule": "x"},
        {"warmup_steps": -1},
        {"log_every": 0},
        {"target_acceptance": 1.0},
        {"target_acceptance": -0.1},
        {"target_acceptance": 0.9, "log_every": 51},
        {"annealing_path": "temperatures"},
        {"micro_batch": 24},
        {"micro_batch": -1},
        {"micro_batch": 128},
    ],
)
def test_meaningless_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        replace(CONFIG, **change)  # type: ignore[arg-type]
