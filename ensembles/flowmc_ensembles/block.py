"""One block of a run, checked completely before anything of it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowmc_ensembles import layout
from flowmc_ensembles.descriptions import EnsembleDescription, StreamDescription
from flowmc_ensembles.errors import AppendError
from flowmc_ensembles.tables import Column

__all__ = ["Block", "Schema", "check_block"]

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Schema:
    """What the blocks of a stream must look like.

    Parameters
    ----------
    ensemble, stream
        The descriptions given at creation.
    columns
        Columns of each table that has rows already; a table without rows takes those of its first block.
    last_trajectory, last_update
        Update numbers of the last stored configuration and history row, -1 without one.
    """

    ensemble: EnsembleDescription
    stream: StreamDescription
    columns: Mapping[str, Mapping[str, Column]]
    last_trajectory: int = -1
    last_update: int = -1


@dataclass(frozen=True)
class Block:
    """Rows to append: arrays by column name, for each table."""

    trajectory: npt.NDArray[np.int64]
    tables: Mapping[str, Mapping[str, Array]]

    @property
    def n_configurations(self) -> int:
        """Number of configurations per chain."""
        return len(self.trajectory)

    @property
    def n_updates(self) -> int:
        """Number of history rows."""
        return len(self.tables["history"].get("update", ()))


def _increasing(values: Array, what: str, last: int) -> npt.NDArray[np.int64]:
    if values.ndim != 1 or values.dtype != np.int64:
        raise AppendError(
            got=f"{what} of type {values.dtype} and shape {values.shape}",
            expected="int64 update numbers of shape (n,)",
            fix="use numpy.arange or numpy.array(..., dtype=numpy.int64)",
        )
    numbers = values.astype(np.int64)
    if np.any(np.diff(numbers, prepend=np.int64(last)) <= 0):
        raise AppendError(
            got=f"{what} {numbers[:3].tolist()}... after {last}",
            expected="update numbers that increase strictly, within a block and from block to block",
            fix="append every block once, in order; after a restart go on from the stored checkpoint",
        )
    return numbers


def _rows(given: Mapping[str, object], table: str, n: int) -> dict[str, Array]:
    rows = {}
    for name, value in given.items():
        layout.check_name(name, f"a column of {table}", AppendError)
        array = np.asarray(value)
        layout.check_storable(array.dtype, f"{table}/{name}", AppendError)
        if array.dtype.kind == "b":
            raise AppendError(
                got=f"{table}/{name} of type bool",
                expected="a numeric type (netCDF readers refuse HDF5 booleans)",
                fix="use .astype(numpy.uint8)",
            )
        if array.ndim == 0 or len(array) != n:
            raise AppendError(
                got=f"{table}/{name} of shape {array.shape}",
                expected=f"{n} rows, as many as this block has update numbers in this table",
                fix="give one row per update number",
            )
        rows[name] = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return rows


def _expect(what: str, array: Array, column: Column) -> None:
    if Column.of(array) != column:
        raise AppendError(
            got=f"{what} with {Column.of(array)}",
            expected=str(column),
            fix="convert the type explicitly with .astype, or create an ensemble with the description that fits",
        )


def _check_configurations(rows: Mapping[str, Array], schema: Schema) -> None:
    name, n_chains = schema.stream.field_name, schema.stream.n_chains
    if missing := {name, "action"} - rows.keys():
        raise AppendError(
            got=f"configurations with {sorted(rows)}",
            expected=f"{sorted(missing)} as well: every configuration comes with its action",
            fix="add what is missing",
        )
    field = rows[name]
    leading = (n_chains, *schema.ensemble.lattice_size)
    n_axes = 1 + len(leading) + len(schema.stream.internal_axes)
    axes = ("row", "chain", *layout.axis_names(len(schema.ensemble.lattice_size)), *schema.stream.internal_axes)
    if field.ndim != n_axes or field.shape[1 : 1 + len(leading)] != leading:
        raise AppendError(
            got=f"field {name!r} of shape {field.shape}",
            expected=f"axes {axes} with (chain, *lattice) = {leading}",
            fix="keep the lattice shape; name further axes in StreamDescription.internal_axes",
        )
    _expect(f"field {name!r}", field, Column(schema.stream.field_dtype, field.shape[1:]))
    _expect("configurations/action", rows["action"], Column(np.dtype(np.float64), (n_chains,)))


def _check_history(rows: Mapping[str, Array], schema: Schema) -> None:
    n_chains = schema.stream.n_chains
    for name, array in rows.items():
        dtype = layout.HISTORY_DTYPES.get(name, array.dtype)
        row_shape = () if array.ndim == 1 else (n_chains,)
        _expect(f"history/{name}", array, Column(dtype, row_shape))
    for name, allowed in (("proposal_kind", set(schema.stream.proposal_kinds)), ("accepted", {0, 1})):
        if name in rows and (unknown := set(np.unique(rows[name]).tolist()) - allowed):
            raise AppendError(
                got=f"history/{name} with {sorted(unknown)}",
                expected=f"values among {sorted(allowed)}",
                fix="declare every kind in StreamDescription.proposal_kinds; accepted is 0 or 1",
            )


def _check_columns(table: str, rows: Mapping[str, Array], columns: Mapping[str, Column], started: bool) -> None:
    fixed = started or bool(columns.keys() - {"update"})
    if fixed and rows.keys() != columns.keys():
        raise AppendError(
            got=f"{table} with {sorted(rows)}",
            expected=f"{sorted(columns)}, the columns of the first block",
            fix="write the same columns in every block of a stream",
        )
    for name in rows.keys() & columns.keys():
        _expect(f"{table}/{name}", rows[name], columns[name])


def check_block(
    schema: Schema,
    trajectory: object,
    configurations: Mapping[str, object],
    history: Mapping[str, object],
    observables: Mapping[str, object],
) -> Block:
    """Check a block against its stream.

    Parameters
    ----------
    schema
        What it must look like.
    trajectory
        Update numbers of the stored configurations, shape ``(r,)``.
    configurations, observables
        Columns of shape ``(r, chain, ...)``; with ``r = 0`` they may be left out.
    history
        Columns of shape ``(m,)`` or ``(m, chain)``, among them ``update``; may be empty.

    Raises
    ------
    AppendError
        If anything is missing, unknown, or of the wrong shape, type or order.
    """
    numbers = _increasing(np.asarray(trajectory), "trajectory", schema.last_trajectory)
    r = len(numbers)
    tables: dict[str, dict[str, Array]] = {
        "configurations": _rows(configurations, "configurations", r) if r else {},
        "observables": _rows(observables, "observables", r) if r else {},
        "history": {},
    }
    n_chains = schema.stream.n_chains
    if r:
        _check_configurations(tables["configurations"], schema)
        for table in ("configurations", "observables"):
            for name, array in tables[table].items():
                if array.shape[1:2] != (n_chains,):
                    raise AppendError(
                        got=f"{table}/{name} of shape {array.shape}",
                        expected=f"(row, chain, ...) with {n_chains} chains",
                        fix="give one value per configuration and chain",
                    )
    if history:
        if "update" not in history:
            raise AppendError(
                got=f"history with {sorted(history)}",
                expected="'update', the number of every update",
                fix="add it: int64, shape (m,)",
            )
        update = _increasing(np.asarray(history["update"]), "history/update", schema.last_update)
        if len(update):
            tables["history"] = _rows(history, "history", len(update))
            _check_history(tables["history"], schema)
    block = Block(numbers, tables)
    for table, rows in tables.items():
        is_history = table == "history"
        if block.n_updates if is_history else r:
            started = (schema.last_update if is_history else schema.last_trajectory) >= 0
            _check_columns(table, rows, schema.columns[table], started)
    return block
