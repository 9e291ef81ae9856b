"""The exactness kit, which asks whether a kernel leaves its target invariant.

**Exact start.** Draw x₀ exactly from the target π, apply the kernel, and compare what comes out with what is known of π.
If πP = π, every expectation is unchanged; any deviation is a bug, however small its effect on a single chain would be.
Many independent chains make the test sharp, and there is no thermalisation and no autocorrelation to argue about.

**Finite spaces.** On a handful of states the transition matrix itself can be built, and πP = π and detailed balance hold
to rounding. `acceptance_probabilities` measures the acceptance of a kernel that takes its uniform numbers as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from flowmc.errors import ParameterError

__all__ = ["ExactStart", "acceptance_probabilities", "counts_p_value", "exact_start_scores"]

Array = NDArray[np.float64]

ROUNDING = 1e-12
# Below this expected number a count is not near enough to normal.
RARE = 10


@dataclass(frozen=True)
class ExactStart:
    """A target that can be drawn from, and what is measured of it.

    Parameters
    ----------
    draw
        Draws ``n`` independent fields of the target, (n, *field_shape).
    observables
        Functions of fields, each (n,); their distribution under the target is compared.
    """

    draw: Callable[[np.random.Generator, int], NDArray[Any]]
    observables: Mapping[str, Callable[[NDArray[Any]], Array]]


def exact_start_scores(
    target: ExactStart, kernel: Callable[[NDArray[Any]], NDArray[Any]], generator: np.random.Generator, n: int
) -> dict[str, float]:
    """Return z-scores of observables after a kernel was applied to exact draws of its target.

    Parameters
    ----------
    target
        The distribution that the kernel should leave invariant.
    kernel
        Maps fields (n, *field_shape) to fields, one transition (or several) of ``n`` independent chains.
    generator
        Source of the draws.
    n
        Number of chains.

    Returns
    -------
    For each observable two standard normal scores, of its mean and of its second moment: the kernel's output against
    fresh draws that did not go through it.

    Raises
    ------
    ParameterError
        If there are too few chains for normal errors.
    """
    if n < 100:
        raise ParameterError(got=f"n = {n} chains", expected="at least 100", fix="use more chains")
    after, fresh = kernel(target.draw(generator, n)), target.draw(generator, n)
    scores = {}
    for name, observable in target.observables.items():
        one, other = observable(after), observable(fresh)
        for moment in (1, 2):
            a, b = one**moment, other**moment
            error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / n)
            # What is the same number everywhere, as the square of a spin is, deviates by rounding, which is no noise.
            floor = ROUNDING * max(1.0, float(np.abs(b).max()))
            scores[f"{name}^{moment}"] = float((a.mean() - b.mean()) / max(error, floor))
    return scores


def acceptance_probabilities(accepts: Callable[[Array], NDArray[np.bool_]], n: int) -> Array:
    """Measure the acceptance probability of ``n`` proposals to rounding, by bisection on the uniform number.

    Parameters
    ----------
    accepts
        Maps logarithms of uniform numbers, (n,), to whether each proposal is accepted; accepting must be monotone.
    n
        Number of proposals.

    Returns
    -------
    The probabilities, (n,).
    """
    low, high = np.zeros(n), np.ones(n)
    for _ in range(60):
        middle = 0.5 * (low + high)
        yes = accepts(np.log(middle))
        low, high = np.where(yes, middle, low), np.where(yes, high, middle)
    return 0.5 * (low + high)


def counts_p_value(counts: NDArray[np.integer[Any]], expected: NDArray[np.floating[Any]]) -> float:
    """Return the p-value of Pearson's χ² test of independent draws that fall into cells.

    Parameters
    ----------
    counts
        Number of draws in each cell, (cells,).
    expected
        Expected number in each cell, (cells,), with the same sum; cells with few are counted together.

    Returns
    -------
    Probability of a χ² as large or larger; zero where a draw fell into an impossible cell.
    """
    if np.any(counts[expected <= 0]):
        return 0.0
    rare = expected < RARE
    grouped = np.append(expected[~rare], expected[rare].sum())
    found = np.append(counts[~rare], counts[rare].sum())
    possible = grouped > 0
    deviation = (found - grouped)[possible] ** 2 / grouped[possible]
    return float(chi2.sf(deviation.sum(), max(deviation.size - 1, 1)))
