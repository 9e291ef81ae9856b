"""A fixed cycle of kernels: the hybrid of n HMC trajectories and k flow proposals, or any of the kernels alone.

A fixed sequence of kernels that each leave p = exp(−S)/Z invariant leaves it invariant too (Tierney, Ann. Stat. 22
(1994) 1701), though the sequence is not reversible. What one member leaves stale and the next one needs is recomputed in
between; where that happens follows from their declarations alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import check_field, check_finite, require_x64
from flowmc.errors import ParameterError, StateError, TheoryMismatchError
from flowmc.kernels.base import CycleMember, HybridState, PilotedMember, Updates, batch_action
from flowmc.kernels.independence import FlowProposals
from flowmc.theories import SmoothTheory, Theory

__all__ = ["Cycle", "CycleUpdates"]

# Relative difference of an action that is kept, updated step by step, from one computed anew.
KEPT = 1e-6


@partial(jax.jit, static_argnames=("theory",))
def _force(theory: SmoothTheory, field: jax.Array) -> jax.Array:
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
        If there is no member, a kind comes twice, flow proposals are not last, or they are alone and their support is
        smaller than the theory's: such a chain cannot reach all of it. (Beside another kernel that is a warning.)
    TheoryMismatchError
        If a member belongs to another theory.
    """

    theory: Theory
    members: tuple[CycleMember, ...]

    def __post_init__(self) -> None:
        kinds = [member.kind for member in self.members]
        if not kinds or len(set(kinds)) < len(kinds):
            raise ParameterError(
                got=f"a cycle of {kinds}",
                expected="one or more kernels of different kinds",
                fix="merge equal kernels" if kinds else "give at least one kernel something to do",
            )

        for member in self.members:
            if member.theory != self.theory:
                raise TheoryMismatchError(
                    got=f"{member.kind} for {member.theory} in a cycle for {self.theory}",
                    expected="kernels of one theory",
                    fix="build the kernel for the theory of the cycle",
                )
            if isinstance(member, FlowProposals):
                self._check_flow(member)

    def _check_flow(self, flow: FlowProposals) -> None:
        if flow is not self.members[-1]:
            raise ParameterError(
                got=f"a cycle of {list(self.kinds)}, whose last kernel leaves log q behind",
                expected="flow proposals last, so that every state between cycles has the log q of its own draw",
                fix="put the flow proposals at the end",
            )
        if flow.proposal.metadata.full_support:
            return
        if len(self.members) == 1:
            raise ParameterError(
                got="a flow whose support is smaller than the theory's, to propose alone",
                expected="q > 0 wherever exp(-S) > 0",
                fix="mix it with a kernel that reaches every field, for example HMC",
            )
        # Correct, but slow where the other kernels are outside of the support.
        warnings.warn(
            "the flow's support is smaller than the theory's: where the chain is outside of it, proposals are rejected",
            stacklevel=4,
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
        """Return the state of chains at these fields (chains, *field_shape), with every entry valid that is needed.

        Raises
        ------
        ParameterError
            If a field lies outside the theory's space.
        NonFiniteError
            If a field, its action or its force is not finite.
        """
        require_x64()
        check_field(field, self.theory.field_shape, "starting field")
        fix = "start from another configuration"
        space, chains = self.theory.space, len(field)
        check_finite(np.asarray(field), "starting field", fix)
        if not (inside := space.contains(np.asarray(field).reshape(chains, -1))).all():
            raise ParameterError(
                got=f"{int((~inside).sum())} of {chains} starting fields with numbers that are no {space.name} field",
                expected=f"fields of {self.theory}",
                fix=fix,
            )
        nothing = jnp.zeros(chains)
        state = HybridState(jnp.asarray(field, dtype=space.dtype), nothing, jnp.zeros((chains, 0)), nothing)
        needs = frozenset({"action"}).union(*(member.needs for member in self.members))
        state = self._refresh(state, needs)
        check_finite(np.asarray(state.action), "action of the starting field", fix)
        check_finite(np.asarray(state.force), "force at the starting field", fix)
        return state

    def piloted(self, field: NDArray[Any]) -> tuple[Cycle, NDArray[Any]]:
        """Run the pilots of those members that have one, each from where the one before it ended.

        Parameters
        ----------
        field
            Starting fields, (chains, *field_shape).

        Returns
        -------
        The cycle with what the pilots found, and the fields to start the run from.

        Raises
        ------
        FlowmcError
            If the fields are no start (see `init`), or a pilot fails.
        """
        members = list(self.members)
        for number, member in enumerate(members):
            if isinstance(member, PilotedMember):
                self.init(field)
                members[number], field = member.piloted(field)
        return self._with_members(members), field

    def _with_members(self, members: Iterable[CycleMember]) -> Cycle:
        # Not `replace`: of what was checked and warned of once, a new parameter changes nothing.
        other = copy(self)
        object.__setattr__(other, "members", tuple(members))
        return other

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

    def check(self, state: HybridState) -> None:
        """Compare the actions that the kernels kept with those of the fields.

        Raises
        ------
        StateError
            If one differs by more than rounding: a kernel lost track, or the action depends on the size of the batch in
            which it is computed, as that of miscompiled code does.
        """
        kept, found = np.asarray(state.action), np.asarray(batch_action(self.theory, state.field))
        wrong = ~(np.abs(kept - found) <= KEPT * np.maximum(1.0, np.abs(found)))
        if wrong.any():
            chain = int(np.argmax(wrong))
            raise StateError(
                got=f"S = {kept[chain]!r} kept for chain {chain}, whose field has S = {found[chain]!r}; "
                f"{int(wrong.sum())} of {wrong.size} chains",
                expected="the action of the field",
                fix="compare the theory's action of one field, alone and in batches of thousands; if it is the same, "
                "report the kernels of the cycle",
            )

    def adapted(self, happened: CycleUpdates, *, last: bool) -> Cycle:
        """Return the cycle after each member learned from its updates; only before the freeze point."""
        pairs = zip(self.members, happened.updates, strict=True)
        return self._with_members(member.adapted(updates, last=last) for member, updates in pairs)

    def adaptation(self) -> dict[str, float | NDArray[Any]]:
        """Return all that adaptation changes, keyed "kind.name"."""
        return {f"{m.kind}.{name}": value for m in self.members for name, value in m.adaptation().items()}

    def restored(self, adaptation: Mapping[str, Any]) -> Cycle:
        """Return the cycle as it was when `adaptation` was called."""

        def own(kind: str) -> dict[str, Any]:
            start = f"{kind}."
            return {key.removeprefix(start): value for key, value in adaptation.items() if key.startswith(start)}

        return self._with_members(member.restored(own(member.kind)) for member in self.members)

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
            "action": lambda: batch_action(self.theory, state.field),
            "force": lambda: _force(cast(SmoothTheory, self.theory), state.field),
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
