"""Export to ArviZ: the same groups for 0.x and 1.x, in the names and units of its schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray

from flowmc_analysis import arviz_export
from flowmc_analysis.ensemble import analyze
from flowmc_analysis.production import read_production
from flowmc_ensembles import Ensemble


@pytest.fixture(params=["installed", "1.3.0"])
def exported(request: pytest.FixtureRequest, ensembles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hybrid ensemble in the container of the installed ArviZ and in that of ArviZ 1."""
    if request.param != "installed":
        monkeypatch.setattr(arviz_export, "_import_arviz", lambda: SimpleNamespace(__version__=request.param))
    return arviz_export.to_arviz(ensembles["hybrid"])


def test_groups_and_dimensions(exported: Any) -> None:
    for group in ("posterior", "sample_stats"):
        assert dict(exported[group].sizes) == {"chain": 8, "draw": 380}
    assert {"susceptibility", "action_density"} <= set(exported["posterior"].data_vars)
    assert {"lp", "acceptance_rate", "energy_error", "diverging"} == set(exported["sample_stats"].data_vars)


def test_values_are_those_of_the_file(exported: Any, ensembles: Mapping[str, Path]) -> None:
    stream = Ensemble(ensembles["hybrid"]).streams[0]
    stats = exported["sample_stats"]
    action = np.asarray(stream.configurations("action"))[20:].T
    np.testing.assert_allclose(stats["lp"].values, -action)
    # Cycles are one trajectory and two flow proposals; rows 60, 61, 62 belong to the first draw.
    accepted = np.asarray(stream.history("accepted"))[60:].reshape(380, 3, 8)
    np.testing.assert_allclose(stats["acceptance_rate"].values, accepted.mean(axis=1).T)
    np.testing.assert_allclose(stats["energy_error"].values, np.asarray(stream.history("delta_H"))[60::3].T)
    assert not stats["diverging"].values.any()
    np.testing.assert_array_equal(exported["posterior"]["update"].values, np.asarray(stream.trajectory)[20:])


def test_energy_error_is_that_of_the_last_trajectory(ensembles: Mapping[str, Path]) -> None:
    """The HMC ensemble has two trajectories between draws."""
    stats = arviz_export.to_datasets(read_production(ensembles["hmc"]))["sample_stats"]
    delta_h = np.asarray(Ensemble(ensembles["hmc"]).streams[0].history("delta_H"))
    np.testing.assert_allclose(stats["energy_error"].values, delta_h[41::2].T)


def test_container_follows_the_major_version(ensembles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(__version__="0.23.4", InferenceData=lambda **groups: ("inference data", sorted(groups)))
    monkeypatch.setattr(arviz_export, "_import_arviz", lambda: old)
    assert arviz_export.to_arviz(ensembles["flow"]) == ("inference data", ["posterior", "sample_stats"])
    monkeypatch.setattr(arviz_export, "_import_arviz", lambda: SimpleNamespace(__version__="1.0"))
    tree = arviz_export.to_arviz(ensembles["flow"])
    assert isinstance(tree, xarray.DataTree)
    assert "energy_error" not in tree["sample_stats"].data_vars


def test_tree_survives_netcdf(ensembles: Mapping[str, Path], tmp_path: Path) -> None:
    tree = arviz_export.to_data_tree(arviz_export.to_datasets(read_production(ensembles["hmc"])))
    tree.to_netcdf(tmp_path / "hmc.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "hmc.nc", engine="h5netcdf") as loaded:
        xarray.testing.assert_equal(loaded["posterior"].to_dataset(), tree["posterior"].to_dataset())


def test_effective_samples_convert_to_autocorrelation_times(
    ensembles: Mapping[str, Path], rng: np.random.Generator
) -> None:
    """AR(1) with known time: N / (2 ESS) is tau_int in the convention in which white noise has one half."""
    analysis = analyze(ensembles["hmc"])
    tau = 4.5
    decay = (2.0 * tau - 1.0) / (2.0 * tau + 1.0)
    chains = np.empty((4, 5000))
    chains[:, 0] = rng.normal(size=4)
    for i in range(1, 5000):
        chains[:, i] = decay * chains[:, i - 1] + np.sqrt(1.0 - decay**2) * rng.normal(size=4)
    analysis = dataclasses.replace(analysis, series={"ar1": chains})
    (entry,) = arviz_export.chain_diagnostics(analysis)
    # The error of the Gamma-method for this length (Wolff's formula) is about 4 %; ArviZ's window is wider.
    assert entry.tau_int_bulk == pytest.approx(tau, rel=0.2)
    assert entry.r_hat == pytest.approx(1.0, abs=0.02)


def test_single_chain_has_no_r_hat(ensembles: Mapping[str, Path], rng: np.random.Generator) -> None:
    analysis = dataclasses.replace(analyze(ensembles["hmc"]), series={"noise": rng.normal(size=(1, 500))})
    (entry,) = arviz_export.chain_diagnostics(analysis)
    assert np.isnan(entry.r_hat)
    assert entry.ess_bulk > 0.0
