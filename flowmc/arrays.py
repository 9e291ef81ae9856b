"""The borders between array libraries: one action for NumPy, torch and JAX, and no silent loss of precision.

An action is written once against the Python array API; `namespace` finds the library of its argument. Fields enter an
action in float64 during production; JAX truncates to float32 unless its x64 switch is on, so that is checked here and
never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import array_api_compat
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.errors import LatticeMismatchError, NonFiniteError, PrecisionError

__all__ = ["Array", "batch_axes", "check_field", "check_finite", "in_pieces", "namespace", "require_x64"]

LARGEST_PIECE = 4096
"""Configurations that functions of users are given at once inside compiled code."""
Array: TypeAlias = Any
"""An array of NumPy, torch or JAX: the array API has no common static type yet."""


def namespace(field: Array) -> Any:
    """Return the array-API namespace of an array (`numpy`, `torch` or `jax.numpy`, wrapped where it must be)."""
    return array_api_compat.array_namespace(field)


def batch_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of the lattice in a batch ``(n, *shape)``, counted from the end."""
    return tuple(range(-len(shape), 0))


def require_x64() -> None:
    """Refuse to go on while JAX would truncate float64 to float32.

    Raises
    ------
    PrecisionError
        If JAX's x64 switch is off.
    """
    if jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise PrecisionError(
            got="JAX with its x64 switch off: float64 arrays would be truncated to float32 without a word",
            expected="jax_enable_x64 = True (actions, weights and energy differences are summed in float64)",
            fix='call `jax.config.update("jax_enable_x64", True)` before any JAX array is made, '
            "or set JAX_ENABLE_X64=1 in the environment",
        )


def check_field(field: Array, shape: Sequence[int], what: str = "field") -> None:
    """Check that a field is a batch ``(n, *shape)``.

    Raises
    ------
    LatticeMismatchError
        If it is not.
    """
    if field.ndim != len(shape) + 1 or tuple(field.shape[1:]) != tuple(shape):
        raise LatticeMismatchError(
            got=f"{what} of shape {tuple(field.shape)}",
            expected=f"(n, {', '.join(map(str, shape))}): a batch of configurations on the lattice {tuple(shape)}",
            fix="reshape the array, or build the theory and the flow on its lattice",
        )


def in_pieces(function: Callable[[jax.Array], Any], field: jax.Array) -> Any:
    """Apply a function of a batch (n, ...) piece by piece inside compiled code; results, or trees of them, are joined.

    For functions that a user wrote: JAX 0.10.2 compiles some small matrix products wrongly for batches of more than 16384
    (float64, on the processor; rows from there on come out wrong without a word).
    """
    whole = len(field) // LARGEST_PIECE * LARGEST_PIECE
    if len(field) <= LARGEST_PIECE:
        return function(field)
    parts = jax.lax.map(function, field[:whole].reshape(-1, LARGEST_PIECE, *field.shape[1:]))
    joined = jax.tree.map(lambda part: part.reshape(whole, *part.shape[2:]), parts)
    if whole == len(field):
        return joined
    return jax.tree.map(lambda one, rest: jnp.concatenate([one, rest]), joined, function(field[whole:]))


def check_finite(array: NDArray[np.floating[Any]], what: str, fix: str) -> None:
    """Check that every element of a NumPy array is finite.

    Raises
    ------
    NonFiniteError
        If one is not; the message counts them.
    """
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise NonFiniteError(
            got=f"{bad} of {array.size} values of the {what} are not finite",
            expected=f"a finite {what}",
            fix=fix,
        )
