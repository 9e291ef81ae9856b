r"""Exactly known results for a particle in a double well, at any spacing of the lattice and in the continuum.

With :math:`S = \Delta\sum_i[\frac\lambda4x_i^4 - \frac m2x_i^2 + \frac m2(\frac{x_i-x_{i-1}}\Delta)^2]` on a periodic
lattice of N sites, :math:`\Delta = T/N`, and the flat measure :math:`\prod_idx_i`,

.. math::

    Z = \mathrm{Tr}\,\mathcal T^N = \sum_n\tau_n^N, \qquad
    \mathcal T(x, y) = e^{-\frac\Delta2V(x)}\,e^{-\frac m{2\Delta}(x-y)^2}\,e^{-\frac\Delta2V(y)}, \qquad
    V(x) = \frac\lambda4x^4 - \frac m2x^2 .

The energies :math:`E_n = -\frac1\Delta\ln(\tau_n\sqrt{m/2\pi\Delta})` become the eigenvalues of :math:`H = \frac{p^2}{2m}
+ V` as :math:`\Delta\to0`, with errors of order :math:`\Delta^2`. With the matrix elements :math:`x_{nk}` between the
eigenvectors,

.. math::

    \langle x_0x_t\rangle = \frac1Z\sum_{nk}\tau_n^{N-t}\,x_{nk}^2\,\tau_k^t .

By the symmetry :math:`x\to-x` odd moments vanish and :math:`x > 0` has probability 1/2, which chains in one well miss;
by partial integration :math:`\langle x\,\partial S/\partial x\rangle = 1`, so that :math:`\langle S\rangle/N = \frac12 -
\frac{\Delta\lambda}4\langle x^4\rangle`.

**Accuracy.** On a uniform grid of spacing h the kernel is a matrix. The integrands are entire and fall faster than
exponentially, so that the trapezoidal rule converges exponentially: its relative error is :math:`2e^{-\pi^2/ah^2}` for
:math:`e^{-ax^2}` and about :math:`e^{-\frac38(2\pi/h)^{4/3}c^{-1/3}}` for :math:`e^{-cx^4/4}`, and h is taken so that
both are below :math:`10^{-15}`. The grid ends where
:math:`e^{-\Delta(V-V_{min})} < e^{-60}`, a bound on what a whole path can gain there. What remains is rounding, about
:math:`10^{-15}N` in :math:`\ln Z` and :math:`10^{-14}` in moments. Even and odd states are diagonalised apart, which
keeps a small gap :math:`E_1 - E_0` apart from rounding, down to about :math:`10^{-15}/\Delta`.

References
----------
.. [1] B. Máté, F. Fleuret, Transactions on Machine Learning Research (2023), arXiv:2301.07388 (the action).
.. [2] M. Creutz, B. Freedman, Ann. Phys. 132 (1981) 427 (the lattice and its transfer matrix).
.. [3] L. N. Trefethen, J. A. C. Weideman, SIAM Review 56 (2014) 385 (the trapezoidal rule).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg

from flowmc_analysis.errors import AnalysisError

__all__ = ["DoubleWellExact", "double_well_exact", "double_well_positions"]

Array = npt.NDArray[np.float64]

_SMALLEST_EXTENT = 2
_LARGEST_MATRIX = 3000
_NEGLIGIBLE_EXPONENT = 60.0
# Grid spacing in units of 1/sqrt(a) for the narrowest factor exp(-a x^2): its error is 2 exp(-pi^2 / 0.4^2).
_SPACING = 0.4
# Part of the largest eigenvalue below which rounding decides: such states carry no energy.
_RESOLVED = 1e-12


@dataclass(frozen=True)
class DoubleWellExact:
    """Exact results for a particle in a double well on one lattice.

    Parameters
    ----------
    log_z
        ``ln Z`` with the flat measure.
    phi_squared, phi_fourth
        ``<x^2>`` and ``<x^4>`` at one site.
    action_density
        ``<S>/N``.
    susceptibility
        ``N <m^2>`` of the mean m of x over the lattice.
    two_point_zero_momentum
        ``<x_0 x_t>``, shape ``(N,)``; it sums to the susceptibility.
    energies
        Energies of the transfer matrix, ascending, even and odd states alternately; those that float64 resolves, the
        highest of them to a few digits.
    """

    log_z: float
    phi_squared: float
    phi_fourth: float
    action_density: float
    susceptibility: float
    two_point_zero_momentum: Array
    energies: Array

    @property
    def gap(self) -> float:
        """Energy ``E_1 - E_0`` of the tunnelling between the wells, in units of inverse time; NaN if not resolved."""
        return float(self.energies[1] - self.energies[0]) if self.energies.size > 1 else math.nan


def double_well_exact(
    n_sites: int, extent: float, mass: float, coupling: float, refinement: float = 1.0
) -> DoubleWellExact:
    """Solve the double well on a periodic lattice, by diagonalising the transfer matrix on a grid of positions.

    Parameters
    ----------
    n_sites
        Number N of sites, at least two.
    extent
        Extent T of imaginary time; the spacing of the lattice is T/N.
    mass
        Mass m of the particle and coefficient of its inverted parabola, positive.
    coupling
        Quartic coupling, positive.
    refinement
        Factor by which the grid is finer, and the exponent at its end larger, than accuracy needs. Vary it to see the
        accuracy.

    Raises
    ------
    AnalysisError
        If a number is out of range, or the grid would have more than 6000 points.

    Examples
    --------
    >>> solution = double_well_exact(16, extent=4.0, mass=1.5, coupling=1.0)
    >>> round(solution.log_z, 8), round(solution.phi_squared, 8), round(solution.phi_fourth, 8)
    (1.05092446, 1.01283913, 1.97140201)
    """
    numbers = {"extent": extent, "mass": mass, "coupling": coupling, "refinement": refinement}
    if n_sites < _SMALLEST_EXTENT or not all(math.isfinite(number) and number > 0.0 for number in numbers.values()):
        raise AnalysisError(
            got=", ".join(f"{name} = {number}" for name, number in {"n_sites": n_sites, **numbers}.items()),
            expected="at least two sites, the others positive and finite",
            fix="correct them",
        )
    spacing = extent / n_sites
    x, step = double_well_positions(spacing, mass, coupling, refinement)
    depth = mass**2 / (4.0 * coupling)
    half = -0.5 * spacing * (0.25 * coupling * x**4 - 0.5 * mass * x**2 + depth)
    stiffness = 0.5 * mass / spacing
    outer = step * np.exp(half[:, None] + half[None, :])
    near, far = np.subtract.outer(x, x), np.add.outer(x, x)
    direct, reflected = outer * np.exp(-stiffness * near**2), outer * np.exp(-stiffness * far**2)
    even, even_states = scipy.linalg.eigh(direct + reflected)
    odd, odd_states = scipy.linalg.eigh(direct - reflected)
    largest = even[-1]  # the ground state has no node
    # A positive kernel: negative values are rounding.
    even, odd = np.maximum(even / largest, 0.0), np.maximum(odd / largest, 0.0)
    times = np.arange(n_sites + 1)[:, None]
    even_powers, odd_powers = even**times, odd**times
    trace = float(even_powers[-1].sum() + odd_powers[-1].sum())

    def one_site(values: Array) -> float:
        occupied = even_states**2 @ even_powers[-1] + odd_states**2 @ odd_powers[-1]
        return float(occupied @ values) / trace

    squares = (even_states.T @ (x[:, None] * odd_states)) ** 2
    passing = np.einsum("tn,tn->t", even_powers[::-1] @ squares, odd_powers)
    two_point = (passing + passing[::-1])[:n_sites] / trace
    phi_fourth = one_site(x**4)
    return DoubleWellExact(
        log_z=n_sites * (math.log(largest) + spacing * depth) + math.log(trace),
        phi_squared=one_site(x**2),
        phi_fourth=phi_fourth,
        action_density=0.5 - 0.25 * spacing * coupling * phi_fourth,
        susceptibility=float(two_point.sum()),
        two_point_zero_momentum=two_point,
        energies=_energies(np.concatenate([even, odd]), float(largest), spacing, mass, depth),
    )


def double_well_positions(spacing: float, mass: float, coupling: float, refinement: float = 1.0) -> tuple[Array, float]:
    """Positive half of the grid of positions, which has no point at zero, and its spacing; for others who sum on it.

    Parameters
    ----------
    spacing
        Lattice spacing.
    mass, coupling, refinement
        As for `double_well_exact`.

    Raises
    ------
    AnalysisError
        If the whole grid would have more than 6000 points.
    """
    exponent = _NEGLIGIBLE_EXPONENT * refinement / spacing
    # The larger solution of V(x) - V_min = coupling/4 (x^2 - mass/coupling)^2 = exponent.
    reach = math.sqrt(mass / coupling + 2.0 * math.sqrt(exponent / coupling))
    # Two links, the curvature of a well, and the quartic: exp(-c x^4 / 4) has an error of exp(-37) at h = 0.2 / c^(1/4).
    narrowest = mass / spacing + mass * spacing + 4.0 * math.sqrt(coupling * spacing)
    step = _SPACING / (refinement * math.sqrt(narrowest))
    order = math.ceil(reach / step)
    if order > _LARGEST_MATRIX:
        raise AnalysisError(
            got=f"a grid of {2 * order} positions for the spacing {spacing:.3g} at mass {mass:.3g}",
            expected=f"at most {2 * _LARGEST_MATRIX}",
            fix="take fewer sites, or a smaller refinement",
        )
    return np.asarray(step * (np.arange(order) + 0.5), dtype=np.float64), step


def _energies(relative: Array, largest: float, spacing: float, mass: float, depth: float) -> Array:
    """Energies of the eigenvalues, given relative to the largest, that stand out of rounding."""
    resolved = np.sort(relative[relative > _RESOLVED])[::-1]
    free = 0.5 * math.log(2.0 * math.pi * spacing / mass)
    return np.asarray((free - math.log(largest) - np.log(resolved)) / spacing - depth)
