"""Interpolating flows: continuous flows with networks of the whole field, trained along a path of densities.

References
----------
.. [1] Máté, Fleuret, arXiv:2301.07388.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from flowmc.errors import ParameterError
from flowmc.flows.base import DTYPES, Flow
from flowmc.flows.interpolations import build_interpolation
from flowmc.flows.path import PathConfig, PathFlow, is_even
from flowmc.flows.velocities import FieldNetworkConfig, WindowedVelocity
from flowmc.theories import Theory

__all__ = ["InterpolatingConfig", "InterpolatingFlow"]


@dataclass(frozen=True)
class InterpolatingConfig(PathConfig):
    """Hyper-parameters of an `InterpolatingFlow`.

    Parameters
    ----------
    networks
        Those of the velocity.
    z2
        Whether velocity and path are exactly symmetric under φ → −φ, at twice the cost.

    Raises
    ------
    ParameterError
        As in `PathConfig`, or if a value is out of range.
    """

    networks: FieldNetworkConfig = field(default_factory=FieldNetworkConfig)
    z2: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.networks, dict):
            object.__setattr__(self, "networks", FieldNetworkConfig(**self.networks))


class InterpolatingFlow(PathFlow):
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

    def __init__(self, theory: Theory, config: InterpolatingConfig) -> None:
        super().__init__(theory, config)
        for networks in (config.networks, config.interpolation.networks):
            if networks.network == "convolutional" and not theory.homogeneous:
                raise ParameterError(
                    got=f"convolutional networks for the theory {theory.name!r}",
                    expected="a theory that is invariant under translations, as they are",
                    fix='set network = "fully_connected"',
                )
        if config.z2 and not is_even(theory):
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
