"""Flows of flowMC, the sampler of that name: `flowMC.resource.model.nf_model.base.NFModel`."""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp

from flowmc.errors import ParameterError
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, require_library
from flowmc_adapters.jax_device import JaxDensity, JaxPushforward, check_options, device_proposal, with_dtype

__all__ = ["proposal"]


def proposal(flow: Any, *, event_shape: Any, **options: Unpack[Options]) -> Proposal:
    """Return a flow of flowMC as a proposal.

    Parameters
    ----------
    flow
        An ``NFModel``, trained: `forward` maps standardised data to the base, ``base_dist`` draws there.
    event_shape
        Shape of one configuration, for example (8, 8) for a model of 64 features.
    options
        See `flowmc_adapters.base.Options`.

    Raises
    ------
    ParameterError
        If flowMC is missing, or the flow is none of its models.
    """
    base = require_library("flowMC.resource.model.nf_model.base")
    if not isinstance(flow, base.NFModel):
        raise ParameterError(
            got=f"a {type(flow).__name__}",
            expected="a model of flowMC, a subclass of NFModel",
            fix="give `sample` and `log_prob` to flowmc_adapters.jax_callables",
        )
    frozen = with_dtype(flow, check_options(options))
    common: dict[str, Any] = {
        "adapter": "flowmc_nfmodel",
        "identity": frozen,
        "event_shape": event_shape,
        "options": options,
    }
    if not hasattr(frozen, "base_dist"):

        def sample(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
            field = frozen.sample(key, n)
            return field, frozen.log_prob(field)

        return device_proposal(JaxDensity(sample, frozen.log_prob), **common)
    scale = jnp.sqrt(jnp.diag(frozen.data_cov))

    def forward(latent: jax.Array) -> tuple[jax.Array, jax.Array]:
        standard, log_det = jax.vmap(frozen.inverse)(latent)
        return standard * scale + frozen.data_mean, log_det + jnp.log(scale).sum()

    pushforward = JaxPushforward(frozen.base_dist.sample, jax.vmap(frozen.base_dist.log_prob), forward, frozen.log_prob)
    return device_proposal(pushforward, **common)
