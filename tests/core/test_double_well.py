"""The double well: its action, the shape that follows from it, its samples against the transfer matrix."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmc.config import read_run
from flowmc.errors import ConfigError, ParameterError
from flowmc.theories import DoubleWell, from_description
from flowmc.theories.tempered import tempered
from flowmc_analysis.exact_double_well import double_well_exact

MASS = 1.5


def action_written_out(path: list[float], extent: float, mass: float, coupling: float) -> float:
    """S exactly as the paper prints it, site by site."""
    spacing, total = extent / len(path), 0.0
    for i, x in enumerate(path):
        velocity = (x - path[i - 1]) / spacing
        total += spacing * (coupling / 4 * x**4 - mass / 2 * x**2 + mass / 2 * velocity**2)
    return total


@pytest.mark.parametrize("n_sites", [2, 3, 8])
def test_action_is_the_printed_one(n_sites: int, rng: np.random.Generator) -> None:
    theory = DoubleWell(n_sites, 3.0, 1.7, 0.6)
    field = rng.standard_normal((4, n_sites))
    expected = [action_written_out(path, 3.0, 1.7, 0.6) for path in field.tolist()]
    np.testing.assert_allclose(theory.action(field), expected, rtol=1e-13)


def test_two_sites_have_two_links(rng: np.random.Generator) -> None:
    theory = DoubleWell(2, extent=4.0, mass=MASS)
    field = rng.standard_normal((5, 2))
    static = sum(theory.action(np.repeat(field[:, i : i + 1], 2, axis=1)) for i in (0, 1)) / 2
    links = 2 * MASS / (2 * theory.spacing) * (field[:, 0] - field[:, 1]) ** 2
    np.testing.assert_allclose(theory.action(field), static + links, rtol=1e-13)


def test_wells_are_where_nothing_moves() -> None:
    theory = DoubleWell(8, extent=4.0, mass=3.0, coupling=0.5)
    wells = np.array([[0.0], [6**0.5], [-(6**0.5)]]) * np.ones(8)
    np.testing.assert_allclose(theory.force(wells), 0, atol=1e-14)
    np.testing.assert_allclose(theory.action(wells), [0, -18, -18], rtol=1e-14)  # T m²/4λ = 4 · 9/2


def test_shape_follows_from_the_number_of_sites() -> None:
    theory = DoubleWell(16, 4.0, MASS, 1.0)
    assert theory == DoubleWell(16, extent=4.0, mass=MASS) == DoubleWell(16, 4.0, MASS, 1.0, shape=(16,))
    assert (theory.shape, theory.spacing) == ((16,), 0.25)
    stored = json.loads(json.dumps(theory.describe()))
    assert from_description(stored) == theory
    assert from_description({"name": "double_well", "n_sites": 16, "extent": 4.0, "mass": MASS}) == theory
    assert dataclasses.replace(theory, mass=3.0).shape == (16,)
    with pytest.raises(ParameterError, match="leave `shape` out"):
        dataclasses.replace(theory, n_sites=8)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n_sites": 1, "mass": 1.0}, "n_sites = 1"),
        ({"n_sites": 2.5, "mass": 1.0}, "n_sites = 2.5"),
        ({"n_sites": 4, "mass": float("nan")}, "mass = nan"),
        ({"n_sites": 4, "mass": 0.0}, "mass = 0"),
        ({"n_sites": 4, "mass": float("inf")}, "mass = inf"),
        ({"n_sites": 4, "mass": 1.0, "extent": 0.0}, "extent = 0"),
        ({"n_sites": 4, "mass": 1.0, "coupling": -1.0}, "coupling = -1"),
        ({"n_sites": 4, "mass": 1.0, "shape": (2, 2)}, "shape = [2, 2]"),
    ],
)
def test_meaningless_couplings_are_refused(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ParameterError) as caught:
        DoubleWell(**{"extent": 4.0, **arguments})
    assert word in caught.value.got
    assert caught.value.expected
    assert caught.value.fix


def test_run_descriptions_need_no_shape(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[theory]\nname = "double_well"\nn_sites = 16\nextent = 4.0\nmass = 1.5\n')
    assert read_run(path).theory == DoubleWell(16, extent=4.0, mass=MASS)
    path.write_text('[theory]\nname = "double_well"\nn_sites = 16\nextent = 4.0\n')
    with pytest.raises(ConfigError, match="`mass`"):
        read_run(path)


def test_annealing_leads_from_one_well_to_the_theory() -> None:
    theory = DoubleWell(16, extent=4.0, mass=6.0)
    path = [theory.annealed(fraction) for fraction in (0.0, 1e-9, 0.3, 0.9, 1.0)]
    assert path[-1] == theory
    masses = [one.mass for one in path]
    assert masses == sorted(masses)
    # Tunnelling is no longer rare where it begins: the gap is larger than the temperature, and vanishes at the end.
    gaps = [double_well_exact(16, one.extent, one.mass, one.coupling).gap for one in path]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] * theory.extent > 1 > 1e3 * gaps[-1] * theory.extent
    assert tempered(theory, 0.5).homogeneous


def test_two_sites_have_the_moments_of_the_transfer_matrix() -> None:
    # The integral over both sites on a grid, from the action alone.
    theory = DoubleWell(2, extent=1.4, mass=2.0, coupling=0.8)
    grid = np.linspace(-7, 7, 281)
    weight = np.exp(-theory.action(np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)))
    weight = weight.reshape(grid.size, grid.size)
    exact = double_well_exact(2, 1.4, 2.0, 0.8)
    total = weight.sum()
    assert np.log(total * (grid[1] - grid[0]) ** 2) == pytest.approx(exact.log_z, abs=1e-10)
    assert grid**2 @ weight.sum(1) / total == pytest.approx(exact.phi_squared, rel=1e-10)
    assert grid @ weight @ grid / total == pytest.approx(exact.two_point_zero_momentum[1], rel=1e-10)
    mean = np.add.outer(grid, grid) / 2
    assert 2 * np.sum(mean**2 * weight) / total == pytest.approx(exact.susceptibility, rel=1e-10)
