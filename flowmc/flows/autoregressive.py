"""Variational autoregressive network (VAN) for Ising spins.

The spins are drawn in raster order, each from a masked network that sees all spins before it (Wu, Wang, Zhang,
Phys. Rev. Lett. 122 (2019) 080602, arXiv:1809.10606). The dense network has of the order of V² weights and reaches
everywhere; the convolutional one has weights that do not grow with the lattice, and a finite range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.base import DTYPES
from flowmc.flows.causal import CausalConvolution, CausalDense, CausalNetwork
from flowmc.flows.spins import SpinFlow, spin_log_prob
from flowmc.theories import Theory

__all__ = ["AutoregressiveConfig", "AutoregressiveFlow"]

NETWORKS = ("dense", "convolutional")


@dataclass(frozen=True)
class AutoregressiveConfig:
    """Hyper-parameters of an `AutoregressiveFlow`.

    Parameters
    ----------
    network
        "dense" or, on two-dimensional lattices, "convolutional".
    width
        Hidden units for each spin, or channels.
    depth
        Hidden layers.
    radius
        Range of each convolution, in lattice units.
    z2
        Whether to average over the global spin flip.
    translations
        Whether to average over translations along the last axis; every log q then costs as many passes as that is long.
    dtype
        "float32" or "float64": the type in which the flow is trained.

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    """

    network: str = "dense"
    width: int = 4
    depth: int = 1
    radius: int = 3
    z2: bool = True
    translations: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, known in (("network", NETWORKS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)!r}", expected=f"one of {list(known)}", fix=f"correct `{name}`"
                )
        for name in ("width", "depth", "radius"):
            if getattr(self, name) < 1:
                raise ParameterError(got=f"{name} = {getattr(self, name)}", expected="1 or more", fix="correct it")


class AutoregressiveFlow(SpinFlow):
    """Spins drawn one after the other from a masked network; see the module.

    Parameters
    ----------
    theory
        The Ising model.
    config
        Hyper-parameters.

    Raises
    ------
    ParameterError
        If a convolutional network is asked for on a lattice that is not two-dimensional, or shorter than its radius.
    """

    kind: ClassVar[str] = "autoregressive"
    Config: ClassVar[type] = AutoregressiveConfig
    config: AutoregressiveConfig

    def __init__(self, theory: Theory, config: AutoregressiveConfig) -> None:
        super().__init__(theory, config)
        self.network: CausalNetwork
        if config.network == "dense":
            self.network = CausalDense(0, theory.volume, config.width, config.depth)
        elif len(theory.shape) == 2 and config.radius < max(theory.shape):
            self.network = CausalConvolution(theory.shape, config.width, config.depth, config.radius)
        else:
            raise ParameterError(
                got=f'network = "convolutional" of radius {config.radius} on a lattice of {theory.shape}',
                expected="a two-dimensional lattice, longer than the radius",
                fix='lower `radius`, or take network = "dense"',
            )
        self.to(DTYPES[config.dtype])

    def component_sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw spins; see `SpinFlow.component_sample`."""
        uniform = torch.rand(self.network.n_spins, n, generator=generator, device=self.device, dtype=torch.float64)
        spins, logits = self.network.draw(self._context(n), uniform)
        return spins.reshape(n, *self.shape).to(torch.int8), spin_log_prob(spins, logits).sum(1, dtype=torch.float64)

    def component_log_prob(self, field: Tensor) -> Tensor:
        """Return log q₁ of spins; see `SpinFlow.component_log_prob`."""
        spins = field.reshape(len(field), -1).to(self.dtype)
        return spin_log_prob(spins, self.network(self._context(len(field)), spins)).sum(1, dtype=torch.float64)

    def _context(self, n: int) -> Tensor:
        return torch.empty(n, 0, dtype=self.dtype, device=self.device)
