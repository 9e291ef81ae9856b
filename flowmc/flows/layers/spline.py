"""Spline couplings: a monotone rational-quadratic spline of each active site, the identity beyond an interval.

Durkan et al., arXiv:1906.04032; for φ⁴ Del Debbio, Marsh Rossney, Wilson, arXiv:2105.12481. Under φ → −φ of the frozen
sites the spline must become its own mirror image, g(−φ; −φ_f) = −g(φ; φ_f): widths, heights and slopes in reverse order.
Each of these rows of numbers is therefore the sum of a palindrome whose entries are even functions of the frozen sites
and an antipalindrome of odd ones, e_k + o_k with e_{K+1−k} = e_k and o_{K+1−k} = −o_k, which together span all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from flowmc.errors import ParameterError
from flowmc.flows.layers.couplings import CouplingLayer, CouplingLayerConfig
from flowmc.flows.rational_quadratic import (
    LARGEST_BINS,
    Piece,
    bent,
    choose_piece,
    map_back,
    map_piece,
    slopes_at_knots,
)

__all__ = ["Spline", "SplineConfig"]


@dataclass(frozen=True)
class SplineConfig(CouplingLayerConfig):
    """Hyper-parameters of a `Spline` layer.

    Parameters
    ----------
    bins
        Bins of the splines, from 2 to 50; a site has 3 · bins − 1 parameters.
    bound
        The spline covers [−bound, bound], in units of the field there; beyond it is the identity.
    """

    bins: int = 8
    bound: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (2 <= self.bins <= LARGEST_BINS and 0 < self.bound < float("inf")):
            raise ParameterError(
                got=f"bins = {self.bins}, bound = {self.bound}",
                expected=f"2 to {LARGEST_BINS} bins, and a finite bound above zero",
                fix="correct the value",
            )


class Spline(CouplingLayer):
    """Rational-quadratic spline couplings with linear tails; see the module for the maths."""

    kind: ClassVar[str] = "spline"
    Config: ClassVar[type] = SplineConfig
    config: SplineConfig

    @property
    def _rows(self) -> tuple[int, int, int]:
        """Numbers of widths, heights and slopes between them."""
        return self.config.bins, self.config.bins, self.config.bins - 1

    def parameter_numbers(self) -> tuple[int, int]:
        """Return the numbers of free entries of antipalindromes and palindromes."""
        return sum(row // 2 for row in self._rows), sum((row + 1) // 2 for row in self._rows)

    def transform(self, active: Tensor, odd: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        """Map the active sites; see `CouplingLayer.transform`."""
        inside, clamped = self._inside(active)
        mapped, log_slope = map_piece(clamped, self._piece(clamped, odd, even, vertical=False))
        return torch.where(inside, mapped, active), torch.where(inside, log_slope, 0.0)

    def undo(self, moved: Tensor, odd: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `transform`; see `CouplingLayer.undo`."""
        inside, clamped = self._inside(moved)
        original, log_slope = map_back(clamped, self._piece(clamped, odd, even, vertical=True))
        return torch.where(inside, original, moved), torch.where(inside, log_slope, 0.0)

    def _inside(self, value: Tensor) -> tuple[Tensor, Tensor]:
        bound = self.config.bound
        # Beyond the interval the spline is evaluated, at a harmless place, and not used.
        return value.abs() < bound, value.clamp(-bound, bound)

    def _piece(self, value: Tensor, odd: Tensor, even: Tensor, *, vertical: bool) -> Piece:
        n, sites = value.shape
        odd, even = (part.reshape(n, sites, -1).transpose(1, 2) for part in (odd, even))
        widths, heights, interior = (bent(row) for row in self._mirrored_rows(odd, even))
        slopes = pad(slopes_at_knots(interior), (0, 0, 1, 1), value=1.0)
        shares = torch.stack([widths, heights], 1)
        return choose_piece(value, shares, slopes[:, :-1], slopes[:, 1:], self.config.bound, vertical=vertical)

    def _mirrored_rows(self, odd: Tensor, even: Tensor) -> list[Tensor]:
        """Return the rows, (n, entries, sites) each, from the free entries of their two parts."""
        rows = []
        odds = torch.split(odd, [row // 2 for row in self._rows], 1)
        evens = torch.split(even, [(row + 1) // 2 for row in self._rows], 1)
        for length, antipalindrome, palindrome in zip(self._rows, odds, evens, strict=True):
            half = length // 2
            left = palindrome[:, :half]
            parts = [left + antipalindrome, palindrome[:, half:], (left - antipalindrome).flip(1)]
            rows.append(torch.cat(parts, 1))
        return rows
