"""Learned maps of the circle onto itself, monotone and smooth across the cut, with their slopes.

A map is given for every angle by parameters that a network returns, (n, parameters, sites); angles are (n, sites) in
[−π, π). Zero parameters are the identity map.

- `CircularSpline`: a monotone rational-quadratic spline (Durkan et al., arXiv:1906.04032) whose ends join smoothly
  (Rezende et al., arXiv:2002.02428), followed by a rotation.
- `Projection`: x → 2 arctan(e^s tan(x/2)) stretches around one point of the circle; a convex combination of several,
  around points that divide it evenly, followed by a rotation (non-compact projections, around one point, are in
  arXiv:2003.06413 and arXiv:2101.08176).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from math import pi

import torch
from torch import Tensor

from flowmc.flows.rational_quadratic import Piece, bent, choose_piece, map_back, map_piece, slopes_at_knots
from flowmc.theories.spaces import wrapped

__all__ = ["CIRCLE_MAPS", "CircleMap", "CircularSpline", "Projection"]

# Largest stretch of a projection.
LARGEST_STRETCH = 10.0
# Halvings of the circle, after which float64 is exhausted.
BISECTIONS = 54


class CircleMap(abc.ABC):
    """A family of maps of the circle."""

    n_parameters: int
    """Parameters of the map of one angle."""

    @abc.abstractmethod
    def forward(self, angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map angles (n, sites), by parameters (n, n_parameters, sites); return them with the logarithm of the slope."""

    @abc.abstractmethod
    def inverse(self, angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; return the angles with the logarithm of the slope of the inverse."""


class CircularSpline(CircleMap):
    """A circular rational-quadratic spline and a rotation.

    Parameters
    ----------
    bins
        Bins of the spline, at most 50; it has 3 · bins + 1 parameters: widths, heights, slopes and the rotation.
    """

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self.n_parameters = 3 * bins + 1

    def forward(self, angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map angles; see `CircleMap.forward`."""
        mapped, log_slope = map_piece(angle, self._piece(angle, parameters, vertical=False))
        return wrapped(mapped + parameters[:, -1]), log_slope

    def inverse(self, angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; see `CircleMap.inverse`."""
        rotated = wrapped(angle - parameters[:, -1])
        return map_back(rotated, self._piece(rotated, parameters, vertical=True))

    def _piece(self, angle: Tensor, parameters: Tensor, *, vertical: bool) -> Piece:
        """Return the piece of the spline that each angle is mapped by or, ``vertical``, mapped to."""
        knots = bent(parameters[:, :-1])
        n, _, sites = knots.shape
        shares = knots[:, : 2 * self._bins].reshape(n, 2, self._bins, sites)
        slopes = slopes_at_knots(knots[:, 2 * self._bins :])
        return choose_piece(angle, shares, slopes, slopes.roll(-1, 1), pi, vertical=vertical)


class Projection(CircleMap):
    """A convex combination of non-compact projections, and a rotation.

    Parameters
    ----------
    components
        Number of projections K; there are 2 K + 1 parameters: stretches, weights and the rotation. One has a closed
        inverse; several are inverted by bisection to the last bit, and a step of Newton's method that carries gradients.
    """

    def __init__(self, components: int) -> None:
        self._components = components
        self.n_parameters = 2 * components + 1

    def forward(self, angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map angles; see `CircleMap.forward`."""
        mapped, log_slope = self._combine(angle, *self._split(parameters))
        return wrapped(mapped + parameters[:, -1]), log_slope

    def inverse(self, angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; see `CircleMap.inverse`."""
        rotated = wrapped(angle - parameters[:, -1])
        stretch, log_weight = self._split(parameters)
        if self._components == 1:
            original, log_slope = self._combine(rotated, -stretch, log_weight)
            return original, log_slope
        with torch.no_grad():
            low, high = torch.full_like(rotated, -pi), torch.full_like(rotated, pi)
            # The combination leads from the image of −π once around the circle.
            first = self._combine(low, stretch, log_weight)[0]
            turns = torch.ceil((first - rotated) / (2 * pi))
        target = rotated + 2 * pi * turns
        with torch.no_grad():
            for _ in range(BISECTIONS):
                middle = 0.5 * (low + high)
                below = self._combine(middle, stretch, log_weight)[0] < target
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            root = 0.5 * (low + high)
        mapped, log_slope = self._combine(root, stretch, log_weight)
        original = root - (mapped - target) * torch.exp(-log_slope.detach())
        return original, -self._combine(original, stretch, log_weight)[1]

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stretches s and the logarithms of the weights, (n, components, sites)."""
        number = self._components
        stretch = LARGEST_STRETCH * torch.tanh(parameters[:, :number] / LARGEST_STRETCH)
        return stretch, torch.log_softmax(parameters[:, number : 2 * number], 1)

    def _combine(self, angle: Tensor, stretch: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the combination without the rotation, continuous on [−π, π), and the logarithm of its slope."""
        # Around one point they could not tell themselves apart: equal at the start, with equal gradients for ever.
        centres = 2 * pi / self._components * torch.arange(self._components, device=angle.device, dtype=angle.dtype)
        away = angle[:, None] - centres[:, None]
        near = wrapped(away)
        half = 0.5 * near
        sine, cosine = torch.sin(half), torch.cos(half)
        # Between −π/2 and π/2 the cosine is positive: no cut, and no tangent that overflows.
        mapped = 2 * torch.atan2(torch.exp(0.5 * stretch) * sine, torch.exp(-0.5 * stretch) * cosine)
        # The slope 1 / (e^s sin² + e^−s cos²).
        log_slope = -torch.log(torch.exp(stretch) * sine * sine + torch.exp(-stretch) * cosine * cosine)
        moved = angle + (torch.exp(log_weight) * (mapped - near)).sum(1)
        return moved, torch.logsumexp(log_weight + log_slope, 1)


CIRCLE_MAPS: dict[str, Callable[[int], CircleMap]] = {"spline": CircularSpline, "projection": Projection}
"""Every family of maps by its name in run descriptions; the argument is the number of bins or of components."""
