"""Exact paths of the double well: independent samples of a periodic chain, drawn site by site with its kernel."""

from __future__ import annotations

from functools import cached_property
from math import log

import numpy as np
from numpy.typing import NDArray

from flowmc.theories import DoubleWell
from flowmc_analysis.exact_double_well import double_well_positions

__all__ = ["WellPaths"]

Array = NDArray[np.float64]

# Of the grid: densities of flows are less smooth than the kernel.
REFINEMENT = 1.6
CHUNK = 2048


class WellPaths:
    """Paths of a particle in a double well on a grid of positions.

    All N positions of a path lie on the grid. Means of functions that are smooth on its scale are those of the continuum
    nevertheless, to 1e-15: sums over a grid converge exponentially for such functions, and actions, densities of flows
    and moments are. Histograms must have bins that are wide against the spacing.

    Parameters
    ----------
    theory
        The double well.
    """

    def __init__(self, theory: DoubleWell) -> None:
        self.theory = theory
        spacing, mass, coupling = theory.spacing, theory.mass, theory.coupling
        half, self.step = double_well_positions(spacing, mass, coupling, REFINEMENT)
        self.positions: Array = np.concatenate([-half[::-1], half])
        x, self._depth = self.positions, mass**2 / (4 * coupling)
        potential = coupling / 4 * x**4 - mass / 2 * x**2 + self._depth
        exponent = 0.5 * spacing * np.add.outer(potential, potential)
        self._kernel = np.exp(-exponent - mass / (2 * spacing) * np.subtract.outer(x, x) ** 2)

    @cached_property
    def _powers(self) -> list[tuple[Array, float]]:
        """The first N powers of the kernel, each divided by its largest element, and the logarithms of what that was."""
        found, scale = [(self._kernel, 0.0)], 0.0
        for _ in range(1, self.theory.n_sites):
            product = found[-1][0] @ self._kernel
            largest = float(product.max())
            scale += log(largest)
            found.append((product / largest, scale))
        return found

    @property
    def log_z(self) -> float:
        """Logarithm of the partition function, for comparison with `double_well_exact`."""
        power, scale = self._powers[-1]
        sites = self.theory.n_sites
        return scale + log(np.trace(power)) + sites * (log(self.step) + self.theory.spacing * self._depth)

    @property
    def density(self) -> Array:
        """Density of one position at the positions of the grid."""
        occupied = np.diagonal(self._powers[-1][0])
        return np.asarray(occupied / (occupied.sum() * self.step))

    def draw(self, generator: np.random.Generator, n: int) -> Array:
        """Draw ``n`` independent paths, (n, N): x_0 from the trace, and each next one given the last and x_0."""
        pieces = [self._draw(generator, min(CHUNK, n - start)) for start in range(0, n, CHUNK)]
        return np.concatenate(pieces)

    def _draw(self, generator: np.random.Generator, n: int) -> Array:
        sites = self.theory.n_sites
        chosen = np.empty((n, sites), dtype=np.int64)
        chosen[:, 0] = _choose(generator, np.broadcast_to(self.density, (n, len(self.positions))))
        for site in range(1, sites):
            back_home, _ = self._powers[sites - site - 1]
            chosen[:, site] = _choose(generator, self._kernel[chosen[:, site - 1]] * back_home[chosen[:, 0]])
        return np.asarray(self.positions[chosen])


def _choose(generator: np.random.Generator, weights: Array) -> NDArray[np.int64]:
    """Choose a column of each row with probabilities proportional to its weights."""
    cumulative = np.cumsum(weights, axis=1)
    threshold = generator.random(len(weights)) * cumulative[:, -1]
    return np.asarray((cumulative <= threshold[:, None]).sum(axis=1))
