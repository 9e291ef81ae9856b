from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from flowmc_analysis import exact
from flowmc_analysis.errors import AnalysisError, SampleShapeError
from flowmc_analysis.gamma import GammaResult
from flowmc_analysis.magnetic_observables import momentum_mode_squared, two_point_zero_momentum
from flowmc_analysis.observable_sets import OBSERVABLE_SETS, observable_set
from flowmc_analysis.observables import (
    Configurations,
    ObservableContext,
    ObservableSet,
    estimate_observables,
    measure,
    observable_series,
)
from flowmc_analysis.scalar_observables import SCALAR_OBSERVABLES
from flowmc_analysis.zscores import judge, z_score

__all__: list[str] = []

Array = npt.NDArray[np.float64]


OBSERVABLES = SCALAR_OBSERVABLES.observables


def measure_scalar(configurations: Configurations) -> dict[str, Array]:
    return measure(configurations, SCALAR_OBSERVABLES)


def estimate_scalar(
    measured: Mapping[str, Array], shape: tuple[int, ...], names: list[str] | None = None
) -> dict[str, GammaResult]:
    return estimate_observables(measured, SCALAR_OBSERVABLES, ObservableContext(shape), names)


def free_field(rng: np.random.Generator, shape: tuple[int, ...], mass: float, batch: tuple[int, ...]) -> Array:
    """Exact draws: a Gaussian whose covariance is the propagator, through its Cholesky factor."""
    volume = math.prod(shape)
    sites = np.array(list(np.ndindex(*shape)))
    propagator = exact.free_scalar_propagator(shape, mass)
    difference = (sites[:, None, :] - sites[None, :, :]) % np.array(shape)
    factor = np.linalg.cholesky(propagator[tuple(np.moveaxis(difference, -1, 0))])
    return np.asarray((rng.normal(size=(*batch, volume)) @ factor.T).reshape(*batch, *shape))


def action(phi: Array, mass: float, dimension: int) -> Array:
    axes = tuple(range(-dimension, 0))
    gradients = sum((np.roll(phi, -1, axis=axis) - phi) ** 2 for axis in axes)
    return np.asarray((gradients + mass**2 * phi**2).sum(axis=axes))


@pytest.mark.parametrize("shape", [(8,), (6, 4), (4, 6), (4, 4), (4, 3, 2)])
def test_free_field_against_the_exact_propagator(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    mass, dimension = 0.8, len(shape)
    phi = free_field(rng, shape, mass, (4, 2000))
    measured = measure_scalar(Configurations(phi, dimension, action(phi, mass, dimension)))
    assert set(measured) == set(SCALAR_OBSERVABLES.primaries)
    found = estimate_scalar(measured, shape)
    susceptibility = exact.free_scalar_susceptibility(mass)
    expected = {
        "magnetisation": 0.0,
        "magnetisation_abs": math.sqrt(2 * susceptibility / math.prod(shape) / math.pi),
        "susceptibility": susceptibility,
        "binder_cumulant": 0.0,  # a Gaussian magnetisation
        "phi_squared": exact.free_scalar_phi_squared(shape, mass),
        "phi_fourth": 3 * exact.free_scalar_phi_squared(shape, mass) ** 2,
        "action_density": exact.free_scalar_action_density(),
        "correlation_length": 1 / mass,
    }
    for t, value in enumerate(exact.free_scalar_two_point_zero_momentum(shape, mass)):
        expected[f"two_point_zero_momentum[{t}]"] = float(value)
    for t in range(1, shape[0] // 2 + 1):
        expected[f"effective_mass[{t}]"] = exact.free_scalar_pole_mass(mass)
    assert set(found) == set(expected)
    scores = [
        z_score(name, found[name].estimate.value, value, found[name].estimate.error) for name, value in expected.items()
    ]
    verdict = judge(scores)
    assert verdict.passed, str(verdict)
    for name in ("susceptibility", "action_density", "phi_squared"):
        assert found[name].estimate.error < 0.03 * expected[name]


@pytest.mark.parametrize("shape", [(8,), (4, 4), (6, 3), (4, 3, 2)])
def test_exact_means_give_exact_derived_observables(shape: tuple[int, ...]) -> None:
    """The normalisations without noise: exact expectation values through the table's functions."""
    mass, volume = 0.7, math.prod(shape)
    susceptibility = exact.free_scalar_susceptibility(mass)
    smallest = 4 * math.sin(math.pi / max(shape)) ** 2
    means = {
        "magnetisation_squared": np.array(susceptibility / volume),
        "momentum_mode_squared": np.array(0.5 / (smallest + mass**2)),
        "two_point_zero_momentum": exact.free_scalar_two_point_zero_momentum(shape, mass),
    }
    assert means["two_point_zero_momentum"].sum() == pytest.approx(susceptibility)
    assert OBSERVABLES["susceptibility"].function(means, ObservableContext(shape)) == pytest.approx(susceptibility)
    assert OBSERVABLES["correlation_length"].function(means, ObservableContext(shape)) == pytest.approx(1 / mass)
    masses = OBSERVABLES["effective_mass"].function(means, ObservableContext(shape))
    np.testing.assert_allclose(masses, exact.free_scalar_pole_mass(mass), rtol=1e-9)
    assert masses.shape == (shape[0] // 2,)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 4), (2, 3, 4)])
def test_two_point_function_by_the_definition(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    phi = rng.normal(size=(3, *shape))
    found = two_point_zero_momentum(Configurations(phi, len(shape)))
    slices = phi.sum(axis=tuple(range(2, phi.ndim)))
    extent = shape[0]
    for t in range(extent):
        direct = sum(slices[:, s] * slices[:, (s + t) % extent] for s in range(extent)) / math.prod(shape)
        np.testing.assert_allclose(found[:, t], direct, atol=1e-12)
    m = phi.reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(found.sum(axis=1), math.prod(shape) * m**2, atol=1e-12)


def test_momentum_mode_by_the_definition(rng: np.random.Generator) -> None:
    phi = rng.normal(size=(3, 4, 6, 6))
    transform = np.abs(np.fft.fftn(phi, axes=(1, 2, 3))) ** 2 / (4 * 36)
    expected = 0.5 * (transform[:, 0, 1, 0] + transform[:, 0, 0, 1])
    np.testing.assert_allclose(momentum_mode_squared(Configurations(phi, 3)), expected, rtol=1e-12)


def test_symmetries_of_the_lattice_change_nothing(rng: np.random.Generator) -> None:
    phi = rng.normal(size=(2, 4, 4))
    plain = measure_scalar(Configurations(phi, 2))
    for moved in (np.roll(phi, (1, 2), axis=(1, 2)), phi[:, ::-1], phi[:, :, ::-1]):
        for name, value in measure_scalar(Configurations(moved, 2)).items():
            np.testing.assert_allclose(value, plain[name], atol=1e-12)
    for name, value in measure_scalar(Configurations(-phi, 2)).items():
        sign = -1 if name == "magnetisation" else 1
        np.testing.assert_allclose(value, sign * plain[name], atol=1e-12)


def test_single_precision_fields_are_summed_in_double_precision(rng: np.random.Generator) -> None:
    phi = rng.normal(size=(5, 16, 16)).astype(np.float32)
    single, double = measure_scalar(Configurations(phi, 2)), measure_scalar(Configurations(phi.astype(np.float64), 2))
    for name, value in single.items():
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, double[name], rtol=1e-12)


def test_ordered_and_disordered_binder_cumulant(rng: np.random.Generator) -> None:
    ordered = np.sign(rng.normal(size=(1, 200, 1, 1))) * np.ones((1, 200, 4, 4))
    measured = measure_scalar(Configurations(ordered + 1e-3 * rng.normal(size=ordered.shape), 2))
    found = estimate_scalar(measured, (4, 4), ["binder_cumulant"])["binder_cumulant"].estimate
    assert found.value == pytest.approx(2 / 3, abs=1e-5)


def test_a_noisy_effective_mass_is_reported_not_invented(rng: np.random.Generator) -> None:
    phi = rng.normal(size=(1, 20, 16, 2))  # white noise has no correlation to take a mass from
    found = estimate_scalar(measure_scalar(Configurations(phi, 2)), (16, 2), ["effective_mass"])
    assert list(found) == [f"effective_mass[{t}]" for t in range(1, 9)]
    undefined = [r.estimate for r in found.values() if math.isnan(r.estimate.value)]
    assert undefined
    assert all("not finite" in e.warnings[0] for e in undefined)


def test_the_smallest_lattices(rng: np.random.Generator) -> None:
    phi = rng.normal(size=(2, 50, 1))
    found = estimate_scalar(measure_scalar(Configurations(phi, 1)), (1,))
    assert math.isnan(found["correlation_length"].estimate.value)
    assert "effective_mass[1]" not in found
    assert found["susceptibility"].estimate.value == pytest.approx(np.mean(phi**2))


def test_blocks_can_be_measured_one_after_the_other(rng: np.random.Generator) -> None:
    phi = rng.normal(size=(3, 10, 4, 4))
    whole = measure_scalar(Configurations(phi, 2))
    parts = [measure_scalar(Configurations(block, 2)) for block in (phi[:, :4], phi[:, 4:])]
    for name, value in whole.items():
        np.testing.assert_allclose(np.concatenate([part[name] for part in parts], axis=1), value, rtol=1e-14)


def test_bad_input_is_refused(rng: np.random.Generator) -> None:
    phi = rng.normal(size=(3, 10, 4, 4))
    for dimension in (0, 5):
        with pytest.raises(SampleShapeError):
            Configurations(phi, dimension)
    with pytest.raises(SampleShapeError, match="one action"):
        Configurations(phi, 2, np.zeros(3))
    with pytest.raises(SampleShapeError):
        Configurations(phi * 1j, 2)  # type: ignore[arg-type]
    for internal in (-1, 3):
        with pytest.raises(SampleShapeError, match="internal"):
            Configurations(phi, 2, internal=internal)
    for record in (np.zeros((3, 9)), np.zeros(3), np.zeros((3, 10, 2, 2))):
        with pytest.raises(SampleShapeError, match="'condensate'"):
            Configurations(phi, 2, recorded={"condensate": record})
    configurations = Configurations(phi, 2)
    with pytest.raises(AnalysisError, match="without their action"):
        measure(configurations, SCALAR_OBSERVABLES, ["action"])
    with pytest.raises(AnalysisError, match="'magnetization'"):
        measure(configurations, SCALAR_OBSERVABLES, ["magnetization"])
    measured = measure_scalar(configurations)
    with pytest.raises(AnalysisError, match="'action'"):
        estimate_scalar(measured, (4, 4), ["action_density"])
    with pytest.raises(AnalysisError, match="'energy'"):
        estimate_scalar(measured, (4, 4), ["energy"])
    with pytest.raises(SampleShapeError, match="chains first"):
        estimate_scalar({"phi_squared": np.zeros(10)}, (4, 4))
    with pytest.raises(SampleShapeError, match="same chains"):
        estimate_scalar({**measured, "magnetisation_fourth": np.zeros((3, 9))}, (4, 4), ["binder_cumulant"])


def test_internal_axes_come_behind_those_of_the_lattice(rng: np.random.Generator) -> None:
    links = Configurations(rng.normal(size=(3, 10, 4, 6, 2)), 2, np.zeros((3, 10)), internal=1)
    assert (links.batch_shape, links.lattice_size, links.volume) == ((3, 10), (4, 6), 24)
    assert links.lattice_axes == (-3, -2)
    assert np.sum(links.field, axis=links.lattice_axes).shape == (3, 10, 2)


def test_averages_have_a_value_on_every_configuration(rng: np.random.Generator) -> None:
    phi = rng.normal(size=(3, 10, 4, 4))
    measured = measure_scalar(Configurations(phi, 2, action(phi, 0.8, 2)))
    series = observable_series(measured, SCALAR_OBSERVABLES, ObservableContext((4, 4)))
    found = estimate_scalar(measured, (4, 4))
    assert {"magnetisation", "susceptibility", "phi_squared", "action_density"} <= set(series)
    for name, values in series.items():
        assert values.shape == (3, 10)
        assert found[name].estimate.value == pytest.approx(values.mean())


@pytest.mark.parametrize("observables", OBSERVABLE_SETS.values(), ids=OBSERVABLE_SETS)
def test_every_observable_is_described_in_the_table(observables: ObservableSet) -> None:
    from flowmc_analysis import gauge_observables, ising_observables, scalar_observables

    modules = {"phi": scalar_observables, "spin": ising_observables, "angle": gauge_observables}
    described = str(modules[observables.field_name].__doc__)
    for name, entry in observables.observables.items():
        assert f"\n{name} " in described or (name.startswith("wilson_loop") and "``wilson_loop_3x3``" in described)
        assert set(entry.primaries) <= set(observables.primaries)
        assert entry.description
    # Some labels of sectors are no function of the field: they are there where a run recorded them.
    sectors = (name for name in observables.sectors if name in observables.observables)
    averages = (*observables.histories, *sectors, observables.cost_observable)
    assert all(observables.observables[name].average for name in averages)
    assert set(observables.records) <= set(observables.primaries)
    correlators = {*observables.correlators, *observables.correlators.values()} - {""}
    assert correlators <= set(observables.observables)


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AnalysisError, match=r"'phi'.*'spin'.*'angle'"):
        observable_set("link")
