"""Base densities: where a transport starts. Those of real fields are Gaussian, even under φ → −φ, and invariant.

A free field in the convention of `flowmc.theories.FreeScalar` has independent modes of width σ(p) = [2 (p̂² + m²)]^(−½).
The closer the base is to the target's two-point function, the less the couplings have to learn; at the critical point the
long modes are the hard part, and those a free field has already.
"""

from __future__ import annotations

import abc
from math import log, pi

import numpy as np
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.base import BaseDensity
from flowmc.lattice import momentum_squared, volume

__all__ = ["BASES", "FreeFieldDensity", "GaussianDensity", "SpectralDensity", "UniformDensity", "build_base"]


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
    """A free field of learned mass, σ(p) = [2 (p̂² + m²)]^(−½).

    Parameters
    ----------
    shape
        Lattice extents.
    dtype
        Type of the draws.
    mass
        Mass at the start of the training, in lattice units.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, mass: float) -> None:
        super().__init__(shape)
        self.log_mass = torch.nn.Parameter(torch.tensor(log(mass), dtype=dtype))
        self.register_buffer("_momentum_squared", torch.tensor(momentum_squared(shape), dtype=dtype), persistent=False)

    _momentum_squared: Tensor

    def log_width(self) -> Tensor:
        """Return log σ(p)."""
        return -0.5 * torch.log(2 * (self._momentum_squared + torch.exp(2 * self.log_mass)))


class SpectralDensity(_ModeDensity):
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
        values, classes = np.unique(momentum_squared(shape).round(9), return_inverse=True)
        start = -0.5 * np.log(2 * (values + mass**2))
        self.log_width_of_class = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
        self.register_buffer("_class", torch.tensor(classes.reshape(shape)), persistent=False)

    _class: Tensor

    def log_width(self) -> Tensor:
        """Return log σ(p)."""
        return self.log_width_of_class[self._class]


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


BASES = ("gaussian", "free_field", "spectral")
"""Names of the base densities in run descriptions."""


def build_base(name: str, shape: tuple[int, ...], dtype: torch.dtype, mass: float) -> BaseDensity:
    """Build a base density by name.

    Raises
    ------
    ParameterError
        If the name is unknown or the mass not positive.
    """
    if not mass > 0:
        raise ParameterError(got=f"base_mass = {mass}", expected="base_mass > 0", fix="choose a positive mass")
    if name == "gaussian":
        return GaussianDensity(shape, dtype)
    if name == "free_field":
        return FreeFieldDensity(shape, dtype, mass)
    if name == "spectral":
        return SpectralDensity(shape, dtype, mass)
    raise ParameterError(got=f"base = {name!r}", expected=f"one of {list(BASES)}", fix="correct `base` in [flow]")
