"""Flows of Ising spins, and their exact averages over symmetries of the action.

An autoregressive network gives spins one after the other, each with an exact conditional probability. Its product q₁ has
none of the symmetries of the model; the average over a group G of transformations that leave the action alone,

    q(s) = (1/|G|) Σ_{g ∈ G} q₁(g s),

has them exactly, and is drawn from by drawing from q₁ and applying an element of the group at random (Wu, Wang, Zhang,
arXiv:1809.10606; Białas, Korcyl, Stebel, arXiv:2203.10989, eq. (20)). G is made of the global spin flip, if there is no
magnetic field, and of the translations along the last axis.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowmc.errors import ParameterError, TheoryMismatchError
from flowmc.flows.base import Flow
from flowmc.theories import Ising, SpinSpace, Theory

__all__ = ["SpinFlow", "Symmetries", "spin_log_prob"]


class Symmetries(Protocol):
    """The part of a configuration that every flow of spins has."""

    @property
    def z2(self) -> bool:
        """Whether to average over the global spin flip."""

    @property
    def translations(self) -> bool:
        """Whether to average over translations along the last axis."""


def spin_log_prob(spins: Tensor, logits: Tensor) -> Tensor:
    """Return the log probability of each spin ±1, given the logit of its being up; same shape, dtype of the logits."""
    return logsigmoid(spins * logits)


class SpinFlow(Flow):
    """A probability of Ising spins: one component drawn spin by spin, averaged over symmetries.

    Subclasses implement the component, `component_sample` and `component_log_prob`.

    Parameters
    ----------
    theory
        The Ising model.
    config
        Hyper-parameters, with those of `Symmetries` among them.

    Raises
    ------
    TheoryMismatchError
        If the theory is not an Ising model.
    ParameterError
        If the average is over the spin flip, and a magnetic field breaks it.
    """

    space = SpinSpace()
    reparametrised = False

    def __init__(self, theory: Theory, config: Symmetries) -> None:
        super().__init__(theory, config)
        if not isinstance(theory, Ising):
            raise TheoryMismatchError(
                got=f"a {self.kind!r} flow for {theory}", expected="an Ising model", fix="change `name` in [theory]"
            )
        if config.z2 and theory.field:
            raise ParameterError(
                got=f"z2 = true with a magnetic field of {theory.field}",
                expected="z2 = false: the field breaks the symmetry under s -> -s",
                fix="set z2 = false in [flow]",
            )

    @property
    def ising(self) -> Ising:
        """The model, at the inverse temperature of the moment."""
        return cast(Ising, self.theory)

    @property
    def field_dtype(self) -> torch.dtype:
        """Type of the spins."""
        return torch.int8

    @abc.abstractmethod
    def component_sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw spins (n, *shape), int8, from the component, with its log q₁, (n,) float64; not differentiable."""

    @abc.abstractmethod
    def component_log_prob(self, field: Tensor) -> Tensor:
        """Return log q₁ of spins (n, *shape): (n,) float64, in one pass over all of them."""

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw spins and log q; see `Flow.sample`."""
        field, log_q = self._draw(n, generator)
        images = [log_q, *(self.component_log_prob(image) for image in self._images(field))]
        return self._transformed(field, generator), _log_mean_exp(images)

    def log_prob(self, field: Tensor) -> Tensor:
        """Return log q of spins; see `Flow.log_prob`."""
        return _log_mean_exp([self.component_log_prob(image) for image in (field, *self._images(field))])

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw spins; see `Flow.draw`."""
        return self._transformed(self._draw(n, generator)[0], generator)

    def _draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.component_sample(n, generator)

    def _images(self, field: Tensor) -> Iterator[Tensor]:
        """Apply every element of the group but the identity."""
        for shift in range(self.shape[-1] if self.config.translations else 1):
            shifted = field.roll(shift, -1)
            if shift:
                yield shifted
            if self.config.z2:
                yield -shifted

    def _transformed(self, field: Tensor, generator: torch.Generator) -> Tensor:
        """Apply a random element of the group to each configuration."""

        def integers(stop: int) -> Tensor:
            size = (len(field), *[1] * len(self.shape))
            return torch.randint(stop, size, generator=generator, device=field.device)

        if self.config.translations:
            extent = self.shape[-1]
            origin = torch.arange(extent, device=field.device) + integers(extent)
            field = field.gather(-1, (origin % extent).expand(field.shape))
        if self.config.z2:
            field = field * (2 * integers(2) - 1).to(field.dtype)
        return field


def _log_mean_exp(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    stacked = torch.stack(parts)
    mean: Tensor = torch.logsumexp(stacked, 0) - torch.log(torch.tensor(float(len(parts)), dtype=stacked.dtype))
    return mean
