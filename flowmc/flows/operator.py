"""Operator flows: continuous flows whose velocity is a neural operator, one set of weights for every lattice.

The operator carries the free field nearest to the theory on its lattice, of the mass that the gap equation gives there,
to the interacting one. What is trained on small lattices is run on others as it is, or trained on.

References
----------
.. [1] Máté, Fleuret, arXiv:2401.00828.
.. [2] Gerdes, de Haan, Rainone, Bondesan, Cheng, arXiv:2207.00283.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar

import torch

from flowmc.errors import ParameterError, TheoryMismatchError
from flowmc.flows.base import DTYPES, Flow
from flowmc.flows.densities import base_mass_for
from flowmc.flows.interpolations import InterpolationConfig, build_interpolation
from flowmc.flows.operator_velocity import OperatorNetworkConfig, OperatorVelocity, OperatorWeights
from flowmc.flows.path import PathConfig, PathFlow, is_even
from flowmc.theories import Theory

__all__ = ["OperatorConfig", "OperatorFlow"]

UNITS = ("extent", "mass")
SIZELESS_PATHS = ("linear", "trigonometric")


@dataclass(frozen=True)
class OperatorConfig(PathConfig):
    """Hyper-parameters of an `OperatorFlow`.

    Parameters
    ----------
    networks
        Those of the velocity.
    interpolation
        A path that is the same on every lattice, "linear" or "trigonometric"; it has neither networks nor a learned C(t).
    spacing
        Lattice spacing in the units of the kernels: 1 for kernels in lattice units, or another number; "mass" for the
        mass of the base in lattice units, so that kernels scale with its correlation length; "extent" for V^(−1/d), so
        that they scale with the lattice.
    conditioning
        Couplings on which the kernels depend, with the ranges that are mapped to [−1, 1], for example
        ``{"lam": [4.5, 7.0]}``: one flow for a line of theories. A theory outside of them is refused.

    Raises
    ------
    ParameterError
        As in `PathConfig`, or if a value is out of range.
    """

    base: str = "free_field"
    base_mass: float | str = "matched"
    integrator: str = "rk4_trace"
    steps: int = 10
    checkpointed: bool = False
    interpolation: InterpolationConfig = field(default_factory=lambda: InterpolationConfig(kind="linear"))
    networks: OperatorNetworkConfig = field(default_factory=OperatorNetworkConfig)
    spacing: float | str = 1.0
    conditioning: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.networks, dict):
            object.__setattr__(self, "networks", OperatorNetworkConfig(**self.networks))
        if self.interpolation.kind not in SIZELESS_PATHS:
            raise ParameterError(
                got=f"interpolation of kind {self.interpolation.kind!r} for an operator flow",
                expected=f"a path that is the same on every lattice, one of {list(SIZELESS_PATHS)}",
                fix="set `kind` in [flow.interpolation]",
            )
        known = self.spacing in UNITS if isinstance(self.spacing, str) else 0 < self.spacing < inf
        if not known:
            raise ParameterError(
                got=f"spacing = {self.spacing!r}",
                expected=f"a finite number above zero, or one of {list(UNITS)}",
                fix="correct `spacing`",
            )
        if self.spacing == "mass" and self.base != "free_field":
            raise ParameterError(
                got=f'spacing = "mass" with base = {self.base!r}, which has no mass',
                expected='base = "free_field", or a number',
                fix="correct `spacing`",
            )
        kernel = self.networks.kernel
        if self.spacing == "extent" and kernel.family in ("local", "multiscale") and kernel.reach > 1:
            raise ParameterError(
                got=f'reach = {kernel.reach} with spacing = "extent": so many times around the lattice',
                expected="a part of the lattice, at most 1",
                fix="lower `reach`, for example to 0.4",
            )
        ranges = {name: tuple(ends) for name, ends in self.conditioning.items()}
        for name, ends in ranges.items():
            if len(ends) != 2 or not -inf < ends[0] < ends[1] < inf:
                raise ParameterError(
                    got=f"conditioning on {name} with the range {list(ends)}",
                    expected="its lower and its upper end, finite",
                    fix='give, for example, conditioning = { "lam" = [4.5, 7.0] }',
                )
        object.__setattr__(self, "conditioning", ranges)


class OperatorFlow(PathFlow):
    """A continuous flow for every lattice.

    Parameters
    ----------
    theory
        The theory of a real field, invariant under translations and φ → −φ.
    config
        Hyper-parameters.
    weights
        Weights to share with a flow of the same hyper-parameters; by default new ones.

    Raises
    ------
    ParameterError
        As for `ContinuousFlow`, or if the theory lacks a symmetry of the operator or a coupling, or has one out of range.
    """

    kind: ClassVar[str] = "operator"
    Config: ClassVar[type] = OperatorConfig
    config: OperatorConfig
    velocity: OperatorVelocity

    def __init__(self, theory: Theory, config: OperatorConfig, weights: OperatorWeights | None = None) -> None:
        super().__init__(theory, config)
        if not theory.homogeneous or not is_even(theory):
            raise ParameterError(
                got=f"an operator flow for the theory {theory.name!r}",
                expected="an action that is invariant under translations and under φ → −φ, as the operator is",
                fix='take a flow of kind "interpolating", for which neither is needed',
            )
        couplings = _scaled_couplings(theory, config.conditioning)
        made = OperatorWeights(config.networks, len(couplings)) if weights is None else weights
        self.velocity = OperatorVelocity(made, theory.shape, _spacing(theory, config), couplings)
        self.interpolation = build_interpolation(config.interpolation, theory.shape, even=True, learned_rate=False)
        self.interpolation.check(self.base, theory)
        dtype = DTYPES[config.dtype] if weights is None else next(weights.parameters()).dtype
        self.to(dtype)

    def on(self, theory: Theory) -> OperatorFlow:
        """Return a flow for another lattice or other couplings that shares this one's weights: training one trains both.

        Convert it or move it to a device before: afterwards the other one's base would stay behind.

        Raises
        ------
        TheoryMismatchError, ParameterError
            As the constructor does.
        """
        return OperatorFlow(theory, self.config, self.velocity.weights).to(self.device)

    def _transferable(self, other: Flow) -> dict[str, torch.nn.Parameter]:
        """Return all weights if they mean the same: for the same networks, units and conditioning."""
        if not isinstance(other, OperatorFlow):
            return {}
        own, given = self.config, other.config
        alike = (
            own.networks.meaning() == given.networks.meaning()
            and own.spacing == given.spacing
            and (own.spacing != "mass" or own.base_mass == given.base_mass)
            and own.conditioning == given.conditioning
        )
        return dict(self.named_parameters()) if alike else {}


def _spacing(theory: Theory, config: OperatorConfig) -> float:
    """Return the lattice spacing in the units of the kernels."""
    if config.spacing == "mass":
        return base_mass_for(theory, config.base_mass)
    if config.spacing == "extent":
        return float(theory.volume ** (-1 / len(theory.shape)))
    return float(config.spacing)


def _scaled_couplings(theory: Theory, ranges: Mapping[str, tuple[float, float]]) -> list[float]:
    """Return couplings of a theory, scaled from their ranges to [−1, 1]."""
    described = theory.describe()
    scaled = []
    for name, (low, high) in ranges.items():
        value = described.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            known = [key for key, found in described.items() if isinstance(found, int | float)]
            raise TheoryMismatchError(
                got=f"conditioning on {name!r} for {theory}",
                expected=f"couplings that the theory has, of {known}",
                fix="correct `conditioning`",
            )
        if not low <= value <= high:
            raise ParameterError(
                got=f"{name} = {value}, outside of the range [{low}, {high}] of `conditioning`",
                expected="couplings for which the kernels were trained",
                fix="widen the range, and train anew",
            )
        scaled.append(2 * (value - low) / (high - low) - 1)
    return scaled
