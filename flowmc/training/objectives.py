"""Training objectives: what a flow minimises.

The reverse Kullback-Leibler divergence KL(q ‖ p) = E_q[log q + S] + ln Z is bounded below by zero, so the loss
E_q[log q + S] is an upper bound of −ln Z, reached where q = p.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows import Flow
from flowmc.theories import SmoothTheory, Theory

__all__ = ["OBJECTIVES", "Loss", "Objective", "choose_objective", "reinforce", "reverse_kl"]


class Loss(NamedTuple):
    """A batch's contribution to the training."""

    value: Tensor
    """Scalar to differentiate, float64; only its gradient counts."""
    log_w: Tensor
    """−S − log q of the batch, (n,), float64, without gradient: minus its mean is the loss, its spread the error of q."""


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


def reinforce(flow: Flow, theory: Theory, n: int, generator: torch.Generator) -> Loss:
    """Reverse KL with the score-function gradient: neither the draws nor the action are differentiated.

    With the signal R = log q + S, ∇E_q[R] = E_q[(R − b) ∇log q] for every b that is independent of the draw. Here b is
    the mean of R over the *other* draws of the batch, which leaves the gradient unbiased and removes most of its noise:
    Σ_i (R_i − b_i) ∇log q_i / n = Σ_i (R_i − R̄) ∇log q_i / (n − 1).

    Parameters
    ----------
    flow
        The flow.
    theory
        The theory; its action is only evaluated.
    n
        Batch size, at least 2.
    generator
        Source of the draws.

    References
    ----------
    .. [1] Wu, Wang, Zhang, arXiv:1809.10606, eq. (7).
    .. [2] Białas, Korcyl, Stebel, arXiv:2203.10989, eq. (8) (there b is the mean over the whole batch).
    .. [3] Kool, van Hoof, Welling, ICLR 2019 workshop "Deep RL meets structured prediction".
    """
    with torch.no_grad():
        field = flow.draw(n, generator)
        action = theory.action(field)
    log_q = flow.log_prob(field)
    signal = log_q.detach() + action
    return Loss(((signal - signal.mean()) * log_q).sum() / (n - 1), -signal)


OBJECTIVES: dict[str, Objective] = {"reinforce": reinforce, "reverse_kl": reverse_kl}
"""Every objective by its name in run descriptions."""


def choose_objective(name: str, flow: Flow, theory: Theory, n: int) -> Objective:
    """Return the objective of a name, which must be able to train a flow for a theory.

    Parameters
    ----------
    name
        A name in `OBJECTIVES`, or "auto": the reverse KL divergence, with the reparametrised gradient where draws and
        action can be differentiated, else with the score-function gradient.
    flow, theory
        What is to be trained, and for what.
    n
        Batch size.

    Raises
    ------
    ParameterError
        If it cannot.
    """
    smooth = flow.reparametrised and isinstance(theory, SmoothTheory)
    if name == "auto":
        name = "reverse_kl" if smooth else "reinforce"
    if name == "reverse_kl" and not smooth:
        raise ParameterError(
            got=f"objective = {name!r} for a {flow.kind!r} flow and the theory {theory.name!r}",
            expected="draws and an action that can be differentiated",
            fix='take objective = "reinforce"',
        )
    if name == "reinforce" and n < 2:
        raise ParameterError(
            got=f"batch_size = {n} with objective = {name!r}",
            expected="at least 2: the baseline is the mean over the other draws",
            fix="raise `batch_size`",
        )
    return OBJECTIVES[name]
