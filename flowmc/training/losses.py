"""What an objective yields: contributions to a loss, in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows import Flow
from flowmc.theories import Theory

__all__ = ["Loss", "Objective", "check_micro_batch", "pieces"]


class Loss(NamedTuple):
    """A micro-batch's contribution to the training."""

    value: Tensor
    """Scalar to differentiate, float64; those of all pieces are to be added."""
    log_w: Tensor
    """−S − log q of the micro-batch, (m,), float64, without gradient: minus its mean is the loss, and of the value only
    the gradient counts; its spread is the error of q. Empty where draws have no log q: then the value is the loss."""


Objective = Callable[[Flow, Theory, int, torch.Generator, int], Iterator[Loss]]
"""Yields the pieces of a batch: ``objective(flow, theory, n, generator, micro_batch)``, with ``micro_batch`` draws in
each piece, or all ``n`` for 0. The draws depend on the generator and these two numbers alone."""


def check_micro_batch(n: int, micro_batch: int) -> None:
    """Check that a batch of ``n`` draws can be cut into micro-batches; 0 stands for the whole batch.

    Raises
    ------
    ParameterError
        If it cannot.
    """
    if micro_batch < 0 or (micro_batch and n % micro_batch):
        fits = max(size for size in range(1, min(n, max(micro_batch, 1)) + 1) if n % size == 0)
        raise ParameterError(
            got=f"micro_batch = {micro_batch} with batch_size = {n}",
            expected="0 (the whole batch at once) or a divisor of batch_size",
            fix=f"set micro_batch = {fits}, or change `batch_size`",
        )


def pieces(n: int, micro_batch: int) -> list[int]:
    """Return the sizes of the micro-batches."""
    check_micro_batch(n, micro_batch)
    return [micro_batch] * (n // micro_batch) if micro_batch else [n]
