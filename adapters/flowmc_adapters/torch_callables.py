"""Any two functions on torch tensors: one that draws fields with log q, and log q itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, checked_pair
from flowmc_adapters.torch_host import TorchDensity, host_proposal

__all__ = ["proposal"]


def proposal(
    flow: tuple[Callable[[int], Any], Callable[[Tensor], Tensor]],
    *,
    event_shape: Any,
    weights: Any = (),
    **options: Unpack[Options],
) -> Proposal:
    """Return two functions as a proposal.

    Parameters
    ----------
    flow
        ``(sample, log_prob)``. ``sample(n)`` returns n events (n, *own_event), or better a pair of them and their log q,
        (n,); it draws from torch's global generator. ``log_prob`` returns log q, (n,), of events. Put modules into
        evaluation mode beforehand.
    event_shape
        Shape of one configuration.
    weights
        What the functions use that can change: modules, tensors. The fingerprint is made of them and of the functions.
    options
        See `flowmc_adapters.base.Options`; type and device are those of what ``sample`` returns.
    """
    sample, log_prob = checked_pair(flow)

    def drawn(n: int) -> Any:
        given = sample(n)
        return (given, log_prob(given)) if isinstance(given, torch.Tensor) else given

    return host_proposal(
        TorchDensity(drawn, log_prob),
        adapter="torch_callables",
        identity=(sample, log_prob, weights),
        event_shape=event_shape,
        options=options,
    )
