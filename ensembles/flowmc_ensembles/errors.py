"""Typed errors of the ensemble store: each says what was got, what was expected, and the fix."""

from __future__ import annotations

__all__ = [
    "AppendError",
    "CorruptionError",
    "DescriptionError",
    "EnsembleError",
    "ExistsError",
    "LockedError",
    "MissingError",
    "NotAnEnsembleError",
    "TruncatedError",
    "VersionError",
]


class EnsembleError(ValueError):
    """Base class of every error this package raises on purpose.

    Parameters
    ----------
    got
        What was found.
    expected
        What would have been right.
    fix
        What the user can do about it.
    """

    def __init__(self, *, got: str, expected: str, fix: str) -> None:
        super().__init__(f"got: {got}\nexpected: {expected}\nfix: {fix}")
        self.got = got
        self.expected = expected
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments: the default would not survive the way back from a worker process.
        return _rebuild, (type(self), self.got, self.expected, self.fix)


def _rebuild(kind: type[EnsembleError], got: str, expected: str, fix: str) -> EnsembleError:
    return kind(got=got, expected=expected, fix=fix)


class MissingError(EnsembleError):
    """There is no such file, stream, table or column."""


class ExistsError(EnsembleError):
    """The target of a new ensemble exists; nothing is ever overwritten."""


class NotAnEnsembleError(EnsembleError):
    """The file is no HDF5 file, or an HDF5 file of another kind."""


class VersionError(EnsembleError):
    """The file was written in a newer format than this release knows."""


class CorruptionError(EnsembleError):
    """Stored data do not match their checksums, or the file's structure is damaged."""


class TruncatedError(CorruptionError):
    """The file is shorter than its own header says."""


class LockedError(EnsembleError):
    """Another writer holds the file."""


class DescriptionError(EnsembleError):
    """A description or an attribute cannot be stored as it is."""


class AppendError(EnsembleError):
    """A block has the wrong names, shapes, types or update numbers; nothing of it was written."""
