"""The production part of a run's history: one row per update, chains of all streams side by side.

Non-finite proposals were rejected by the run, whatever their log-weight reads; here their weight is zero, which keeps
every flow-side average exact (they are draws like any other). A state that the flow cannot reach has infinite weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flowmc_analysis.errors import AnalysisError, NonFiniteError

if TYPE_CHECKING:
    from flowmc_ensembles.reader import Stream

__all__ = ["BLACKJAX_KIND", "FLOW_KIND", "HMC_KINDS", "History", "read_history"]

Array = npt.NDArray[np.float64]

# Parts of a run over which the wall time is compared with itself.
_WALLTIME_PARTS = 20

HMC_KINDS = ("hmc", "fourier_hmc", "pseudofermion_hmc")
BLACKJAX_KIND = "blackjax"
"""Kernels of another library: some move along trajectories and have energies, others do not."""
FLOW_KIND = "flow"


@dataclass(frozen=True)
class History:
    """History of the updates after thermalisation.

    Parameters
    ----------
    update
        Update numbers, shape ``(m,)``, of the first stream.
    kinds
        Name of each update's kind (``"hmc"``, ``"flow"``, ...), shape ``(m,)``.
    acceptance
        Fraction of the accept tests of each update that passed, shape ``(chains, m)``: whether the proposal was accepted
        or, for updates of many parts (sweeps, block moves), a number between zero and one.
    delta_h
        Energy errors of the updates that have energies, shape ``(chains, m_energy)``; empty if the run made none.
    energy_kinds
        The kinds of those updates.
    log_weight
        Log-weights of the flow's proposals in nats, shape ``(chains, m_flow)``; ``-inf`` for those that failed.
    log_weight_current
        Log-weights of the states before the flow updates, same shape; ``+inf`` off the flow's support.
    action_proposed
        Action of the flow's proposals, same shape, whatever it is for those that failed; None where not stored.
    n_nonfinite
        Number of proposals whose log-weight was not finite.
    n_offsupport
        Number of flow updates that started from a state the flow cannot reach.
    seconds
        Wall time of the rows, all streams together.
    seconds_error
        Standard error of ``seconds`` from its scatter over equal parts of the run; NaN for a run too short to tell.
    thermalisation_seconds
        Wall time of the rows that were dropped.
    """

    update: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.str_]
    acceptance: Array
    delta_h: Array
    energy_kinds: tuple[str, ...]
    log_weight: Array
    log_weight_current: Array
    action_proposed: Array | None
    n_nonfinite: int
    n_offsupport: int
    seconds: float
    seconds_error: float
    thermalisation_seconds: float

    def of_kind(self, kind: str) -> Array:
        """Give the acceptance of the updates of one kind, shape ``(chains, m_kind)``."""
        return self.acceptance[:, self.kinds == kind]

    @property
    def kind_names(self) -> tuple[str, ...]:
        """Kinds that occur, in alphabetical order."""
        return tuple(str(name) for name in np.unique(self.kinds))


def read_history(streams: Sequence[Stream]) -> History:
    """Read and join the histories of streams that ran the same cycle.

    Parameters
    ----------
    streams
        Streams with equally many updates after thermalisation, of equal kinds row by row.

    Raises
    ------
    AnalysisError
        If the streams differ in the kinds of their updates or in their number.
    NonFiniteError
        If the log-weight of a stream's state is not a number.
    """
    parts = [_read_columns(stream) for stream in streams]
    first = parts[0]
    if any(part.energy_kinds != first.energy_kinds for part in parts):
        raise AnalysisError(
            got="streams of which some have energies of trajectories and others do not",
            expected="the same kernel in streams that are analysed together",
            fix="analyse them one by one with streams=[k]",
        )
    for index, part in enumerate(parts):
        if part.kinds.shape != first.kinds.shape or np.any(part.kinds != first.kinds):
            raise AnalysisError(
                got=f"streams 0 and {index} of the choice with {first.kinds.size} and {part.kinds.size} updates after"
                " thermalisation, or of differing kinds",
                expected="the same cycle of updates, equally often, in streams that are analysed together",
                fix="analyse them one by one with streams=[k], or extend the shorter one",
            )
    proposals = np.concatenate([part.log_weight for part in parts])
    current = np.concatenate([part.log_weight_current for part in parts])
    bad = int(np.count_nonzero(np.isnan(current) | np.isneginf(current)))
    if bad:
        raise NonFiniteError(
            got=f"{bad} states whose log-weight is NaN or -inf",
            expected="a finite action at every state of a chain (log-weight +inf where the flow has no support)",
            fix="the chain left the support of the target: check the action and the kernel that moved it",
        )
    failed = ~np.isfinite(proposals)
    actions = [part.action_proposed for part in parts if part.action_proposed is not None]
    return History(
        update=first.update,
        kinds=first.kinds,
        acceptance=np.concatenate([part.acceptance for part in parts]),
        delta_h=np.concatenate([part.delta_h for part in parts]),
        energy_kinds=first.energy_kinds,
        log_weight=np.where(failed, -np.inf, proposals),
        log_weight_current=current,
        action_proposed=None if len(actions) < len(parts) else np.concatenate(actions),
        n_nonfinite=int(np.count_nonzero(failed)),
        n_offsupport=int(np.count_nonzero(np.isposinf(current))),
        seconds=sum(part.seconds for part in parts),
        seconds_error=math.hypot(*(part.seconds_error for part in parts)),
        thermalisation_seconds=sum(part.thermalisation_seconds for part in parts),
    )


@dataclass(frozen=True)
class _Columns:
    """Columns of one stream after thermalisation, chains first."""

    update: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.str_]
    acceptance: Array
    delta_h: Array
    energy_kinds: tuple[str, ...]
    log_weight: Array
    log_weight_current: Array
    action_proposed: Array | None
    seconds: float
    seconds_error: float
    thermalisation_seconds: float


def _scatter_of_sum(seconds: Array) -> float:
    """Return the standard error of a sum from its scatter over equal parts: a busy machine shows there."""
    if seconds.size < 2 * _WALLTIME_PARTS:
        return math.nan
    sums = np.array([part.sum() for part in np.array_split(seconds, _WALLTIME_PARTS)])
    return float(math.sqrt(_WALLTIME_PARTS) * sums.std(ddof=1))


def _read_columns(stream: Stream) -> _Columns:
    description = stream.description
    update = np.asarray(stream.history("update"), dtype=np.int64)
    kept = update > description.thermalisation_updates
    if not kept.any():
        raise AnalysisError(
            got=f"{update.size} updates, thermalisation_updates = {description.thermalisation_updates}",
            expected="updates after thermalisation",
            fix="continue the run: there is no production to analyse yet",
        )
    numbers = np.asarray(stream.history("proposal_kind"), dtype=np.int64)[kept]
    kinds = np.array([description.proposal_kinds.get(int(n), f"kind_{n}") for n in numbers], dtype=np.str_)

    def rows_of(name: str, *wanted: str) -> Array:
        rows = np.isin(kinds, wanted)
        if not rows.any():
            return np.empty((description.n_chains, 0))
        table: Array = np.asarray(stream.history(name), dtype=np.float64)
        return np.asarray(table[kept][rows].T)

    with_energies: tuple[str, ...] = HMC_KINDS
    if np.isfinite(rows_of("delta_H", BLACKJAX_KIND)).any():
        with_energies += (BLACKJAX_KIND,)
    # Older files have accept bits alone.
    acceptance = "acceptance" if "acceptance" in stream.history_names else "accepted"
    walltime = np.zeros(update.size)
    if "walltime" in stream.history_names:
        walltime = np.asarray(stream.history("walltime"), dtype=np.float64)
    return _Columns(
        update=update[kept],
        kinds=kinds,
        acceptance=np.asarray(stream.history(acceptance), dtype=np.float64)[kept].T,
        delta_h=rows_of("delta_H", *with_energies),
        energy_kinds=with_energies,
        log_weight=rows_of("log_weight", FLOW_KIND),
        log_weight_current=rows_of("log_weight_current", FLOW_KIND),
        action_proposed=rows_of("action_proposed", FLOW_KIND) if "action_proposed" in stream.history_names else None,
        seconds=float(np.sum(walltime[kept])),
        seconds_error=_scatter_of_sum(walltime[kept]),
        thermalisation_seconds=float(np.sum(walltime[~kept])),
    )
