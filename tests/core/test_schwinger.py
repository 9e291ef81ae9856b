"""The Schwinger model: its action, its observables, and expectation values from exact draws of the links."""

from __future__ import annotations

import numpy as np
import pytest

from flowmc.testing import schwinger_draws, u1_draws
from flowmc.theories import Schwinger, U1Gauge2D
from flowmc.theories.schwinger import FERMION_OBSERVABLES, condensate, eta_disconnected, pion_correlator
from flowmc.theories.u1 import plaquette_angles
from flowmc.theories.wilson import dirac_matrix, log_determinant, propagator
from flowmc_analysis.zscores import judge, z_score

THEORY = Schwinger((4, 4), 2.0, 0.276)


@pytest.mark.parametrize("n_flavours", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 4), (3, 4)], ids=str)
def test_weight_is_the_power_of_the_determinant(
    shape: tuple[int, int], n_flavours: int, rng: np.random.Generator
) -> None:
    theory = Schwinger(shape, 1.3, 0.25, n_flavours)
    field = theory.start(rng, 4, "hot")
    gauge = np.exp(1.3 * np.cos(plaquette_angles(field)).sum((1, 2)))
    determinant = np.linalg.det(dirac_matrix(field, 0.25)).real
    expected = gauge * np.abs(determinant) ** n_flavours
    np.testing.assert_allclose(np.exp(-theory.action(field)), expected, rtol=1e-10)
    np.testing.assert_array_equal(theory.sign_determinant(field), np.sign(determinant))


def test_without_hopping_it_is_u1(rng: np.random.Generator) -> None:
    theory, gauge = Schwinger((4, 6), 1.7, 0.0), U1Gauge2D((4, 6), 1.7)
    field = theory.start(rng, 3, "hot")
    np.testing.assert_allclose(theory.action(field), gauge.action(field), rtol=1e-14)
    np.testing.assert_allclose(theory.force(field), gauge.force(field), rtol=1e-13)


def test_annealing_scales_both_couplings() -> None:
    assert THEORY.annealed(0.5) == Schwinger((4, 4), 1.0, 0.138)
    assert THEORY.annealed(1.0) == THEORY


@pytest.mark.parametrize("shape", [(4, 2), (3, 4)], ids=str)
def test_observables_are_the_printed_sums(shape: tuple[int, int], rng: np.random.Generator) -> None:
    theory = Schwinger(shape, 2.0, 0.25)
    field = theory.start(rng, 2, "hot")
    inverse = propagator(field, 0.25)
    times, spaces = range(shape[0]), range(shape[1])
    found = theory.fermion_observables(field)
    for i in range(2):
        loops = [sum(inverse[i, t, x, 0, t, x, 0] - inverse[i, t, x, 1, t, x, 1] for x in spaces).real for t in times]
        trace = sum(inverse[i, t, x, s, t, x, s] for t in times for x in spaces for s in (0, 1))
        assert found["condensate"][i] == pytest.approx(trace.real / theory.volume, rel=1e-12)
        for t in times:
            pion = sum(
                (np.abs(inverse[i, (start + t) % shape[0], x, :, start, y, :]) ** 2).sum()
                for start in times
                for x in spaces
                for y in spaces
            )
            assert found["pion_correlator"][i, t] == pytest.approx(pion / theory.volume, rel=1e-12)
            eta = sum(loops[start] * loops[(start + t) % shape[0]] for start in times)
            assert found["eta_disconnected"][i, t] == pytest.approx(eta / theory.volume, abs=1e-12)


def test_loops_of_gamma5_are_real(rng: np.random.Generator) -> None:
    inverse = propagator(THEORY.start(rng, 3, "hot"), THEORY.kappa)
    diagonal = np.einsum("ntxstxs->ntxs", inverse)
    np.testing.assert_allclose((diagonal[..., 0] - diagonal[..., 1]).imag, 0, atol=1e-12)


def test_condensate_is_a_slope_of_the_determinant(rng: np.random.Generator) -> None:
    # d ln det D / dκ = −tr(H D⁻¹), where κ H = 1 − D: that is (2V − tr D⁻¹) / κ.
    field, step = THEORY.start(rng, 4, "hot"), 1e-6
    above, below = (log_determinant(field, THEORY.kappa + sign * step)[0] for sign in (1, -1))
    slope = (above - below) / (2 * step)
    found = condensate(propagator(field, THEORY.kappa)) * THEORY.volume
    np.testing.assert_allclose(found, 2 * THEORY.volume - THEORY.kappa * slope, rtol=1e-7)


def test_pion_correlator_of_free_fermions_is_a_sum_over_momenta() -> None:
    shape, kappa = (6, 4), 0.2
    time = 2 * np.pi * (np.arange(6)[:, None] + 0.5) / 6
    space = 2 * np.pi * np.arange(4) / 4
    scalar = 1 - 2 * kappa * (np.cos(time) + np.cos(space))
    square = scalar**2 + 4 * kappa**2 * (np.sin(time) ** 2 + np.sin(space) ** 2)
    # D⁻¹(p) = [a(p) − 2iκ Σ γ sin p] / (a² + 4κ² Σ sin²): for each spatial momentum, its transform in time.
    wave = np.exp(1j * np.arange(6)[:, None] * time[:, 0]) / 6
    parts = [scalar / square, 2 * kappa * np.sin(time) / square, 2 * kappa * np.sin(space) / square]
    expected = sum(2 * (np.abs(wave @ part) ** 2).sum(1) for part in parts)
    found = pion_correlator(propagator(np.zeros((1, *shape, 2)), kappa))[0]
    # All sources are alike, and the sum over the sinks of one is, by Parseval, the mean over spatial momenta.
    np.testing.assert_allclose(found, expected / shape[1], rtol=1e-11)
    assert eta_disconnected(propagator(np.zeros((1, *shape, 2)), kappa)) == pytest.approx(0, abs=1e-20)


def test_observers_share_their_work(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    measure = Schwinger.fermion_observables

    def counted(theory: Schwinger, field: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(len(field))
        return measure(theory, field)

    monkeypatch.setattr(Schwinger, "fermion_observables", counted)
    batches = [THEORY.start(rng, 2, "hot") for _ in range(3)]
    observers = THEORY.observers()
    assert tuple(observers) == FERMION_OBSERVABLES
    measured = [{name: observer(batch) for name, observer in observers.items()} for batch in batches]
    assert calls == [2, 2, 2]
    for batch, found in zip(batches, measured, strict=True):
        for name, expected in measure(THEORY, batch).items():
            np.testing.assert_array_equal(found[name], expected)


def test_reweighted_exact_draws_have_the_known_averages(rng: np.random.Generator) -> None:
    # Reference values of a separate program (exact quenched sampling too), with their errors.
    field = u1_draws(U1Gauge2D(THEORY.shape, THEORY.beta), rng, 16000)
    log_modulus, sign = log_determinant(field, THEORY.kappa)
    weight = np.exp(2 * log_modulus)
    assert (sign < 0).any()
    plaquette = np.cos(plaquette_angles(field)).mean((1, 2))
    mean = weight.mean()
    scores = [
        z_score("ln <det^2>", np.log(mean), 2.8948, np.hypot(weight.std() / mean / np.sqrt(len(field)), 0.0023)),
    ]
    average = (weight * plaquette).mean() / mean
    error = (weight * (plaquette - average)).std() / mean / np.sqrt(len(field))
    scores.append(z_score("cos P", average, 0.76287, np.hypot(error, 0.00024)))
    assert judge(scores, level=1e-5).passed, scores


def test_link_slopes_vanish_on_average(rng: np.random.Generator) -> None:
    theory = Schwinger((4, 4), 2.0, 0.2)
    slopes = theory.gauge_identity(schwinger_draws(theory, rng, 4000))
    score = z_score("link_slopes", slopes.mean(), 0.0, slopes.std() / np.sqrt(len(slopes)))
    assert judge([score], level=1e-5).passed, score
