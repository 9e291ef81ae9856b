"""Flows of zuko: `zuko.flows.Flow`, and other lazy distributions of the library."""

from __future__ import annotations

from typing import Any, Unpack

import torch

from flowmc.errors import ParameterError
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, frozen_copy, require_library
from flowmc_adapters.torch_host import TorchDensity, TorchPushforward, frozen_module, host_proposal

__all__ = ["proposal"]


def proposal(flow: Any, *, event_shape: Any, context: Any = None, **options: Unpack[Options]) -> Proposal:
    """Return a flow of zuko as a proposal.

    Parameters
    ----------
    flow
        A ``zuko.flows.Flow`` or another ``LazyDistribution``, trained; a copy is used.
    event_shape
        Shape of one configuration, for example (8, 8) for a flow of 64 features.
    context
        What a conditional flow is given, fixed for all draws.
    options
        See `flowmc_adapters.base.Options`. A continuous flow (CNF) integrates adaptively: state its ``log_q_bound``, and
        build it with ``exact=True``, or its log q is a random number.

    Raises
    ------
    ParameterError
        If zuko is missing, or the flow is not one of its lazy distributions.
    """
    zuko = require_library("zuko")
    if not isinstance(flow, zuko.lazy.LazyDistribution):
        raise ParameterError(
            got=f"a {type(flow).__name__}",
            expected="a zuko.flows.Flow, or another zuko.lazy.LazyDistribution",
            fix="pass the flow itself, not what calling it returns",
        )
    frozen = frozen_module(flow, options)
    # Made once: a lazy flow would evaluate what does not depend on a context anew for every call.
    try:
        distribution = frozen() if context is None else frozen(frozen_copy(context))
    except Exception as error:
        raise ParameterError(
            got=f"context = {context!r}, for which the flow fails with {type(error).__name__}: {error}",
            expected="a tensor of the flow's context features, or none for an unconditional flow",
            fix="correct `context`",
        ) from error
    identity = (frozen, context)
    if not isinstance(distribution, zuko.distributions.NormalizingFlow):
        density = TorchDensity(_sampler(distribution), distribution.log_prob)
        return host_proposal(density, adapter="zuko", identity=identity, event_shape=event_shape, options=options)
    inverse = distribution.transform.inv

    def forward(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        field, log_det = inverse.call_and_ladj(latent)
        # Of a transform of single features it comes site by site.
        return field, log_det.flatten(1).sum(1) if log_det.ndim > 1 else log_det

    pushforward = TorchPushforward(
        lambda n: distribution.base.sample((n,)), distribution.base.log_prob, forward, distribution.log_prob
    )
    return host_proposal(pushforward, adapter="zuko", identity=identity, event_shape=event_shape, options=options)


def _sampler(distribution: Any) -> Any:
    def sample(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        field = distribution.sample((n,))
        return field, distribution.log_prob(field)

    return sample
