"""Learning-rate schedules: pure functions of the step, so that a resumed training needs no scheduler state."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, exp, log, pi

__all__ = ["SCHEDULES", "Schedule", "constant", "cosine", "exponential", "linear"]

LAST_OF_EXPONENTIAL = 0.01
"""What an exponential schedule ends at."""

Schedule = Callable[[float], float]
"""Maps the fraction of the training that is done, in [0, 1], to a factor of the learning rate."""


def constant(fraction: float) -> float:  # noqa: ARG001 - part of the signature of schedules
    """Return 1."""
    return 1.0


def cosine(fraction: float) -> float:
    """Return ½ (1 + cos π t): from 1 to 0, flat at both ends (Loshchilov and Hutter, arXiv:1608.03983, eq. (5)).

    >>> [round(cosine(t), 3) for t in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + cos(pi * fraction))


def linear(fraction: float) -> float:
    """Return 1 − t.

    >>> [linear(t) for t in (0.0, 0.25, 1.0)]
    [1.0, 0.75, 0.0]
    """
    return 1.0 - fraction


def exponential(fraction: float) -> float:
    """Return 0.01^t: the same factor from step to step, down to 1 % at the end.

    >>> [round(exponential(t), 3) for t in (0.0, 0.5, 1.0)]
    [1.0, 0.1, 0.01]
    """
    return exp(fraction * log(LAST_OF_EXPONENTIAL))


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "linear": linear,
}
"""Every schedule by its name in run descriptions."""
