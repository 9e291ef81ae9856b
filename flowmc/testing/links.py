"""Exact draws of link fields in two dimensions: the plaquettes of U(1) are independent but for their sum.

Fermions enter as a weight by which those draws are accepted or rejected.
"""

from __future__ import annotations

from math import pi

import numpy as np
from numpy.typing import NDArray

from flowmc.errors import ParameterError
from flowmc.testing.exactness import ExactStart
from flowmc.theories import GaugeTheory2D, Schwinger, U1Gauge2D
from flowmc.theories.spaces import wrapped
from flowmc.theories.u1 import plaquette_angles
from flowmc.theories.wilson import log_determinant

__all__ = ["gauge_start", "gauge_transformed", "schwinger_draws", "u1_draws"]


def gauge_transformed(field: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return θ_μ(x) + α(x) − α(x+μ) for links (n, T, X, 2) and angles α (n, T, X); not wrapped."""
    ahead = [np.roll(angle, -1, axis=axis) for axis in (1, 2)]
    return np.asarray(field + angle[..., None] - np.stack(ahead, axis=-1))


def u1_draws(theory: U1Gauge2D, generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Return ``n`` independent link fields of the theory's distribution, (n, T, X, 2), in [−π, π).

    On a torus the plaquettes are angles of density exp(β cos P) whose sum is a multiple of 2π: all but one are drawn
    from it and the last one, which they fix, is accepted with probability exp(β (cos P − 1)). Links that have these
    plaquettes are written down in a gauge where the time links vanish before the last slice; what is left free is
    uniform, and so is the gauge transformation that follows.
    """
    time, space = theory.shape
    found = np.empty((0, theory.volume))
    while len(found) < n:
        drawn = generator.vonmises(0.0, theory.beta, (n, theory.volume))
        drawn[:, -1] = -drawn[:, :-1].sum(axis=1)
        accepted = generator.random(n) < np.exp(theory.beta * (np.cos(drawn[:, -1]) - 1))
        found = np.concatenate([found, drawn[accepted]])
    plaquettes = found[:n].reshape(n, time, space)
    field = np.zeros((n, time, space, 2))
    field[:, 1:, :, 1] = plaquettes[:, :-1].cumsum(axis=1)
    field[..., 1] += generator.uniform(-pi, pi, (n, 1, space))
    field[:, -1, 1:, 0] = -plaquettes.sum(axis=1)[:, :-1].cumsum(axis=1)
    field[:, -1, :, 0] += generator.uniform(-pi, pi, (n, 1))
    return np.asarray(wrapped(gauge_transformed(field, generator.uniform(-pi, pi, (n, time, space)))))


def schwinger_draws(theory: Schwinger, generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Return ``n`` independent link fields of the Schwinger model's distribution exp(−S), (n, T, X, 2).

    Draws of U(1) gauge theory are accepted with probability |det D / det D_0|^N_f. D_0, of vanishing links but for
    fermions antiperiodic in both directions, has the largest determinant (as diamagnetic inequalities suggest; every draw
    is held against it). Feasible for small lattices and κ, where the weights vary little.

    Raises
    ------
    ParameterError
        If a determinant is larger.
    """
    free = np.zeros((1, *theory.field_shape))
    free[:, :, -1, 1] = pi
    largest = log_determinant(free, theory.kappa)[0]
    gauge = U1Gauge2D(theory.shape, theory.beta)
    found = np.empty((0, *theory.field_shape))
    while len(found) < n:
        drawn = u1_draws(gauge, generator, n)
        log_weight = theory.n_flavours * (log_determinant(drawn, theory.kappa)[0] - largest)
        if log_weight.max() > 0:
            raise ParameterError(
                got=f"a weight {log_weight.max()} (logarithm) above the bound for {theory}",
                expected="extents and kappa where the free fermions have the largest determinant",
                fix="take another lattice",
            )
        found = np.concatenate([found, drawn[generator.random(n) < np.exp(log_weight)]])
    return found[:n]


def gauge_start(theory: GaugeTheory2D) -> ExactStart:
    """Return exact draws of U(1) gauge theory or the Schwinger model, and observables of plaquettes, loops and links."""

    def draw(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
        if isinstance(theory, Schwinger):
            return schwinger_draws(theory, generator, n)
        return u1_draws(U1Gauge2D(theory.shape, theory.beta), generator, n)

    return ExactStart(
        draw,
        {
            "action": theory.action,
            "charge_squared": lambda field: np.square(wrapped(plaquette_angles(field)).sum(axis=(1, 2)) / (2 * pi)),
            "neighbours": lambda field: _neighbours(plaquette_angles(field)),
            "polyakov": lambda field: np.cos(field[..., 0].sum(axis=1)).mean(axis=1),
            "spatial_loop": lambda field: np.cos(field[..., 1].sum(axis=2)).mean(axis=1),
            "first_link": lambda field: np.cos(field[:, 0, 0, 0]),
        },
    )


def _neighbours(plaquettes: NDArray[np.float64]) -> NDArray[np.float64]:
    sine = np.sin(plaquettes)
    return np.asarray((sine * np.roll(sine, 1, axis=1)).mean(axis=(1, 2)))
