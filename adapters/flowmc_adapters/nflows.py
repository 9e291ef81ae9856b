"""Flows of nflows: `nflows.flows.base.Flow`, whose transform maps fields to noise."""

from __future__ import annotations

from typing import Any, Unpack

import torch

from flowmc.errors import ParameterError
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, require_library
from flowmc_adapters.torch_host import TorchPushforward, frozen_module, host_proposal

__all__ = ["proposal"]


def proposal(flow: Any, *, event_shape: Any, context: Any = None, **options: Unpack[Options]) -> Proposal:
    """Return a flow of nflows as a proposal.

    Its splines refuse a whole batch where rounding spoils one element (an ``AssertionError``): then the elements are
    computed one by one, and those that cannot be become NaN, which is counted and rejected.

    Parameters
    ----------
    flow
        A ``nflows.flows.base.Flow``, trained; a copy is used.
    event_shape
        Shape of one configuration, for example (8, 8) for a flow of 64 features.
    context
        What a conditional flow is given, (1, *context_shape), fixed for all draws.
    options
        See `flowmc_adapters.base.Options`.

    Raises
    ------
    ParameterError
        If nflows is missing, or the flow is of another class.
    """
    base = require_library("nflows.flows.base")
    if not isinstance(flow, base.Flow):
        raise ParameterError(
            got=f"a {type(flow).__name__}", expected="a nflows.flows.base.Flow", fix="pass the whole flow"
        )
    frozen = frozen_module(flow, options)
    embedded = None
    if context is not None:
        with torch.no_grad():
            embedded = frozen._embedding_net(context)

    def contexts(n: int) -> torch.Tensor | None:
        return None if embedded is None else embedded.expand(n, *embedded.shape[1:])

    weight = next((part for part in frozen.parameters()), torch.ones(()))

    def base_sample(n: int) -> torch.Tensor:
        # With a context nflows draws n for each of its rows. Its noise is float32 whatever the type of the weights.
        drawn = frozen._distribution.sample(n, context=embedded)
        latent: torch.Tensor = (drawn if embedded is None else drawn[0]).to(weight.dtype)
        return latent

    def base_log_prob(latent: torch.Tensor) -> torch.Tensor:
        log_r: torch.Tensor = frozen._distribution.log_prob(latent, context=contexts(len(latent)))
        return log_r

    def forward(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _row_by_row(lambda rows: frozen._transform.inverse(rows, context=contexts(len(rows))), latent)

    def log_prob(field: torch.Tensor) -> torch.Tensor:
        latent, log_det = _row_by_row(lambda rows: frozen._transform(rows, context=contexts(len(rows))), field)
        return base_log_prob(latent) + log_det

    pushforward = TorchPushforward(base_sample, base_log_prob, forward, log_prob)
    return host_proposal(
        pushforward, adapter="nflows", identity=(frozen, context), event_shape=event_shape, options=options
    )


def _row_by_row(transform: Any, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply a transform to a batch or, where it refuses one, to each of its rows; NaN for those that it refuses."""
    try:
        moved, log_det = transform(rows)
    except (AssertionError, ValueError):
        if len(rows) == 1:
            return torch.full_like(rows, torch.nan), torch.full_like(rows[:, 0].flatten(1).sum(1), torch.nan)
        parts = [_row_by_row(transform, row[None]) for row in rows]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return moved, log_det
