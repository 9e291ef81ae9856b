"""Conditioners: networks from the frozen sites of a checkerboard to shift and log-scale at the active ones.

With Z2 equivariance, exact by construction: the hidden layers are odd functions of the field (no biases, tanh), the
shift is linear in them and hence odd, the log-scale is linear in their squares and hence even.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from flowmc.errors import ParameterError

__all__ = ["NETWORKS", "Conditioner", "SiteConvolution", "build_conditioner", "displacement_classes"]

LARGEST_MATRIX = 2**27

NETWORKS = ("convolutional", "fully_connected")
"""Names of the conditioner networks in run descriptions."""


def displacement_classes(
    shape: tuple[int, ...], sites_in: np.ndarray, sites_out: np.ndarray, radius: int
) -> tuple[np.ndarray, int]:
    """Assign numbers to the displacements between two sets of sites of a periodic lattice.

    Parameters
    ----------
    shape
        Lattice extents.
    sites_in, sites_out
        Flat indices of sites.
    radius
        Largest distance in each direction; farther pairs get the last number, which stands for "no weight".

    Returns
    -------
    classes
        ``(n_in, n_out)`` numbers of the displacements.
    n_classes
        How many displacements there are within the radius.
    """
    place_in = np.stack(np.unravel_index(sites_in, shape), axis=-1)
    place_out = np.stack(np.unravel_index(sites_out, shape), axis=-1)
    extent = np.array(shape)
    displacement = (place_out[None] - place_in[:, None]) % extent
    near = (np.minimum(displacement, extent - displacement) <= radius).all(axis=-1)
    flat = np.ravel_multi_index(tuple(np.moveaxis(displacement, -1, 0)), shape)
    values, numbers = np.unique(flat[near], return_inverse=True)
    classes = np.full(flat.shape, len(values))
    classes[near] = numbers
    return classes, len(values)


class SiteConvolution(torch.nn.Module):
    """A translation-equivariant linear map from fields on one sublattice to fields on another.

    The weights depend on the displacement only. They are spread over a dense matrix once a call, so that a batch costs
    one matrix product: on lattices of a few hundred sites that is several times faster on a CPU than a convolution of
    the whole lattice, half of which the checkerboard discards. The matrix has (channels × V/2)² entries: beyond a
    thousand sites or so that is the wrong trade, and a matrix of more than 2²⁷ entries is refused. Frozen weights (no
    gradient asked of them) are spread once and kept, one matrix for each convolution of the flow.

    Parameters
    ----------
    classes
        ``(n_in, n_out)`` numbers of the displacements, as from `displacement_classes`.
    n_classes
        Number of displacements that have a weight.
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
        self, classes: np.ndarray, n_classes: int, channels_in: int, channels_out: int, *, bias: bool, zero: bool
    ) -> None:
        super().__init__()
        entries = channels_in * channels_out * classes.size
        if entries > LARGEST_MATRIX:
            raise ParameterError(
                got=f"convolutions of {channels_in} to {channels_out} channels on {sum(classes.shape)} sites: "
                f"a dense matrix of {entries} entries",
                expected=f"at most {LARGEST_MATRIX}",
                fix="use fewer channels or a smaller lattice",
            )
        self._channels = (channels_in, channels_out)
        self._spread: tuple[Tensor, Tensor] | None = None
        self._sites = classes.shape
        self.register_buffer("_classes", torch.tensor(classes.reshape(-1)), persistent=False)
        fan_in = channels_in * int((classes[:, 0] < n_classes).sum())
        scale = 0.0 if zero else 1 / sqrt(fan_in)
        self.weight = torch.nn.Parameter(scale * torch.randn(n_classes, channels_in * channels_out))
        self.bias = torch.nn.Parameter(torch.zeros(channels_out)) if bias else None

    _classes: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, channels_in × n_in) to (n, channels_out × n_out), channel-major."""
        mapped = features @ self._matrix()
        return mapped if self.bias is None else mapped + self.bias.repeat_interleave(self._sites[1])

    def _matrix(self) -> Tensor:
        weight = self.weight
        if weight.requires_grad:
            self._spread = None
            return self._spread_out()
        # By content: versions and addresses of a buffer miss changes that go around autograd.
        if self._spread is None or self._spread[0].dtype != weight.dtype or not torch.equal(self._spread[0], weight):
            # Ordinary tensors even inside inference mode: the certificate differentiates through them.
            with torch.inference_mode(False):
                self._spread = (weight.detach().clone(), self._spread_out())
        return self._spread[1]

    def _spread_out(self) -> Tensor:
        (channels_in, channels_out), (n_in, n_out) = self._channels, self._sites
        padded = torch.cat([self.weight, self.weight.new_zeros(1, channels_in * channels_out)])
        spread = padded.index_select(0, self._classes).reshape(n_in, n_out, channels_in, channels_out)
        return spread.permute(2, 0, 3, 1).reshape(channels_in * n_in, channels_out * n_out)


class Conditioner(torch.nn.Module):
    """Shift and log-scale of the active sites as a function of the frozen ones.

    Parameters
    ----------
    hidden
        Linear maps of the hidden layers, in order.
    shift, log_scale
        Linear maps from the last hidden layer to the active sites.
    z2
        Whether the shift is odd and the log-scale even in the frozen field.
    """

    def __init__(
        self, hidden: list[torch.nn.Module], shift: torch.nn.Module, log_scale: torch.nn.Module, *, z2: bool
    ) -> None:
        super().__init__()
        self.hidden = torch.nn.ModuleList(hidden)
        self.shift = shift
        self.log_scale = log_scale
        self._z2 = z2

    def forward(self, frozen: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, n_frozen) to shift and log-scale, each (n, n_active)."""
        features = frozen
        for layer in self.hidden:
            features = torch.tanh(layer(features))
        even = features * features if self._z2 else features
        return self.shift(features), self.log_scale(even)


def build_conditioner(
    network: str,
    shape: tuple[int, ...],
    frozen: np.ndarray,
    active: np.ndarray,
    *,
    hidden: tuple[int, ...],
    radius: int,
    z2: bool,
) -> Conditioner:
    """Build a conditioner; shift and log-scale start at zero, so that the coupling starts as the identity.

    Parameters
    ----------
    network
        "convolutional" (translation equivariant up to the checkerboard) or "fully_connected".
    shape
        Lattice extents.
    frozen, active
        Flat indices of the sites.
    hidden
        Width of each hidden layer: channels of a convolution, features of a fully connected layer.
    radius
        Range of the convolutions in each direction, in lattice units.
    z2
        Whether to build in equivariance under φ → −φ.

    Raises
    ------
    ParameterError
        If the network is unknown, or convolutions meet an odd extent (no checkerboard closes on it).
    """
    if network not in NETWORKS:
        raise ParameterError(got=f"network = {network!r}", expected=f"one of {list(NETWORKS)}", fix="correct `network`")
    if network == "fully_connected":
        widths = [len(frozen), *hidden]
        layers: list[torch.nn.Module] = [
            torch.nn.Linear(before, after, bias=not z2) for before, after in pairwise(widths)
        ]
        shift = torch.nn.Linear(widths[-1], len(active), bias=not z2)
        log_scale = torch.nn.Linear(widths[-1], len(active))
        for last in (shift, log_scale):
            for parameter in last.parameters():
                torch.nn.init.zeros_(parameter)
        return Conditioner(layers, shift, log_scale, z2=z2)
    if any(extent % 2 for extent in shape):
        raise ParameterError(
            got=f"a convolutional network on {shape}",
            expected="even extents: a checkerboard does not close around an odd one",
            fix='choose even extents, or network = "fully_connected"',
        )
    across = displacement_classes(shape, frozen, active, radius)
    within = displacement_classes(shape, active, active, radius)
    channels = [1, *hidden]
    convolutions: list[torch.nn.Module] = [
        SiteConvolution(*(within if i else across), before, after, bias=not z2, zero=False)
        for i, (before, after) in enumerate(pairwise(channels))
    ]
    return Conditioner(
        convolutions,
        SiteConvolution(*within, channels[-1], 1, bias=not z2, zero=True),
        SiteConvolution(*within, channels[-1], 1, bias=True, zero=True),
        z2=z2,
    )
