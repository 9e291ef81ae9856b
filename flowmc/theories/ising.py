"""The Ising model on a periodic lattice of any dimension.

The energy and the action are

    H = −J Σ_x Σ_μ s(x) s(x+μ) − h Σ_x s(x),   S = β H,   s(x) = ±1,

with p = exp(−S)/Z and Z a plain sum over the 2^V configurations. The sum runs over d·V links; an extent of 2 has every
link along it twice. In two dimensions with h = 0 the model is critical at β J = ½ ln(1 + √2) in infinite volume, and
ln Z, energy and specific heat are known in every finite one (`flowmc_analysis.exact_ising`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import ClassVar

from flowmc.arrays import Array, batch_axes, check_field, namespace
from flowmc.errors import ParameterError
from flowmc.lattice import checked_shape, neighbour_sum
from flowmc.theories.base import Theory
from flowmc.theories.spaces import FieldSpace, SpinSpace

__all__ = ["Ising"]


@dataclass(frozen=True)
class Ising(Theory):
    """Ising spins with S = −β [J Σ_x Σ_μ s(x) s(x+μ) + h Σ_x s(x)].

    Parameters
    ----------
    shape
        Lattice extents (T, ..., X), in lattice units.
    beta
        Inverse temperature β ≥ 0, in units of 1/J.
    coupling
        Exchange coupling J: positive is ferromagnetic, negative antiferromagnetic.
    field
        Magnetic field h, in units of J.

    Raises
    ------
    ParameterError
        If β is negative, or a value is not finite.

    References
    ----------
    .. [1] B. Kaufman, Phys. Rev. 76 (1949) 1232.
    """

    shape: tuple[int, ...]
    beta: float
    coupling: float = 1.0
    field: float = 0.0

    name: ClassVar[str] = "ising"
    convention: ClassVar[str] = (
        "S = beta H, H = -coupling sum_x sum_mu s(x) s(x+mu) - field sum_x s(x), s = +-1, p = exp(-S), "
        "Z = sum over 2^V configurations"
    )
    space: ClassVar[FieldSpace] = SpinSpace()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", checked_shape(self.shape))
        if not (isfinite(self.beta) and isfinite(self.coupling) and isfinite(self.field)) or self.beta < 0:
            raise ParameterError(
                got=f"beta = {self.beta}, coupling = {self.coupling}, field = {self.field}",
                expected="finite values with beta >= 0",
                fix="for an antiferromagnet take a negative coupling",
            )

    def action(self, field: Array) -> Array:
        """Return S of each configuration; see `Theory.action`. Spins may be integers or floating-point numbers."""
        check_field(field, self.shape)
        xp = namespace(field)
        axes = batch_axes(self.shape)
        # Each link once: s(x) s(x+μ), at most d in modulus, so that int8 cannot overflow.
        links = xp.zeros_like(field)
        for axis in axes:
            links = links + field * xp.roll(field, -1, axis=axis)
        total = self.coupling * xp.sum(links, axis=axes, dtype=xp.float64)
        if self.field:
            total = total + self.field * xp.sum(field, axis=axes, dtype=xp.float64)
        return -self.beta * total

    def local_field(self, field: Array) -> Array:
        """Return a(x) = β (J Σ_μ [s(x+μ) + s(x−μ)] + h), shape (n, *shape), float64.

        The spin at x, given all others, is up with probability 1 / (1 + exp(−2 a(x))).
        """
        check_field(field, self.shape)
        xp = namespace(field)
        neighbours = neighbour_sum(field, len(self.shape))
        return self.beta * (self.coupling * xp.astype(neighbours, xp.float64, copy=False) + self.field)

    def identities(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return ``local_field``: Σ_x a(x) [s(x) − tanh a(x)], of expectation zero; see `Theory.identities`.

        It holds because a spin's mean, given the others, is tanh a(x), and a(x) does not contain it.
        """

        def deviation(field: Array) -> Array:
            xp = namespace(field)
            local = self.local_field(field)
            return xp.sum(local * (field - xp.tanh(local)), axis=batch_axes(self.shape), dtype=xp.float64)

        return {"local_field": deviation}

    def annealed(self, fraction: float) -> Ising:
        """Return the model at a fraction of its inverse temperature: at zero all configurations are equally likely."""
        return replace(self, beta=self.beta * fraction)
