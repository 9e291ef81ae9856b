"""Flows of bijx: `bijx.Transformed`, or any distribution of the library."""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp

from flowmc.errors import ParameterError
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, require_library
from flowmc_adapters.fingerprints import ADDRESS
from flowmc_adapters.jax_device import JaxDensity, JaxPushforward, check_options, device_proposal, with_dtype

__all__ = ["proposal"]


def proposal(flow: Any, *, event_shape: Any, **options: Unpack[Options]) -> Proposal:
    """Return a flow of bijx as a proposal.

    Parameters
    ----------
    flow
        A ``Transformed`` or another distribution, trained; a copy is used.
    event_shape
        Shape of one configuration, for example (8, 8).
    options
        See `flowmc_adapters.base.Options`. A continuous flow with an adaptive solver is not exact: state its
        ``log_q_bound``.

    Raises
    ------
    ParameterError
        If bijx is missing, or the flow is no distribution of it, or one that serves its draws from a buffer.
    """
    bijx, nnx = require_library("bijx"), require_library("flax.nnx")
    if not isinstance(flow, bijx.Distribution) or isinstance(flow, bijx.BufferedSampler):
        raise ParameterError(
            got=f"a {type(flow).__name__}",
            expected="a bijx.Transformed, or another distribution that draws what it is asked for",
            fix="pass the distribution that the buffer serves: proposals are drawn in batches anyway",
        )
    graph, state = nnx.split(flow)
    frozen = nnx.merge(graph, with_dtype(state, check_options(options)))
    # Generators are part of the state, but of no draw that has a key.
    weights = jax.tree.leaves(nnx.state(flow, nnx.Not(nnx.RngState)))
    kinds = [type(part) for _, part in nnx.iter_graph(flow) if not isinstance(part, jax.Array)]
    structure = ADDRESS.sub("", str(graph))
    common: dict[str, Any] = {
        "adapter": "bijx",
        "identity": (weights, structure, kinds),
        "event_shape": event_shape,
        "options": options,
    }
    if not isinstance(frozen, bijx.Transformed):
        density = JaxDensity(lambda key, n: frozen.sample((n,), rng=key), frozen.log_density)
        return device_proposal(density, **common)
    prior, bijection = frozen.prior, frozen.bijection

    def forward(latent: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The second argument is a log density, from which log|det| is subtracted on the way.
        field, log_density = bijection.forward(latent, jnp.zeros(len(latent)))
        return field, -log_density

    pushforward = JaxPushforward(
        lambda key, n: prior.sample((n,), rng=key)[0], prior.log_density, forward, frozen.log_density
    )
    return device_proposal(pushforward, **common)
