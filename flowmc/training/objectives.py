"""Training objectives: what a flow minimises.

The reverse Kullback-Leibler divergence KL(q ‖ p) = E_q[log q + S] + ln Z is bounded below by zero, so the loss
E_q[log q + S] is an upper bound of −ln Z, reached where q = p.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowmc.flows import Flow
from flowmc.theories import Theory

__all__ = ["OBJECTIVES", "Loss", "Objective", "reverse_kl"]


class Loss(NamedTuple):
    """A batch's contribution to the training."""

    value: Tensor
    """Scalar to differentiate, float64."""
    log_w: Tensor
    """−S − log q of the batch, (n,), float64, without gradient: its spread is what the training reduces."""


Objective = Callable[[Flow, Theory, int, torch.Generator], Loss]


def reverse_kl(flow: Flow, theory: Theory, n: int, generator: torch.Generator) -> Loss:
    """Reverse KL with the reparametrised gradient: differentiate log q(φ(z)) + S(φ(z)) through the draw itself.

    Parameters
    ----------
    flow
        The flow.
    theory
        The theory, whose action torch must be able to differentiate.
    n
        Batch size.
    generator
        Source of the base draws.

    References
    ----------
    .. [1] Albergo, Kanwar, Shanahan, arXiv:1904.12072.
    """
    field, log_q = flow.sample(n, generator)
    action = theory.action(field)
    return Loss((log_q + action).mean(), -(action + log_q).detach())


OBJECTIVES: dict[str, Objective] = {"reverse_kl": reverse_kl}
"""Every objective by its name in run descriptions."""
