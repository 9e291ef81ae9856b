"""Exceptions of the analysis: every message says what was got, what was expected and how to fix it."""

from __future__ import annotations

__all__ = ["AnalysisError", "NonFiniteError", "SampleShapeError", "TooFewSamplesError", "ZeroWeightError"]


class AnalysisError(ValueError):
    """Base class of everything the analysis refuses.

    Parameters
    ----------
    got
        What was passed in.
    expected
        What is needed.
    fix
        What the user can do about it.
    """

    def __init__(self, *, got: str, expected: str, fix: str) -> None:
        super().__init__(f"got: {got}\nexpected: {expected}\nfix: {fix}")
        self.got = got
        self.expected = expected
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions (process pools need it).
        return _rebuild, (type(self), self.got, self.expected, self.fix)


def _rebuild(kind: type[AnalysisError], got: str, expected: str, fix: str) -> AnalysisError:
    return kind(got=got, expected=expected, fix=fix)


class SampleShapeError(AnalysisError):
    """An array has the wrong number of axes, or arrays that belong together differ in shape."""


class NonFiniteError(AnalysisError):
    """Data hold NaN, or an infinity where none is legal."""


class TooFewSamplesError(AnalysisError):
    """Fewer samples than the estimator can work with."""


class ZeroWeightError(AnalysisError):
    """Every importance weight is zero, so that nothing can be normalised."""
