"""What a kernel is: a pure ``init`` and ``step`` on a batch of chains, and its place in a fixed cycle.

The state holds what the next step needs, batch first: ``(chains, *field_shape)``. Which of its entries are up to date is
known beforehand: every member of a cycle says what it `needs` and what it `leaves` valid, and the cycle recomputes an
entry where the two do not meet (`flowmc.kernels.cycle`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

__all__ = ["CycleMember", "HybridState", "Updates"]


class HybridState(NamedTuple):
    """State of all chains of a run; the structure is the same for every kernel."""

    field: jax.Array
    """Current configurations, (chains, *field_shape)."""
    action: jax.Array
    """S of the current configurations, (chains,), float64."""
    force: jax.Array
    """−∂S/∂φ at the current configurations, (chains, *field_shape)."""
    log_q: jax.Array
    """log q of the flow at the current configurations, (chains,), float64; −inf where the flow cannot go."""


class Updates(NamedTuple):
    """What happened in ``n`` consecutive updates of all chains; host arrays, (n, chains) unless said otherwise."""

    accepted: NDArray[np.bool_]
    action: NDArray[np.float64]
    """S after the update."""
    delta_H: NDArray[np.float64]
    """Energy violation of the trajectory; NaN for flow proposals."""
    log_weight: NDArray[np.float64]
    """−S − log q of the proposal, −inf for a proposal that is not finite; NaN for trajectories."""
    log_weight_current: NDArray[np.float64]
    """−S − log q of the state before the update; NaN for trajectories."""
    step_size: NDArray[np.float64]
    """Molecular-dynamics step, (n,); NaN for flow proposals."""
    n_steps: NDArray[np.int64]
    """Steps of the trajectory, (n,); 0 for flow proposals."""


class CycleMember(Protocol):
    """One part of a cycle: ``n_updates`` applications of a kernel to all chains."""

    @property
    def kind(self) -> str:
        """Name of the kernel, as written into the ensemble's history."""

    @property
    def n_updates(self) -> int:
        """Updates of every chain in one cycle."""

    @property
    def needs(self) -> frozenset[str]:
        """Entries of `HybridState`, beside the field, that must be valid before."""

    @property
    def leaves(self) -> frozenset[str]:
        """Entries that are valid afterwards."""

    def prepare(self, block: int, n_cycles: int, n_chains: int) -> Any:
        """Do, for a numbered block of cycles, all the work that does not depend on the state."""

    def run(self, cycle: int, index: int, state: HybridState, prepared: Any) -> tuple[HybridState, Updates]:
        """Apply the updates of one cycle: ``cycle`` counts from the start of the run, ``index`` within the block."""

    def adapted(self, updates: Updates, *, last: bool) -> CycleMember:
        """Return the member after learning from its updates; called only before the freeze point, ``last`` there."""

    def adaptation(self) -> Mapping[str, float]:
        """Return all that adaptation changes, as numbers for the checkpoint."""

    def restored(self, adaptation: Mapping[str, float]) -> CycleMember:
        """Return the member as it was when `adaptation` was called."""

    def describe(self) -> dict[str, Any]:
        """Return the parameters that adaptation does not change, as plain data."""
