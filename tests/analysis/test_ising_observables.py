"""Observables of spins: the definitions, exact small lattices, and spins that do not move."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.exact_ising import EnumeratedIsing, enumerate_ising
from flowmc_analysis.ising_observables import ISING_OBSERVABLES, on_axis_correlation, staggered_magnetisation
from flowmc_analysis.observables import Configurations, ObservableContext, estimate_observables, measure
from flowmc_analysis.zscores import judge, z_score

Array = npt.NDArray[np.float64]
Spins = npt.NDArray[np.int8]


def random_spins(rng: np.random.Generator, shape: tuple[int, ...]) -> Spins:
    return (2 * rng.integers(0, 2, size=shape) - 1).astype(np.int8)


def context(shape: tuple[int, ...], beta: float, coupling: float, field: float) -> ObservableContext:
    return ObservableContext(shape, {"beta": beta, "coupling": coupling, "field": field})


def exact_observables(sums: EnumeratedIsing, setting: ObservableContext) -> dict[str, Array]:
    """Exact means of the primaries through the table's functions."""
    states = Configurations(sums.states, len(setting.lattice_size), sums.action)
    means = {
        name: np.tensordot(sums.probability, values, axes=1)
        for name, values in measure(states, ISING_OBSERVABLES).items()
    }
    with np.errstate(invalid="ignore"):  # an antiferromagnet has no correlation length of this definition
        return {
            name: entry.function(means, setting)
            for name, entry in ISING_OBSERVABLES.observables.items()
            if entry.applies(setting)
        }


@pytest.mark.parametrize(
    ("shape", "coupling", "field"),
    [
        ((4, 4), 1.0, 0.0),
        ((3, 4), 1.0, 0.2),
        ((6, 2), -0.8, 0.3),
        ((3, 4), -0.8, 0.0),
        ((2, 2, 3), 1.0, 0.0),
        ((9,), 0.7, -0.5),
    ],
)
def test_small_lattices(shape: tuple[int, ...], coupling: float, field: float, rng: np.random.Generator) -> None:
    """Independent draws from the enumerated distribution give every observable within its error."""
    sums, setting = enumerate_ising(shape, 0.35, coupling, field), context(shape, 0.35, coupling, field)
    expected = exact_observables(sums, setting)
    chosen = rng.choice(len(sums.states), size=(4, 2000), p=sums.probability)
    fields = Configurations(sums.states[chosen], len(shape), sums.action[chosen])
    found = estimate_observables(measure(fields, ISING_OBSERVABLES), ISING_OBSERVABLES, setting)
    scores = []
    for name, exact in expected.items():
        first = ISING_OBSERVABLES.observables[name].first_index
        entries = {name: exact} if exact.ndim == 0 else {f"{name}[{first + i}]": x for i, x in enumerate(exact)}
        for label, value in entries.items():
            if label == "two_point_zero_momentum[0]" and len(shape) == 1:  # one spin squared
                assert found[label].estimate.value == pytest.approx(value) == 1.0
            elif math.isfinite(value):
                scores.append(z_score(label, found[label].estimate.value, float(value), found[label].estimate.error))
    verdict = judge(scores)
    assert verdict.passed, str(verdict)
    # What the enumeration knows without these functions.
    for name in ("energy", "specific_heat", "magnetisation", "magnetisation_abs", "susceptibility", "binder_cumulant"):
        assert float(expected[name]) == pytest.approx(getattr(sums, name), abs=1e-12)
    connected = sums.susceptibility - math.prod(shape) * sums.magnetisation_abs**2
    assert float(expected["susceptibility_connected"]) == pytest.approx(connected)
    assert ("susceptibility_subtracted" in found) == (field != 0.0)
    if field:  # the response of the magnetisation to the field, d<m>/dh / beta
        up, down = (enumerate_ising(shape, 0.35, coupling, field + h).magnetisation for h in (1e-4, -1e-4))
        assert float(expected["susceptibility_subtracted"]) == pytest.approx((up - down) / (2e-4 * 0.35), rel=1e-6)
    staggered = {"magnetisation_staggered_abs", "susceptibility_staggered"} & set(found)
    assert len(staggered) == (2 if coupling < 0.0 and all(extent % 2 == 0 for extent in shape) else 0)


@pytest.mark.parametrize("shape", [(6,), (4, 4), (3, 5), (4, 2, 4)])
def test_correlation_by_the_definition(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    spins = random_spins(rng, (3, *shape))
    extent = max(shape)
    longest = [axis + 1 for axis, length in enumerate(shape) if length == extent]
    found = on_axis_correlation(Configurations(spins, len(shape)))
    assert found.shape == (3, extent // 2)
    for r in range(1, extent // 2 + 1):
        products = [spins.astype(int) * np.roll(spins, -r, axis) for axis in longest]
        np.testing.assert_allclose(found[:, r - 1], np.mean(products, axis=0).reshape(3, -1).mean(axis=1), rtol=1e-14)


def test_correlation_at_distance_one_is_the_energy(rng: np.random.Generator) -> None:
    measured = measure(Configurations(random_spins(rng, (3, 5, 4, 4)), 2), ISING_OBSERVABLES)
    np.testing.assert_allclose(2.0 * measured["correlation"][..., 0], measured["links"], rtol=1e-14)


@pytest.mark.parametrize("shape", [(4,), (4, 6), (2, 4, 2)])
def test_staggered_magnetisation_by_the_definition(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    spins = random_spins(rng, (5, *shape))
    total = sum((-1.0) ** sum(site) * spins[:, *site] for site in np.ndindex(*shape))
    np.testing.assert_allclose(staggered_magnetisation(Configurations(spins, len(shape))), total / math.prod(shape))


def test_energy_is_that_of_the_action() -> None:
    """H/V from links and magnetisation, with a field, against the action of every state."""
    shape, beta = (3, 4), 0.6
    sums, setting = enumerate_ising(shape, beta, 0.9, 0.3), context(shape, beta, 0.9, 0.3)
    measured = measure(Configurations(sums.states, 2, sums.action), ISING_OBSERVABLES)
    energy = ISING_OBSERVABLES.observables["energy"].function(measured, setting)
    np.testing.assert_allclose(energy, sums.action / (beta * 12), atol=1e-14)


def test_eight_bits_do_not_overflow() -> None:
    """All spins up on more sites than int8, or int16, can count."""
    spins = np.ones((1, 256, 256), dtype=np.int8)
    measured = measure(Configurations(spins, 2), ISING_OBSERVABLES)
    assert measured["magnetisation"] == 1.0
    assert measured["links"] == 2.0
    assert np.all(measured["correlation"] == 1.0)
    assert np.all(measured["two_point_zero_momentum"] == 256.0)
    assert measured["momentum_mode_squared"] == pytest.approx(0.0, abs=1e-20)


def test_frozen_spins_are_constant_not_an_exception(rng: np.random.Generator) -> None:
    """Deep in the ordered phase only the overall sign moves; what is constant says so, and nothing is noise."""
    signs = random_spins(rng, (4, 50))
    spins = signs[..., None, None] * np.ones((6, 5), dtype=np.int8)
    setting = context((6, 5), 2.0, 1.0, 0.0)
    fields = Configurations(spins, 2, np.full((4, 50), -2.0 * 60.0))
    found = estimate_observables(measure(fields, ISING_OBSERVABLES), ISING_OBSERVABLES, setting)
    assert math.isfinite(found["magnetisation"].estimate.error)
    values = {name: result.estimate for name, result in found.items() if name != "magnetisation"}
    for name in ("magnetisation_abs", "correlation[1]", "correlation[3]"):
        assert values[name].value == 1.0
    assert values["energy"].value == -2.0
    assert values["specific_heat"].value == 0.0
    for name, estimate in values.items():
        assert math.isnan(estimate.error), name
        assert estimate.warnings


def test_infinite_temperature_has_an_energy(rng: np.random.Generator) -> None:
    """The action is zero there and says nothing about H."""
    fields = Configurations(random_spins(rng, (2, 400, 4, 4)), 2, np.zeros((2, 400)))
    found = estimate_observables(
        measure(fields, ISING_OBSERVABLES), ISING_OBSERVABLES, context((4, 4), 0.0, 1.0, 0.0), ["energy"]
    )["energy"].estimate
    assert judge([z_score("energy", found.value, 0.0, found.error)]).passed


def test_couplings_are_asked_for_by_name(rng: np.random.Generator) -> None:
    measured = measure(Configurations(random_spins(rng, (2, 10, 4, 4)), 2), ISING_OBSERVABLES)
    with pytest.raises(AnalysisError, match="'coupling'"):
        estimate_observables(measured, ISING_OBSERVABLES, ObservableContext((4, 4)))
    without_action = estimate_observables(measured, ISING_OBSERVABLES, context((4, 4), 0.4, 1.0, 0.0))
    assert "specific_heat" not in without_action


def test_what_counts_as_spins(rng: np.random.Generator) -> None:
    spins = random_spins(rng, (3, 4, 4))
    assert ISING_OBSERVABLES.accepts(spins)
    assert ISING_OBSERVABLES.accepts(spins.astype(np.int64))
    assert not ISING_OBSERVABLES.accepts(spins.astype(np.float64))
    assert not ISING_OBSERVABLES.accepts((spins + 1) // 2)
    assert not ISING_OBSERVABLES.accepts(np.full((2, 2), -128, dtype=np.int8))
