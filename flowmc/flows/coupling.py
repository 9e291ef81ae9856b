"""Affine coupling flow on a checkerboard, over a Gaussian or a free-field base.

Each layer moves one sublattice, given the other: φ_a → φ_a e^{s(φ_f)} + t(φ_f), with log-determinant Σ s (Dinh et al.,
arXiv:1605.08803; for φ⁴ Albergo, Kanwar, Shanahan, arXiv:1904.12072, and Del Debbio, Marsh Rossney, Wilson,
arXiv:2105.12481). Between pairs of layers the field may pass, site by site, through a learned odd monotone function, the
sinh-arcsinh transformation (Jones and Pewsey, Biometrika 96 (2009) 761)

    φ → b sinh(δ arcsinh(φ / c)),

which grows like |φ|^δ: affine layers make the light tails of exp(−λφ⁴) from Gaussian ones only slowly, δ < 1 at once.
Its inverse has the same form with 1/δ. All of it is exactly equivariant under φ → −φ if the networks are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.base import DTYPES, TransportFlow
from flowmc.flows.densities import BASES, build_base
from flowmc.flows.networks import NETWORKS, build_conditioner
from flowmc.lattice import checkerboard
from flowmc.theories import Theory

__all__ = ["CouplingConfig", "CouplingFlow"]


@dataclass(frozen=True)
class CouplingConfig:
    """Hyper-parameters of a `CouplingFlow`.

    Parameters
    ----------
    base
        "gaussian", "free_field" (learned mass) or "spectral" (learned width of each p̂²).
    base_mass
        Mass at which the free field starts, in lattice units.
    layers
        Coupling layers, alternating between the sublattices.
    network
        "convolutional" or "fully_connected".
    hidden
        Width of each hidden layer of the networks.
    radius
        Range of the convolutions in each direction, in lattice units.
    z2
        Whether the flow is exactly equivariant under φ → −φ.
    sinh_arcsinh
        Whether a learned pointwise function follows every second layer.
    dtype
        "float32" or "float64": the type in which the flow is trained.

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    """

    base: str = "free_field"
    base_mass: float = 1.0
    layers: int = 8
    network: str = "convolutional"
    hidden: tuple[int, ...] = (8,)
    radius: int = 4
    z2: bool = True
    sinh_arcsinh: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name, known in (("base", BASES), ("network", NETWORKS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)!r}", expected=f"one of {list(known)}", fix=f"correct `{name}`"
                )
        if self.layers < 1 or self.radius < 1 or not self.hidden or min(self.hidden) < 1 or not self.base_mass > 0:
            raise ParameterError(
                got=f"layers = {self.layers}, radius = {self.radius}, hidden = {self.hidden}, "
                f"base_mass = {self.base_mass}",
                expected="layers, radius, every hidden width and base_mass above zero",
                fix="correct the value",
            )


class _SinhArcsinh(torch.nn.Module):
    """The pointwise map φ → b sinh(δ arcsinh(φ / c)); starts as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.log_b = torch.nn.Parameter(torch.zeros(()))
        self.log_c = torch.nn.Parameter(torch.zeros(()))
        self.log_delta = torch.nn.Parameter(torch.zeros(()))

    def forward(self, field: Tensor) -> tuple[Tensor, Tensor]:
        scaled, log_slope = self._map(field * torch.exp(-self.log_c), torch.exp(self.log_delta))
        return scaled * torch.exp(self.log_b), log_slope + (self.log_delta + self.log_b - self.log_c)

    def inverse(self, field: Tensor) -> tuple[Tensor, Tensor]:
        scaled, log_slope = self._map(field * torch.exp(-self.log_b), torch.exp(-self.log_delta))
        return scaled * torch.exp(self.log_c), log_slope - (self.log_delta + self.log_b - self.log_c)

    @staticmethod
    def _map(inner: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return sinh(δ arcsinh z) and the logarithm of its slope without the factor δ, site by site."""
        outer = torch.sinh(delta * torch.asinh(inner))
        return outer, 0.5 * (torch.log1p(outer * outer) - torch.log1p(inner * inner))


class CouplingFlow(TransportFlow):
    """Affine couplings on alternating sublattices of a checkerboard; see the module for the maths.

    Parameters
    ----------
    theory
        The theory of a real field; only its lattice is used.
    config
        Hyper-parameters.
    """

    kind: ClassVar[str] = "coupling"
    Config: ClassVar[type] = CouplingConfig
    config: CouplingConfig

    def __init__(self, theory: Theory, config: CouplingConfig) -> None:
        super().__init__(theory, config)
        shape = theory.shape
        dtype = DTYPES[config.dtype]
        even = checkerboard(shape).reshape(-1)
        sublattices = [np.flatnonzero(even), np.flatnonzero(~even)]
        order = np.concatenate(sublattices)
        self.register_buffer("_order", torch.tensor(order), persistent=False)
        self.register_buffer("_order_back", torch.tensor(np.argsort(order)), persistent=False)
        self._n_even = len(sublattices[0])
        self.base = build_base(config.base, shape, dtype, config.base_mass)
        self.conditioners = torch.nn.ModuleList(
            build_conditioner(
                config.network,
                shape,
                frozen=sublattices[1 - layer % 2],
                active=sublattices[layer % 2],
                hidden=config.hidden,
                radius=config.radius,
                z2=config.z2,
            )
            for layer in range(config.layers)
        )
        n_pointwise = config.layers // 2 if config.sinh_arcsinh else 0
        self.pointwise = torch.nn.ModuleList(_SinhArcsinh() for _ in range(n_pointwise))
        self.to(dtype)

    _order: Tensor
    _order_back: Tensor

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Map base draws to fields; see `TransportFlow.forward`."""
        halves = self._split(latent)
        log_det = latent.new_zeros(len(latent), dtype=torch.float64)
        for layer, conditioner in enumerate(self.conditioners):
            active = layer % 2
            shift, log_scale = conditioner(halves[1 - active])
            halves[active] = halves[active] * torch.exp(log_scale) + shift
            log_det = log_det + log_scale.sum(1, dtype=torch.float64)
            if active and self.pointwise:
                pointwise = self.pointwise[layer // 2]
                for half in (0, 1):
                    halves[half], log_slope = pointwise(halves[half])
                    log_det = log_det + log_slope.sum(1, dtype=torch.float64)
        return self._join(halves), log_det

    def inverse(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Map fields to base draws; see `TransportFlow.inverse`."""
        halves = self._split(field)
        log_det = field.new_zeros(len(field), dtype=torch.float64)
        for layer in reversed(range(len(self.conditioners))):
            active = layer % 2
            if active and self.pointwise:
                pointwise = self.pointwise[layer // 2]
                for half in (0, 1):
                    halves[half], log_slope = pointwise.inverse(halves[half])  # type: ignore[operator]
                    log_det = log_det + log_slope.sum(1, dtype=torch.float64)
            shift, log_scale = self.conditioners[layer](halves[1 - active])
            halves[active] = (halves[active] - shift) * torch.exp(-log_scale)
            log_det = log_det - log_scale.sum(1, dtype=torch.float64)
        return self._join(halves), log_det

    def _split(self, field: Tensor) -> list[Tensor]:
        ordered = field.flatten(1).index_select(1, self._order)
        return [ordered[:, : self._n_even], ordered[:, self._n_even :]]

    def _join(self, halves: list[Tensor]) -> Tensor:
        return torch.cat(halves, 1).index_select(1, self._order_back).reshape(-1, *self.shape)
