"""Partitions of a lattice: the sets of sites that couplings move in turn, each set given all other sites.

A partition is a list of masks of the lattice's shape; every site is in at least one of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowmc.lattice import checkerboard

__all__ = ["PARTITIONS", "even_and_odd", "quarters", "stripes"]

Masks = list[NDArray[np.bool_]]


def even_and_odd(shape: tuple[int, ...]) -> Masks:
    """Return the two sublattices of the checkerboard: the sites with Σ_μ x_μ even, then the others."""
    even = checkerboard(shape)
    return [even, ~even]


def stripes(shape: tuple[int, ...]) -> Masks:
    """Return the even and the odd slices across each axis in turn: two masks for each dimension.

    >>> [mask.astype(int).tolist() for mask in stripes((2, 2))][:2]
    [[[1, 1], [0, 0]], [[0, 0], [1, 1]]]
    """
    return [place % 2 == parity for place in np.indices(shape) for parity in (0, 1)]


def quarters(shape: tuple[int, ...]) -> Masks:
    """Return the 2^d sublattices of spacing two: quarters in two dimensions."""
    dimensions = len(shape)
    parities = np.indices(shape) % 2
    corners = (np.reshape(corner, (-1, *[1] * dimensions)) for corner in np.ndindex(*[2] * dimensions))
    return [np.all(parities == corner, axis=0) for corner in corners]


PARTITIONS: dict[str, Callable[[tuple[int, ...]], Masks]] = {
    "checkerboard": even_and_odd,
    "quarters": quarters,
    "stripes": stripes,
}
"""Every partition by its name in run descriptions."""
