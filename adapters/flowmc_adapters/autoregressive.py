"""Autoregressive networks of spins ±1, as those of arXiv:1809.10606 and its relatives: ``sample`` and ``log_prob``."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options
from flowmc_adapters.torch_host import TorchDensity, frozen_module, host_proposal

__all__ = ["proposal"]


def proposal(
    flow: torch.nn.Module,
    *,
    event_shape: Any,
    sample: str = "sample",
    log_prob: str = "log_prob",
    **options: Unpack[Options],
) -> Proposal:
    """Return a network of spins as a proposal.

    Parameters
    ----------
    flow
        A module with methods that draw n configurations of spins ±1 and return the log probability, (n,), of
        configurations. What the first returns beside the spins, often the probabilities of its last pass, is left alone:
        log q comes from the second, which may be symmetrised if the draws are. A copy is used.
    event_shape
        Shape of one configuration, for example (16, 16); the network's own may have a channel of length one.
    sample, log_prob
        Names of the methods.
    options
        See `flowmc_adapters.base.Options`; the space is that of spins.

    Raises
    ------
    ParameterError
        If a method is missing, or what is drawn is not ±1.
    """
    frozen = frozen_module(flow, options)
    for name in (sample, log_prob):
        if not callable(getattr(frozen, name, None)):
            raise ParameterError(
                got=f"a {type(flow).__name__} without a method {name!r}",
                expected="methods that draw spins and return their log probability",
                fix="name them with `sample` and `log_prob`",
            )

    def drawn(n: int) -> tuple[Tensor, Tensor]:
        given = getattr(frozen, sample)(n)
        spins = given if isinstance(given, Tensor) else given[0]
        if not bool((spins.abs() == 1).all()):
            raise ParameterError(
                got=f"draws with values from {spins.min().item():g} to {spins.max().item():g}",
                expected="spins of -1 and +1",
                fix="map the network's values to them, for example 2 * s - 1 for zeros and ones",
            )
        return spins, getattr(frozen, log_prob)(spins)

    return host_proposal(
        TorchDensity(drawn, getattr(frozen, log_prob)),
        adapter="autoregressive",
        identity=(frozen, sample, log_prob),
        event_shape=event_shape,
        options={**options, "space": "spin"},
    )
