"""Geometry of periodic hypercubic lattices, in lattice units; t is the slowest axis, x the fastest.

Momenta: p_μ = 2π k_μ / L_μ and the lattice Laplacian's eigenvalue p̂² = Σ_μ 4 sin²(p_μ / 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import Array, namespace
from flowmc.errors import ParameterError

__all__ = ["checked_shape", "checkerboard", "momentum_shells", "momentum_squared", "neighbour_sum", "volume"]


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple of positive integers.

    Parameters
    ----------
    shape
        Extents of the lattice, (T, ..., X).

    Raises
    ------
    ParameterError
        If there is no extent, or one is not an integer of at least 2 (a site would be its own neighbour).
    """
    extents = tuple(shape)
    integral = all(isinstance(extent, int | np.integer) and not isinstance(extent, bool) for extent in extents)
    if not extents or not integral or min(extents) < 2:
        raise ParameterError(
            got=f"shape = {list(extents)}",
            expected="one integer extent of at least 2 for each dimension, for example [8, 8]",
            fix="correct `shape`",
        )
    return tuple(int(extent) for extent in extents)


def volume(shape: Sequence[int]) -> int:
    """Return the number of sites.

    >>> volume((8, 4))
    32
    """
    return prod(shape)


def checkerboard(shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return the mask of the even sites, those with Σ_μ x_μ even; the shape is that of the lattice.

    >>> checkerboard((2, 2)).tolist()
    [[True, False], [False, True]]
    """
    mask: NDArray[np.bool_] = np.indices(tuple(shape)).sum(axis=0) % 2 == 0
    return mask


def momentum_squared(shape: Sequence[int]) -> NDArray[np.float64]:
    """Return p̂² = Σ_μ 4 sin²(π k_μ / L_μ) on the dual lattice, in the order of the discrete Fourier transform.

    >>> momentum_squared((4,)).round(12).tolist()
    [0.0, 2.0, 4.0, 2.0]
    """
    total = np.zeros(tuple(shape))
    for axis, extent in enumerate(shape):
        along = 4 * np.sin(np.pi * np.arange(extent) / extent) ** 2
        total += along.reshape([-1 if direction == axis else 1 for direction in range(len(shape))])
    return total


def momentum_shells(shape: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the different values of p̂², ascending, and the number of its value for each momentum of the dual lattice.

    >>> momentum_shells((4,))[1].tolist()
    [0, 1, 2, 1]
    """
    values, numbers = np.unique(momentum_squared(shape).round(9), return_inverse=True)
    return values, numbers.reshape(tuple(shape))


def neighbour_sum(field: Array, dimensions: int) -> Array:
    """Return Σ_μ [φ(x+μ) + φ(x−μ)] over the last ``dimensions`` axes of a field, same shape and type."""
    xp = namespace(field)
    total = xp.zeros_like(field)
    for axis in range(-dimensions, 0):
        total = total + xp.roll(field, -1, axis=axis) + xp.roll(field, 1, axis=axis)
    return total
