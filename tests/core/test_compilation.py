"""Compiled maps: the same training up to rounding, and refusals before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flowmc.errors import ParameterError
from flowmc.flows import Flow, build_flow
from flowmc.theories import Ising, Phi4
from flowmc.training import TrainingConfig, train

THEORY = Phi4((4, 4), m2=-4.0, lam=8.0)
LAYERS = [{"kind": "affine", "hidden": [2], "radius": 1}, {"kind": "sinh_arcsinh"}]
CONFIG = TrainingConfig(objective="path_gradient", steps=3, batch_size=16, learning_rate=1e-2, warmup_steps=0, seed=3)


def fresh() -> Flow:
    return build_flow({"kind": "coupling", "layers": LAYERS, "repeat": 1, "dtype": "float64"}, THEORY, seed=1)


# torch.compile warns inside itself, and hides it; as errors those warnings would end the compilation.
@pytest.mark.filterwarnings("default")
def test_compiled_training_is_the_same_up_to_rounding(tmp_path: Path) -> None:
    plain, compiled = fresh(), fresh()
    one = train(plain, THEORY, CONFIG, tmp_path / "plain.safetensors")
    other = train(compiled, THEORY, replace(CONFIG, compile=True), tmp_path / "compiled.safetensors")
    for first, second in zip(one.records, other.records, strict=True):
        assert second.loss == pytest.approx(first.loss, rel=1e-10)
        assert second.gradient_norm == pytest.approx(first.gradient_norm, rel=1e-8)
    # Afterwards the maps are the plain ones again.
    assert not {"forward", "inverse"} & set(vars(compiled))


def test_flows_without_maps_are_refused(tmp_path: Path) -> None:
    theory = Ising((4, 4), 0.4)
    flow = build_flow({"kind": "autoregressive"}, theory)
    with pytest.raises(ParameterError, match="transport"):
        train(flow, theory, replace(CONFIG, objective="reinforce", compile=True), tmp_path / "flow.safetensors")


def test_solvers_are_refused(tmp_path: Path) -> None:
    flow = build_flow({"kind": "interpolating"}, THEORY)
    with pytest.raises(ParameterError, match="transport"):
        train(flow, THEORY, replace(CONFIG, compile=True), tmp_path / "flow.safetensors")


def test_a_machine_without_a_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ParameterError, match="no-such-compiler"):
        train(fresh(), THEORY, replace(CONFIG, compile=True), tmp_path / "flow.safetensors")
