"""Observables of U(1) links: the definitions link by link, symmetries, exact draws against exact values, and records."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from flowmc_analysis.doubts import sector_doubts
from flowmc_analysis.errors import AnalysisError, SampleShapeError
from flowmc_analysis.exact_u1 import u1_charge_distribution
from flowmc_analysis.exact_values import exact_values
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.gauge_observables import (
    GAUGE_OBSERVABLES,
    plaquette_angles,
    polyakov_loop,
    topological_charge,
    wilson_loop,
)
from flowmc_analysis.observables import (
    Configurations,
    ObservableContext,
    estimate_observables,
    measure,
    observable_series,
)
from flowmc_analysis.zscores import judge, z_score

Array = npt.NDArray[np.float64]
DrawLinks = Callable[[np.random.Generator, int, tuple[int, int], float], Array]


def links(field: npt.ArrayLike, **records: Array) -> Configurations:
    return Configurations(np.asarray(field), 2, internal=1, recorded=records)


def random_links(rng: np.random.Generator, *shape: int) -> Array:
    return rng.uniform(-np.pi, np.pi, size=(*shape, 2))


def uniform_flux(time: int, space: int, charge: int) -> Array:
    """Links with the same plaquette angle, 2 pi Q / V, everywhere: an instanton of the torus."""
    flux = 2.0 * np.pi * charge / (time * space)
    field = np.zeros((1, time, space, 2))
    field[0, :, :, 1] = flux * np.arange(time)[:, None]
    field[0, -1, :, 0] = -flux * time * np.arange(space)
    return field


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 2), (3, 3)])
def test_wilson_loop_is_the_product_of_its_links(size: tuple[int, int], rng: np.random.Generator) -> None:
    """Forward in time, forward in space, backward in time, backward in space, from every place."""
    extent = (4, 5)
    field = random_links(rng, 3, *extent)
    group = np.exp(1j * field)
    spatial, temporal = size
    total = np.zeros(3)
    for t, x in np.ndindex(*extent):

        def link(dt: int, dx: int, direction: int, t: int = t, x: int = x) -> npt.NDArray[np.complex128]:
            return np.asarray(group[:, (t + dt) % extent[0], (x + dx) % extent[1], direction])

        loop = np.ones(3, dtype=complex)
        for step in range(temporal):
            loop *= link(step, 0, 0) * link(step, spatial, 0).conj()
        for step in range(spatial):
            loop *= link(temporal, step, 1) * link(0, step, 1).conj()
        total += loop.real
    np.testing.assert_allclose(wilson_loop(links(field), spatial, temporal), total / math.prod(extent), atol=1e-13)


def test_polyakov_loop_is_the_product_of_links_in_time(rng: np.random.Generator) -> None:
    field = random_links(rng, 4, 3, 5)
    group = np.exp(1j * field[..., 0])
    expected = np.mean([group[:, 0, x] * group[:, 1, x] * group[:, 2, x] for x in range(5)], axis=0)
    np.testing.assert_allclose(polyakov_loop(links(field)), expected, rtol=1e-12)
    measured = measure(links(field), GAUGE_OBSERVABLES)
    np.testing.assert_allclose(measured["polyakov_loop"], expected.real)
    np.testing.assert_allclose(measured["polyakov_loop_abs"] ** 2, measured["polyakov_loop_squared"])


@pytest.mark.parametrize("charge", [-3, -1, 0, 1, 2])
@pytest.mark.parametrize("shape", [(4, 4), (6, 3)])
def test_charge_of_uniform_flux(charge: int, shape: tuple[int, int]) -> None:
    field = links(uniform_flux(*shape, charge))
    wrapped = np.angle(np.exp(1j * plaquette_angles(field)))
    np.testing.assert_allclose(wrapped, 2.0 * np.pi * charge / math.prod(shape), atol=1e-12)
    assert topological_charge(field) == charge


def test_symmetries(rng: np.random.Generator) -> None:
    """Gauge transformations and full turns change nothing, charge conjugation the sign of Q, a shift of time Re L."""
    field = random_links(rng, 6, 4, 5)
    measured = measure(links(field), GAUGE_OBSERVABLES)
    gauge = rng.uniform(-np.pi, np.pi, size=(6, 4, 5))
    transformed = field + np.stack([gauge - np.roll(gauge, -1, axis=1), gauge - np.roll(gauge, -1, axis=2)], axis=-1)
    turned = field + 2.0 * np.pi * rng.integers(-3, 4, size=field.shape)
    for same in (transformed, turned):
        for name, value in measure(links(same), GAUGE_OBSERVABLES).items():
            np.testing.assert_allclose(value, measured[name], atol=1e-12)
    opposite = measure(links(-field), GAUGE_OBSERVABLES)
    np.testing.assert_array_equal(opposite["topological_charge"], -measured["topological_charge"])
    shifted = field.copy()
    shifted[:, 1, :, 0] += np.pi
    moved = measure(links(shifted), GAUGE_OBSERVABLES)
    np.testing.assert_allclose(moved["polyakov_loop"], -measured["polyakov_loop"], atol=1e-12)
    np.testing.assert_allclose(moved["wilson_loop_3x2"], measured["wilson_loop_3x2"], atol=1e-12)
    assert np.ptp(measured["topological_charge"]) > 0.0


def test_charge_is_whole_in_single_precision(rng: np.random.Generator) -> None:
    field = random_links(rng, 5, 16, 16).astype(np.float32)
    charge = topological_charge(links(field))
    np.testing.assert_array_equal(charge, np.rint(charge))
    assert not np.signbit(topological_charge(links(np.zeros((1, 2, 2, 2))))).any()


@pytest.mark.parametrize(("shape", "beta"), [((4, 4), 1.5), ((3, 5), 2.5), ((2, 4), 0.5)])
def test_exact_draws_have_the_exact_means(
    shape: tuple[int, int], beta: float, draw_links: DrawLinks, rng: np.random.Generator
) -> None:
    field = draw_links(rng, 8000, shape, beta).reshape(4, 2000, *shape, 2)
    action = -beta * np.cos(plaquette_angles(links(field))).sum(axis=(-2, -1))
    context = ObservableContext(shape, {"beta": beta})
    found = estimate_observables(
        measure(Configurations(field, 2, action, internal=1), GAUGE_OBSERVABLES), GAUGE_OBSERVABLES, context
    )
    exact = exact_values("u1", context)
    scores = [
        z_score(name, found[name].estimate.value, value, found[name].estimate.error)
        for name, value in exact.items()
        if name in found
    ]
    assert {score.name for score in scores} == set(exact) - {"ln_z", "action_importance"}
    verdict = judge(scores)
    assert verdict.passed, str(verdict)
    assert ("string_tension" in found) == (min(shape) > 2)
    charges, probabilities = u1_charge_distribution(shape, beta)
    counts = (topological_charge(links(field))[..., None] == charges).sum(axis=(0, 1))
    common = probabilities * 8000 > 20.0
    observed = np.append(counts[common], counts[~common].sum())
    expected = 8000 * np.append(probabilities[common], probabilities[~common].sum())
    used = expected > 0.5
    assert (
        scipy.stats.chisquare(observed[used], expected[used] * observed[used].sum() / expected[used].sum()).pvalue
        > 1e-4
    )


def test_observables_need_what_was_recorded(rng: np.random.Generator) -> None:
    """Without records there are those of the links; every record adds what it allows."""
    field = random_links(rng, 3, 20, 4, 4)
    context = ObservableContext((4, 4), {"beta": 1.0, "kappa": 0.2, "n_flavours": 2.0})
    of_links = set(estimate_observables(measure(links(field), GAUGE_OBSERVABLES), GAUGE_OBSERVABLES, context))
    assert "plaquette" in of_links
    assert not {name for name in of_links if name.startswith(("condensate", "mean", "pion", "eta", "log", "action"))}
    noise = rng.normal(size=(3, 20))
    correlator = 5.0 + rng.normal(size=(3, 20, 4))
    for records, expected in (
        ({"condensate": noise}, {"condensate"}),
        ({"log_determinant": noise}, {"log_determinant_density"}),
        ({"sign_determinant": np.sign(noise)}, {"mean_sign"}),
        ({"pion_correlator": correlator}, {f"pion_correlator[{t}]" for t in range(4)} | {"pion_effective_mass[1]"}),
        ({"eta_disconnected": correlator}, set()),
        ({"something else": noise}, set()),
    ):
        measured = measure(links(field, **records), GAUGE_OBSERVABLES)
        found = estimate_observables(measured, GAUGE_OBSERVABLES, context)
        assert set(found) - of_links - {"pion_effective_mass[2]"} == expected
    with pytest.raises(AnalysisError, match="'condensate'"):
        measure(links(field), GAUGE_OBSERVABLES, ["condensate"])


def test_records_are_taken_as_they_are(rng: np.random.Generator) -> None:
    field = random_links(rng, 3, 20, 4, 6)
    cosh = np.cosh(0.4 * (np.arange(4) - 2.0)) * np.ones((3, 20, 1))
    records = {
        "log_determinant": rng.normal(size=(3, 20)),
        "condensate": rng.normal(size=(3, 20)),
        "pion_correlator": cosh * rng.uniform(1.0, 1.1, size=(3, 20, 1)),
        "eta_disconnected": 0.1 * cosh * rng.uniform(1.0, 1.1, size=(3, 20, 1)),
    }
    context = ObservableContext((4, 6), {"n_flavours": 2.0})
    measured = measure(links(field, **records), GAUGE_OBSERVABLES)
    found = estimate_observables(measured, GAUGE_OBSERVABLES, context)
    values = {name: result.estimate.value for name, result in found.items()}
    assert values["condensate"] == pytest.approx(records["condensate"].mean())
    assert values["log_determinant_density"] == pytest.approx(records["log_determinant"].mean() / 24)
    eta = records["pion_correlator"].mean(axis=(0, 1)) - 2.0 * records["eta_disconnected"].mean(axis=(0, 1))
    for t in range(4):
        assert values[f"eta_correlator[{t}]"] == pytest.approx(eta[t])
    for name in ("pion_effective_mass[1]", "pion_effective_mass[2]", "eta_effective_mass[1]", "eta_effective_mass[2]"):
        assert values[name] == pytest.approx(0.4)
    series = observable_series(measured, GAUGE_OBSERVABLES, context)
    np.testing.assert_array_equal(series["condensate"], records["condensate"])
    np.testing.assert_allclose(series["topological_susceptibility"], series["topological_charge"] ** 2 / 24)


def test_the_sign_reweights_odd_numbers_of_flavours_only(rng: np.random.Generator) -> None:
    field = random_links(rng, 4, 500, 4, 4)
    sign = np.where(rng.random((4, 500)) < 0.9, 1.0, -1.0)
    records = {"sign_determinant": sign, "condensate": rng.normal(2.0, 1.0, size=(4, 500))}
    measured = measure(links(field, **records), GAUGE_OBSERVABLES)
    reweighted = {f"{name}_sign_reweighted" for name in ("plaquette", "charge_squared", "condensate")}
    for flavours in (0.0, 1.0, 2.0, 3.0):
        context = ObservableContext((4, 4), {"n_flavours": flavours})
        found = estimate_observables(measured, GAUGE_OBSERVABLES, context)
        assert reweighted & set(found) == (reweighted if flavours % 2 else set())
    for name in ("plaquette", "charge_squared", "condensate"):
        estimate = found[f"{name}_sign_reweighted"].estimate
        assert estimate.value == pytest.approx((measured[name] * sign).mean() / sign.mean())
        assert estimate.error > found[name].estimate.error


def test_fields_that_are_no_links_are_refused(rng: np.random.Generator) -> None:
    for field, dimension, internal in (
        (rng.normal(size=(5, 4, 4)), 2, 0),
        (rng.normal(size=(5, 4, 4, 3)), 2, 1),
        (rng.normal(size=(5, 4, 4, 4, 2)), 3, 1),
    ):
        with pytest.raises(SampleShapeError, match="link angles"):
            measure(Configurations(field, dimension, internal=internal), GAUGE_OBSERVABLES)
    for bad in (math.nan, math.inf, 3e17):
        field = random_links(rng, 5, 4, 4)
        field[3, 2, 1, 0] = bad
        with pytest.raises(AnalysisError, match="whole number"), np.errstate(invalid="ignore"):
            topological_charge(links(field))
    assert GAUGE_OBSERVABLES.accepts(random_links(rng, 5, 4, 4))
    assert not GAUGE_OBSERVABLES.accepts(np.zeros((5, 4, 4)))
    assert not GAUGE_OBSERVABLES.accepts(np.zeros((5, 4, 4, 2), dtype=np.int8))


def doubts(charge: Array) -> tuple[str, ...]:
    series = {"charge": charge, "squared": charge**2}
    return sector_doubts(series, series, {name: gamma_method(values) for name, values in series.items()})


def test_sectors_that_hardly_change_are_doubted(rng: np.random.Generator) -> None:
    fresh = rng.integers(-2, 3, size=(4, 300)).astype(np.float64)
    assert doubts(fresh) == ()
    assert sector_doubts(("another",), {}, {}) == ()
    (never,) = doubts(np.array([0.0, 1.0, -1.0, 0.0])[:, None] * np.ones(300))
    assert never.startswith("charge frozen: it changed 0 times in 1200 configurations of 4 chains")
    once = np.zeros((4, 300))
    once[0, 140:] = 1.0
    (rarely,) = doubts(once)
    assert rarely.startswith("charge may be frozen: it changed 1 times")
    (slowly,) = doubts(np.repeat([[0.0, 1.0, -1.0], [1.0, -1.0, 0.0], [-1.0, 0.0, 1.0]], 100, axis=1))
    assert "too short" in slowly
    signs = np.where(rng.random((4, 300)) < 0.5, -1.0, 1.0)
    (other,) = doubts(signs * np.array([0.0, 1.0, 1.0, 2.0])[:, None])  # the sign moves, the modulus never does
    assert other.startswith("squared frozen: it changed 0 times")
    (apart,) = doubts(fresh + np.array([0.0, 0.0, 0.0, 2.0])[:, None])
    assert "the chains disagree" in apart
