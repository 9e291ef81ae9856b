"""What an integrator of a velocity is: a discrete invertible map, step by step, with the log-determinant of each step."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from flowmc.flows.velocities import Velocity

__all__ = ["Integrator", "Residual", "Solve", "Update", "attach", "newton", "relax"]

Solve = Callable[[Tensor], Tensor]
"""Applies the inverse of a matrix, which is not differentiated, to vectors (n, V)."""
Residual = Callable[[Tensor, Tensor], tuple[Tensor, Solve]]
"""Takes x and the numbers of its rows, and returns g(x) and what applies the inverse of g'(x)."""
Update = Callable[[Tensor, Tensor], Tensor]
"""Takes x and the numbers of its rows, and returns u(x)."""

# Solutions of implicit equations: iterations until one of them changes nothing beyond rounding.
MOST_NEWTON_STEPS = 30
MOST_RELAXATIONS = 200
# After so many a contraction is slow enough for Newton's method to be cheaper, and it may be none.
FEW_RELAXATIONS = 40
NEWTON_VOLUME = 256
"""Largest number of sites for which the few equations that relaxation does not solve go to Newton's method."""
DIFFERENTIABLE_VOLUME = 32
"""Largest number of sites for which solutions are differentiated by the matrix of Newton's method."""


class Integrator(abc.ABC):
    """One step of size h from time t, and its inverse. Fields are flat, ``(n, V)``.

    Where a determinant is not positive, or an equation has no solution near by (h too large for the velocity: the map
    folds), log-determinants are not a number; such a draw is rejected and counted, and such a state of a chain is an
    error. A fold further away is not seen there: it shows as a draw whose inverse is another point, which the certificate
    looks for. More steps mend it.

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


def newton(residual: Residual, start: Tensor, rows: Tensor | None = None) -> Tensor:
    """Solve g(x) = 0 by Newton's method for each row of x, without a graph; a row that does not settle becomes NaN.

    A step that makes the residual of its row larger is halved until it does not.

    Parameters
    ----------
    residual
        Takes x and the numbers of its rows; returns g(x) and the function that applies the inverse of g'(x).
    start
        First guess, (n, V).
    rows
        Numbers of the rows, for the residual; by default 0 to n − 1.

    Returns
    -------
    The solution, to rounding.
    """
    with torch.no_grad():
        rows = torch.arange(len(start), device=start.device) if rows is None else rows
        tolerance = 32 * torch.finfo(start.dtype).eps
        field, change = start, torch.zeros_like(start)
        smallest = torch.full((len(start),), torch.inf, dtype=start.dtype, device=start.device)
        for _ in range(MOST_NEWTON_STEPS):
            tried = field - change
            value, solve = residual(tried, rows)
            size = value.abs().amax(1)
            # At the end rounding decides which of two residuals is the larger.
            better = (size < smallest) | (size <= tolerance * (1 + tried.abs().amax(1)))
            field = torch.where(better.unsqueeze(1), tried, field)
            smallest = torch.where(better, size, smallest)
            change = torch.where(better.unsqueeze(1), solve(value), 0.5 * change)
            done = (change.abs() <= tolerance * (1 + field.abs())).all(1) & better
            # A row that is not finite never will be: the others must not wait for it.
            if bool((done | ~torch.isfinite(change).all(1)).all()):
                break
        else:
            done = better & (change.abs() <= 1e3 * tolerance * (1 + field.abs())).all(1)
        return torch.where(done.unsqueeze(1), field - change, torch.full_like(field, torch.nan))


def relax(update: Update, residual: Residual, start: Tensor) -> tuple[Tensor, int]:
    """Solve x = u(x) for each row of x, without a graph; a row that does not settle becomes NaN.

    Repeated updates, which cost no Jacobian, solve nearly all rows; those for which u is no contraction, or a slow one,
    are solved by Newton's method where that is affordable.

    Parameters
    ----------
    update
        Takes x and the numbers of its rows; returns u(x).
    residual
        As for `newton`, with the same solutions.
    start
        First guess, flat fields (n, V).

    Returns
    -------
    The solution, to rounding, and the number of updates that it took.
    """
    small = start.shape[1] <= NEWTON_VOLUME
    tolerance = 32 * torch.finfo(start.dtype).eps
    with torch.no_grad():
        field, rows = start.clone(), torch.arange(len(start), device=start.device)
        updates = 0
        while len(rows) and updates < (FEW_RELAXATIONS if small else MOST_RELAXATIONS):
            old = field[rows]
            new = update(old, rows)
            field[rows] = new
            # What is not finite never settles, and is left to Newton's method at once.
            going_on = ((new - old).abs() > tolerance * (1 + new.abs())).any(1)
            lost = ~torch.isfinite(new).all(1)
            field[rows[lost]] = torch.nan
            rows = rows[going_on & ~lost]
            updates += 1
        field[rows] = torch.nan
        failed = torch.nonzero(torch.isnan(field).any(1)).squeeze(1)
        if len(failed) and small:
            field[failed] = newton(residual, start[failed], failed)
    return field, updates


def attach(update: Update, residual: Residual, solution: Tensor, updates: int) -> Tensor:
    """Return a solution of x = u(x) with its derivatives.

    On small lattices that is one more of Newton's steps, whose matrix is not differentiated: its value is the solution,
    its derivatives are those of the solution. On others the update is made again as often as the solution took, with a
    graph: derivatives converge as fast as the solution did, if it did not begin with a guess that was nearly right.

    Parameters
    ----------
    update, residual
        As for `relax`, differentiable with respect to what the solution depends on.
    solution
        What `relax` found, without a graph.
    updates
        How many updates that took.
    """
    rows = torch.arange(len(solution), device=solution.device)
    if solution.shape[1] <= DIFFERENTIABLE_VOLUME:
        value, solve = residual(solution, rows)
        return solution - solve(value)
    for _ in range(updates):
        solution = update(solution, rows)
    return solution
