"""Reading ensembles: a consistent snapshot, also while a run goes on writing.

Nothing stays open between calls. What is visible is what was committed when the `Ensemble` was made, so columns read at
different times fit together; make a new `Ensemble` to see later rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from flowmc_ensembles import checkpoint as slots
from flowmc_ensembles import layout, tables
from flowmc_ensembles.checkpoint import CheckpointValue
from flowmc_ensembles.checksums import scidac_checksums
from flowmc_ensembles.descriptions import EnsembleDescription, StreamDescription
from flowmc_ensembles.errors import CorruptionError, MissingError
from flowmc_ensembles.transaction import read_snapshot

__all__ = ["Ensemble", "Stream"]

T = TypeVar("T")


@dataclass(frozen=True)
class Stream:
    """One stream of an ensemble, as committed when the `Ensemble` was made.

    Parameters
    ----------
    path
        The ensemble file.
    index
        Number of the stream.
    description
        How it was simulated.
    attributes
        All attributes of the stream as plain values, late ones such as ``finished`` included.
    n_configurations
        Stored configurations of each chain.
    n_updates
        Rows of the history.
    history_names, observable_names, configuration_names
        Columns of the tables; the history's always has ``update``.
    """

    path: Path
    index: int
    description: StreamDescription
    attributes: dict[str, object]
    n_configurations: int
    n_updates: int
    configuration_names: tuple[str, ...]
    history_names: tuple[str, ...]
    observable_names: tuple[str, ...]
    n_lattice_axes: int = field(repr=False)

    @classmethod
    def of(cls, path: Path, index: int, group: h5py.Group, n_lattice_axes: int) -> Stream:
        """Stream in an open file."""
        return cls(
            path=path,
            index=index,
            description=StreamDescription.read(group),
            attributes=layout.attributes_of(group),
            n_configurations=int(group["n_committed"][()]),
            n_updates=int(group["history/n_committed"][()]),
            configuration_names=tuple(tables.columns_of(group, "configurations")),
            history_names=tuple(tables.columns_of(group, "history")),
            observable_names=tuple(tables.columns_of(group, "observables")),
            n_lattice_axes=n_lattice_axes,
        )

    def _read(self, read: Callable[[h5py.Group], T]) -> T:
        return read_snapshot(self.path, lambda file: read(layout.stream_group(file, self.index, str(self.path))))

    @property
    def trajectory(self) -> npt.NDArray[np.int64]:
        """Update number of every stored configuration, shape ``(n_configurations,)``."""
        rows = self._read(lambda group: tables.read(group["trajectory"], 0, self.n_configurations))
        return rows.astype(np.int64)

    def configurations(
        self, name: str | None = None, start: int = 0, stop: int | None = None, verify: bool = True
    ) -> npt.NDArray[np.generic]:
        """Read stored configurations, or another column stored with them.

        Parameters
        ----------
        name
            Column; the field by default.
        start, stop
            Rows, as in a slice.
        verify
            Check the field against its SciDAC checksums. (Every column is checked by HDF5's Fletcher-32 in any case.)

        Returns
        -------
        Array of shape ``(rows, chain, ...)`` in the stored type.

        Raises
        ------
        MissingError
            If there is no such column.
        CorruptionError
            If the data do not match a checksum; names the stream, the trajectory and the chain.
        """
        column = self.description.field_name if name is None else name
        first, last, _ = slice(start, stop).indices(self.n_configurations)
        last = max(first, last)
        if not self.n_configurations and column in {self.description.field_name, "action"}:
            raise MissingError(
                got=f"{self.path}: stream {self.index} without configurations",
                expected="at least one stored configuration",
                fix="check n_configurations first",
            )
        self._require(column, self.configuration_names, "configuration")
        verified = verify and column == self.description.field_name
        names = (column, "crc_suma", "crc_sumb") if verified else (column,)

        def read(group: h5py.Group) -> list[npt.NDArray[np.generic]]:
            arrays = [tables.read(group["configurations"][key], first, last) for key in names]
            return [*arrays, tables.read(group["trajectory"], first, last)]

        arrays = self._read(read)
        if verified:
            self._verify(*arrays)
        return arrays[0]

    def _verify(
        self,
        fields: npt.NDArray[np.generic],
        suma: npt.NDArray[np.generic],
        sumb: npt.NDArray[np.generic],
        trajectory: npt.NDArray[np.generic],
    ) -> None:
        found = scidac_checksums(fields, 2, self.n_lattice_axes)
        wrong = np.argwhere((found[0] != suma) | (found[1] != sumb))
        if len(wrong):
            row, chain = (int(k) for k in wrong[0])
            raise CorruptionError(
                got=f"{self.path}: stream {self.index}, trajectory {trajectory[row]}, chain {chain}: SciDAC checksum "
                f"{found[0][row, chain]:08x} {found[1][row, chain]:08x} ({len(wrong)} wrong of {found[0].size} read)",
                expected=f"{suma[row, chain]:08x} {sumb[row, chain]:08x}, as stored",
                fix="restore the file from a copy; verify=False reads the data as they are",
            )

    def history(self, name: str) -> npt.NDArray[np.generic]:
        """Column of the history, shape ``(n_updates,)`` or ``(n_updates, chain)``.

        Raises
        ------
        MissingError
            If there is no such column.
        """
        self._require(name, self.history_names, "history")
        return self._read(lambda group: tables.read(group["history"][name], 0, self.n_updates))

    def observable(self, name: str) -> npt.NDArray[np.generic]:
        """Observable measured in the run, shape ``(n_configurations, chain, ...)``.

        Raises
        ------
        MissingError
            If there is no such observable.
        """
        self._require(name, self.observable_names, "observable")
        return self._read(lambda group: tables.read(group["observables"][name], 0, self.n_configurations))

    def checkpoint(self) -> dict[str, CheckpointValue] | None:
        """Read the values of the newest valid checkpoint; None if there is none."""
        found = self._read(slots.newest)
        return None if found is None else dict(found.values)

    def _require(self, name: str, names: tuple[str, ...], what: str) -> None:
        if name not in names:
            raise MissingError(
                got=f"{what} column {name!r} of {self.path}, stream {self.index}",
                expected=f"one of {list(names)}",
                fix="use a name from the list",
            )


class Ensemble:
    """An ensemble file, as committed at this moment.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    MissingError, NotAnEnsembleError, TruncatedError, VersionError, CorruptionError
        If there is no readable ensemble at ``path``.
    LockedError
        If a writer does not let readers in.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.attributes: dict[str, object]
        self.description: EnsembleDescription
        self.streams: list[Stream]
        self.attributes, self.description, self.streams = read_snapshot(self.path, self._load)

    def _load(self, file: h5py.File) -> tuple[dict[str, object], EnsembleDescription, list[Stream]]:
        description = EnsembleDescription.read(file)
        n_streams = sum(name.startswith("stream_") for name in file)
        streams = [
            Stream.of(self.path, k, layout.stream_group(file, k, str(self.path)), len(description.lattice_size))
            for k in range(n_streams)
        ]
        return layout.attributes_of(file), description, streams
