"""The free scalar field, solvable mode by mode: the reference theory of the tests and the base of good flows.

    S = Σ_x [ Σ_μ (φ(x+μ) − φ(x))² + m² φ(x)² ] = Σ_p (p̂² + m²) |φ̃(p)|²,   ln Z = ½ Σ_p ln(π / (p̂² + m²)),

with the unitary Fourier transform; each mode is Gaussian with ⟨|φ̃(p)|²⟩ = 1 / (2 (p̂² + m²)).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import Array, batch_axes, check_field, namespace
from flowmc.errors import ParameterError
from flowmc.lattice import checked_shape, momentum_squared, neighbour_sum
from flowmc.theories.base import ScalarTheory
from flowmc.theories.spaces import ContinuousSpace, RealSpace

__all__ = ["FreeScalar"]


@dataclass(frozen=True)
class FreeScalar(ScalarTheory):
    """Free scalar field with S = Σ_x [Σ_μ (φ(x+μ) − φ(x))² + m² φ²], in the normalisation of `Phi4` at λ = 0.

    Parameters
    ----------
    shape
        Lattice extents (T, ..., X), in lattice units.
    mass
        Mass m > 0, in lattice units.

    Raises
    ------
    ParameterError
        If the mass is not positive and finite (the zero mode would have no normalisable distribution).
    """

    shape: tuple[int, ...]
    mass: float

    name: ClassVar[str] = "free_scalar"
    convention: ClassVar[str] = "S = sum_x [ sum_mu (phi(x+mu) - phi(x))^2 + mass^2 phi^2 ], p = exp(-S)"
    space: ClassVar[ContinuousSpace] = RealSpace()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", checked_shape(self.shape))
        if not (isfinite(self.mass) and self.mass > 0):
            raise ParameterError(got=f"mass = {self.mass}", expected="a finite mass > 0", fix="choose a positive mass")

    def action(self, field: Array) -> Array:
        """Return S of each configuration; see `Theory.action`."""
        check_field(field, self.shape)
        xp = namespace(field)
        density = self.mass**2 * field * field
        for axis in batch_axes(self.shape):
            difference = xp.roll(field, -1, axis=axis) - field
            density = density + difference * difference
        return xp.sum(density, axis=batch_axes(self.shape), dtype=xp.float64)

    def force(self, field: Array) -> Array:
        """Return −∂S/∂φ = 2 Σ_μ [φ(x+μ) + φ(x−μ) − 2φ(x)] − 2 m² φ; see `SmoothTheory.force`."""
        check_field(field, self.shape)
        dimensions = len(self.shape)
        return 2 * neighbour_sum(field, dimensions) - 2 * (2 * dimensions + self.mass**2) * field

    def annealed(self, fraction: float) -> FreeScalar:
        """Return the field of m²(t) = (1 − t) max(m², 1) + t m²: the path of `Phi4` at λ = 0; see `Theory.annealed`."""
        squared = self.mass * self.mass
        return replace(self, mass=sqrt((1 - fraction) * max(squared, 1.0) + fraction * squared))

    def gaussian_mass(self) -> float:
        """Return the theory's own mass; see `ScalarTheory.gaussian_mass`."""
        return self.mass

    def draw(self, generator: np.random.Generator, n: int) -> NDArray[np.float64]:
        """Draw ``n`` exact, independent configurations, (n, *shape), by Fourier transform of white noise."""
        axes = batch_axes(self.shape)
        noise = np.fft.fftn(generator.standard_normal((n, *self.shape)), axes=axes)
        modes = noise / np.sqrt(2 * (momentum_squared(self.shape) + self.mass**2))
        return np.fft.ifftn(modes, axes=axes).real
