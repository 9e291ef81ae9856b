"""Any two JAX functions: one that draws fields with a key, and log q; for numpyro, TFP or one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax

from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, checked_pair
from flowmc_adapters.jax_device import JaxDensity, device_proposal

__all__ = ["proposal"]


def proposal(
    flow: tuple[Callable[[jax.Array, int], Any], Callable[[jax.Array], jax.Array]],
    *,
    event_shape: Any,
    weights: Any = (),
    **options: Unpack[Options],
) -> Proposal:
    """Return two functions as a proposal.

    Parameters
    ----------
    flow
        ``(sample, log_prob)``. ``sample(key, n)`` returns n events (n, *own_event), or better a pair of them and their
        log q, (n,); the key is a typed one. ``log_prob`` returns log q, (n,), of events. Both must be traceable.
    event_shape
        Shape of one configuration.
    weights
        What the functions use that can change, for the fingerprint, which is made of it and of the functions.
    options
        See `flowmc_adapters.base.Options`. The functions keep their own types: ``dtype`` says in which they compute.
    """
    sample, log_prob = checked_pair(flow)

    def drawn(key: jax.Array, n: int) -> Any:
        given = sample(key, n)
        return given if isinstance(given, tuple) else (given, log_prob(given))

    return device_proposal(
        JaxDensity(drawn, log_prob),
        adapter="jax_callables",
        identity=(sample, log_prob, weights),
        event_shape=event_shape,
        options=options,
    )
