"""Who may touch an ensemble file: one writer for its lifetime, readers between its commits.

The writer's lock is a ``flock`` on ``<file>.journal``. Readers and commits exclude each other by a ``flock`` on the
file itself, the lock that HDF5 takes, too. The kernel releases both when a process ends, however it ends: there are
no stale locks. POSIX systems only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from flowmc_ensembles.errors import LockedError

__all__ = ["WriterLock", "exclude_readers", "journal_path", "share"]

_POLL_SECONDS = 0.002


def journal_path(path: Path) -> Path:
    """Path of the journal beside the file ``path`` (links resolved, so that every name of a file has one journal)."""
    resolved = path.resolve()
    return resolved.with_name(resolved.name + ".journal")


def _try_lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


def _wait_for_lock(descriptor: int, operation: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _try_lock(descriptor, operation):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


class WriterLock:
    """The right to write a file, held until `release` or the end of the process.

    Parameters
    ----------
    path
        The file to be written; it need not exist yet.

    Raises
    ------
    LockedError
        If another writer, in this process or another, holds the file, or the file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = journal_path(path)
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                locked = _try_lock(descriptor, fcntl.LOCK_EX)
                problem = "another writer holds it"
            except OSError as error:
                locked, problem = False, f"its file system gives no locks ({error.strerror})"
            if not locked:
                os.close(descriptor)
                raise LockedError(
                    got=f"{path}: {problem}",
                    expected="one writer at a time",
                    fix="wait for or stop the other run (its processes hold the .journal file open), "
                    "or write to another path on a file system with locks",
                )
            if self._is_current(descriptor):
                break
            os.close(descriptor)  # the former writer removed it between our open and our lock
        self.descriptor = descriptor
        self._owner = os.getpid()

    def _is_current(self, descriptor: int) -> bool:
        try:
            present = self._path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(present, os.fstat(descriptor))

    def release(self) -> None:
        """Give the right back; the journal file goes unless it still holds an unfinished transaction."""
        if self.descriptor >= 0:
            # A forked child that ends must not remove the lock of its parent.
            if os.getpid() == self._owner and os.fstat(self.descriptor).st_size == 0:
                self._path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = -1


@contextlib.contextmanager
def exclude_readers(descriptor: int, path: Path, seconds: float) -> Iterator[bool]:
    """Keep readers out of the file while a commit puts its pages in place.

    A reader that does not go away does not stop a production run: after ``seconds`` the commit goes ahead (our
    readers notice and read again). Another *writer*, such as a program that opened the file with ``h5py.File(path,
    "r+")``, does stop it.

    Parameters
    ----------
    descriptor
        Open file descriptor of the file.
    path
        Its path, for messages.
    seconds
        How long to wait.

    Yields
    ------
    Whether the readers are out.

    Raises
    ------
    LockedError
        If another program has the file open for writing.
    """
    alone = _wait_for_lock(descriptor, fcntl.LOCK_EX, seconds)
    if not alone and not _try_lock(descriptor, fcntl.LOCK_SH):
        raise LockedError(
            got=f"{path}: another program has it open for writing",
            expected="one writer at a time",
            fix="close it there, then resume",
        )
    try:
        yield alone
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def share(descriptor: int, path: Path, seconds: float) -> Iterator[None]:
    """Keep commits out of the file while it is read.

    Raises
    ------
    LockedError
        If a writer keeps the file to itself for longer than ``seconds``.
    """
    try:
        shared = _wait_for_lock(descriptor, fcntl.LOCK_SH, seconds)
    except OSError:
        shared = True  # a file system without locks has no writer of ours
    if not shared:
        raise LockedError(
            got=f"{path}: another program has held it for writing for {seconds:g} s",
            expected="commits of milliseconds",
            fix="close it there, then read again",
        )
    yield
