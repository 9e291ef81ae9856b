"""The double well: the transfer matrix against another program, quadrature, the continuum; mixtures and their sectors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from flowmc_analysis.doubts import exact_doubts, sector_doubts
from flowmc_analysis.ensemble import EnsembleAnalysis, analyze
from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.exact import phi4_exact
from flowmc_analysis.exact_double_well import double_well_exact
from flowmc_analysis.exact_values import exact_values
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.observables import ObservableContext, effective_mass
from flowmc_analysis.zscores import judge, z_score
from flowmc_ensembles.descriptions import EnsembleDescription, StreamDescription
from flowmc_ensembles.writer import EnsembleWriter

Array = npt.NDArray[np.float64]

CASES = [(2, 4.0, 1.5, 1.0), (16, 4.0, 1.5, 1.0), (64, 4.0, 3.0, 0.5), (16, 4.0, 6.0, 1.0), (3, 0.4, 0.1, 30.0)]


@pytest.mark.parametrize(
    ("mass", "n_sites", "log_z", "phi_squared", "phi_fourth"),
    [
        (1.5, 4, 3.65815370, 1.06521700, 1.99291129),
        (1.5, 8, 3.66639013, 1.02585324, 1.97479770),
        (1.5, 16, 1.05092446, 1.01283913, 1.97140201),
        (1.5, 32, -9.67801333, 1.00922572, 1.97078485),
        (3.0, 4, 8.64911823, 2.77654165, 8.87192554),
        (3.0, 8, 7.23249590, 2.74640040, 8.85359670),
        (3.0, 16, 1.83444240, 2.73650827, 8.84889103),
        (3.0, 32, -14.44209426, 2.73381000, 8.84776192),
        (6.0, 16, 23.19023488, 5.88042779, 35.97042122),
    ],
)
def test_values_by_another_program(
    mass: float, n_sites: int, log_z: float, phi_squared: float, phi_fourth: float
) -> None:
    solution = double_well_exact(n_sites, 4.0, mass, 1.0)
    assert solution.log_z == pytest.approx(log_z, abs=6e-9)
    assert solution.phi_squared == pytest.approx(phi_squared, abs=6e-9)
    assert solution.phi_fourth == pytest.approx(phi_fourth, abs=6e-9)


def test_log_z_of_a_long_lattice_by_another_program() -> None:
    assert double_well_exact(64, 4.0, 1.5, 1.0).log_z == pytest.approx(-42.21313044, abs=6e-9)


@pytest.mark.parametrize("case", CASES)
def test_a_finer_and_wider_grid_changes_nothing(case: tuple[int, float, float, float]) -> None:
    solution, finer = double_well_exact(*case), double_well_exact(*case, refinement=1.6)
    assert solution.log_z == pytest.approx(finer.log_z, rel=1e-12, abs=1e-12)
    for name in ("phi_squared", "phi_fourth", "action_density", "susceptibility", "two_point_zero_momentum"):
        np.testing.assert_allclose(getattr(solution, name), getattr(finer, name), rtol=1e-11, err_msg=name)
    np.testing.assert_allclose(solution.energies[:4], finer.energies[:4], rtol=1e-8)


@pytest.mark.parametrize("case", [(2, 4.0, 1.5, 1.0), (4, 4.0, 1.5, 1.0), (5, 6.0, 0.7, 2.0), (3, 0.4, 0.1, 30.0)])
def test_agrees_with_phi4_of_one_dimension(case: tuple[int, float, float, float]) -> None:
    """The same theory in the convention of φ⁴, solved on Gauss nodes: φ = x √(m / 2Δ)."""
    n_sites, extent, mass, coupling = case
    spacing = extent / n_sites
    square = 2.0 * spacing / mass  # x² / φ²
    other = phi4_exact((n_sites,), -(spacing**2), 0.25 * spacing * coupling * square**2, nodes=60)
    solution = double_well_exact(*case)
    assert solution.log_z == pytest.approx(other.log_z + 0.5 * n_sites * math.log(square), abs=1e-9)
    assert solution.phi_squared == pytest.approx(square * other.phi_squared, rel=1e-9)
    assert solution.phi_fourth == pytest.approx(square**2 * other.phi_fourth, rel=1e-9)
    assert solution.action_density == pytest.approx(other.action_density, rel=1e-9)
    np.testing.assert_allclose(
        solution.two_point_zero_momentum, square * other.two_point_zero_momentum, rtol=1e-9, atol=1e-12
    )


def test_action_density_is_a_derivative() -> None:
    # ln Z of couplings and kinetic term scaled by 1 + ε: m → m (1 + ε), λ → λ (1 + ε) scale the whole action.
    step = 1e-4
    up, down = (double_well_exact(8, 4.0, 1.5 * scale, scale).log_z for scale in (1 + step, 1 - step))
    density = double_well_exact(8, 4.0, 1.5, 1.0).action_density
    assert -(up - down) / (2 * step) / 8 == pytest.approx(density, rel=1e-6)


@pytest.mark.parametrize(
    ("mass", "energies"),
    [
        (1.5, (-0.11007391, 0.23299121, 1.13297678, 2.12940173)),
        (3.0, (-1.57484182, -1.57279111, -0.43181515, -0.33646120)),
    ],
)
def test_energies_are_those_of_the_continuum_to_second_order(mass: float, energies: tuple[float, ...]) -> None:
    coarse, middle, fine = (double_well_exact(n, 4.0, mass, 1.0).energies[:4] for n in (32, 64, 128))
    np.testing.assert_allclose((coarse - middle) / (middle - fine), 4.0, atol=0.04)  # order 2
    first, second = middle + (middle - coarse) / 3, fine + (fine - middle) / 3
    np.testing.assert_allclose(second + (second - first) / 15, energies, atol=1.2e-8)


@pytest.mark.parametrize("case", CASES)
def test_correlator_is_symmetric_and_sums_to_the_susceptibility(case: tuple[int, float, float, float]) -> None:
    solution = double_well_exact(*case)
    correlator = solution.two_point_zero_momentum
    assert correlator.shape == (case[0],)
    np.testing.assert_allclose(correlator[1:], correlator[:0:-1], rtol=1e-12)
    assert correlator.sum() == pytest.approx(solution.susceptibility, rel=1e-13)
    assert correlator[0] == pytest.approx(solution.phi_squared, rel=1e-12)


def test_effective_mass_is_the_gap_where_time_is_long() -> None:
    solution = double_well_exact(240, 60.0, 1.5, 1.0)
    masses = effective_mass(solution.two_point_zero_momentum)
    assert masses[79] / 0.25 == pytest.approx(solution.gap, rel=1e-7)


def test_what_cannot_be_solved_is_refused() -> None:
    for arguments in ((1, 4.0, 1.5, 1.0), (8, 0.0, 1.5, 1.0), (8, 4.0, math.nan, 1.0), (8, 4.0, 1.5, -1.0)):
        with pytest.raises(AnalysisError, match="positive"):
            double_well_exact(*arguments)
    with pytest.raises(AnalysisError, match="fewer sites"):
        double_well_exact(4096, 4.0, 6.0, 1.0)


def test_exact_values_of_the_double_well() -> None:
    context = ObservableContext((16,), {"n_sites": 16.0, "extent": 4.0, "mass": 3.0, "coupling": 1.0})
    exact, solution = exact_values("double_well", context), double_well_exact(16, 4.0, 3.0, 1.0)
    assert exact["magnetisation"] == 0.0
    assert exact["ln_z"] == solution.log_z
    for name in ("susceptibility", "phi_squared", "phi_fourth", "action_density"):
        assert exact[name] == getattr(solution, name)
    assert [name for name in exact if name.startswith("effective_mass")] == [
        f"effective_mass[{t}]" for t in (1, 2, 4, 8)
    ]
    short = exact_values("double_well", ObservableContext((2,), context.couplings))
    assert [name for name in short if name.startswith("effective_mass")] == ["effective_mass[1]"]


@pytest.mark.parametrize(("signs", "doubted"), [((1,) * 8, True), ((1, -1, 1, -1, 1, 1, -1, 1), False)])
def test_chains_that_all_stay_in_one_well_are_doubted(
    signs: tuple[int, ...], doubted: bool, rng: np.random.Generator
) -> None:
    estimate = gamma_method(np.array(signs)[:, None] * rng.normal(1.7, 0.1, (8, 400))).estimate
    exact = exact_values("double_well", ObservableContext((16,), {"extent": 4.0, "mass": 3.0, "coupling": 1.0}))
    score = z_score("magnetisation", estimate.value, exact["magnetisation"], estimate.error)
    assert bool(exact_doubts([score])) == doubted


MEANS, SCALES, WEIGHTS = np.array([[-3.0, 0.0, 1.0], [3.0, 2.0, 1.0]]), np.array([1.0, 0.5]), np.array([0.25, 0.75])


def mixture_analysis(path: Path, rng: np.random.Generator, *, frozen: bool) -> EnsembleAnalysis:
    """An ensemble of independent draws of a mixture, or of its first component alone, as a run records it."""
    n, chains = 500, 4
    component = np.zeros((n, chains), int) if frozen else rng.choice(2, size=(n, chains), p=WEIGHTS)
    field = MEANS[component] + SCALES[component][..., None] * rng.normal(size=(n, chains, 3))
    away = MEANS - field[..., None, :]
    terms = WEIGHTS * np.exp(-0.5 * (away**2).sum(-1) / SCALES**2) / (2 * np.pi * SCALES**2) ** 1.5
    posterior = terms / terms.sum(-1, keepdims=True)
    force = ((posterior / SCALES**2)[..., None] * away).sum(-2)
    action = {
        "name": "gaussian_mixture",
        "shape": [3],
        "means": MEANS.tolist(),
        "scales": SCALES.tolist(),
        "weights": WEIGHTS.tolist(),
    }
    stream = StreamDescription(
        seed=1,
        algorithm="draws",
        algorithm_parameters={},
        n_chains=chains,
        field_name="phi",
        field_dtype=np.dtype(np.float64),
        thermalisation_updates=0,
        freeze_update=0,
        proposal_kinds={0: "hmc"},
    )
    absent = np.full((n, chains), np.nan)
    values = -np.log(terms.sum(-1))
    updates = np.arange(1, n + 1)
    with EnsembleWriter.create(
        path, EnsembleDescription("gaussian_mixture", action, (3,), "S = -ln p"), stream
    ) as writer:
        writer.append(
            trajectory=updates,
            configurations={"phi": field, "action": values},
            history={
                "update": updates,
                "proposal_kind": np.zeros(n, np.uint8),
                "accepted": np.ones((n, chains), np.uint8),
                "walltime": np.full(n, 1e-3),
                "delta_H": np.zeros((n, chains)),
                "log_weight": absent,
                "log_weight_current": absent,
                "action": values,
            },
            observables={
                "virial": -(field * force).sum(-1),
                "component": 1.0 + posterior.argmax(-1),
                "component_1": posterior[..., 0],
                "component_2": posterior[..., 1],
            },
            checkpoint={"update": n},
        )
    return analyze(path)


def test_a_mixture_is_held_against_its_own_moments(tmp_path: Path, rng: np.random.Generator) -> None:
    analysis = mixture_analysis(tmp_path / "mixture.h5", rng, frozen=False)
    exact = {score.name: score for score in analysis.exact}
    assert {"magnetisation", "phi_squared", "phi_fourth", "binder_cumulant", "component_1", "component_2"} <= set(exact)
    assert exact["magnetisation"].expected == pytest.approx(0.25 * (-2 / 3) + 0.75 * 2)
    assert exact["component_2"].expected == 0.75
    assert judge(exact.values()).passed
    assert analysis.doubts == ()
    assert not any(name.startswith(("effective_mass", "correlation_length")) for name in analysis.observables)
    assert not any("NaN" in warning for warning in analysis.warnings)


def test_chains_in_one_component_are_doubted(tmp_path: Path, rng: np.random.Generator) -> None:
    analysis = mixture_analysis(tmp_path / "frozen.h5", rng, frozen=True)
    frozen, missed = analysis.doubts
    assert "component frozen" in frozen
    assert "magnetisation (z" in missed
    assert sector_doubts(("component",), {}, {}) == ()
