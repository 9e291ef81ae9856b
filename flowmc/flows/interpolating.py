"""Interpolating flows: continuous flows with networks of the whole field, trained along a path of densities.

References
----------
.. [1] Máté, Fleuret, arXiv:2301.07388.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf
from typing import ClassVar

import torch

from flowmc.errors import ParameterError
from flowmc.flows.base import DTYPES, Flow
from flowmc.flows.continuous import ContinuousConfig, ContinuousFlow
from flowmc.flows.interpolations import Interpolation, InterpolationConfig, build_interpolation
from flowmc.flows.velocities import FieldNetworkConfig, WindowedVelocity
from flowmc.theories import Theory

__all__ = ["InterpolatingConfig", "InterpolatingFlow"]

# Of sums in float64: by so much an even action may differ between a field and its mirror image.
ROUNDING = 1e-10


@dataclass(frozen=True)
class InterpolatingConfig(ContinuousConfig):
    """Hyper-parameters of an `InterpolatingFlow`.

    Parameters
    ----------
    networks
        Those of the velocity.
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
    z2
        Whether velocity and path are exactly symmetric under φ → −φ, at twice the cost.

    Raises
    ------
    ParameterError
        As in `ContinuousConfig`, or if a value is out of range.
    """

    networks: FieldNetworkConfig = field(default_factory=FieldNetworkConfig)
    interpolation: InterpolationConfig = field(default_factory=InterpolationConfig)
    trajectory_steps: int = 20
    residual_times: int = 0
    residual_spread: float = 0.0
    z2: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("networks", FieldNetworkConfig), ("interpolation", InterpolationConfig)):
            value = getattr(self, name)
            if isinstance(value, dict):
                object.__setattr__(self, name, kind(**value))
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


def _is_even(theory: Theory) -> bool:
    """Return whether the action is the same under φ → −φ, at a few random fields."""
    field = torch.randn(8, *theory.field_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = (torch.as_tensor(theory.action(sign * field)) for sign in (1, -1))
    return torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)


class InterpolatingFlow(ContinuousFlow):
    """A continuous flow whose velocity and path of densities are networks of the whole field.

    Parameters
    ----------
    theory
        The theory of a real field.
    config
        Hyper-parameters.

    Raises
    ------
    ParameterError
        As for `ContinuousFlow`, or if networks are invariant under translations or φ → −φ and the theory is not, or the
        path does not lead to it.
    """

    kind: ClassVar[str] = "interpolating"
    Config: ClassVar[type] = InterpolatingConfig
    config: InterpolatingConfig
    interpolation: Interpolation

    def __init__(self, theory: Theory, config: InterpolatingConfig) -> None:
        super().__init__(theory, config)
        for networks in (config.networks, config.interpolation.networks):
            if networks.network == "convolutional" and not theory.homogeneous:
                raise ParameterError(
                    got=f"convolutional networks for the theory {theory.name!r}",
                    expected="a theory that is invariant under translations, as they are",
                    fix='set network = "fully_connected"',
                )
        if config.z2 and not _is_even(theory):
            raise ParameterError(
                got=f"z2 = true for the theory {theory.name!r}, whose action changes under φ → −φ",
                expected="an even action: the flow would give both signs the same weight",
                fix="set z2 = false",
            )
        self.velocity = WindowedVelocity(config.networks, theory.shape, odd=config.z2)
        self.interpolation = build_interpolation(config.interpolation, theory.shape, even=config.z2)
        self.interpolation.check(self.base, theory)
        self.to(DTYPES[config.dtype])

    def _transferable(self, other: Flow) -> dict[str, torch.nn.Parameter]:
        """Return the weights that mean the same: those of convolutions on all lattices, others on the same one only."""
        if not isinstance(other, InterpolatingFlow):
            return {}
        own, given = self.config, other.config
        same_path = own.interpolation.kind == given.interpolation.kind
        parts = {"velocity.": (own.networks, given.networks)}
        if same_path:
            parts["interpolation.layers."] = (own.interpolation.networks, given.interpolation.networks)
        fitting = ["interpolation.log_z_rate."] if same_path else []
        for prefix, (mine, theirs) in parts.items():
            convolutional = mine.network == "convolutional" and len(self.shape) == len(other.shape)
            # The same in all but widths, which the shapes of the weights tell.
            alike = replace(mine, hidden=theirs.hidden) == theirs
            if alike and (convolutional or self.shape == other.shape):
                fitting.append(prefix)
        return {name: weight for name, weight in self.named_parameters() if name.startswith(tuple(fitting))}

    def density_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield all weights but those of the path, along which the flow was trained: it is no part of the map."""
        return ((name, weight) for name, weight in self.named_parameters() if not name.startswith("interpolation."))
