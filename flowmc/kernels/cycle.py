"""A fixed cycle of kernels: the hybrid of n HMC trajectories and k flow proposals, or either alone.

A fixed sequence of kernels that each leave p = exp(−S)/Z invariant leaves it invariant too (Tierney, Ann. Stat. 22
(1994) 1701), though the sequence is not reversible. What one member leaves stale and the next one needs is recomputed in
between; where that happens follows from their declarations alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowmc.arrays import check_field, check_finite, require_x64
from flowmc.errors import ParameterError
from flowmc.kernels.base import CycleMember, HybridState, Updates
from flowmc.kernels.hmc import HMC, Trajectories
from flowmc.kernels.independence import FlowProposals, Independence
from flowmc.proposals import Proposal
from flowmc.theories import Theory

__all__ = ["Cycle", "CycleUpdates", "flow_only", "hmc_only", "hybrid"]


@partial(jax.jit, static_argnames=("theory",))
def _action(theory: Theory, field: jax.Array) -> jax.Array:
    return jnp.asarray(theory.action(field))


@partial(jax.jit, static_argnames=("theory",))
def _force(theory: Theory, field: jax.Array) -> jax.Array:
    return jnp.asarray(theory.force(field))


@dataclass(frozen=True)
class CycleUpdates:
    """What happened in one cycle: updates and seconds by member, in order."""

    updates: tuple[Updates, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Cycle:
    """A fixed sequence of members, applied to all chains.

    Parameters
    ----------
    theory
        The theory.
    members
        The kernels in order; each kind at most once.

    Raises
    ------
    ParameterError
        If there is no member, a kind comes twice, or flow proposals are not last.
    """

    theory: Theory
    members: tuple[CycleMember, ...]

    def __post_init__(self) -> None:
        kinds = [member.kind for member in self.members]
        if not kinds or len(set(kinds)) < len(kinds):
            raise ParameterError(
                got=f"a cycle of {kinds}", expected="one or more kernels of different kinds", fix="merge equal kernels"
            )

        uses_log_q = any("log_q" in member.needs for member in self.members)
        if uses_log_q and "log_q" not in self.members[-1].leaves:
            raise ParameterError(
                got=f"a cycle of {kinds}, whose last kernel leaves log q behind",
                expected="flow proposals last, so that every state between cycles has the log q of its own draw",
                fix="put the flow proposals at the end",
            )

    @property
    def n_updates(self) -> int:
        """Updates of every chain in one cycle."""
        return sum(member.n_updates for member in self.members)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the members, in order."""
        return tuple(member.kind for member in self.members)

    def init(self, field: np.ndarray[Any, np.dtype[Any]]) -> HybridState:
        """Return the state of chains at these fields (chains, *field_shape), every entry valid.

        Raises
        ------
        NonFiniteError
            If a field, its action or its force is not finite.
        """
        require_x64()
        check_field(field, self.theory.field_shape, "starting field")
        fix = "start from another configuration"
        check_finite(np.asarray(field), "starting field", fix)
        state = HMC(self.theory).init(jnp.asarray(field))
        check_finite(np.asarray(state.action), "action of the starting field", fix)
        check_finite(np.asarray(state.force), "force at the starting field", fix)
        return self._refresh(state, frozenset().union(*(member.needs for member in self.members)) - {"action", "force"})

    def prepare(self, block: int, n_cycles: int, n_chains: int) -> tuple[tuple[Any, ...], tuple[float, ...]]:
        """Do the work of a block that does not depend on the state; return it with the seconds of each member."""
        prepared, seconds = [], []
        for member in self.members:
            start = time.perf_counter()
            prepared.append(member.prepare(block, n_cycles, n_chains))
            seconds.append(time.perf_counter() - start)
        return tuple(prepared), tuple(seconds)

    def run(
        self, cycle: int, index: int, state: HybridState, prepared: Sequence[Any]
    ) -> tuple[HybridState, CycleUpdates]:
        """Apply every member once, at cycle number ``cycle`` of the run and ``index`` of the block."""
        updates, seconds = [], []
        # The fields at which log q was last valid: chains that are still there keep it.
        known = state.field
        for member, ready, stale in zip(self.members, prepared, self._stale(), strict=True):
            start = time.perf_counter()
            state, happened = member.run(cycle, index, self._refresh(state, stale, known), ready)
            if "log_q" in member.leaves:
                known = state.field
            updates.append(happened)
            seconds.append(time.perf_counter() - start)
        return state, CycleUpdates(tuple(updates), tuple(seconds))

    def adapted(self, happened: CycleUpdates, *, last: bool) -> Cycle:
        """Return the cycle after each member learned from its updates; only before the freeze point."""
        pairs = zip(self.members, happened.updates, strict=True)
        return replace(self, members=tuple(member.adapted(updates, last=last) for member, updates in pairs))

    def adaptation(self) -> dict[str, float]:
        """Return all that adaptation changes, keyed "kind.name"."""
        return {f"{m.kind}.{name}": value for m in self.members for name, value in m.adaptation().items()}

    def restored(self, adaptation: Mapping[str, float]) -> Cycle:
        """Return the cycle as it was when `adaptation` was called."""

        def own(kind: str) -> dict[str, float]:
            start = f"{kind}."
            return {key.removeprefix(start): value for key, value in adaptation.items() if key.startswith(start)}

        return replace(self, members=tuple(member.restored(own(member.kind)) for member in self.members))

    def describe(self) -> dict[str, Any]:
        """Return the members' fixed parameters, by kind."""
        return {member.kind: member.describe() for member in self.members}

    def _stale(self) -> list[frozenset[str]]:
        """Return, for each member, the entries to recompute before it in a cycle that follows another one."""
        valid = self.members[-1].leaves
        stale = []
        for member in self.members:
            stale.append(member.needs - valid)
            valid = member.leaves
        return stale

    def _refresh(self, state: HybridState, entries: frozenset[str], known: jax.Array | None = None) -> HybridState:
        """Recompute entries of the state; ``known`` are the fields to which its log q belongs."""
        refreshers: dict[str, Callable[[], jax.Array]] = {
            "action": lambda: _action(self.theory, state.field),
            "force": lambda: _force(self.theory, state.field),
            "log_q": lambda: self._log_q(state, known),
        }
        return state._replace(**{entry: refreshers[entry]() for entry in sorted(entries)})

    def _log_q(self, state: HybridState, known: jax.Array | None) -> jax.Array:
        flow = next(member for member in self.members if isinstance(member, FlowProposals))
        log_q = jnp.asarray(flow.log_prob(np.asarray(state.field)))
        # A chain that did not move keeps the log q of the pass that drew it: the inverse pass differs by rounding.
        return log_q if known is None else _where_moved(known, state, log_q)


@jax.jit
def _where_moved(known: jax.Array, state: HybridState, log_q: jax.Array) -> jax.Array:
    moved = jnp.any(known != state.field, axis=tuple(range(1, known.ndim)))
    return jnp.where(moved, log_q, state.log_q)


def hybrid(trajectories: Trajectories, proposals: FlowProposals) -> Cycle:
    """Return the cycle of n HMC trajectories followed by k flow proposals.

    Warns if the flow's support is smaller than the theory's: correct, but its proposals are rejected wherever HMC is
    outside of it.
    """
    if not proposals.proposal.metadata.full_support:
        warnings.warn(
            "the flow's support is smaller than the theory's: its proposals are rejected while HMC is outside of it",
            stacklevel=2,
        )
    return Cycle(trajectories.kernel.theory, (trajectories, proposals))


def hmc_only(trajectories: Trajectories) -> Cycle:
    """Return plain hybrid Monte Carlo."""
    return Cycle(trajectories.kernel.theory, (trajectories,))


def flow_only(theory: Theory, proposal: Proposal, seed: int, n_proposals: int) -> Cycle:
    """Return independence Metropolis alone.

    Raises
    ------
    ParameterError
        If the proposal's support is smaller than the theory's: such a chain cannot reach all of it.
    """
    if not proposal.metadata.full_support:
        raise ParameterError(
            got="a flow whose support is smaller than the theory's, to propose alone",
            expected="q > 0 wherever exp(-S) > 0",
            fix='mix it with HMC: kernel = "hybrid"',
        )
    return Cycle(theory, (FlowProposals(Independence(theory), proposal, seed, n_proposals),))
