"""Open an ensemble's HDF5 file to read a consistent state of it, or to change it all-or-nothing.

A transaction ends with

1. readers are kept out, and the new bytes past the old end of file are written (no old structure refers to them yet);
2. the changed pages of the old part go to ``<file>.journal``;
3. the pages are written in place and the file is cut to its new length;
4. the journal is emptied and readers are let in.

A process killed in 1 or 2 leaves the old file (with an unused tail). Killed in 3 or 4 it leaves a whole journal, and
whoever opens the file next puts its pages in place (a writer) or before its own eyes only (a reader). An exception
(disk full, no memory) leaves the old state; signals wait until the transaction is over.

This covers the end of the process at any instant, not the loss of power: only `TransactionFile.close` waits for the
disk. And it covers our own readers and writers: another HDF5 program that opens the file after a kill in 3, before a
writer of ours has, does not know of the journal.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import h5py

from flowmc_ensembles import layout
from flowmc_ensembles.errors import (
    CorruptionError,
    EnsembleError,
    LockedError,
    MissingError,
    NotAnEnsembleError,
    TruncatedError,
)
from flowmc_ensembles.interrupts import defer_signals
from flowmc_ensembles.journal import Journal, OverlayFile, read_exactly, write_all
from flowmc_ensembles.locks import WriterLock, exclude_readers, journal_path, share

__all__ = ["TransactionFile", "read_snapshot"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PATIENCE_SECONDS = 30.0
_ATTEMPTS = 5

T = TypeVar("T")


def _open_descriptor(path: Path, flags: int) -> int:
    if not path.is_file():
        raise MissingError(
            got=f"{path}: {'not a regular file' if path.exists() else 'no such file'}",
            expected="an existing ensemble",
            fix="check the path, or write the ensemble first",
        )
    return os.open(path, flags | os.O_CLOEXEC)


def _damaged(path: Path, error: Exception) -> EnsembleError:
    return CorruptionError(
        got=f"{path}: {error}",
        expected="an undamaged file",
        fix="restore it from a copy; `h5dump` and `h5ls` show what is still readable",
    )


@contextlib.contextmanager
def _hdf5(overlay: OverlayFile, mode: str, path: Path) -> Iterator[h5py.File]:
    """HDF5 on top of an overlay, with typed errors for everything that is wrong with the file."""
    size = overlay.seek(0, os.SEEK_END)
    overlay.seek(0)
    start = overlay.read(len(_SIGNATURE)) or b""
    if start != _SIGNATURE[: len(start)]:
        raise NotAnEnsembleError(
            got=f"{path}: not an HDF5 file (it begins with {start!r})",
            expected=f"the HDF5 signature {_SIGNATURE!r}",
            fix="give the path of a file written by flowmc",
        )
    try:
        with h5py.File(overlay, mode) as file:
            layout.check_header(file, str(path))
            yield file
    except EnsembleError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        # HDF5 compares the length with the one in the superblock, unless the superblock (96 bytes) itself is cut.
        if "truncated" in str(error) or size < 96:
            raise TruncatedError(
                got=f"{path}: {size} bytes, cut off ({error})",
                expected="the length in the file's own header",
                fix="copy the file again from its source, or restore it",
            ) from error
        raise _damaged(path, error) from error


def read_snapshot(path: Path, read: Callable[[h5py.File], T]) -> T:
    """Call ``read`` with the last committed state of an ensemble file, which is open only meanwhile.

    Parameters
    ----------
    path
        The ensemble.
    read
        Called with the open file; called again if a commit came in between.

    Returns
    -------
    What ``read`` returns.

    Raises
    ------
    MissingError, NotAnEnsembleError, TruncatedError, VersionError, CorruptionError
        If there is no readable ensemble at ``path``.
    LockedError
        If a writer does not let readers in, or commits during every attempt.
    """
    descriptor = _open_descriptor(path, os.O_RDONLY)
    try:
        with share(descriptor, path, _PATIENCE_SECONDS):
            for attempt in range(_ATTEMPTS):
                last = attempt == _ATTEMPTS - 1
                before = os.fstat(descriptor)
                overlay = OverlayFile(descriptor, _interrupted(path, descriptor))
                try:
                    with _hdf5(overlay, "r", path) as file:
                        result = read(file)
                except CorruptionError:
                    if last or not _changed(before, os.fstat(descriptor)):
                        raise
                    continue
                if not _changed(before, os.fstat(descriptor)):
                    return result
    finally:
        os.close(descriptor)
    raise LockedError(
        got=f"{path}: a commit during each of {_ATTEMPTS} readings",
        expected="readings shorter than the time between commits",
        fix="read fewer configurations at once, or wait for the end of the run",
    )


def _changed(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size)


def _interrupted(path: Path, descriptor: int) -> Journal | None:
    """Journal of a transaction of this very file that was not finished."""
    try:
        content = journal_path(path).read_bytes()
    except (FileNotFoundError, PermissionError):
        return None
    journal = Journal.decode(content)
    return journal if journal is not None and journal.belongs_to(descriptor) else None


class TransactionFile:
    """An existing ensemble file held for writing.

    Parameters
    ----------
    path
        The ensemble. A transaction that a former writer did not finish is finished first.
    lock
        The writer's lock, where the caller has it already; it is given back by `close`.

    Raises
    ------
    MissingError
        If there is no such file.
    LockedError
        If another writer holds it.
    """

    def __init__(self, path: Path, lock: WriterLock | None = None) -> None:
        self._path = path
        self._patience = _PATIENCE_SECONDS
        self._descriptor = _open_descriptor(path, os.O_RDWR)
        try:
            self._lock = WriterLock(path) if lock is None else lock
        except BaseException:
            os.close(self._descriptor)
            raise
        # Also when the writer is forgotten or the interpreter ends: the lock never outlives its owner.
        self._release = weakref.finalize(self, _release, self._descriptor, self._lock)
        self._finish_commit()

    @contextlib.contextmanager
    def reading(self) -> Iterator[h5py.File]:
        """Open the committed state for reading."""
        self._require_open()
        with _hdf5(OverlayFile(self._descriptor), "r", self._path) as file:
            yield file

    @contextlib.contextmanager
    def transaction(self) -> Iterator[h5py.File]:
        """Open the file for changes, committed at the end of the ``with`` block if it ends without an exception."""
        self._require_open()
        overlay = OverlayFile(self._descriptor)
        with defer_signals():
            with _hdf5(overlay, "r+", self._path) as file:
                yield file
            try:
                self._commit(overlay)
            except Exception:
                # What stopped the commit may be over, or have come after the journal was whole.
                if not self._finish_commit():
                    raise

    def _commit(self, overlay: OverlayFile) -> None:
        if overlay.failure is not None:
            raise overlay.failure  # HDF5 may have swallowed it
        journal = overlay.journal()
        with exclude_readers(self._descriptor, self._path, self._patience) as alone:
            # Somebody who keeps the file open for days is waited for once, not at every commit.
            self._patience = _PATIENCE_SECONDS if alone else 0.0
            try:
                write_all(self._descriptor, overlay.tail, journal.size_before)
                write_all(self._lock.descriptor, journal.encode(), 0)
            except BaseException:
                os.ftruncate(self._lock.descriptor, 0)
                os.ftruncate(self._descriptor, journal.size_before)
                raise
            journal.apply(self._descriptor)
            os.ftruncate(self._lock.descriptor, 0)

    def _finish_commit(self) -> bool:
        """Finish a commit that raised; whether it was finished. If that fails, too, nobody may go on from here."""
        try:
            return self._recover()
        except BaseException:
            self.close()
            raise

    def _recover(self) -> bool:
        """Finish what a whole journal says, forget anything else; whether there was one."""
        descriptor = self._lock.descriptor
        journal = Journal.decode(read_exactly(descriptor, os.fstat(descriptor).st_size, 0))
        whole = journal is not None and journal.belongs_to(self._descriptor)
        if journal is not None and whole:
            with exclude_readers(self._descriptor, self._path, self._patience):
                journal.apply(self._descriptor)
        os.ftruncate(descriptor, 0)
        return whole

    def close(self) -> None:
        """Wait for the disk and let other writers in."""
        self._release()

    def _require_open(self) -> None:
        if not self._release.alive:
            raise LockedError(
                got=f"{self._path}: its writer is closed",
                expected="a writer that still holds the file",
                fix="open it again with EnsembleWriter.open",
            )


def _release(descriptor: int, lock: WriterLock) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        lock.release()
