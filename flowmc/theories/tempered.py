"""A theory at another temperature: the action times a fraction, for training that approaches its target by cooling.

Of Boltzmann weights exp(−f S) with f from near 0 to 1, the first are nearly flat and have no separated modes, whatever
the couplings are. A real field spreads as f falls (⟨Σ φ ∂S/∂φ⟩ = V/f, so as f^(−1/2) where the action is quadratic and as
f^(−1/4) where it is quartic), and at f = 0 nothing is left to normalise: fractions are positive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flowmc.arrays import Array
from flowmc.errors import ParameterError
from flowmc.theories.base import SmoothTheory, Theory
from flowmc.theories.spaces import ContinuousSpace

__all__ = ["TemperedTheory", "tempered"]


@dataclass(frozen=True)
class TemperedTheory(SmoothTheory):
    """The theory with the action f · S and the force f · F; it is for training alone, and no run is described with it.

    Parameters
    ----------
    base
        The theory with the action S.
    fraction
        Inverse temperature f in (0, 1], in units of that of the base.

    Raises
    ------
    ParameterError
        If the fraction is out of range.
    """

    base: SmoothTheory
    fraction: float
    shape: tuple[int, ...] = field(init=False, repr=False)
    space: ContinuousSpace = field(init=False, repr=False)  # type: ignore[misc]  # that of the base, whatever it is
    internal_axes: tuple[str, ...] = field(init=False, repr=False)  # type: ignore[misc]
    homogeneous: bool = field(init=False, repr=False)  # type: ignore[misc]

    name: ClassVar[str] = "tempered"
    convention: ClassVar[str] = "fraction times the action of the base theory, p = exp(-fraction S)"

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ParameterError(
                got=f"fraction = {self.fraction} of the action",
                expected="a fraction in (0, 1]; at zero exp(-fraction S) of a real field has no integral",
                fix="correct it",
            )
        for name in ("shape", "space", "internal_axes", "homogeneous"):
            object.__setattr__(self, name, getattr(self.base, name))

    @property
    def field_shape(self) -> tuple[int, ...]:
        """Shape of one configuration, that of the base."""
        return self.base.field_shape

    def action(self, field: Array) -> Array:
        """Return f · S of each configuration; see `Theory.action`."""
        return self.fraction * self.base.action(field)

    def force(self, field: Array) -> Array:
        """Return −f ∂S/∂φ; see `SmoothTheory.force`."""
        return self.fraction * self.base.force(field)

    def action_and_force(self, field: Array) -> tuple[Array, Array]:
        """Return both, from one evaluation of the base's."""
        action, force = self.base.action_and_force(field)
        return self.fraction * action, self.fraction * force

    def identities(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return none: nothing is produced at this temperature; see `Theory.identities`."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return the theory as plain data."""
        return {"name": self.name, "fraction": self.fraction, "base": self.base.describe(), "shape": list(self.shape)}


def tempered(theory: Theory, fraction: float) -> TemperedTheory:
    """Return a theory with a fraction of its action.

    Parameters
    ----------
    theory
        The theory, a `SmoothTheory`.
    fraction
        Fraction in (0, 1].

    Raises
    ------
    ParameterError
        If the theory has no force, or the fraction is out of range.
    """
    if not isinstance(theory, SmoothTheory):
        raise ParameterError(
            got=f'annealing_path = "temperature" for the theory {theory.name!r}',
            expected="a theory with a force; the couplings of an Ising model are its temperature already",
            fix='take annealing_path = "couplings", or annealing = 0',
        )
    return TemperedTheory(theory, fraction)
