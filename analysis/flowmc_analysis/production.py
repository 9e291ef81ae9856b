"""Reading an ensemble for analysis: measurements on the configurations after thermalisation, and the history.

Streams are independent runs; those of equal length, algorithm and spacing are laid side by side, so that their
chains become replicas of one ensemble. Configurations are read, checked against their checksums and measured
block by block; only the measurements are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.history import History, read_history
from flowmc_analysis.monitors import IDENTITIES
from flowmc_analysis.observable_sets import observable_set
from flowmc_analysis.observables import Configurations, ObservableContext, ObservableSet, measure, observable_series
from flowmc_ensembles.reader import Ensemble

if TYPE_CHECKING:
    from flowmc_ensembles.descriptions import EnsembleDescription, StreamDescription
    from flowmc_ensembles.reader import Stream

__all__ = ["Production", "read_production"]

Array = npt.NDArray[np.float64]

_BLOCK_NUMBERS = 2**23  # field values held at once: 64 MiB in double precision


@dataclass(frozen=True)
class Production:
    """What was sampled after thermalisation, chains of all streams side by side.

    Parameters
    ----------
    description
        What was simulated.
    streams
        How, one description a stream that is part of this.
    observables
        The observables that belong to the field.
    trajectory
        Update numbers of the configurations, shape ``(n,)``, of the first stream.
    measurements
        Primary observables by name, ``(chains, n)`` or ``(chains, n, k)``, and ``action`` ``(chains, n)``.
    recorded
        Scalars measured during the run that are not among the primaries (identities and others), by name, ``(chains,
        n)``.
    history
        The updates.
    updates_per_configuration
        Mean number of updates between stored configurations.
    unfinished
        Why each stream that has not come to its end stopped, or an empty text where nothing says why.
    """

    description: EnsembleDescription
    streams: tuple[StreamDescription, ...]
    observables: ObservableSet
    trajectory: npt.NDArray[np.int64]
    measurements: Mapping[str, Array]
    recorded: Mapping[str, Array]
    history: History
    updates_per_configuration: float
    unfinished: tuple[str, ...]

    @property
    def n_chains(self) -> int:
        """Number of chains, all streams together."""
        return sum(stream.n_chains for stream in self.streams)

    @property
    def context(self) -> ObservableContext:
        """Lattice and couplings."""
        numbers = {
            name: float(value)
            for name, value in self.description.action.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        arrays = {
            name: np.asarray(value, dtype=np.float64)
            for name, value in self.description.action.items()
            if name != "shape" and isinstance(value, list) and _is_numeric(value)
        }
        return ObservableContext(self.description.lattice_size, numbers, arrays)

    def further_scalars(self) -> dict[str, Array]:
        """Give the recorded scalars that are observables of their own (identities are checks), ``(chains, n)``."""
        left_out = {*IDENTITIES, *self.not_analysed}
        return {name: values for name, values in self.recorded.items() if name not in left_out}

    @property
    def not_analysed(self) -> dict[str, str]:
        """Why recorded scalars are no observables of their own although they are no identities, by name."""
        reasons = {}
        for name, values in self.recorded.items():
            if name in IDENTITIES:
                continue
            if self.observables.entry(name) is not None:
                reasons[name] = "the observable of that name is measured on the configurations"
            elif not np.isfinite(values).all():
                reasons[name] = f"{np.count_nonzero(~np.isfinite(values))} of {values.size} values are not finite"
        return reasons

    def scalar_series(self) -> dict[str, Array]:
        """Give the observables that are plain averages, configuration by configuration, ``(chains, n)`` each."""
        return {**observable_series(self.measurements, self.observables, self.context), **self.further_scalars()}


def read_production(path: str | PathLike[str], streams: Sequence[int] | None = None) -> Production:
    """Read an ensemble and measure the primary observables of its field.

    Parameters
    ----------
    path
        The ensemble file.
    streams
        Which streams to lay side by side; all by default.

    Returns
    -------
    The production part: rows with ``trajectory`` (or ``update``) beyond each stream's ``thermalisation_updates``.

    Raises
    ------
    EnsembleError
        (of ``flowmc_ensembles``) if the file is missing, damaged or no ensemble.
    AnalysisError
        If a stream does not exist, holds no configurations after thermalisation or a field without observables, or if
        the streams differ in field, algorithm, length or spacing.
    """
    ensemble = Ensemble(path)
    available = ensemble.streams
    chosen = range(len(available)) if streams is None else streams
    unknown = [index for index in chosen if not 0 <= index < len(available)]
    if unknown or not chosen:
        raise AnalysisError(
            got=f"streams {list(chosen)} of {path}",
            expected=f"a choice of 0 to {len(available) - 1}",
            fix="name streams that the ensemble has",
        )
    parts = [available[index] for index in chosen]
    description = ensemble.description
    kept = [_production_rows(part, index) for index, part in zip(chosen, parts, strict=True)]
    _check_replicas(parts, kept, chosen)
    observables = observable_set(parts[0].description.field_name)
    _check_internal_axes(parts, chosen, observables)
    dimension = len(description.lattice_size)
    tables = [_recorded_tables(part, rows.start) for part, rows in zip(parts, kept, strict=True)]
    common = set.intersection(*(set(table) for table in tables))
    needed = common & observables.recorded_names
    measured = [
        _measure_stream(part, rows.start, dimension, observables, {name: table[name] for name in needed})
        for part, rows, table in zip(parts, kept, tables, strict=True)
    ]
    scalars = sorted(name for name in common - needed if all(table[name].ndim == 2 for table in tables))
    first = kept[0].trajectory
    return Production(
        description=description,
        streams=tuple(part.description for part in parts),
        observables=observables,
        trajectory=first,
        measurements={name: np.concatenate([table[name] for table in measured]) for name in measured[0]},
        recorded={name: np.concatenate([table[name].T for table in tables]) for name in scalars},
        history=read_history(parts),
        updates_per_configuration=_spacing(first),
        # A store that never says whether it is finished is taken at its word.
        unfinished=tuple(
            str(part.attributes.get("stop_reason", "")) for part in parts if not part.attributes.get("finished", True)
        ),
    )


@dataclass(frozen=True)
class _Rows:
    start: int
    trajectory: npt.NDArray[np.int64]


def _production_rows(stream: Stream, index: int) -> _Rows:
    description = stream.description
    trajectory = np.asarray(stream.trajectory, dtype=np.int64)
    start = int(np.searchsorted(trajectory, description.thermalisation_updates, side="right"))
    if start == trajectory.size:
        raise AnalysisError(
            got=f"stream {index} with {trajectory.size} configurations, none after update"
            f" {description.thermalisation_updates} (thermalisation_updates)",
            expected="configurations after thermalisation",
            fix="continue the run: there is no production to analyse yet",
        )
    return _Rows(start, trajectory[start:])


def _check_replicas(parts: Sequence[Stream], kept: Sequence[_Rows], chosen: Sequence[int]) -> None:
    def key(part: Stream, rows: _Rows) -> tuple[str, str, int, float]:
        return part.description.field_name, part.description.algorithm, rows.trajectory.size, _spacing(rows.trajectory)

    reference = key(parts[0], kept[0])
    for index, part, rows in zip(chosen, parts, kept, strict=True):
        if key(part, rows) != reference:
            raise AnalysisError(
                got=f"stream {index}: (field, algorithm, configurations, spacing) = {key(part, rows)}, stream"
                f" {chosen[0]}: {reference}",
                expected="equal field, algorithm, number of configurations and spacing in streams analysed together",
                fix=f"analyse them one by one (streams=[{index}]), or extend the shorter one",
            )


def _check_internal_axes(parts: Sequence[Stream], chosen: Sequence[int], observables: ObservableSet) -> None:
    for index, part in zip(chosen, parts, strict=True):
        axes = part.description.internal_axes
        if tuple(axes) != observables.internal_axes:
            raise AnalysisError(
                got=f"stream {index}: the field {part.description.field_name!r} with internal axes {list(axes)}",
                expected=f"{observables.values}, with internal axes {list(observables.internal_axes)}",
                fix="read the configurations with flowmc_ensembles and use the array-level functions of flowmc_analysis",
            )


def _is_numeric(value: object) -> bool:
    """Whether a value is made of numbers, or of lists of them of equal lengths."""
    try:
        return np.asarray(value).dtype.kind in "if"
    except ValueError:
        return False


def _spacing(trajectory: npt.NDArray[np.int64]) -> float:
    return float(trajectory[-1] - trajectory[0]) / (trajectory.size - 1) if trajectory.size > 1 else 1.0


def _measure_stream(
    stream: Stream, start: int, dimension: int, observables: ObservableSet, tables: Mapping[str, Array]
) -> dict[str, Array]:
    """Measure the rows from ``start`` on; the tables begin there."""
    blocks: list[dict[str, Array]] = []
    name, stop = stream.description.field_name, stream.n_configurations
    first = stream.configurations(name, start=start, stop=start + 1)
    rows = max(1, _BLOCK_NUMBERS // first.size)
    for low in range(start, stop, rows):
        high = min(low + rows, stop)
        field = np.asarray(stream.configurations(name, start=low, stop=high))
        if not observables.accepts(field):
            raise AnalysisError(
                got=f"configurations {low} to {high - 1} of {name!r}: {field.dtype} between {field.min()} and"
                f" {field.max()}",
                expected=observables.values,
                fix="use the array-level functions of flowmc_analysis on other fields",
            )
        action = np.asarray(stream.configurations("action", start=low, stop=high, verify=False), dtype=np.float64)
        recorded = {key: table[low - start : high - start] for key, table in tables.items()}
        internal = len(observables.internal_axes)
        blocks.append(measure(Configurations(field, dimension, action, internal, recorded), observables))
    return {key: np.concatenate([block[key] for block in blocks]).swapaxes(0, 1) for key in blocks[0]}


def _recorded_tables(stream: Stream, start: int) -> dict[str, Array]:
    """Read what was measured in the run: numbers, or rows of numbers, ``(n, chain)`` or ``(n, chain, k)``."""
    tables = {name: np.asarray(stream.observable(name)) for name in stream.observable_names}
    return {
        name: table[start:].astype(np.float64)
        for name, table in tables.items()
        if table.ndim in (2, 3) and table.dtype.kind in "fiu"
    }
