"""A symmetric splitting of the velocity by the colours of sites: each substep moves the sites of one colour.

Sites of one colour do not feel each other, so that a substep is a one-dimensional motion at each of them, with the other
colours frozen. It is done by the implicit midpoint rule, x' = x + h V_x(t, (x + x')/2), whose log-determinant is a sum
over the sites,

    log|det| = Σ_x [ log(1 + h a_x / 2) − log(1 − h a_x / 2) ],   a_x = ∂V_x/∂φ_x at the midpoint,

exact however large the lattice. Every substep evaluates the velocity a few times: with a colour for each site, as the
networks of `flowmc.flows.velocities` have, a step costs a few times 2V evaluations. Half a step for each colour in order
and half a step for each in reverse order are a symmetric rule of second order: with −h it is its own inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.flows.integrators.base import Integrator, Solve, at_time, newton
from flowmc.flows.velocities import Velocity

__all__ = ["ColourSplitting"]


class ColourSplitting(Integrator):
    """With a diagonal log-determinant and an exact inverse."""

    name = "splitting"
    exact = True

    def step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field after the step and log|det|."""
        # The time of both halves is that of the middle of the step: then the rule is symmetric.
        when = at_time(time + 0.5 * size, field)
        total = field.new_zeros(len(field))
        classes = [torch.as_tensor(sites, device=field.device) for sites in velocity.colour_classes]
        for sites in [*classes, *reversed(classes)]:
            field, log_det = _substep(velocity, when, 0.5 * size, field, sites)
            total = total + log_det
        return field, total

    def inverse_step(self, velocity: Velocity, time: float, size: float, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field before the step and log|det| of the inverse."""
        return self.step(velocity, time + size, -size, field)


def _substep(velocity: Velocity, time: Tensor, size: float, field: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
    start = field[:, sites]
    with torch.no_grad():
        given = start.detach()
        frozen = velocity.around(time, field.detach(), sites)

        def residual(middle: Tensor, _: Tensor) -> tuple[Tensor, Solve]:
            value, slope = frozen(middle)
            return middle - given - 0.5 * size * value, lambda rest: rest / (1 - 0.5 * size * slope)

        middle = newton(residual, given)
    if torch.is_grad_enabled():
        # One more of Newton's steps, with a graph: its derivatives are those of the solution.
        frozen = velocity.around(time, field, sites)
        value, slope = frozen(middle)
        middle = middle - (middle - start - 0.5 * size * value) / (1 - 0.5 * size * slope).detach()
    value, slope = frozen(middle)
    # Where the midpoint rule folds, 1 ± h a/2 is not positive, and the logarithm not a number.
    log_det = torch.log1p(0.5 * size * slope) - torch.log1p(-0.5 * size * slope)
    return field.index_copy(1, sites, start + size * value), log_det.sum(1)
