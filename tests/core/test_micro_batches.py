"""Micro-batches: pieces of a batch whose gradients add up to the gradient of the whole, compared by hand."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from flowmc.errors import ParameterError
from flowmc.flows import Flow
from flowmc.seeds import torch_generator
from flowmc.theories import Ising, Phi4, Theory
from flowmc.training import OBJECTIVES, Loss, path_gradient, reinforce, reverse_kl, reverse_kl_autograd, summed_gradient
from flowmc.training.losses import Objective

Shaken = Callable[[Mapping[str, object], Theory], Flow]

PHI4 = Phi4((4, 4), m2=-4.0, lam=8.0)
LAYERS = [{"kind": "affine", "hidden": [4], "radius": 1}, {"kind": "sinh_arcsinh"}]
COUPLING = {"kind": "coupling", "layers": LAYERS, "repeat": 2}
SPINS: list[tuple[dict[str, object], Ising]] = [
    ({"kind": "autoregressive", "translations": True}, Ising((4, 4), 0.44)),
    ({"kind": "hierarchical"}, Ising((4, 4), 0.44)),
]


@pytest.mark.parametrize(
    "objective", [path_gradient, reverse_kl, reverse_kl_autograd], ids=lambda objective: objective.__name__
)
@pytest.mark.parametrize("size", [1, 4, 12])
def test_gradient_is_the_mean_of_the_parts(objective: Objective, size: int, shaken: Shaken) -> None:
    flow = shaken(COUPLING, PHI4)
    pieces = list(objective(flow, PHI4, 12, torch_generator(1), size))
    assert [len(piece.log_w) for piece in pieces] == [size] * (12 // size)
    # By hand: batches of their own, one after the other from the same generator.
    generator = torch_generator(1)
    parts = [next(objective(flow, PHI4, size, generator, 0)) for _ in pieces]
    for piece, part in zip(pieces, parts, strict=True):
        torch.testing.assert_close(piece.log_w, part.log_w, rtol=0, atol=0)
    by_hand = np.mean([summed_gradient(flow, [part]) for part in parts], axis=0)
    np.testing.assert_allclose(summed_gradient(flow, pieces), by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("description", "theory"), [(COUPLING, PHI4), *SPINS], ids=str)
@pytest.mark.parametrize("size", [1, 4, 12])
def test_baseline_is_that_of_the_whole_batch(
    description: dict[str, object], theory: Theory, size: int, shaken: Shaken
) -> None:
    flow = shaken(description, theory)
    pieces = list(reinforce(flow, theory, 12, torch_generator(1), size))
    generator = torch_generator(1)
    with torch.no_grad():
        field = torch.cat([flow.draw(size, generator) for _ in pieces])
    log_q = flow.log_prob(field)
    signal = log_q.detach() + theory.action(field)
    torch.testing.assert_close(torch.cat([piece.log_w for piece in pieces]), -signal, rtol=1e-10, atol=1e-10)
    # The other draws of the batch, written out.
    others = torch.stack([torch.cat([signal[:i], signal[i + 1 :]]).mean() for i in range(12)])
    whole = Loss(((signal - others) * log_q).mean(), -signal)
    np.testing.assert_allclose(summed_gradient(flow, pieces), summed_gradient(flow, [whole]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_draws_depend_on_generator_and_sizes_alone(name: str, shaken: Shaken) -> None:
    flow = shaken(COUPLING, PHI4)

    def log_w(seed: int, micro_batch: int) -> torch.Tensor:
        return torch.cat(
            [piece.log_w for piece in OBJECTIVES[name](flow, PHI4, 12, torch_generator(seed), micro_batch)]
        )

    before = torch.get_rng_state()
    first = log_w(1, 4)
    torch.rand(3)
    torch.testing.assert_close(log_w(1, 4), first, rtol=0, atol=0)
    torch.testing.assert_close(log_w(1, 0), log_w(1, 12), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(log_w(2, 4), first)
    torch.set_rng_state(before)
    log_w(1, 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_piece_that_was_used_is_freed(name: str, shaken: Shaken) -> None:
    # The objective itself must not hold on to the graph of a piece that it has handed over.
    flow = shaken(COUPLING, PHI4)
    objective = OBJECTIVES[name](flow, PHI4, 12, torch_generator(1), 4)
    piece = next(objective)
    graph = weakref.ref(piece.value)
    piece.value.backward()  # type: ignore[no-untyped-call]
    del piece
    gc.collect()
    assert graph() is None
    assert len(list(objective)) == 2


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("n", "micro_batch", "fits"), [(12, 5, 4), (12, 24, 12), (12, -1, 1), (7, 6, 1)])
def test_sizes_that_do_not_divide_are_refused(name: str, n: int, micro_batch: int, fits: int, shaken: Shaken) -> None:
    flow = shaken(COUPLING, PHI4)
    with pytest.raises(ParameterError, match="micro_batch") as caught:
        next(OBJECTIVES[name](flow, PHI4, n, torch_generator(1), micro_batch))
    # The fix is one.
    assert f"micro_batch = {fits}," in caught.value.fix
    assert len(list(OBJECTIVES[name](flow, PHI4, n, torch_generator(1), fits))) == n // fits
