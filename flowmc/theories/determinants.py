"""Determinants and inverses of batches of complex matrices whose determinants are real, in NumPy, torch and JAX."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import array_api_compat
import jax
import jax.numpy as jnp
import torch

from flowmc.arrays import Array, namespace

__all__ = ["real_slogdet", "real_slogdet_and_inverse", "unbatched"]

# From this size on, torch's batched LU decomposition on several threads returns nonsense or hangs (2.13, with oneMKL).
LARGEST_BATCHED = 199


def unbatched(matrix: Array) -> Iterable[Array]:
    """Return batches that torch decomposes correctly: one matrix each where large ones would meet several threads."""
    if matrix.device.type == "cpu" and matrix.shape[-1] > LARGEST_BATCHED and torch.get_num_threads() > 1:
        return torch.split(matrix, 1)
    return (matrix,)


def _real_sign(xp: Any, phase: Array) -> Array:
    """Return the sign of a number that is real up to rounding, float64."""
    return xp.astype(xp.sign(xp.real(phase)), xp.float64)


def real_slogdet(matrix: Array) -> tuple[Array, Array]:
    """Return log|det M| and the sign of det M, which is real: (n,) each, float64, for complex matrices (n, size, size).

    Differentiable in torch and JAX.
    """
    xp = namespace(matrix)
    if array_api_compat.is_torch_array(matrix):
        parts = [torch.linalg.slogdet(part) for part in unbatched(matrix)]
        phase, log_modulus = (torch.cat(both) for both in zip(*parts, strict=True))
    else:
        phase, log_modulus = xp.linalg.slogdet(matrix)
    return xp.astype(log_modulus, xp.float64), _real_sign(xp, phase)


def real_slogdet_and_inverse(matrix: Array) -> tuple[Array, Array, Array]:
    """Return log|det M|, the sign of det M and M⁻¹; as `real_slogdet`, from one LU decomposition in torch and JAX."""
    xp = namespace(matrix)
    if array_api_compat.is_torch_array(matrix):
        parts = [_inverted_by_torch(part) for part in unbatched(matrix)]
        log_modulus, sign, inverse = (torch.cat(all_of) for all_of in zip(*parts, strict=True))
        return log_modulus, sign, inverse
    if array_api_compat.is_jax_array(matrix):
        return _inverted_by_jax(matrix)
    return *real_slogdet(matrix), xp.linalg.inv(matrix)


def _inverted_by_torch(matrix: Array) -> tuple[Array, Array, Array]:
    decomposed, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    rows = torch.arange(1, matrix.shape[-1] + 1, dtype=pivots.dtype, device=matrix.device)
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand(matrix.shape)
    log_modulus, sign = _from_pivots(decomposed, pivots != rows)
    return log_modulus, sign, torch.linalg.lu_solve(decomposed, pivots, unit)


def _inverted_by_jax(matrix: jax.Array) -> tuple[Array, Array, Array]:
    decomposed, pivots, permutation = jax.lax.linalg.lu(matrix)
    log_modulus, sign = _from_pivots(decomposed, pivots != jnp.arange(matrix.shape[-1]))
    unit = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)[permutation]
    half = jax.lax.linalg.triangular_solve(decomposed, unit, left_side=True, lower=True, unit_diagonal=True)
    return log_modulus, sign, jax.lax.linalg.triangular_solve(decomposed, half, left_side=True, lower=False)


def _from_pivots(decomposed: Array, exchanged: Array) -> tuple[Array, Array]:
    """Return log|det| and the sign of det from an LU decomposition and the row exchanges of its pivots."""
    xp = namespace(decomposed)
    diagonal = xp.linalg.diagonal(decomposed)
    modulus = xp.abs(diagonal)
    phase = xp.prod(diagonal / xp.where(modulus > 0, modulus, 1), axis=-1)
    parity = 1 - 2 * (xp.sum(xp.astype(exchanged, xp.int64), axis=-1) % 2)
    return xp.sum(xp.log(modulus), axis=-1, dtype=xp.float64), _real_sign(xp, phase) * parity
