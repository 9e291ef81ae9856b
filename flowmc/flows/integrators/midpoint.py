"""The implicit midpoint rule, x' = x + h V(t + h/2, (x + x')/2): its inverse is the same rule with −h.

With the Jacobian A of the velocity at the midpoint, log|det ∂x'/∂x| = log det(1 + hA/2) − log det(1 − hA/2). The
continuous version puts h tr A in its place: forward and reverse then agree to rounding, and are wrong together by
O(h²) over a unit of time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.flows.integrators.base import Integrator, Solve, at_time, attach, log_abs_det, relax
from flowmc.flows.velocities import Velocity

__all__ = ["Midpoint", "MidpointTrace"]


class Midpoint(Integrator):
    """With the exact log-determinant, for small lattices."""

    name = "midpoint"
    exact = True
    largest_volume = 32

    def step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field after the step and log|det|."""
        value, matrix = velocity.with_jacobian(*_middle(velocity, time, size, field))
        one = torch.eye(field.shape[1], dtype=field.dtype, device=field.device)
        log_det = log_abs_det(one + 0.5 * size * matrix) - log_abs_det(one - 0.5 * size * matrix)
        return field + size * value, log_det

    def inverse_step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field before the step and log|det| of the inverse."""
        return self.step(velocity, time + size, -size, field)


def _middle(velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
    """Return the time of the midpoint, and x + h V/2 there."""
    when = at_time(time + 0.5 * size, field)
    one = torch.eye(field.shape[1], dtype=field.dtype, device=field.device)

    def update(middle: Tensor, rows: Tensor) -> Tensor:
        return field[rows] + 0.5 * size * velocity(when, middle)

    def residual(middle: Tensor, rows: Tensor) -> tuple[Tensor, Solve]:
        value, matrix = velocity.with_jacobian(when, middle)
        slope = (one - 0.5 * size * matrix).detach()
        return middle - field[rows] - 0.5 * size * value, lambda rest: torch.linalg.solve(slope, rest)

    found, updates = relax(update, residual, field.detach())
    return when, attach(update, residual, found, updates) if torch.is_grad_enabled() else found


class MidpointTrace(Integrator):
    """With the divergence at the midpoint in place of the log-determinant."""

    name = "midpoint_trace"
    exact = False

    def step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field after the step and h times the divergence at the midpoint."""
        value, trace = velocity.with_divergence(*_middle(velocity, time, size, field))
        return field + size * value, size * trace

    def inverse_step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field before the step and minus h times the divergence at the midpoint."""
        return self.step(velocity, time + size, -size, field)
