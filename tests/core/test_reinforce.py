"""REINFORCE: its mean over batches against the exact gradient of the divergence, by enumeration of all spins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows import Flow, build_flow
from flowmc.seeds import torch_generator
from flowmc.testing import ExactIsing, enumerate_spins
from flowmc.theories import FreeScalar, Ising, Theory
from flowmc.training import (
    OBJECTIVES,
    Loss,
    TrainingConfig,
    choose_objective,
    gradient_statistics,
    reinforce,
    summed_gradient,
    train,
)
from flowmc.training.losses import Objective
from flowmc_analysis.zscores import family_p_value

Shaken = Callable[[Mapping[str, object], Theory], Flow]

TINY = {"kind": "autoregressive", "width": 1}
CASES: list[tuple[dict[str, object], Ising]] = [
    (TINY, Ising((2, 2), 0.3)),
    ({**TINY, "z2": False, "network": "convolutional", "radius": 1}, Ising((2, 3), 0.3, field=0.2)),
    ({"kind": "hierarchical", "width": 1}, Ising((4, 4), 0.3)),
]
BATCHES = 1200


def exact_divergence(flow: Flow, theory: Ising) -> Tensor:
    """KL(q ‖ p) over all configurations, differentiable."""
    states = torch.tensor(enumerate_spins(theory.shape))
    log_q = flow.log_prob(states)
    divergence: Tensor = (log_q.exp() * (log_q + theory.action(states))).sum() + ExactIsing(theory).log_z
    return divergence


def p_value(
    objective: Objective, flow: Flow, theory: Ising, n: int, micro_batch: int, batches: int, seed: int
) -> float:
    """Probability of a mean gradient over many batches as far from the exact one as this, or farther."""
    exact = summed_gradient(flow, [Loss(exact_divergence(flow, theory), torch.empty(0))])
    found = gradient_statistics(objective, flow, theory, n, micro_batch, batches, seed)
    # What a mask hides has no gradient at all.
    visible = found.variance > 0
    np.testing.assert_array_equal(exact[~visible], 0)
    return family_p_value((found.mean - exact)[visible] / found.error[visible])


@pytest.mark.parametrize(("description", "theory"), CASES, ids=str)
@pytest.mark.parametrize("n", [2, 16])
def test_gradient_is_unbiased(
    description: dict[str, object], theory: Ising, n: int, shaken: Shaken, test_seed: int
) -> None:
    batches = BATCHES if n == 2 else 400
    assert p_value(reinforce, shaken(description, theory), theory, n, 0, batches, test_seed) > 1e-5


@pytest.mark.parametrize(("description", "theory"), CASES[:2], ids=str)
def test_gradient_of_micro_batches_is_unbiased(
    description: dict[str, object], theory: Ising, shaken: Shaken, test_seed: int
) -> None:
    assert p_value(reinforce, shaken(description, theory), theory, 4, 2, 600, test_seed) > 1e-5


def own_mean_baseline(
    flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int
) -> Iterator[Loss]:
    """The mean over the whole batch as baseline, each draw's own signal in it: too short by a factor (n − 1)/n."""
    for value, log_w in reinforce(flow, theory, n, generator, micro_batch):
        yield Loss(value * ((n - 1) / n), log_w)


def baseline_of_the_piece(
    flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int
) -> Iterator[Loss]:
    """The mean over a micro-batch in place of that over the batch, with the factor of the batch."""
    for _ in range(n // micro_batch):
        for value, log_w in reinforce(flow, theory, micro_batch, generator):
            yield Loss(value * ((micro_batch - 1) / (n - 1)), log_w)


def no_density_in_the_signal(
    flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int
) -> Iterator[Loss]:
    """The energy alone as the signal: the entropy is forgotten."""
    assert not micro_batch
    field = flow.draw(n, generator)
    log_q, signal = flow.log_prob(field), theory.action(field)
    yield Loss(((signal - signal.mean()) * log_q).sum() / (n - 1), -signal)


def density_of_another_draw(
    flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int
) -> Iterator[Loss]:
    """Actions and densities that belong to different draws."""
    assert not micro_batch
    field = flow.draw(n, generator)
    log_q, action = flow.log_prob(field), theory.action(flow.draw(n, generator))
    signal = log_q.detach() + action
    yield Loss(((signal - signal.mean()) * log_q).sum() / (n - 1), -signal)


MUTANTS: list[tuple[Objective, int, int]] = [
    (own_mean_baseline, 2, 0),
    (baseline_of_the_piece, 4, 2),
    (no_density_in_the_signal, 2, 0),
    (density_of_another_draw, 2, 0),
]


@pytest.mark.parametrize(
    ("mutant", "n", "micro_batch"), MUTANTS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_wrong_gradient_is_caught(mutant: Objective, n: int, micro_batch: int, shaken: Shaken, test_seed: int) -> None:
    description, theory = CASES[0]
    assert p_value(mutant, shaken(description, theory), theory, n, micro_batch, BATCHES, test_seed) < 1e-5


class HostAction(Ising):
    """An action that torch cannot differentiate: it goes through NumPy."""

    def action(self, field: Any) -> Any:
        return torch.as_tensor(super().action(np.asarray(field)))


def test_an_action_without_a_gradient_is_enough(shaken: Shaken) -> None:
    description, theory = CASES[0]
    flow = shaken(description, theory)
    one, other = (
        summed_gradient(flow, reinforce(flow, kind((2, 2), 0.3), 64, torch_generator(3)))
        for kind in (Ising, HostAction)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("micro_batch", [0, 5])
def test_log_weights_are_those_of_the_draws(micro_batch: int, shaken: Shaken) -> None:
    description, theory = CASES[0]
    flow = shaken(description, theory)
    pieces = list(reinforce(flow, theory, 20, torch_generator(3), micro_batch))
    generator = torch_generator(3)
    for piece in pieces:
        field, log_q = flow.sample(20 // len(pieces), generator)
        torch.testing.assert_close(piece.log_w, -theory.action(field) - log_q.detach(), rtol=1e-12, atol=1e-12)
        assert not piece.log_w.requires_grad


class TestRefusals:
    @pytest.mark.parametrize("kind", ["autoregressive", "hierarchical"])
    def test_reverse_kl_needs_draws_that_can_be_differentiated(self, kind: str, tmp_path: Any) -> None:
        theory = Ising((4, 4), 0.44)
        flow = build_flow({"kind": kind}, theory)
        with pytest.raises(ParameterError, match='"reinforce"'):
            choose_objective("reverse_kl", flow, theory, 64)
        with pytest.raises(ParameterError, match='"reinforce"'):
            train(flow, theory, TrainingConfig(objective="reverse_kl", steps=3), tmp_path / "flow.safetensors")
        assert not list(tmp_path.iterdir())

    def test_one_draw_has_no_baseline(self) -> None:
        theory = Ising((4, 4), 0.44)
        with pytest.raises(ParameterError, match="batch_size = 1"):
            choose_objective("reinforce", build_flow({"kind": "autoregressive"}, theory), theory, 1)


def test_automatic_choice_suits_the_flow() -> None:
    spins, real = Ising((4, 4), 0.44), FreeScalar((4, 4), 1.0)
    assert choose_objective("auto", build_flow({"kind": "autoregressive"}, spins), spins, 8) is OBJECTIVES["reinforce"]
    assert choose_objective("auto", build_flow({"kind": "coupling"}, real), real, 8) is OBJECTIVES["reverse_kl"]
