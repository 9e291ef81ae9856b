"""What a built-in flow is: a torch module that draws fields together with their log density.

One sign convention everywhere: a transport φ = f(z) of a base density r has log q(φ) = log r(z) − log|det ∂φ/∂z|.
Fields have the dtype of the flow; every log density is summed and returned in float64.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["BaseDensity", "Flow", "TransportFlow"]


class Flow(torch.nn.Module, abc.ABC):
    """A density q on the fields of a lattice, with exact sampling and exact log q.

    Implementing a flow:

    - a subclass of `TransportFlow` (base density and invertible map) or of this class;
    - ``kind``, the key in `flowmc.flows.FLOWS`; ``Config``, a frozen dataclass of plain data, every hyper-parameter;
    - a constructor ``(shape, config)`` that stores both;
    - a line in `flowmc.flows.FLOWS`, which is also what parametrises the contract tests.
    """

    kind: ClassVar[str]
    Config: ClassVar[type]
    exact: ClassVar[bool] = True

    def __init__(self, shape: tuple[int, ...], config: Any) -> None:
        super().__init__()
        self.shape = shape
        self.config = config

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """Floating-point type of the networks and of the fields."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @abc.abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw fields and their log density, differentiably.

        Parameters
        ----------
        n
            Number of independent draws.
        generator
            Source of every random number, on the flow's device.

        Returns
        -------
        field
            ``(n, *shape)``, dtype of the flow.
        log_q
            ``(n,)``, float64, in nats.
        """

    @abc.abstractmethod
    def log_prob(self, field: Tensor) -> Tensor:
        """Return log q of given fields ``(n, *shape)``: shape (n,), float64, in nats."""


class BaseDensity(torch.nn.Module, abc.ABC):
    """A density that is drawn from directly, where a transport starts."""

    @abc.abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` fields, (n, *shape)."""

    @abc.abstractmethod
    def log_prob(self, field: Tensor) -> Tensor:
        """Return the log density of fields (n, *shape): shape (n,), float64."""


class TransportFlow(Flow):
    """A flow that carries a base density along an invertible map: ``forward`` generates, ``inverse`` undoes it."""

    base: BaseDensity

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the networks and of the fields."""
        return next(self.parameters()).dtype

    @abc.abstractmethod
    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Map base draws (n, *shape) to fields; return them with log|det ∂φ/∂z|, shape (n,), float64."""

    @abc.abstractmethod
    def inverse(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Map fields (n, *shape) to base draws; return them with log|det ∂z/∂φ|, shape (n,), float64."""

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw fields and log q; see `Flow.sample`."""
        latent = self.base.draw(n, generator)
        field, log_det = self.forward(latent)
        return field, self.base.log_prob(latent) - log_det

    def log_prob(self, field: Tensor) -> Tensor:
        """Return log q of fields; see `Flow.log_prob`."""
        latent, log_det = self.inverse(field)
        return self.base.log_prob(latent) + log_det
