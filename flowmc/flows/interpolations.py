"""Interpolations f_t between the energy of a base density, f_0 = −log r, and an action, f_1 = S: the path of a training.

The densities p_t = e^−f_t / Z_t lead from the base to the target. A velocity V carries samples along them if and only if
the residual of the continuity equation ∂_t p + div(p V) = 0, divided by −p,

    E(t, φ) = ∂_t f_t + ∇f_t · V − div V + C(t),   C(t) = ∂_t ln Z_t = −E_p_t[∂_t f_t],

vanishes everywhere. C(t) is learned with it; as Z_0 = 1, its integral is ln Z of the target. Kinds of paths:

=============== ===============================================================================================
name            f_t
=============== ===============================================================================================
linear          (1 − t) f_0 + t f_1
trigonometric   cos(πt/2) f_0 + sin(πt/2) f_1
diffusion       the law of a_t y + √(1 − a_t²) σ ξ, with y from the target, ξ normal noise, a_t = sin(πt/2): known in
                closed form where the target is a Gaussian mixture
learned         (1 − t) f_0 + t f_1 + t (1 − t) f_θ(φ, t)
=============== ===============================================================================================

A path that is prescribed may ask for velocities without bound: where the weight of a mode of p_t changes with t while it
is separated from the others, probability must cross an empty region in no time. The learned one can wait with the
separation until the weights are right.

References
----------
.. [1] Máté, Fleuret, arXiv:2301.07388 (there f_0 is not normalised).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from math import pi
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.base import BaseDensity
from flowmc.flows.densities import GeneralisedGaussianDensity
from flowmc.flows.velocities import FieldNetworkConfig, Layers, build_layers, slope
from flowmc.theories import GaussianMixture, SmoothTheory, Theory

__all__ = ["INTERPOLATIONS", "Interpolation", "InterpolationConfig", "PathPoint", "build_interpolation"]


@dataclass(frozen=True)
class InterpolationConfig:
    """Hyper-parameters of an `Interpolation`.

    Parameters
    ----------
    kind
        A name in `INTERPOLATIONS`.
    networks
        Those of f_θ, for the kind "learned".
    rate_hidden
        Width of the hidden layer of C(t).

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    """

    kind: str = "learned"
    networks: FieldNetworkConfig = field(default_factory=FieldNetworkConfig)
    rate_hidden: int = 64

    def __post_init__(self) -> None:
        if isinstance(self.networks, dict):
            object.__setattr__(self, "networks", FieldNetworkConfig(**self.networks))
        if self.kind not in INTERPOLATIONS:
            raise ParameterError(
                got=f"interpolation of kind {self.kind!r}",
                expected=f"one of {sorted(INTERPOLATIONS)}",
                fix="correct it",
            )
        if self.rate_hidden < 1:
            raise ParameterError(got=f"rate_hidden = {self.rate_hidden}", expected="at least 1", fix="correct it")


class PathPoint(NamedTuple):
    """What the continuity equation needs of f_t at some fields and times."""

    rate: Tensor
    """∂_t f_t, (n,)."""
    gradient: Tensor
    """∇f_t, (n, V)."""


class Interpolation(torch.nn.Module, abc.ABC):
    """A path f_t, and the learned rate C(t).

    Parameters
    ----------
    config
        Hyper-parameters.
    shape
        Lattice extents.
    even
        Whether the path is exactly even under φ → −φ wherever its ends are.
    learned_rate
        Whether C(t) is learned; a flow for many lattices, each with a C(t) of its own, has the mean over a batch instead.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        config: InterpolationConfig,
        shape: tuple[int, ...],  # noqa: ARG002 - of networks
        *,
        even: bool,  # noqa: ARG002
        learned_rate: bool = True,
    ) -> None:
        super().__init__()
        self.log_z_rate = _rate(config.rate_hidden) if learned_rate else None

    @abc.abstractmethod
    def at(self, time: Tensor, field: Tensor, base: BaseDensity, theory: SmoothTheory) -> PathPoint:
        """Return ∂_t f and ∇f at fields ``(n, V)`` and their times ``(n,)``."""

    @abc.abstractmethod
    def energy(self, time: Tensor, field: Tensor, base: BaseDensity, theory: SmoothTheory) -> Tensor:
        """Return f_t at fields ``(n, V)`` and their times ``(n,)``: shape (n,)."""

    def check(self, base: BaseDensity, theory: Theory) -> None:
        """Check that the path exists between a base and a theory.

        Raises
        ------
        ParameterError
            If it does not.
        """

    def rate_of_log_z(self, time: Tensor) -> Tensor:
        """Return C(t) at times ``(n,)``; zero if it is not learned."""
        if self.log_z_rate is None:
            return torch.zeros_like(time)
        rate: Tensor = self.log_z_rate(time.reshape(-1, 1)).squeeze(1)
        return rate


def _rate(hidden: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(1, hidden),
        torch.nn.SiLU(),
        torch.nn.Linear(hidden, hidden),
        torch.nn.SiLU(),
        torch.nn.Linear(hidden, 1),
    )


def _ends(field: Tensor, base: BaseDensity, theory: SmoothTheory) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return f_0, ∇f_0, f_1, ∇f_1 at flat fields, without a graph."""
    shaped = field.detach().reshape(len(field), *theory.field_shape)
    with torch.enable_grad():
        leaf = shaped.clone().requires_grad_()
        log_base = base.log_prob(leaf)
        (gradient,) = torch.autograd.grad(log_base.sum(), leaf)
    action, force = theory.action_and_force(shaped)
    return -log_base.detach().to(field.dtype), -gradient.flatten(1), action.to(field.dtype), -force.flatten(1)


class _Prescribed(Interpolation):
    """f_t = a(t) f_0 + b(t) f_1."""

    @staticmethod
    @abc.abstractmethod
    def weights(time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a, a', b, b' at times (n,)."""

    def at(self, time: Tensor, field: Tensor, base: BaseDensity, theory: SmoothTheory) -> PathPoint:
        """Return ∂_t f and ∇f."""
        start, start_gradient, end, end_gradient = _ends(field, base, theory)
        a, a_rate, b, b_rate = self.weights(time)
        return PathPoint(a_rate * start + b_rate * end, a.unsqueeze(1) * start_gradient + b.unsqueeze(1) * end_gradient)

    def energy(self, time: Tensor, field: Tensor, base: BaseDensity, theory: SmoothTheory) -> Tensor:
        """Return f_t."""
        start, _, end, _ = _ends(field, base, theory)
        a, _, b, _ = self.weights(time)
        return a * start + b * end


class LinearInterpolation(_Prescribed):
    """f_t = (1 − t) f_0 + t f_1."""

    kind = "linear"

    @staticmethod
    def weights(time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a, a', b, b' at times (n,)."""
        one = torch.ones_like(time)
        return 1 - time, -one, time, one


class TrigonometricInterpolation(_Prescribed):
    """f_t = cos(πt/2) f_0 + sin(πt/2) f_1."""

    kind = "trigonometric"

    @staticmethod
    def weights(time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a, a', b, b' at times (n,)."""
        cosine, sine = torch.cos(0.5 * pi * time), torch.sin(0.5 * pi * time)
        return cosine, -0.5 * pi * sine, sine, 0.5 * pi * cosine


class DiffusionInterpolation(Interpolation):
    """The law of a_t y + √(1 − a_t²) σ ξ: of a Gaussian mixture, which stays one."""

    kind = "diffusion"

    def check(self, base: BaseDensity, theory: Theory) -> None:
        """Refuse what is not a Gaussian mixture over a Gaussian base."""
        self._checked(base, theory)

    @staticmethod
    def _checked(base: BaseDensity, theory: Theory) -> tuple[GaussianMixture, GeneralisedGaussianDensity]:
        gaussian = isinstance(base, GeneralisedGaussianDensity) and float(base.power) == 2.0
        if not (isinstance(theory, GaussianMixture) and isinstance(base, GeneralisedGaussianDensity) and gaussian):
            raise ParameterError(
                got=f'interpolation "diffusion" for the theory {theory.name!r}',
                expected="a Gaussian mixture over a Gaussian base: else its densities are not known in closed form",
                fix='take the kind "learned"; of a mixture, leave out `annealing`',
            )
        return theory, base

    def at(self, time: Tensor, field: Tensor, base: BaseDensity, theory: SmoothTheory) -> PathPoint:
        """Return ∂_t f and ∇f."""
        with torch.enable_grad():
            when, where = time.detach().clone().requires_grad_(), field.detach().clone().requires_grad_()
            energy = self.energy(when, where, base, theory)
            rate, gradient = torch.autograd.grad(energy.sum(), (when, where))
        return PathPoint(rate, gradient)

    def energy(self, time: Tensor, field: Tensor, base: BaseDensity, theory: SmoothTheory) -> Tensor:
        """Return f_t."""
        mixture, gaussian = self._checked(base, theory)
        means, scales, weights = (field.new_tensor(value) for value in (mixture.means, mixture.scales, mixture.weights))
        signal = torch.sin(0.5 * pi * time).reshape(-1, 1)
        # The base e^−|x/σ|² has the variance σ²/2.
        variance = signal**2 * scales**2 + (1 - signal**2) * 0.5 * gaussian.width**2
        distance = ((field.unsqueeze(1) - signal.unsqueeze(2) * means) ** 2).sum(2)
        sites = field.shape[1]
        log_terms = torch.log(weights) - 0.5 * distance / variance - 0.5 * sites * torch.log(2 * pi * variance)
        return -torch.logsumexp(log_terms, dim=1)


class LearnedInterpolation(Interpolation):
    """f_t = (1 − t) f_0 + t f_1 + t (1 − t) f_θ."""

    kind = "learned"

    def __init__(
        self, config: InterpolationConfig, shape: tuple[int, ...], *, even: bool, learned_rate: bool = True
    ) -> None:
        super().__init__(config, shape, even=even, learned_rate=learned_rate)
        self.layers = build_layers(config.networks, shape, pooled=True)
        self._even = even

    def at(self, time: Tensor, field: Tensor, base: BaseDensity, theory: SmoothTheory) -> PathPoint:
        """Return ∂_t f and ∇f."""
        start, start_gradient, end, end_gradient = _ends(field, base, theory)
        layers = self.layers()
        value, rate, gradient = _potential(layers, time, field)
        if self._even:
            mirrored = _potential(layers, time, -field)
            value, rate = 0.5 * (value + mirrored[0]), 0.5 * (rate + mirrored[1])
            gradient = 0.5 * (gradient - mirrored[2])
        bump = time * (1 - time)
        left, right = (1 - time).unsqueeze(1), time.unsqueeze(1)
        return PathPoint(
            end - start + (1 - 2 * time) * value + bump * rate,
            left * start_gradient + right * end_gradient + bump.unsqueeze(1) * gradient,
        )

    def energy(self, time: Tensor, field: Tensor, base: BaseDensity, theory: SmoothTheory) -> Tensor:
        """Return f_t."""
        start, _, end, _ = _ends(field, base, theory)
        layers = self.layers()
        value, _, _ = _potential(layers, time, field)
        if self._even:
            value = 0.5 * (value + _potential(layers, time, -field)[0])
        return (1 - time) * start + time * end + time * (1 - time) * value


def _potential(layers: Layers, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return f_θ, ∂_t f_θ and ∇f_θ of networks with one output, in closed form."""
    first, second = layers.hidden(time, field)
    windows, windows_rate = layers.windows_and_rates(time)
    activation, second_slope = torch.nn.functional.silu(second), slope(second)
    out = layers.out.squeeze(2).unsqueeze(1)
    first_slope = slope(first)
    second_rate = (first_slope * layers.first_time) @ layers.second + layers.second_time
    each = (activation * out).sum(2, keepdim=True)
    each_rate = (second_slope * second_rate * out).sum(2, keepdim=True)
    value = (windows * each).sum((0, 2))
    rate = (windows_rate * each + windows * each_rate).sum((0, 2))
    back = ((windows * second_slope * out) @ layers.second.transpose(1, 2)) * first_slope
    gradient = (back @ layers.first.transpose(1, 2)).sum(0)
    return value, rate, gradient


INTERPOLATIONS: dict[str, type[Interpolation]] = {
    path.kind: path
    for path in (DiffusionInterpolation, LearnedInterpolation, LinearInterpolation, TrigonometricInterpolation)
}
"""Every kind of path by its name in run descriptions."""


def build_interpolation(
    config: InterpolationConfig, shape: tuple[int, ...], *, even: bool, learned_rate: bool = True
) -> Interpolation:
    """Build a path; parameters as for `Interpolation`."""
    return INTERPOLATIONS[config.kind](config, shape, even=even, learned_rate=learned_rate)
