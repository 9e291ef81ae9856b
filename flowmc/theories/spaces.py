"""The spaces that fields live in: what a kernel, a certificate or a store must know of a field, so that none tests types.

A space says which numbers are fields, in which type they are kept and how chains may start. Only a continuous space has
momenta to move along; kernels that need them ask for a `ContinuousSpace` before the run.
"""

from __future__ import annotations

import abc
from math import pi
from typing import Any, ClassVar

import jax
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import Array, batch_axes, namespace

__all__ = ["SPACES", "AngleSpace", "ContinuousSpace", "FieldSpace", "RealSpace", "SpinSpace", "wrapped"]


class FieldSpace(abc.ABC):
    """The space of one site's field; a configuration has one such number at every site."""

    name: ClassVar[str]
    field_name: ClassVar[str]
    """Name of the field in ensembles."""
    dtype: ClassVar[np.dtype[Any]]
    """Type in which chains keep their fields."""
    bounded: ClassVar[bool]
    """Whether the space is compact, so that a uniform draw is a possible start."""

    @abc.abstractmethod
    def contains(self, field: Array) -> Array:
        """Return whether every number of each configuration (..., sites) lies in the space, shape (...)."""

    @abc.abstractmethod
    def start(self, generator: np.random.Generator, n: int, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
        """Return ``n`` starting fields, (n, *shape): ``kind`` is "cold" (ordered) or "hot" (disordered)."""


class ContinuousSpace(FieldSpace):
    """A space with a tangent: hybrid Monte Carlo moves on it."""

    @abc.abstractmethod
    def draw_momentum(self, key: jax.Array, field: jax.Array) -> jax.Array:
        """Draw momenta for a batch of fields; the shape and type are those of the field."""

    @abc.abstractmethod
    def kinetic_energy(self, momentum: Array) -> Array:
        """Return the kinetic energy of each element of a batch, shape (n,), in float64."""

    @abc.abstractmethod
    def drift(self, field: Array, momentum: Array, step: Array) -> Array:
        """Move a batch of fields along their momenta by a fictitious time ``step``."""


class _GaussianMomenta(ContinuousSpace):
    """A space whose tangent at every point is the real line: standard normal momenta, S_kin = ½ Σ π²."""

    dtype = np.dtype(np.float64)

    def draw_momentum(self, key: jax.Array, field: jax.Array) -> jax.Array:
        """Draw standard normal momenta."""
        return jax.random.normal(key, field.shape, dtype=field.dtype)

    def kinetic_energy(self, momentum: Array) -> Array:
        """Return ½ Σ π², shape (n,)."""
        xp = namespace(momentum)
        return 0.5 * xp.sum(momentum * momentum, axis=batch_axes(momentum.shape[1:]), dtype=xp.float64)


class RealSpace(_GaussianMomenta):
    """Real fields: flat space with the measure Π_x dφ(x)."""

    name = "real"
    field_name = "phi"
    bounded = False

    def contains(self, field: Array) -> Array:
        """Return whether all numbers are finite."""
        xp = namespace(field)
        return xp.all(xp.isfinite(field), axis=-1)

    def drift(self, field: Array, momentum: Array, step: Array) -> Array:
        """Return φ + ε π."""
        return field + step * momentum

    def start(self, generator: np.random.Generator, n: int, shape: tuple[int, ...], kind: str) -> NDArray[np.float64]:
        """Return zero fields ("cold") or standard normal ones ("hot"), (n, *shape)."""
        return np.zeros((n, *shape)) if kind == "cold" else generator.standard_normal((n, *shape))


class AngleSpace(_GaussianMomenta):
    """Angles in radians, which mean the same modulo 2π: the group U(1) with its Haar measure Π dθ / 2π.

    Any real number is an angle; moves bring it back to [−π, π), where chains keep their fields.
    """

    name = "angle"
    field_name = "angle"
    bounded = True

    def contains(self, field: Array) -> Array:
        """Return whether all numbers are finite."""
        xp = namespace(field)
        return xp.all(xp.isfinite(field), axis=-1)

    def drift(self, field: Array, momentum: Array, step: Array) -> Array:
        """Return θ + ε π, brought back to [−π, π)."""
        return wrapped(field + step * momentum)

    def start(self, generator: np.random.Generator, n: int, shape: tuple[int, ...], kind: str) -> NDArray[np.float64]:
        """Return zero angles ("cold") or uniform ones ("hot"), (n, *shape)."""
        return np.zeros((n, *shape)) if kind == "cold" else generator.uniform(-pi, pi, (n, *shape))


def wrapped(angle: Array) -> Array:
    """Return angles brought to [−π, π), same shape and type; differentiable with slope one."""
    xp = namespace(angle)
    return angle - 2 * pi * xp.floor((angle + pi) / (2 * pi))


class SpinSpace(FieldSpace):
    """Ising spins: +1 and −1, kept as int8."""

    name = "spin"
    field_name = "spin"
    dtype = np.dtype(np.int8)
    bounded = True

    def contains(self, field: Array) -> Array:
        """Return whether all numbers are +1 or −1."""
        xp = namespace(field)
        return xp.all((field == 1) | (field == -1), axis=-1)

    def start(self, generator: np.random.Generator, n: int, shape: tuple[int, ...], kind: str) -> NDArray[np.int8]:
        """Return all spins up ("cold") or random ones ("hot"), (n, *shape)."""
        if kind == "cold":
            return np.ones((n, *shape), np.int8)
        random: NDArray[np.int8] = 2 * generator.integers(0, 2, (n, *shape), np.int8) - np.int8(1)
        return random


SPACES: dict[str, FieldSpace] = {space.name: space for space in (AngleSpace(), RealSpace(), SpinSpace())}
"""Every space by its name in the metadata of proposals."""
