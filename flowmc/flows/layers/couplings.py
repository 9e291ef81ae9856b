"""Coupling layers: each part of a partition is moved in turn, by a map whose parameters depend on the other sites.

A layer of a checkerboard partition is a pair of couplings, one of each sublattice, which arXiv:2105.12481 calls a block.
With a site's own maps φ → g(φ; θ) the log-determinant is Σ log g′ over the active sites (Dinh et al., arXiv:1605.08803).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.layers.base import Layer, SiteOrder
from flowmc.flows.networks import NetworkConfig, build_conditioner
from flowmc.flows.partitions import PARTITIONS

__all__ = ["Additive", "Affine", "CouplingLayer", "CouplingLayerConfig"]


@dataclass(frozen=True)
class CouplingLayerConfig(NetworkConfig):
    """Hyper-parameters of a layer of couplings: those of its networks, and the partition.

    Parameters
    ----------
    partition
        A name in `flowmc.flows.partitions.PARTITIONS`.
    """

    partition: str = "checkerboard"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partition not in PARTITIONS:
            raise ParameterError(
                got=f"partition = {self.partition!r}", expected=f"one of {sorted(PARTITIONS)}", fix="correct it"
            )


class CouplingLayer(Layer):
    """Couplings of each part of a partition in turn; subclasses give the map of one site.

    Implementing a coupling: the number of its parameters that are odd and even under φ → −φ of the frozen sites, and
    ``transform`` with ``undo``, for which zero parameters are the identity.
    """

    Config: ClassVar[type] = CouplingLayerConfig
    config: CouplingLayerConfig

    def __init__(self, order: SiteOrder, config: CouplingLayerConfig, *, z2: bool) -> None:
        super().__init__(order, config, z2=z2)
        self._parts = [_Part(order, mask) for mask in PARTITIONS[config.partition](order.shape)]
        odd, even = self.parameter_numbers()
        self.conditioners = torch.nn.ModuleList(
            build_conditioner(
                config,
                order.shape,
                order.sites[part.frozen],
                order.sites[part.active],
                odd=odd,
                even=even,
                z2=z2,
            )
            for part in self._parts
        )

    @abc.abstractmethod
    def parameter_numbers(self) -> tuple[int, int]:
        """Return how many parameters of a site are odd, and how many even."""

    @abc.abstractmethod
    def transform(self, active: Tensor, odd: Tensor, even: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map the active sites (n, sites), by parameters (n, sites × number); return the logarithm of the slopes, too.

        None stands for slopes of one.
        """

    @abc.abstractmethod
    def undo(self, moved: Tensor, odd: Tensor, even: Tensor) -> tuple[Tensor, Tensor | None]:
        """Undo `transform`; return the logarithm of the slopes of the inverse, too."""

    def forward(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Map fields; see `Layer.forward`."""
        log_det = field.new_zeros(len(field), dtype=torch.float64)
        for part, conditioner in zip(self._parts, self.conditioners, strict=True):
            frozen, active = part.split(field)
            moved, log_slope = self.transform(active, *conditioner(frozen))
            field = part.join(frozen, moved)
            if log_slope is not None:
                log_det = log_det + log_slope.sum(1, dtype=torch.float64)
        return field, log_det

    def inverse(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; see `Layer.inverse`."""
        log_det = field.new_zeros(len(field), dtype=torch.float64)
        for part, conditioner in zip(reversed(self._parts), reversed(self.conditioners), strict=True):
            frozen, moved = part.split(field)
            active, log_slope = self.undo(moved, *conditioner(frozen))
            field = part.join(frozen, active)
            if log_slope is not None:
                log_det = log_det + log_slope.sum(1, dtype=torch.float64)
        return field, log_det


class _Part:
    """The active sites of one coupling and the rest: how to take them out of a row of sites, and put them back."""

    def __init__(self, order: SiteOrder, mask: NDArray[np.bool_]) -> None:
        self.active, self.frozen = order.places(mask), order.places(~mask)
        half = len(self.active)
        self._first = np.array_equal(self.active, np.arange(half))
        self._last = np.array_equal(self.frozen, np.arange(len(self.frozen)))
        self._half = half if self._first else len(self.frozen)

    def split(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frozen and the active sites."""
        first, last = field[:, : self._half], field[:, self._half :]
        if self._first:
            return last, first
        if self._last:
            return first, last
        return self._taken(field, self.frozen), self._taken(field, self.active)

    def join(self, frozen: Tensor, active: Tensor) -> Tensor:
        """Return the row of all sites."""
        if self._first:
            return torch.cat([active, frozen], 1)
        if self._last:
            return torch.cat([frozen, active], 1)
        back = np.argsort(np.concatenate([self.frozen, self.active]))
        return self._taken(torch.cat([frozen, active], 1), back)

    @staticmethod
    def _taken(field: Tensor, places: NDArray[np.int64]) -> Tensor:
        return field.index_select(1, torch.as_tensor(places, device=field.device))


class Additive(CouplingLayer):
    """Additive couplings, φ_a → φ_a + t(φ_f): volume preserving (NICE, Dinh, Krueger, Bengio, arXiv:1410.8516)."""

    kind: ClassVar[str] = "additive"

    def parameter_numbers(self) -> tuple[int, int]:
        """Return one shift; see `CouplingLayer.parameter_numbers`."""
        return 1, 0

    def transform(self, active: Tensor, odd: Tensor, even: Tensor) -> tuple[Tensor, None]:  # noqa: ARG002
        """Map the active sites; see `CouplingLayer.transform`."""
        return active + odd, None

    def undo(self, moved: Tensor, odd: Tensor, even: Tensor) -> tuple[Tensor, None]:  # noqa: ARG002
        """Undo `transform`; see `CouplingLayer.undo`."""
        return moved - odd, None


class Affine(CouplingLayer):
    """Affine couplings, φ_a → φ_a e^{s(φ_f)} + t(φ_f).

    Real NVP, Dinh, Sohl-Dickstein, Bengio, arXiv:1605.08803; for φ⁴ Albergo, Kanwar, Shanahan, arXiv:1904.12072, and Del
    Debbio, Marsh Rossney, Wilson, arXiv:2105.12481.
    """

    kind: ClassVar[str] = "affine"

    def parameter_numbers(self) -> tuple[int, int]:
        """Return one shift and one log-scale; see `CouplingLayer.parameter_numbers`."""
        return 1, 1

    def transform(self, active: Tensor, odd: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        """Map the active sites; see `CouplingLayer.transform`."""
        return active * torch.exp(even) + odd, even

    def undo(self, moved: Tensor, odd: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `transform`; see `CouplingLayer.undo`."""
        return (moved - odd) * torch.exp(-even), -even
