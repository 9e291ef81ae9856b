"""Continuous flows with a path of densities from base to target, along which the continuity equation can be trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

import torch

from flowmc.errors import ParameterError
from flowmc.flows.continuous import ContinuousConfig, ContinuousFlow
from flowmc.flows.interpolations import Interpolation, InterpolationConfig
from flowmc.theories import Theory

__all__ = ["PathConfig", "PathFlow"]

# Of sums in float64: by so much an even action may differ between a field and its mirror image.
ROUNDING = 1e-10


@dataclass(frozen=True)
class PathConfig(ContinuousConfig):
    """Hyper-parameters that all flows with a path share.

    Parameters
    ----------
    interpolation
        The path of densities; used by the objective "continuity" only.
    trajectory_steps
        Steps of the trajectories on which the continuity equation is trained.
    residual_times
        Number of times on each trajectory at which its residual is taken, chosen at random; 0 is all of them.
    residual_spread
        The residual is taken at fields of the trajectories times 1 + spread · ξ, ξ standard normal for each of them. At 0
        nothing is learned where no trajectory goes, also not that a part of the target lies just beyond. It is for small
        lattices: |φ| fluctuates by a part 1/√(2V), and fields far outside of that would outweigh all others.

    Raises
    ------
    ParameterError
        As in `ContinuousConfig`, or if a value is out of range.
    """

    interpolation: InterpolationConfig = field(default_factory=InterpolationConfig)
    trajectory_steps: int = 20
    residual_times: int = 0
    residual_spread: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.interpolation, dict):
            object.__setattr__(self, "interpolation", InterpolationConfig(**self.interpolation))
        if self.trajectory_steps < 1 or not 0 <= self.residual_times <= self.trajectory_steps + 1:
            raise ParameterError(
                got=f"trajectory_steps = {self.trajectory_steps}, residual_times = {self.residual_times}",
                expected="at least one step, and at most one time more than steps",
                fix="correct the values",
            )
        if not 0 <= self.residual_spread < inf:
            raise ParameterError(
                got=f"residual_spread = {self.residual_spread}",
                expected="a finite number, at least 0",
                fix="correct it",
            )


class PathFlow(ContinuousFlow):
    """A continuous flow with a path; a subclass makes ``self.interpolation`` as well, after this constructor."""

    config: PathConfig
    interpolation: Interpolation

    def density_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield all weights but those of the path, along which the flow was trained: it is no part of the map."""
        return ((name, weight) for name, weight in self.named_parameters() if not name.startswith("interpolation."))


def is_even(theory: Theory) -> bool:
    """Return whether the action is the same under φ → −φ, at a few random fields."""
    field = torch.randn(8, *theory.field_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = (torch.as_tensor(theory.action(sign * field)) for sign in (1, -1))
    return torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
