"""What the kernels see of a flow, whatever made it: numbered batches of draws with log q, on the host, as NumPy arrays.

A proposal draws independently of the chain's state, so that all sampling of the flow leaves the sequential loop: large
batches are drawn beforehand and only their weights enter the scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from numpy.typing import NDArray

from flowmc.errors import ParameterError

__all__ = ["BlockProposal", "DeviceProposal", "Proposal", "ProposalMetadata", "TransportProposal"]


@dataclass(frozen=True)
class ProposalMetadata:
    """What a proposal says of itself.

    Parameters
    ----------
    event_shape
        Shape of one configuration.
    dtype
        Floating-point type in which the proposal computes, for example "float32".
    deterministic
        Whether ``log_prob`` is a function of the field alone (no dropout, no random trace estimate).
    exact
        Whether log q is the log density of the map as run, up to rounding.
    fingerprint
        SHA-256 over weights and code id, in hexadecimal.
    full_support
        Whether q > 0 wherever the theory's density is. A flow without it can sample correctly only beside another
        kernel: alone it is refused.
    space
        Name of the space that the fields live in, a key of `flowmc.theories.SPACES`.
    log_q_bound
        By how many nats log q is off at most: zero for an exact one. Where a proposal is not exact, zero and infinity
        say that no bound is known, and the certificate refuses it.

    Raises
    ------
    ParameterError
        If the bound is negative or no number, or not zero although the proposal says that it is exact.
    """

    event_shape: tuple[int, ...]
    dtype: str
    deterministic: bool
    exact: bool
    fingerprint: str
    full_support: bool = True
    space: str = "real"
    log_q_bound: float = 0.0

    def __post_init__(self) -> None:
        # Written so that NaN is refused, too.
        if not self.log_q_bound >= 0 or (self.exact and self.log_q_bound > 0):
            raise ParameterError(
                got=f"log_q_bound = {self.log_q_bound} with exact = {self.exact}",
                expected="0 for an exact log q, or else by how many nats it is off at most",
                fix="say exact = False and give a bound above zero, or leave `log_q_bound` out",
            )

    @property
    def states_a_bound(self) -> bool:
        """Whether the error of log q is known to be bounded: by zero, or by a finite number of nats."""
        return self.exact or 0 < self.log_q_bound < float("inf")


@runtime_checkable
class Proposal(Protocol):
    """An independence proposal: exact draws with their log density."""

    @property
    def metadata(self) -> ProposalMetadata:
        """What the proposal says of itself."""

    def sample(self, seed: int, n: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Draw ``n`` fields, (n, *event_shape), and log q, (n,) float64; the result depends on (seed, n) alone."""

    def log_prob(self, field: NDArray[Any]) -> NDArray[np.float64]:
        """Return log q of fields (n, *event_shape): (n,) float64, −inf outside the support."""


@runtime_checkable
class TransportProposal(Proposal, Protocol):
    """Optional capability: the proposal is a map of a base density, and its Jacobian can be checked."""

    def base_sample(self, seed: int, n: int) -> NDArray[np.floating[Any]]:
        """Draw ``n`` points of the base density, (n, *event_shape)."""

    def forward(self, latent: NDArray[np.floating[Any]]) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64]]:
        """Map base points to fields, with log|det ∂φ/∂z|, (n,) float64."""

    def jacobian(self, latent: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Return ∂φ/∂z of the map as run at one base point (event_shape): (V, V), by automatic differentiation."""


@runtime_checkable
class DeviceProposal(Proposal, Protocol):
    """Optional capability: draws and log q inside compiled JAX code, of a flow that is made of JAX or is called back.

    The same density as that of `Proposal`, but not the same draws: here a key numbers them.
    """

    def device_sample(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draw ``n`` fields (fixed when it is compiled), (n, *event_shape), and log q, (n,) float64, with a typed key."""

    def device_log_prob(self, field: jax.Array) -> jax.Array:
        """Return log q of fields (n, *event_shape): (n,) float64, −inf outside the support."""


@runtime_checkable
class BlockProposal(Proposal, Protocol):
    """Optional capability: the inside of a block of spins can be drawn anew, given the spins around it."""

    @property
    def block_sides(self) -> tuple[int, ...]:
        """Sides of the blocks, from large to small."""

    def resample_blocks(
        self, field: NDArray[np.int8], side: int, seed: int
    ) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
        """Draw the inside of every block anew; see `flowmc.flows.hierarchical.HierarchicalFlow.resample_blocks`.

        Returns
        -------
        The new spins (n, L, L) and the log probabilities of the new and the old inside of each block, given its border,
        each (n, L / (side + 1), L / (side + 1)), float64. One component's, never an average over symmetries.
        """
