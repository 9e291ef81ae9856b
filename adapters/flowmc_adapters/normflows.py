"""Flows of normflows: `normflows.NormalizingFlow`, a base density q0 and a list of maps from it to the field."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, require_library
from flowmc_adapters.torch_host import TorchPushforward, frozen_module, host_proposal

__all__ = ["proposal"]

STOCHASTIC = ("MetropolisHastings", "HamiltonianMonteCarlo")


def proposal(flow: Any, *, event_shape: Any, **options: Unpack[Options]) -> Proposal:
    """Return a flow of normflows as a proposal.

    Parameters
    ----------
    flow
        A ``normflows.NormalizingFlow``, trained; a copy is used.
    event_shape
        Shape of one configuration, for example (8, 8) for a flow of 64 features.
    options
        See `flowmc_adapters.base.Options`.

    Raises
    ------
    ParameterError
        If normflows is missing, or the flow is of another class or has stochastic layers, which leave no log q.
    """
    normflows = require_library("normflows")
    if not isinstance(flow, normflows.NormalizingFlow):
        raise ParameterError(
            got=f"a {type(flow).__name__}",
            expected="a normflows.NormalizingFlow",
            fix="for conditional or multiscale models give `sample` and `log_prob` to flowmc_adapters.torch_callables",
        )
    if random := sorted({type(layer).__name__ for layer in flow.modules()} & set(STOCHASTIC)):
        raise ParameterError(
            got=f"a flow with the stochastic layers {', '.join(random)}",
            expected="invertible maps: a path with random steps has a weight, but its end has no log q",
            fix="take the layers out",
        )
    frozen = frozen_module(flow, options)

    def forward(latent: Tensor) -> tuple[Tensor, Tensor]:
        return _composed(frozen.flows, latent)

    def log_prob(field: Tensor) -> Tensor:
        latent, log_det = _composed([layer.inverse for layer in reversed(frozen.flows)], field)
        log_q: Tensor = frozen.q0.log_prob(latent).double() + log_det
        return log_q

    # A base returns its draws together with their log density.
    pushforward = TorchPushforward(
        lambda n: frozen.q0(n)[0], frozen.q0.log_prob, forward, log_prob, base_pair=frozen.q0
    )
    return host_proposal(pushforward, adapter="normflows", identity=frozen, event_shape=event_shape, options=options)


def _composed(maps: Any, points: Tensor) -> tuple[Tensor, Tensor]:
    """Apply maps one after the other, and sum their log-determinants: the library's own sums are float32 always."""
    total = torch.zeros(len(points), dtype=torch.float64, device=points.device)
    for one in maps:
        points, log_det = one(points)
        total = total + log_det.double()
    return points, total
