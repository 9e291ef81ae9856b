"""A layer that is linear and diagonal in momentum space: what free fields differ by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flowmc.flows.layers.base import Layer, SiteOrder, SizeDependent
from flowmc.lattice import momentum_shells

__all__ = ["Spectral", "SpectralConfig"]


@dataclass(frozen=True)
class SpectralConfig:
    """Hyper-parameters of a `Spectral` layer: none."""


class Spectral(Layer, SizeDependent):
    """Every Fourier mode times a learned factor of its shell, φ̃(p) → e^{w(p̂²)} φ̃(p).

    The log-determinant Σ_p w(p̂²) does not depend on the field. Between two lattices the factors are interpolated in p̂².
    """

    kind: ClassVar[str] = "spectral"
    Config: ClassVar[type] = SpectralConfig

    def __init__(self, order: SiteOrder, config: SpectralConfig, *, z2: bool) -> None:
        super().__init__(order, config, z2=z2)
        shells, numbers = momentum_shells(order.shape)
        self._axes = tuple(range(1, len(order.shape) + 1))
        self.log_factor_of_shell = torch.nn.Parameter(torch.zeros(len(shells)))
        self.register_buffer("_shell", torch.tensor(numbers), persistent=False)
        self.register_buffer("_sites", torch.tensor(order.sites), persistent=False)
        self.register_buffer("_places", torch.tensor(np.argsort(order.sites)), persistent=False)

    _shell: Tensor
    _sites: Tensor
    _places: Tensor

    def forward(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Map fields; see `Layer.forward`."""
        return self._multiply(field, self.log_factor_of_shell[self._shell])

    def inverse(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; see `Layer.inverse`."""
        return self._multiply(field, -self.log_factor_of_shell[self._shell])

    def take_over(self, other: Spectral) -> None:
        """Interpolate the factors of a layer for another lattice."""
        known, _ = momentum_shells(other.order.shape)
        own, _ = momentum_shells(self.order.shape)
        factors = np.interp(own, known, other.log_factor_of_shell.detach().cpu().double().numpy())
        with torch.no_grad():
            self.log_factor_of_shell.copy_(torch.tensor(factors))

    def _multiply(self, field: Tensor, log_factor: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.order.shape
        ordered = field.index_select(1, self._places).reshape(-1, *shape)
        factor = log_factor.exp()[..., : shape[-1] // 2 + 1]
        modes = torch.fft.rfftn(ordered, dim=self._axes) * factor
        moved = torch.fft.irfftn(modes, s=shape, dim=self._axes).flatten(1).index_select(1, self._sites)
        return moved, log_factor.sum(dtype=torch.float64).expand(len(field))
