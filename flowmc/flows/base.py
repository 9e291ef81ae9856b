"""What a built-in flow is: a torch module that draws fields together with their log density.

One sign convention everywhere: a transport φ = f(z) of a base density r has log q(φ) = log r(z) − log|det ∂φ/∂z|.
Every log density is summed and returned in float64. For fields of a discrete space, q is a probability.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowmc.errors import TheoryMismatchError
from flowmc.theories import FieldSpace, RealSpace, Theory

__all__ = ["DTYPES", "LARGEST_BOUND", "BaseDensity", "Flow", "TransportFlow"]

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Types in which networks run, by their names in run descriptions."""


LARGEST_BOUND = 0.1
"""Largest error of log q, in nats, that a flow or another proposal may state.

With log q off by δ(φ), |δ| ≤ b, a chain of its proposals samples exp(−S + δ): to first order, averages are off by up to b
standard deviations of their observable, and ln Z by up to b. A tenth is what a hundred independent configurations
resolve; a larger error is no correction to a simulation but spoils it.
"""


class Flow(torch.nn.Module, abc.ABC):
    """A density q on the fields of a theory, with sampling and log q: exact, or off by no more than the flow says.

    Implementing a flow:

    - a subclass of `TransportFlow` (base density and invertible map), `flowmc.flows.spins.SpinFlow` or this class;
    - ``kind``, the key in `flowmc.flows.FLOWS`; ``Config``, a frozen dataclass of plain data, every hyper-parameter;
    - ``space``, that of the fields it draws; ``reparametrised``, whether draws can be differentiated;
    - where log q is not that of the map as run (the trace of a velocity in place of a log-determinant), ``exact`` False
      and ``log_q_bound``, by how many nats it is off at most: the certificate measures it, every report prints it, and
      without a bound the flow is refused;
    - a constructor ``(theory, config)`` that stores both, and sets ``largest_batch`` where passes of another size are
      better;
    - a line in `flowmc.flows.FLOWS`, which is also what parametrises the contract tests.

    Parameters
    ----------
    theory
        The theory whose fields are drawn. A flow may use its couplings (exact conditional probabilities); training that
        approaches the target replaces the attribute step by step.
    config
        Hyper-parameters, an instance of ``Config``.

    Raises
    ------
    TheoryMismatchError
        If the theory's fields live in another space than the flow's.
    """

    kind: ClassVar[str]
    Config: ClassVar[type]
    space: ClassVar[FieldSpace]
    reparametrised: ClassVar[bool]
    # Attributes of the class for nearly all; an instance whose configuration decides sets its own.
    exact: bool = True
    log_q_bound: float = 0.0
    largest_batch: int = 1024
    """Fields per pass in production: enough to amortise the call, few enough that what it makes stays in caches."""

    def __init__(self, theory: Theory, config: Any) -> None:
        super().__init__()
        if theory.space.name != self.space.name:
            raise TheoryMismatchError(
                got=f"a {self.kind!r} flow, which draws {self.space.name} fields, for {theory}",
                expected=f"a theory of {self.space.name} fields, or a flow of {theory.space.name} fields",
                fix="change `kind` in [flow] or `name` in [theory]",
            )
        self.theory = theory
        self.config = config

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one configuration."""
        return self.theory.field_shape

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the networks."""
        return next(self.parameters()).dtype

    @property
    def field_dtype(self) -> torch.dtype:
        """Type of the fields that are drawn: that of the networks unless the space says otherwise."""
        return self.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @abc.abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw fields and their log density, differentiably if the flow is reparametrised.

        Parameters
        ----------
        n
            Number of independent draws.
        generator
            Source of every random number, on the flow's device.

        Returns
        -------
        field
            ``(n, *shape)``, of the flow's `field_dtype`.
        log_q
            ``(n,)``, float64, in nats.
        """

    @abc.abstractmethod
    def log_prob(self, field: Tensor) -> Tensor:
        """Return log q of given fields ``(n, *shape)``: shape (n,), float64, in nats."""

    def start_from(self, other: Flow) -> list[str]:
        """Take over the weights of a flow of the same kind, for other couplings or another lattice, where they fit.

        Returns
        -------
        The names of the arrays of weights that were taken over.
        """
        # Weights only: a buffer says what this flow was built with, for example the mass of a base that is not learned.
        own, given = self._transferable(other), dict(other.named_parameters())
        fitting = [name for name, weight in given.items() if name in own and own[name].shape == weight.shape]
        with torch.no_grad():
            for name in fitting:
                own[name].copy_(given[name])
        return fitting

    def _transferable(self, other: Flow) -> dict[str, torch.nn.Parameter]:  # noqa: ARG002 - overridden
        """Return the weights, by name, that mean the same in another flow if their shapes agree."""
        return dict(self.named_parameters())

    def density_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield names and weights on which the density depends: all of them, unless some serve the training alone."""
        return self.named_parameters()

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw fields without their log density, (n, *shape); cheaper where that takes passes of its own."""
        return self.sample(n, generator)[0]


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

    space: ClassVar[FieldSpace] = RealSpace()
    reparametrised = True
    base: BaseDensity

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
