"""Theories: the contract over the public list, conventions, exact solutions, bad couplings."""

from __future__ import annotations

import numpy as np
import pytest

import flowmc.theories as public
from flowmc.errors import ConfigError, ParameterError
from flowmc.testing import GaugeTheoryContract, ScalarTheoryContract, TheoryContract
from flowmc.theories import (
    THEORIES,
    CallableTheory,
    DensityTheory,
    DoubleWell,
    FreeScalar,
    GaugeTheory2D,
    GaussianMixture,
    Ising,
    Phi4,
    ScalarTheory,
    Schwinger,
    SmoothTheory,
    Theory,
    U1Gauge2D,
    from_description,
)
from flowmc_analysis.exact import free_scalar_log_z
from flowmc_analysis.monitors import IDENTITIES

SMOOTH: list[ScalarTheory] = [
    Phi4((4, 6), m2=-4.0, lam=8.0),
    Phi4((5,), m2=0.3, lam=0.5),
    Phi4((3, 2, 4), m2=1.0, lam=0.0),
    Phi4((2, 3, 2, 2), m2=-1.0, lam=2.0),
    FreeScalar((4, 6), mass=0.5),
    FreeScalar((3, 4, 2), mass=1.2),
    DoubleWell(2, extent=4.0, mass=3.0),
    DoubleWell(16, extent=4.0, mass=1.5, coupling=0.7),
    GaussianMixture(((-4.0, 0.0), (4.0, 1.0)), scales=(1.0, 0.5), weights=(0.3, 0.7)),
    GaussianMixture(((0.0, 1.0, 2.0),), scales=(0.8,), weights=(1.0,)),
    GaussianMixture(
        ((0.0, 1.0, 2.0), (0.1, 1.0, 2.0), (9.0, -9.0, 3.0)), scales=(1.0, 2.0, 0.3), weights=(1.0, 1.0, 5.0)
    ),
]
DISCRETE: list[Theory] = [
    Ising((4, 6), beta=0.44),
    Ising((5,), beta=0.7, field=0.3),
    Ising((3, 2, 4), beta=0.2, coupling=-1.5),
    Ising((2, 3, 2, 2), beta=1.1, coupling=0.5, field=-0.2),
]
GAUGE: list[GaugeTheory2D] = [
    U1Gauge2D((4, 6), beta=2.0),
    U1Gauge2D((2, 3), beta=0.7),
    Schwinger((4, 4), beta=2.0, kappa=0.276),
    Schwinger((6, 2), beta=1.0, kappa=0.2, n_flavours=3),
    Schwinger((3, 4), beta=1.5, kappa=0.25, n_flavours=1),
]
EXAMPLES = [*SMOOTH, *DISCRETE, *GAUGE]
# Not in run descriptions: what is abstract, and actions of the user's own, which have tests of their own.
NOT_NAMED = {Theory, SmoothTheory, ScalarTheory, GaugeTheory2D, CallableTheory, DensityTheory}


def test_every_public_theory_is_tested() -> None:
    assert {type(theory).name for theory in EXAMPLES} == set(THEORIES)
    classes = {
        value
        for value in vars(public).values()
        if isinstance(value, type) and issubclass(value, Theory) and value not in NOT_NAMED
    }
    assert classes == set(THEORIES.values())


@pytest.mark.parametrize("theory", DISCRETE, ids=repr)
class TestContract(TheoryContract):
    @pytest.fixture
    def theory(self, request: pytest.FixtureRequest) -> Theory:
        theory = request.param
        assert isinstance(theory, Theory)
        return theory


@pytest.mark.parametrize("theory", SMOOTH, ids=repr)
class TestScalarContract(ScalarTheoryContract):
    @pytest.fixture
    def theory(self, request: pytest.FixtureRequest) -> ScalarTheory:
        theory = request.param
        assert isinstance(theory, ScalarTheory)
        return theory


@pytest.mark.parametrize("theory", GAUGE, ids=repr)
class TestGaugeContract(GaugeTheoryContract):
    @pytest.fixture
    def theory(self, request: pytest.FixtureRequest) -> GaugeTheory2D:
        theory = request.param
        assert isinstance(theory, GaugeTheory2D)
        return theory


@pytest.mark.parametrize("theory", EXAMPLES, ids=repr)
def test_the_analysis_knows_every_identity(theory: Theory) -> None:
    assert set(theory.identities()) <= set(IDENTITIES)


def action_written_out(field: np.ndarray, m2: float, lam: float) -> float:
    """S exactly as the papers print it, site by site."""
    total = 0.0
    for site in np.ndindex(*field.shape):
        value = float(field[site])
        for axis in range(field.ndim):
            step = np.zeros(field.ndim, int)
            step[axis] = 1
            ahead = float(field[tuple((np.array(site) + step) % field.shape)])
            behind = float(field[tuple((np.array(site) - step) % field.shape)])
            total += 2 * value**2 - value * ahead - value * behind
        total += m2 * value**2 + lam * value**4
    return total


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_phi4_is_the_printed_action(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    field = rng.standard_normal(shape)
    expected = action_written_out(field, -1.7, 2.3)
    assert Phi4(shape, -1.7, 2.3).action(field[None])[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(4,), (4, 6), (3, 4, 2)])
def test_kappa_convention(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    kappa, lam = 0.21, 0.4
    field = rng.standard_normal((3, *shape))
    hopping = sum(field * np.roll(field, -1, axis=axis) for axis in range(1, field.ndim))
    density = -2 * kappa * hopping + field**2 + lam * (field**2 - 1) ** 2
    theirs = density.reshape(3, -1).sum(1)
    theory = Phi4.from_kappa(shape, kappa, lam)
    np.testing.assert_allclose(theory.action(np.sqrt(kappa) * field) + lam * theory.volume, theirs, rtol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (4, 6), (3, 4, 2)])
def test_beta_convention(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    beta, g = 0.537, 0.5
    field = rng.standard_normal((3, *shape))
    hopping = sum(field * np.roll(field, -1, axis=axis) for axis in range(1, field.ndim))
    theirs = (-beta * hopping + (1 - 2 * g) * field**2 + g * field**4).reshape(3, -1).sum(1)
    np.testing.assert_allclose(Phi4.from_beta(shape, beta, g).action(np.sqrt(beta / 2) * field), theirs, rtol=1e-12)


def test_kappa_convention_of_the_partition_function() -> None:
    # One dimension, two sites: both integrals by quadrature on a grid, with the Jacobian and the constant stated.
    kappa, lam = 0.2, 0.3
    grid = np.linspace(-6, 6, 601)
    step = grid[1] - grid[0]
    field = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    theory = Phi4.from_kappa((2,), kappa, lam)
    ours = np.log(np.exp(-theory.action(field)).sum() * step**2)
    hopping = 2 * field[:, 0] * field[:, 1]
    theirs_action = -2 * kappa * hopping + (field**2 + lam * (field**2 - 1) ** 2).sum(1)
    theirs = np.log(np.exp(-theirs_action).sum() * step**2)
    assert theirs == pytest.approx(ours - lam * 2 - np.log(kappa), abs=1e-9)


def test_free_scalar_is_phi4_without_coupling(rng: np.random.Generator) -> None:
    field = rng.standard_normal((4, 4, 6))
    free, phi4 = FreeScalar((4, 6), 0.7), Phi4((4, 6), 0.49, 0.0)
    np.testing.assert_allclose(free.action(field), phi4.action(field), rtol=1e-12)
    np.testing.assert_allclose(free.force(field), phi4.force(field), rtol=1e-12)


def test_free_scalar_draws_have_the_exact_log_density(rng: np.random.Generator) -> None:
    # The density is Gaussian: log p = −S − ln Z must equal the one built from the sampler's own covariance.
    theory = FreeScalar((4, 2), 0.6)
    identity = np.eye(8).reshape(8, 4, 2)
    kernel = -theory.force(identity).reshape(8, 8) / 2  # S = φ K φ
    log_z = 0.5 * (8 * np.log(np.pi) - np.linalg.slogdet(kernel)[1])
    assert free_scalar_log_z((4, 2), 0.6) == pytest.approx(log_z, abs=1e-12)
    n = 20000
    action = theory.action(theory.draw(rng, n))
    # S is half a χ² of V degrees of freedom.
    assert abs(action.mean() - 4) < 5 * np.sqrt(4 / n)
    covariance = np.cov(theory.draw(rng, n).reshape(n, 8).T)
    exact = np.linalg.inv(2 * kernel)
    error = np.sqrt((exact**2 + np.outer(np.diag(exact), np.diag(exact))) / n)
    assert np.abs((covariance - exact) / error).max() < 5


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: Phi4((4, 4), 1.0, -0.1), "lam = -0.1"),
        (lambda: Phi4((4, 4), -1.0, 0.0), "lam = 0"),
        (lambda: Phi4((4, 4), float("nan"), 1.0), "nan"),
        (lambda: Phi4((4, 1), 1.0, 1.0), "[4, 1]"),
        (lambda: Phi4((), 1.0, 1.0), "[]"),
        (lambda: Phi4.from_kappa((4, 4), -0.1, 1.0), "kappa = -0.1"),
        (lambda: Phi4.from_beta((4, 4), 0.0, 1.0), "beta = 0.0"),
        (lambda: FreeScalar((4, 4), 0.0), "mass = 0"),
        (lambda: U1Gauge2D((4, 4), 0.0), "beta = 0"),
        (lambda: U1Gauge2D((4, 4, 4), 1.0), "[4, 4, 4]"),
        (lambda: Schwinger((4, 4), -1.0, 0.2), "beta = -1"),
        (lambda: Schwinger((4, 4), 1.0, -0.2), "kappa = -0.2"),
        (lambda: Schwinger((4, 4), 1.0, float("inf")), "kappa = inf"),
        (lambda: Schwinger((4, 4), 1.0, 0.2, 0), "n_flavours = 0"),
        (lambda: Schwinger((4, 4), 1.0, 0.2, 1.5), "n_flavours = 1.5"),  # type: ignore[arg-type]
    ],
)
def test_meaningless_couplings_are_refused(build: object, word: str) -> None:
    assert callable(build)
    with pytest.raises(ParameterError) as caught:
        build()
    assert word in caught.value.got
    assert caught.value.expected
    assert caught.value.fix


def test_unknown_theories_and_couplings_are_refused() -> None:
    with pytest.raises(ConfigError, match="phi4"):
        from_description({"name": "phi5", "shape": [4]})
    with pytest.raises(ConfigError, match="lam"):
        from_description({"name": "phi4", "shape": [4], "m2": 1.0})


def test_hot_start_is_at_equipartition(rng: np.random.Generator) -> None:
    theory = Phi4((8, 8), -4.0, 8.0)
    np.testing.assert_allclose(theory.virial(theory.start(rng, 20, "hot")), 64, rtol=1e-9)
