"""Ways to a target theory: couplings from a free field, and the temperature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.flows import Flow, build_flow
from flowmc.seeds import torch_generator
from flowmc.theories import (
    CallableTheory,
    FreeScalar,
    Ising,
    Phi4,
    RealSpace,
    SmoothTheory,
    Theory,
    U1Gauge2D,
)
from flowmc.theories.tempered import TemperedTheory, tempered
from flowmc.training import ANNEALING_PATHS, OBJECTIVES, Loss, TrainingConfig, reverse_kl, train

PHI4 = Phi4((4, 4), m2=-4.0, lam=8.0)
COUPLING: dict[str, object] = {
    "kind": "coupling",
    "layers": [{"kind": "affine", "hidden": [4]}, {"kind": "sinh_arcsinh"}],
    "repeat": 1,
}
CONFIG = TrainingConfig(
    objective="reverse_kl", steps=30, batch_size=16, annealing=0.5, seed=1, checkpoint_every=20, threads=1
)
SMOOTH: list[SmoothTheory] = [PHI4, FreeScalar((4, 3), mass=0.3), U1Gauge2D((4, 4), beta=2.0)]
FRACTIONS = [0.0, 5e-324, 1e-12, *np.linspace(0.01, 0.99, 25), 1 - 1e-12, 1.0]


class TestCouplings:
    @pytest.mark.parametrize(
        ("m2", "lam"),
        [
            *((m2, lam) for m2 in (-40.0, -1.0, 0.0, 0.5, 1.0, 3.0) for lam in (1e-300, 0.7, 500.0)),
            *((m2, 0.0) for m2 in (1e-9, 0.5, 1.0, 3.0)),
        ],
    )
    def test_of_phi4_are_those_of_a_theory_all_the_way(self, m2: float, lam: float) -> None:
        theory = Phi4((4, 4), m2=m2, lam=lam)
        # Building one refuses couplings without an integral.
        path = [theory.annealed(fraction) for fraction in FRACTIONS]
        assert path[0] == Phi4((4, 4), m2=max(m2, 1.0), lam=0.0)
        assert path[-1] == theory
        for fraction, one in zip(FRACTIONS, path, strict=True):
            assert one.m2 == pytest.approx(max(m2, 1) + fraction * (m2 - max(m2, 1)), abs=1e-12)
            assert one.lam == pytest.approx(fraction * lam)

    @pytest.mark.parametrize("mass", [1e-3, 0.3, 1.0, 2.7])
    def test_of_a_free_field_are_those_of_phi4_without_coupling(self, mass: float) -> None:
        theory = FreeScalar((4, 4), mass)
        assert theory.annealed(1.0) == theory
        for fraction in FRACTIONS:
            squared = theory.annealed(fraction).mass ** 2
            assert squared == pytest.approx(Phi4((4, 4), m2=mass**2, lam=0.0).annealed(fraction).m2)

    def test_a_theory_without_them_is_not_annealed(self, tmp_path: Path) -> None:
        theory = CallableTheory((4, 4), PHI4.action, RealSpace(), "phi4 without a force")
        with pytest.raises(ParameterError, match="annealing = 0"):
            theory.annealed(0.5)
        config = replace(CONFIG, objective="reinforce")
        with pytest.raises(ParameterError, match="annealing = 0"):
            train(build_flow(COUPLING, theory), theory, config, tmp_path / "flow.safetensors")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("theory", SMOOTH, ids=repr)
class TestTemperature:
    @pytest.fixture
    def field(self, theory: Theory, rng: np.random.Generator) -> NDArray[Any]:
        return theory.start(rng, 5, "hot")

    def test_scales_action_and_force_in_every_library(self, theory: SmoothTheory, field: NDArray[Any]) -> None:
        cold, warm = theory, tempered(theory, 0.25)
        for given in (field, torch.tensor(field), jnp.asarray(field)):
            np.testing.assert_array_equal(warm.action(given), 0.25 * np.asarray(cold.action(given)))
            np.testing.assert_array_equal(warm.force(given), 0.25 * np.asarray(cold.force(given)))
            for one, other in zip(warm.action_and_force(given), (warm.action(given), warm.force(given)), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)

    def test_force_is_minus_the_gradient(self, theory: SmoothTheory, field: NDArray[Any]) -> None:
        warm = tempered(theory, 0.3)
        leaf = torch.tensor(field, requires_grad=True)
        (gradient,) = torch.autograd.grad(warm.action(leaf).sum(), leaf)
        np.testing.assert_allclose(warm.force(field), -gradient.numpy(), rtol=1e-11, atol=1e-11)

    def test_leaves_the_fields_as_they_are(self, theory: SmoothTheory, field: NDArray[Any]) -> None:
        warm = tempered(theory, 0.3)
        assert isinstance(warm, SmoothTheory)
        assert (warm.shape, warm.field_shape, warm.volume) == (theory.shape, theory.field_shape, theory.volume)
        assert warm.space is theory.space
        assert warm.internal_axes == theory.internal_axes
        assert warm == tempered(theory, 0.3)
        assert hash(warm) == hash(tempered(theory, 0.3))
        assert warm.describe()["base"] == theory.describe()
        assert warm.action(field).dtype == np.float64
        with pytest.raises(LatticeMismatchError):
            warm.action(field[:, 1:])

    @pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
    def test_is_positive_and_at_most_one(self, theory: SmoothTheory, fraction: float) -> None:
        with pytest.raises(ParameterError, match="no integral"):
            TemperedTheory(theory, fraction)


def test_temperature_of_a_free_field_is_a_width(rng: np.random.Generator) -> None:
    # S is quadratic: f S is the action of fields that are f^(-1/2) times as large, normalisable for all f > 0.
    theory = FreeScalar((4, 4), 0.8)
    for fraction in (1e-6, 0.3, 1.0):
        fields = theory.draw(rng, 2000) / np.sqrt(fraction)
        action = tempered(theory, fraction).action(fields)
        assert abs(action.mean() - 8) < 5 * action.std() / np.sqrt(2000)


def test_the_temperature_of_spins_is_their_coupling() -> None:
    theory = Ising((4, 4), 0.44)
    config = TrainingConfig(steps=400, annealing=0.97)
    assert config.theory_at(3, theory) == Ising((4, 4), 0.44 * (1 - 0.97**3))
    with pytest.raises(ParameterError, match='annealing_path = "couplings"'):
        replace(config, annealing_path="temperature").theory_at(3, theory)


@pytest.mark.parametrize("path", ANNEALING_PATHS)
class TestTraining:
    def test_goes_along_the_path_to_the_target(
        self, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Theory] = []

        def watched(flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int) -> Iterator[Loss]:
            assert flow.theory is theory
            seen.append(theory)
            yield from reverse_kl(flow, theory, n, generator, micro_batch)

        monkeypatch.setitem(OBJECTIVES, "reverse_kl", watched)
        config = replace(CONFIG, annealing_path=path)
        flow = build_flow(COUPLING, PHI4, seed=1)
        result = train(flow, PHI4, config, tmp_path / "flow.safetensors")
        assert result.finished
        assert flow.theory is PHI4
        fractions = [1 - 0.5**step for step in range(1, 14)]
        wanted = [PHI4.annealed(t) if path == "couplings" else tempered(PHI4, t) for t in fractions]
        assert seen[:13] == wanted
        assert all(theory is PHI4 for theory in seen[13:])
        assert len(seen) == 30

    def test_lowers_the_loss(self, path: str, tmp_path: Path, test_seed: int) -> None:
        def loss(flow: Flow) -> tuple[float, float]:
            (piece,) = reverse_kl(flow, PHI4, 8000, torch_generator(test_seed))
            return -float(piece.log_w.mean()), float(piece.log_w.std()) / np.sqrt(8000)

        flow = build_flow(COUPLING, PHI4, seed=1)
        before, error_before = loss(flow)
        config = replace(CONFIG, steps=200, batch_size=64, learning_rate=1e-2, annealing=0.8, annealing_path=path)
        train(flow, PHI4, config, tmp_path / "flow.safetensors")
        after, error_after = loss(flow)
        assert before - after > 5 * np.hypot(error_before, error_after)
