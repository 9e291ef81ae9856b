"""U(1) gauge theory: conventions, the identity of its links, and exact draws against Bessel functions."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.special import iv

from flowmc.testing import u1_draws
from flowmc.testing.links import gauge_transformed
from flowmc.theories import U1Gauge2D
from flowmc.theories.spaces import wrapped
from flowmc.theories.u1 import plaquette_angles
from flowmc_analysis.zscores import judge, z_score


def test_action_is_the_printed_sum(rng: np.random.Generator) -> None:
    theory = U1Gauge2D((3, 4), 1.3)
    field = theory.start(rng, 2, "hot")
    for angles, action in zip(field, theory.action(field), strict=True):
        total = 0.0
        for t in range(3):
            for x in range(4):
                ahead, right = (t + 1) % 3, (x + 1) % 4
                total += np.cos(angles[t, x, 0] + angles[ahead, x, 1] - angles[t, right, 0] - angles[t, x, 1])
        assert action == pytest.approx(-1.3 * total, rel=1e-13)


@pytest.mark.parametrize("shape", [(4, 3), (2, 2)], ids=str)
def test_identity_is_slopes_squared_less_the_curvature(shape: tuple[int, int], rng: np.random.Generator) -> None:
    theory = U1Gauge2D(shape, 1.7)
    field = theory.start(rng, 3, "hot")
    hessian = jax.jit(jax.hessian(lambda flat: theory.action(flat.reshape(1, *shape, 2))[0]))
    curvature = [np.trace(hessian(one.ravel())) for one in field]
    expected = (theory.force(field) ** 2).sum((1, 2, 3)) - np.array(curvature)
    np.testing.assert_allclose(theory.identities()["link_slopes"](field), expected, atol=1e-11)


def test_plaquettes_do_not_depend_on_the_gauge(rng: np.random.Generator) -> None:
    field = rng.uniform(-np.pi, np.pi, (3, 4, 5, 2))
    other = gauge_transformed(field, rng.uniform(-np.pi, np.pi, (3, 4, 5)))
    np.testing.assert_allclose(plaquette_angles(other), plaquette_angles(field), atol=1e-13)


@pytest.mark.parametrize(("shape", "beta"), [((4, 4), 2.0), ((2, 3), 1.0), ((3, 2), 4.0)], ids=str)
def test_exact_draws_have_the_exact_averages(shape: tuple[int, int], beta: float, rng: np.random.Generator) -> None:
    # Z = Σ_n I_n(β)^V; the plaquette is d ln Z / dβ / V, and every link is uniform.
    theory, n = U1Gauge2D(shape, beta), 8000
    field = u1_draws(theory, rng, n)
    order, volume = np.arange(-40, 41), theory.volume
    bessel = iv(order, beta)
    slope = 0.5 * (iv(order - 1, beta) + iv(order + 1, beta))
    exact = (bessel ** (volume - 1) * slope).sum() / (bessel**volume).sum()
    cosine = np.cos(plaquette_angles(field))
    slopes = theory.gauge_identity(field)
    series = {
        "plaquette": (cosine.mean((1, 2)), exact),
        "first": (cosine[:, 0, 0], exact),
        "last": (cosine[:, -1, -1], exact),
        "link_slopes": (slopes, 0.0),
        "time link": (np.cos(field[:, 0, 0, 0]), 0.0),
        "space link": (np.cos(field[:, 1, 0, 1]), 0.0),
        "time loop": (np.cos(field[..., 0].sum(1))[:, 0], 0.0),
        "space loop": (np.cos(field[..., 1].sum(2))[:, 0], 0.0),
    }
    scores = [z_score(name, one.mean(), known, one.std() / np.sqrt(n)) for name, (one, known) in series.items()]
    assert judge(scores, level=1e-5).passed, scores
    charge = wrapped(plaquette_angles(field)).sum((1, 2)) / (2 * np.pi)
    np.testing.assert_allclose(charge, np.rint(charge), atol=1e-9)


def test_annealing_scales_the_coupling() -> None:
    assert U1Gauge2D((4, 4), 2.0).annealed(0.25) == U1Gauge2D((4, 4), 0.5)
