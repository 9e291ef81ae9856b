"""Columns of a stream: created with their dimension scales, extended, cut, read.

Every axis of every column carries a dimension scale in its own or an ancestor group, so that xarray opens the file as a
DataTree. Axes without a name of their own get the scale ``axis<position>_<length>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from flowmc_ensembles.errors import CorruptionError

__all__ = [
    "Column",
    "attach_anonymous_scales",
    "columns_of",
    "create_stream",
    "create_table",
    "extend",
    "read",
    "resize",
]

# Small, because the last chunk of every column is written again with every block.
_CHUNK_BYTES = 16_384
_LARGEST_CHUNK_BYTES = 1_048_576
_MOST_CHUNK_ROWS = 4096

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Column:
    """Type and row shape of a column."""

    dtype: np.dtype[np.generic]
    row_shape: tuple[int, ...]

    @classmethod
    def of(cls, rows: Array) -> Column:
        """Column whose rows are those of ``rows``."""
        return cls(rows.dtype, rows.shape[1:])

    def __str__(self) -> str:
        return f"{self.dtype} rows of shape {self.row_shape}"


def _chunk_shape(column: Column) -> tuple[int, ...]:
    """Rows are grouped to 16 KiB; a row above 1 MiB is split along its first axis (the chains)."""
    row_bytes = max(1, column.dtype.itemsize * int(np.prod(column.row_shape)))
    if row_bytes > _LARGEST_CHUNK_BYTES and column.row_shape:
        n_first = max(1, _LARGEST_CHUNK_BYTES * column.row_shape[0] // row_bytes)
        return (1, n_first, *column.row_shape[1:])
    return (min(_MOST_CHUNK_ROWS, max(1, _CHUNK_BYTES // row_bytes)), *(max(1, n) for n in column.row_shape))


def _create_column(group: h5py.Group, name: str, column: Column) -> h5py.Dataset:
    return group.create_dataset(
        name,
        shape=(0, *column.row_shape),
        maxshape=(None, *column.row_shape),
        chunks=_chunk_shape(column),
        dtype=column.dtype,
        fletcher32=True,
    )


def create_stream(group: h5py.Group, n_chains: int) -> None:
    """Make the tables of a new stream, without rows."""
    group.create_dataset("n_committed", data=np.int64(0))
    group.create_dataset("chain", data=np.arange(n_chains, dtype=np.int64)).make_scale("chain")
    update = Column(np.dtype(np.int64), ())
    _create_column(group, "trajectory", update).make_scale("trajectory")
    history = group.create_group("history")
    history.create_dataset("n_committed", data=np.int64(0))
    _create_column(history, "update", update).make_scale("update")
    for table in ("configurations", "observables", "checkpoints"):
        group.create_group(table)


def create_table(
    stream: h5py.Group, table: str, columns: Mapping[str, Column], named_axes: Mapping[str, tuple[str, ...]]
) -> None:
    """Make the columns of a table that do not exist yet.

    Parameters
    ----------
    stream
        Group of the stream.
    table
        ``"configurations"``, ``"history"`` or ``"observables"``.
    columns
        The columns by name.
    named_axes
        For columns whose axes after the chain have names: the names, lattice axes first.
    """
    group = stream[table]
    rows = stream["history/update"] if table == "history" else stream["trajectory"]
    for name, column in columns.items():
        if name in group:
            continue
        dataset = _create_column(group, name, column)
        dataset.dims[0].attach_scale(rows)
        if column.row_shape:
            dataset.dims[1].attach_scale(stream["chain"])
        axes = named_axes.get(name, ())
        for position, axis in enumerate(axes, start=2):
            dataset.dims[position].attach_scale(_named_scale(stream, axis, dataset.shape[position]))
        attach_anonymous_scales(group, dataset, first=2 + len(axes))


def _named_scale(stream: h5py.Group, name: str, length: int) -> h5py.Dataset:
    if name in stream.file:
        return stream.file[name]
    if name not in stream:
        stream.create_dataset(name, data=np.arange(length, dtype=np.int64)).make_scale(name)
    return stream[name]


def attach_anonymous_scales(group: h5py.Group, dataset: h5py.Dataset, first: int) -> None:
    """Give the axes of ``dataset`` from ``first`` on the scales ``axis<position>_<length>`` of ``group``."""
    for position in range(first, dataset.ndim):
        name = f"axis{position}_{dataset.shape[position]}"
        if name not in group:
            group.create_dataset(name, data=np.arange(dataset.shape[position], dtype=np.int64)).make_scale(name)
        dataset.dims[position].attach_scale(group[name])


def columns_of(stream: h5py.Group, table: str) -> dict[str, Column]:
    """Columns that a table has."""
    return {
        name: Column(dataset.dtype, dataset.shape[1:])
        for name, dataset in stream[table].items()
        if name not in {"n_committed", "crc_suma", "crc_sumb"} and (name == "update" or not dataset.is_scale)
    }


def extend(dataset: h5py.Dataset, start: int, rows: Array) -> None:
    """Append ``rows`` after the first ``start`` rows."""
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows


def resize(stream: h5py.Group, n_configurations: int, n_updates: int) -> None:
    """Cut every table to the given number of rows, and set the counters."""
    tables = (
        ("configurations", n_configurations),
        ("observables", n_configurations),
        ("history", n_updates),
    )
    for table, n in tables:
        for dataset in stream[table].values():
            if dataset.maxshape and dataset.maxshape[0] is None:
                dataset.resize(n, axis=0)
    stream["trajectory"].resize(n_configurations, axis=0)
    stream["n_committed"][()] = n_configurations
    stream["history/n_committed"][()] = n_updates


def read(dataset: h5py.Dataset, start: int, stop: int) -> Array:
    """Rows ``start`` to ``stop`` of a column.

    Raises
    ------
    CorruptionError
        If the column is shorter.
    """
    if len(dataset) < stop:
        raise CorruptionError(
            got=f"column {dataset.name} with {len(dataset)} rows",
            expected=f"{stop} committed rows",
            fix="resume the run, which goes back to the newest state that is whole, or restore the file from a copy",
        )
    return np.asarray(dataset[start:stop])
