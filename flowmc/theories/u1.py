"""U(1) gauge theory in two dimensions on a periodic lattice, by the angles of its links.

A link field θ_μ(x) is stored as (n, T, X, 2), the direction last: μ = 0 is time, the first lattice axis. With the
plaquette angle

    P(x) = θ_0(x) + θ_1(x+0) − θ_0(x+1) − θ_1(x)

the action is S = −β Σ_x cos P(x), the measure Π dθ / 2π (Haar, so that Z = 1 at β = 0). The convention is that of
arXiv:2101.08176; with S = β Σ (1 − cos P) the action is β V larger and ln Z smaller by as much.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import ClassVar

from flowmc.arrays import Array, batch_axes, check_field, namespace
from flowmc.errors import ParameterError
from flowmc.lattice import checked_shape
from flowmc.theories.base import SmoothTheory
from flowmc.theories.spaces import AngleSpace, ContinuousSpace

__all__ = ["GaugeTheory2D", "U1Gauge2D", "link_gradient", "plaquette_angles"]


def plaquette_angles(field: Array) -> Array:
    """Return P(x) = θ_0(x) + θ_1(x+0) − θ_0(x+1) − θ_1(x) of link fields (n, T, X, 2): (n, T, X), not wrapped."""
    xp = namespace(field)
    time, space = field[..., 0], field[..., 1]
    return time + xp.roll(space, -1, axis=-2) - xp.roll(time, -1, axis=-1) - space


def link_gradient(slope: Array) -> Array:
    """Return the gradient of Σ_x h(P(x)) with respect to the links, (n, T, X, 2), from h'(P), (n, T, X)."""
    xp = namespace(slope)
    # A time link is in the plaquettes at x (+) and at x − 1 (−), a spatial one in those at x (−) and x − 0 (+).
    time = slope - xp.roll(slope, 1, axis=-1)
    space = xp.roll(slope, 1, axis=-2) - slope
    return xp.stack([time, space], axis=-1)


@dataclass(frozen=True)
class GaugeTheory2D(SmoothTheory):
    """A theory of U(1) links in two dimensions, part of whose action is −β Σ cos P.

    Parameters
    ----------
    shape
        Lattice extents (T, X), in lattice units.
    beta
        Inverse coupling β > 0, dimensionless.

    Raises
    ------
    ParameterError
        If the lattice is not two-dimensional or β is not positive.
    """

    shape: tuple[int, ...]
    beta: float

    space: ClassVar[ContinuousSpace] = AngleSpace()
    internal_axes: ClassVar[tuple[str, ...]] = ("mu",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", checked_shape(self.shape))
        if len(self.shape) != 2:
            raise ParameterError(
                got=f"shape = {list(self.shape)}", expected="two extents, (T, X)", fix="correct `shape` in [theory]"
            )
        if not (isfinite(self.beta) and self.beta > 0):
            raise ParameterError(got=f"beta = {self.beta}", expected="a positive number", fix="correct `beta`")

    @property
    def field_shape(self) -> tuple[int, ...]:
        """Shape of one configuration, (T, X, 2)."""
        return (*self.shape, 2)

    def gauge_action(self, field: Array) -> Array:
        """Return −β Σ cos P of each configuration, (n,), float64."""
        check_field(field, self.field_shape)
        xp = namespace(field)
        return -self.beta * xp.sum(xp.cos(plaquette_angles(field)), axis=batch_axes(self.shape), dtype=xp.float64)

    def gauge_force(self, field: Array) -> Array:
        """Return −∂/∂θ of the gauge action, shape and type of ``field``."""
        check_field(field, self.field_shape)
        return -self.beta * link_gradient(namespace(field).sin(plaquette_angles(field)))

    def gauge_identity(self, field: Array) -> Array:
        """Return Σ_l [∂_l S_g ∂_l S − ∂_l² S_g], (n,): zero on average.

        On a compact space ⟨∂f/∂θ⟩ = ⟨f ∂S/∂θ⟩ for every periodic f; here f is the slope of the gauge action S_g, so that
        no second derivative of the whole action is needed. Every plaquette has four links: Σ_l ∂_l² S_g = −4 S_g. With
        one flavour of fermions ∂S is too large near zeros of the determinant to have a variance: errors are too small.
        """
        xp = namespace(field)
        slopes = self.gauge_force(field) * self.force(field)
        return xp.sum(slopes, axis=batch_axes(self.field_shape), dtype=xp.float64) + 4 * self.gauge_action(field)

    def identities(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return the Schwinger-Dyson equation of the links; see `Theory.identities`."""
        return {"link_slopes": self.gauge_identity}

    @abc.abstractmethod
    def action(self, field: Array) -> Array:
        """Return S of each configuration; see `Theory.action`."""


@dataclass(frozen=True)
class U1Gauge2D(GaugeTheory2D):
    """U(1) gauge theory with S = −β Σ_x cos P(x) on a periodic lattice; parameters as in `GaugeTheory2D`.

    References
    ----------
    .. [1] Kanwar et al., arXiv:2003.06413.
    .. [2] Albergo et al., arXiv:2101.08176.
    """

    name: ClassVar[str] = "u1"
    convention: ClassVar[str] = (
        "S = -beta sum_x cos P(x), P(x) = theta_0(x) + theta_1(x+0) - theta_0(x+1) - theta_1(x), "
        "p = exp(-S), Haar measure prod dtheta/2pi, direction 0 is time, as in arXiv:2101.08176"
    )

    def action(self, field: Array) -> Array:
        """Return S of each configuration; see `Theory.action`."""
        return self.gauge_action(field)

    def force(self, field: Array) -> Array:
        """Return −∂S/∂θ; see `SmoothTheory.force`."""
        return self.gauge_force(field)

    def annealed(self, fraction: float) -> U1Gauge2D:
        """Return the theory at β · fraction; see `Theory.annealed`."""
        return replace(self, beta=self.beta * fraction)
