"""Gradient estimators: one expectation, forces in place of graphs, zero variance at q = p, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch

from flowmc.errors import ParameterError
from flowmc.flows import Flow, TransportFlow, build_flow
from flowmc.seeds import fold, torch_generator
from flowmc.theories import FreeScalar, Ising, Phi4, Schwinger, SmoothTheory, Theory, U1Gauge2D
from flowmc.training import (
    OBJECTIVES,
    Loss,
    choose_objective,
    gradient_statistics,
    path_gradient,
    reinforce,
    reverse_kl,
    reverse_kl_autograd,
    summed_gradient,
)
from flowmc.training.losses import Objective
from flowmc_analysis.zscores import family_p_value


class Case(NamedTuple):
    """A theory and a flow for it, and the batches that it takes to see a wrong gradient."""

    theory: SmoothTheory
    flow: dict[str, object]
    n: int = 64
    batches: int = 150

    def __str__(self) -> str:
        return self.theory.name

    def moved(self) -> Flow:
        """Return the flow away from its first weights, yet with gradients that are larger than their noise."""
        flow = build_flow(self.flow, self.theory, seed=3).double()
        generator = torch_generator(4)
        with torch.no_grad():
            for weight in flow.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
        return flow


LAYERS = [{"kind": "affine", "hidden": [4], "radius": 1}, {"kind": "sinh_arcsinh"}]
COUPLING: dict[str, object] = {"kind": "coupling", "layers": LAYERS, "repeat": 2, "base_mass": 2.0}
GAUGE: dict[str, object] = {"kind": "gauge", "layers": 8, "hidden": [4], "pieces": 3}
CASES = [
    Case(Phi4((4, 4), m2=-4.0, lam=8.0), COUPLING),
    Case(U1Gauge2D((4, 4), beta=1.0), GAUGE, batches=40),
    # At small β, and with a flow that moves Wilson lines, most of the gradient comes from the fermions. Below κ = 1/4 no
    # determinant vanishes; above, where one does, the force has no variance under such a flow.
    Case(Schwinger((4, 4), beta=0.2, kappa=0.24), {**GAUGE, "holonomies": True}, batches=80),
]
REPARAMETRISED = {"path_gradient": path_gradient, "reverse_kl": reverse_kl, "reverse_kl_autograd": reverse_kl_autograd}


def difference_p_value(one: Objective, other: Objective, case: Case, flow: Flow, seed: int) -> float:
    """Probability of two mean gradients as different as these, or more, if they have one expectation."""
    found = [
        gradient_statistics(objective, flow, case.theory, case.n, 0, case.batches, fold(seed, number))
        for number, objective in enumerate((one, other))
    ]
    error = np.hypot(found[0].error, found[1].error)
    visible = error > 0
    np.testing.assert_array_equal(found[0].mean[~visible], found[1].mean[~visible])
    return family_p_value((found[0].mean - found[1].mean)[visible] / error[visible])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("other", [reinforce, path_gradient], ids=lambda objective: objective.__name__)
def test_all_estimate_one_gradient(other: Objective, case: Case, test_seed: int) -> None:
    assert difference_p_value(other, reverse_kl, case, case.moved(), test_seed) > 1e-5


class Falsified:
    """A theory with another force than that of its action."""

    def __init__(self, theory: SmoothTheory, force: Callable[[Any], Any]) -> None:
        self._theory, self._force = theory, force

    def action_and_force(self, field: Any) -> tuple[Any, Any]:
        return self._theory.action(field), self._force(field)


def half_the_force(flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int) -> Iterator[Loss]:
    assert isinstance(theory, SmoothTheory)
    wrong = Falsified(theory, lambda field: 0.5 * theory.force(field))
    return path_gradient(flow, cast(Theory, wrong), n, generator, micro_batch)


def without_fermions(
    flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int
) -> Iterator[Loss]:
    assert isinstance(theory, Schwinger)
    return path_gradient(flow, cast(Theory, Falsified(theory, theory.gauge_force)), n, generator, micro_batch)


def half_reinforce(flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int) -> Iterator[Loss]:
    for piece in reinforce(flow, theory, n, generator, micro_batch):
        yield piece._replace(value=0.5 * piece.value)


def no_density(flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int) -> Iterator[Loss]:
    """The gradient of the action alone."""
    assert not micro_batch
    field, log_q = flow.sample(n, generator)
    action = theory.action(field)
    yield Loss(action.mean(), -(action + log_q).detach())


MUTANTS = [
    *((mutant, case) for mutant in (half_the_force, half_reinforce) for case in CASES),
    (no_density, CASES[0]),
    (without_fermions, CASES[2]),
]


@pytest.mark.parametrize(("mutant", "case"), MUTANTS, ids=lambda part: getattr(part, "__name__", str(part)))
def test_wrong_gradient_is_caught(mutant: Objective, case: Case, test_seed: int) -> None:
    assert difference_p_value(mutant, reverse_kl, case, case.moved(), test_seed) < 1e-5


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
class TestForceInPlaceOfAGraph:
    def test_is_the_same_gradient_draw_by_draw(self, case: Case, dtype: torch.dtype) -> None:
        flow = case.moved().to(dtype)
        pieces = [
            next(objective(flow, case.theory, 16, torch_generator(5), 0))
            for objective in (reverse_kl, reverse_kl_autograd)
        ]
        rounding = 1e-9 if dtype == torch.float64 else 1e-3
        torch.testing.assert_close(pieces[0].value, pieces[1].value, rtol=rounding, atol=rounding)
        torch.testing.assert_close(pieces[0].log_w, pieces[1].log_w, rtol=rounding, atol=rounding)
        one, other = (summed_gradient(flow, [piece]) for piece in pieces)
        assert np.linalg.norm(one - other) < rounding * np.linalg.norm(other)

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_sums_are_double(self, name: str, case: Case, dtype: torch.dtype) -> None:
        flow = case.moved().to(dtype)
        for piece in OBJECTIVES[name](flow, case.theory, 8, torch_generator(5), 4):
            assert piece.value.shape == ()
            assert piece.value.dtype == piece.log_w.dtype == torch.float64
            assert piece.log_w.shape == (4,)
            assert not piece.log_w.requires_grad


@dataclass(frozen=True)
class Watched(Phi4):
    """φ⁴ theory that notices whether its action is evaluated with a graph."""

    def action(self, field: Any) -> Any:
        if torch.is_tensor(field) and field.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("a graph of the action")
        return super().action(field)


@pytest.mark.parametrize("micro_batch", [0, 4])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_variant_for_comparison_differentiates_the_action(name: str, micro_batch: int) -> None:
    theory = Watched((4, 4), m2=-4.0, lam=8.0)
    pieces = OBJECTIVES[name](build_flow(COUPLING, theory), theory, 8, torch_generator(1), micro_batch)
    if name == "reverse_kl_autograd":
        with pytest.raises(RuntimeError, match="graph"):
            list(pieces)
    else:
        for piece in pieces:
            piece.value.backward()  # type: ignore[no-untyped-call]


class TestPathGradient:
    def exact_flow(self, dtype: str) -> tuple[TransportFlow, FreeScalar]:
        """Return a flow that equals a free field, and is made of two maps that undo each other."""
        theory = FreeScalar((4, 4), 0.8)
        hyper = {
            "kind": "coupling",
            "layers": LAYERS,
            "repeat": 1,
            "base": "spectral",
            "base_mass": 0.8,
            "dtype": dtype,
        }
        flow = build_flow(hyper, theory, seed=1)
        assert isinstance(flow, TransportFlow)
        weights = dict(flow.named_parameters())
        with torch.no_grad():
            weights["layers.1.log_b"].add_(0.7)
            weights["base.log_width_of_class"].sub_(0.7)
        return flow, theory

    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_vanishes_draw_by_draw_where_the_flow_is_exact(self, dtype: str) -> None:
        flow, theory = self.exact_flow(dtype)
        scale = np.linalg.norm(summed_gradient(flow, reverse_kl(flow, theory, 4, torch_generator(3))))
        found = np.linalg.norm(summed_gradient(flow, path_gradient(flow, theory, 4, torch_generator(3))))
        assert scale > 0.1
        assert found < (1e-12 if dtype == "float64" else 1e-4) * scale

    def test_log_weights_are_those_of_the_draws(self) -> None:
        theory, flow = CASES[0].theory, CASES[0].moved()
        (piece,) = path_gradient(flow, theory, 20, torch_generator(3))
        field, log_q = flow.sample(20, torch_generator(3))
        torch.testing.assert_close(piece.log_w, -(theory.action(field) + log_q).detach(), rtol=1e-12, atol=1e-12)

    def test_leaves_the_weights_as_they_were(self) -> None:
        flow = CASES[0].moved()
        next(path_gradient(flow, CASES[0].theory, 4, torch_generator(3)))
        assert all(weight.requires_grad and weight.grad is None for weight in flow.parameters())


class TestStatistics:
    def test_are_those_of_the_batches_one_by_one(self) -> None:
        theory, flow = CASES[0].theory, CASES[0].moved()
        found = gradient_statistics(reverse_kl, flow, theory, 8, 4, 7, seed=2)
        gradients = np.array(
            [
                summed_gradient(flow, reverse_kl(flow, theory, 8, torch_generator(2, "gradient", repeat), 4))
                for repeat in range(7)
            ]
        )
        np.testing.assert_allclose(found.mean, gradients.mean(0), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.variance, gradients.var(0, ddof=1), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.error, gradients.std(0, ddof=1) / np.sqrt(7), rtol=1e-10, atol=1e-10)
        assert found.total_variance == pytest.approx(gradients.var(0, ddof=1).sum())
        assert all(weight.grad is None for weight in flow.parameters())

    def test_gradient_is_the_one_that_a_training_accumulates(self) -> None:
        theory, flow = CASES[0].theory, CASES[0].moved()
        for piece in reinforce(flow, theory, 8, torch_generator(4), 2):
            piece.value.backward()  # type: ignore[no-untyped-call]
        kept = [weight.grad.flatten().numpy() for weight in flow.parameters() if weight.grad is not None]
        np.testing.assert_allclose(
            summed_gradient(flow, reinforce(flow, theory, 8, torch_generator(4), 2)), np.concatenate(kept), rtol=1e-12
        )

    def test_one_batch_has_no_variance(self) -> None:
        theory = CASES[0].theory
        with pytest.raises(ParameterError, match="n_repeats"):
            gradient_statistics(reverse_kl, build_flow(COUPLING, theory), theory, 8, 0, 1, seed=2)


class NotATransport(Flow):
    """A reparametrised flow that is no transport."""

    kind = "other"
    reparametrised = True
    space = Phi4.space

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def log_prob(self, field: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class TestChoice:
    @pytest.mark.parametrize("name", REPARAMETRISED)
    def test_draws_that_cannot_be_differentiated_are_refused(self, name: str) -> None:
        theory = Ising((4, 4), 0.44)
        with pytest.raises(ParameterError, match='objective = "reinforce"'):
            choose_objective(name, build_flow({"kind": "autoregressive"}, theory), theory, 8)

    def test_path_needs_a_transport(self) -> None:
        theory = CASES[0].theory
        flow = NotATransport(theory, None)
        assert choose_objective("reverse_kl", flow, theory, 8) is reverse_kl
        with pytest.raises(ParameterError, match="transport"):
            choose_objective("path_gradient", flow, theory, 8)

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_smooth_theories_have_them_all(self, name: str) -> None:
        for case in CASES:
            assert choose_objective(name, build_flow(case.flow, case.theory), case.theory, 8) is OBJECTIVES[name]
