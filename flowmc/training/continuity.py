"""The continuity equation as an objective: a velocity is trained from an energy alone, without back-propagation in time.

Along trajectories of the present velocity, which are not differentiated, the residual E(t, φ) of the continuity equation
(`flowmc.flows.interpolations`) is made small at every time,

    L = mean over times and trajectories of |E| + E²,

in velocity, path and C(t) together. (A flow for many lattices, each with a C(t) of its own, has the mean over the fields
of a micro-batch in its place.) If E vanishes everywhere, the flow carries the base to the target. Tested where the
flow goes only, a small loss by itself does not show that nothing was missed: a learned path may build a wall within which
all is consistent. E may be tested on any fields, as no divergence between densities is minimised: by `residual_spread`
each field is stretched or squeezed before, which shows what lies just behind such a wall; not, what lies far from it or
aside.

References
----------
.. [1] Máté, Fleuret, arXiv:2301.07388.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import cast

import torch
from torch import Tensor

from flowmc.flows import Flow, PathFlow
from flowmc.theories import SmoothTheory, Theory
from flowmc.training.losses import Loss, pieces

__all__ = ["CONTINUITY", "continuity", "residual"]

CONTINUITY = "continuity"
"""Name of the objective in run descriptions."""


def residual(flow: PathFlow, theory: SmoothTheory, time: Tensor, field: Tensor) -> Tensor:
    """Return the residual E of the continuity equation, in nats per unit of time; without C(t) if that is not learned.

    Parameters
    ----------
    flow
        The flow.
    theory
        The target, at whose action the path ends.
    time
        Times in [0, 1], (n,).
    field
        Fields, flat, (n, V).
    """
    value, divergence = flow.velocity.prepare().with_divergence(time, field)
    point = flow.interpolation.at(time, field, flow.base, theory)
    transported = (point.gradient * value).sum(1)
    total: Tensor = point.rate + transported - divergence + flow.interpolation.rate_of_log_z(time)
    return total


def continuity(flow: Flow, theory: Theory, n: int, generator: torch.Generator, micro_batch: int = 0) -> Iterator[Loss]:
    """Yield the mean of |E| + E² on or near trajectories of the flow; parameters as for `flowmc.training.reverse_kl`."""
    pathed, smooth = cast(PathFlow, flow), cast(SmoothTheory, theory)
    for size in pieces(n, micro_batch):
        yield _on_batch(pathed, smooth, size, n, generator)


def _on_batch(flow: PathFlow, theory: SmoothTheory, size: int, n: int, generator: torch.Generator) -> Loss:
    steps = flow.config.trajectory_steps
    with torch.no_grad():
        latent = flow.base.draw(size, generator)
        points = list(flow.trajectory(latent, steps))
        times = latent.new_tensor([time for time, _ in points])
        fields = torch.stack([field.flatten(1) for _, field in points])
        if flow.config.residual_times:
            chosen = torch.randperm(len(points), generator=generator, device=latent.device)[
                : flow.config.residual_times
            ]
            times, fields = times[chosen], fields[chosen]
        if flow.config.residual_spread:
            noise = torch.randn(fields.shape[:2], generator=generator, dtype=fields.dtype, device=fields.device)
            fields = fields * (1 + flow.config.residual_spread * noise).unsqueeze(2)
    found = residual(flow, theory, times.repeat_interleave(size), fields.flatten(0, 1))
    if flow.interpolation.log_z_rate is None:
        # Where E² is least for given velocity and path, C(t) is minus the mean over the fields at that time; that of few
        # fields leaves the squares too small by (m − 1) / m.
        found = found.reshape(len(times), size)
        found = (found - found.mean(1, keepdim=True)).flatten() * sqrt(size / (size - 1))
    value = (found.abs() + found * found).sum(dtype=torch.float64) / (n * len(times))
    return Loss(value, value.new_empty(0))
