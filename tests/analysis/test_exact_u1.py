"""U(1) gauge theory on a torus: the character expansion against quadrature over plaquettes and over links."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.exact_u1 import u1_charge_distribution, u1_exact, u1_flux_mean, u1_polyakov_loop_squared
from flowmc_analysis.exact_values import exact_values
from flowmc_analysis.gauge_observables import GAUGE_OBSERVABLES
from flowmc_analysis.observables import Configurations, ObservableContext, measure

Array = npt.NDArray[np.float64]


@pytest.mark.parametrize(
    ("extent", "beta", "log_z", "plaquette", "charge_squared"),
    [
        (4, 1.0, 3.77463471, 0.4463939120, 0.650098),
        (4, 2.0, 13.19019326, 0.6992519268, 0.290636),
        (8, 1.0, 15.09851894, 0.4463899659, 2.600719),
        (8, 2.0, 52.73558666, 0.6977746580, 1.239299),
        (8, 5.0, 211.50110301, 0.8934212498, 0.360717),
        (8, 7.0, 328.17357595, 0.9257003644, 0.217111),
        (16, 5.0, 845.99853461, 0.8933831370, 1.473487),
    ],
)
def test_values_by_another_program(
    extent: int, beta: float, log_z: float, plaquette: float, charge_squared: float
) -> None:
    solution = u1_exact((extent, extent), beta)
    assert solution.log_z == pytest.approx(log_z, abs=2e-8)
    assert solution.plaquette == pytest.approx(plaquette, abs=1e-10)
    assert solution.charge_squared == pytest.approx(charge_squared, abs=1e-6)


@pytest.mark.parametrize("beta", [0.2, 1.0, 2.5])
def test_four_plaquettes_by_quadrature(beta: float) -> None:
    """Three angles run over a periodic grid, which converges exponentially; the fourth closes the torus."""
    grid = 2.0 * np.pi * np.arange(32) / 32
    a, b, c = np.meshgrid(grid, grid, grid, indexing="ij")
    weight = np.exp(beta * (np.cos(a) + np.cos(b) + np.cos(c) + np.cos(a + b + c)))
    solution = u1_exact((2, 2), beta)
    assert solution.log_z == pytest.approx(math.log(weight.mean()), abs=1e-12)
    assert solution.plaquette == pytest.approx(np.average(np.cos(a), weights=weight), abs=1e-12)
    assert u1_flux_mean((2, 2), beta, 2) == pytest.approx(np.average(np.cos(a + b), weights=weight), abs=1e-12)
    assert u1_flux_mean((2, 2), beta, 3) == pytest.approx(np.average(np.cos(a + b + c), weights=weight), abs=1e-12)


def test_links_by_quadrature() -> None:
    """All links of four sites but those of a maximal tree: the measured observables have the exact means."""
    beta, points = 0.6, 12
    angles = 2.0 * np.pi * np.arange(points) / points
    links = np.zeros((points**5, 2, 2, 2))
    free = np.stack(np.meshgrid(*[angles] * 5, indexing="ij"), axis=-1).reshape(-1, 5)
    for i, place in enumerate(((1, 0, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1))):
        links[:, *place] = free[:, i]
    names = ("plaquette", "polyakov_loop", "polyakov_loop_squared")
    measured = measure(Configurations(links, 2, internal=1), GAUGE_OBSERVABLES, names)
    weight = np.exp(4.0 * beta * measured["plaquette"])
    exact = exact_values("u1", ObservableContext((2, 2), {"beta": beta}))
    assert exact["ln_z"] == pytest.approx(math.log(weight.mean()), abs=1e-9)
    for name in names:
        assert exact[name] == pytest.approx(np.average(measured[name], weights=weight), abs=1e-9)
    assert exact["action_density"] == pytest.approx(-beta * exact["plaquette"])
    assert exact["action_importance"] == pytest.approx(-4.0 * beta * exact["plaquette"])


@pytest.mark.parametrize("beta", [0.05, 0.7, 3.0])
def test_charges_of_four_plaquettes_by_convolution(beta: float) -> None:
    """The density of the sum of two wrapped angles, folded with itself where the sum of four is 2 pi Q."""
    points, weights = scipy.special.roots_legendre(60)

    def pair(total: Array) -> Array:
        """Density at ``total >= 0``: the first angle runs from ``total - pi`` to ``pi``."""
        half = np.pi - 0.5 * total
        first = 0.5 * total + half * points[:, None]
        return np.asarray(half * (weights @ np.exp(beta * (np.cos(first) + np.cos(total - first)))))

    total = np.pi * (points + 1.0)  # from 0 to 2 pi
    even = 2.0 * float(weights @ pair(total) ** 2)
    odd = float(weights @ (pair(total) * pair(2.0 * np.pi - total)))
    charges, probabilities = u1_charge_distribution((2, 2), beta)
    assert charges.tolist() == [-2, -1, 0, 1, 2]
    expected = np.array([0.0, odd, even, odd, 0.0]) / (even + 2.0 * odd)
    np.testing.assert_allclose(probabilities, expected, atol=1e-11)
    assert u1_exact((2, 2), beta).charge_squared == pytest.approx(2.0 * odd / (even + 2.0 * odd), rel=1e-11)


@pytest.mark.parametrize(
    ("shape", "beta"), [((2, 3), 0.1), ((3, 3), 5.0), ((4, 6), 1.0), ((16, 16), 2.0), ((32, 8), 7.0)]
)
def test_distribution_and_derivatives_give_the_same_charge_squared(shape: tuple[int, int], beta: float) -> None:
    charges, probabilities = u1_charge_distribution(shape, beta)
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(probabilities, probabilities[::-1], atol=1e-13)
    solution = u1_exact(shape, beta)
    assert float(charges**2 @ probabilities) == pytest.approx(solution.charge_squared, rel=1e-9)
    assert solution.topological_susceptibility == pytest.approx(solution.charge_squared / math.prod(shape))


@pytest.mark.parametrize(("shape", "beta"), [((2, 2), 1.0), ((3, 5), 0.3), ((8, 8), 4.0), ((4, 4), 300.0)])
def test_plaquette_is_the_derivative_of_log_z(shape: tuple[int, int], beta: float) -> None:
    step = 1e-4 * beta
    up, down = (u1_exact(shape, b).log_z for b in (beta + step, beta - step))
    assert u1_exact(shape, beta).plaquette == pytest.approx((up - down) / (2.0 * step * math.prod(shape)), rel=1e-6)


def test_flux_on_the_torus() -> None:
    """A set of plaquettes has the flux of all the others; none and all have none; large lattices have the area law."""
    for area, beta in product(range(13), (0.5, 3.0)):
        assert u1_flux_mean((3, 4), beta, area) == pytest.approx(u1_flux_mean((3, 4), beta, 12 - area), rel=1e-12)
    assert u1_flux_mean((3, 4), 1.0, 0) == pytest.approx(1.0)
    ratio = scipy.special.ive(1, 2.0) / scipy.special.ive(0, 2.0)
    assert u1_flux_mean((32, 32), 2.0, 9) == pytest.approx(ratio**9, rel=1e-12)
    assert u1_polyakov_loop_squared((8, 5), 1e-3) == pytest.approx(0.2)  # loops at different places are independent
    assert u1_polyakov_loop_squared((2, 5), 1e4) == pytest.approx(1.0, abs=1e-3)


def test_weak_coupling() -> None:
    """Plaquettes become Gaussian, of variance 1/beta."""
    beta = 100.0
    solution = u1_exact((64, 64), beta)
    assert solution.topological_susceptibility == pytest.approx(1.0 / (4.0 * np.pi**2 * beta), rel=1e-2)
    assert solution.plaquette == pytest.approx(1.0 - 0.5 / beta, rel=1e-3)


def test_exact_values_have_the_names_of_observables() -> None:
    exact = exact_values("u1", ObservableContext((4, 4), {"beta": 2.0}))
    context = ObservableContext((4, 4), {"beta": 2.0})
    applying = {name for name, entry in GAUGE_OBSERVABLES.observables.items() if entry.applies(context)}
    assert set(exact) - {"ln_z", "action_importance"} <= applying
    assert {"wilson_loop_3x3", "string_tension", "charge_squared", "topological_susceptibility"} <= set(exact)
    assert exact["wilson_loop_2x3"] == pytest.approx(u1_flux_mean((4, 4), 2.0, 6))
    small = exact_values("u1", ObservableContext((2, 3), {"beta": 2.0}))
    assert {name for name in small if name.startswith("wilson")} == {"wilson_loop_2x1"}
    for lattice in ((4,), (4, 4, 4), (1, 4)):
        assert exact_values("u1", ObservableContext(lattice, {"beta": 2.0})) == {}


def test_bad_input_is_refused() -> None:
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(AnalysisError, match="beta"):
            u1_exact((4, 4), beta)
    for shape in ((4,), (4, 4, 4), (1, 4)):
        with pytest.raises(AnalysisError, match="two extents"):
            u1_charge_distribution(shape, 1.0)  # type: ignore[arg-type]
    for area in (-1, 17):
        with pytest.raises(AnalysisError, match="area"):
            u1_flux_mean((4, 4), 1.0, area)
