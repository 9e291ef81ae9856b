"""Distributions of distrax: `distrax.Transformed`, or any distribution with an event of many numbers."""

from __future__ import annotations

from typing import Any, Unpack

import jax

from flowmc.errors import ParameterError
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, require_library
from flowmc_adapters.jax_device import JaxDensity, JaxPushforward, check_options, device_proposal, with_dtype

__all__ = ["proposal"]


def proposal(flow: Any, *, event_shape: Any, weights: Any = (), **options: Unpack[Options]) -> Proposal:
    """Return a distribution of distrax as a proposal.

    Parameters
    ----------
    flow
        A ``Transformed`` or another distribution without batch dimensions, its parameters bound. Those that are held in
        closures (Haiku) keep their own type: convert them beforehand.
    event_shape
        Shape of one configuration, for example (8, 8) for an event of 64 numbers.
    weights
        Parameters, for the fingerprint, where they cannot be reached from the distribution.
    options
        See `flowmc_adapters.base.Options`.

    Raises
    ------
    ParameterError
        If distrax is missing, or the flow is no distribution of it.
    """
    distrax = require_library("distrax")
    if not isinstance(flow, distrax.Distribution):
        raise ParameterError(
            got=f"a {type(flow).__name__}",
            expected="a distrax.Distribution",
            fix="distributions of TensorFlow Probability: give `sample` and `log_prob` to flowmc_adapters.jax_callables",
        )
    frozen = with_dtype(flow, check_options(options))
    common: dict[str, Any] = {
        "adapter": "distrax",
        "identity": (frozen, weights),
        "event_shape": event_shape,
        "options": options,
    }
    if not isinstance(frozen, distrax.Transformed):
        density = JaxDensity(lambda key, n: frozen.sample_and_log_prob(seed=key, sample_shape=(n,)), frozen.log_prob)
        return device_proposal(density, **common)
    base, bijector = frozen.distribution, frozen.bijector

    def forward(latent: jax.Array) -> tuple[jax.Array, jax.Array]:
        field, log_det = bijector.forward_and_log_det(latent)
        return field, log_det.reshape(len(latent), -1).sum(1)

    pushforward = JaxPushforward(
        lambda key, n: base.sample(seed=key, sample_shape=(n,)), base.log_prob, forward, frozen.log_prob
    )
    return device_proposal(pushforward, **common)
