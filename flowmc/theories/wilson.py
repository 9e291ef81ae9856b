"""Wilson fermions in two dimensions, on the links of U(1).

The Wilson-Dirac operator of a link field θ_μ(x), (n, T, X, 2), is D = 1 − κ H with

    (H ψ)(x) = Σ_μ [ (1 − γ_μ) U_μ(x) ψ(x+μ) + (1 + γ_μ) U_μ(x−μ)* ψ(x−μ) ],   U = exp(iθ),

and with antiperiodic fermions in time (direction 0): there the links from the last time slice to the first one count with
a minus sign. γ_0 = σ_x, γ_1 = σ_y and γ_5 = σ_z, the Pauli matrices. As γ_5 D γ_5 = D†, the determinant is real; its sign
is that of the number of real eigenvalues below zero, and log|det D| is what enters an action.

**Hopping paths.** Hops lead from even sites to odd ones, so that on even extents det D is that of a matrix of half the
size, A = 1 − κ² H_eo H_oe on the even sites. Its entries are paths of two hops; those that turn back vanish, because
(1 − γ_μ)(1 + γ_μ) = 0. On odd extents the paths are single hops and the matrix is D itself. Either matrix is one gather
from a short list of path values, and the slope of its determinant is a sum over the same paths: a path of value v that
goes from x to y and holds the link θ, or the inverse of it, contributes to ∂ log|det| / ∂θ

    ± Re( i tr[v M⁻¹(y, x)] ),

so that of the inverse M⁻¹ only the entries at the ends of paths are read. A gather is the same function in NumPy, torch
and JAX, and differentiable in the latter two.

References
----------
.. [1] K. G. Wilson, Phys. Rev. D 10 (1974) 2445.
.. [2] T. A. DeGrand, P. Rossi, Comput. Phys. Commun. 60 (1990) 211 (even-odd preconditioning).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import array_api_compat
import numpy as np
import torch
from numpy.typing import NDArray

from flowmc.arrays import Array, check_field, namespace
from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.lattice import volume
from flowmc.theories.determinants import real_slogdet, real_slogdet_and_inverse

__all__ = [
    "DeterminantAndForce",
    "determinant_and_force",
    "dirac_adjoint_apply",
    "dirac_apply",
    "dirac_matrix",
    "even_odd_matrix",
    "fermion_links",
    "gamma5_apply",
    "hopping",
    "hopping_slope",
    "log_determinant",
    "propagator",
]

GAMMA = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]]])
"""γ_0 and γ_1; γ_5 is diag(1, −1)."""


class DeterminantAndForce(NamedTuple):
    """The determinant of D for each configuration of a batch, and the force of the action −log|det D|."""

    log_modulus: Array
    """log|det D|, (n,), float64."""
    sign: Array
    """Sign of det D, (n,), float64: ±1, or 0 where the determinant vanishes."""
    force: Array
    """∂ log|det D| / ∂θ, shape and type of the field."""


class _Hop(NamedTuple):
    """One step along ``direction``, +1 or −1, at every site."""

    direction: int
    step: int

    @property
    def spin(self) -> NDArray[np.complex128]:
        """1 − γ_μ forward, 1 + γ_μ backward."""
        matrix: NDArray[np.complex128] = np.eye(2) - self.step * GAMMA[self.direction]
        return matrix


HOPS = tuple(_Hop(direction, step) for direction, step in product((0, 1), (1, -1)))


@dataclass(frozen=True, eq=False)
class _Paths:
    """The paths whose values are the entries of a matrix, beside the ones on its diagonal; constants of a lattice.

    Parameters
    ----------
    size
        Rows of the matrix.
    hops
        Hops in a path: their number is the power of −κ, up to the sign.
    spin
        Product of the hops' spin matrices, (paths, 2, 2).
    links
        The links along each path, (hops, paths): numbers in the list of U, then U*, of all links, (4V,).
    merge
        For each pair of sites that paths connect, the values (numbers of path, spin, spin) that are summed there, by
        layers (layers, pairs · 4); the number after the last value stands for zero.
    dense
        For each entry of the matrix the number of the pair's value, (size²,); the last one stands for zero.
    ends
        Number of the matrix entry from a path's end to its start, (paths · 4,), transposed in spin: the trace with it.
    passing, orientation
        For each link the numbers of the paths that hold it, and +1 or −1 for U or U*, (2V, paths through a link).
    """

    size: int
    hops: int
    spin: NDArray[np.complex128]
    links: NDArray[np.int64]
    merge: NDArray[np.int64]
    dense: NDArray[np.int64]
    ends: NDArray[np.int64]
    passing: NDArray[np.int64]
    orientation: NDArray[np.float64]


def is_even(shape: Sequence[int]) -> bool:
    """Return whether all extents are even, so that hops lead from one sublattice to the other."""
    return all(extent % 2 == 0 for extent in shape)


def _neighbours(shape: tuple[int, int], hop: _Hop) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where a hop from each site leads, and the number of its link in the list of U and U*; (V,) each."""
    sites = np.arange(volume(shape))
    target = np.roll(sites.reshape(shape), -hop.step, axis=hop.direction).ravel()
    # Backward, the link is the one that starts at the target, and inverted.
    link = 2 * sites + hop.direction if hop.step > 0 else 2 * (sites.size + target) + hop.direction
    return target, link


def _layers(group: NDArray[np.int64], n_groups: int) -> NDArray[np.int64]:
    """Return the members of each group as an array (layers, groups), filled up with the number after the last member."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=n_groups)
    layer = np.arange(group.size) - np.repeat(sizes.cumsum() - sizes, sizes)
    members = np.full((sizes.max(), n_groups), group.size)
    members[layer, group[order]] = order
    return members


@lru_cache(maxsize=16)
def _paths(shape: tuple[int, int], even_odd: bool) -> _Paths:
    """Return the paths of two hops from even site to even site, or of one hop from any site."""
    n_sites = volume(shape)
    sites = np.arange(n_sites)
    if even_odd:
        sites = sites[np.indices(shape).sum(axis=0).ravel() % 2 == 0]
    row = np.full(n_sites, -1)
    row[sites] = np.arange(sites.size)

    start, end, links, spin = [], [], [], []
    for hops in product(HOPS, repeat=2 if even_odd else 1):
        matrix = np.linalg.multi_dot([np.eye(2), *(hop.spin for hop in hops), np.eye(2)])
        if not matrix.any():
            continue
        here, along = sites, []
        for hop in hops:
            target, link = _neighbours(shape, hop)
            along.append(link[here])
            here = target[here]
        start.append(row[sites])
        end.append(row[here])
        links.append(np.stack(along))
        spin.append(np.broadcast_to(matrix, (sites.size, 2, 2)))
    first, last, held = np.concatenate(start), np.concatenate(end), np.concatenate(links, axis=1)

    pairs, pair = np.unique(first * sites.size + last, return_inverse=True)
    upper, lower = np.indices((2, 2)).reshape(2, 4)
    size = 2 * sites.size
    value = (4 * pair[:, None] + np.arange(4)).ravel()
    dense = np.full(size * size, 4 * pairs.size)
    rows, columns = np.divmod(pairs, sites.size)
    entry = (2 * rows[:, None] + upper) * size + 2 * columns[:, None] + lower
    dense[entry.ravel()] = np.arange(4 * pairs.size)

    through = held % (2 * n_sites)
    passing = _layers(through.ravel(), 2 * n_sites).T
    sign = np.where(held < 2 * n_sites, 1.0, -1.0).ravel()
    return _Paths(
        size,
        len(held),
        np.concatenate(spin),
        held,
        _layers(value, 4 * pairs.size),
        dense,
        ((2 * last[:, None] + lower) * size + 2 * first[:, None] + upper).ravel(),
        passing % first.size,
        sign[passing],
    )


def _constant(like: Array, array: NDArray[Any]) -> Array:
    """Return a NumPy array in the library, and on the device, of another array."""
    if array_api_compat.is_torch_array(like):
        return torch.asarray(array, device=like.device)
    return namespace(like).asarray(array)


def _shape(field: Array) -> tuple[int, int]:
    """Return the lattice of a batch of links.

    Raises
    ------
    LatticeMismatchError
        If it is not one.
    """
    if field.ndim != 4 or field.shape[-1] != 2:
        raise LatticeMismatchError(
            got=f"a field of shape {tuple(field.shape)}",
            expected="links in two dimensions, (n, T, X, 2)",
            fix="give a batch of configurations, the direction last",
        )
    return int(field.shape[1]), int(field.shape[2])


def fermion_links(field: Array) -> Array:
    """Return U_μ(x) as the fermions see it, complex, shape of the field: with a minus sign where time begins anew."""
    xp = namespace(field)
    sign = np.ones(field.shape[1:])
    sign[-1, :, 0] = -1
    constant = xp.astype(_constant(field, sign), field.dtype, copy=False)
    return constant * xp.cos(field) + 1j * (constant * xp.sin(field))


def _along_paths(paths: _Paths, field: Array, kappa: float) -> Array:
    """Return the value of each path without its spin matrix, (n, paths)."""
    xp = namespace(field)
    link = xp.reshape(fermion_links(field), (field.shape[0], -1))
    both = xp.concat([link, xp.conj(link)], axis=1)
    values = -(kappa**paths.hops) * xp.take(both, _constant(field, paths.links[0]), axis=1)
    for held in paths.links[1:]:
        values = values * xp.take(both, _constant(field, held), axis=1)
    return values


def _complex_constant(like: Array, array: NDArray[np.complex128]) -> Array:
    """Return a constant with the precision of a complex array."""
    return namespace(like).astype(_constant(like, array), like.dtype, copy=False)


def _matrix(paths: _Paths, along: Array) -> Array:
    """Return the matrix whose entries are the sums of paths, and ones on the diagonal: (n, size, size)."""
    xp = namespace(along)
    n = along.shape[0]
    zero = along[:, :1] * 0
    values = xp.reshape(along[:, :, None, None] * _complex_constant(along, paths.spin), (n, -1))
    values = xp.concat([values, zero], axis=1)
    merged = xp.take(values, _constant(along, paths.merge[0]), axis=1)
    for layer in paths.merge[1:]:
        merged = merged + xp.take(values, _constant(along, layer), axis=1)
    entries = xp.take(xp.concat([merged, zero], axis=1), _constant(along, paths.dense), axis=1)
    unit = _complex_constant(along, np.eye(paths.size, dtype=np.complex128))
    return xp.reshape(entries, (n, paths.size, paths.size)) + unit


def _slope(paths: _Paths, along: Array, inverse: Array) -> Array:
    """Return ∂ log|det M| / ∂θ, (n, 2V), from the inverse of M."""
    xp = namespace(along)
    n = along.shape[0]
    ends = xp.take(xp.reshape(inverse, (n, -1)), _constant(along, paths.ends), axis=1)
    spin = _complex_constant(along, paths.spin.reshape(-1, 4))
    current = -xp.imag(along * xp.sum(xp.reshape(ends, (n, -1, 4)) * spin, axis=-1))
    passing = xp.take(current, _constant(along, paths.passing.ravel()), axis=1)
    orientation = xp.astype(_constant(along, paths.orientation), current.dtype, copy=False)
    return xp.sum(xp.reshape(passing, (n, *paths.orientation.shape)) * orientation, axis=-1)


def dirac_matrix(field: Array, kappa: float) -> Array:
    """Return D as dense matrices.

    Parameters
    ----------
    field
        Links in radians, (n, T, X, 2), of NumPy, torch or JAX.
    kappa
        Hopping parameter κ, dimensionless.

    Returns
    -------
    Matrices (n, 2V, 2V), complex with the precision of the field. Rows and columns are numbered like the numbers of a
    spinor field (T, X, spin): 2 (t X + x) + spin.

    Raises
    ------
    LatticeMismatchError
        If the field is not a batch of links in two dimensions.
    """
    paths = _paths(_shape(field), even_odd=False)
    return _matrix(paths, _along_paths(paths, field, kappa))


def even_odd_matrix(field: Array, kappa: float) -> Array:
    """Return A = 1 − κ² H_eo H_oe on the even sites, whose determinant is that of D.

    Parameters
    ----------
    field, kappa
        As in `dirac_matrix`; the extents must be even.

    Returns
    -------
    Matrices (n, V, V); the even sites (t + x even) in the order of (t, x), spin fastest.

    Raises
    ------
    LatticeMismatchError
        If the field is not a batch of links in two dimensions.
    ParameterError
        If an extent is odd.
    """
    shape = _shape(field)
    if not is_even(shape):
        raise ParameterError(
            got=f"the even-odd matrix on the lattice {shape}",
            expected="even extents: around an odd one, a hop leads from an even site to an even one",
            fix="use dirac_matrix",
        )
    paths = _paths(shape, even_odd=True)
    return _matrix(paths, _along_paths(paths, field, kappa))


def log_determinant(field: Array, kappa: float) -> tuple[Array, Array]:
    """Return log|det D| and the sign of det D of each configuration; differentiable in torch and JAX.

    Parameters
    ----------
    field, kappa
        As in `dirac_matrix`.

    Returns
    -------
    The logarithm of the modulus and the sign (±1; 0 for a singular matrix), (n,) each, float64. The matrices are
    decomposed with the precision of the field.

    Raises
    ------
    LatticeMismatchError
        If the field is not a batch of links in two dimensions.
    """
    shape = _shape(field)
    paths = _paths(shape, is_even(shape))
    return real_slogdet(_matrix(paths, _along_paths(paths, field, kappa)))


def determinant_and_force(field: Array, kappa: float) -> DeterminantAndForce:
    """Return log|det D|, the sign and ∂ log|det D| / ∂θ, from one LU decomposition.

    Parameters
    ----------
    field, kappa
        As in `dirac_matrix`.

    Raises
    ------
    LatticeMismatchError
        If the field is not a batch of links in two dimensions.
    """
    xp = namespace(field)
    shape = _shape(field)
    paths = _paths(shape, is_even(shape))
    along = _along_paths(paths, field, kappa)
    log_modulus, sign, inverse = real_slogdet_and_inverse(_matrix(paths, along))
    return DeterminantAndForce(log_modulus, sign, xp.reshape(_slope(paths, along, inverse), field.shape))


def propagator(field: NDArray[np.floating[Any]], kappa: float) -> NDArray[np.complexfloating[Any, Any]]:
    """Return D⁻¹, (n, T, X, 2, T, X, 2), from the last three axes (source) to those before (sink); NumPy only.

    Parameters
    ----------
    field, kappa
        As in `dirac_matrix`.

    Raises
    ------
    LatticeMismatchError
        If the field is not a batch of links in two dimensions.
    """
    shape = _shape(field)
    inverse = np.linalg.inv(dirac_matrix(field, kappa))
    return np.asarray(inverse.reshape(len(field), *shape, 2, *shape, 2))


def dirac_apply(field: Array, kappa: float, spinor: Array) -> Array:
    """Return D ψ without a matrix.

    Parameters
    ----------
    field, kappa
        As in `dirac_matrix`.
    spinor
        ψ, (n, T, X, 2), complex, spin last.

    Raises
    ------
    LatticeMismatchError
        If the field is not a batch of links in two dimensions, or the spinor does not belong to it.
    """
    check_field(spinor, (*_shape(field), 2), "spinor field")
    return spinor - kappa * hopping(fermion_links(field), spinor)


def hopping(link: Array, spinor: Array) -> Array:
    """Return H ψ, (n, T, X, 2), from the `fermion_links` of a field, so that many spinors can share them."""
    xp = namespace(spinor)
    (ahead, behind), (right, left) = _projections(spinor)
    time, space = link[..., 0], link[..., 1]
    ahead, behind = time * xp.roll(ahead, -1, axis=1), xp.roll(xp.conj(time) * behind, 1, axis=1)
    right, left = space * xp.roll(right, -1, axis=2), xp.roll(xp.conj(space) * left, 1, axis=2)
    return xp.stack([ahead + behind + right + left, behind - ahead + 1j * (left - right)], axis=-1)


def hopping_slope(link: Array, left: Array, right: Array) -> Array:
    """Return ∂ Re(χ† H ψ) / ∂θ, (n, T, X, 2), real, from the `fermion_links` of a field.

    Parameters
    ----------
    link
        The links, (n, T, X, 2).
    left, right
        χ and ψ, (n, T, X, 2).
    """
    xp = namespace(link)
    slopes = []
    for direction, (bra, ket) in enumerate(zip(_projections(left), _projections(right), strict=True)):
        one, axis = link[..., direction], 1 + direction
        forward = one * xp.conj(bra[0]) * xp.roll(ket[0], -1, axis=axis)
        backward = xp.conj(one * xp.roll(bra[1], -1, axis=axis)) * ket[1]
        slopes.append(xp.imag(backward - forward))
    return xp.stack(slopes, axis=-1)


def _projections(spinor: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return, for each direction, the component that hops forward and the one that hops backward, (n, T, X) each.

    1 ∓ γ_μ has rank one: it is v v† with v = (1, ∓1) for μ = 0 and (1, ∓i) for μ = 1, and the component is v† ψ.
    """
    upper, lower = spinor[..., 0], spinor[..., 1]
    turned = 1j * lower
    return (upper - lower, upper + lower), (upper + turned, upper - turned)


def dirac_adjoint_apply(field: Array, kappa: float, spinor: Array) -> Array:
    """Return D† ψ = γ_5 D γ_5 ψ; see `dirac_apply`."""
    return gamma5_apply(dirac_apply(field, kappa, gamma5_apply(spinor)))


def gamma5_apply(spinor: Array) -> Array:
    """Return γ_5 ψ, same shape."""
    return namespace(spinor).stack([spinor[..., 0], -spinor[..., 1]], axis=-1)
