"""What a theory is: an action on a lattice, and the space that its field lives in.

A theory is a frozen dataclass. Its action is written once against the Python array API, batch first, so that the same
line runs in NumPy (tests, analysis), torch (training) and JAX (kernels). The probability of a field is
p(φ) = exp(−S(φ)) / Z, with respect to the flat measure Π_x dφ(x) for real fields and to counting for discrete ones.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import Array, batch_axes, namespace
from flowmc.errors import ParameterError
from flowmc.lattice import volume
from flowmc.theories.spaces import ContinuousSpace, FieldSpace

__all__ = ["STARTS", "ScalarTheory", "SmoothTheory", "Theory"]

STARTS = ("cold", "hot")
"""Kinds of starting fields."""


class Theory(abc.ABC):
    """A lattice field theory: subclasses are frozen dataclasses and final.

    Implementing a theory:

    - a frozen dataclass whose first field is ``shape``, the others its couplings, validated in ``__post_init__``; where
      the couplings say what the shape is, it comes last, derived from them, and one that differs is refused;
    - ``name``, the key in `flowmc.theories.THEORIES`; ``convention``, one line on the normalisation; ``space``;
    - ``action`` on batches, written against the array API; ``force`` too for a `SmoothTheory` or `ScalarTheory`;
    - ``identities``, what is known of expectation values whatever the couplings;
    - a line in `flowmc.theories.THEORIES`, which is also what parametrises the contract tests.
    """

    name: ClassVar[str]
    convention: ClassVar[str]
    space: ClassVar[FieldSpace]
    internal_axes: ClassVar[tuple[str, ...]] = ()
    """Names of the field's axes after those of the lattice."""
    homogeneous: ClassVar[bool] = True
    """Whether the action is invariant under translations of the lattice."""
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
    def identities(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return functions of a batch of fields, each (n,), whose expectation is known for all couplings.

        They are measured during production under these names, and judged by the analysis, which knows the expectation
        that belongs to each name (`flowmc_analysis.monitors`): a check of the whole chain that needs no reference value.
        """

    def observers(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return functions of a NumPy batch of fields, (n, ...) each, that are measured during production.

        They are for what needs an operator of the theory, as a propagator does; what follows from the fields alone is
        left to the analysis of the stored configurations. By default there are none.
        """
        return {}

    def annealed(self, fraction: float) -> Theory:
        """Return the theory at a fraction of the way from a trivial one, for training that approaches the target.

        Parameters
        ----------
        fraction
            From 0, the trivial theory, to 1, this one.

        Raises
        ------
        ParameterError
            If the theory has no such path.
        """
        raise ParameterError(
            got=f"annealing (fraction {fraction:g}) of the theory {self.name!r}",
            expected="a theory with a path from a trivial one, for example phi4 or ising",
            fix="set annealing = 0 in [training]",
        )

    def start(self, generator: np.random.Generator, n: int, kind: str) -> NDArray[Any]:
        """Return ``n`` starting fields, (n, *field_shape).

        Parameters
        ----------
        generator
            Source of the random numbers.
        n
            Number of fields.
        kind
            "cold" (ordered) or "hot" (disordered).

        Raises
        ------
        ParameterError
            If the kind is unknown or ``n`` is not positive.
        """
        if kind not in STARTS or n < 1:
            raise ParameterError(
                got=f"{n} starts of kind {kind!r}", expected=f"at least one, of kind {list(STARTS)}", fix="correct it"
            )
        return self.space.start(generator, n, self.field_shape, kind)

    def describe(self) -> dict[str, Any]:
        """Return the theory as plain data: ``name``, ``shape`` and the couplings; `from_description` inverts it."""
        couplings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **couplings, "shape": list(self.shape)}


class SmoothTheory(Theory):
    """A theory of a continuous field with a differentiable action: what hybrid Monte Carlo and gradients need."""

    space: ClassVar[ContinuousSpace]

    @abc.abstractmethod
    def force(self, field: Array) -> Array:
        """Return −∂S/∂φ, shape and type of ``field``."""

    def action_and_force(self, field: Array) -> tuple[Array, Array]:
        """Return `action` and `force`; a theory for which both together cost less than each alone overrides this."""
        return self.action(field), self.force(field)


class ScalarTheory(SmoothTheory):
    """A theory of a real scalar field."""

    def gaussian_mass(self) -> float:
        """Return the mass of the free field that is nearest to the theory in KL(free ‖ theory), in lattice units.

        Raises
        ------
        ParameterError
            If that is not known of the theory.
        """
        raise ParameterError(
            got=f"the mass of a free field matched to the theory {self.name!r}",
            expected="a theory for which it is known, for example phi4",
            fix="give `base_mass` as a number",
        )

    def virial(self, field: Array) -> Array:
        """Return Σ_x φ ∂S/∂φ of each configuration, shape (n,).

        Its expectation value is the number of degrees of freedom for any action of a real field (Schwinger-Dyson, by
        partial integration).
        """
        xp = namespace(field)
        return -xp.sum(field * self.force(field), axis=batch_axes(self.field_shape), dtype=xp.float64)

    def identities(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return the virial; see `Theory.identities`."""
        return {"virial": self.virial}

    def start(self, generator: np.random.Generator, n: int, kind: str) -> NDArray[Any]:
        """Return ``n`` starting fields; see `Theory.start`.

        A hot start is white noise at the amplitude where Σ φ ∂S/∂φ has its expectation value: noise
        of another amplitude can lie so far up a steep action that every trajectory diverges there and the chain never
        moves.
        """
        field = super().start(generator, n, kind)
        if kind == "cold":
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
        scaled: NDArray[np.float64] = field * high.reshape(-1, *[1] * len(self.field_shape))
        return scaled
