"""The flows of `benchmarks.adapter_flows` that are made of JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.adapter_setting import Setting, Trained
from flowmc_adapters import proposal

__all__ = ["bijx_flow", "distrax_flow", "flowjax_flow", "nfmodel_flow", "numpyro_flow"]


def flowjax_flow(setting: Setting) -> Trained:
    """Return an affine flow of flowjax."""
    import equinox as eqx
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow
    from paramax import NonTrainable, unwrap

    base = Normal(jnp.zeros(setting.size))
    flow = coupling_flow(jax.random.key(1), base_dist=base, flow_layers=2, nn_width=setting.hidden, invert=False)
    weights, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable))
    field = jnp.asarray(setting.draws())
    weights = setting.fit_jax(lambda weights: -unwrap(eqx.combine(weights, static)).log_prob(field).mean(), weights)
    flow = unwrap(eqx.combine(weights, static))
    return Trained(
        proposal(flow, event_shape=setting.shape), compiled(lambda key, n: flow.sample_and_log_prob(key, (n,)))
    )


def distrax_flow(setting: Setting) -> Trained:
    """Return an affine flow of distrax."""
    import distrax

    size = setting.size
    start = [
        {
            "in": 0.3 * jax.random.normal(key, (size, setting.hidden)),
            "out": jnp.zeros((setting.hidden, 2 * size)),
            "bias": jnp.zeros(2 * size),
        }
        for key in jax.random.split(jax.random.key(2))
    ]

    def build(weights: Any) -> Any:
        layers = []
        for number, part in enumerate(weights):

            def conditioner(x: jax.Array, part: Any = part) -> jax.Array:
                numbers: jax.Array = jnp.tanh(x @ part["in"]) @ part["out"] + part["bias"]
                return numbers.reshape(*x.shape[:-1], size, 2)

            def bijector(numbers: jax.Array) -> Any:
                return distrax.ScalarAffine(shift=numbers[..., 0], log_scale=jnp.tanh(numbers[..., 1]))

            mask = (jnp.arange(size) < size // 2) == bool(number)
            layers.append(distrax.MaskedCoupling(mask, conditioner, bijector))
        base = distrax.MultivariateNormalDiag(jnp.zeros(size), jnp.ones(size))
        return distrax.Transformed(base, distrax.Chain(layers))

    field = jnp.asarray(setting.draws())
    flow = build(setting.fit_jax(lambda weights: -build(weights).log_prob(field).mean(), start))
    return Trained(
        proposal(flow, event_shape=setting.shape),
        compiled(lambda key, n: flow.sample_and_log_prob(seed=key, sample_shape=(n,))),
    )


def bijx_flow(setting: Setting) -> Trained:
    """Return a free field with deformed tails, of bijx."""
    import bijx
    from flax import nnx

    shape = setting.shape
    deformed = bijx.Chain(bijx.SinhConjugation(rngs=nnx.Rngs(1)), bijx.FreeTheoryScaling(2.0, shape, half=False))
    flow = bijx.Transformed(bijx.IndependentNormal(event_shape=shape, rngs=nnx.Rngs(0)), deformed)
    graph, weights, rest = nnx.split(flow, nnx.Param, ...)  # type: ignore[misc]
    field = jnp.asarray(setting.draws()).reshape(-1, *shape)
    weights = setting.fit_jax(lambda weights: -nnx.merge(graph, weights, rest).log_density(field).mean(), weights)
    flow = nnx.merge(graph, weights, rest)
    return Trained(proposal(flow, event_shape=shape), compiled(lambda key, n: flow.sample((n,), rng=key)))


def nfmodel_flow(setting: Setting) -> Trained:
    """Return a flow of flowMC."""
    import equinox as eqx
    from flowMC.resource.model.nf_model.realNVP import RealNVP

    field = jnp.asarray(setting.draws())
    standard = {"data_mean": field.mean(0), "data_cov": jnp.cov(field.T)}
    flow = RealNVP(setting.size, 2, setting.hidden, jax.random.key(4), **standard)
    weights, static = eqx.partition(flow, eqx.is_inexact_array)
    weights = setting.fit_jax(lambda weights: -eqx.combine(weights, static).log_prob(field).mean(), weights)
    flow = eqx.combine(weights, static)

    def bare(key: jax.Array, n: int) -> Any:
        field = flow.sample(key, n)
        return field, flow.log_prob(field)

    return Trained(proposal(flow, event_shape=setting.shape), compiled(bare))


def numpyro_flow(setting: Setting) -> Trained:
    """Return a Gaussian of numpyro as two JAX functions."""
    import numpyro.distributions as dist

    size = setting.size

    def build(weights: Any) -> Any:
        scale = jnp.tril(weights["scale"], -1) + jnp.diag(jnp.exp(jnp.diag(weights["scale"])))
        affine = dist.transforms.LowerCholeskyAffine(weights["shift"], scale)
        return dist.TransformedDistribution(dist.Normal(jnp.zeros(size), 1.0).to_event(1), [affine])

    field = jnp.asarray(setting.draws())
    start = {"shift": jnp.zeros(size), "scale": jnp.zeros((size, size))}
    weights = setting.fit_jax(lambda weights: -build(weights).log_prob(field).mean(), start)
    flow = build(weights)
    pair = (lambda key, n: flow.sample(key, (n,)), flow.log_prob)

    def bare(key: jax.Array, n: int) -> Any:
        field = flow.sample(key, (n,))
        return field, flow.log_prob(field)

    found = proposal(pair, event_shape=setting.shape, adapter="jax_callables", weights=weights)
    return Trained(found, compiled(bare))


def compiled(draw: Callable[[jax.Array, int], Any]) -> Callable[[int], object]:
    """Return a JAX sampler as its users run it: compiled, with a key of its own for every call, waited for."""
    fast, calls = jax.jit(draw, static_argnums=1), iter(range(10**9))

    def bare(n: int) -> object:
        drawn: object = jax.block_until_ready(fast(jax.random.key(next(calls)), n))  # type: ignore[no-untyped-call]
        return drawn

    return bare
