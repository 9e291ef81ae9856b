"""Training objectives: what a flow minimises, and how the gradient of it is estimated.

The reverse Kullback-Leibler divergence KL(q ‖ p) = E_q[log q + S] + ln Z is bounded below by zero, so the loss
E_q[log q + S] is an upper bound of −ln Z, reached where q = p. All objectives in this file are unbiased estimators of its
gradient, and differ in noise, memory and in what they ask of the theory:

=================== ====== ============== ==================================================================
name                theory flow           what is differentiated
=================== ====== ============== ==================================================================
reverse_kl          force  reparametrised the draw and its log q; the action by its force
reverse_kl_autograd force  reparametrised the draw, its log q and the action
path_gradient       force  transport      the draw; log q with respect to the field; the action by its force
reinforce           action any            log q at given fields
=================== ====== ============== ==================================================================

The forward divergence, which needs samples of the target, is in `flowmc.training.forward`; the residual of the continuity
equation, which is no divergence but vanishes where q = p as well, in `flowmc.training.continuity`.

An objective is a generator: it yields its batch in micro-batches, and whoever trains calls ``backward`` on each piece as
it comes. Gradients add up, and the graph of one micro-batch is freed before that of the next one is made, so that memory
is that of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowmc.errors import ParameterError
from flowmc.flows import Flow, PathFlow, TransportFlow
from flowmc.theories import SmoothTheory, Theory
from flowmc.training.continuity import CONTINUITY, continuity
from flowmc.training.losses import Loss, Objective, pieces

__all__ = [
    "OBJECTIVES",
    "choose_objective",
    "path_gradient",
    "reinforce",
    "reverse_kl",
    "reverse_kl_autograd",
]


class _ActionByForce(torch.autograd.Function):
    """The action of each field, whose derivative is the theory's own: no graph of the action is ever made."""

    @staticmethod
    def forward(ctx: Any, field: Tensor, theory: SmoothTheory) -> Tensor:
        action, force = theory.action_and_force(field.detach())
        ctx.save_for_backward(force)
        return cast(Tensor, action)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None]:
        (force,) = ctx.saved_tensors
        return -_by_field(weight, force) * force, None


def _by_field(values: Tensor, field: Tensor) -> Tensor:
    """Return numbers (n,) in the type of a field, shaped to multiply its batch (n, ...)."""
    return values.to(field.dtype).reshape(-1, *[1] * (field.ndim - 1))


def reverse_kl(flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int = 0) -> Iterator[Loss]:
    """Reverse KL with the reparametrised gradient: differentiate log q(φ(z)) + S(φ(z)) through the draw itself.

    The action enters by its analytic force, ∇S = −F · ∂φ: one evaluation of action and force without a graph. This is the
    one to train with where there is a force.

    Parameters
    ----------
    flow
        The flow; its draws can be differentiated.
    theory
        The theory, a `SmoothTheory`.
    n
        Draws of the whole batch.
    generator
        Source of the base draws.
    micro_batch
        Draws of one piece; 0 is all of them.

    References
    ----------
    .. [1] Albergo, Kanwar, Shanahan, arXiv:1904.12072.
    """
    smooth = cast(SmoothTheory, theory)

    def action(field: Tensor) -> Tensor:
        return cast(Tensor, _ActionByForce.apply(field, smooth))  # type: ignore[no-untyped-call]

    for size in pieces(n, micro_batch):
        yield _reparametrised(flow, action, size, n, generator)


def reverse_kl_autograd(
    flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int = 0
) -> Iterator[Loss]:
    """Reverse KL with the reparametrised gradient, for which torch also differentiates the action.

    The same estimator as `reverse_kl`, draw by draw, at the cost in time and memory of back-propagation through the
    action. It is there to measure that cost, which is what most published comparisons call the reparametrisation trick
    (arXiv:2308.13294), and to check forces. Parameters as for `reverse_kl`.
    """
    for size in pieces(n, micro_batch):
        yield _reparametrised(flow, theory.action, size, n, generator)


def _reparametrised(
    flow: Flow, action: Callable[[Tensor], Tensor], size: int, n: int, generator: torch.Generator
) -> Loss:
    # In a function of its own, so that nothing of a piece's graph outlives the piece.
    field, log_q = flow.sample(size, generator)
    signal = log_q + action(field)
    return Loss(signal.sum() / n, -signal.detach())


def path_gradient(
    flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int = 0
) -> Iterator[Loss]:
    """Reverse KL with the path gradient: the reparametrised one without the part whose mean is zero.

    The weights θ enter log q_θ(φ_θ(z)) through the draw and directly, and E_q[∂_θ log q_θ(φ)] = 0 at fixed φ. What is
    left, with the force F = −∂S/∂φ,

        ∇E_q[log q + S] = E_z[ (∂φ/∂θ) (∂ log q/∂φ − F) ],

    vanishes draw by draw where q = p, so that the noise dies out as the flow learns. The price is a pass of ``log_prob``,
    differentiated with respect to the field alone.

    Parameters
    ----------
    flow
        The flow, a `TransportFlow`.
    theory
        The theory, a `SmoothTheory`.
    n
        Draws of the whole batch.
    generator
        Source of the base draws.
    micro_batch
        Draws of one piece; 0 is all of them.

    References
    ----------
    .. [1] Roeder, Wu, Duvenaud, arXiv:1703.09194.
    .. [2] Vaitl, Nicoli, Nakajima, Kessel, arXiv:2207.08219.
    """
    smooth = cast(SmoothTheory, theory)
    for size in pieces(n, micro_batch):
        yield _along_the_path(flow, smooth, size, n, generator)


def _along_the_path(flow: Flow, theory: SmoothTheory, size: int, n: int, generator: torch.Generator) -> Loss:
    field, log_q = flow.sample(size, generator)
    given = field.detach()
    action, force = theory.action_and_force(given)
    (density_gradient,) = torch.autograd.grad(flow.log_prob(given.requires_grad_()).sum(), given)
    value = (field * (density_gradient - force)).sum(dtype=torch.float64) / n
    return Loss(value, -(log_q.detach() + action))


def reinforce(flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int = 0) -> Iterator[Loss]:
    """Reverse KL with the score-function gradient: neither the draws nor the action are differentiated.

    With the signal R = log q + S, ∇E_q[R] = E_q[(R − b) ∇log q] for every b that is independent of the draw. Here b is
    the mean of R over the *other* draws of the whole batch, which leaves the gradient unbiased and removes most of its
    noise: Σ_i (R_i − b_i) ∇log q_i / n = Σ_i (R_i − R̄) ∇log q_i / (n − 1).

    Since R̄ is needed before the first gradient, several micro-batches are drawn and weighed first, without a graph, and
    only fields and signals are kept; then log q is computed anew for each, with a graph. A single one needs log q once,
    unless the flow is a transport: its draws come with log q, and were the signal taken from the inverse map instead,
    training would seek out weights for which rounding makes that one too small.

    One signal that is not finite makes the baseline, and so the whole gradient, not finite; the trainer stops there.

    Parameters
    ----------
    flow
        The flow.
    theory
        The theory; its action is only evaluated.
    n
        Draws of the whole batch, at least 2.
    generator
        Source of the draws.
    micro_batch
        Draws of one piece; 0 is all of them.

    References
    ----------
    .. [1] Wu, Wang, Zhang, arXiv:1809.10606, eq. (7).
    .. [2] Białas, Korcyl, Stebel, arXiv:2203.10989, eq. (8) (there b is the mean over the whole batch), and for
       transports arXiv:2308.13294.
    .. [3] Kool, van Hoof, Welling, ICLR 2019 workshop "Deep RL meets structured prediction".
    """
    if n < 2:
        raise ParameterError(
            got=f"a batch of {n}", expected="at least 2 draws: the baseline is the mean over the others", fix="raise it"
        )
    sizes = pieces(n, micro_batch)
    if len(sizes) == 1 and not flow.reparametrised:
        with torch.no_grad():
            field = flow.draw(n, generator)
            action = theory.action(field)
        log_q = flow.log_prob(field)
        signal = log_q.detach() + action
        yield Loss(_score(log_q, signal - signal.mean(), n), -signal)
        return
    fields, signals = [], []
    with torch.no_grad():
        for size in sizes:
            field, log_q = flow.sample(size, generator)
            fields.append(field)
            signals.append(log_q + theory.action(field))
    baseline = torch.cat(signals).mean()
    for field, signal in zip(fields, signals, strict=True):
        yield Loss(_score(flow.log_prob(field), signal - baseline, n), -signal)


def _score(log_q: Tensor, excess: Tensor, n: int) -> Tensor:
    """Return what has the gradient Σ_i (R_i − R̄) ∇log q_i / (n − 1)."""
    return (excess * log_q).sum() / (n - 1)


OBJECTIVES: dict[str, Objective] = {
    "path_gradient": path_gradient,
    "reinforce": reinforce,
    "reverse_kl": reverse_kl,
    "reverse_kl_autograd": reverse_kl_autograd,
}
"""Every estimator of the reverse divergence's gradient by its name in run descriptions."""


def choose_objective(name: str, flow: Flow, theory: Theory, n: int) -> Objective:
    """Return the objective of a name, which must be able to train a flow for a theory.

    Parameters
    ----------
    name
        A name in `OBJECTIVES`; "continuity"; or "auto": the reverse KL divergence, with the reparametrised gradient where
        draws and action can be differentiated, else with the score-function gradient.
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
    if name != "reinforce" and not smooth:
        raise ParameterError(
            got=f"objective = {name!r} for a {flow.kind!r} flow and the theory {theory.name!r}",
            expected="draws that can be differentiated, and a theory with a force",
            fix='take objective = "reinforce"',
        )
    if name == "path_gradient" and not isinstance(flow, TransportFlow):
        raise ParameterError(
            got=f"objective = {name!r} for a {flow.kind!r} flow",
            expected="a transport: log q at a given field, differentiated with respect to the field",
            fix='take objective = "reverse_kl"',
        )
    if name == CONTINUITY:
        if not isinstance(flow, PathFlow):
            raise ParameterError(
                got=f"objective = {name!r} for a {flow.kind!r} flow",
                expected='a flow with a velocity and a path of densities, of kind "interpolating" or "operator"',
                fix='take objective = "reverse_kl"',
            )
        flow.interpolation.check(flow.base, theory)
        return continuity
    if name == "reinforce" and n < 2:
        raise ParameterError(
            got=f"batch_size = {n} with objective = {name!r}",
            expected="at least 2: the baseline is the mean over the other draws",
            fix="raise `batch_size`",
        )
    return OBJECTIVES[name]
