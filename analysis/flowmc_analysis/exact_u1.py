r"""Exactly known results for U(1) gauge theory on a two-dimensional torus, in the conventions of the project.

With :math:`S = -\beta\sum_x\cos P_x` and the Haar measure :math:`\prod d\theta/2\pi` of the links, the V plaquette angles
are independent but for one condition: every link is in two of them with opposite signs, so that :math:`\sum_xP_x = 0`
modulo :math:`2\pi`. By the Fourier series of this condition

.. math::

    Z = \sum_{n=-\infty}^\infty I_n(\beta)^V, \qquad
    \bigl\langle e^{i\sum_{x\in A}P_x}\bigr\rangle = \frac1Z\sum_nI_n^{V-|A|}I_{n+1}^{|A|}

for any set A of plaquettes: a rectangle gives the Wilson loop, the strip between two Polyakov loops their correlation,
one plaquette the mean plaquette :math:`\partial_\beta\ln Z/V`.

**Topology.** With plaquette angles brought to :math:`(-\pi, \pi]`, :math:`Q = \sum_xP_x/2\pi` is a whole number, and

.. math::

    Z(\theta) = \sum_QZ_Qe^{i\theta Q} = \sum_nf(n + \tfrac\theta{2\pi})^V, \qquad
    f(\nu) = \frac1{2\pi}\int_{-\pi}^\pi e^{\beta\cos P}\cos(\nu P)\,dP,

with :math:`f(n) = I_n`. Since :math:`|Q| \le V/2`, :math:`Z(\theta)` is a trigonometric polynomial, and the distribution
of Q comes from finitely many values of :math:`\theta`. Its second moment is :math:`-Z''(0)/Z(0)`, with the derivatives
of f under the integral. The integrals are taken by Gauss's rule on half of the interval.

References
----------
.. [1] A. A. Migdal, Sov. Phys. JETP 42 (1975) 413.
.. [2] U.-J. Wiese, Nucl. Phys. B 318 (1989) 153 (topology).
.. [3] C. Bonati, P. Rossi, Phys. Rev. D 99 (2019) 054503, arXiv:1901.09830 (Z(θ) on finite lattices).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.special

from flowmc_analysis.errors import AnalysisError

__all__ = ["U1Exact", "u1_charge_distribution", "u1_exact", "u1_flux_mean", "u1_polyakov_loop_squared"]

Array = npt.NDArray[np.float64]

_SMALLEST_BESSEL = 1e-290  # below, float64 loses digits; such terms are nothing beside I_0
_SMALLEST_EXTENT = 2
_NEGLIGIBLE_TERM = 1e-18
_MOST_TERMS = 512
_STANDARD_DEVIATIONS = 12.0


@dataclass(frozen=True)
class U1Exact:
    """Exact results for U(1) gauge theory on a finite two-dimensional torus.

    Parameters
    ----------
    log_z
        ``ln Z``, with the Haar measure.
    plaquette
        ``<cos P>``.
    action_density
        ``<S>/V``.
    charge_squared
        ``<Q^2>`` of the topological charge.
    topological_susceptibility
        ``<Q^2>/V``.
    """

    log_z: float
    plaquette: float
    action_density: float
    charge_squared: float
    topological_susceptibility: float


def u1_exact(lattice_size: tuple[int, int], beta: float) -> U1Exact:
    """Solve U(1) gauge theory on a periodic lattice in two dimensions.

    Parameters
    ----------
    lattice_size
        Two extents of at least two.
    beta
        Inverse coupling, positive.

    Returns
    -------
    The results. Rounding leaves about 1e-14 V in ``ln Z`` and 1e-15 V in ``<Q^2>``, which has fewer digits where it is
    far smaller than one.

    Raises
    ------
    AnalysisError
        If the lattice is not one of two dimensions or beta is not positive.

    Examples
    --------
    >>> solution = u1_exact((8, 8), beta=2.0)
    >>> round(solution.log_z, 8), round(solution.plaquette, 9), round(solution.charge_squared, 6)
    (52.73558666, 0.697774658, 1.239299)
    """
    volume = _volume(lattice_size, beta)
    plaquette = u1_flux_mean(lattice_size, beta, 1)
    charge_squared = _charge_squared(volume, beta)
    return U1Exact(
        log_z=float(scipy.special.logsumexp(volume * _log_bessel(beta))),
        plaquette=plaquette,
        action_density=-beta * plaquette,
        charge_squared=charge_squared,
        topological_susceptibility=charge_squared / volume,
    )


def u1_flux_mean(lattice_size: tuple[int, int], beta: float, area: int) -> float:
    """Mean of ``cos(sum P)`` over a number of plaquettes: the Wilson loop around a rectangle of that area.

    Parameters
    ----------
    lattice_size, beta
        As in `u1_exact`.
    area
        Number of plaquettes, from 0 to V.

    Raises
    ------
    AnalysisError
        As in `u1_exact`, or if the area does not fit on the lattice.

    Examples
    --------
    >>> round(u1_flux_mean((8, 8), 2.0, 4), 6), round(0.697774658**4, 6)  # nearly the area law
    (0.237061, 0.237061)
    """
    volume = _volume(lattice_size, beta)
    if not 0 <= area <= volume:
        raise AnalysisError(
            got=f"an area of {area} plaquettes on lattice_size = {lattice_size}",
            expected=f"0 to {volume}",
            fix="a loop cannot enclose more than the torus has",
        )
    log_bessel = _log_bessel(beta)
    # The sum over n is the same from both ends: <exp(i flux)> is real.
    terms = (volume - area) * log_bessel[:-1] + area * log_bessel[1:]
    return math.exp(float(scipy.special.logsumexp(terms) - scipy.special.logsumexp(volume * log_bessel)))


def u1_polyakov_loop_squared(lattice_size: tuple[int, int], beta: float) -> float:
    """Mean of ``|L|^2``, where L is the Polyakov loop (around time) averaged over space.

    Two loops at a distance r enclose r T plaquettes; the mean is that of their correlation over all distances.

    Parameters
    ----------
    lattice_size, beta
        As in `u1_exact`.

    Raises
    ------
    AnalysisError
        As in `u1_exact`.
    """
    time, space = lattice_size
    return float(np.mean([u1_flux_mean(lattice_size, beta, r * time) for r in range(space)]))


def u1_charge_distribution(lattice_size: tuple[int, int], beta: float) -> tuple[npt.NDArray[np.int64], Array]:
    """Probabilities of the topological charges.

    Parameters
    ----------
    lattice_size, beta
        As in `u1_exact`.

    Returns
    -------
    The charges Q, ascending and symmetric around zero, and their probabilities. These have absolute errors of rounding,
    about 1e-14, and of 1e-11 on four plaquettes at small beta, for want of terms. Charges beyond twelve standard
    deviations are left out.

    Raises
    ------
    AnalysisError
        As in `u1_exact`.

    Examples
    --------
    >>> charges, probabilities = u1_charge_distribution((4, 4), 2.0)
    >>> bool(abs(probabilities.sum() - 1.0) < 1e-12), round(float(charges**2 @ probabilities), 8)
    (True, 0.29063611)
    """
    volume = _volume(lattice_size, beta)
    # A single angle spreads no wider than evenly, with <P^2> = pi^2/3: so <Q^2> <= V/12.
    largest = min(volume // 2, math.ceil(_STANDARD_DEVIATIONS * math.sqrt(volume / 12.0)))
    charges = np.arange(-largest, largest + 1)
    fractions = np.arange(charges.size) / charges.size  # theta / 2 pi
    n = _terms(volume, beta)
    ratio = _Integrals(beta, float(n[-1] + 1)).moments(n[:, None] + fractions, derivatives=False)[0]
    partition = np.sum(ratio**volume, axis=0)
    phases = np.cos(2.0 * np.pi * charges[:, None] * fractions)
    return charges, np.maximum(phases @ partition / (charges.size * partition[0]), 0.0)


def _volume(lattice_size: tuple[int, int], beta: float) -> int:
    if len(lattice_size) != 2 or min(lattice_size) < _SMALLEST_EXTENT:
        raise AnalysisError(
            got=f"lattice_size = {lattice_size}",
            expected="two extents of at least two",
            fix="the solution is that of a two-dimensional torus",
        )
    if not (beta > 0 and math.isfinite(beta)):
        raise AnalysisError(got=f"beta = {beta}", expected="beta > 0", fix="correct the inverse coupling")
    return math.prod(lattice_size)


def _log_bessel(beta: float) -> Array:
    """``ln I_n(beta)`` for n from -N to N, where N is the last that float64 holds beside ``exp(beta)``."""
    scaled = scipy.special.ive(np.arange(_orders(beta)), beta)
    positive = np.log(scaled[scaled > _SMALLEST_BESSEL]) + beta
    return np.concatenate([positive[:0:-1], positive])


def _orders(beta: float) -> int:
    """More orders than I_n(beta) needs to leave float64: I_n falls like a Gaussian of variance beta, then like 1/n!."""
    return 200 + math.ceil(40.0 * math.sqrt(beta))


def _charge_squared(volume: int, beta: float) -> float:
    n = np.arange(-(_log_bessel(beta).size // 2), _log_bessel(beta).size // 2 + 1)
    f, f1, f2 = _Integrals(beta, float(n[-1])).moments(n.astype(np.float64), derivatives=True)
    second = volume * (f ** (volume - 1) * f2 + (volume - 1) * f ** (volume - 2) * f1**2)
    return max(0.0, -float(np.sum(second) / np.sum(f**volume)) / (4.0 * math.pi**2))


def _terms(volume: int, beta: float) -> npt.NDArray[np.int64]:
    """Numbers n beyond which ``f(n + theta/2pi)^V`` is negligible beside ``f(0)^V``."""
    largest = 8
    while largest < _MOST_TERMS:
        edge = _Integrals(beta, largest + 1.0).moments(largest + np.linspace(-1.0, 1.0, 9), derivatives=False)[0]
        if largest * float(np.max(np.abs(edge))) ** volume < _NEGLIGIBLE_TERM:
            break
        largest *= 2
    return np.arange(-largest, largest + 1)


class _Integrals:
    """The integrals ``f(nu)/f(0)`` and their derivatives in nu by Gauss's rule, up to a largest ``|nu|``."""

    def __init__(self, beta: float, largest: float) -> None:
        points, weights = scipy.special.roots_legendre(64 + math.ceil(4.0 * math.sqrt(beta) + largest))
        self.angle = 0.5 * math.pi * (points + 1.0)
        weight = weights * np.exp(-2.0 * beta * np.sin(0.5 * self.angle) ** 2)
        self.weight = weight / weight.sum()

    def moments(self, nu: Array, *, derivatives: bool) -> Array:
        """Give f, and its first two derivatives, all over f(0): shape ``(1, ...)`` or ``(3, ...)``."""
        phase = nu[..., None] * self.angle
        found = [np.cos(phase) @ self.weight]
        if derivatives:
            found += [-np.sin(phase) @ (self.weight * self.angle), -np.cos(phase) @ (self.weight * self.angle**2)]
        return np.stack(found)
