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
from math import exp, log, pi
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softmax, softplus

from flowmc.theories.spaces import wrapped

__all__ = ["CIRCLE_MAPS", "CircleMap", "CircularSpline", "Projection"]

# Narrowest bin, in units of the circle, and smallest slope at a knot: enough for any density when a few maps follow each
# other, and float32 can still invert dozens of them.
SMALLEST_BIN = 1e-2
SMALLEST_SLOPE = 1e-2
# Parameters of splines are bent to stay below this size: a step of training that goes astray can be undone.
LARGEST_PARAMETER = 5.0
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
        piece = self._bin(angle, parameters, vertical=False)
        mapped, log_slope = _rational_quadratic(angle, piece)
        return wrapped(mapped + parameters[:, -1]), log_slope

    def inverse(self, angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; see `CircleMap.inverse`."""
        rotated = wrapped(angle - parameters[:, -1])
        piece = self._bin(rotated, parameters, vertical=True)
        with torch.no_grad():
            root = _rational_quadratic_root(rotated, piece)
        # Newton's step takes off what rounding has left, and carries gradients that the closed form with its square root
        # would lose to cancellations.
        mapped, log_slope = _rational_quadratic(root, piece)
        original = root - (mapped - rotated) * torch.exp(-log_slope.detach())
        return original, -_rational_quadratic(original, piece)[1]

    def _bin(self, angle: Tensor, parameters: Tensor, *, vertical: bool) -> _Piece:
        """Return the piece of the spline that each angle is mapped by or, ``vertical``, mapped to."""
        bins = self._bins
        bent = LARGEST_PARAMETER * torch.tanh(parameters[:, :-1] / LARGEST_PARAMETER)
        n, _, sites = bent.shape
        # Few operations on stacked arrays: on small lattices each costs more than its arithmetic. Widths, then heights.
        shares = softmax(bent[:, : 2 * bins].reshape(n, 2, bins, sites), 2)
        sizes = 2 * pi * SMALLEST_BIN + 2 * pi * (1 - SMALLEST_BIN * bins) * shares
        ends = pad(sizes.cumsum(2)[:, :, :-1], (0, 0, 1, 0)) - pi
        slopes = SMALLEST_SLOPE + softplus(bent[:, None, 2 * bins :] + log(exp(1 - SMALLEST_SLOPE) - 1))
        with torch.no_grad():
            number = (angle[:, None] >= ends[:, int(vertical), 1:]).sum(1)
        table = torch.cat([ends, sizes, slopes, slopes.roll(-1, 2)], 1)
        left, bottom, width, height, slope_left, slope_right = table.gather(
            2, number[:, None, None].expand(n, 6, 1, sites)
        )[:, :, 0].unbind(1)
        return _Piece(left, width, bottom, height, slope_left, slope_right)


class _Piece(NamedTuple):
    """One bin of a spline for each angle, (n, sites) each."""

    left: Tensor
    width: Tensor
    bottom: Tensor
    height: Tensor
    slope_left: Tensor
    slope_right: Tensor


def _rational_quadratic(angle: Tensor, piece: _Piece) -> tuple[Tensor, Tensor]:
    """Return the value at an angle and the logarithm of the slope (arXiv:1906.04032, eqs. (4) and (5))."""
    steepness = piece.height / piece.width
    place = (angle - piece.left) / piece.width
    rest = 1 - place
    mixed = place * rest
    denominator = steepness + (piece.slope_left + piece.slope_right - 2 * steepness) * mixed
    mapped = piece.bottom + piece.height * (steepness * place * place + piece.slope_left * mixed) / denominator
    numerator = piece.slope_right * place * place + 2 * steepness * mixed + piece.slope_left * rest * rest
    return mapped, 2 * torch.log(steepness) + torch.log(numerator) - 2 * torch.log(denominator)


def _rational_quadratic_root(value: Tensor, piece: _Piece) -> Tensor:
    """Return the angle at which a piece has a value (arXiv:1906.04032, eqs. (6) to (8))."""
    steepness = piece.height / piece.width
    above = value - piece.bottom
    bend = above * (piece.slope_left + piece.slope_right - 2 * steepness)
    a = piece.height * (steepness - piece.slope_left) + bend
    b = piece.height * piece.slope_left - bend
    c = -steepness * above
    # The stable form of the root between 0 and 1; rounding may take the discriminant below zero.
    place = 2 * c / (-b - torch.sqrt(torch.clamp(b * b - 4 * a * c, min=0.0)))
    return piece.left + piece.width * torch.clamp(place, 0.0, 1.0)


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


CIRCLE_MAPS = {"spline": CircularSpline, "projection": Projection}
"""Every family of maps by its name in run descriptions; the argument is the number of bins or of components."""
