"""What the flows of `benchmarks.adapter_flows` are trained for, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from flowmc.proposals import Proposal
from flowmc.theories import FreeScalar, Ising

__all__ = ["RATE", "Setting", "Trained"]

RATE = 2e-2


class Trained(NamedTuple):
    """A flow as a proposal, and the library's own way to draw n fields with log q."""

    proposal: Proposal
    bare: Callable[[int], object]


@dataclass(frozen=True)
class Setting:
    """What the flows are trained for, and how large they are.

    Parameters
    ----------
    shape
        Lattice of the free field.
    hidden
        Width of the networks.
    steps
        Steps of Adam.
    spins
        Lattice of the Ising model.
    n_draws
        Exact draws that they are trained on.
    """

    shape: tuple[int, ...] = (4, 2)
    hidden: int = 16
    steps: int = 60
    spins: tuple[int, ...] = (2, 4)
    n_draws: int = 512

    @property
    def size(self) -> int:
        """Number of sites."""
        return prod(self.shape)

    @property
    def theory(self) -> FreeScalar:
        """The free field of mass one."""
        return FreeScalar(self.shape, 1.0)

    @property
    def ising(self) -> Ising:
        """The Ising model at a high temperature."""
        return Ising(self.spins, 0.3)

    def draws(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return exact draws of the free field, in rows."""
        field: np.ndarray[Any, np.dtype[np.float64]] = self.theory.draw(np.random.default_rng(3), self.n_draws)
        return field.reshape(len(field), self.size)

    def fit_torch(self, log_prob: Callable[[torch.Tensor], torch.Tensor], weights: Any) -> None:
        """Maximise the mean log q of exact draws."""
        optimizer = torch.optim.Adam(list(weights), lr=RATE)
        field = torch.tensor(self.draws())
        for _ in range(self.steps):
            optimizer.zero_grad()
            loss = -log_prob(field).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def fit_jax(self, loss: Callable[[Any], jax.Array], weights: Any) -> Any:
        """Minimise a loss of the weights."""
        import optax

        optimizer = optax.adam(RATE)

        @jax.jit
        def train(weights: Any) -> Any:
            def step(carry: Any, _: None) -> tuple[Any, None]:
                weights, state = carry
                updates, state = optimizer.update(jax.grad(loss)(weights), state)
                return (optax.apply_updates(weights, updates), state), None

            return jax.lax.scan(step, (weights, optimizer.init(weights)), None, self.steps)[0][0]

        return train(weights)
