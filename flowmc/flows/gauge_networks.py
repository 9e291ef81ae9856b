"""Which links a gauge-equivariant layer moves, and the convolutions that tell it how.

A layer moves some links of one direction μ. In the frame of the layer the first lattice axis runs along μ and the second
one across; the link at (i, c) is in the plaquettes (i, c), *active*, and (i, c − 1), *passive*, which change with it. All
others are *frozen*, and so are loops of two plaquettes whose perimeter has no active link, above all those of a passive
plaquette and its active neighbour: the network sees the sines and cosines of all of them.

Masks, by the sites of the active links:

- "stripes": every fourth column c, all i (Kanwar et al., arXiv:2003.06413);
- "rows": every fourth i, every second c, and the same moved by (2, 1) (Albergo et al., arXiv:2202.11712; also used by
  Białas, Korcyl, Stebel, arXiv:2308.13294);
- "cells": every second i and every second c, one in each cell of 2 × 2 sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, leaky_relu

from flowmc.errors import ParameterError

__all__ = ["MASKS", "ConvolutionalNetwork", "Mask", "build_mask"]

MASKS: dict[str, tuple[tuple[tuple[int, int], ...], tuple[int, int]]] = {
    "stripes": (((0, 0),), (1, 4)),
    "rows": (((0, 0), (2, 1)), (4, 2)),
    "cells": (((0, 0),), (2, 2)),
}
"""By name the first active sites (i, c) and the periods with which they repeat."""


@dataclass(frozen=True)
class Mask:
    """The sites of a layer in its frame.

    Parameters
    ----------
    origins
        First active sites.
    periods
        Periods with which they repeat, along and across.
    shape
        Extents of the lattice, along and across.
    """

    origins: tuple[tuple[int, int], ...]
    periods: tuple[int, int]
    shape: tuple[int, int]

    @property
    def active(self) -> np.ndarray:
        """Flat numbers of the active sites, origin by origin."""
        sites = np.arange(self.shape[0] * self.shape[1]).reshape(self.shape)
        return np.concatenate([sites[i :: self.periods[0], c :: self.periods[1]].ravel() for i, c in self.origins])

    @property
    def is_active(self) -> np.ndarray:
        """Whether the link at each site is active, (along, across)."""
        found = np.zeros(self.shape[0] * self.shape[1], bool)
        found[self.active] = True
        return found.reshape(self.shape)

    @property
    def frozen_loops(self) -> np.ndarray:
        """Whether the layer leaves each loop as it is, (3, along, across): plaquette, two along, two across."""
        active = self.is_active
        moved = active | np.roll(active, -1, 1)
        along = moved | np.roll(moved, -1, 0)
        across = active | np.roll(active, -2, 1)
        return ~np.stack([moved, along, across])


def build_mask(name: str, shape: tuple[int, int], offset: tuple[int, int]) -> Mask:
    """Build a mask in the frame of a layer.

    Parameters
    ----------
    name
        A name in `MASKS`.
    shape
        Extents of the lattice, along and across the links.
    offset
        Displacement of the mask, along and across.

    Raises
    ------
    ParameterError
        If the mask does not close around the lattice.
    """
    origins, periods = MASKS[name]
    if any(extent % period for extent, period in zip(shape, periods, strict=True)):
        raise ParameterError(
            got=f'mask = "{name}" on extents {shape[0]} along and {shape[1]} across the links',
            expected=f"multiples of {periods[0]} and {periods[1]}: the pattern must close around the lattice",
            fix='choose other extents, or mask = "cells", which takes all even ones',
        )
    moved = tuple(((i + offset[0]) % periods[0], (c + offset[1]) % periods[1]) for i, c in origins)
    return Mask(moved, periods, shape)


class ConvolutionalNetwork(torch.nn.Module):
    """Dilated convolutions with periodic boundaries from frozen loops to the parameters of the active sites.

    Only what is used is computed: the last convolution at active sites alone. A *packed* network goes further: each
    cell of the mask becomes one site whose channels are the frozen loops of the cell, so that all convolutions run on
    the coarse lattice of active sites, at a quarter of the cost per channel and with twice to four times the range.

    Parameters
    ----------
    mask
        The mask.
    channels_out
        Parameters of one active site.
    hidden
        Channels of the hidden layers.
    kernel
        Extent of the convolutions, odd.
    dilations
        Dilation of each convolution, one more than there are hidden layers.
    packed
        Whether to pack cells into sites.
    lines
        Whether the network also sees the Wilson lines across.

    Raises
    ------
    ParameterError
        If a mask of more than one active site in a cell is to be packed.
    """

    def __init__(
        self,
        mask: Mask,
        channels_out: int,
        *,
        hidden: tuple[int, ...],
        kernel: int,
        dilations: tuple[int, ...],
        packed: bool,
        lines: bool,
    ) -> None:
        super().__init__()
        if packed and len(mask.origins) > 1:
            raise ParameterError(
                got='network = "packed" with a mask of several active sites in a cell ("rows")',
                expected='network = "lattice", or the mask "cells" or "stripes"',
                fix="change `network` or `mask` in [flow]",
            )
        self._periods = mask.periods
        self._packed = packed
        self._corner = mask.origins[0]
        frozen = torch.tensor(mask.frozen_loops).repeat_interleave(2, 0)  # a sine and a cosine of each
        if lines:
            everywhere = torch.ones(2, *mask.shape, dtype=torch.bool)
            if packed:
                # The same in all columns of a cell: one of them is enough.
                everywhere &= torch.arange(mask.shape[1]) % mask.periods[1] == self._corner[1]
            frozen = torch.cat([frozen, everywhere])
        self.register_buffer("_frozen", frozen.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("_used", self._folded(frozen[None]).flatten(2).any(2)[0].nonzero()[:, 0], persistent=False)
        self._windows = [_window(self._folded(frozen[None]).shape[2:], kernel, dilation) for dilation in dilations]
        # Where the last convolution is wanted.
        self._origins, self._strides = (((0, 0),), (1, 1)) if packed else (mask.origins, mask.periods)
        channels = [len(self._used), *hidden, channels_out]
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv2d(before, after, kernel) for before, after in pairwise(channels)
        )
        # The layer starts as the identity map.
        for parameter in self.convolutions[-1].parameters():
            torch.nn.init.zeros_(parameter)

    _frozen: Tensor
    _used: Tensor

    def forward(self, loops: Tensor) -> Tensor:
        """Map angles to parameters (n, channels_out, active sites).

        Parameters
        ----------
        loops
            The angles of loops, (n, 3 or 4, along, across): plaquettes, two of them along, two across, and Wilson lines.
        """
        features = torch.stack([torch.sin(loops), torch.cos(loops)], 2).flatten(1, 2) * self._frozen
        features = self._folded(features).index_select(1, self._used)
        convolutions = cast(Iterable[torch.nn.Conv2d], self.convolutions)
        *hidden, last = zip(convolutions, self._windows, strict=True)
        for convolution, window in hidden:
            features = leaky_relu(_convolve(convolution, window, features))
        parts = [_convolve(*last, features, origin, self._strides).flatten(2) for origin in self._origins]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _folded(self, features: Tensor) -> Tensor:
        """Make each cell of the mask a site, and its sites channels, if the network is packed."""
        if not self._packed:
            return features
        along, across = self._periods
        moved = torch.roll(features, [-self._corner[0], -self._corner[1]], (2, 3))
        n, channels, rows, columns = moved.shape
        cells = moved.reshape(n, channels, rows // along, along, columns // across, across)
        return cells.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


class _Window(NamedTuple):
    """What a convolution looks at on a periodic lattice."""

    dilations: tuple[int, int]
    reaches: tuple[int, int]


def _window(extents: Sequence[int], kernel: int, dilation: int) -> _Window:
    # Around a small lattice, displacements by d and by d mod L lead to the same site.
    along, across = ((dilation - 1) % extent + 1 for extent in extents)
    half = (kernel - 1) // 2
    if half * along > extents[0] or half * across > extents[1]:
        raise ParameterError(
            got=f"kernel = {kernel} with dilation {dilation} on {extents[0]} x {extents[1]} sites",
            expected="a range that does not go around the lattice more than once",
            fix="lower `kernel` or `dilations` in [flow]",
        )
    return _Window((along, across), (half * along, half * across))


def _convolve(
    convolution: torch.nn.Conv2d,
    window: _Window,
    features: Tensor,
    origin: tuple[int, int] = (0, 0),
    strides: tuple[int, int] = (1, 1),
) -> Tensor:
    """Convolve with periodic boundaries; give the result at every few sites from an origin on."""
    for axis, reach in zip((2, 3), window.reaches, strict=True):
        if reach:
            # As torch's circular padding, whose backward pass is several times slower.
            ends = [features.narrow(axis, features.shape[axis] - reach, reach), features.narrow(axis, 0, reach)]
            features = torch.cat([ends[0], features, ends[1]], axis)
    features = features[:, :, origin[0] :, origin[1] :]
    return conv2d(features, convolution.weight, convolution.bias, strides, 0, window.dilations)
