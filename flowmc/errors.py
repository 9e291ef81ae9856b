"""Typed errors of the core: each says what was got, what was expected, and how to mend it.

Make a new class only where a caller would catch it apart from the others; name it after the thing that is wrong.
"""

from __future__ import annotations

__all__ = [
    "CertificateError",
    "ConfigError",
    "FlowFileError",
    "FlowmcError",
    "LatticeMismatchError",
    "NonFiniteError",
    "OutputError",
    "ParameterError",
    "PrecisionError",
    "RunExistsError",
    "StateError",
    "TheoryMismatchError",
]


class FlowmcError(ValueError):
    """Base of the core's errors.

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
        super().__init__(got, expected, fix)
        self.got = got
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        return f"got: {self.got}\nexpected: {self.expected}\nfix: {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions (multiprocessing needs it).
        return _rebuild, (type(self), self.got, self.expected, self.fix)


def _rebuild(kind: type[FlowmcError], got: str, expected: str, fix: str) -> FlowmcError:
    return kind(got=got, expected=expected, fix=fix)


class ParameterError(FlowmcError):
    """A parameter of a theory, flow, kernel or run has no meaning (negative coupling, zero steps, ...)."""


class ConfigError(FlowmcError):
    """A run description (TOML) is malformed: unknown key, wrong type, inconsistent sections."""


class LatticeMismatchError(FlowmcError):
    """Two parts of a run live on different lattices, or an array has the wrong shape."""


class TheoryMismatchError(FlowmcError):
    """A flow or ensemble belongs to another action than the one of this run."""


class PrecisionError(FlowmcError):
    """Double precision was asked for and is not there (JAX truncates silently unless x64 is on)."""


class NonFiniteError(FlowmcError):
    """A state, weight or action is NaN or infinite where that cannot be legal."""


class StateError(FlowmcError):
    """The state of a chain contradicts itself: its action is not the action of its field."""


class FlowFileError(FlowmcError):
    """A flow, training checkpoint or log cannot be read: missing, truncated, not one of ours, or with bad weights."""


class CertificateError(FlowmcError):
    """A flow failed its certificate and is refused for production."""


class OutputError(FlowmcError):
    """A target cannot be written: a folder in its place, a file where a folder should be, or no permission."""


class RunExistsError(FlowmcError):
    """The target of a run exists already, and overwriting it was not asked for."""
