"""Velocities of continuous flows: time-dependent vector fields V(t, φ) whose divergence is known in closed form.

Each is a sum of K networks with two hidden layers, blended by windows in time around c_k = k / (K − 1),

    V(t, φ) = Σ_k ω_k(t) W3_k s(W2_k s(W1_k φ + u1_k t + b1_k) + u2_k t + b2_k),

with s(z) = z / (1 + e^−z) and windows ω_k ∝ exp(−K² (t − c_k)²), Σ_k ω_k = 1. With D1, D2 the slopes of the hidden
layers, the Jacobian of one network is W3 D2 W2 D1 W1, and its trace needs no sum over directions:

    div V = Σ_ab D2_a [W2 ∘ (W1 W3)ᵀ]_ab D1_b,

one more matrix product of the size of the second layer. The same holds where the matrices are those of convolutions on a
periodic lattice. Two hidden layers are what this costs: for three there is no such form.

References
----------
.. [1] Máté, Fleuret, arXiv:2301.07388: networks blended by windows in time.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.networks import NETWORKS, DisplacementKernel, SiteConvolution
from flowmc.lattice import volume

__all__ = [
    "FieldNetworkConfig",
    "Layers",
    "Velocity",
    "VelocityField",
    "WindowedVelocity",
    "build_layers",
]


@dataclass(frozen=True)
class FieldNetworkConfig:
    """Hyper-parameters of networks of the whole field.

    Parameters
    ----------
    network
        "fully_connected", or "convolutional": equivariant under translations, with weights that belong to displacements.
    hidden
        Widths of the two hidden layers: features, or channels of a convolution.
    radius
        Range of the convolutions in each direction, in lattice units.
    symmetric
        Whether the weights of convolutions respect the reflections and rotations of the lattice.
    windows
        Number K of networks, blended over time.

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    """

    network: str = "fully_connected"
    hidden: tuple[int, ...] = (64, 64)
    radius: int = 4
    symmetric: bool = True
    windows: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.network not in NETWORKS:
            raise ParameterError(
                got=f"network = {self.network!r}", expected=f"one of {list(NETWORKS)}", fix="correct `network`"
            )
        if len(self.hidden) != 2 or min(self.hidden) < 1:
            raise ParameterError(
                got=f"hidden = {list(self.hidden)}",
                expected="the widths of two hidden layers: for those the divergence has a closed form",
                fix="give two widths, for example [64, 64]",
            )
        if self.radius < 1 or self.windows < 1:
            raise ParameterError(
                got=f"radius = {self.radius}, windows = {self.windows}",
                expected="both at least 1",
                fix="correct the value",
            )


class Velocity(abc.ABC):
    """A velocity with its weights brought into the form in which they are applied: made once, evaluated many times.

    Fields are flat here, ``(n, V)``. Times are scalars, or ``(n,)`` with one for each field.
    """

    @property
    @abc.abstractmethod
    def colour_classes(self) -> Sequence[Sequence[int]]:
        """The sites of each colour: ∂V_x/∂φ_y = 0 for different sites x, y of one colour."""

    @abc.abstractmethod
    def __call__(self, time: Tensor, field: Tensor) -> Tensor:
        """Return V(t, φ), (n, V)."""

    @abc.abstractmethod
    def with_divergence(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return V and its divergence Σ_x ∂V_x/∂φ_x, (n,)."""

    @abc.abstractmethod
    def with_jacobian(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return V and ∂V_x/∂φ_y, (n, V, V)."""

    @abc.abstractmethod
    def at_sites(self, time: Tensor, field: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
        """Return V_x and ∂V_x/∂φ_x at some sites, (n, sites) each."""

    def around(self, time: Tensor, field: Tensor, sites: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return `at_sites` as a function of the field at these sites of one colour, (n, sites), with the rest frozen.

        It is evaluated a few times: a velocity that knows what the rest contributes overrides this.
        """
        return lambda values: self.at_sites(time, field.index_copy(1, sites, values), sites)


class VelocityField(torch.nn.Module, abc.ABC):
    """The weights of a velocity."""

    @abc.abstractmethod
    def prepare(self) -> Velocity:
        """Return the velocity with the present weights, differentiable with respect to them."""


class Layers(NamedTuple):
    """Matrices of K networks with two hidden layers of widths h1 and h2, from d inputs to o outputs."""

    first: Tensor
    """W1, (K, d, h1)."""
    first_time: Tensor
    """u1, (K, 1, h1)."""
    first_bias: Tensor
    """b1, (K, 1, h1)."""
    second: Tensor
    """W2, (K, h1, h2)."""
    second_time: Tensor
    """u2, (K, 1, h2)."""
    second_bias: Tensor
    """b2, (K, 1, h2)."""
    out: Tensor
    """W3, (K, h2, o)."""

    def windows(self, time: Tensor) -> Tensor:
        """Return ω_k(t), (K, n, 1), or (K, 1, 1) for one time."""
        return torch.softmax(-(len(self.first) ** 2) * (time.reshape(1, -1, 1) - self._centres(time)) ** 2, dim=0)

    def windows_and_rates(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return ω_k(t) and ∂_t ω_k(t), (K, n, 1) each."""
        number = len(self.first)
        windows = self.windows(time)
        # With Σ ω = 1, ∂_t ω_k = ω_k (g_k − Σ_j ω_j g_j), g_k = −2 K² (t − c_k) = const(t) + 2 K² c_k.
        pull = 2 * number**2 * self._centres(time)
        return windows, windows * (pull - (windows * pull).sum(0, keepdim=True))

    def _centres(self, time: Tensor) -> Tensor:
        number = len(self.first)
        places = torch.linspace(0, 1, number, dtype=time.dtype, device=time.device) if number > 1 else time.new_zeros(1)
        return places.reshape(-1, 1, 1)

    def hidden(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return what enters both hidden layers, (K, n, h1) and (K, n, h2)."""
        when = time.reshape(1, -1, 1)
        first = field @ self.first + (self.first_time * when + self.first_bias)
        second = torch.nn.functional.silu(first) @ self.second + (self.second_time * when + self.second_bias)
        return first, second


def slope(values: Tensor) -> Tensor:
    """Return s'(z) of s(z) = z / (1 + e^−z)."""
    gate = torch.sigmoid(values)
    return gate * (1 + values * (1 - gate))


class _LayeredVelocity(Velocity):
    """The velocity of `Layers`, made odd under φ → −φ on request: ½ [V(φ) − V(−φ)]."""

    def __init__(self, layers: Layers, *, odd: bool) -> None:
        self._layers = layers
        self._odd = odd
        # W2 ∘ (W1 W3)ᵀ, needed for every divergence.
        self._trace = layers.second * (layers.out @ layers.first).transpose(1, 2)

    @property
    def colour_classes(self) -> Sequence[Sequence[int]]:
        return [[site] for site in range(self._layers.first.shape[1])]

    def __call__(self, time: Tensor, field: Tensor) -> Tensor:
        if self._odd:
            return 0.5 * (self._value(time, field) - self._value(time, -field))
        return self._value(time, field)

    def with_divergence(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        return self._symmetrised(lambda at: self._divergence(time, at), field)

    def with_jacobian(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        return self._symmetrised(lambda at: self._jacobian(time, at), field)

    def at_sites(self, time: Tensor, field: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
        return self._symmetrised(lambda at: self._at(time, at, sites), field)

    def _symmetrised(self, evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], field: Tensor) -> tuple[Tensor, Tensor]:
        """Return a value and its derivatives, the former made odd and the latter even, if that is asked for."""
        value, slopes = evaluate(field)
        if not self._odd:
            return value, slopes
        mirrored, mirrored_slopes = evaluate(-field)
        return 0.5 * (value - mirrored), 0.5 * (slopes + mirrored_slopes)

    def _value(self, time: Tensor, field: Tensor) -> Tensor:
        _, second = self._layers.hidden(time, field)
        return self._out(self._layers.windows(time) * torch.nn.functional.silu(second))

    def _out(self, features: Tensor) -> Tensor:
        # The sum over networks is part of one matrix product.
        return features.transpose(0, 1).flatten(1) @ self._layers.out.flatten(0, 1)

    def _divergence(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        layers = self._layers
        first, second = layers.hidden(time, field)
        windows = layers.windows(time)
        divergence = (windows * (slope(first) @ self._trace) * slope(second)).sum((0, 2))
        return self._out(windows * torch.nn.functional.silu(second)), divergence

    def _jacobian(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        layers = self._layers
        first, second = layers.hidden(time, field)
        windows = layers.windows(time)
        inner = self._slopes_of_second(layers.first, first)
        weighted = inner * (windows * slope(second)).unsqueeze(2)
        # The sum over networks is part of one matrix product: (n, y, K h2) times (K h2, x).
        total = weighted.permute(1, 2, 0, 3).flatten(2) @ layers.out.flatten(0, 1)
        return self._out(windows * torch.nn.functional.silu(second)), total.transpose(1, 2)

    def _at(self, time: Tensor, field: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
        layers = self._layers
        first, second = layers.hidden(time, field)
        windows = layers.windows(time)
        inputs, outputs = layers.first[:, sites], layers.out[:, :, sites]
        inner = self._slopes_of_second(inputs, first)
        slopes = (inner * (windows * slope(second)).unsqueeze(2) * outputs.transpose(1, 2).unsqueeze(1)).sum((0, 3))
        features = (windows * torch.nn.functional.silu(second)).transpose(0, 1).flatten(1)
        return features @ outputs.flatten(0, 1), slopes

    def _slopes_of_second(self, inputs: Tensor, first: Tensor) -> Tensor:
        """Return the derivatives of what enters the second layer by some fields y, (K, n, y, h2)."""
        rows = inputs.unsqueeze(1) * slope(first).unsqueeze(2)
        # One matrix product for each network: broadcasting would copy the weights for every field.
        product = rows.flatten(1, 2) @ self._layers.second
        return product.reshape(*rows.shape[:3], -1)


class _FullyConnected(torch.nn.Module):
    """Matrices that are their own weights."""

    def __init__(self, config: FieldNetworkConfig, sites: int, outputs: int) -> None:
        super().__init__()
        number, (one, two) = config.windows, config.hidden
        self.first = torch.nn.Parameter(torch.randn(number, sites, one) / sqrt(sites))
        self.second = torch.nn.Parameter(torch.randn(number, one, two) / sqrt(one))
        self.out = torch.nn.Parameter(torch.zeros(number, two, outputs))
        self.first_time, self.second_time = (torch.nn.Parameter(torch.randn(number, 1, width)) for width in (one, two))
        self.first_bias, self.second_bias = (torch.nn.Parameter(torch.randn(number, 1, width)) for width in (one, two))

    def forward(self) -> Layers:
        return Layers(
            self.first,
            self.first_time,
            self.first_bias,
            self.second,
            self.second_time,
            self.second_bias,
            self.out,
        )


class _Convolutional(torch.nn.Module):
    """Matrices of convolutions of the whole periodic lattice; one output is the sum over sites of a channel mix."""

    def __init__(self, config: FieldNetworkConfig, shape: tuple[int, ...], *, pooled: bool) -> None:
        super().__init__()
        number, (one, two) = config.windows, config.hidden
        every = np.arange(volume(shape))
        kernel = DisplacementKernel.build(shape, every, every, config.radius, symmetric=config.symmetric)
        self._sites, self._pooled = len(every), pooled

        def convolutions(before: int, after: int, *, zero: bool) -> torch.nn.ModuleList:
            return torch.nn.ModuleList(
                SiteConvolution(kernel, before, after, bias=False, zero=zero) for _ in range(number)
            )

        self.first = convolutions(1, one, zero=False)
        self.second = convolutions(one, two, zero=False)
        if pooled:
            self.out = torch.nn.Parameter(torch.zeros(number, two, 1))
        else:
            self.outs = convolutions(two, 1, zero=True)
        self.first_time, self.second_time = (torch.nn.Parameter(torch.randn(number, 1, width)) for width in (one, two))
        self.first_bias, self.second_bias = (torch.nn.Parameter(torch.randn(number, 1, width)) for width in (one, two))

    def forward(self) -> Layers:
        out = self.out.repeat(1, self._sites, 1) if self._pooled else self._matrices(self.outs)
        return Layers(
            self._matrices(self.first),
            self.first_time.repeat(1, 1, self._sites),
            self.first_bias.repeat(1, 1, self._sites),
            self._matrices(self.second),
            self.second_time.repeat(1, 1, self._sites),
            self.second_bias.repeat(1, 1, self._sites),
            out,
        )

    @staticmethod
    def _matrices(convolutions: torch.nn.ModuleList) -> Tensor:
        return torch.stack([cast(SiteConvolution, convolution).matrix() for convolution in convolutions])


def build_layers(config: FieldNetworkConfig, shape: tuple[int, ...], *, pooled: bool) -> torch.nn.Module:
    """Build the weights of networks of the whole field: a module whose call returns its `Layers`.

    Parameters
    ----------
    config
        Hyper-parameters.
    shape
        Lattice extents.
    pooled
        Whether there is one output for the whole field, invariant where the networks are equivariant, instead of one for
        each site.
    """
    if config.network == "fully_connected":
        sites = volume(shape)
        return _FullyConnected(config, sites, 1 if pooled else sites)
    return _Convolutional(config, shape, pooled=pooled)


class WindowedVelocity(VelocityField):
    """Networks of the whole field, blended over time; zero at the start.

    Parameters
    ----------
    config
        Hyper-parameters.
    shape
        Lattice extents.
    odd
        Whether the velocity is exactly odd under φ → −φ, at twice the cost.
    """

    def __init__(self, config: FieldNetworkConfig, shape: tuple[int, ...], *, odd: bool) -> None:
        super().__init__()
        self.layers = build_layers(config, shape, pooled=False)
        self._odd = odd
        self._sites = volume(shape)

    def prepare(self) -> Velocity:
        """Return the velocity with the present weights."""
        return _LayeredVelocity(self.layers(), odd=self._odd)
