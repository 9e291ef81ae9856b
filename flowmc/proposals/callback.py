"""A host proposal inside compiled JAX code: a shim for kernels of libraries that know nothing of pre-drawn proposals.

Each call leaves the compiled code for the host. It stays pure, for the draws follow from the key alone, and it has no
gradient. flowmc's own kernels do without it: they draw their proposals in large batches beforehand.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import require_x64
from flowmc.proposals.base import DeviceProposal, Proposal, ProposalMetadata
from flowmc.seeds import fold
from flowmc.theories import SPACES

__all__ = ["CallbackProposal", "on_device"]


class CallbackProposal:
    """Make a `DeviceProposal` of a host proposal by calling it back (`jax.pure_callback`).

    Parameters
    ----------
    proposal
        The proposal; it must not use JAX itself, which waits for the very computation that calls it.
    """

    def __init__(self, proposal: Proposal) -> None:
        self._proposal = proposal
        self._field_dtype = np.dtype(SPACES[proposal.metadata.space].dtype)

    @property
    def metadata(self) -> ProposalMetadata:
        """What the proposal says of itself."""
        return self._proposal.metadata

    def sample(self, seed: int, n: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Draw on the host; see `Proposal.sample`."""
        return self._proposal.sample(seed, n)

    def log_prob(self, field: NDArray[Any]) -> NDArray[np.float64]:
        """Return log q on the host; see `Proposal.log_prob`."""
        return self._proposal.log_prob(field)

    def device_sample(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draw with a key; see `DeviceProposal.device_sample`. Batched keys are called back one after the other."""
        require_x64()

        def draw(numbers: NDArray[np.uint32]) -> tuple[NDArray[Any], NDArray[np.float64]]:
            field, log_q = self._proposal.sample(fold(0, "callback", *map(int, np.asarray(numbers))), n)
            return field.astype(self._field_dtype), log_q.astype(np.float64)

        drawn = (
            jax.ShapeDtypeStruct((n, *self.metadata.event_shape), self._field_dtype),  # type: ignore[no-untyped-call]
            jax.ShapeDtypeStruct((n,), np.float64),  # type: ignore[no-untyped-call]
        )
        field, log_q = jax.pure_callback(draw, drawn, jax.random.key_data(key), vmap_method="sequential")
        return field, log_q

    def device_log_prob(self, field: jax.Array) -> jax.Array:
        """Return log q; see `DeviceProposal.device_log_prob`. What `jax.vmap` adds is evaluated as one batch."""
        require_x64()
        event = self.metadata.event_shape

        def evaluate(given: NDArray[Any]) -> NDArray[np.float64]:
            given = np.asarray(given)
            flat = given.reshape(-1, *event)
            return self._proposal.log_prob(flat).astype(np.float64).reshape(given.shape[: given.ndim - len(event)])

        returned = jax.ShapeDtypeStruct((field.shape[0],), np.float64)  # type: ignore[no-untyped-call]
        return jnp.asarray(jax.pure_callback(evaluate, returned, field, vmap_method="expand_dims"))


def on_device(proposal: Proposal) -> DeviceProposal:
    """Return a proposal that can be used inside compiled JAX code: itself if it is made of JAX, else called back."""
    return proposal if isinstance(proposal, DeviceProposal) else CallbackProposal(proposal)
