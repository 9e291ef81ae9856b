"""Base densities: where a transport starts. Those of real fields are Gaussian, even under φ → −φ, and invariant.

A free field in the convention of `flowmc.theories.FreeScalar` has independent modes of width σ(p) = [2 (p̂² + m²)]^(−½).
The closer the base is to the target's two-point function, the less the couplings have to learn; at the critical point the
long modes are the hard part, and those a free field has already.
"""

from __future__ import annotations

import abc
from math import inf, log, pi

import numpy as np
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.base import BaseDensity
from flowmc.flows.layers.base import SizeDependent
from flowmc.lattice import momentum_shells, momentum_squared, volume
from flowmc.theories import ScalarTheory, Theory

__all__ = [
    "BASES",
    "FreeFieldDensity",
    "GaussianDensity",
    "GeneralisedGaussianDensity",
    "SpectralDensity",
    "UniformDensity",
    "base_mass_for",
    "build_base",
    "check_base_mass",
]


def _sum(values: Tensor) -> Tensor:
    """Sum over all axes but the first, in float64."""
    return values.flatten(1).sum(1, dtype=torch.float64)


class GaussianDensity(BaseDensity):
    """Independent Gaussians of one learned width, N(0, σ²) at every site.

    Parameters
    ----------
    shape
        Lattice extents.
    dtype
        Type of the draws.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self._shape = shape
        self.log_width = torch.nn.Parameter(torch.zeros((), dtype=dtype))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` fields."""
        width = self.log_width
        noise = torch.randn((n, *self._shape), generator=generator, dtype=width.dtype, device=width.device)
        return noise * width.exp()

    def log_prob(self, field: Tensor) -> Tensor:
        """Return the log density."""
        sites = volume(self._shape)
        log_width = self.log_width.double()
        return -0.5 * _sum((field * torch.exp(-self.log_width)) ** 2) - sites * (log_width + 0.5 * log(2 * pi))


class GeneralisedGaussianDensity(BaseDensity):
    """Independent sites with −log r = Σ_x |φ(x)/σ|^p + V ln[2 σ Γ(1 + 1/p)], of fixed width and power.

    For p = 2 it is a Gaussian of variance σ²/2, for p → ∞ the uniform density on [−σ, σ]. For p = 4 its tails fall as
    those of a quartic action do.

    Parameters
    ----------
    shape
        Lattice extents.
    dtype
        Type of the draws.
    width
        σ, in units of the field.
    power
        p.

    Raises
    ------
    ParameterError
        If the width or the power is not positive and finite.

    References
    ----------
    .. [1] Máté, Fleuret, arXiv:2301.07388.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, width: float, power: float) -> None:
        super().__init__()
        if not (0 < width < inf and 1 <= power < inf):
            raise ParameterError(
                got=f"base_width = {width}, base_power = {power}",
                expected="a finite width above zero and a finite power of at least 1",
                fix="correct them; power 2 is a Gaussian",
            )
        self._shape = shape
        # Stored with the weights: what was drawn from must not depend on today's configuration.
        self.register_buffer("width", torch.tensor(width, dtype=dtype))
        self.register_buffer("power", torch.tensor(power, dtype=dtype))

    width: Tensor
    power: Tensor

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` fields: |φ/σ|^p is distributed as Γ(1/p)."""
        shape = (n, *self._shape)
        # In double precision: in single, small draws of Γ(1/p) underflow to a field that is exactly zero.
        alpha = (1 / self.power.double()).expand(shape).contiguous()
        radius = torch._standard_gamma(alpha, generator=generator) ** alpha
        sign = 2 * torch.randint(2, shape, generator=generator, device=alpha.device) - 1
        return (sign * radius).to(self.width.dtype) * self.width

    def log_prob(self, field: Tensor) -> Tensor:
        """Return the log density."""
        width, power = self.width.double(), self.power.double()
        norm = log(2) + torch.log(width) + torch.lgamma(1 + 1 / power)
        return -_sum(torch.abs(field / self.width) ** self.power) - volume(self._shape) * norm


class _ModeDensity(BaseDensity):
    """Independent Gaussian modes: white noise, Fourier transformed, times σ(p)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._shape = shape
        self._axes = tuple(range(1, len(shape) + 1))

    @abc.abstractmethod
    def log_width(self) -> Tensor:
        """Return log σ(p) on the dual lattice, even in p."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` fields."""
        log_width = self.log_width()
        noise = torch.randn((n, *self._shape), generator=generator, dtype=log_width.dtype, device=log_width.device)
        return self._filter(noise, log_width)

    def log_prob(self, field: Tensor) -> Tensor:
        """Return the log density."""
        log_width = self.log_width()
        noise = self._filter(field, -log_width)
        sites = volume(self._shape)
        # The determinant of the real map: σ(p) is even in p, so each mode of the dual lattice counts once.
        return -0.5 * _sum(noise**2) - log_width.sum(dtype=torch.float64) - 0.5 * sites * log(2 * pi)

    def _filter(self, field: Tensor, log_factor: Tensor) -> Tensor:
        last = self._shape[-1] // 2 + 1
        modes = torch.fft.rfftn(field, dim=self._axes) * log_factor.exp()[..., :last]
        filtered: Tensor = torch.fft.irfftn(modes, s=self._shape, dim=self._axes)
        return filtered


class FreeFieldDensity(_ModeDensity):
    """A free field, σ(p) = [2 (p̂² + m²)]^(−½).

    Parameters
    ----------
    shape
        Lattice extents.
    dtype
        Type of the draws.
    mass
        Mass, in lattice units; where it is learned, at the start of the training.
    learned
        Whether the mass is learned.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, mass: float, *, learned: bool = True) -> None:
        super().__init__(shape)
        log_mass = torch.tensor(log(mass), dtype=dtype)
        if learned:
            self.log_mass = torch.nn.Parameter(log_mass)
        else:
            # It is stored with the weights all the same: what was drawn from must not depend on today's formulas.
            self.register_buffer("log_mass", log_mass)
        self.register_buffer("_momentum_squared", torch.tensor(momentum_squared(shape), dtype=dtype), persistent=False)

    log_mass: Tensor
    _momentum_squared: Tensor

    def log_width(self) -> Tensor:
        """Return log σ(p)."""
        return -0.5 * torch.log(2 * (self._momentum_squared + torch.exp(2 * self.log_mass)))


class SpectralDensity(_ModeDensity, SizeDependent):
    """A Gaussian field whose width is learned for each value of p̂², starting from a free field.

    It is the best Gaussian base that lattice symmetry allows (momenta with the same p̂² share a width): the couplings are
    left with what is not Gaussian.

    Parameters
    ----------
    shape
        Lattice extents.
    dtype
        Type of the draws.
    mass
        Mass of the free field at the start of the training, in lattice units.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, mass: float) -> None:
        super().__init__(shape)
        shells, numbers = momentum_shells(shape)
        self.log_width_of_class = torch.nn.Parameter(torch.tensor(-0.5 * np.log(2 * (shells + mass**2)), dtype=dtype))
        self.register_buffer("_class", torch.tensor(numbers), persistent=False)

    _class: Tensor

    def log_width(self) -> Tensor:
        """Return log σ(p)."""
        return self.log_width_of_class[self._class]

    def take_over(self, other: SpectralDensity) -> None:
        """Interpolate 1/σ²(p), which is linear in p̂² for a free field, of a density on another lattice."""
        known, _ = momentum_shells(other._shape)
        own, _ = momentum_shells(self._shape)
        inverse_square = np.exp(-2 * other.log_width_of_class.detach().cpu().double().numpy())
        with torch.no_grad():
            self.log_width_of_class.copy_(torch.tensor(-0.5 * np.log(np.interp(own, known, inverse_square))))


class UniformDensity(BaseDensity):
    """Independent uniform angles in [−π, π): the Haar measure Π dθ / 2π itself, log r = 0.

    Parameters
    ----------
    shape
        Shape of a field.
    dtype
        Type of the draws.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self._shape = shape
        self.register_buffer("_like", torch.zeros((), dtype=dtype), persistent=False)

    _like: Tensor

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` fields."""
        like = self._like
        unit = torch.rand((n, *self._shape), generator=generator, dtype=like.dtype, device=like.device)
        return pi * (2 * unit - 1)

    def log_prob(self, field: Tensor) -> Tensor:
        """Return the log density."""
        return field.new_zeros(len(field), dtype=torch.float64)


MATCHED = "matched"


def check_base_mass(mass: float | str) -> None:
    """Check the mass of a free-field base as run descriptions give it: a number, or "matched".

    Raises
    ------
    ParameterError
        If it is neither.
    """
    if mass != MATCHED and (isinstance(mass, str) or not 0 < mass < inf):
        raise ParameterError(
            got=f"base_mass = {mass!r}",
            expected=f'a finite mass above zero, or "{MATCHED}"',
            fix="correct `base_mass`",
        )


def base_mass_for(theory: Theory, mass: float | str) -> float:
    """Return the mass of a free-field base in lattice units; "matched" is `ScalarTheory.gaussian_mass`.

    Raises
    ------
    ParameterError
        If it is to be matched to a theory for which it is not known.
    """
    if not isinstance(mass, str):
        return mass
    if not isinstance(theory, ScalarTheory):
        raise ParameterError(
            got=f'base_mass = "{MATCHED}" for the theory {theory.name!r}',
            expected="a theory of a scalar field for which the mass is known, for example phi4",
            fix="give `base_mass` as a number",
        )
    return theory.gaussian_mass()


BASES = ("gaussian", "free_field", "spectral")
"""Names of the base densities in run descriptions."""


def build_base(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, mass: float, *, learned: bool = True
) -> BaseDensity:
    """Build a base density by name.

    Parameters
    ----------
    name
        A name in `BASES`.
    shape
        Lattice extents.
    dtype
        Type of the draws.
    mass
        Mass of a free field, in lattice units; that of "spectral" at the start of the training.
    learned
        Whether the free field's mass is learned; the others have nothing that could be kept fixed.

    Raises
    ------
    ParameterError
        If the name is unknown, the mass not positive, or something else than a free field's mass is to be kept fixed.
    """
    if not 0 < mass < inf:
        raise ParameterError(got=f"base_mass = {mass}", expected="a finite base_mass > 0", fix="choose a positive mass")
    if not learned and name != "free_field":
        raise ParameterError(
            got=f"base_learned = false with base = {name!r}",
            expected='base = "free_field", whose mass can be kept fixed',
            fix="leave out `base_learned`",
        )
    if name == "gaussian":
        return GaussianDensity(shape, dtype)
    if name == "free_field":
        return FreeFieldDensity(shape, dtype, mass, learned=learned)
    if name == "spectral":
        return SpectralDensity(shape, dtype, mass)
    raise ParameterError(got=f"base = {name!r}", expected=f"one of {list(BASES)}", fix="correct `base` in [flow]")
