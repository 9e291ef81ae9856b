"""Training of spin flows: how near it comes to the exact distribution, annealing, and resumption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmc.errors import ParameterError
from flowmc.flows import Flow, build_flow, fingerprint
from flowmc.testing import ExactIsing
from flowmc.theories import Ising, Theory
from flowmc.training import TrainingConfig, TrainingFiles, train
from flowmc.training.losses import Loss
from flowmc.training.objectives import OBJECTIVES, reinforce

CRITICAL = Ising((4, 4), 0.44)
CONFIG = TrainingConfig(
    objective="reinforce",
    steps=400,
    batch_size=128,
    learning_rate=1e-2,
    warmup_steps=5,
    annealing=0.97,
    seed=1,
    checkpoint_every=20,
)
FLOWS: list[dict[str, object]] = [
    {"kind": "autoregressive"},
    {"kind": "autoregressive", "network": "convolutional", "radius": 2},
    {"kind": "hierarchical"},
]


def divergence(flow: Flow, theory: Ising) -> float:
    """KL(q ‖ p) in nats, over all configurations."""
    exact = ExactIsing(theory)
    with torch.no_grad():
        log_q = flow.double().log_prob(torch.tensor(exact.states)).numpy()
    return float(np.exp(log_q) @ (log_q + theory.action(exact.states))) + exact.log_z


@pytest.mark.parametrize("description", FLOWS, ids=str)
def test_training_reaches_the_exact_distribution(description: dict[str, object], tmp_path: Path) -> None:
    flow = build_flow(description, CRITICAL, seed=1)
    before = divergence(build_flow(description, CRITICAL, seed=1), CRITICAL)
    result = train(flow, CRITICAL, CONFIG, tmp_path / "flow.safetensors")
    assert before > 1
    assert divergence(flow, CRITICAL) < 0.05
    # The loss is an upper bound of −ln Z up to the noise of its batch, and of zero variance where q = p.
    last = result.records[-1]
    assert last.loss == pytest.approx(-ExactIsing(CRITICAL).log_z, abs=0.2)
    assert last.ess > 0.8


class TestAnnealing:
    def test_temperature_falls_to_that_of_the_target(self) -> None:
        betas = [CONFIG.theory_at(step, CRITICAL).beta for step in range(1, 401)]  # type: ignore[attr-defined]
        np.testing.assert_allclose(betas[:3], 0.44 * (1 - 0.97 ** np.arange(1, 4)), rtol=1e-12)
        assert all(np.diff(betas) >= 0)
        # Not only near the target, but at it.
        assert CONFIG.theory_at(400, CRITICAL) is CRITICAL
        assert replace(CONFIG, annealing=0.0).theory_at(1, CRITICAL) is CRITICAL

    def test_each_step_trains_for_its_own_theory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[Theory, Theory]] = []

        def watched(flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int) -> Iterator[Loss]:
            seen.append((flow.theory, theory))
            yield from reinforce(flow, theory, n, generator, micro_batch)

        monkeypatch.setitem(OBJECTIVES, "reinforce", watched)
        config = replace(CONFIG, steps=30, annealing=0.5)
        flow = build_flow({"kind": "hierarchical"}, CRITICAL)
        train(flow, CRITICAL, config, tmp_path / "flow.safetensors")
        # Exact levels of a hierarchical flow follow the temperature of the moment.
        assert all(own is theory for own, theory in seen)
        assert [theory for _, theory in seen] == [config.theory_at(step, CRITICAL) for step in range(1, 31)]
        assert seen[-1][1] is CRITICAL
        assert flow.theory is CRITICAL

    def test_theory_is_restored_when_a_training_stops(self, tmp_path: Path) -> None:
        flow = build_flow({"kind": "hierarchical"}, CRITICAL)
        train(flow, CRITICAL, CONFIG, tmp_path / "flow.safetensors", should_stop=lambda: "now")
        assert flow.theory is CRITICAL

    @pytest.mark.parametrize("rate", [0.5, 0.9, 0.97, 0.996])
    def test_a_path_that_ends_before_the_target_is_refused(self, rate: float) -> None:
        # The first step that is trained at the target itself.
        first = next(step for step in range(1, 10000) if rate**step < 1e-4)
        assert replace(CONFIG, annealing=rate, steps=first).theory_at(first, CRITICAL) is CRITICAL
        with pytest.raises(ParameterError, match="target is not reached") as caught:
            replace(CONFIG, annealing=rate, steps=first - 1)
        # The message tells how many steps it takes, and a rate that would do.
        assert f"{first} steps" in caught.value.expected
        lower = float(caught.value.fix.split()[-1])
        assert replace(CONFIG, annealing=lower, steps=first - 1).theory_at(first - 1, CRITICAL) is CRITICAL

    @pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
    def test_meaningless_rates_are_refused(self, rate: float) -> None:
        with pytest.raises(ParameterError, match="annealing"):
            replace(CONFIG, annealing=rate)


@pytest.mark.parametrize(("description", "micro_batch"), [*((flow, 0) for flow in FLOWS), (FLOWS[2], 4)], ids=str)
def test_resumed_training_is_bit_identical(description: dict[str, object], micro_batch: int, tmp_path: Path) -> None:
    theory = Ising((8, 8), 0.44)
    config = replace(CONFIG, steps=50, batch_size=16, micro_batch=micro_batch, annealing=0.8)
    if description["kind"] == "hierarchical":
        description = {**description, "exact_cross": False}
    whole, parts, resumed = (build_flow(description, theory, seed=2) for _ in range(3))
    train(whole, theory, config, tmp_path / "whole.safetensors")
    stops = iter([False] * 26 + [True])
    files = TrainingFiles(tmp_path / "parts.safetensors")
    first = train(parts, theory, config, files.flow, should_stop=lambda: "now" if next(stops) else "")
    assert (first.step, first.finished) == (27, False)
    assert train(resumed, theory, config, files.flow, resume=True).finished
    assert fingerprint(resumed) == fingerprint(whole)
    logs = [TrainingFiles(tmp_path / f"{name}.safetensors").log.read_text() for name in ("whole", "parts")]
    plain = [[{**json.loads(line), "seconds": 0} for line in log.splitlines()] for log in logs]
    assert plain[0] == plain[1]
