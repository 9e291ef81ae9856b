"""The driver: runs a cycle of kernels over all chains, block by block, and streams what happens into a store.

A run is divided into blocks of a fixed number of cycles. Everything random in block b follows from the seed and the
numbers of the block and its cycles, and a checkpoint is committed with each block, so a run that was killed goes on from
the last committed block and ends **bit-identical** to one that was not. The same holds for a run that is extended.

Cycles before `SamplingPlan.thermalisation` are not stored as configurations; the first `tuning` of them adapt the
kernels, and nothing adapts after that freeze point. Pilots (`flowmc.kernels.PilotedMember`) run once, before the first
cycle; what they find is kept in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import check_finite
from flowmc.errors import ParameterError
from flowmc.kernels import Cycle, CycleUpdates, HybridState, Updates

__all__ = ["BlockReport", "MemoryStore", "Observer", "SamplingPlan", "SamplingResult", "Store", "sample"]

Observer = Callable[[NDArray[Any]], NDArray[np.float64]]
"""Measures fields (chains, *field_shape) during the run: (chains, ...) float64."""


class Store(Protocol):
    """Where a run streams to; `flowmc_ensembles.EnsembleWriter` is the one on disk."""

    def checkpoint(self) -> Mapping[str, Any] | None:
        """Return the newest committed checkpoint, or None before the first."""

    def append(
        self,
        *,
        trajectory: NDArray[np.int64],
        configurations: Mapping[str, NDArray[Any]],
        history: Mapping[str, NDArray[Any]],
        observables: Mapping[str, NDArray[Any]],
        checkpoint: Mapping[str, Any],
    ) -> None:
        """Commit a block and its checkpoint, both or neither."""


@dataclass(frozen=True)
class SamplingPlan:
    """How long a run is, and how it is cut into blocks.

    Parameters
    ----------
    chains
        Chains, advanced together.
    cycles
        Cycles of production, after thermalisation.
    thermalisation
        Cycles before production; their configurations are not stored.
    tuning
        Cycles, the first of the thermalisation, in which kernels may adapt; their end is the freeze point.
    cycles_per_block
        Cycles between commits; fixes the size of the batches of proposals.
    save_every
        Cycles between stored configurations.

    Raises
    ------
    ParameterError
        If a number is out of range, or the cycles do not fill whole blocks.
    """

    chains: int
    cycles: int
    thermalisation: int
    tuning: int
    cycles_per_block: int
    save_every: int = 1

    def __post_init__(self) -> None:
        for name in ("chains", "cycles", "cycles_per_block", "save_every"):
            if getattr(self, name) < 1:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)}", expected="at least 1", fix=f"raise `{name}`"
                )
        if not 0 <= self.tuning <= self.thermalisation:
            raise ParameterError(
                got=f"tuning = {self.tuning}, thermalisation = {self.thermalisation}",
                expected="0 <= tuning <= thermalisation: production must not adapt",
                fix="lengthen the thermalisation",
            )
        for name in ("cycles", "thermalisation"):
            number, block = getattr(self, name), self.cycles_per_block
            if number % block:
                raise ParameterError(
                    got=f"{name} = {number} with cycles_per_block = {block}",
                    expected=f"a multiple of {block}, so that batches of proposals have one size",
                    fix=" or ".join(f"take {k}" for k in (number // block * block, -(-number // block) * block) if k),
                )

    @property
    def n_blocks(self) -> int:
        """Blocks of the whole run, thermalisation included."""
        return (self.thermalisation + self.cycles) // self.cycles_per_block

    @property
    def total_cycles(self) -> int:
        """Cycles of the whole run, thermalisation included."""
        return self.thermalisation + self.cycles


@dataclass(frozen=True)
class BlockReport:
    """What the progress display is told after each committed block."""

    cycles_done: int
    total_cycles: int
    acceptance: Mapping[str, float]
    """Acceptance of each kind of update in the block."""
    adaptation: Mapping[str, float]
    """The adapted parameters that are numbers, for example "hmc.step_size"."""


@dataclass(frozen=True)
class SamplingResult:
    """How a run ended."""

    cycles_done: int
    finished: bool
    stop_reason: str
    """Empty when the run finished; otherwise why it stopped early."""
    adaptation: Mapping[str, float]
    """The adapted parameters at the end that are numbers, for example "hmc.step_size"; arrays are in the checkpoint."""


@dataclass
class MemoryStore:
    """A store in memory, for tests and notebooks: tables of NumPy arrays, concatenated on request."""

    blocks: list[dict[str, Any]] = field(default_factory=list)

    def checkpoint(self) -> Mapping[str, Any] | None:
        """Return the newest checkpoint."""
        return self.blocks[-1]["checkpoint"] if self.blocks else None

    def append(self, **block: Any) -> None:
        """Keep a block."""
        self.blocks.append(block)

    def table(self, group: str, name: str) -> NDArray[Any]:
        """Return a table of "configurations", "history" or "observables", first axis over all blocks."""
        known = sorted(self.blocks[0][group]) if self.blocks else []
        if name not in known:
            raise ParameterError(
                got=f"table {name!r} of the {group}",
                expected=f"one of {known}",
                fix="correct the name, or sample first",
            )
        return np.concatenate([block[group][name] for block in self.blocks])

    @property
    def trajectory(self) -> NDArray[np.int64]:
        """Update numbers of the stored configurations."""
        return np.concatenate([block["trajectory"] for block in self.blocks])


def sample(
    cycle: Cycle,
    plan: SamplingPlan,
    store: Store,
    start: Callable[[], NDArray[Any]],
    *,
    observers: Mapping[str, Observer] | None = None,
    should_stop: Callable[[], str] = lambda: "",
    on_block: Callable[[BlockReport], None] = lambda _: None,
) -> SamplingResult:
    """Run, resume or extend a production.

    Parameters
    ----------
    cycle
        The kernels. The caller makes sure that a resumed store belongs to the same cycle, seed and plan
        (``cycles`` may have grown).
    plan
        How long, and in what blocks.
    store
        Receives each block; a store with a checkpoint is resumed from there.
    start
        Returns the starting fields, (chains, *field_shape); called only when there is no checkpoint.
    observers
        Measured on each stored configuration, in float64.
    should_stop
        Asked after each block; a text that is not empty stops the run there, cleanly.
    on_block
        Told of each committed block.

    Raises
    ------
    ParameterError
        If there is not one starting field for each chain.
    NonFiniteError
        If the starting field, or later a current action, is not finite.
    StateError
        If at the end of a block the action of a chain is not that of its field.
    """
    saved = store.checkpoint()
    if saved is None:
        fields = start()
        if len(fields) != plan.chains:
            raise ParameterError(
                got=f"{len(fields)} starting fields", expected=f"one for each of {plan.chains} chains", fix="correct it"
            )
        cycle, fields = cycle.piloted(fields)
        state, done = cycle.init(fields), 0
    else:
        state, done, cycle = _restore(cycle, saved)
    reason = ""
    for block in range(done // plan.cycles_per_block, plan.n_blocks):
        state, cycle = _run_block(cycle, plan, store, block, state, observers or {}, on_block)
        done = (block + 1) * plan.cycles_per_block
        if block + 1 < plan.n_blocks and (reason := should_stop()):
            break
    return SamplingResult(done, done >= plan.total_cycles, reason, _numbers(cycle))


def _numbers(cycle: Cycle) -> dict[str, float]:
    """Return the adapted parameters that are numbers, for displays and attributes."""
    return {name: float(value) for name, value in cycle.adaptation().items() if np.ndim(value) == 0}


def _restore(cycle: Cycle, saved: Mapping[str, Any]) -> tuple[HybridState, int, Cycle]:
    # The whole state comes back, caches included: recomputing them in another batch could differ in the last bit.
    state = HybridState(*(jnp.asarray(saved[f"state.{name}"]) for name in HybridState._fields))
    prefix = "adaptation."
    adaptation = {
        key.removeprefix(prefix): np.asarray(value) if np.ndim(value) else float(value)
        for key, value in saved.items()
        if key.startswith(prefix)
    }
    return state, int(saved["cycles_done"]), cycle.restored(adaptation)


def _checkpoint(cycle: Cycle, state: HybridState, cycles_done: int) -> dict[str, Any]:
    arrays = {f"state.{name}": np.asarray(part) for name, part in state._asdict().items()}
    numbers = {f"adaptation.{name}": value for name, value in cycle.adaptation().items()}
    return {"cycles_done": cycles_done, **numbers, **arrays}


def _run_block(
    cycle: Cycle,
    plan: SamplingPlan,
    store: Store,
    block: int,
    state: HybridState,
    observers: Mapping[str, Observer],
    on_block: Callable[[BlockReport], None],
) -> tuple[HybridState, Cycle]:
    first = block * plan.cycles_per_block
    prepared, prepare_seconds = cycle.prepare(block, plan.cycles_per_block, plan.chains)
    happened: list[CycleUpdates] = []
    saved: list[tuple[int, HybridState]] = []
    for index in range(plan.cycles_per_block):
        number = first + index
        state, updates = cycle.run(number, index, state, prepared)
        happened.append(updates)
        if number < plan.tuning:
            cycle = cycle.adapted(updates, last=number + 1 == plan.tuning)
        produced = number + 1 - plan.thermalisation
        if produced > 0 and produced % plan.save_every == 0:
            saved.append((number + 1, state))
    check_finite(
        np.asarray(state.action), "action of the current states", "inspect the last configurations of the ensemble"
    )
    cycle.check(state)
    store.append(
        trajectory=np.array([number * cycle.n_updates for number, _ in saved], dtype=np.int64),
        configurations=_configurations(saved, state, cycle.theory.space.field_name),
        history=_history(cycle, happened, prepare_seconds, first),
        observables=_observe(saved, state, observers),
        checkpoint=_checkpoint(cycle, state, first + plan.cycles_per_block),
    )
    acceptance = {
        kind: float(np.mean([updates.updates[i].acceptance.mean() for updates in happened]))
        for i, kind in enumerate(cycle.kinds)
    }
    on_block(BlockReport(first + plan.cycles_per_block, plan.total_cycles, acceptance, _numbers(cycle)))
    return state, cycle


def _stack(parts: list[NDArray[Any]], like: NDArray[Any]) -> NDArray[Any]:
    """Stack along a new first axis; an empty list keeps the shape and type of one part."""
    return np.stack(parts) if parts else np.empty((0, *like.shape), like.dtype)


def _configurations(saved: list[tuple[int, HybridState]], state: HybridState, name: str) -> dict[str, NDArray[Any]]:
    return {
        name: _stack([np.asarray(one.field) for _, one in saved], np.asarray(state.field)),
        "action": _stack([np.asarray(one.action) for _, one in saved], np.asarray(state.action)),
    }


def _observe(
    saved: list[tuple[int, HybridState]], state: HybridState, observers: Mapping[str, Observer]
) -> dict[str, NDArray[Any]]:
    # One configuration after the other: observers of one theory may share what they compute of the array they are given.
    fields = [np.asarray(one.field) for _, one in saved]
    rows = [{name: np.asarray(observer(field)) for name, observer in observers.items()} for field in fields]
    if not rows:
        last = np.asarray(state.field)
        return {name: _stack([], np.asarray(observer(last))) for name, observer in observers.items()}
    return {name: np.stack([row[name] for row in rows]) for name in observers}


def _history(
    cycle: Cycle, happened: list[CycleUpdates], prepare_seconds: tuple[float, ...], first: int
) -> dict[str, NDArray[Any]]:
    kinds = np.concatenate([np.full(member.n_updates, i, np.uint8) for i, member in enumerate(cycle.members)])
    seconds = []
    for updates in happened:
        for member, ran, before in zip(cycle.members, updates.seconds, prepare_seconds, strict=True):
            share = (ran + before / len(happened)) / member.n_updates
            seconds.append(np.full(member.n_updates, share))
    columns = {
        name: np.concatenate([getattr(one, name) for updates in happened for one in updates.updates])
        for name in Updates._fields
    }
    n_rows = len(happened) * cycle.n_updates
    return {
        "update": first * cycle.n_updates + 1 + np.arange(n_rows, dtype=np.int64),
        "proposal_kind": np.tile(kinds, len(happened)),
        "walltime": np.concatenate(seconds),
        **columns,
        "accepted": columns["accepted"].astype(np.uint8),
    }
