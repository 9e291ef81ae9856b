"""Gauge-equivariant coupling flow of U(1) links in two dimensions.

A layer moves some links of one direction by as much as moves their active plaquettes P to f(P), f a map of the circle
whose parameters depend on frozen loops alone (`flowmc.flows.gauge_networks`, `flowmc.flows.circle`):

    θ → θ + f(P) − P,    log|det ∂θ'/∂θ| = Σ log f'(P).

What is moved and what decides on it are functions of closed loops, so that the flow commutes with gauge transformations;
the base is uniform, so that log q is gauge invariant (Kanwar et al., arXiv:2003.06413; with loops of two plaquettes
Albergo et al., arXiv:2202.11712). Such layers leave the Wilson lines around the lattice distributed as in the base,
uniformly, which is wrong where fermions wind around it: `GaugeConfig.holonomies` adds layers that move them.

Log densities are with respect to the Haar measure Π dθ / 2π.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmc.errors import ParameterError, TheoryMismatchError
from flowmc.flows.base import DTYPES, TransportFlow
from flowmc.flows.circle import CIRCLE_MAPS
from flowmc.flows.densities import UniformDensity
from flowmc.flows.gauge_networks import MASKS, ConvolutionalNetwork, build_mask
from flowmc.flows.rational_quadratic import LARGEST_BINS
from flowmc.theories import AngleSpace, FieldSpace, Theory
from flowmc.theories.spaces import wrapped
from flowmc.theories.u1 import plaquette_angles

__all__ = ["GaugeConfig", "GaugeFlow"]

NETWORKS = ("lattice", "packed")
# Layers after which every link has been moved once.
ROUND = 8


@dataclass(frozen=True)
class GaugeConfig:
    """Hyper-parameters of a `GaugeFlow`.

    Parameters
    ----------
    layers
        Coupling layers; eight in a row move every link once.
    mask
        A name in `flowmc.flows.gauge_networks.MASKS`.
    network
        "packed" (convolutions on the coarse lattice of active sites) or "lattice" (on the whole lattice, as published).
    hidden
        Channels of each hidden layer of the networks.
    kernel
        Extent of the convolutions, odd, in sites.
    dilations
        Dilation of each convolution, one more than there are hidden layers; empty stands for 1, 1, ...
    transformation
        A name in `flowmc.flows.circle.CIRCLE_MAPS`.
    pieces
        Bins of the splines, or projections in a combination.
    holonomies
        Whether the flow also moves the Wilson lines around the lattice, and lets them decide on what it moves. Plaquettes
        leave them as they are, uniform; fermions do not.
    dtype
        "float32" or "float64": the type in which the flow is trained.

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    """

    layers: int = 16
    mask: str = "cells"
    network: str = "packed"
    hidden: tuple[int, ...] = (32, 32)
    kernel: int = 3
    dilations: tuple[int, ...] = ()
    transformation: str = "spline"
    pieces: int = 8
    holonomies: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "dilations", tuple(self.dilations))
        choices = {"mask": MASKS, "network": NETWORKS, "transformation": CIRCLE_MAPS, "dtype": DTYPES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)!r}", expected=f"one of {list(known)}", fix=f"correct `{name}`"
                )
        if min(self.layers, self.pieces, self.kernel, *self.hidden, *self.dilations) < 1 or self.kernel % 2 == 0:
            raise ParameterError(
                got=f"layers = {self.layers}, pieces = {self.pieces}, hidden = {list(self.hidden)}, "
                f"kernel = {self.kernel}, dilations = {list(self.dilations)}",
                expected="numbers above zero, and an odd kernel",
                fix="correct the value",
            )
        if self.pieces > LARGEST_BINS:
            raise ParameterError(
                got=f"pieces = {self.pieces}", expected=f"at most {LARGEST_BINS}", fix="lower `pieces`"
            )
        if self.dilations and len(self.dilations) != len(self.hidden) + 1:
            raise ParameterError(
                got=f"dilations = {list(self.dilations)} with hidden = {list(self.hidden)}",
                expected=f"{len(self.hidden) + 1} dilations, one for each convolution",
                fix="correct `dilations`, or leave it out",
            )


class GaugeFlow(TransportFlow):
    """Gauge-equivariant couplings over a uniform base; see the module for the maths.

    Parameters
    ----------
    theory
        A theory of U(1) links in two dimensions; only its lattice is used.
    config
        Hyper-parameters.

    Raises
    ------
    TheoryMismatchError
        If the fields are not links of a two-dimensional lattice.
    ParameterError
        If the mask does not close around the lattice, or there are too few layers to move every link.
    """

    kind: ClassVar[str] = "gauge"
    Config: ClassVar[type] = GaugeConfig
    config: GaugeConfig
    space: ClassVar[FieldSpace] = AngleSpace()

    def __init__(self, theory: Theory, config: GaugeConfig) -> None:
        super().__init__(theory, config)
        if theory.field_shape != (*theory.shape, 2) or len(theory.shape) != 2:
            raise TheoryMismatchError(
                got=f"a {self.kind!r} flow for fields of shape {theory.field_shape}",
                expected="links (T, X, 2) of a two-dimensional lattice",
                fix="change `kind` in [flow] or `name` in [theory]",
            )
        if config.layers < ROUND:
            raise ParameterError(
                got=f"layers = {config.layers}",
                expected=f"at least {ROUND}: fewer leave links unmoved",
                fix="raise `layers` in [flow]",
            )
        dtype = DTYPES[config.dtype]
        self.base = UniformDensity(self.shape, dtype)
        self.layers = torch.nn.ModuleList()
        for number in range(config.layers):
            self.layers.append(_Layer(theory.shape, config, number))
            if config.holonomies and (number + 1) % ROUND == 0:
                self.layers.extend(_HolonomyLayer(theory.shape, config, direction) for direction in (0, 1))
        self.to(dtype)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Map base draws to links; see `TransportFlow.forward`."""
        return self._through(latent, inverse=False)

    def inverse(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Map links to base draws; see `TransportFlow.inverse`."""
        return self._through(field, inverse=True)

    def _through(self, links: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        log_det = links.new_zeros(len(links), dtype=torch.float64)
        for layer in reversed(self.layers) if inverse else self.layers:
            links, log_slope = layer(links, inverse=inverse)
            log_det = log_det + log_slope.sum(1, dtype=torch.float64)
        return wrapped(links), log_det


class _Layer(torch.nn.Module):
    """One coupling layer: the frame of its direction, its mask, its network."""

    def __init__(self, shape: tuple[int, ...], config: GaugeConfig, number: int) -> None:
        super().__init__()
        # As often as possible a layer looks at what the one before has moved: directions alternate.
        self._direction = number % 2
        place = number // 2 % 4
        offset = (0, place) if config.mask == "stripes" else (place % 2, (place + place // 2) % 2)
        if config.mask == "rows":
            offset = (place, 0)
        frame = (shape[0], shape[1]) if self._direction == 0 else (shape[1], shape[0])
        mask = build_mask(config.mask, frame, offset)
        self._map = CIRCLE_MAPS[config.transformation](config.pieces)
        self.network = ConvolutionalNetwork(
            mask,
            self._map.n_parameters,
            hidden=config.hidden,
            kernel=config.kernel,
            dilations=config.dilations or (1,) * (len(config.hidden) + 1),
            packed=config.network == "packed",
            lines=config.holonomies,
        )
        self._lines = config.holonomies
        self.register_buffer("_active", torch.tensor(mask.active), persistent=False)

    _active: Tensor

    def forward(self, field: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Move links (n, T, X, 2); return them with the log slopes (n, active)."""
        links = [field[..., self._direction], field[..., 1 - self._direction]]
        if self._direction == 1:
            links = [link.transpose(1, 2) for link in links]
        along, across = links
        plaquette = along - across + torch.roll(across, -1, 1) - torch.roll(along, -1, 2)
        loops = [plaquette, plaquette + torch.roll(plaquette, -1, 1), plaquette + torch.roll(plaquette, -1, 2)]
        if self._lines:
            loops.append(across.sum(2, keepdim=True).expand_as(across))
        parameters = self.network(torch.stack(loops, 1))
        here = wrapped(plaquette.flatten(1).index_select(1, self._active))
        moved, log_slope = (self._map.inverse if inverse else self._map.forward)(here, parameters)
        along = along.flatten(1).index_add(1, self._active, moved - here).reshape(along.shape)
        links = [along, across] if self._direction == 0 else [across.transpose(1, 2), along.transpose(1, 2)]
        return torch.stack(links, -1), log_slope


class _HolonomyLayer(torch.nn.Module):
    """Move all links of one direction by the same angle, which turns its Wilson lines and leaves all plaquettes alone.

    With the lines W(c) = Σ_i θ(i, c), their mean r e^{iω} = Σ_c e^{iW(c)} / L_c and a map f of the circle,

        θ → θ + (f(ω) − ω) / L,    log|det ∂θ'/∂θ| = log f'(ω),

    because moving every link by ε / L moves ω by ε and leaves r. (ω ± 2π is a gauge transformation.) A small network sees
    the mean of the other direction's lines and lattice averages of the sines and cosines of loops. Its output is
    multiplied by r: at r = 0, where ω has no value, f is the identity, so that the layer is continuous and gradients
    through it have a variance.
    """

    def __init__(self, shape: tuple[int, ...], config: GaugeConfig, direction: int) -> None:
        super().__init__()
        self._direction = direction
        self._extent = shape[direction]
        self._map = CIRCLE_MAPS[config.transformation](config.pieces)
        width = config.hidden[-1]
        self.network = torch.nn.Sequential(
            torch.nn.Linear(8, width), torch.nn.Tanh(), torch.nn.Linear(width, self._map.n_parameters)
        )
        for parameter in self.network[-1].parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, field: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Move links (n, T, X, 2); return them with the log slopes (n, 1)."""
        plaquette = plaquette_angles(field)
        loops = torch.stack([plaquette, *(plaquette + torch.roll(plaquette, -1, axis) for axis in (1, 2))], 1)
        (sine, cosine), other = (self._mean_line(field, mu) for mu in (self._direction, 1 - self._direction))
        features = torch.cat([torch.sin(loops).mean((2, 3)), torch.cos(loops).mean((2, 3)), *other], 1)
        parameters = (self.network(features) * torch.hypot(sine, cosine))[:, :, None]
        here = torch.atan2(sine, cosine)
        moved, log_slope = (self._map.inverse if inverse else self._map.forward)(here, parameters)
        shift = (moved - here)[:, None, None, :] / self._extent
        chosen = torch.arange(2, device=field.device) == self._direction
        return field + shift * chosen, log_slope

    @staticmethod
    def _mean_line(field: Tensor, direction: int) -> tuple[Tensor, Tensor]:
        """Return the means of sin W and cos W over the lines of a direction, (n, 1) each."""
        lines = field[..., direction].sum(1 + direction)
        return torch.sin(lines).mean(1, keepdim=True), torch.cos(lines).mean(1, keepdim=True)
