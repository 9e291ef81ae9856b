"""REINFORCE: its mean over batches against the exact gradient of the divergence, by enumeration of all spins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows import Flow, build_flow
from flowmc.seeds import fold, torch_generator
from flowmc.testing import ExactIsing, enumerate_spins
from flowmc.theories import FreeScalar, Ising, Phi4, Theory
from flowmc.training import OBJECTIVES, Loss, TrainingConfig, choose_objective, reinforce, train
from flowmc.training.objectives import Objective
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


def gradient(flow: Flow, value: Tensor) -> np.ndarray:
    parts = torch.autograd.grad(value, list(flow.parameters()))
    return torch.cat([part.flatten() for part in parts]).numpy()


def mean_gradient_scores(
    objective: Objective, flow: Flow, theory: Ising, n: int, batches: int, seed: int
) -> np.ndarray:
    """z-scores of the mean gradient over many batches, component by component."""
    exact = gradient(flow, exact_divergence(flow, theory))
    found = np.array(
        [gradient(flow, objective(flow, theory, n, torch_generator(seed, batch)).value) for batch in range(batches)]
    )
    # What a mask hides has no gradient at all.
    visible = found.any(axis=0)
    np.testing.assert_array_equal(exact[~visible], 0)
    found, exact = found[:, visible], exact[visible]
    scores: np.ndarray = (found.mean(0) - exact) / (found.std(0, ddof=1) / np.sqrt(batches))
    return scores


def p_value(objective: Objective, flow: Flow, theory: Ising, n: int, batches: int, seed: int) -> float:
    return float(family_p_value(mean_gradient_scores(objective, flow, theory, n, batches, seed)))


@pytest.mark.parametrize(("description", "theory"), CASES, ids=str)
@pytest.mark.parametrize("n", [2, 16])
def test_gradient_is_unbiased(
    description: dict[str, object], theory: Ising, n: int, shaken: Shaken, test_seed: int
) -> None:
    assert p_value(reinforce, shaken(description, theory), theory, n, BATCHES if n == 2 else 400, test_seed) > 1e-5


def own_mean_baseline(flow: Flow, theory: Theory, n: int, generator: torch.Generator) -> Loss:
    """The mean over the whole batch as baseline, each draw's own signal in it: too short by a factor (n − 1)/n."""
    loss = reinforce(flow, theory, n, generator)
    return Loss(loss.value * ((n - 1) / n), loss.log_w)


def no_density_in_the_signal(flow: Flow, theory: Theory, n: int, generator: torch.Generator) -> Loss:
    """The energy alone as the signal: the entropy is forgotten."""
    field = flow.draw(n, generator)
    log_q, signal = flow.log_prob(field), theory.action(field)
    return Loss(((signal - signal.mean()) * log_q).sum() / (n - 1), -signal)


def density_of_another_draw(flow: Flow, theory: Theory, n: int, generator: torch.Generator) -> Loss:
    """Actions and densities that belong to different draws."""
    field = flow.draw(n, generator)
    log_q, action = flow.log_prob(field), theory.action(flow.draw(n, generator))
    signal = log_q.detach() + action
    return Loss(((signal - signal.mean()) * log_q).sum() / (n - 1), -signal)


@pytest.mark.parametrize(
    "mutant", [own_mean_baseline, no_density_in_the_signal, density_of_another_draw], ids=lambda mutant: mutant.__name__
)
def test_wrong_gradient_is_caught(mutant: Objective, shaken: Shaken, test_seed: int) -> None:
    description, theory = CASES[0]
    assert p_value(mutant, shaken(description, theory), theory, 2, BATCHES, test_seed) < 1e-5


class HostAction(Ising):
    """An action that torch cannot differentiate: it goes through NumPy."""

    def action(self, field: Any) -> Any:
        return torch.as_tensor(super().action(np.asarray(field)))


def test_an_action_without_a_gradient_is_enough(shaken: Shaken) -> None:
    description, theory = CASES[0]
    flow = shaken(description, theory)
    values = [reinforce(flow, kind((2, 2), 0.3), 64, torch_generator(3)).value for kind in (Ising, HostAction)]
    np.testing.assert_array_equal(gradient(flow, values[1]), gradient(flow, values[0]))


def test_log_weights_are_those_of_the_draws(shaken: Shaken) -> None:
    description, theory = CASES[0]
    flow = shaken(description, theory)
    loss = reinforce(flow, theory, 20, torch_generator(3))
    field, log_q = flow.sample(20, torch_generator(3))
    torch.testing.assert_close(loss.log_w, -theory.action(field) - log_q.detach(), rtol=1e-12, atol=1e-12)
    assert not loss.log_w.requires_grad


def test_real_fields_are_trained_without_differentiating_the_draw() -> None:
    # For a reparametrised flow both objectives have one expectation; their own noise is the scale of the comparison.
    theory = Phi4((2, 2), m2=1.0, lam=0.5)
    flow = build_flow({"kind": "coupling", "layers": 2, "hidden": [2], "dtype": "float64"}, theory, seed=1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch_generator(2), dtype=torch.float64))
    found = {
        name: np.array(
            [
                gradient(flow, objective(flow, theory, 64, torch_generator(fold(1, name), batch)).value)
                for batch in range(200)
            ]
        )
        for name, objective in OBJECTIVES.items()
    }
    one, other = found["reinforce"], found["reverse_kl"]
    visible = one.any(axis=0)
    error = np.sqrt((one.var(0, ddof=1) + other.var(0, ddof=1)) / 200)[visible]
    assert family_p_value((one.mean(0) - other.mean(0))[visible] / error) > 1e-5


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
