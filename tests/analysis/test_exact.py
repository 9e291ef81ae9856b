from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import scipy.integrate
import scipy.special

from flowmc_analysis import exact
from flowmc_analysis.errors import AnalysisError

__all__: list[str] = []

Array = npt.NDArray[np.float64]


def kinetic_matrix(shape: tuple[int, ...], mass: float) -> Array:
    """M with S = phi M phi, from the definition of the action: the bilinear form on unit vectors."""
    volume = math.prod(shape)
    basis = np.eye(volume).reshape(volume, *shape)
    gradients = [(np.roll(basis, -1, axis + 1) - basis).reshape(volume, -1) for axis in range(len(shape))]
    kinetic = mass**2 * np.eye(volume)
    for gradient in gradients:
        kinetic += gradient @ gradient.T
    return kinetic


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (3, 4), (2, 2), (2, 3, 2)])
def test_free_field_against_linear_algebra(shape: tuple[int, ...]) -> None:
    mass, volume = 0.6, math.prod(shape)
    matrix = kinetic_matrix(shape, mass)
    log_z = 0.5 * volume * math.log(math.pi) - 0.5 * np.linalg.slogdet(matrix)[1]
    covariance = np.linalg.inv(2 * matrix)
    assert exact.free_scalar_log_z(shape, mass) == pytest.approx(log_z, rel=1e-12)
    np.testing.assert_allclose(exact.free_scalar_propagator(shape, mass).ravel(), covariance[0], rtol=1e-10)
    assert exact.free_scalar_phi_squared(shape, mass) == pytest.approx(covariance[0, 0])
    assert exact.free_scalar_susceptibility(mass) == pytest.approx(covariance[0].sum())
    assert exact.free_scalar_action_density() == pytest.approx(np.trace(matrix @ covariance) / volume)
    two_point = exact.free_scalar_two_point_zero_momentum(shape, mass)
    np.testing.assert_allclose(two_point, covariance[0].reshape(shape[0], -1).sum(axis=1), rtol=1e-10)


def test_two_point_function_is_a_cosh_with_the_pole_mass() -> None:
    energy = exact.free_scalar_pole_mass(0.5)
    two_point = exact.free_scalar_two_point_zero_momentum((12, 4), 0.5)
    np.testing.assert_allclose(two_point / two_point[6], np.cosh(energy * (np.arange(12) - 6)), rtol=1e-10)


@pytest.mark.parametrize(("quadratic", "quartic"), [(0.0, 8.0), (3.0, 0.5), (-4.0, 1.0), (2.0, 0.0)])
def test_site_rule_integrates_moments(quadratic: float, quartic: float) -> None:
    phi, weights, log_integral = exact.phi4_site_rule(quadratic, quartic, 10)

    def moment(power: int) -> float:
        def integrand(x: float) -> float:
            return x**power * math.exp(-quadratic * x**2 - quartic * x**4)

        return 2 * float(scipy.integrate.quad(integrand, 0, 9, epsabs=0.0, epsrel=1e-10, limit=200)[0])

    assert log_integral == pytest.approx(math.log(moment(0)), rel=1e-9)
    for power in (2, 4, 6, 12, 18):
        assert weights @ phi**power == pytest.approx(moment(power) / moment(0), rel=1e-8)
        assert weights @ phi ** (power - 1) == pytest.approx(0.0, abs=1e-10 * moment(power) / moment(0))


def test_single_site_is_a_bessel_function() -> None:
    """One site, where the hopping term cancels: Z = sqrt(m2/lam)/2 e^b K_{1/4}(b), b = m2^2/(8 lam)."""
    m2, lam = 1.5, 0.7
    b = m2**2 / (8 * lam)
    log_z = math.log(0.5 * math.sqrt(m2 / lam)) + b + math.log(scipy.special.kv(0.25, b))
    for shape in ((1,), (1, 1)):
        assert exact.phi4_exact(shape, m2, lam, nodes=40).log_z == pytest.approx(log_z, abs=1e-9)


@pytest.mark.parametrize("shape", [(2,), (5,), (2, 2), (3, 2)])
def test_phi4_without_coupling_is_the_free_field(shape: tuple[int, ...]) -> None:
    mass = math.sqrt(2.0)
    solution = exact.phi4_exact(shape, mass**2, 0.0, nodes=16)
    assert solution.log_z == pytest.approx(exact.free_scalar_log_z(shape, mass), abs=1e-11)
    assert solution.phi_squared == pytest.approx(exact.free_scalar_phi_squared(shape, mass), rel=1e-10)
    assert solution.phi_fourth == pytest.approx(3 * solution.phi_squared**2, rel=1e-9)
    assert solution.susceptibility == pytest.approx(exact.free_scalar_susceptibility(mass), rel=1e-10)
    two_point = exact.free_scalar_two_point_zero_momentum(shape, mass)
    np.testing.assert_allclose(solution.two_point_zero_momentum, two_point, rtol=1e-9)


def test_phi4_against_a_sum_over_all_sites() -> None:
    """A 2x2 torus by brute force on a plain grid, the action written from its definition."""
    m2, lam = -4.0, 8.0
    axis = np.linspace(-1.5, 1.5, 31)
    phi = np.stack(np.meshgrid(*[axis] * 4, indexing="ij"), axis=-1).reshape(-1, 2, 2)
    action = np.sum(m2 * phi**2 + lam * phi**4, axis=(1, 2))
    for mu in (1, 2):
        action += np.sum(2 * phi**2 - phi * np.roll(phi, -1, mu) - phi * np.roll(phi, 1, mu), axis=(1, 2))
    weight = np.exp(-action)
    solution = exact.phi4_exact((2, 2), m2, lam)
    assert solution.log_z == pytest.approx(math.log(weight.sum() * (axis[1] - axis[0]) ** 4), abs=1e-9)
    weight /= weight.sum()
    assert solution.phi_squared == pytest.approx(weight @ np.mean(phi**2, axis=(1, 2)), rel=1e-9)
    assert solution.action_density == pytest.approx(weight @ action / 4, rel=1e-9)
    assert solution.susceptibility == pytest.approx(weight @ np.sum(phi, axis=(1, 2)) ** 2 / 4, rel=1e-9)


def test_phi4_does_not_know_which_axis_is_time() -> None:
    a, b = (exact.phi4_exact(shape, -4.0, 8.0, nodes=7) for shape in ((2, 3), (3, 2)))
    assert a.log_z == pytest.approx(b.log_z, abs=1e-6)
    assert a.susceptibility == pytest.approx(b.susceptibility, rel=1e-5)
    assert a.action_density == pytest.approx(b.action_density, rel=1e-3)


def test_phi4_mean_square_is_a_derivative_of_log_z() -> None:
    step = 1e-3
    up, down = (exact.phi4_exact((4, 2), -1.0 + sign * step, 2.0).log_z for sign in (1, -1))
    solution = exact.phi4_exact((4, 2), -1.0, 2.0)
    assert -(up - down) / (2 * step) / 8 == pytest.approx(solution.phi_squared, rel=1e-6)


def test_three_by_three_torus_converges_to_the_published_reference() -> None:
    """m2 = -4, lam = 8 gave 1.4765(3) by an independent quadrature; here converged in the nodes."""
    coarse, fine = (exact.phi4_exact((3, 3), -4.0, 8.0, nodes=nodes) for nodes in (6, 8))
    assert abs(fine.log_z - 1.4765) < 4 * 0.0003
    assert fine.log_z == pytest.approx(coarse.log_z, abs=5e-6)
    assert fine.susceptibility == pytest.approx(coarse.susceptibility, rel=5e-5)


def test_theories_without_a_distribution_are_refused() -> None:
    with pytest.raises(AnalysisError, match="mass > 0"):
        exact.free_scalar_log_z((4, 4), 0.0)
    with pytest.raises(AnalysisError, match="normalisable"):
        exact.phi4_exact((2, 2), -1.0, 0.0)
    with pytest.raises(AnalysisError, match="an order of at most"):
        exact.phi4_exact((3, 4), -4.0, 8.0, nodes=12)
