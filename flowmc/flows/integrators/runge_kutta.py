"""The classical Runge-Kutta method of fourth order with fixed steps, x' = x + h (k1 + 2 k2 + 2 k3 + k4) / 6.

With the Jacobian A_i of the velocity at each stage, the Jacobian of the step follows by the chain rule:

    K1 = A1,  K2 = A2 (1 + h K1 / 2),  K3 = A3 (1 + h K2 / 2),  K4 = A4 (1 + h K3),
    M = 1 + h (K1 + 2 K2 + 2 K3 + K4) / 6.

log det M is exact, at the cost of V × V matrices. The continuous version integrates the divergence with the same weights
instead; it differs by O(h⁴) over a unit of time. The inverse of a step is that of the same map, not a step with −h, which
would be another map: it is solved for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.flows.integrators.base import DIFFERENTIABLE_VOLUME, Integrator, Solve, at_time, attach, log_abs_det, relax
from flowmc.flows.velocities import Velocity

__all__ = ["RungeKutta", "RungeKuttaTrace", "runge_kutta_step"]


def runge_kutta_step(velocity: Velocity, time: float, size: float, field: Tensor) -> Tensor:
    """Return the field at ``time + size``."""
    return field + size * _mean_velocity(velocity, time, size, field)


def _mean_velocity(velocity: Velocity, time: float, size: float, field: Tensor) -> Tensor:
    start, middle, end = (at_time(time + part * size, field) for part in (0, 0.5, 1))
    first = velocity(start, field)
    second = velocity(middle, field + 0.5 * size * first)
    third = velocity(middle, field + 0.5 * size * second)
    fourth = velocity(end, field + size * third)
    return (first + 2 * second + 2 * third + fourth) / 6


class RungeKutta(Integrator):
    """With the exact Jacobian of the step, for small lattices."""

    name = "rk4"
    exact = True
    largest_volume = 32

    def step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field after the step and log|det|."""
        new, matrix = _step_with_jacobian(velocity, time, size, field)
        return new, log_abs_det(matrix)

    def inverse_step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field before the step and log|det| of the inverse."""
        found = _before(velocity, time, size, field)
        _, matrix = _step_with_jacobian(velocity, time, size, found)
        return found, -log_abs_det(matrix)


def _before(velocity: Velocity, time: float, size: float, field: Tensor) -> Tensor:
    """Return the field that a step carries to the given one."""

    def update(before: Tensor, rows: Tensor) -> Tensor:
        return field[rows] - size * _mean_velocity(velocity, time, size, before)

    def residual(before: Tensor, rows: Tensor) -> tuple[Tensor, Solve]:
        after, matrix = _step_with_jacobian(velocity, time, size, before)
        return after - field[rows], lambda value: torch.linalg.solve(matrix.detach(), value)

    if field.shape[1] > DIFFERENTIABLE_VOLUME:
        if not torch.is_grad_enabled():
            return relax(update, residual, runge_kutta_step(velocity, time + size, -size, field))[0]
        # Not from the good guess: its few updates would not be enough for derivatives.
        found, updates = relax(update, residual, field.detach())
        return attach(update, residual, found, updates)
    with torch.no_grad():
        guess = runge_kutta_step(velocity, time + size, -size, field)
        _, slope = velocity.with_jacobian(at_time(time + 0.5 * size, field), 0.5 * (guess + field))
        matrix = one = torch.eye(field.shape[1], dtype=field.dtype, device=field.device)
        for order in (4, 3, 2, 1):
            matrix = one + (size / order) * slope @ matrix
        inverse: Tensor = torch.linalg.inv_ex(matrix).inverse

        def chord(before: Tensor, rows: Tensor) -> Tensor:
            # Newton's method with the Jacobian that the step would have if that of the velocity were the one midway: a
            # better one costs more than the iterations that it saves. It is singular where the step itself would be, so
            # that no small change hides a large residual.
            rest = runge_kutta_step(velocity, time, size, before) - field[rows]
            return before - (inverse[rows] @ rest.unsqueeze(2)).squeeze(2)

        found, updates = relax(chord, residual, guess)
    return attach(update, residual, found, updates) if torch.is_grad_enabled() else found


def _step_with_jacobian(velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
    start, middle, end = (at_time(time + part * size, field) for part in (0, 0.5, 1))
    first, first_slope = velocity.with_jacobian(start, field)
    second, slope = velocity.with_jacobian(middle, field + 0.5 * size * first)
    second_slope = slope + 0.5 * size * slope @ first_slope
    third, slope = velocity.with_jacobian(middle, field + 0.5 * size * second)
    third_slope = slope + 0.5 * size * slope @ second_slope
    fourth, slope = velocity.with_jacobian(end, field + size * third)
    fourth_slope = slope + size * slope @ third_slope
    matrix = size / 6 * (first_slope + 2 * second_slope + 2 * third_slope + fourth_slope)
    new = field + size / 6 * (first + 2 * second + 2 * third + fourth)
    return new, matrix + torch.eye(field.shape[1], dtype=field.dtype, device=field.device)


class RungeKuttaTrace(Integrator):
    """With the integral of the divergence in place of the log-determinant."""

    name = "rk4_trace"
    exact = False

    def step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field after the step and the integral of the divergence."""
        start, middle, end = (at_time(time + part * size, field) for part in (0, 0.5, 1))
        first, first_trace = velocity.with_divergence(start, field)
        second, second_trace = velocity.with_divergence(middle, field + 0.5 * size * first)
        third, third_trace = velocity.with_divergence(middle, field + 0.5 * size * second)
        fourth, fourth_trace = velocity.with_divergence(end, field + size * third)
        new = field + size / 6 * (first + 2 * second + 2 * third + fourth)
        return new, size / 6 * (first_trace + 2 * second_trace + 2 * third_trace + fourth_trace)

    def inverse_step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field before the step and minus the integral of the divergence from there."""
        found = _before(velocity, time, size, field)
        _, trace = self.step(velocity, time, size, found)
        return found, -trace
