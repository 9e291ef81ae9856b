"""Plain torch modules: a map with its log-determinant, in either direction, and a base density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi, prod
from typing import Any, Protocol, Unpack

import torch
from torch import Tensor
from torch.distributions import Distribution

from flowmc.errors import ParameterError
from flowmc.flows import DTYPES
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, checked_event, frozen_copy
from flowmc_adapters.torch_host import TorchPushforward, frozen_module, host_proposal

__all__ = ["Base", "WhiteNoise", "proposal", "pushforward"]

Map = Callable[[Tensor], tuple[Tensor, Tensor]]


def proposal(
    flow: torch.nn.Module,
    *,
    event_shape: Any,
    base: Distribution | None = None,
    forward: str = "forward",
    inverse: str = "inverse",
    **options: Unpack[Options],
) -> Proposal:
    """Return a module as a proposal.

    Parameters
    ----------
    flow
        A module with two methods: one maps base points (n, *own_event) to fields, the other maps them back, and each
        returns its output with its own log|det|, (n,). A copy is used.
    event_shape
        Shape of one configuration.
    base
        Density of the base points, one event each; by default standard normal, of the shape of an event.
    forward, inverse
        Names of the methods that map the base to fields, and back. For a module whose ``forward`` maps data to noise,
        give ``forward="inverse", inverse="forward"``.
    options
        See `flowmc_adapters.base.Options`.

    Raises
    ------
    ParameterError
        If a method is missing: a map without an inverse gives no log q of the fields where another kernel went.
    """
    frozen = frozen_module(flow, options)
    for name in (forward, inverse):
        if not callable(getattr(frozen, name, None)):
            raise ParameterError(
                got=f"a {type(flow).__name__} without a method {name!r}",
                expected="methods that map base points to fields and back, each with its log|det|",
                fix="name them with `forward` and `inverse`, or write the inverse: log q of a field needs it",
            )
    to_field, to_base = (getattr(frozen, name) if name != "forward" else frozen for name in (forward, inverse))
    density = base or WhiteNoise.like(checked_event(event_shape), frozen, options.get("dtype"))
    return host_proposal(
        pushforward(density, to_field, to_base),
        adapter="torch_module",
        identity=(frozen, forward, inverse, base),
        event_shape=event_shape,
        options=options,
    )


class Base(Protocol):
    """What is needed of a base density; distributions of torch have it."""

    def sample(self, sample_shape: tuple[int, ...]) -> Tensor:
        """Draw points, (n, *own_event), for a shape (n,)."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of points, (n,)."""


@dataclass(frozen=True)
class WhiteNoise:
    """Independent standard normal numbers; what torch's own distribution takes longer for.

    Parameters
    ----------
    shape
        Shape of an event.
    dtype, device
        Of the draws.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def like(cls, shape: tuple[int, ...], module: torch.nn.Module, dtype: str | None) -> WhiteNoise:
        """Return white noise of a module's type, if no other is asked for, and on its device."""
        floats = (part for part in (*module.parameters(), *module.buffers()) if part.is_floating_point())
        weight = next(floats, torch.ones(()))
        return cls(shape, weight.dtype if dtype is None else DTYPES[dtype], weight.device)

    def sample(self, sample_shape: tuple[int, ...]) -> Tensor:
        """Draw points, (n, *shape)."""
        return torch.randn(*sample_shape, *self.shape, dtype=self.dtype, device=self.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of points, (n,), float64."""
        squares = (value.flatten(1) ** 2).sum(1, dtype=torch.float64)
        return -0.5 * squares - 0.5 * prod(self.shape) * log(2 * pi)


def pushforward(base: Base, to_field: Map, to_base: Map) -> TorchPushforward:
    """Return a base and the two directions of a map, each with its own log|det|, as what `host_proposal` takes."""
    base = frozen_copy(base)
    if isinstance(base, Distribution):
        base._validate_args = False

    def log_prob(field: Tensor) -> Tensor:
        latent, log_det = _with_log_det(to_base(field))
        return base.log_prob(latent).double() + log_det.double()

    return TorchPushforward(
        lambda n: base.sample((n,)), base.log_prob, lambda latent: _with_log_det(to_field(latent)), log_prob
    )


def _with_log_det(result: Any) -> tuple[Tensor, Tensor]:
    if isinstance(result, tuple | list) and len(result) == 2:
        return result[0], result[1]
    raise ParameterError(
        got=f"a map that returns a {type(result).__name__}",
        expected="a pair: the mapped points and log|det| of the map there, (n,)",
        fix="return both",
    )
