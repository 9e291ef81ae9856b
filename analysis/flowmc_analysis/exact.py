r"""Exactly known results, in the conventions of the project.

**Free field.** With :math:`S = \sum_x[\sum_\mu(\varphi_{x+\mu}-\varphi_x)^2 + m^2\varphi_x^2] = \frac1V\sum_p(\hat
p^2 + m^2)|\tilde\varphi_p|^2` (no factor 1/2; :math:`\hat p^2 = \sum_\mu4\sin^2(p_\mu/2)`, periodic lattice, flat
measure),

.. math::

    \ln Z = \tfrac12\sum_p\ln\frac{\pi}{\hat p^2+m^2}, \qquad
    \langle\varphi_0\varphi_x\rangle = \frac1V\sum_p\frac{e^{ipx}}{2(\hat p^2+m^2)}, \qquad
    \langle S\rangle/V = \tfrac12, \qquad \chi = \frac1{2m^2} .

**φ⁴ on a small torus.** :math:`S = \sum_x[\sum_\mu(2\varphi_x^2 - \varphi_x\varphi_{x+\mu} -
\varphi_x\varphi_{x-\mu}) + m^2\varphi_x^2 + \lambda\varphi_x^4]`. The transfer matrix between time slices is a
matrix on the nodes of a Gauss rule for the weight of one site, :math:`e^{-(2d+m^2)\varphi^2-\lambda\varphi^4}`.
What is left of the integrand is entire, so that the error falls faster than exponentially with the number of nodes;
12 nodes give about ten digits at :math:`\lambda = 8`.

References
----------
.. [1] M. Albergo, G. Kanwar, P. Shanahan, arXiv:1904.12072 (conventions).
.. [2] W. Gautschi, Orthogonal Polynomials (Oxford, 2004), section 2.2 (the Stieltjes procedure).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg

from flowmc_analysis.errors import AnalysisError

__all__ = [
    "Phi4Exact",
    "free_scalar_action_density",
    "free_scalar_log_z",
    "free_scalar_phi_squared",
    "free_scalar_pole_mass",
    "free_scalar_propagator",
    "free_scalar_susceptibility",
    "free_scalar_two_point_zero_momentum",
    "phi4_exact",
    "phi4_site_rule",
]

Array = npt.NDArray[np.float64]

_LARGEST_MATRIX = 6000
_GRID_POINTS = 4001
# The trapezoid grid ends where the weight is e^-120 of its maximum: far below what any node can feel.
_NEGLIGIBLE_EXPONENT = 120.0


def free_scalar_log_z(lattice_size: tuple[int, ...], mass: float) -> float:
    """``ln Z`` of the free scalar field of mass ``mass`` (lattice units) on a periodic lattice.

    Raises
    ------
    AnalysisError
        If ``mass`` is not positive (the zero mode is then not normalisable) or the lattice is empty.

    Examples
    --------
    >>> round(free_scalar_log_z((1,), 1.0), 6)  # one site: half of ln(pi)
    0.572365
    """
    return float(0.5 * np.sum(np.log(np.pi / _inverse_propagator(lattice_size, mass))))


def free_scalar_propagator(lattice_size: tuple[int, ...], mass: float) -> Array:
    """``<phi(0) phi(x)>`` of the free scalar field for every ``x``, shape ``lattice_size``."""
    propagator = np.fft.ifftn(0.5 / _inverse_propagator(lattice_size, mass)).real
    return np.asarray(propagator, dtype=np.float64)


def free_scalar_two_point_zero_momentum(lattice_size: tuple[int, ...], mass: float) -> Array:
    """Propagator summed over space, shape ``(T,)``; it sums to the susceptibility."""
    return np.asarray(free_scalar_propagator(lattice_size, mass).sum(axis=tuple(range(1, len(lattice_size)))))


def free_scalar_phi_squared(lattice_size: tuple[int, ...], mass: float) -> float:
    """``<phi^2>`` of the free scalar field."""
    return float(np.mean(0.5 / _inverse_propagator(lattice_size, mass)))


def free_scalar_susceptibility(mass: float) -> float:
    """``V <m^2> = 1/(2 mass^2)``, in any volume and dimension."""
    return 0.5 / mass**2


def free_scalar_action_density() -> float:
    """``<S>/V = 1/2``: equipartition, in any volume and dimension."""
    return 0.5


def free_scalar_pole_mass(mass: float) -> float:
    """Energy at zero momentum, ``cosh E = 1 + mass^2/2``: the effective mass of the free field at every time."""
    return 2.0 * math.asinh(0.5 * mass)


def _inverse_propagator(lattice_size: tuple[int, ...], mass: float) -> Array:
    """``p^2 + m^2`` on all momenta, in the order of the FFT."""
    if mass <= 0 or not lattice_size or min(lattice_size) < 1:
        raise AnalysisError(
            got=f"mass = {mass} on a lattice of size {lattice_size}",
            expected="mass > 0 and extents >= 1",
            fix="the zero mode of a massless free field has no normalisable distribution",
        )
    total = np.full(lattice_size, mass**2)
    for axis, extent in enumerate(lattice_size):
        p_hat = 4.0 * np.sin(np.pi * np.arange(extent) / extent) ** 2
        total += p_hat.reshape([-1 if i == axis else 1 for i in range(len(lattice_size))])
    return total


@dataclass(frozen=True)
class Phi4Exact:
    """Exact results for φ⁴ theory on one small torus.

    Parameters
    ----------
    log_z
        ``ln Z`` with the flat measure.
    phi_squared, phi_fourth
        ``<phi^2>`` and ``<phi^4>`` at one site.
    action_density
        ``<S>/V``.
    susceptibility
        ``V <m^2>``.
    two_point_zero_momentum
        Propagator summed over space, shape ``(T,)``.
    """

    log_z: float
    phi_squared: float
    phi_fourth: float
    action_density: float
    susceptibility: float
    two_point_zero_momentum: Array


def phi4_exact(lattice_size: tuple[int, ...], m2: float, lam: float, nodes: int = 12) -> Phi4Exact:
    """Solve φ⁴ theory on a torus with few sites in a time slice, by diagonalising the transfer matrix.

    Parameters
    ----------
    lattice_size
        Extents, time first; time may be long, space may have few sites (three with 12 nodes).
    m2
        Squared mass, lattice units; may be negative if ``lam > 0``.
    lam
        Quartic coupling, not negative; zero needs ``m2 > 0``.
    nodes
        Points of the Gauss rule at each site. Vary it to see the accuracy.

    Raises
    ------
    AnalysisError
        If the theory is not normalisable or ``nodes ** (sites of a slice)`` exceeds 6000.

    Examples
    --------
    >>> round(phi4_exact((3, 3), -4.0, 8.0, nodes=8).log_z, 6)
    1.476529
    """
    if not lattice_size or min(lattice_size) < 1 or lam < 0 or (lam == 0 and m2 <= 0):
        raise AnalysisError(
            got=f"lattice_size = {lattice_size}, m2 = {m2}, lam = {lam}",
            expected="extents >= 1 and lam > 0, or lam = 0 and m2 > 0",
            fix="choose couplings for which exp(-S) is normalisable",
        )
    extent, space = lattice_size[0], lattice_size[1:]
    sites = math.prod(space)
    if nodes**sites > _LARGEST_MATRIX:
        raise AnalysisError(
            got=f"{nodes} nodes at {sites} sites of a time slice: a matrix of order {nodes**sites}",
            expected=f"an order of at most {_LARGEST_MATRIX}",
            fix="use fewer nodes, or put the longer extent first",
        )
    phi, weights, log_mass = phi4_site_rule(2 * len(lattice_size) + m2, lam, nodes)
    # All slices as rows of site values, and the part of -S within a slice that the site weights do not hold.
    slices = np.stack(np.meshgrid(*[phi] * sites, indexing="ij"), axis=-1).reshape(-1, *space)
    hopping = sum(
        (
            np.sum(slices * np.roll(slices, -1, axis=axis + 1), axis=tuple(range(1, len(space) + 1)))
            for axis in range(len(space))
        ),
        start=np.zeros(len(slices)),
    )
    flat = slices.reshape(len(slices), sites)
    log_weight = np.log(weights)[np.indices((nodes,) * sites)].sum(axis=0).ravel()
    half = 0.5 * log_weight + hopping  # half of 2 * hopping on each side of the matrix
    eigenvalues, vectors = scipy.linalg.eigh(np.exp(half[:, None] + half[None, :] + 2.0 * flat @ flat.T))
    largest = eigenvalues[-1]
    relative = np.maximum(eigenvalues / largest, 0.0)  # a positive kernel: negative values are round-off
    powers = relative[None, :] ** np.arange(extent + 1)[:, None]
    trace = float(np.sum(powers[extent]))

    def one_slice(values: Array) -> float:
        return float(powers[extent] @ ((vectors**2).T @ values)) / trace

    phi_squared, phi_fourth = one_slice(np.mean(flat**2, axis=1)), one_slice(np.mean(flat**4, axis=1))
    matrix = vectors.T @ (flat.sum(axis=1)[:, None] * vectors)
    two_point = np.array([powers[t] @ matrix**2 @ powers[extent - t] for t in range(extent)]) / (trace * sites)
    return Phi4Exact(
        log_z=extent * (math.log(largest) + sites * log_mass) + math.log(trace),
        phi_squared=phi_squared,
        phi_fourth=phi_fourth,
        action_density=0.5 - lam * phi_fourth,  # <phi dS/dphi> = 1 at each site (integration by parts)
        susceptibility=float(two_point.sum()),
        two_point_zero_momentum=two_point,
    )


def phi4_site_rule(quadratic: float, quartic: float, nodes: int) -> tuple[Array, Array, float]:
    """Gauss rule for ``exp(-quadratic phi^2 - quartic phi^4)`` on the real line.

    Parameters
    ----------
    quadratic, quartic
        Coefficients; ``quartic > 0``, or zero with ``quadratic > 0``.
    nodes
        Number of nodes; polynomials of degree ``2 nodes - 1`` are integrated exactly.

    Returns
    -------
    Nodes and weights of shape ``(nodes,)``, the weights summing to one, and the logarithm of the integral of the
    weight function (``ln Z`` of a single site without hopping).
    """
    depth = quadratic**2 / (4.0 * quartic) if quadratic < 0 else 0.0  # of the wells below phi = 0
    bound = _NEGLIGIBLE_EXPONENT + depth
    if quartic > 0:
        reach = math.sqrt((math.sqrt(quadratic**2 + 4.0 * quartic * bound) - quadratic) / (2.0 * quartic))
    else:
        reach = math.sqrt(bound / quadratic)
    x, step = np.linspace(-reach, reach, _GRID_POINTS, retstep=True)
    log_weight = -quadratic * x**2 - quartic * x**4 - depth
    measure = np.exp(log_weight)
    log_integral = math.log(float(step) * float(measure.sum())) + depth
    measure /= measure.sum()
    # Stieltjes: orthonormal polynomials on the grid; the weight is even, so the diagonal of the Jacobi matrix vanishes.
    off_diagonal = np.empty(nodes - 1)
    previous, current = np.zeros_like(x), np.ones_like(x)
    for k in range(nodes - 1):
        following = x * current - (off_diagonal[k - 1] * previous if k else 0.0)
        off_diagonal[k] = math.sqrt(float(np.sum(measure * following**2)))
        previous, current = current, following / off_diagonal[k]
    points, vectors = scipy.linalg.eigh_tridiagonal(np.zeros(nodes), off_diagonal)
    return np.asarray(points), np.asarray(vectors[0] ** 2), log_integral
