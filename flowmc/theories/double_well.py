"""A quantum particle in a double well, on a periodic lattice in imaginary time.

The action, in the convention of Máté and Fleuret, arXiv:2301.07388, is

    S = Δ Σ_i [ (λ/4) x_i⁴ − (m/2) x_i² + (m/2) ((x_i − x_{i−1}) / Δ)² ],    Δ = T / N,    x_{−1} = x_{N−1}:

the path integral of H = p²/2m − (m/2) x² + (λ/4) x⁴ at temperature 1/T. The wells are at x = ±√(m/λ), with a barrier
of m²/4λ between them. Both walls and kinetic term grow with m, so that paths cross the barrier ever more rarely; what is
exactly known of the lattice at any spacing is in `flowmc_analysis.exact_double_well`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import ClassVar

from flowmc.arrays import Array, batch_axes, check_field, namespace
from flowmc.errors import ParameterError
from flowmc.lattice import checked_shape, neighbour_sum
from flowmc.theories.base import ScalarTheory
from flowmc.theories.spaces import ContinuousSpace, RealSpace

__all__ = ["DoubleWell"]

# Of the mass where annealing begins: the barrier is 1/256 of the target's then, and neighbours hardly feel each other.
SMALLEST_FRACTION = 1 / 16


@dataclass(frozen=True)
class DoubleWell(ScalarTheory):
    """A particle in a double well: S = Δ Σ_i [λ/4 x_i⁴ − m/2 x_i² + m/2 ((x_i − x_{i−1}) / Δ)²], periodic.

    With two sites the sum over i counts the one pair of neighbours twice, as it stands.

    Parameters
    ----------
    n_sites
        Number N of sites, at least 2.
    extent
        Extent T of imaginary time, in the units of 1/m; the spacing is Δ = T/N.
    mass
        Mass m > 0 of the particle and coefficient of its inverted parabola.
    coupling
        Quartic coupling λ > 0.
    shape
        The lattice (N,), which follows from ``n_sites`` and need not be given.

    Raises
    ------
    ParameterError
        If a number is not positive and finite, or the shape is another one.

    References
    ----------
    .. [1] Máté, Fleuret, Transactions on Machine Learning Research (2023), arXiv:2301.07388.

    Examples
    --------
    >>> DoubleWell(16, extent=4.0, mass=1.5).spacing
    0.25
    """

    n_sites: int
    extent: float
    mass: float
    coupling: float = 1.0
    shape: tuple[int, ...] = ()

    name: ClassVar[str] = "double_well"
    convention: ClassVar[str] = (
        "S = dT sum_i [ coupling/4 x_i^4 - mass/2 x_i^2 + mass/2 ((x_i - x_(i-1))/dT)^2 ], dT = extent/n_sites, "
        "p = exp(-S), as in arXiv:2301.07388"
    )
    space: ClassVar[ContinuousSpace] = RealSpace()

    def __post_init__(self) -> None:
        numbers = {"extent": self.extent, "mass": self.mass, "coupling": self.coupling}
        if not all(isfinite(value) and value > 0 for value in numbers.values()):
            raise ParameterError(
                got=", ".join(f"{name} = {value}" for name, value in numbers.items()),
                expected="a positive, finite extent, mass and coupling",
                fix="correct them",
            )
        try:
            derived = checked_shape((self.n_sites,))
        except ParameterError as error:
            raise ParameterError(
                got=f"n_sites = {self.n_sites}", expected="an integer of at least 2", fix="correct `n_sites`"
            ) from error
        if tuple(self.shape) not in ((), derived):
            raise ParameterError(
                got=f"shape = {list(self.shape)} with n_sites = {self.n_sites}",
                expected=f"shape = {list(derived)}, which follows from n_sites",
                fix="leave `shape` out",
            )
        object.__setattr__(self, "shape", derived)

    @property
    def spacing(self) -> float:
        """Lattice spacing Δ = T/N."""
        return self.extent / self.n_sites

    def action(self, field: Array) -> Array:
        """Return S of each configuration; see `Theory.action`."""
        check_field(field, self.shape)
        xp = namespace(field)
        square, step = field * field, field - xp.roll(field, 1, axis=-1)
        potential = self.spacing * square * (self.coupling / 4 * square - self.mass / 2)
        density = potential + self.mass / (2 * self.spacing) * (step * step)
        return xp.sum(density, axis=batch_axes(self.shape), dtype=xp.float64)

    def force(self, field: Array) -> Array:
        """Return −∂S/∂x = Δ (m x − λ x³) − (m/Δ) (2 x_i − x_{i+1} − x_{i−1}); see `SmoothTheory.force`."""
        check_field(field, self.shape)
        local = self.spacing * field * (self.mass - self.coupling * (field * field))
        return local + self.mass / self.spacing * (neighbour_sum(field, 1) - 2 * field)

    def annealed(self, fraction: float) -> DoubleWell:
        """Return the theory of mass m(t) = (1 − t) m/16 + t m; see `Theory.annealed`.

        Depth of the wells and stiffness of the path both fall with the mass: at t = 0 next to nothing is left but a
        quartic well for each site. All of the way are theories, as λ stays.
        """
        return replace(self, mass=self.mass * ((1 - fraction) * SMALLEST_FRACTION + fraction))
