"""Training for several theories at once: gradients, periods, resuming, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowmc.config import parse_run
from flowmc.errors import FlowmcError, NonFiniteError, ParameterError
from flowmc.flows import OperatorFlow, build_flow
from flowmc.seeds import torch_generator
from flowmc.theories import Phi4, Theory
from flowmc.training import TrainingConfig, reverse_kl, summed_gradient, train
from flowmc.training.companions import companions
from flowmc_analysis.weights import ess_reverse

LARGE, SMALL = Phi4((4, 4), m2=-4.0, lam=8.0), Phi4((2, 4), m2=-4.0, lam=8.0)
FLOW: dict[str, Any] = {
    "kind": "operator",
    "networks": {"features": 3, "gates": 1, "moments": 2, "kernel": {"functions": 3, "reach": 1.7}},
    "steps": 4,
    "dtype": "float64",
}
ALSO = ({"shape": [2, 4]},)
CONFIG = TrainingConfig(steps=12, batch_size=16, checkpoint_every=4, warmup_steps=2, seed=2, also=ALSO)


def fresh() -> OperatorFlow:
    flow = build_flow(FLOW, LARGE, seed=1)
    assert isinstance(flow, OperatorFlow)
    return flow


def weights(flow: OperatorFlow) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in flow.parameters()])


def test_a_step_follows_the_mean_of_the_gradients(tmp_path: Path) -> None:
    flow = fresh()
    gradients = []
    for theory, label in ((LARGE, ()), (SMALL, ("also", 0))):
        pieces = reverse_kl(flow.on(theory), theory, 16, torch_generator(2, "step", 1, *label))
        gradients.append(summed_gradient(flow, pieces))
    before = weights(flow)
    # The first step of Adam goes along the signs of the gradient: components well away from zero tell it.
    config = replace(CONFIG, steps=1, warmup_steps=0, learning_rate=1e-3)
    result = train(flow, LARGE, config, tmp_path / "flow.safetensors")
    mean = np.mean(gradients, axis=0)
    clear = np.abs(mean) > 1e-6
    assert clear.sum() > 20
    moved = (weights(flow) - before).numpy()
    np.testing.assert_allclose(moved[clear], -1e-3 * np.sign(mean[clear]), rtol=1e-2)
    norm, alone = float(np.linalg.norm(mean)), float(np.linalg.norm(gradients[0]))
    assert abs(norm - alone) > 0.01 * norm
    assert result.records[0].gradient_norm == pytest.approx(norm, rel=1e-9)


def test_resumes_to_the_same_bits(tmp_path: Path) -> None:
    config = replace(CONFIG, also=({"shape": [2, 4], "end": 0.75}, {"shape": [6], "begin": 0.25}), begin=0.5)
    whole, broken = fresh(), fresh()
    train(whole, LARGE, config, tmp_path / "whole.safetensors")
    asked = iter(["", "", "", "", "", "stop"])
    stopped = train(broken, LARGE, config, tmp_path / "broken.safetensors", should_stop=lambda: next(asked))
    assert (stopped.step, stopped.finished) == (6, False)
    again = fresh()
    train(again, LARGE, config, tmp_path / "broken.safetensors", resume=True)
    assert torch.equal(weights(again), weights(whole))
    assert not torch.equal(weights(again), weights(broken))


def test_other_companions_are_another_training(tmp_path: Path) -> None:
    output = tmp_path / "flow.safetensors"
    train(fresh(), LARGE, CONFIG, output)
    with pytest.raises(FlowmcError, match="another training"):
        train(fresh(), LARGE, replace(CONFIG, also=({"shape": [6]},)), output, resume=True)


def test_the_curriculum_decides_who_takes_part(tmp_path: Path) -> None:
    """With weights that do not move each step's gradient is the mean over those whose turn it is, and no others."""
    also = ({"shape": [2, 4], "end": 0.5}, {"shape": [6], "begin": 0.25})
    config = replace(CONFIG, steps=4, warmup_steps=0, learning_rate=1e-14, also=also, begin=0.75)
    flow = fresh()
    result = train(flow, LARGE, config, tmp_path / "flow.safetensors")
    line = Phi4((6,), m2=-4.0, lam=8.0)
    turns: list[list[tuple[Theory, tuple[str | int, ...]]]] = [
        [(SMALL, ("also", 0))],
        [(SMALL, ("also", 0)), (line, ("also", 1))],
        [(line, ("also", 1))],
        [(line, ("also", 1)), (LARGE, ())],
    ]
    for step, (record, active) in enumerate(zip(result.records, turns, strict=True), start=1):
        gradients, losses = [], []
        for theory, label in active:
            pieces = list(reverse_kl(flow.on(theory), theory, 16, torch_generator(2, "step", step, *label)))
            losses.append(-float(pieces[0].log_w.mean()))
            gradients.append(summed_gradient(flow, pieces))
        norm = float(np.linalg.norm(np.mean(gradients, axis=0)))
        assert record.gradient_norm == pytest.approx(norm, rel=1e-8), step
        assert record.loss == pytest.approx(np.mean(losses), rel=1e-8), step


def test_quality_is_that_of_the_own_theory(tmp_path: Path) -> None:
    """Also while others are trained for: its draws are made for the log alone."""
    config = replace(CONFIG, steps=2, warmup_steps=0, learning_rate=1e-14, begin=0.5)
    flow = fresh()
    result = train(flow, LARGE, config, tmp_path / "flow.safetensors")
    for record, label in zip(result.records, (("quality", 1), ("step", 2)), strict=True):
        with torch.no_grad():
            field, log_q = flow.sample(16, torch_generator(2, *label))
        expected = ess_reverse((-LARGE.action(field) - log_q).numpy())
        assert record.ess == pytest.approx(expected, rel=1e-6)


def test_a_training_does_not_end_before_its_own_theory_takes_part(tmp_path: Path) -> None:
    easy = replace(CONFIG, steps=120, begin=0.5, target_acceptance=1e-3)
    result = train(fresh(), LARGE, easy, tmp_path / "flow.safetensors")
    assert (result.step, result.ended_by) == (110, "target_acceptance")


def test_a_loss_that_is_not_finite_names_its_theory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    action = Phi4.action

    def broken(theory: Phi4, field: torch.Tensor) -> torch.Tensor:
        return action(theory, field) * (float("nan") if theory.shape == (2, 4) else 1.0)  # type: ignore[no-any-return]

    monkeypatch.setattr(Phi4, "action", broken)
    flow = fresh()
    with pytest.raises(NonFiniteError, match=r"16 of 16 draws for Phi4\(shape=\(2, 4\)"):
        train(flow, LARGE, CONFIG, tmp_path / "flow.safetensors")


def test_companions_are_annealed_too(tmp_path: Path) -> None:
    seen: list[Theory] = []

    class Watched(OperatorFlow):
        def on(self, theory: Theory) -> OperatorFlow:
            made = super().on(theory)
            sample = made.sample

            def watching(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
                seen.append(made.theory)
                return sample(n, generator)

            made.sample = watching  # type: ignore[method-assign]
            return made

    flow = fresh()
    flow.__class__ = Watched
    train(flow, LARGE, replace(CONFIG, steps=2, annealing=0.005), tmp_path / "flow.safetensors")
    assert [theory.lam for theory in seen if isinstance(theory, Phi4)] == pytest.approx([0.995 * 8, 8.0])
    assert {theory.shape for theory in seen} == {(2, 4)}


class TestRefusals:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"also": ({"shape": [2, 4], "begin": 0.5, "end": 0.5},)},
            {"also": ({"shape": [2, 4], "end": 1.5},)},
            {"also": ({"shape": [2, 4], "end": 0.25},), "begin": 0.5},
            {"also": ({"shape": [2, 4], "begin": "now"},)},
            {"also": ALSO, "objective": "forward_kl", "samples": "hmc.h5"},
            {"also": ALSO, "forward_weight": 0.5, "samples": "hmc.h5"},
            {"begin": 0.5},
            {"begin": -0.5},
            {"steps": 0, "also": ()},
            {"steps": -1},
        ],
        ids=str,
    )
    def test_periods(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ParameterError, match="expected"):
            replace(CONFIG, **{"also": (), **wrong})

    def test_flows_of_one_theory(self, tmp_path: Path) -> None:
        flow = build_flow({"kind": "coupling"}, LARGE)
        with pytest.raises(ParameterError, match='of kind "operator"'):
            train(flow, LARGE, CONFIG, tmp_path / "flow.safetensors")

    @pytest.mark.parametrize(
        "entry",
        [{"shape": [1]}, {"shpe": [4]}, {"lam": -1.0}, {"name": "ising"}, {"name": [5]}, {"shape": [4, 4]}, {}],
        ids=str,
    )
    def test_theories_that_are_none(self, entry: dict[str, Any]) -> None:
        with pytest.raises(FlowmcError, match=r"\[\[training.also\]\] number 1"):
            companions(fresh(), LARGE, (entry,))
        run = {"theory": LARGE.describe(), "flow": FLOW, "training": {"also": [entry]}}
        with pytest.raises(FlowmcError, match=r"\[\[training.also\]\] number 1"):
            parse_run(run)

    def test_one_draw_has_no_mean_to_differ_from(self, tmp_path: Path) -> None:
        config = replace(CONFIG, also=(), objective="continuity", micro_batch=1)
        with pytest.raises(ParameterError, match="at least 2 draws"):
            train(fresh(), LARGE, config, tmp_path / "flow.safetensors")
