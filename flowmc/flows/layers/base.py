"""What a layer of a coupling flow is: an invertible map of a field with its log-determinant.

Layers see a field as a row of numbers, (n, V), in which the even sites come first: the sublattices of the checkerboard
are then halves of the row, and taking them apart costs nothing.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.lattice import checkerboard

__all__ = ["Layer", "SiteOrder", "SizeDependent"]


@dataclass(frozen=True)
class SiteOrder:
    """A lattice and the order in which its sites stand in a row: the even ones first.

    Parameters
    ----------
    shape
        Lattice extents.
    """

    shape: tuple[int, ...]

    @property
    def sites(self) -> NDArray[np.int64]:
        """Flat lattice index of the site at each place of the row, (V,)."""
        even = checkerboard(self.shape).reshape(-1)
        return np.concatenate([np.flatnonzero(even), np.flatnonzero(~even)])

    def places(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the places in the row of the sites of a mask of the lattice's shape."""
        return np.flatnonzero(mask.reshape(-1)[self.sites])


class Layer(torch.nn.Module, abc.ABC):
    """An invertible map of fields (n, V) in the order of `SiteOrder`.

    Implementing a layer:

    - ``kind``, the key in `flowmc.flows.layers.LAYERS`; ``Config``, a frozen dataclass of plain data;
    - a constructor ``(order, config, z2)``, after which the layer is the identity map;
    - ``forward`` and ``inverse``; with ``z2`` the map is odd and its log-determinant even under φ → −φ;
    - a line in `flowmc.flows.layers.LAYERS`, which is also what parametrises the contract tests.

    Parameters
    ----------
    order
        The lattice and the order of its sites.
    config
        Hyper-parameters, an instance of ``Config``.
    z2
        Whether the layer is equivariant under φ → −φ.
    """

    kind: ClassVar[str]
    Config: ClassVar[type]

    def __init__(self, order: SiteOrder, config: Any, *, z2: bool) -> None:
        super().__init__()
        self.order = order
        self.config = config
        self.z2 = z2

    @abc.abstractmethod
    def forward(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Map fields (n, V); return them with the log-determinant, (n,), float64."""

    @abc.abstractmethod
    def inverse(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; return the fields with the log-determinant of the inverse, (n,), float64."""


class SizeDependent(torch.nn.Module, abc.ABC):
    """A module whose weights belong to one lattice, and know how to become those of another."""

    @abc.abstractmethod
    def take_over(self, other: Any) -> None:
        """Set the weights from those of a module of the same class for another lattice."""
