"""Learning-rate schedules: pure functions of the step, so that a resumed training needs no scheduler state."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

__all__ = ["SCHEDULES", "Schedule", "constant", "cosine"]

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


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine}
"""Every schedule by its name in run descriptions."""
