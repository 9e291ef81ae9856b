"""Scalar φ⁴ theory on a periodic lattice of any dimension.

The action, in the convention of arXiv:1904.12072 and arXiv:2101.08176, is

    S = Σ_x [ Σ_μ (2 φ(x)² − φ(x) φ(x+μ) − φ(x) φ(x−μ)) + m² φ(x)² + λ φ(x)⁴ ],

that is Σ_x [(2d + m²) φ² + λ φ⁴ − 2 Σ_μ φ(x) φ(x+μ)]. There is no factor ½ in front of the kinetic term: the field is
1/√2 of the canonically normalised one. Other conventions are constructors, with the rescaling of the field stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite
from typing import ClassVar

from scipy.optimize import brentq

from flowmc.arrays import Array, batch_axes, check_field, namespace
from flowmc.errors import ParameterError
from flowmc.lattice import checked_shape, momentum_squared, neighbour_sum
from flowmc.theories.base import ScalarTheory
from flowmc.theories.spaces import ContinuousSpace, RealSpace

__all__ = ["Phi4"]


@dataclass(frozen=True)
class Phi4(ScalarTheory):
    """φ⁴ theory with S = Σ_x [(2d + m²) φ² + λ φ⁴ − 2 Σ_μ φ(x) φ(x+μ)].

    Parameters
    ----------
    shape
        Lattice extents (T, ..., X), in lattice units.
    m2
        Bare mass squared m², in lattice units; may be negative when λ > 0.
    lam
        Bare coupling λ ≥ 0, in lattice units.

    Raises
    ------
    ParameterError
        If λ < 0, or λ = 0 and m² ≤ 0 (the integral over the field diverges), or a value is not finite.

    References
    ----------
    .. [1] Albergo, Kanwar, Shanahan, arXiv:1904.12072.
    .. [2] Albergo et al., arXiv:2101.08176.
    """

    shape: tuple[int, ...]
    m2: float
    lam: float

    name: ClassVar[str] = "phi4"
    convention: ClassVar[str] = (
        "S = sum_x [ sum_mu (2 phi(x)^2 - phi(x) phi(x+mu) - phi(x) phi(x-mu)) + m2 phi^2 + lam phi^4 ], "
        "p = exp(-S), as in arXiv:1904.12072"
    )
    space: ClassVar[ContinuousSpace] = RealSpace()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", checked_shape(self.shape))
        if not (isfinite(self.m2) and isfinite(self.lam)):
            raise ParameterError(
                got=f"m2 = {self.m2}, lam = {self.lam}", expected="finite couplings", fix="correct the theory section"
            )
        if self.lam < 0 or (self.lam == 0 and self.m2 <= 0):
            raise ParameterError(
                got=f"m2 = {self.m2}, lam = {self.lam}: the action is not bounded below, so exp(-S) has no integral",
                expected="lam > 0, or lam = 0 with m2 > 0",
                fix="choose a positive lam",
            )

    @classmethod
    def from_kappa(cls, shape: Sequence[int], kappa: float, lam: float) -> Phi4:
        """Build the theory from the hopping-parameter convention.

        S_κ(ϕ) = Σ_x [−2κ Σ_μ ϕ(x) ϕ(x+μ) + (1 − 2λ_κ) ϕ² + λ_κ ϕ⁴] (Nicoli et al., arXiv:2007.07115) with our field
        **φ = √κ ϕ**: then m² = (1 − 2λ_κ)/κ − 2d, λ = λ_κ/κ², S_κ(ϕ) = S(φ) and ln Z_κ = ln Z − (V/2) ln κ, the
        Jacobian. Written with ϕ² + λ_κ (ϕ² − 1)², as elsewhere, the action is λ_κ V larger and ln Z smaller by as much.

        Parameters
        ----------
        shape
            Lattice extents.
        kappa
            Hopping parameter κ > 0.
        lam
            Coupling λ_κ ≥ 0 of that convention.

        Raises
        ------
        ParameterError
            If κ ≤ 0, or the couplings are not those of a theory.
        """
        if not kappa > 0:
            raise ParameterError(
                got=f"kappa = {kappa}", expected="kappa > 0", fix="change the sign of the field on odd sites instead"
            )
        extents = checked_shape(shape)
        return cls(extents, m2=(1 - 2 * lam) / kappa - 2 * len(extents), lam=lam / kappa**2)

    @classmethod
    def from_beta(cls, shape: Sequence[int], beta: float, g: float) -> Phi4:
        """Build the theory from the Ising-like convention of arXiv:2105.12481.

        S_β(ϕ) = Σ_x [−β Σ_μ ϕ(x) ϕ(x+μ) + (1 − 2g) ϕ² + g ϕ⁴]; that paper writes λ for g. It is the hopping-parameter
        convention with β = 2κ, so our field is **φ = √(β/2) ϕ**,
        S_β(ϕ) = S(φ) and ln Z_β = ln Z − (V/2) ln(β/2).

        Parameters
        ----------
        shape
            Lattice extents.
        beta
            Inverse temperature β > 0 of the Ising limit g → ∞.
        g
            Quartic coupling g ≥ 0 of that convention.

        Raises
        ------
        ParameterError
            If β ≤ 0, or the couplings are not those of a theory.
        """
        if not beta > 0:
            raise ParameterError(
                got=f"beta = {beta}", expected="beta > 0", fix="change the sign of the field on odd sites instead"
            )
        return cls.from_kappa(shape, kappa=beta / 2, lam=g)

    def action(self, field: Array) -> Array:
        """Return S of each configuration; see `Theory.action`."""
        check_field(field, self.shape)
        xp = namespace(field)
        square = field * field
        # Each link once: φ(x) φ(x+μ) summed over x equals φ(x) φ(x−μ) summed over x on a periodic lattice.
        forward = xp.zeros_like(field)
        for axis in batch_axes(self.shape):
            forward = forward + xp.roll(field, -1, axis=axis)
        density = square * (2 * len(self.shape) + self.m2 + self.lam * square) - 2 * field * forward
        return xp.sum(density, axis=batch_axes(self.shape), dtype=xp.float64)

    def gaussian_mass(self) -> float:
        """Return the mass M of the nearest free field, the solution of the gap equation; see the base class.

        E_q[S + log q] over free fields q is stationary where M² = m² + 6 λ ⟨φ²⟩_q, ⟨φ²⟩_q = (1/V) Σ_p 1 / (2 (p̂² + M²)):
        the Hartree approximation, which for λ > 0 has one positive solution whatever m².
        """
        hat = momentum_squared(self.shape)

        def gap(log_mass: float) -> float:
            square = exp(2 * log_mass)
            return square - self.m2 - 6 * self.lam * float((0.5 / (hat + square)).mean())

        # A small mass makes the zero mode fluctuate without bound, a large one nothing at all: a root lies between.
        low, high = -1.0, 1.0
        while gap(low) > 0:
            low -= 1
        while gap(high) < 0:
            high += 1
        return exp(float(brentq(gap, low, high, xtol=1e-13)))

    def force(self, field: Array) -> Array:
        """Return −∂S/∂φ = −2(2d + m²) φ − 4λ φ³ + 2 Σ_μ [φ(x+μ) + φ(x−μ)]; see `SmoothTheory.force`."""
        check_field(field, self.shape)
        dimensions = len(self.shape)
        local = field * (2 * (2 * dimensions + self.m2) + 4 * self.lam * (field * field))
        return 2 * neighbour_sum(field, dimensions) - local

    def annealed(self, fraction: float) -> Phi4:
        """Return the theory at a fraction t in [0, 1] of the way from a free field; see `Theory.annealed`.

        Both couplings are linear in t: λ(t) = t λ, and m²(t) = (1 − t) max(m², 1) + t m². The free field at t = 0 has a
        correlation length of at most about one site, so that flows begin near it. Wherever m²(t) ≤ 0, t > 0 and λ(t) > 0:
        all of the way are theories.
        """
        free = max(self.m2, 1.0)
        return replace(self, m2=(1 - fraction) * free + fraction * self.m2, lam=fraction * self.lam)
