"""What a kernel is: a pure ``init`` and ``step`` on a batch of chains, and its place in a fixed cycle.

The state holds what the next step needs, batch first: ``(chains, *field_shape)``. Which of its entries are up to date is
known beforehand: every member of a cycle says what it `needs` and what it `leaves` valid, and the cycle recomputes an
entry where the two do not meet (`flowmc.kernels.cycle`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.theories import Theory

__all__ = ["CycleMember", "FixedMember", "HybridState", "PilotedMember", "Updates", "batch_action"]


class HybridState(NamedTuple):
    """State of all chains of a run; the structure is the same for every kernel."""

    field: jax.Array
    """Current configurations, (chains, *field_shape), in the type of the theory's space."""
    action: jax.Array
    """S of the current configurations, (chains,), float64."""
    force: jax.Array
    """−∂S/∂φ at the current configurations, (chains, *field_shape); empty, (chains, 0), where no kernel needs it."""
    log_q: jax.Array
    """log q of the flow at the current configurations, (chains,), float64; −inf where the flow cannot go."""


class Updates(NamedTuple):
    """What happened in ``n`` consecutive updates of all chains; host arrays, (n, chains) unless said otherwise."""

    accepted: NDArray[np.bool_]
    """Whether the update's proposal, or any of them, was accepted; for sweeps and clusters, whether any spin changed."""
    acceptance: NDArray[np.float32]
    """Fraction of the update's accept tests that passed; one for a kernel without rejection."""
    action: NDArray[np.float64]
    """S after the update."""
    delta_H: NDArray[np.float64]
    """Energy violation of the trajectory; NaN for other kernels."""
    log_weight: NDArray[np.float64]
    """−S − log q of the proposal, −inf for a proposal that is not finite; NaN for kernels other than flow proposals."""
    log_weight_current: NDArray[np.float64]
    """−S − log q of the state before the update; NaN for kernels other than flow proposals."""
    action_proposed: NDArray[np.float64]
    """S of the flow's proposal, accepted or not; NaN for other kernels."""
    step_size: NDArray[np.float64]
    """Molecular-dynamics step, (n,); NaN for other kernels."""
    n_steps: NDArray[np.int64]
    """Steps of the trajectory, (n,); 0 for other kernels."""

    @classmethod
    def plain(
        cls, accepted: NDArray[np.bool_], action: NDArray[np.float64], acceptance: NDArray[np.float32] | None = None
    ) -> Updates:
        """Return updates that have neither weights nor trajectories.

        Parameters
        ----------
        accepted, action
            As the columns of these names.
        acceptance
            As the column of this name; without it every update was one accept test.
        """
        nothing = np.full(accepted.shape, np.nan)
        return cls(
            accepted,
            accepted.astype(np.float32) if acceptance is None else acceptance,
            action,
            delta_H=nothing,
            log_weight=nothing,
            log_weight_current=nothing,
            action_proposed=nothing,
            step_size=np.full(len(accepted), np.nan),
            n_steps=np.zeros(len(accepted), np.int64),
        )


class CycleMember(Protocol):
    """One part of a cycle: ``n_updates`` applications of a kernel to all chains."""

    @property
    def kind(self) -> str:
        """Name of the kernel, as written into the ensemble's history."""

    @property
    def theory(self) -> Theory:
        """The theory whose distribution the kernel keeps."""

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

    def adaptation(self) -> Mapping[str, float | NDArray[Any]]:
        """Return all that adaptation changes, as numbers and arrays for the checkpoint."""

    def restored(self, adaptation: Mapping[str, Any]) -> CycleMember:
        """Return the member as it was when `adaptation` was called."""

    def describe(self) -> dict[str, Any]:
        """Return the parameters that adaptation does not change, as plain data."""


@runtime_checkable
class PilotedMember(CycleMember, Protocol):
    """Optional capability: parameters are found on the starting fields, before the first update of the run."""

    def piloted(self, field: NDArray[Any]) -> tuple[CycleMember, NDArray[Any]]:
        """Run the pilot; the result depends on the member and the fields alone.

        Parameters
        ----------
        field
            Starting fields, (chains, *field_shape).

        Returns
        -------
        The member with what was found, which `CycleMember.adaptation` holds, and the fields to start the run from.
        """


class FixedMember:
    """What members share that have nothing to adapt: a flow is frozen in production, a sweep has no parameters."""

    def adapted(self, updates: Updates, *, last: bool) -> Self:  # noqa: ARG002
        """Return the member unchanged."""
        return self

    def adaptation(self) -> Mapping[str, float]:
        """Return nothing."""
        return {}

    def restored(self, adaptation: Mapping[str, float]) -> Self:  # noqa: ARG002
        """Return the member unchanged."""
        return self


@partial(jax.jit, static_argnames=("theory",))
def batch_action(theory: Theory, field: jax.Array | NDArray[Any]) -> jax.Array:
    """Return the action of each chain, (chains,): by one library for all kernels, so that all are rounded alike."""
    return jnp.asarray(theory.action(jnp.asarray(field)))
