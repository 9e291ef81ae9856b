"""Monotone rational-quadratic splines (Gregory and Delbourgo; Durkan et al., arXiv:1906.04032), bin by bin.

The knots come from unconstrained parameters: zero parameters are the identity map. Arrays have the shape (n, …, sites).
"""

from __future__ import annotations

from math import exp, log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softmax, softplus

__all__ = ["LARGEST_BINS", "Piece", "bent", "choose_piece", "map_back", "map_piece", "slopes_at_knots"]

# Narrowest bin, as a fraction of the interval, and smallest slope at a knot: enough for any density when a few maps
# follow each other, and float32 can still invert dozens of them.
SMALLEST_BIN = 1e-2
SMALLEST_SLOPE = 1e-2
LARGEST_BINS = 50
"""Most bins of a spline: with more of them the narrowest ones would fill the interval."""
# Parameters are bent to stay below this size: a step of training that goes astray can be undone.
LARGEST_PARAMETER = 5.0


class Piece(NamedTuple):
    """One bin of a spline for each value, (n, sites) each."""

    left: Tensor
    width: Tensor
    bottom: Tensor
    height: Tensor
    slope_left: Tensor
    slope_right: Tensor


def bent(parameters: Tensor) -> Tensor:
    """Return parameters bent to stay below a fixed size, odd in them and with slope one at zero."""
    return LARGEST_PARAMETER * torch.tanh(parameters / LARGEST_PARAMETER)


def slopes_at_knots(parameters: Tensor) -> Tensor:
    """Return positive slopes for unconstrained parameters of the same shape; zero gives one."""
    return SMALLEST_SLOPE + softplus(parameters + log(exp(1 - SMALLEST_SLOPE) - 1))


def choose_piece(
    value: Tensor, shares: Tensor, slope_left: Tensor, slope_right: Tensor, bound: float, *, vertical: bool
) -> Piece:
    """Return the piece of the spline from [−bound, bound] to itself in which each value lies.

    Parameters
    ----------
    value
        ``(n, sites)``, inside the interval.
    shares
        ``(n, 2, bins, sites)``: logarithms, up to a constant, of the widths and of the heights of the bins.
    slope_left, slope_right
        ``(n, bins, sites)``: slopes at the ends of the bins.
    bound
        Half the length of the interval.
    vertical
        Whether the values are those that the spline has, instead of those at which it is taken.
    """
    bins = shares.shape[2]
    # Few operations on stacked arrays: on small lattices each costs more than its arithmetic. Widths, then heights.
    sizes = 2 * bound * (SMALLEST_BIN + (1 - SMALLEST_BIN * bins) * softmax(shares, 2))
    ends = pad(sizes.cumsum(2)[:, :, :-1], (0, 0, 1, 0)) - bound
    with torch.no_grad():
        number = (value[:, None] >= ends[:, int(vertical), 1:]).sum(1)
    table = torch.cat([ends, sizes, slope_left[:, None], slope_right[:, None]], 1)
    index = number[:, None, None].expand(len(value), 6, 1, value.shape[1])
    left, bottom, width, height, first, last = table.gather(2, index)[:, :, 0].unbind(1)
    return Piece(left, width, bottom, height, first, last)


def map_piece(value: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
    """Return the spline at a value and the logarithm of its slope (arXiv:1906.04032, eqs. (4) and (5))."""
    steepness = piece.height / piece.width
    place = (value - piece.left) / piece.width
    rest = 1 - place
    mixed = place * rest
    denominator = steepness + (piece.slope_left + piece.slope_right - 2 * steepness) * mixed
    mapped = piece.bottom + piece.height * (steepness * place * place + piece.slope_left * mixed) / denominator
    numerator = piece.slope_right * place * place + 2 * steepness * mixed + piece.slope_left * rest * rest
    return mapped, 2 * torch.log(steepness) + torch.log(numerator) - 2 * torch.log(denominator)


def map_back(value: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
    """Return where the spline has a value, and the logarithm of the slope of the inverse there."""
    with torch.no_grad():
        root = _root(value, piece)
    # Newton's step takes off what rounding has left, and carries gradients that the closed form with its square root
    # would lose to cancellations.
    mapped, log_slope = map_piece(root, piece)
    original = root - (mapped - value) * torch.exp(-log_slope.detach())
    return original, -map_piece(original, piece)[1]


def _root(value: Tensor, piece: Piece) -> Tensor:
    """Return where a piece has a value, in closed form (arXiv:1906.04032, eqs. (6) to (8))."""
    steepness = piece.height / piece.width
    above = value - piece.bottom
    bend = above * (piece.slope_left + piece.slope_right - 2 * steepness)
    a = piece.height * (steepness - piece.slope_left) + bend
    b = piece.height * piece.slope_left - bend
    c = -steepness * above
    # The stable form of the root between 0 and 1; rounding may take the discriminant below zero.
    place = 2 * c / (-b - torch.sqrt(torch.clamp(b * b - 4 * a * c, min=0.0)))
    return piece.left + piece.width * torch.clamp(place, 0.0, 1.0)
