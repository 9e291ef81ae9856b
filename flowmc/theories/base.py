"""What a theory is: an action on a lattice, its force, and the space that its field lives in.

A theory is a frozen dataclass. Its action is written once against the Python array API, batch first, so that the same
line runs in NumPy (tests, analysis), torch (training) and JAX (hybrid Monte Carlo). The probability of a field is
p(φ) = exp(−S(φ)) / Z with respect to the flat measure Π_x dφ(x) for real fields.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import Array, batch_axes, namespace
from flowmc.errors import ParameterError
from flowmc.lattice import volume

__all__ = ["STARTS", "FieldSpace", "RealSpace", "Theory"]

STARTS = ("cold", "hot")
"""Kinds of starting fields."""


class FieldSpace(abc.ABC):
    """The manifold of a field: what a kernel must know to move on it, so that no kernel tests types."""

    name: ClassVar[str]
    bounded: ClassVar[bool]
    """Whether the space is compact, so that a uniform draw is a possible start."""

    @abc.abstractmethod
    def draw_momentum(self, key: jax.Array, field: jax.Array) -> jax.Array:
        """Draw momenta for a batch of fields; the shape and type are those of the field."""

    @abc.abstractmethod
    def kinetic_energy(self, momentum: Array) -> Array:
        """Return the kinetic energy of each element of a batch, shape (n,), in float64."""

    @abc.abstractmethod
    def drift(self, field: Array, momentum: Array, step: Array) -> Array:
        """Move a batch of fields along their momenta by a fictitious time ``step``."""

    @abc.abstractmethod
    def start(self, generator: np.random.Generator, n: int, shape: tuple[int, ...], kind: str) -> NDArray[np.float64]:
        """Return ``n`` starting fields, (n, *shape): ``kind`` is "cold" (ordered) or "hot" (disordered)."""


class RealSpace(FieldSpace):
    """Real fields: flat space, Gaussian momenta, S_kin = ½ Σ_x π²."""

    name = "real"
    bounded = False

    def draw_momentum(self, key: jax.Array, field: jax.Array) -> jax.Array:
        """Draw standard normal momenta."""
        return jax.random.normal(key, field.shape, dtype=field.dtype)

    def kinetic_energy(self, momentum: Array) -> Array:
        """Return ½ Σ_x π², shape (n,)."""
        xp = namespace(momentum)
        return 0.5 * xp.sum(momentum * momentum, axis=batch_axes(momentum.shape[1:]), dtype=xp.float64)

    def drift(self, field: Array, momentum: Array, step: Array) -> Array:
        """Return φ + ε π."""
        return field + step * momentum

    def start(self, generator: np.random.Generator, n: int, shape: tuple[int, ...], kind: str) -> NDArray[np.float64]:
        """Return zero fields ("cold") or standard normal ones ("hot"), (n, *shape)."""
        return np.zeros((n, *shape)) if kind == "cold" else generator.standard_normal((n, *shape))


class Theory(abc.ABC):
    """A lattice field theory: subclasses are frozen dataclasses and final.

    Implementing a theory:

    - a frozen dataclass whose first field is ``shape``, the others its couplings, validated in ``__post_init__``;
    - ``name``, the key in `flowmc.theories.THEORIES`; ``convention``, one line on the normalisation; ``space``;
    - ``action`` and ``force`` on batches, written against the array API;
    - a line in `flowmc.theories.THEORIES`, which is also what parametrises the contract tests.
    """

    name: ClassVar[str]
    convention: ClassVar[str]
    space: ClassVar[FieldSpace]
    shape: tuple[int, ...]

    @property
    def field_shape(self) -> tuple[int, ...]:
        """Shape of one configuration; the lattice itself for a scalar field."""
        return self.shape

    @property
    def volume(self) -> int:
        """Number of lattice sites."""
        return volume(self.shape)

    @abc.abstractmethod
    def action(self, field: Array) -> Array:
        """Return the action of each configuration.

        Parameters
        ----------
        field
            Batch of configurations, ``(n, *field_shape)``, of NumPy, torch or JAX.

        Returns
        -------
        Dimensionless action, shape ``(n,)``, summed in float64.
        """

    @abc.abstractmethod
    def force(self, field: Array) -> Array:
        """Return −∂S/∂φ, shape and type of ``field``."""

    def virial(self, field: Array) -> Array:
        """Return Σ_x φ ∂S/∂φ of each configuration, shape (n,).

        Its expectation value is the number of degrees of freedom for any action of a real field (Schwinger-Dyson, by
        partial integration): a check of the whole chain that needs no reference value.
        """
        xp = namespace(field)
        return -xp.sum(field * self.force(field), axis=batch_axes(self.field_shape), dtype=xp.float64)

    def start(self, generator: np.random.Generator, n: int, kind: str) -> NDArray[np.float64]:
        """Return ``n`` starting fields, (n, *field_shape).

        Parameters
        ----------
        generator
            Source of the random numbers.
        n
            Number of fields.
        kind
            "cold" (ordered) or "hot" (disordered). A hot start in an unbounded space is white noise at the amplitude
            where Σ φ ∂S/∂φ has its expectation value: noise of another amplitude can lie so far up a steep action that
            every trajectory diverges there and the chain never moves.

        Raises
        ------
        ParameterError
            If the kind is unknown or ``n`` is not positive.
        """
        if kind not in STARTS or n < 1:
            raise ParameterError(
                got=f"{n} starts of kind {kind!r}", expected=f"at least one, of kind {list(STARTS)}", fix="correct it"
            )
        field = self.space.start(generator, n, self.field_shape, kind)
        if kind == "cold" or self.space.bounded:
            return field

        def too_large(scale: NDArray[np.float64]) -> NDArray[np.bool_]:
            exceeds: NDArray[np.bool_] = (
                self.virial(field * scale.reshape(-1, *[1] * len(self.field_shape))) > field[0].size
            )
            return exceeds

        low, high = np.zeros(n), np.ones(n)
        while not (enough := too_large(high)).all():
            high = np.where(enough, high, 2 * high)
        for _ in range(50):
            middle = 0.5 * (low + high)
            above = too_large(middle)
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return field * high.reshape(-1, *[1] * len(self.field_shape))

    def describe(self) -> dict[str, Any]:
        """Return the theory as plain data: ``name``, ``shape`` and the couplings; `from_description` inverts it."""
        couplings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **couplings, "shape": list(self.shape)}
