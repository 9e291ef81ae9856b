"""Flows of JAX libraries as proposals, on the host and in compiled code: typed keys, float64, compiled once a size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import check_field, require_x64
from flowmc.errors import FlowmcError, LatticeMismatchError, ParameterError
from flowmc.proposals import ProposalMetadata
from flowmc.seeds import fold, jax_key
from flowmc.theories import SPACES
from flowmc_adapters.base import (
    Options,
    check_drawn,
    check_number,
    checked_event,
    checked_options,
    coarser,
    joined,
    stated_metadata,
)

__all__ = [
    "JaxDensity",
    "JaxProposal",
    "JaxPushforward",
    "TransportJaxProposal",
    "check_options",
    "device_proposal",
    "with_dtype",
]

LARGEST_BATCH, MOST = 1024, 8192
Tree = TypeVar("Tree")


@dataclass(frozen=True)
class JaxDensity:
    """What a library gives: draws with log q, and log q of fields; both can be traced.

    Parameters
    ----------
    sample
        Takes a typed key and n; returns events (n, *own_event) with log q, (n,).
    log_prob
        Returns log q, (n,), of events.
    """

    sample: Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]
    log_prob: Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class JaxPushforward:
    """What a library gives that shows its map x = f(z) of a base density r: log q(x) = log r(z) − log|det ∂x/∂z|.

    Parameters
    ----------
    base_sample
        Takes a typed key and n; returns base points (n, *own_event).
    base_log_prob
        Returns log r, (n,).
    forward
        Maps base points to events, with log|det ∂x/∂z|, (n,).
    log_prob
        Returns log q, (n,), of events: by the inverse of the map.
    """

    base_sample: Callable[[jax.Array, int], jax.Array]
    base_log_prob: Callable[[jax.Array], jax.Array]
    forward: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    log_prob: Callable[[jax.Array], jax.Array]

    def sample(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draw n events with log q, in one pass of the map."""
        latent = self.base_sample(key, n)
        field, log_det = self.forward(latent)
        return field, self.base_log_prob(latent).astype(jnp.float64) - log_det.astype(jnp.float64)


def check_options(options: Options) -> str:
    """Return the type in which a JAX flow is to compute, float64 unless said otherwise.

    Raises
    ------
    ParameterError
        If there is no such type, or a device is named: JAX chooses its own.
    PrecisionError
        If JAX would truncate to float32.
    """
    require_x64()
    dtype = checked_options(options).get("dtype") or "float64"
    if options.get("largest_batch", 1) > MOST:
        raise ParameterError(
            got=f"largest_batch = {options['largest_batch']} for a JAX flow",
            expected=f"at most {MOST}",
            fix="lower it: JAX 0.10.2 compiles some products wrongly for batches of more than 16384",
        )
    if options.get("device"):
        raise ParameterError(
            got=f"device = {options['device']!r} for a JAX flow",
            expected="no device: such a flow runs where JAX runs",
            fix="leave `device` out, and set JAX_PLATFORMS or jax.default_device",
        )
    return dtype


def with_dtype(flow: Tree, dtype: str) -> Tree:
    """Return a tree (the flow of a library whose modules are JAX trees) with its floating-point arrays in one type."""

    def cast(leaf: Any) -> Any:
        is_float = isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if is_float else leaf

    cast_flow: Tree = jax.tree.map(cast, flow)
    return cast_flow


class JaxProposal:
    """A JAX flow as a `flowmc.proposals.DeviceProposal`.

    Parameters
    ----------
    density
        What the library gives.
    adapter
        Name of the adapter.
    identity
        What the flow is made of, for the fingerprint.
    event_shape
        Shape of one configuration; the flow's own events may have another shape with as many numbers.
    options
        The options of the adapter.

    Raises
    ------
    LatticeMismatchError
        If the flow's events have another number of sites, or log q is not one number for each.
    PrecisionError
        If JAX would truncate to float32.
    """

    def __init__(
        self, density: JaxDensity | JaxPushforward, *, adapter: str, identity: Any, event_shape: Any, options: Options
    ) -> None:
        self._event = checked_event(event_shape)
        wanted = check_options(options)
        self._density = density
        self._largest_batch = options.get("largest_batch", LARGEST_BATCH)
        self._space = SPACES[options.get("space", "real")]
        field, log_q = _tried(density)
        check_drawn(field.shape, self._event)
        self._own_event, self._own_dtype = field.shape[1:], field.dtype
        kinds = {str(log_q.dtype)} if self._space.name == "spin" else {str(field.dtype), str(log_q.dtype)}
        dtype = coarser(kinds)
        if options.get("dtype") and dtype != wanted:
            raise ParameterError(
                got=f"a flow that computes in {dtype}, with dtype = {wanted!r}",
                expected="the type that it computes in",
                fix="convert its arrays, or correct `dtype`",
            )
        self._metadata = stated_metadata(adapter, identity, self._event, dtype, options)
        self._compiled_sample = jax.jit(self._numbered, static_argnums=2)
        self._compiled_log_prob = jax.jit(self.device_log_prob)

    @property
    def metadata(self) -> ProposalMetadata:
        """What the flow says of itself."""
        return self._metadata

    def device_sample(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draw ``n`` fields and log q with a key; see `flowmc.proposals.DeviceProposal.device_sample`."""
        field, log_q = _pair(self._density.sample(key, n))
        _check_log_q(log_q, n)
        if field.shape[0] != n:
            raise LatticeMismatchError(
                got=f"{field.shape[0]} events where {n} are asked for",
                expected="as many events as asked for",
                fix="draw n events in `sample(key, n)`",
            )
        return field.reshape(n, *self._event).astype(self._space.dtype), log_q.astype(jnp.float64)

    def device_log_prob(self, field: jax.Array) -> jax.Array:
        """Return log q of fields; see `flowmc.proposals.DeviceProposal.device_log_prob`."""
        log_q = self._density.log_prob(field.reshape(len(field), *self._own_event).astype(self._own_dtype))
        _check_log_q(log_q, len(field))
        return log_q.astype(jnp.float64)

    def sample(self, seed: int, n: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Draw ``n`` fields and log q; see `flowmc.proposals.Proposal.sample`."""
        check_number(n)
        fields, log_qs = [], []
        for start in range(0, n, self._largest_batch):
            size = min(self._largest_batch, n - start)
            folded = fold(seed, start)
            field, log_q = self._compiled_sample(np.uint32(folded & 0x7FFFFFFF), np.uint32(folded >> 31), size)
            fields.append(np.asarray(field))
            log_qs.append(np.asarray(log_q))
        return joined(fields), joined(log_qs)

    def _numbered(self, low: jax.Array, high: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        # The key of `flowmc.seeds.jax_key`, made in compiled code: outside it costs as much as a small flow.
        return self.device_sample(jax.random.fold_in(jax.random.key(low), high), n)

    def log_prob(self, field: NDArray[Any]) -> NDArray[np.float64]:
        """Return log q of fields; see `flowmc.proposals.Proposal.log_prob`."""
        check_field(np.asarray(field), self._event)
        size = self._largest_batch
        parts = [self._compiled_log_prob(jnp.asarray(field[i : i + size])) for i in range(0, len(field), size)]
        return joined([np.asarray(part) for part in parts])


class TransportJaxProposal(JaxProposal):
    """A JAX flow that shows its map, a `flowmc.proposals.TransportProposal`: its log-determinant can be checked."""

    _density: JaxPushforward

    def __init__(self, density: JaxPushforward, **arguments: Any) -> None:
        super().__init__(density, **arguments)
        self._compiled_forward = jax.jit(density.forward)
        self._compiled_jacobian = jax.jit(jax.jacrev(self._flat))

    def base_sample(self, seed: int, n: int) -> NDArray[np.floating[Any]]:
        """Draw ``n`` points of the base density, (n, *event_shape)."""
        return np.asarray(self._density.base_sample(jax_key(seed), n)).reshape(n, *self._event)

    def forward(self, latent: NDArray[np.floating[Any]]) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64]]:
        """Map base points to fields, with log|det ∂φ/∂z|."""
        field, log_det = self._compiled_forward(self._own(latent))
        return np.asarray(field).reshape(latent.shape), np.asarray(log_det, dtype=np.float64)

    def jacobian(self, latent: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Return ∂φ/∂z at one base point, (V, V)."""
        return np.asarray(self._compiled_jacobian(self._own(latent[None]).ravel()))

    def _flat(self, point: jax.Array) -> jax.Array:
        return self._density.forward(point.reshape(1, *self._own_event))[0].ravel()

    def _own(self, latent: NDArray[np.floating[Any]]) -> jax.Array:
        return jnp.asarray(latent, self._own_dtype).reshape(len(latent), *self._own_event)


def device_proposal(
    density: JaxDensity | JaxPushforward, *, adapter: str, identity: Any, event_shape: Any, options: Options
) -> JaxProposal:
    """Wrap what a library gives as the proposal with all the capabilities that it has; see `JaxProposal`."""
    arguments: dict[str, Any] = {
        "adapter": adapter,
        "identity": identity,
        "event_shape": event_shape,
        "options": options,
    }
    if isinstance(density, JaxPushforward):
        return TransportJaxProposal(density, **arguments)
    return JaxProposal(density, **arguments)


def _tried(density: JaxDensity | JaxPushforward) -> tuple[Any, Any]:
    """Trace a draw of one event and log q of it, before a run depends on that; return their shapes and types."""

    def both(key: jax.Array) -> tuple[tuple[Any, Any], Any]:
        field, log_q = _pair(density.sample(key, 1))
        _check_log_q(log_q, 1)
        return (field, log_q), density.log_prob(field)

    try:
        found: tuple[tuple[Any, Any], Any] = jax.eval_shape(both, jax.random.key(0))
        drawn, log_prob = found
        _check_log_q(log_prob, 1)
    except FlowmcError:
        raise
    except Exception as error:
        raise ParameterError(
            got=f"a flow that fails on one event with {type(error).__name__}: {str(error).splitlines()[0]}",
            expected="functions that JAX can trace: draws of n events, for every n, and log q of given ones",
            fix="try it by itself: a batch of one, then log q of what it drew, inside jax.jit",
        ) from error
    return drawn


def _pair(drawn: Any) -> tuple[Any, Any]:
    if isinstance(drawn, tuple | list) and len(drawn) == 2 and all(hasattr(part, "shape") for part in drawn):
        return drawn[0], drawn[1]
    found = f"{type(drawn).__name__} of {len(drawn)}" if isinstance(drawn, tuple | list) else type(drawn).__name__
    raise ParameterError(
        got=f"a sampler that returns a {found}",
        expected="a pair of arrays: draws (n, *event) and their log q (n,)",
        fix="return both from `sample`",
    )


def _check_log_q(log_q: Any, n: int) -> None:
    shape = tuple(getattr(log_q, "shape", ()))
    if shape != (n,):
        raise LatticeMismatchError(
            got=f"log q of shape {shape} for {n} events",
            expected=f"({n},): one number for each event",
            fix="sum log q over all sites of an event, and vectorise it over the first axis (jax.vmap)",
        )
