"""Writing ensembles: create, append block by block, resume after any interruption.

Every public call that changes the file is one transaction (`flowmc_ensembles.transaction`): killed at any instant, or
ended by any exception, it leaves the file as it was before or as it is after the call.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy.typing as npt

from flowmc_ensembles import checkpoint as slots
from flowmc_ensembles import layout, tables
from flowmc_ensembles.block import Block, Schema, check_block
from flowmc_ensembles.checkpoint import Checkpoint, CheckpointValue
from flowmc_ensembles.checksums import scidac_checksums
from flowmc_ensembles.descriptions import EnsembleDescription, StreamDescription
from flowmc_ensembles.errors import CorruptionError, DescriptionError, ExistsError, MissingError
from flowmc_ensembles.interrupts import defer_signals
from flowmc_ensembles.locks import WriterLock
from flowmc_ensembles.transaction import TransactionFile

__all__ = ["EnsembleWriter"]

_TABLES = ("configurations", "observables", "history")


class EnsembleWriter:
    """The one writer of an ensemble file, appending to one of its streams.

    Made by `create`, `open` or `add_stream`; holds the file until `close` (or the end of a ``with`` block). Other
    programs may read the file meanwhile.
    """

    def __init__(self, path: Path, index: int, file: TransactionFile) -> None:
        self._path = path
        self._index = index
        self._file = file
        self._load()

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], description: EnsembleDescription, stream: StreamDescription
    ) -> EnsembleWriter:
        """Make a new ensemble with one stream, without rows.

        The file appears whole or not at all.

        Parameters
        ----------
        path
            Where; nothing may be there.
        description
            What is simulated.
        stream
            How it is simulated.

        Raises
        ------
        ExistsError
            If something is at ``path``; it is left as it is.
        MissingError
            If the folder does not exist.
        LockedError
            If another writer is about to create the same file.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise MissingError(
                got=f"{target}: its folder does not exist",
                expected="a path in an existing folder",
                fix=f"make the folder {target.parent}",
            )
        _refuse_existing(target)
        lock = WriterLock(target)
        try:
            _refuse_existing(target)
            temporary = target.with_name(target.name + ".tmp")
            with h5py.File(temporary, "w") as file:
                description.write(file)
                _new_stream(file, 0, stream)
            _synchronise(temporary)
            temporary.replace(target)
            _synchronise(target.parent)
            transactions = TransactionFile(target, lock)
        except BaseException:
            lock.release()
            raise
        return cls._hold(target, 0, transactions)

    @classmethod
    def open(cls, path: str | os.PathLike[str], stream_index: int = 0) -> EnsembleWriter:
        """Go on with a stream, from its newest valid checkpoint; rows after it are dropped.

        Parameters
        ----------
        path
            An existing ensemble.
        stream_index
            Number of the stream.

        Raises
        ------
        MissingError, NotAnEnsembleError, TruncatedError, VersionError, CorruptionError
            If there is no such stream in a readable ensemble; the file is left as it is.
        LockedError
            If another writer holds the file.
        """
        target = Path(path)
        return cls._hold(target, stream_index, TransactionFile(target))

    @classmethod
    def add_stream(cls, path: str | os.PathLike[str], stream: StreamDescription) -> EnsembleWriter:
        """Add a stream to an existing ensemble, and write to it.

        Parameters
        ----------
        path
            An existing ensemble.
        stream
            How the new stream is simulated.

        Raises
        ------
        MissingError, NotAnEnsembleError, TruncatedError, VersionError, CorruptionError
            If there is no readable ensemble at ``path``.
        LockedError
            If another writer holds the file.
        """
        target = Path(path)
        transactions = TransactionFile(target)
        try:
            with transactions.transaction() as file:
                index = sum(name.startswith("stream_") for name in file)
                _new_stream(file, index, stream)
        except BaseException:
            transactions.close()
            raise
        return cls._hold(target, index, transactions)

    @classmethod
    def _hold(cls, path: Path, index: int, file: TransactionFile) -> EnsembleWriter:
        try:
            return cls(path, index, file)
        except BaseException:
            file.close()
            raise

    def _load(self) -> None:
        """Read the state to go on from; drop rows that no valid checkpoint covers."""
        with self._file.reading() as file:
            group = layout.stream_group(file, self._index, str(self._path))
            ensemble, stream = EnsembleDescription.read(file), StreamDescription.read(group)
            columns = {table: tables.columns_of(group, table) for table in _TABLES}
            found = slots.newest(group)
            counts = (int(group["n_committed"][()]), int(group["history/n_committed"][()]))
            wanted = (0, 0) if found is None else (found.n_configurations, found.n_updates)
            if any(have < want for have, want in zip(counts, wanted, strict=True)) or (found is None and any(counts)):
                raise CorruptionError(
                    got=f"{self._path}: {counts} rows of configurations and history, "
                    f"{'no valid checkpoint' if found is None else f'a checkpoint at {wanted}'}",
                    expected="a valid checkpoint within the stored rows",
                    fix="restore the file from a copy; its rows can still be read",
                )
            last = [
                int(tables.read(dataset, n - 1, n)[0]) if n else -1
                for dataset, n in zip((group["trajectory"], group["history/update"]), wanted, strict=True)
            ]
        self._checkpoint = found
        self._n_configurations, self._n_updates = wanted
        self._schema = Schema(ensemble, stream, columns, *last)
        if counts != wanted:
            with self._file.transaction() as file:
                tables.resize(file[layout.stream_name(self._index)], *wanted)

    @property
    def stream_index(self) -> int:
        """Number of the stream that is written."""
        return self._index

    @property
    def description(self) -> EnsembleDescription:
        """What is simulated."""
        return self._schema.ensemble

    @property
    def stream(self) -> StreamDescription:
        """How the stream is simulated."""
        return self._schema.stream

    @property
    def n_configurations(self) -> int:
        """Stored configurations of each chain."""
        return self._n_configurations

    @property
    def n_updates(self) -> int:
        """Rows of the history."""
        return self._n_updates

    def append(
        self,
        *,
        trajectory: npt.ArrayLike,
        configurations: Mapping[str, npt.ArrayLike],
        history: Mapping[str, npt.ArrayLike],
        observables: Mapping[str, npt.ArrayLike],
        checkpoint: Mapping[str, CheckpointValue],
    ) -> None:
        """Append one block, all or nothing.

        Parameters
        ----------
        trajectory
            Update numbers of the stored configurations, int64, shape ``(r,)``, strictly increasing from block to block;
            ``r`` may be 0.
        configurations
            Columns of shape ``(r, chain, ...)``: the field ``(r, chain, *lattice, *internal)`` in the stream's type,
            ``action`` ``(r, chain)`` float64, and any others. Checksums are added.
        history
            Columns with one row per update, ``(m,)`` or ``(m, chain)``: ``update`` int64 strictly increasing, and
            others (types of the standard ones: `flowmc_ensembles.layout.HISTORY_DTYPES`); empty for no rows.
        observables
            Columns of shape ``(r, chain, ...)`` measured at the stored configurations.
        checkpoint
            The state to resume from after this block: arrays, numbers and text.

        Raises
        ------
        AppendError
            If anything does not fit the stream or its earlier blocks; nothing is written.
        """
        block = check_block(self._schema, trajectory, configurations, history, observables)
        state = Checkpoint(
            serial=1 if self._checkpoint is None else self._checkpoint.serial + 1,
            n_configurations=self._n_configurations + block.n_configurations,
            n_updates=self._n_updates + block.n_updates,
            values=slots.check_values(checkpoint),
        )
        with defer_signals():
            with self._file.transaction() as file:
                group = file[layout.stream_name(self._index)]
                columns = self._write_rows(group, block)
                slots.write_slot(group, state)
                group["n_committed"][()] = state.n_configurations
                group["history/n_committed"][()] = state.n_updates
            self._checkpoint = state
            self._n_configurations, self._n_updates = state.n_configurations, state.n_updates
            self._schema = Schema(
                self._schema.ensemble,
                self._schema.stream,
                columns,
                int(block.trajectory[-1]) if block.n_configurations else self._schema.last_trajectory,
                int(block.tables["history"]["update"][-1]) if block.n_updates else self._schema.last_update,
            )

    def _write_rows(self, group: h5py.Group, block: Block) -> Mapping[str, Mapping[str, tables.Column]]:
        """Append the rows of a block to the tables; the columns that the tables have now."""
        columns = {table: dict(self._schema.columns[table]) for table in _TABLES}
        rows = {table: dict(block.tables[table]) for table in _TABLES}
        for table in _TABLES:
            columns[table].update({name: tables.Column.of(array) for name, array in rows[table].items()})
        stream, lattice_size = self._schema.stream, self._schema.ensemble.lattice_size
        if block.n_configurations:
            suma, sumb = scidac_checksums(rows["configurations"][stream.field_name], 2, len(lattice_size))
            rows["configurations"].update(crc_suma=suma, crc_sumb=sumb)
            tables.extend(group["trajectory"], self._n_configurations, block.trajectory)
        axes = {stream.field_name: (*layout.axis_names(len(lattice_size)), *stream.internal_axes)}
        for table in _TABLES:
            members = group[table]
            start = self._n_updates if table == "history" else self._n_configurations
            if rows[table] and columns[table] != self._schema.columns[table]:
                new = {name: tables.Column.of(array) for name, array in rows[table].items()}
                tables.create_table(group, table, new, axes if table == "configurations" else {})
            for name, array in rows[table].items():
                tables.extend(members[name], start, array)
        return columns

    def checkpoint(self) -> dict[str, CheckpointValue] | None:
        """State to resume from, as given to the last `append`; None before the first."""
        return None if self._checkpoint is None else dict(self._checkpoint.values)

    def set_attributes(self, attributes: Mapping[str, str | int | float | bool]) -> None:
        """Set attributes of the stream that become known late, for example ``finished`` and ``stop_reason``.

        Parameters
        ----------
        attributes
            Names and plain values; what an earlier call set is replaced.

        Raises
        ------
        DescriptionError
            If a name belongs to the stream's description, or a value is not text, a number or a boolean.
        """
        for name, value in attributes.items():
            layout.check_name(name, "an attribute", taken=StreamDescription.reserved_attributes())
            if not isinstance(value, (str, int, float, bool)):
                raise DescriptionError(
                    got=f"attribute {name!r} = {value!r}",
                    expected="text, a number or a boolean",
                    fix="convert it; what has structure can be stored as JSON text",
                )
        with self._file.transaction() as file:
            group = file[layout.stream_name(self._index)]
            for name, value in attributes.items():
                group.attrs[name] = value

    def close(self) -> None:
        """Wait until everything is on the disk, and let other writers in. May be called twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise ExistsError(
            got=f"{path}: it exists",
            expected="a path where nothing is",
            fix="give another path, or resume it with EnsembleWriter.open",
        )


def _new_stream(file: h5py.File, index: int, stream: StreamDescription) -> None:
    group = file.create_group(layout.stream_name(index))
    stream.write(group, index)
    tables.create_stream(group, stream.n_chains)


def _synchronise(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(PermissionError):  # some network file systems refuse it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
