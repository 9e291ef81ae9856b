"""The forward divergence on samples: gradient, minimum at q = p, mixtures, choice of samples, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowmc.errors import FlowFileError, LatticeMismatchError, NonFiniteError, ParameterError
from flowmc.flows import Flow, build_flow, fingerprint
from flowmc.seeds import numpy_generator, torch_generator
from flowmc.testing import ExactIsing
from flowmc.theories import CallableTheory, FreeScalar, Ising, Phi4, RealSpace, Theory
from flowmc.training import (
    OBJECTIVES,
    Samples,
    TrainingConfig,
    TrainingFiles,
    forward_kl,
    reverse_kl,
    summed_gradient,
    train,
)
from flowmc_analysis.exact import free_scalar_log_z
from flowmc_analysis.zscores import family_p_value

Shaken = Callable[[Mapping[str, object], Theory], Flow]

THEORY = Phi4((4, 4), m2=-4.0, lam=8.0)
FREE = FreeScalar((4, 4), mass=0.8)
COUPLING: dict[str, object] = {
    "kind": "coupling",
    "layers": [{"kind": "affine", "hidden": [4]}, {"kind": "sinh_arcsinh"}],
    "repeat": 1,
}
EXACT = {**COUPLING, "base": "free_field", "base_mass": 0.8, "dtype": "float64"}
CONFIG = TrainingConfig(
    objective="forward_kl", steps=40, batch_size=32, warmup_steps=5, seed=3, checkpoint_every=15, threads=1
)
MIXED = replace(CONFIG, objective="reverse_kl", forward_weight=0.3)
# Any fields will do where it is not the target that matters.
FIELDS = 0.5 * np.random.default_rng(1).standard_normal((50, 4, 4))


def fresh() -> Flow:
    return build_flow(COUPLING, THEORY, seed=1)


class TestGradient:
    def test_is_that_of_the_likelihood(self, shaken: Shaken) -> None:
        # By finite differences, weight by weight.
        flow, fields = shaken(COUPLING, THEORY), torch.tensor(FIELDS[:20])
        for piece in forward_kl(flow, fields):
            piece.value.backward()  # type: ignore[no-untyped-call]
        for name, parameter in flow.named_parameters():
            assert parameter.grad is not None
            flat, step = parameter.data.view(-1), 1e-6
            ends = []
            for sign in (1, -1):
                flat[0] += sign * step
                ends.append(-float(flow.log_prob(fields).detach().mean()))
                flat[0] -= sign * step
            assert float(parameter.grad.view(-1)[0]) == pytest.approx(
                (ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-6
            ), name

    @pytest.mark.parametrize("size", [1, 5, 20])
    def test_of_micro_batches_adds_up(self, size: int, shaken: Shaken) -> None:
        flow, fields = shaken(COUPLING, THEORY), torch.tensor(FIELDS[:20])
        pieces = list(forward_kl(flow, fields, size))
        assert [len(piece.log_q) for piece in pieces] == [size] * (20 // size)
        (whole,) = forward_kl(flow, fields)
        torch.testing.assert_close(torch.cat([piece.log_q for piece in pieces]), whole.log_q)
        assert float(sum(piece.value.detach() for piece in pieces)) == pytest.approx(-float(whole.log_q.mean()))
        np.testing.assert_allclose(
            summed_gradient(flow, pieces), summed_gradient(flow, [whole]), rtol=1e-10, atol=1e-10
        )

    def test_pieces_must_fit(self) -> None:
        with pytest.raises(ParameterError, match="micro_batch = 5,"):
            next(forward_kl(fresh(), torch.tensor(FIELDS[:20], dtype=torch.float32), 7))

    @pytest.mark.parametrize("micro_batch", [0, 8])
    def test_of_a_mixture_is_the_weighted_sum(self, micro_batch: int, tmp_path: Path) -> None:
        config = replace(MIXED, steps=1, micro_batch=micro_batch)
        (record,) = train(fresh(), THEORY, config, tmp_path / "flow.safetensors", samples=FIELDS).records
        flow = fresh()
        reverse = list(reverse_kl(flow, THEORY, 32, torch_generator(3, "step", 1), micro_batch))
        forward = list(forward_kl(flow, Samples(FIELDS, THEORY).batch(32, 3, 1, flow), micro_batch))
        whole = 0.7 * summed_gradient(flow, reverse) + 0.3 * summed_gradient(flow, forward)
        # The networks run in single precision.
        assert record.gradient_norm == pytest.approx(np.linalg.norm(whole), rel=1e-4)
        likelihood = -float(torch.cat([piece.log_q for piece in forward]).mean())
        assert record.forward_loss == pytest.approx(likelihood, rel=1e-6)
        energy = -float(torch.cat([piece.log_w for piece in reverse]).mean())
        assert record.loss == pytest.approx(0.7 * energy + 0.3 * likelihood, rel=1e-6)


class TestMinimum:
    def test_is_the_entropy_where_the_flow_is_exact(self, rng: np.random.Generator) -> None:
        flow = build_flow(EXACT, FREE, seed=1)
        fields = FREE.draw(rng, 2000)
        (piece,) = forward_kl(flow, torch.tensor(fields))
        log_z = free_scalar_log_z((4, 4), 0.8)
        np.testing.assert_allclose(-piece.log_q.numpy(), FREE.action(fields) + log_z, atol=1e-9)
        # The entropy of a Gaussian: its mean action is half a unit for each site.
        error = piece.log_q.std() / np.sqrt(2000)
        assert abs(float(piece.value.detach()) - (8 + log_z)) < 5 * error

    def test_has_no_gradient(self, rng: np.random.Generator) -> None:
        flow = build_flow(EXACT, FREE, seed=1)
        gradients = np.array(
            [summed_gradient(flow, forward_kl(flow, torch.tensor(FREE.draw(rng, 200)))) for _ in range(40)]
        )
        error = gradients.std(0, ddof=1) / np.sqrt(len(gradients))
        moving = error > 0
        assert moving.any()
        np.testing.assert_array_equal(gradients.mean(0)[~moving], 0)
        assert family_p_value(gradients.mean(0)[moving] / error[moving]) > 1e-5

    def test_is_lower_than_anywhere_else(self, rng: np.random.Generator, shaken: Shaken) -> None:
        fields = torch.tensor(FREE.draw(rng, 2000))
        exact, other = build_flow(EXACT, FREE, seed=1), shaken(EXACT, FREE)
        with torch.no_grad():
            excess = (exact.log_prob(fields) - other.log_prob(fields)).numpy()
        assert excess.mean() > 5 * excess.std() / np.sqrt(len(excess))

    def test_is_approached_by_training(self, rng: np.random.Generator, tmp_path: Path) -> None:
        exact, flow = build_flow(EXACT, FREE, seed=1), build_flow({**EXACT, "base_mass": 2.0}, FREE, seed=1)
        # Samples that the training does not see: half of the excess over the entropy at least must be gone.
        unseen = torch.tensor(FREE.draw(rng, 2000))
        with torch.no_grad():
            before = (exact.log_prob(unseen) - flow.log_prob(unseen)).numpy()
        config = replace(CONFIG, steps=100, batch_size=128, learning_rate=2e-2)
        train(flow, FREE, config, tmp_path / "flow.safetensors", samples=FREE.draw(rng, 4000))
        with torch.no_grad():
            after = (exact.log_prob(unseen) - flow.log_prob(unseen)).numpy()
        gain = 0.5 * before - after
        assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain))


def test_spins_learn_from_samples(rng: np.random.Generator, tmp_path: Path) -> None:
    theory = Ising((4, 4), 0.44)
    exact = ExactIsing(theory)
    log_p = -theory.action(exact.states) - exact.log_z
    chosen = rng.choice(len(log_p), size=20000, p=np.exp(log_p) / np.exp(log_p).sum())
    flow = build_flow({"kind": "autoregressive"}, theory, seed=1)

    def divergence() -> float:
        with torch.no_grad():
            return float(np.exp(log_p) @ (log_p - flow.log_prob(torch.tensor(exact.states)).numpy()))

    before = divergence()
    config = replace(CONFIG, steps=100, batch_size=128, learning_rate=2e-2, log_every=50)
    train(flow, theory, config, tmp_path / "flow.safetensors", samples=exact.states[chosen].astype(np.int8))
    assert before > 1
    assert divergence() < 0.1 * before


def test_samples_of_a_step_depend_on_its_number_alone() -> None:
    samples, flow = Samples(FIELDS, THEORY), fresh()
    before = torch.get_rng_state()
    one = samples.batch(30, 3, 7, flow)
    assert one.dtype == torch.float32
    torch.testing.assert_close(samples.batch(30, 3, 7, flow), one, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)
    for seed, step in ((3, 8), (4, 7)):
        assert not torch.equal(samples.batch(30, seed, step, flow), one)
    # All of them have their turn, with equal probability: multinomial counts, by their chi-squared.
    numbered = Samples(np.arange(50.0).reshape(50, 1, 1) * np.ones((4, 4)), THEORY)
    drawn = torch.cat([numbered.batch(100, 3, step, flow)[:, 0, 0] for step in range(50)]).numpy().astype(int)
    counts = np.bincount(drawn, minlength=50)
    chi_squared = ((counts - 100) ** 2 / 100).sum()
    assert abs(chi_squared - 49) < 5 * np.sqrt(2 * 49)


def test_all_configurations_make_the_identity() -> None:
    known = Samples(FIELDS, THEORY).identity
    assert known["number"] == 50
    assert Samples(FIELDS.copy(), THEORY).identity == known
    other = FIELDS.copy()
    other[-1, -1, -1] += 1e-12
    for fields in (other, FIELDS[::-1], FIELDS[:-1], FIELDS.astype(np.float32)):
        assert Samples(fields, THEORY).identity["sha256"] != known["sha256"]


class TestLog:
    def test_quality_is_that_of_fresh_draws(self, tmp_path: Path) -> None:
        # Not of the samples, which for an exact flow with a wrong normalisation would look perfect as well.
        result = train(fresh(), THEORY, CONFIG, tmp_path / "flow.safetensors", samples=FIELDS)
        for record in result.records:
            assert record.loss == record.forward_loss
            assert 0 < record.ess <= 1
            assert 0 < record.acceptance <= 1
        exact = build_flow(EXACT, FREE, seed=1)
        still = replace(CONFIG, steps=2, learning_rate=1e-12)
        for record in train(exact, FREE, still, tmp_path / "exact.safetensors", samples=FIELDS).records:
            assert record.ess == pytest.approx(1)
            assert record.acceptance == pytest.approx(1)

    def test_draws_are_made_for_lines_of_the_log_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        flow, drawn = fresh(), []
        sample = flow.sample

        def watched(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            assert not torch.is_grad_enabled()
            drawn.append(n)
            return sample(n, generator)

        monkeypatch.setattr(flow, "sample", watched)
        config = replace(CONFIG, log_every=20, micro_batch=16)
        train(flow, THEORY, config, tmp_path / "flow.safetensors", samples=FIELDS)
        assert drawn == [16, 16] * 3

    def test_how_often_changes_nothing_else(self, tmp_path: Path) -> None:
        flows = [fresh(), fresh()]
        for flow, every in zip(flows, (1, 20), strict=True):
            train(flow, THEORY, replace(CONFIG, log_every=every), tmp_path / f"{every}.safetensors", samples=FIELDS)
        assert fingerprint(flows[0]) == fingerprint(flows[1])

    def test_draws_without_a_weight_count_as_rejected(self, tmp_path: Path) -> None:
        # An action that is not a number for half of what the flow draws does not touch the likelihood.
        def half(field: np.ndarray) -> np.ndarray:
            action = THEORY.action(field)
            return np.where(field[:, 0, 0] > 0, np.nan, action)

        theory = CallableTheory((4, 4), half, RealSpace(), "half")
        flow = build_flow(COUPLING, theory, seed=1)
        result = train(flow, theory, replace(CONFIG, steps=3), tmp_path / "flow.safetensors", samples=FIELDS)
        assert all(0 < record.ess < 0.8 for record in result.records)


OBJECTIVE_CASES = [
    *((name, 0.3, 0) for name in OBJECTIVES),
    ("reverse_kl", 0.3, 16),
    ("reinforce", 0.3, 16),
    ("forward_kl", 0.0, 0),
    ("forward_kl", 0.0, 16),
]


@pytest.mark.parametrize(("objective", "weight", "micro_batch"), OBJECTIVE_CASES)
def test_resumed_training_is_bit_identical(objective: str, weight: float, micro_batch: int, tmp_path: Path) -> None:
    config = replace(
        CONFIG, steps=25, checkpoint_every=10, objective=objective, forward_weight=weight, micro_batch=micro_batch
    )
    whole, parts, resumed = fresh(), fresh(), fresh()
    train(whole, THEORY, config, tmp_path / "whole.safetensors", samples=FIELDS)
    files = TrainingFiles(tmp_path / "parts.safetensors")
    stops = iter([False] * 13 + [True])
    first = train(parts, THEORY, config, files.flow, samples=FIELDS, should_stop=lambda: "now" if next(stops) else "")
    assert (first.step, first.finished, first.ended_by) == (14, False, "")
    second = train(resumed, THEORY, config, files.flow, samples=FIELDS, resume=True)
    assert (second.step, second.ended_by) == (25, "steps")
    assert second.samples == Samples(FIELDS, THEORY).identity
    assert fingerprint(resumed) == fingerprint(whole)
    logs = [TrainingFiles(tmp_path / f"{name}.safetensors").log.read_text() for name in ("whole", "parts")]
    plain = [[{**json.loads(line), "seconds": 0} for line in log.splitlines()] for log in logs]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("fields", [FIELDS[:-1], FIELDS[::-1].copy(), 1.001 * FIELDS], ids=["fewer", "turned", "other"])
def test_resumption_with_other_samples_is_refused(fields: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "flow.safetensors"
    train(fresh(), THEORY, CONFIG, path, samples=FIELDS, should_stop=lambda: "now")
    with pytest.raises(FlowFileError, match=r"\['samples'\] differ"):
        train(fresh(), THEORY, CONFIG, path, samples=fields, resume=True)


def test_samples_where_the_flow_cannot_go_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = fresh()
    log_prob = flow.log_prob

    def bounded(field: torch.Tensor) -> torch.Tensor:
        outside = (field.abs() > 1).flatten(1).any(1)
        return torch.where(outside, -torch.inf, log_prob(field))

    monkeypatch.setattr(flow, "log_prob", bounded)
    with pytest.raises(NonFiniteError, match=r"log q is not finite for \d+ of 32 samples"):
        train(flow, THEORY, CONFIG, tmp_path / "flow.safetensors", samples=FIELDS)


REVERSE = replace(CONFIG, objective="auto")
WITH_NAN = np.where(np.arange(50).reshape(50, 1, 1) == 7, np.nan, FIELDS)


@pytest.mark.parametrize(
    ("config", "fields", "kind", "word"),
    [
        (CONFIG, None, ParameterError, "set `samples`"),
        (MIXED, None, ParameterError, "set `samples`"),
        (REVERSE, FIELDS, ParameterError, "do not use them"),
        (CONFIG, FIELDS[:, :2], LatticeMismatchError, "samples of shape"),
        (CONFIG, FIELDS[:0], ParameterError, "0 samples"),
        (CONFIG, WITH_NAN, ParameterError, "1 of them no real fields"),
    ],
)
def test_unfit_samples_are_refused(
    config: TrainingConfig, fields: Any, kind: type[Exception], word: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=word):
        train(fresh(), THEORY, config, tmp_path / "flow.safetensors", samples=fields)
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_no_spins_are_refused() -> None:
    with pytest.raises(ParameterError, match="50 of them no spin fields"):
        Samples(FIELDS, Ising((4, 4), 0.44))


CONTRADICTIONS: list[tuple[dict[str, object], str]] = [
    ({"forward_weight": 0.3}, "a reverse objective to mix"),
    ({"objective": "auto", "samples": "e.h5"}, "do not use them"),
    ({"objective": "auto", "forward_weight": 1.0}, 'objective = "forward_kl"'),
    ({"objective": "auto", "forward_weight": -0.1}, "forward_weight = -0.1"),
    ({"objective": "auto", "forward_weight": float("nan")}, "forward_weight"),
    ({"annealing": 0.5}, "samples are of the target"),
    ({"objective": "auto", "forward_weight": 0.5, "annealing": 0.5}, "samples are of the target"),
]


@pytest.mark.parametrize(("change", "word"), CONTRADICTIONS, ids=str)
def test_contradictions_are_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        replace(CONFIG, **change)  # type: ignore[arg-type]


def test_no_theory_is_too_rough_for_samples(tmp_path: Path) -> None:
    # No force, and draws that are not differentiated: nothing but log q at the samples counts.
    theory = CallableTheory((4, 4), THEORY.action, RealSpace(), "phi4 without a force")
    assert CONFIG.reverse_objective(fresh(), theory) is None
    flow = build_flow(COUPLING, theory, seed=1)
    result = train(flow, theory, replace(CONFIG, steps=3), tmp_path / "flow.safetensors", samples=FIELDS)
    assert result.finished
    chosen = numpy_generator(3, "samples", 1).integers(50, size=32)
    with torch.no_grad():
        log_q = fresh().log_prob(torch.tensor(FIELDS[chosen], dtype=torch.float32))
    assert result.records[0].loss == pytest.approx(-float(log_q.mean()), rel=1e-6)
