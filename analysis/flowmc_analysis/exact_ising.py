r"""Exactly known results for the Ising model, in the conventions of the project.

:math:`H = -J\sum_x\sum_\mu s_xs_{x+\mu} - h\sum_xs_x` with one link for each site and direction (an extent of two has
its links twice), :math:`p = e^{-\beta H}/Z`, :math:`Z = \sum_{\{s\}}e^{-\beta H}`.

**Two dimensions, h = 0.** On a torus of n times m sites, with :math:`K = \beta J`, Kaufman found

.. math::

    Z = \tfrac12(2\sinh2K)^{nm/2}\Bigl[\prod_r2\cosh\tfrac m2\gamma_{2r+1} + \prod_r2\sinh\tfrac m2\gamma_{2r+1}
    + \prod_r2\cosh\tfrac m2\gamma_{2r} + \prod_r2\sinh\tfrac m2\gamma_{2r}\Bigr], \qquad r = 0 \ldots n-1,

with :math:`\cosh\gamma_l = \cosh2K\coth2K - \cos(\pi l/n)`, :math:`\gamma_l > 0` for :math:`l \ge 1` and
:math:`\gamma_0 = 2K + \ln\tanh K`, which is negative above the critical temperature: the last product changes its
sign there and vanishes at the critical point. Each product is carried as a logarithm with first and second derivative
in K, the factor of :math:`\gamma_0` apart from the others. Near the critical point :math:`\gamma_l` is small; it is
taken from :math:`2\sinh^2(\gamma_l/2) = (\sinh2K - 1)^2/\sinh2K + 2\sin^2(\pi l/2n)`, without cancellation.

On even extents :math:`Z(-J) = Z(J)`: a flip of one of the two sublattices changes the sign of every link. The
antiferromagnet then has the ln Z, energy and specific heat of the ferromagnet.

**Any small lattice.** All :math:`2^V` configurations are enumerated.

References
----------
.. [1] B. Kaufman, Phys. Rev. 76 (1949) 1232.
.. [2] A. E. Ferdinand, M. E. Fisher, Phys. Rev. 185 (1969) 832.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowmc_analysis.errors import AnalysisError

__all__ = ["EnumeratedIsing", "IsingExact", "critical_beta", "enumerate_ising", "ising_exact"]

Array = npt.NDArray[np.float64]

_LARGEST_ENUMERATION = 20  # sites: a million configurations
_LARGEST_REDUCED_COUPLING = 100.0  # colder, powers of sinh(2K) leave the range of float64


@dataclass(frozen=True)
class IsingExact:
    """Exact results for the Ising model without a field on a finite two-dimensional torus.

    Parameters
    ----------
    log_z
        ``ln Z``.
    energy
        ``<H>/V``.
    specific_heat
        ``beta^2 (<H^2> - <H>^2)/V``.
    entropy
        ``(ln Z + beta <H>)/V``, per site.
    free_energy
        ``-ln Z/(beta V)``, per site.
    """

    log_z: float
    energy: float
    specific_heat: float
    entropy: float
    free_energy: float


@dataclass(frozen=True)
class EnumeratedIsing:
    """The exact distribution of the Ising model on a small lattice.

    Parameters
    ----------
    states
        All configurations, shape ``(2**V, *lattice_size)``, int8.
    action
        ``S = beta H`` of each, shape ``(2**V,)``.
    probability
        Probability of each, shape ``(2**V,)``.
    log_z
        ``ln Z``.
    energy
        ``<H>/V``.
    specific_heat
        ``beta^2 (<H^2> - <H>^2)/V``.
    magnetisation, magnetisation_abs
        ``<m>`` and ``<|m|>`` with m the mean spin of a configuration.
    susceptibility
        ``V <m^2>``.
    binder_cumulant
        ``1 - <m^4>/(3 <m^2>^2)``.
    """

    states: npt.NDArray[np.int8]
    action: Array
    probability: Array
    log_z: float
    energy: float
    specific_heat: float
    magnetisation: float
    magnetisation_abs: float
    susceptibility: float
    binder_cumulant: float


def critical_beta(coupling: float = 1.0) -> float:
    """Inverse critical temperature of the infinite square lattice, ``ln(1 + sqrt(2)) / (2 J)``.

    Parameters
    ----------
    coupling
        Exchange coupling J > 0.

    Raises
    ------
    AnalysisError
        If the coupling is not positive.

    Examples
    --------
    >>> round(critical_beta(), 9)
    0.440686794
    """
    if not coupling > 0:
        raise AnalysisError(got=f"coupling = {coupling}", expected="coupling > 0", fix="take the ferromagnet")
    return 0.5 * math.log1p(math.sqrt(2.0)) / coupling


def ising_exact(lattice_size: tuple[int, int], beta: float, coupling: float = 1.0) -> IsingExact:
    """Solve the Ising model without a field on a periodic lattice in two dimensions, by Kaufman's formula.

    Parameters
    ----------
    lattice_size
        Two extents of at least two.
    beta
        Inverse temperature, positive.
    coupling
        Exchange coupling J; negative (the antiferromagnet) on even extents only.

    Returns
    -------
    The results. Rounding leaves about 1e-12 in ln Z per site and in its derivatives in K, so that an energy or a specific
    heat that is far smaller than one has fewer digits. The cost grows like the first extent.

    Raises
    ------
    AnalysisError
        If the lattice is not one of two dimensions, ``beta * abs(coupling)`` is not between 0 and 100, or the coupling
        is negative and an extent is odd.

    Examples
    --------
    >>> round(ising_exact((4, 4), 0.44).log_z, 8)
    15.50472654
    """
    if len(lattice_size) != 2 or min(lattice_size) < 2:
        raise AnalysisError(
            got=f"lattice_size = {lattice_size}",
            expected="two extents of at least two",
            fix="enumerate_ising solves small lattices of any shape",
        )
    strength = abs(coupling)
    if not (beta > 0 and 0 < beta * strength <= _LARGEST_REDUCED_COUPLING):
        raise AnalysisError(
            got=f"beta = {beta}, coupling = {coupling}",
            expected=f"beta > 0, coupling not zero, |beta coupling| at most {_LARGEST_REDUCED_COUPLING:g}",
            fix="the formula holds for coupled spins at a finite temperature",
        )
    if coupling < 0 and any(extent % 2 for extent in lattice_size):
        raise AnalysisError(
            got=f"coupling = {coupling} on lattice_size = {lattice_size}",
            expected="even extents, on which the antiferromagnet is the ferromagnet with one sublattice flipped",
            fix="enumerate_ising solves small lattices with any coupling",
        )
    volume = math.prod(lattice_size)
    reduced = beta * strength
    log_z, first, second = _kaufman(*lattice_size, reduced)
    energy = -strength * first / volume
    return IsingExact(
        log_z=log_z,
        energy=energy,
        specific_heat=reduced**2 * max(second, 0.0) / volume,  # deep in the cold it is round-off of either sign
        entropy=log_z / volume + beta * energy,
        free_energy=-log_z / (beta * volume),
    )


def enumerate_ising(
    lattice_size: tuple[int, ...], beta: float, coupling: float = 1.0, field: float = 0.0
) -> EnumeratedIsing:
    """Sum over all configurations of the Ising model on a small periodic lattice of any dimension.

    Parameters
    ----------
    lattice_size
        Extents, at most 20 sites in all.
    beta
        Inverse temperature.
    coupling
        Exchange coupling J, of either sign.
    field
        Magnetic field h.

    Raises
    ------
    AnalysisError
        If the lattice is empty or has more than 20 sites.

    Examples
    --------
    >>> one_spin = enumerate_ising((1,), beta=0.5, coupling=0.0, field=2.0)
    >>> round(one_spin.magnetisation, 6), round(math.tanh(1.0), 6)
    (0.761594, 0.761594)
    """
    volume = math.prod(lattice_size)
    if not lattice_size or min(lattice_size) < 1 or volume > _LARGEST_ENUMERATION:
        raise AnalysisError(
            got=f"lattice_size = {lattice_size}",
            expected=f"positive extents and at most {_LARGEST_ENUMERATION} sites",
            fix="in two dimensions without a field, ising_exact solves lattices of any size",
        )
    bits = np.arange(2**volume)[:, None] >> np.arange(volume) & 1
    states = (2 * bits - 1).astype(np.int8).reshape(-1, *lattice_size)
    axes = tuple(range(1, states.ndim))
    links = sum(
        (np.sum(states * np.roll(states, -1, axis), axis=axes, dtype=np.float64) for axis in axes),
        start=np.zeros(len(states)),
    )
    total = states.sum(axis=axes, dtype=np.float64)
    hamiltonian = -coupling * links - field * total
    action = beta * hamiltonian
    lowest = float(action.min())
    weight = np.exp(lowest - action)
    probability = weight / weight.sum()
    mean_action = float(probability @ action)
    m = total / volume
    m_squared = float(probability @ m**2)
    return EnumeratedIsing(
        states=states,
        action=action,
        probability=probability,
        log_z=math.log(float(weight.sum())) - lowest,
        energy=float(probability @ hamiltonian) / volume,
        specific_heat=float(probability @ (action - mean_action) ** 2) / volume,
        magnetisation=float(probability @ m),
        magnetisation_abs=float(probability @ np.abs(m)),
        susceptibility=volume * m_squared,
        binder_cumulant=1.0 - float(probability @ m**4) / (3.0 * m_squared**2),
    )


def _kaufman(n: int, m: int, k: float) -> tuple[float, float, float]:
    """``ln Z`` and its first two derivatives in ``K``."""
    s, c = math.sinh(2.0 * k), math.cosh(2.0 * k)
    odd = _gamma(np.arange(1, 2 * n, 2), n, s, c)
    even = _gamma(np.arange(2, 2 * n, 2), n, s, c)
    # gamma_0 with its derivatives; at the critical point it is zero, and so is the last product.
    zero = (2.0 * k + math.log(math.tanh(k)), 2.0 + 2.0 / s, -4.0 * c / s**2)
    x, x1, x2 = (0.5 * m * value for value in zero)
    damped = math.exp(-2.0 * abs(x))
    # 2 cosh x and 2 sinh x divided by the constant exp(|x|).
    cosh, sinh = 1.0 + damped, math.copysign(-math.expm1(-2.0 * abs(x)), x)
    lines = ((1.0, 0.0, 0.0), (cosh, sinh * x1, cosh * x1**2 + sinh * x2), (sinh, cosh * x1, sinh * x1**2 + cosh * x2))
    removed = np.array([abs(x), 0.0, 0.0])
    # Each product: a plain factor with its derivatives, times the exponential of a logarithm with its derivatives.
    terms = [
        (lines[0], _log_cosh(odd, m)),
        (lines[0], _log_sinh(odd, m)),
        (lines[1], _log_cosh(even, m) + removed),
        (lines[2], _log_sinh(even, m) + removed),
    ]
    # Relative to the largest product, so that neither exponentials nor squares of large slopes are ever formed.
    reference = max((log for _, log in terms), key=lambda log: float(log[0]))
    value = slope = curvature = 0.0
    for (f, f1, f2), (log, log1, log2) in ((line, log - (reference[0], reference[1], 0.0)) for line, log in terms):
        weight = math.exp(log)
        value += weight * f
        slope += weight * (f1 + f * log1)
        curvature += weight * (f2 + 2.0 * f1 * log1 + f * (log2 + log1**2))
    volume = n * m
    return (
        0.5 * volume * math.log(2.0 * s) + float(reference[0]) + math.log(0.5 * value),
        float(volume * c / s + reference[1] + slope / value),
        float(-2.0 * volume / s**2 + curvature / value - (slope / value) ** 2),
    )


def _gamma(number: npt.NDArray[np.int64], n: int, s: float, c: float) -> Array:
    """``gamma_l`` and its first two derivatives in ``K`` for ``l >= 1``, shape ``(3, len(number))``."""
    half = ((s - 1.0) ** 2 / s + 2.0 * np.sin(0.5 * np.pi * number / n) ** 2) / 2.0  # sinh^2(gamma / 2)
    gamma = 2.0 * np.arcsinh(np.sqrt(half))
    sinh, cosh = 2.0 * np.sqrt(half * (1.0 + half)), 1.0 + 2.0 * half
    # cosh gamma = s + 1/s - cos: differentiate with s' = 2 c, s'' = 4 s.
    first = 2.0 * c * (1.0 - s**-2) / sinh
    second = (4.0 * s * (1.0 - s**-2) + 8.0 * c**2 * s**-3 - cosh * first**2) / sinh
    return np.stack([gamma, first, second])


def _log_cosh(gamma: Array, m: int) -> Array:
    """``sum ln 2 cosh(m gamma / 2)`` with its derivatives, shape ``(3,)``."""
    x, x1, x2 = 0.5 * m * gamma
    damped = np.exp(-2.0 * x)
    tanh, sech_squared = (1.0 - damped) / (1.0 + damped), 4.0 * damped / (1.0 + damped) ** 2
    parts = (x + np.log1p(damped), tanh * x1, sech_squared * x1**2 + tanh * x2)
    return np.array([part.sum() for part in parts])


def _log_sinh(gamma: Array, m: int) -> Array:
    """``sum ln 2 sinh(m gamma / 2)`` with its derivatives, shape ``(3,)``."""
    x, x1, x2 = 0.5 * m * gamma
    damped, complement = np.exp(-2.0 * x), -np.expm1(-2.0 * x)
    coth, csch_squared = (1.0 + damped) / complement, 4.0 * damped / complement**2
    parts = (x + np.log(complement), coth * x1, coth * x2 - csch_squared * x1**2)
    return np.array([part.sum() for part in parts])
