"""What an integrator of a velocity is: a discrete invertible map, step by step, with the log-determinant of each step."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from flowmc.flows.velocities import Velocity

__all__ = ["Integrator", "Solve", "newton", "relax"]

Solve = Callable[[Tensor], Tensor]
"""Applies the inverse of a matrix to vectors (n, V)."""

# Solutions of implicit equations: iterations until two steps in a row change nothing beyond rounding.
MOST_NEWTON_STEPS = 30
MOST_RELAXATIONS = 200


class Integrator(abc.ABC):
    """One step of size h from time t, and its inverse. Fields are flat, ``(n, V)``.

    A step that has no inverse near where it should lie (h too large for the velocity) gives log-determinants that are
    not a number, so that such a draw is rejected and counted, and never weighed wrongly.

    Implementing an integrator: this class in a file of its own, and a line in `flowmc.flows.integrators.INTEGRATORS`,
    which also parametrises the tests. Both steps must be differentiable with respect to field and weights.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]
    """Whether the log-determinant is that of the map, and not the integral of the divergence."""
    largest_volume: ClassVar[int | None] = None
    """Largest number of sites for which the log-determinant is affordable; None where there is no such limit."""

    @abc.abstractmethod
    def step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field at ``time + size`` and log|det| of the step, (n,)."""

    @abc.abstractmethod
    def inverse_step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field at ``time`` from the one at ``time + size``, and log|det| of this inverse, (n,)."""


def at_time(time: float, field: Tensor) -> Tensor:
    """Return a time as a scalar tensor of a field's type."""
    return field.new_tensor(time)


def log_abs_det(matrix: Tensor) -> Tensor:
    """Return log det of matrices (n, V, V), not a number where the determinant is not positive: there the map folds."""
    sign, value = torch.linalg.slogdet(matrix)
    return torch.where(sign > 0, value, torch.full_like(value, torch.nan))


def newton(residual: Callable[[Tensor], tuple[Tensor, Solve]], start: Tensor) -> Tensor:
    """Solve g(x) = 0 by Newton's method for each row of x, without a graph; a row that does not settle becomes NaN.

    Parameters
    ----------
    residual
        Returns g(x) and the function that applies the inverse of g'(x).
    start
        First guess, (n, ...).

    Returns
    -------
    The solution, to rounding.
    """
    with torch.no_grad():
        field, tolerance = start, 32 * torch.finfo(start.dtype).eps
        change = torch.full_like(field, torch.inf)
        for _ in range(MOST_NEWTON_STEPS):
            value, solve = residual(field)
            change = solve(value)
            field = field - change
            if bool((change.abs() <= tolerance * (1 + field.abs())).all()):
                return field
        settled = (change.abs() <= 1e3 * tolerance * (1 + field.abs())).flatten(1).all(1)
        return torch.where(settled.reshape(-1, *[1] * (field.ndim - 1)), field, torch.full_like(field, torch.nan))


def relax(update: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Solve x = u(x) for a contraction u, row by row, differentiably; a row that does not settle becomes NaN.

    Where gradients are wanted, as many updates as the solution took are made again from it, with a graph: derivatives
    converge as fast as the solution does.
    """
    tolerance = 32 * torch.finfo(start.dtype).eps
    with torch.no_grad():
        field = start
        updates = 0
        settled = torch.zeros(len(field), dtype=torch.bool, device=field.device)
        while updates < MOST_RELAXATIONS and not bool(settled.all()):
            new = update(field)
            settled = ((new - field).abs() <= tolerance * (1 + new.abs())).flatten(1).all(1)
            field, updates = new, updates + 1
        field = torch.where(settled.unsqueeze(1), field, torch.full_like(field, torch.nan))
    if torch.is_grad_enabled():
        for _ in range(updates):
            field = update(field)
    return field
