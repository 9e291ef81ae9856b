r"""z-scores of measurements against expectations, judged as a family.

Of :math:`n` independent standard normal numbers the largest modulus exceeds :math:`|z|` with probability

.. math::  p = 1 - \bigl(1 - 2\Phi(-|z|)\bigr)^n ,

Šidák's correction; for positively or negatively correlated normal numbers it is an upper bound. So a battery of
checks has one false-alarm rate, however many checks it has. Normal tails are assumed: with few effective samples,
or heavy tails, large z-scores are more frequent than this says.

References
----------
.. [1] Z. Šidák, J. Amer. Statist. Assoc. 62 (1967) 626.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.special

from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.estimate import Estimate, format_value_error

__all__ = ["Verdict", "ZScore", "compare_estimates", "family_p_value", "judge", "z_score"]


@dataclass(frozen=True)
class ZScore:
    """A measurement against its expectation; build it with `z_score` or `compare_estimates`.

    Parameters
    ----------
    name
        What was measured.
    value
        The measurement.
    expected
        What it should be.
    error
        One standard deviation of ``value - expected``.
    z
        ``(value - expected) / error``; NaN, which no judge passes, where the error is unknown.
    """

    name: str
    value: float
    expected: float
    error: float
    z: float

    def __str__(self) -> str:
        measured = format_value_error(self.value, self.error)
        return f"{self.name}: {measured}, expected {self.expected:.6g}, z = {self.z:+.2f}"


@dataclass(frozen=True)
class Verdict:
    """The judgement of a family of z-scores.

    Parameters
    ----------
    passed
        Whether ``p_value >= level``.
    p_value
        Probability of a largest ``|z|`` like this or larger if every expectation is true; an upper bound of it for a
        family of correlated scores.
    level
        False-alarm rate of the whole family.
    worst
        The z-score with the largest modulus (or one that is NaN).
    count
        Size of the family.
    """

    passed: bool
    p_value: float
    level: float
    worst: ZScore
    count: int

    @property
    def p_text(self) -> str:
        """The probability in writing, as the bound that it is for more than one score."""
        return f"p {'=' if self.count == 1 else '≤'} {self.p_value:.2g}"

    def __str__(self) -> str:
        word = "pass" if self.passed else "FAIL"
        noun = "z-score" if self.count == 1 else "z-scores"
        return f"{word}: {self.count} {noun}, family {self.p_text} (level {self.level:g}); worst {self.worst}"


def z_score(name: str, value: float, expected: float, error: float) -> ZScore:
    """Measure a deviation in standard deviations.

    An error of zero gives zero where the values are equal and infinity elsewhere.

    Examples
    --------
    >>> print(z_score("exp(-dH)", 1.012, 1.0, 0.008))
    exp(-dH): 1.0120(80), expected 1, z = +1.50
    """
    difference = value - expected
    if error > 0:
        z = difference / error
    elif error == 0 and not math.isnan(difference):
        z = 0.0 if difference == 0 else math.copysign(math.inf, difference)
    else:
        z = math.nan
    return ZScore(name, float(value), float(expected), float(error), float(z))


def compare_estimates(name: str, estimate: Estimate, reference: Estimate) -> ZScore:
    """Compare two independent estimates, their errors added in quadrature."""
    return z_score(name, estimate.value, reference.value, math.hypot(estimate.error, reference.error))


def family_p_value(z_values: npt.ArrayLike) -> float:
    """Probability that the largest of so many standard normal moduli is as large as here.

    Parameters
    ----------
    z_values
        z-scores, any shape. A NaN among them makes the result NaN.

    Raises
    ------
    AnalysisError
        If there are none.

    Examples
    --------
    >>> round(family_p_value([1.959963985]), 6), round(family_p_value([0.3, -1.959963985]), 6)
    (0.05, 0.0975)
    """
    z = np.asarray(z_values, dtype=np.float64)
    if z.size == 0:
        raise AnalysisError(got="no z-scores", expected="at least one", fix="do not judge an empty battery as passed")
    largest = float(np.max(np.abs(z)))
    if math.isnan(largest):
        return math.nan
    single = min(1.0, 2.0 * float(scipy.special.ndtr(-largest)))
    if single == 1.0:
        return 1.0
    return -math.expm1(z.size * math.log1p(-single))


def judge(zscores: Iterable[ZScore], level: float = 1e-3) -> Verdict:
    """Judge a family of z-scores by its largest modulus.

    Parameters
    ----------
    zscores
        The family; any NaN in it fails it.
    level
        False-alarm rate of the family.

    Raises
    ------
    AnalysisError
        If the family is empty.
    """
    family: Sequence[ZScore] = tuple(zscores)
    p_value = family_p_value([score.z for score in family])
    worst = max(family, key=lambda score: math.inf if math.isnan(score.z) else abs(score.z))
    return Verdict(p_value >= level, p_value, level, worst, len(family))
