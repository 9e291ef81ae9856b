"""Velocity fields, as flow matching trains them (arXiv:2210.02747, Meta's flow_matching): dx/dt = v(x, t), t from 0 to 1.

The library's own solver is left alone. By default it estimates the divergence with random vectors (Hutchinson), so that
log q is a random number, and an Euler step backwards does not undo one forwards. Here field and log-determinant are
integrated together with the divergence that automatic differentiation gives, on a fixed grid, and the inverse is solved
for, so that it is that of the same discrete map. The integral of the divergence still differs from the log-determinant
of this map, by O(h⁴) over a unit of time: "rk4_trace" states a bound, which the certificate holds against the full
Jacobian. "rk4" multiplies the Jacobians of its stages and is exact, on at most 32 sites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.distributions import Distribution

from flowmc.errors import ParameterError
from flowmc.flows.integrators import INTEGRATORS
from flowmc.flows.velocities import Velocity
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, checked_event
from flowmc_adapters.torch_host import frozen_module, host_proposal
from flowmc_adapters.torch_module import WhiteNoise, pushforward

__all__ = ["proposal"]

CHOICES = ("rk4", "rk4_trace")
BOUND = 1e-3
# Directions of a backward pass at once: as many passes as there are sites would be slow, and all at once large.
DIRECTIONS = 64


def proposal(
    flow: torch.nn.Module,
    *,
    event_shape: Any,
    base: Distribution | None = None,
    integrator: str = "rk4_trace",
    steps: int = 20,
    flat: bool = False,
    **options: Unpack[Options],
) -> Proposal:
    """Return a velocity field as a proposal.

    Parameters
    ----------
    flow
        A module, for example a ``flow_matching.utils.ModelWrapper``, called as ``flow(x, t)`` with x (n, *event_shape)
        and t (n,), that returns dx/dt; it must be differentiable with respect to x. A copy is used.
    event_shape
        Shape of one configuration.
    base
        Density at t = 0, one event each; by default standard normal, of the shape of an event.
    integrator
        "rk4_trace", or "rk4" for an exact log q on at most 32 sites.
    steps
        Steps of the grid.
    flat
        Whether the velocity takes its fields as rows, (n, V).
    options
        See `flowmc_adapters.base.Options`; for "rk4_trace", ``log_q_bound`` is 1e-3 nats unless it is given.

    Raises
    ------
    ParameterError
        If there is no such integrator, or not for so many sites, or no step.
    """
    event = checked_event(event_shape)
    chosen = INTEGRATORS.get(integrator) if integrator in CHOICES else None
    volume = int(torch.tensor(event).prod())
    if chosen is None or steps < 1 or volume > (chosen.largest_volume or volume):
        raise ParameterError(
            got=f"integrator = {integrator!r}, steps = {steps}, {volume} sites",
            expected='"rk4_trace", or "rk4" on at most 32 sites, and at least one step',
            fix="correct it; an integrator without an exact log q states a `log_q_bound`",
        )
    frozen = frozen_module(flow, options)
    density = base or WhiteNoise.like((volume,) if flat else event, frozen, options.get("dtype"))
    own = (volume,) if flat else event
    velocity, size = _ModuleVelocity(frozen, own), 1 / steps

    def carried(field: Tensor, *, backwards: bool) -> tuple[Tensor, Tensor]:
        move = chosen.inverse_step if backwards else chosen.step
        rows = field.reshape(len(field), -1)
        log_det = torch.zeros(len(field), dtype=torch.float64, device=field.device)
        for number in reversed(range(steps)) if backwards else range(steps):
            rows, change = move(velocity, number * size, size, rows)
            log_det = log_det + change.double()
        return rows.reshape(field.shape), log_det

    bound = options.get("log_q_bound", 0.0 if chosen.exact else BOUND)
    return host_proposal(
        pushforward(
            density, lambda latent: carried(latent, backwards=False), lambda field: carried(field, backwards=True)
        ),
        adapter="flow_matching",
        identity=(frozen, base, integrator, steps, flat),
        event_shape=event,
        options={**options, "log_q_bound": bound},
    )


class _ModuleVelocity(Velocity):
    """A module as a velocity, with derivatives by automatic differentiation."""

    def __init__(self, module: Callable[[Tensor, Tensor], Tensor], event: tuple[int, ...]) -> None:
        self._module = module
        self._event = event

    @property
    def colour_classes(self) -> Sequence[Sequence[int]]:
        """The sites of each colour: every site may depend on every other, so that each has one of its own."""
        return [[site] for site in range(int(torch.tensor(self._event).prod()))]

    def __call__(self, time: Tensor, field: Tensor) -> Tensor:
        """Return V(t, φ), (n, V)."""
        moved = self._module(field.reshape(len(field), *self._event), time.expand(len(field)))
        return moved.reshape(field.shape)

    def with_divergence(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return V and Σ_x ∂V_x/∂φ_x, (n,)."""
        value, rows = self._rows(time, field)
        trace = sum(part.diagonal(offset=start, dim1=0, dim2=2).sum(1) for start, part in rows)
        return value, torch.as_tensor(trace)

    def with_jacobian(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return V and ∂V_x/∂φ_y, (n, V, V)."""
        value, rows = self._rows(time, field)
        return value, torch.cat([part for _, part in rows]).transpose(0, 1)

    def at_sites(self, time: Tensor, field: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
        """Return V_x and ∂V_x/∂φ_x at some sites, (n, sites) each."""
        value, matrix = self.with_jacobian(time, field)
        return value[:, sites], matrix.diagonal(dim1=1, dim2=2)[:, sites]

    def _rows(self, time: Tensor, field: Tensor) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        """Return V and, in parts that each begin at a site, ∂V_x/∂φ_y, (part, n, V)."""
        volume = field.shape[1]
        differentiable = torch.is_grad_enabled() and field.requires_grad
        with torch.enable_grad():
            point = field if differentiable else field.detach().requires_grad_()
            value = self(time, point)
            one = torch.eye(volume, dtype=field.dtype, device=field.device)
            rows = []
            for start in range(0, volume, DIRECTIONS):
                seeds = one[start : start + DIRECTIONS, None].expand(-1, len(field), -1)
                (part,) = torch.autograd.grad(
                    value, point, seeds, is_grads_batched=True, retain_graph=True, create_graph=differentiable
                )
                rows.append((start, part))
        return (value if differentiable else value.detach()), rows
