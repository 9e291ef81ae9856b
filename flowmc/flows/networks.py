"""Conditioners: networks from the frozen sites of a coupling to the parameters of the map of its active ones.

A conditioner returns two sets of parameters for each active site. With Z2 equivariance, exact by construction, the first
is odd and the second even under φ → −φ: the hidden layers are odd functions of the field (no biases, tanh), the odd
parameters are linear in them, the even ones linear in their squares.

The weights of convolutions belong to displacements in the infinite lattice, W(d) with |d_μ| ≤ radius; on a periodic one
of extents L every displacement collects the weights of its images, W_L(d) = Σ_n W(d + nL). The same weights therefore
define the network on lattices of all sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.errors import ParameterError

__all__ = [
    "NETWORKS",
    "ChannelMix",
    "Conditioner",
    "DisplacementKernel",
    "NetworkConfig",
    "SiteConvolution",
    "build_conditioner",
]

LARGEST_MATRIX = 2**27

NETWORKS = ("convolutional", "fully_connected")
"""Names of the conditioner networks in run descriptions."""


@dataclass(frozen=True)
class NetworkConfig:
    """Hyper-parameters of the conditioners of a coupling.

    Parameters
    ----------
    network
        "convolutional" (translation equivariant up to the partition) or "fully_connected".
    hidden
        Width of each hidden layer: channels of a convolution, features of a fully connected layer.
    radius
        Range of the convolutions in each direction, in lattice units.
    output_radius
        Range of the last convolution: 0 is a map of each site's channels, which costs half and learns faster; −1 stands
        for ``radius``.
    symmetric
        Whether the weights of convolutions respect the reflections and rotations of the lattice.

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    """

    network: str = "convolutional"
    hidden: tuple[int, ...] = (8,)
    radius: int = 4
    output_radius: int = 0
    symmetric: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.network not in NETWORKS:
            raise ParameterError(
                got=f"network = {self.network!r}", expected=f"one of {list(NETWORKS)}", fix="correct `network`"
            )
        if self.radius < 1 or self.output_radius < -1 or not self.hidden or min(self.hidden) < 1:
            raise ParameterError(
                got=f"hidden = {list(self.hidden)}, radius = {self.radius}, output_radius = {self.output_radius}",
                expected="at least one hidden layer, every width and the radius above zero, output_radius at least -1",
                fix="correct the value",
            )


class DisplacementKernel(NamedTuple):
    """Which weights of a convolution join two sets of sites of a periodic lattice."""

    classes: NDArray[np.int64]
    """``(n_in, n_out)`` numbers of the displacements modulo the extents."""
    images: NDArray[np.float64]
    """``(displacements, weights)``: how often each weight belongs to an image of the displacement."""

    @classmethod
    def build(
        cls,
        shape: tuple[int, ...],
        sites_in: NDArray[np.int64],
        sites_out: NDArray[np.int64],
        radius: int,
        *,
        symmetric: bool,
    ) -> DisplacementKernel:
        """Find the weights of the displacements between two sets of sites.

        Parameters
        ----------
        shape
            Lattice extents.
        sites_in, sites_out
            Flat indices of sites.
        radius
            Largest displacement in each direction that has a weight.
        symmetric
            Whether displacements that reflections and exchanges of axes map onto each other share their weight.
        """
        extent = np.array(shape)
        place_in = np.stack(np.unravel_index(sites_in, shape), axis=-1)
        place_out = np.stack(np.unravel_index(sites_out, shape), axis=-1)
        displacement = (place_out[None] - place_in[:, None]) % extent
        found, classes = np.unique(_flat(displacement, shape), return_inverse=True)
        every = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * len(shape), indexing="ij"), -1)
        images = every.reshape(-1, len(shape))
        flat = _flat(images % extent, shape)
        images, flat = images[np.isin(flat, found)], flat[np.isin(flat, found)]
        if symmetric:
            images = np.sort(np.abs(images), axis=1)
        kinds, weights = np.unique(images, axis=0, return_inverse=True)
        counts = np.zeros((len(found), len(kinds)))
        np.add.at(counts, (np.searchsorted(found, flat), weights.reshape(-1)), 1.0)
        return cls(classes.reshape(displacement.shape[:2]), counts)


def _flat(places: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = np.ravel_multi_index(tuple(np.moveaxis(places, -1, 0)), shape)
    return numbers


class SiteConvolution(torch.nn.Module):
    """A translation-equivariant linear map from fields on one set of sites to fields on another.

    The weights depend on the displacement only. They are spread over a dense matrix once a call, so that a batch costs
    one matrix product: on lattices of a few hundred sites that is several times faster on a CPU than a convolution of
    the whole lattice, half of which the checkerboard discards. The matrix has (channels × V/2)² entries: beyond a
    thousand sites or so that is the wrong trade, and a matrix of more than 2²⁷ entries is refused. Frozen weights (no
    gradient asked of them) are spread once and kept, one matrix for each convolution of the flow.

    Parameters
    ----------
    kernel
        The weights' places.
    channels_in, channels_out
        Numbers of channels.
    bias
        Whether each output channel has a bias.
    zero
        Whether to start at zero instead of at random.

    Raises
    ------
    ParameterError
        If the dense matrix would have more than 2²⁷ entries.
    """

    def __init__(
        self, kernel: DisplacementKernel, channels_in: int, channels_out: int, *, bias: bool, zero: bool
    ) -> None:
        super().__init__()
        self._sites = kernel.classes.shape
        entries = channels_in * channels_out * kernel.classes.size
        if entries > LARGEST_MATRIX:
            raise ParameterError(
                got=f"convolutions of {channels_in} to {channels_out} channels on {sum(self._sites)} sites: "
                f"a dense matrix of {entries} entries",
                expected=f"at most {LARGEST_MATRIX}",
                fix="use fewer channels or a smaller lattice",
            )
        self._channels = (channels_in, channels_out)
        self._spread: tuple[Tensor, Tensor] | None = None
        self.register_buffer("_classes", torch.tensor(kernel.classes.reshape(-1)), persistent=False)
        self.register_buffer("_images", torch.tensor(kernel.images, dtype=torch.float32), persistent=False)
        self.fan_in = channels_in * float(kernel.images.sum())
        """Inputs of each output; those that share a weight count each."""
        scale = 0.0 if zero else 1 / sqrt(self.fan_in)
        self.weight = torch.nn.Parameter(scale * torch.randn(kernel.images.shape[1], channels_in * channels_out))
        self.bias = torch.nn.Parameter(torch.zeros(channels_out)) if bias else None

    _classes: Tensor
    _images: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, n_in × channels_in) to (n, n_out × channels_out), the channels of a site next to each other."""
        mapped = features @ self.matrix()
        return mapped if self.bias is None else mapped + self.bias.repeat(self._sites[1])

    def matrix(self) -> Tensor:
        """Return the dense matrix, (n_in × channels_in, n_out × channels_out)."""
        weight = self.weight
        if weight.requires_grad:
            self._spread = None
            return self._spread_out()
        # By content: versions and addresses of a buffer miss changes that go around autograd.
        if self._spread is None or not _same(self._spread[0], weight):
            # Ordinary tensors even inside inference mode: the certificate differentiates through them.
            with torch.inference_mode(False):
                self._spread = (weight.detach().clone(), self._spread_out())
        return self._spread[1]

    def _spread_out(self) -> Tensor:
        (channels_in, channels_out), (n_in, n_out) = self._channels, self._sites
        spread = (self._images @ self.weight).index_select(0, self._classes)
        matrix = spread.reshape(n_in, n_out, channels_in, channels_out).permute(0, 2, 1, 3)
        return matrix.reshape(n_in * channels_in, n_out * channels_out)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


class ChannelMix(torch.nn.Module):
    """A linear map of the channels of each site: a convolution of range zero.

    Parameters
    ----------
    channels_in, channels_out
        Numbers of channels.
    bias
        Whether each output channel has a bias.
    """

    def __init__(self, channels_in: int, channels_out: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(channels_out, channels_in))
        self.bias = torch.nn.Parameter(torch.zeros(channels_out)) if bias else None

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, sites × channels_in) to (n, sites × channels_out), the channels of a site next to each other."""
        mapped = torch.nn.functional.linear(features.reshape(-1, self.weight.shape[1]), self.weight, self.bias)
        return mapped.reshape(len(features), -1)


class Conditioner(torch.nn.Module):
    """Parameters of the active sites as a function of the frozen ones; at the start they are all zero.

    Parameters
    ----------
    hidden
        Linear maps of the hidden layers, in order.
    odd, even
        Linear maps from the last hidden layer to the parameters; None where there are no even ones.
    z2
        Whether the first parameters are odd and the second even in the frozen field; else both are just functions.
    """

    def __init__(
        self, hidden: list[torch.nn.Module], odd: torch.nn.Module, even: torch.nn.Module | None, *, z2: bool
    ) -> None:
        super().__init__()
        self.hidden = torch.nn.ModuleList(hidden)
        self.odd = odd
        self.even = even
        self._z2 = z2

    def forward(self, frozen: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, n_frozen) to odd and even parameters, each (n, n_active × number), of the latter perhaps none."""
        features = frozen
        for layer in self.hidden:
            features = torch.tanh(layer(features))
        if self.even is None:
            return self.odd(features), features[:, :0]
        return self.odd(features), self.even(features * features if self._z2 else features)


def build_conditioner(
    config: NetworkConfig,
    shape: tuple[int, ...],
    frozen: NDArray[np.int64],
    active: NDArray[np.int64],
    *,
    odd: int,
    even: int,
    z2: bool,
) -> Conditioner:
    """Build a conditioner; its parameters start at zero, so that the coupling starts as the identity.

    Parameters
    ----------
    config
        Hyper-parameters.
    shape
        Lattice extents.
    frozen, active
        Flat indices of the sites.
    odd, even
        Number of parameters of each kind at a site.
    z2
        Whether to build in equivariance under φ → −φ.

    Raises
    ------
    ParameterError
        If convolutions meet an odd extent (no partition closes on it).
    """
    if config.network == "fully_connected":
        widths = [len(frozen), *config.hidden]
        layers: list[torch.nn.Module] = [
            torch.nn.Linear(before, after, bias=not z2) for before, after in pairwise(widths)
        ]

        def dense(number: int, *, bias: bool) -> torch.nn.Module:
            made = torch.nn.Linear(widths[-1], number * len(active), bias=bias)
            for parameter in made.parameters():
                torch.nn.init.zeros_(parameter)
            return made

        return Conditioner(layers, dense(odd, bias=not z2), dense(even, bias=True) if even else None, z2=z2)
    if any(extent % 2 for extent in shape):
        raise ParameterError(
            got=f"a convolutional network on {shape}",
            expected="even extents: a checkerboard does not close around an odd one",
            fix='choose even extents, or network = "fully_connected"',
        )

    def kernel(sites_in: NDArray[np.int64], radius: int) -> DisplacementKernel:
        return DisplacementKernel.build(shape, sites_in, active, radius, symmetric=config.symmetric)

    channels = [1, *config.hidden]
    convolutions: list[torch.nn.Module] = [
        SiteConvolution(kernel(active if i else frozen, config.radius), before, after, bias=not z2, zero=False)
        for i, (before, after) in enumerate(pairwise(channels))
    ]
    output_radius = config.radius if config.output_radius < 0 else config.output_radius

    def head(number: int, *, bias: bool) -> torch.nn.Module:
        if output_radius == 0:
            return ChannelMix(channels[-1], number, bias=bias)
        return SiteConvolution(kernel(active, output_radius), channels[-1], number, bias=bias, zero=True)

    return Conditioner(convolutions, head(odd, bias=not z2), head(even, bias=True) if even else None, z2=z2)
