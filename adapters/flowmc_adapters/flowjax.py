"""Flows of flowjax: `flowjax.distributions.Transformed`, or any distribution of the library."""

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
    """Return a flow of flowjax as a proposal.

    Where its ``log_prob`` would say −inf for what is not a number, so that a chain is stuck without a word, this one says
    NaN, which the sampler refuses.

    Parameters
    ----------
    flow
        A ``Transformed`` or another distribution, without a condition. Flows are built for fast log q or for fast draws
        (``invert``): here draws are many and log q is needed where another kernel moved, so ``invert=False`` is the one
        to train.
    event_shape
        Shape of one configuration, for example (8, 8) for a flow of dimension 64.
    options
        See `flowmc_adapters.base.Options`.

    Raises
    ------
    ParameterError
        If flowjax is missing, or the flow is no distribution of it, or needs a condition.
    """
    distributions = require_library("flowjax.distributions")
    if not isinstance(flow, distributions.AbstractDistribution) or flow.cond_shape is not None:
        condition = getattr(flow, "cond_shape", None)
        raise ParameterError(
            got=f"a {type(flow).__name__}" + (f" with a condition of shape {condition}" if condition else ""),
            expected="a distribution of flowjax without a condition",
            fix="give `sample` and `log_prob` at one condition to flowmc_adapters.jax_callables",
        )
    # Parametrisations are resolved once: the weights do not change any more.
    frozen = require_library("paramax").unwrap(with_dtype(flow, check_options(options)))
    common: dict[str, Any] = {
        "adapter": "flowjax",
        "identity": frozen,
        "event_shape": event_shape,
        "options": options,
    }
    if not isinstance(frozen, distributions.AbstractTransformed):
        density = JaxDensity(
            lambda key, n: frozen.sample_and_log_prob(key, (n,)), lambda field: _honest(frozen.log_prob(field), field)
        )
        return device_proposal(density, **common)
    base, bijection = frozen.base_dist, frozen.bijection

    def log_prob(field: jax.Array) -> jax.Array:
        latent, log_det = jax.vmap(bijection.inverse_and_log_det)(field)
        return _honest(base.log_prob(latent) + log_det, field, latent)

    pushforward = JaxPushforward(
        lambda key, n: base.sample(key, (n,)), base.log_prob, jax.vmap(bijection.transform_and_log_det), log_prob
    )
    return device_proposal(pushforward, **common)


def _honest(log_q: jax.Array, *points: jax.Array) -> jax.Array:
    """Return log q, NaN where a number in an event is: the library says -inf there."""
    lost = [jnp.isnan(part.reshape(len(part), -1)).any(1) for part in points]
    return jnp.where(jnp.stack(lost).any(0), jnp.nan, log_q)
