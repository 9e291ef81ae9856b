"""Kaufman's formula against enumeration, the transfer matrix, the infinite lattice and conformal field theory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.exact_ising import critical_beta, enumerate_ising, ising_exact

Array = npt.NDArray[np.float64]

BETAS = (0.1, 0.3, 0.44, critical_beta(), 0.4406868, 0.6, 1.5)


def transfer_matrix(shape: tuple[int, int], k: float) -> tuple[float, float, float]:
    """``ln Z`` and its first two derivatives in K as the trace of a power, differentiated by the product rule."""
    extent, space = shape
    rows = 1.0 - 2.0 * (np.arange(2**space)[:, None] >> np.arange(space) & 1)
    inside = np.sum(rows * np.roll(rows, -1, axis=1), axis=1)
    exponent = rows @ rows.T + inside[:, None]
    scale = float(exponent.max())
    exponent = exponent - scale
    matrix = np.exp(k * exponent)
    step = (matrix, exponent * matrix, exponent**2 * matrix)
    power = step
    for _ in range(extent - 1):
        power = (
            power[0] @ step[0],
            power[1] @ step[0] + power[0] @ step[1],
            power[2] @ step[0] + 2.0 * power[1] @ step[1] + power[0] @ step[2],
        )
    z, first, second = (float(np.trace(part)) for part in power)
    return math.log(z) + extent * k * scale, first / z + extent * scale, second / z - (first / z) ** 2


def onsager(beta: float) -> tuple[float, float, float]:
    """``ln Z/V``, energy and specific heat of the infinite lattice with J = 1, away from the critical point."""
    modulus = 2.0 * math.sinh(2.0 * beta) / math.cosh(2.0 * beta) ** 2
    angle = np.pi * (np.arange(4000) + 0.5) / 4000  # periodic and smooth: converges exponentially
    root = np.log(0.5 * (1.0 + np.sqrt(1.0 - (modulus * np.sin(angle)) ** 2)))
    log_z = math.log(2.0 * math.cosh(2.0 * beta)) + 0.5 * float(np.mean(root))
    first, second = float(scipy.special.ellipk(modulus**2)), float(scipy.special.ellipe(modulus**2))
    complement = 2.0 * math.tanh(2.0 * beta) ** 2 - 1.0
    coth = 1.0 / math.tanh(2.0 * beta)
    energy = -coth * (1.0 + 2.0 / np.pi * complement * first)
    bracket = 2.0 * (first - second) - (1.0 - complement) * (0.5 * np.pi + complement * first)
    return log_z, energy, 2.0 / np.pi * (beta * coth) ** 2 * bracket


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (5, 2), (4, 4)])
def test_enumeration(shape: tuple[int, int]) -> None:
    """Extents of two have their links twice, odd extents have no sublattices."""
    for beta in BETAS:
        for coupling in (1.0, 0.7):
            solution, sums = ising_exact(shape, beta, coupling), enumerate_ising(shape, beta, coupling)
            assert solution.log_z == pytest.approx(sums.log_z, rel=1e-13)
            assert solution.energy == pytest.approx(sums.energy, rel=1e-12)
            assert solution.specific_heat == pytest.approx(sums.specific_heat, rel=1e-11)


@pytest.mark.parametrize("shape", [(2, 2), (4, 2), (2, 6), (4, 4)])
def test_antiferromagnet_on_even_extents(shape: tuple[int, int]) -> None:
    for beta in BETAS:
        solution, sums = ising_exact(shape, beta, -0.7), enumerate_ising(shape, beta, -0.7)
        assert solution.log_z == pytest.approx(sums.log_z, rel=1e-13)
        assert solution.energy == pytest.approx(sums.energy, rel=1e-12)
        assert solution.specific_heat == pytest.approx(sums.specific_heat, rel=1e-11)
        assert solution.entropy == pytest.approx(
            (sums.log_z + beta * sums.energy * math.prod(shape)) / math.prod(shape)
        )


@pytest.mark.parametrize("shape", [(8, 8), (10, 6), (64, 3)])
@pytest.mark.parametrize("beta", BETAS)
def test_transfer_matrix(shape: tuple[int, int], beta: float) -> None:
    log_z, first, second = transfer_matrix(shape, beta)
    volume = math.prod(shape)
    for size in (shape, shape[::-1]):  # the formula treats the two directions differently
        solution = ising_exact((size[0], size[1]), beta)
        assert solution.log_z == pytest.approx(log_z, rel=1e-12)
        assert solution.energy == pytest.approx(-first / volume, rel=1e-11)
        # The matrix's second derivative is a small difference of squares.
        assert solution.specific_heat == pytest.approx(
            beta**2 * second / volume, rel=1e-9, abs=1e-12 * first**2 / volume
        )


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.4, 0.48, 0.6, 1.0, 1.5])
def test_largest_lattices_are_the_infinite_one(beta: float) -> None:
    """The correlation length is below 20 here: a torus of 512 sites differs by exp(-25), and by ln 2 of order."""
    log_z, energy, specific_heat = onsager(beta)
    solution = ising_exact((512, 512), beta)
    degeneracy = math.log(2.0) if beta > critical_beta() else 0.0
    assert solution.log_z - degeneracy == pytest.approx(512**2 * log_z, rel=1e-12)
    assert solution.energy == pytest.approx(energy, rel=1e-9)
    assert solution.specific_heat == pytest.approx(specific_heat, rel=1e-7)
    assert solution.entropy == pytest.approx(log_z + beta * energy + degeneracy / 512**2, abs=1e-9)


@pytest.mark.parametrize(("extent", "accuracy"), [(64, 1e-4), (512, 2e-6)])
def test_critical_point_is_the_conformal_torus(extent: int, accuracy: float) -> None:
    """ln Z = V (2 G/pi + ln(2)/2) + ln(2^(1/4) + 2^(-1/2)) + O(1/V), G Catalan's constant (Ferdinand and Fisher)."""
    catalan = float(np.sum((-1.0) ** np.arange(200000) / (2.0 * np.arange(200000) + 1.0) ** 2))
    bulk = extent**2 * (2.0 * catalan / math.pi + 0.5 * math.log(2.0))
    universal = math.log(2.0**0.25 + 2.0**-0.5)
    assert ising_exact((extent, extent), critical_beta()).log_z - bulk == pytest.approx(universal, abs=accuracy)


@pytest.mark.parametrize("beta", [0.1, 0.44, critical_beta(), 0.4407, 0.45, 1.0])
def test_derivatives_are_those_of_ln_z_at_the_largest_size(beta: float) -> None:
    """Central differences of fourth order; their error is measured by halving the step."""
    shape, volume = (512, 512), 512**2

    def differences(step: float) -> tuple[float, float]:
        minus2, minus, plus, plus2 = (ising_exact(shape, beta + j * step) for j in (-2, -1, 1, 2))
        first = (8.0 * (plus.log_z - minus.log_z) - (plus2.log_z - minus2.log_z)) / (12.0 * step)
        second = (8.0 * (plus.energy - minus.energy) - (plus2.energy - minus2.energy)) / (12.0 * step)
        return -first / volume, -(beta**2) * second

    coarse, fine = differences(2e-4), differences(1e-4)
    solution = ising_exact(shape, beta)
    for value, one, other in zip((solution.energy, solution.specific_heat), fine, coarse, strict=True):
        assert abs(value - one) < abs(other - one) + 1e-9 * abs(value)


def test_reference_values() -> None:
    """Independent evaluations of the formula in higher precision (tables of ln Z and energy per site at beta)."""
    table = {
        (4, 0.44): (15.5047265387, -1.5628470281),
        (8, 0.44): (60.0763075272, -1.48752554339),
        (16, 0.44): (238.387247204, -1.44774346483),
        (32, 0.44): (951.642126409, -1.42709060771),
        (8, 0.440686793509772): (60.1417807891, -1.49158910744),
        (32, 0.440686793509772): (952.648079549, -1.43365846615),
    }
    for (extent, beta), (log_z, energy) in table.items():
        solution = ising_exact((extent, extent), beta)
        assert solution.log_z == pytest.approx(log_z, rel=1e-11)
        assert solution.energy == pytest.approx(energy, rel=1e-11)
    for extent, log_z in ((64, 3808.67232127), (128, 15232.7694742)):
        assert ising_exact((extent, extent), 0.4406868).log_z == pytest.approx(log_z, rel=1e-11)


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 5.0, 50.0, 100.0])
def test_extreme_temperatures(beta: float) -> None:
    solution, volume = ising_exact((12, 10), beta), 120
    if beta < 1.0:
        # Each of the 2 V links adds ln cosh K, each of the V plaquettes tanh(K)^4.
        assert solution.log_z == pytest.approx(volume * (math.log(2.0) + 2.0 * math.log(math.cosh(beta)) + beta**4))
        assert solution.specific_heat == pytest.approx(2.0 * beta**2, rel=3.0 * beta)
    else:
        assert solution.log_z == pytest.approx(2.0 * volume * beta + math.log(2.0), rel=1e-12)
        assert solution.energy == pytest.approx(-2.0, rel=1e-12)
        assert 0.0 <= solution.specific_heat < 1e-10


def test_thermodynamics() -> None:
    solution, beta, volume = ising_exact((6, 8), 0.5, 0.8), 0.5, 48
    assert solution.entropy == pytest.approx(beta * (solution.energy - solution.free_energy))
    assert solution.free_energy == pytest.approx(-solution.log_z / (beta * volume))


@pytest.mark.parametrize("shape", [(5,), (2, 2), (3, 2), (2, 2, 3)])
def test_enumeration_by_the_definition(shape: tuple[int, ...]) -> None:
    """Site by site, link by link, with a field and an antiferromagnetic coupling."""
    beta, coupling, field = 0.3, -0.6, 0.4
    sums = enumerate_ising(shape, beta, coupling, field)
    assert len({state.tobytes() for state in sums.states}) == 2 ** math.prod(shape) == len(sums.states)
    for state, action in zip(sums.states[::7], sums.action[::7], strict=True):
        hamiltonian = 0.0
        for site in np.ndindex(*shape):
            hamiltonian -= field * state[site]
            for axis, extent in enumerate(shape):
                neighbour = (*site[:axis], (site[axis] + 1) % extent, *site[axis + 1 :])
                hamiltonian -= coupling * state[site] * state[neighbour]
        assert action == pytest.approx(beta * hamiltonian)
    z = float(np.sum(np.exp(-sums.action)))
    assert sums.log_z == pytest.approx(math.log(z))
    m = sums.states.reshape(len(sums.states), -1).mean(axis=1)
    p = np.exp(-sums.action) / z
    volume = math.prod(shape)
    assert sums.magnetisation == pytest.approx(p @ m)
    assert sums.magnetisation_abs == pytest.approx(p @ abs(m))
    assert sums.susceptibility == pytest.approx(volume * (p @ m**2))
    assert sums.binder_cumulant == pytest.approx(1.0 - (p @ m**4) / (3.0 * (p @ m**2) ** 2))
    assert sums.energy == pytest.approx(p @ sums.action / beta / volume)
    variance = p @ sums.action**2 - (p @ sums.action) ** 2
    assert sums.specific_heat == pytest.approx(variance / volume)


def test_what_the_formulas_do_not_cover_is_refused() -> None:
    for shape in ((4,), (1, 4), (4, 4, 4)):
        with pytest.raises(AnalysisError, match="two extents"):
            ising_exact(shape, 0.4)  # type: ignore[arg-type]
    for beta, coupling in ((0.0, 1.0), (0.4, 0.0), (-0.4, -1.0), (math.nan, 1.0), (101.0, 1.0), (0.4, math.nan)):
        with pytest.raises(AnalysisError, match="finite temperature"):
            ising_exact((4, 4), beta, coupling)
    for shape in ((3, 4), (4, 5), (3, 3)):
        with pytest.raises(AnalysisError, match="even extents"):
            ising_exact(shape, 0.4, -1.0)
    with pytest.raises(AnalysisError, match="20 sites"):
        enumerate_ising((5, 5), 0.4)
    with pytest.raises(AnalysisError, match="ferromagnet"):
        critical_beta(-1.0)
