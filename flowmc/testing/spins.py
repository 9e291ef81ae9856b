"""Exact draws of the Ising model on small lattices: where spin kernels and spin flows are tested from.

All 2^V configurations of up to 20 sites can be enumerated. In two dimensions the transfer matrix reaches further: with
T(r, r') the weight of a row r with its link to the next row r', rows follow one another as a Markov chain that is closed
into a ring, p(r_0) ∝ (T^L)(r_0, r_0) and p(r_{k+1} | r_k, r_0) ∝ T(r_k, r_{k+1}) (T^{L−k−1})(r_{k+1}, r_0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.errors import ParameterError
from flowmc.testing.exactness import ExactStart
from flowmc.theories import Ising

__all__ = ["ExactIsing", "enumerate_spins", "ising_start", "transfer_matrix_draws"]

LARGEST_ENUMERATION = 20
LARGEST_ROW = 10


def enumerate_spins(shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Return all configurations of spins, (2^V, *shape), int8: in number k site x is up where bit x of k is set.

    Raises
    ------
    ParameterError
        If there are more than 20 sites.

    >>> enumerate_spins((2,)).tolist()
    [[-1, -1], [1, -1], [-1, 1], [1, 1]]
    """
    sites = int(np.prod(shape))
    if sites > LARGEST_ENUMERATION:
        raise ParameterError(
            got=f"{sites} sites to enumerate",
            expected=f"at most {LARGEST_ENUMERATION}",
            fix="take a smaller lattice, or draw with `transfer_matrix_draws`",
        )
    bits = np.arange(2**sites)[:, None] >> np.arange(sites) & 1
    return (2 * bits - 1).astype(np.int8).reshape(-1, *shape)


@dataclass(frozen=True)
class ExactIsing:
    """The exact distribution of the Ising model, by enumeration of its configurations.

    Parameters
    ----------
    theory
        The model, on at most 20 sites.
    """

    theory: Ising

    @cached_property
    def states(self) -> NDArray[np.int8]:
        """All configurations, (2^V, *shape); see `enumerate_spins`."""
        return enumerate_spins(self.theory.shape)

    @cached_property
    def log_z(self) -> float:
        """Logarithm of the partition function."""
        return float(np.logaddexp.reduce(-self.theory.action(self.states)))

    @cached_property
    def probability(self) -> NDArray[np.float64]:
        """Probability of every configuration, (2^V,)."""
        probability: NDArray[np.float64] = np.exp(-self.theory.action(self.states) - self.log_z)
        return probability

    def number(self, field: NDArray[Any]) -> NDArray[np.int64]:
        """Return the numbers of configurations (n, *shape): (n,)."""
        up = field.reshape(len(field), -1) > 0
        numbers: NDArray[np.int64] = up @ (1 << np.arange(self.theory.volume))
        return numbers

    def draw(self, generator: np.random.Generator, n: int) -> NDArray[np.int8]:
        """Return ``n`` independent configurations, (n, *shape)."""
        drawn: NDArray[np.int8] = self.states[generator.choice(len(self.states), n, p=self.probability)]
        return drawn

    def expectation(self, values: NDArray[np.floating[Any]]) -> float:
        """Return the expectation value of an observable, given at every configuration, (2^V,)."""
        return float(self.probability @ values)


def transfer_matrix_draws(theory: Ising, generator: np.random.Generator, n: int) -> NDArray[np.int8]:
    """Return ``n`` independent configurations of a two-dimensional model, (n, T, X), with X at most 10.

    Parameters
    ----------
    theory
        The model.
    generator
        Source of the random numbers.
    n
        Number of configurations.

    Raises
    ------
    ParameterError
        If the lattice is not two-dimensional, or its rows are longer than 10.
    """
    if len(theory.shape) != 2 or theory.shape[1] > LARGEST_ROW:
        raise ParameterError(
            got=f"a transfer matrix for the lattice {theory.shape}",
            expected=f"two dimensions, with rows of at most {LARGEST_ROW} sites",
            fix="take a smaller lattice",
        )
    rows = enumerate_spins(theory.shape[1:]).astype(np.float64)
    along = theory.coupling * (rows * np.roll(rows, -1, 1)).sum(1) + theory.field * rows.sum(1)
    exponent = theory.beta * (theory.coupling * rows @ rows.T + along[:, None])
    # A constant factor in the weights cancels in every conditional probability.
    transfer = np.exp(exponent - exponent.max())
    powers = [np.eye(len(rows))]
    for _ in range(theory.shape[0]):
        power = powers[-1] @ transfer
        powers.append(power / power.max())

    def choose(weights: NDArray[np.float64]) -> NDArray[np.int64]:
        below = weights.cumsum(1)
        chosen: NDArray[np.int64] = (generator.random((len(below), 1)) * below[:, -1:] >= below).sum(1)
        return chosen

    first = choose(np.broadcast_to(np.diag(powers[-1]), (n, len(rows))))
    drawn = [first]
    for remaining in range(theory.shape[0] - 1, 0, -1):
        drawn.append(choose(transfer[drawn[-1]] * powers[remaining][:, first].T))
    return rows[np.stack(drawn, 1)].astype(np.int8)


def ising_start(theory: Ising) -> ExactStart:
    """Return exact draws of a small Ising model, enumerated or by the transfer matrix, and observables of spins."""
    axes = tuple(range(1, 1 + len(theory.shape)))

    def draw(generator: np.random.Generator, n: int) -> NDArray[np.int8]:
        if theory.volume <= LARGEST_ENUMERATION:
            return ExactIsing(theory).draw(generator, n)
        return transfer_matrix_draws(theory, generator, n)

    return ExactStart(
        draw,
        {
            "action": theory.action,
            "magnetisation": lambda field: field.sum(axis=axes, dtype=np.float64),
            "neighbours": lambda field: (field * np.roll(field, 1, axis=-1)).sum(axis=axes, dtype=np.float64),
            "first": lambda field: field.reshape(len(field), -1)[:, 0].astype(np.float64),
            "first_two": lambda field: field.reshape(len(field), -1)[:, :2].prod(axis=1, dtype=np.float64),
        },
    )
