"""The mixture of Gaussians: its density, its components, its starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

from flowmc.config import read_run
from flowmc.errors import ParameterError
from flowmc.theories import GaussianMixture, from_description
from flowmc_analysis.exact_values import exact_values
from flowmc_analysis.observables import Configurations, ObservableContext, measure
from flowmc_analysis.scalar_observables import SCALAR_OBSERVABLES

APART = GaussianMixture(((-6.0, 0.0, 1.0), (6.0, 2.0, 1.0), (0.0, 8.0, -3.0)), (1.0, 0.5, 0.8), (0.2, 0.3, 0.5))
OVERLAPPING = GaussianMixture(((-0.5, 0.0), (1.0, 0.3)), scales=(1.0, 0.7), weights=(1.0, 3.0))


@pytest.mark.parametrize("theory", [APART, OVERLAPPING])
def test_action_is_minus_the_logarithm_of_the_density(theory: GaussianMixture, rng: np.random.Generator) -> None:
    field = 2 * rng.standard_normal((50, *theory.shape))
    density = sum(
        weight * scipy.stats.multivariate_normal(mean, scale**2).pdf(field)
        for mean, scale, weight in zip(theory.means, theory.scales, theory.weights, strict=True)
    )
    np.testing.assert_allclose(theory.action(field), -np.log(density), rtol=1e-11)


def test_partition_function_is_one() -> None:
    grid = np.linspace(-9, 9, 361)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    assert np.exp(-OVERLAPPING.action(points)).sum() * (grid[1] - grid[0]) ** 2 == pytest.approx(1, abs=1e-12)


def test_far_from_all_modes_nothing_overflows() -> None:
    # Here every density is 0 in float64; the nearest component is what is left, its force linear.
    point = np.array([[-1e4, 0.0, 1.0]])
    nearest = (1e4 - 6) ** 2 / 2 + 1.5 * np.log(2 * np.pi) - np.log(0.2)
    np.testing.assert_allclose(APART.action(point), nearest, rtol=1e-14)
    np.testing.assert_allclose(APART.force(point), [[1e4 - 6, 0, 0]], rtol=1e-14)
    leaf = torch.tensor(point, requires_grad=True)
    (gradient,) = torch.autograd.grad(APART.action(leaf).sum(), leaf)
    np.testing.assert_allclose(-gradient.numpy(), APART.force(point), rtol=1e-12)
    by_jax = jax.jit(jax.grad(lambda x: APART.action(x).sum()))(jnp.asarray(point))
    np.testing.assert_allclose(-by_jax, APART.force(point), rtol=1e-12)


def test_single_precision_loses_the_rounding_of_its_field_alone(rng: np.random.Generator) -> None:
    field = (5 * rng.standard_normal((20, 3))).astype(np.float32)
    np.testing.assert_array_equal(APART.action(field), APART.action(field.astype(np.float64)))


def test_normalising_twice_changes_nothing(rng: np.random.Generator) -> None:
    for _ in range(200):
        weights = tuple(rng.uniform(0.01, 1, size=7))
        theory = GaussianMixture(tuple((float(k), 0.0) for k in range(7)), (1.0,) * 7, weights)
        assert sum(theory.weights) == pytest.approx(1, abs=1e-15)
        assert from_description(json.loads(json.dumps(theory.describe()))) == theory


@pytest.mark.parametrize("theory", [APART, OVERLAPPING])
def test_draws_have_the_exact_values(theory: GaussianMixture, rng: np.random.Generator) -> None:
    n = 20000
    field = theory.draw(rng, n)
    arrays = {name: np.array(getattr(theory, name)) for name in ("means", "scales", "weights")}
    exact = exact_values("gaussian_mixture", ObservableContext(theory.shape, {}, arrays))
    measured = measure(Configurations(field, 1, theory.action(field)), SCALAR_OBSERVABLES)
    observers = theory.observers()
    series = {
        **{name: measured[name] for name in ("magnetisation", "magnetisation_abs", "phi_squared", "phi_fourth")},
        "susceptibility": field.shape[1] * measured["magnetisation_squared"],
        **{name: observers[name](field) for name in exact if name.startswith("component_")},
    }
    for name, values in series.items():
        assert abs(values.mean() - exact[name]) < 5 * values.std() / np.sqrt(n), name
    squared, fourth = measured["magnetisation_squared"].mean(), measured["magnetisation_fourth"].mean()
    assert 1 - fourth / (3 * squared**2) == pytest.approx(exact["binder_cumulant"], abs=0.03)
    assert set(series) | {"binder_cumulant", "ln_z"} == set(exact)
    assert sum(exact[f"component_{k + 1}"] for k in range(len(theory.weights))) == pytest.approx(1)
    virial = theory.virial(field)
    assert abs(virial.mean() - theory.volume) < 5 * virial.std() / np.sqrt(n)


def test_components_are_told_apart_where_they_are_apart(rng: np.random.Generator) -> None:
    component = rng.integers(0, 3, size=100)
    field = np.array(APART.means)[component] + 0.1 * rng.standard_normal((100, 3))
    observers = APART.observers()
    np.testing.assert_array_equal(observers["component"](field), component + 1)
    for k in range(3):
        np.testing.assert_allclose(observers[f"component_{k + 1}"](field), component == k, atol=1e-6)


def test_only_modes_label_sectors() -> None:
    assert GaussianMixture(((0.0, 1.0),), (1.0,), (1.0,)).observers() == {}
    # The lesser of two components with one centre is most probable nowhere near it.
    same = GaussianMixture(((0.0, 1.0), (0.0, 1.0)), scales=(1.0, 2.0), weights=(0.5, 0.5))
    assert list(same.observers()) == ["component_1", "component_2"]


def test_hot_starts_cover_the_modes_wherever_they_are(rng: np.random.Generator) -> None:
    away = GaussianMixture(((96.0, 100.0), (104.0, 100.0)), scales=(1.0, 1.0), weights=(0.5, 0.5))
    field = away.start(rng, 4000, "hot")
    variance = 1 + 16 / 2  # of each coordinate, on average over both
    np.testing.assert_allclose(field.mean(axis=0), [100, 100], atol=5 * np.sqrt(variance / 4000))
    assert field.var(axis=0).mean() == pytest.approx(variance, rel=0.1)
    np.testing.assert_array_equal(away.start(rng, 2, "cold"), np.zeros((2, 2)))
    with pytest.raises(ParameterError, match="warm"):
        away.start(rng, 2, "warm")


def test_run_descriptions_have_arrays(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        '[theory]\nname = "gaussian_mixture"\nmeans = [[-0.5, 0], [1, 0.3]]\nscales = [1, 0.7]\nweights = [1, 3]\n'
    )
    assert read_run(path).theory == OVERLAPPING


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (((), (), ()), "0 means"),
        ((((0.0, 1.0),), (1.0, 1.0), (1.0,)), "1 means, 2 scales"),
        ((((0.0, 1.0), (0.0, 1.0, 2.0)), (1.0, 1.0), (1.0, 1.0)), "means = [[0.0, 1.0], [0.0"),
        ((((0.0,), (1.0,)), (1.0, 1.0), (1.0, 1.0)), "means = [[0.0], [1.0]]"),
        ((((0.0, float("nan")),), (1.0,), (1.0,)), "nan"),
        ((((0.0, 1.0),), (0.0,), (1.0,)), "scales = [0.0]"),
        ((((0.0, 1.0),), (1.0,), (-1.0,)), "weights = [-1.0]"),
        ((((0.0, 1.0),), (1.0,), (float("inf"),)), "weights = [inf]"),
        ((((0.0, 1.0),), (1.0,), (1.0,), (3,)), "shape = [3]"),
    ],
)
def test_meaningless_mixtures_are_refused(arguments: tuple[Any, ...], word: str) -> None:
    with pytest.raises(ParameterError) as caught:
        GaussianMixture(*arguments)
    assert word in caught.value.got
    assert caught.value.expected
    assert caught.value.fix
