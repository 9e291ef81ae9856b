"""A mixture of isotropic Gaussians in R^d: several modes of known weight, and nothing else.

    S(x) = −ln Σ_k w_k N(x; μ_k, σ_k² 1),    Σ_k w_k = 1,    so that Z = ∫ exp(−S) dx = 1.

It is no field theory: a point of R^d is kept as a field on a "lattice" of one axis with d sites, which have no neighbours
and are not alike. What it is for is the question whether a sampler finds the modes and gives them their weight, as in
Máté and Fleuret, arXiv:2301.07388.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import fsum, isfinite, log, pi, sqrt
from typing import Any, ClassVar

import numpy as np
from array_api_compat import device
from numpy.typing import NDArray

from flowmc.arrays import Array, check_field, namespace
from flowmc.errors import ParameterError
from flowmc.lattice import checked_shape
from flowmc.theories.base import ScalarTheory, Theory
from flowmc.theories.spaces import ContinuousSpace, RealSpace

__all__ = ["GaussianMixture"]

# Weights that add up to one but for rounding stay as they are, so that normalising them twice changes nothing.
ROUNDING = 1e-15


@dataclass(frozen=True)
class GaussianMixture(ScalarTheory):
    """A mixture with S = −ln Σ_k w_k N(x; μ_k, σ_k² 1), normalised.

    Parameters
    ----------
    means
        The K centres μ_k, d numbers each, d at least 2.
    scales
        The K standard deviations σ_k > 0.
    weights
        The K weights w_k > 0; they are divided by their sum.
    shape
        The "lattice" (d,), which follows from ``means`` and need not be given.

    Raises
    ------
    ParameterError
        If there is no component, the numbers of means, scales and weights differ, means have different or too few
        coordinates, a scale or weight is not positive and finite, or the shape is another one.

    References
    ----------
    .. [1] Máté, Fleuret, Transactions on Machine Learning Research (2023), arXiv:2301.07388.

    Examples
    --------
    >>> GaussianMixture(((-4.0, 0.0), (4.0, 0.0)), scales=(1.0, 0.5), weights=(1.0, 3.0)).weights
    (0.25, 0.75)
    """

    means: tuple[tuple[float, ...], ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    shape: tuple[int, ...] = ()

    name: ClassVar[str] = "gaussian_mixture"
    convention: ClassVar[str] = "S = -ln sum_k w_k N(x; mu_k, sigma_k^2 1), normalised (Z = 1), p = exp(-S)"
    space: ClassVar[ContinuousSpace] = RealSpace()
    homogeneous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        means = tuple(tuple(float(number) for number in mean) for mean in self.means)
        scales, weights = tuple(map(float, self.scales)), tuple(map(float, self.weights))
        if not means or not len(means) == len(scales) == len(weights):
            raise ParameterError(
                got=f"{len(means)} means, {len(scales)} scales and {len(weights)} weights",
                expected="one of each for every component, and at least one component",
                fix="correct `means`, `scales` and `weights`",
            )
        dimensions = {len(mean) for mean in means}
        if len(dimensions) > 1 or min(dimensions) < 2 or not all(isfinite(x) for mean in means for x in mean):
            raise ParameterError(
                got=f"means = {list(map(list, means))}",
                expected="finite means with the same number of coordinates, at least 2",
                fix="correct `means`",
            )
        for name, numbers in (("scales", scales), ("weights", weights)):
            if not all(isfinite(number) and number > 0 for number in numbers):
                raise ParameterError(
                    got=f"{name} = {list(numbers)}", expected="positive, finite numbers", fix=f"correct `{name}`"
                )
        derived = checked_shape((len(means[0]),))
        if tuple(self.shape) not in ((), derived):
            raise ParameterError(
                got=f"shape = {list(self.shape)} with means of {derived[0]} coordinates",
                expected=f"shape = {list(derived)}, which follows from the means",
                fix="leave `shape` out",
            )
        total = fsum(weights)
        if abs(total - 1) > ROUNDING:
            weights = tuple(weight / total for weight in weights)
        for name, value in (("means", means), ("scales", scales), ("weights", weights), ("shape", derived)):
            object.__setattr__(self, name, value)

    def describe(self) -> dict[str, Any]:
        """Return the theory as plain data, with lists for its tuples, as JSON and TOML have them."""
        lists = {"means": [list(mean) for mean in self.means], "scales": list(self.scales)}
        return {**super().describe(), **lists, "weights": list(self.weights)}

    def action(self, field: Array) -> Array:
        """Return S of each configuration; see `Theory.action`."""
        return self._action(self._log_densities(field)[0])

    def force(self, field: Array) -> Array:
        """Return −∂S/∂x = Σ_k p(k | x) (μ_k − x) / σ_k²; see `SmoothTheory.force`."""
        return self.action_and_force(field)[1]

    def action_and_force(self, field: Array) -> tuple[Array, Array]:
        """Return both, from the densities of the components."""
        logarithms, away = self._log_densities(field)
        action, xp = self._action(logarithms), namespace(field)
        posterior = xp.exp(logarithms + action[:, None])
        stiffness = xp.asarray([scale**-2 for scale in self.scales], dtype=xp.float64, device=device(field))
        force = xp.sum((posterior * stiffness)[..., None] * away, axis=1)
        return action, xp.astype(force, field.dtype)

    def posterior(self, field: Array) -> Array:
        """Return p(k | x), the probability that a point came from each component, (n, K); its expectation is w_k."""
        logarithms, _ = self._log_densities(field)
        return namespace(field).exp(logarithms + self._action(logarithms)[:, None])

    def observers(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return which mode a point belongs to; see `Theory.observers`.

        ``component_k``, k = 1 … K, is p(k | x), whose expectation is w_k however much the components overlap, and which
        is 0 or 1 where they do not. ``component`` is the number of the most probable one, a label of the sector; it is
        left out unless each component is the most probable one at its own centre. Of a single component there is nothing
        to say.
        """
        count = len(self.weights)
        if count == 1:
            return {}
        each = {f"component_{k + 1}": self._one_component(k) for k in range(count)}
        centres = np.asarray(self.means)
        if not np.array_equal(np.argmax(self.posterior(centres), axis=1), np.arange(count)):
            return each
        return {"component": lambda field: 1.0 + np.argmax(self.posterior(field), axis=1).astype(np.float64), **each}

    def start(self, generator: np.random.Generator, n: int, kind: str) -> NDArray[Any]:
        """Return ``n`` starting points; see `Theory.start`.

        A hot start is white noise with the mean and the total variance of the mixture: it covers the modes and knows
        nothing of where they are. A cold start is zero.
        """
        # Not that of other scalar fields, which is scattered around zero: all modes may lie to one side of it.
        field = Theory.start(self, generator, n, kind)
        if kind == "cold":
            return field
        means, scales, weights = np.asarray(self.means), np.asarray(self.scales), np.asarray(self.weights)
        centre = weights @ means
        variance = weights @ (scales**2 + np.mean((means - centre) ** 2, axis=1))
        started: NDArray[np.float64] = centre + sqrt(variance) * field
        return started

    def draw(self, generator: np.random.Generator, n: int) -> NDArray[np.float64]:
        """Draw ``n`` exact, independent points, (n, d): a component by its weight, then a Gaussian around its centre."""
        component = generator.choice(len(self.weights), size=n, p=self.weights)
        noise = generator.standard_normal((n, *self.shape))
        drawn: NDArray[np.float64] = (
            np.asarray(self.means)[component] + np.asarray(self.scales)[component, None] * noise
        )
        return drawn

    def _log_densities(self, field: Array) -> tuple[Array, Array]:
        """Return ln [w_k N(x; μ_k, σ_k²)], (n, K), and μ_k − x, (n, K, d), in float64 whatever the type of the field."""
        check_field(field, self.shape)
        xp, where = namespace(field), device(field)

        def constant(numbers: Any) -> Array:
            return xp.asarray(numbers, dtype=xp.float64, device=where)

        away = constant(self.means) - xp.astype(field, xp.float64)[:, None, :]
        norms = [
            log(weight) - self.volume * log(sqrt(2 * pi) * scale)
            for weight, scale in zip(self.weights, self.scales, strict=True)
        ]
        halves = constant([0.5 / scale**2 for scale in self.scales])
        return constant(norms) - halves * xp.sum(away * away, axis=-1), away

    def _action(self, logarithms: Array) -> Array:
        """Return −ln Σ_k exp of the logarithms, the largest taken out of the sum, which could underflow."""
        xp = namespace(logarithms)
        largest = xp.max(logarithms, axis=1, keepdims=True)
        return -(largest[:, 0] + xp.log(xp.sum(xp.exp(logarithms - largest), axis=1)))

    def _one_component(self, k: int) -> Callable[[Array], Array]:
        return lambda field: self.posterior(field)[:, k]
