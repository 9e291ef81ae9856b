"""The command line with U(1) gauge theory: every kernel, exact values, resumption, what is refused before a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flowmc.cli import app
from flowmc.config import read_run
from flowmc.flows import GaugeFlow, build_flow, load_flow
from flowmc.theories import U1Gauge2D
from flowmc.theories.spaces import wrapped
from flowmc.theories.u1 import plaquette_angles
from flowmc_analysis.exact_u1 import u1_exact
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.zscores import judge, z_score
from flowmc_ensembles import Ensemble

Command = Callable[..., Any]

THEORY = U1Gauge2D((4, 4), 1.5)
KERNELS = ("hybrid", "flow", "hmc", "metropolis")

SMALL_RUN = """
[theory]
name = "u1"
shape = [4, 4]
beta = 1.5

[flow]
kind = "gauge"
layers = 8
hidden = [4]
transformation = "projection"
pieces = 1

[training]
objective = "path_gradient"
steps = 60
batch_size = 64
learning_rate = 0.02
warmup_steps = 5
seed = 1
checkpoint_every = 20
threads = 1

[sampling]
seed = 3
chains = 8
cycles = 200
thermalisation = 40
tuning = 20
cycles_per_block = 20
flow_proposals = 2

[baseline]
kernels = ["flow", "hmc", "metropolis"]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished_u1")
    (folder / "u1.toml").write_text(SMALL_RUN)
    outcome = CliRunner().invoke(app, ["run", str(folder / "u1.toml"), "--output", str(folder / "out")])
    assert outcome.exit_code == 0, outcome.output
    return folder


@pytest.fixture
def u1_config(tmp_path: Path) -> Path:
    path = tmp_path / "u1.toml"
    path.write_text(SMALL_RUN)
    return path


def edited(config: Path, *changes: tuple[str, str]) -> Path:
    text = config.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    return config


def kernel(name: str) -> tuple[str, str]:
    return ("[sampling]", f'[sampling]\nkernel = "{name}"')


class TestRun:
    def test_leaves_everything_a_user_wants(self, finished: Path) -> None:
        out = finished / "out"
        names = {item.name for item in out.iterdir()}
        assert {"flow.safetensors", "report.html", "analysis.json", *(f"{name}.h5" for name in KERNELS)} <= names
        analysis = json.loads((out / "analysis.json").read_text())
        assert analysis["consistent"]
        assert analysis["comparison"]["labels"] == list(KERNELS)
        assert analysis["exact"]["ln_z"]["exact"] == pytest.approx(u1_exact((4, 4), 1.5).log_z)
        report = (out / "report.html").read_text()
        for word in ("plaquette", "topological_susceptibility", "polyakov_loop", "ln_z"):
            assert word in report
        assert "<script" not in report

    @pytest.mark.parametrize("name", KERNELS)
    def test_ensembles_hold_links_and_say_how_they_were_made(self, name: str, finished: Path) -> None:
        ensemble = Ensemble(finished / "out" / f"{name}.h5")
        stream = ensemble.streams[0]
        assert ensemble.description.theory == "u1"
        assert ensemble.description.action == THEORY.describe()
        assert stream.description.field_name == "angle"
        assert stream.description.internal_axes == ("mu",)
        field = stream.configurations()
        assert field.shape == (200, 8, 4, 4, 2)
        assert field.dtype == np.float64
        assert np.abs(field).max() <= pi
        kinds = "hmc+flow" if name == "hybrid" else name
        assert list(stream.description.proposal_kinds.values()) == kinds.split("+")
        assert (stream.description.flow_sha256 != "") == ("flow" in kinds)
        np.testing.assert_allclose(
            np.asarray(stream.observable("link_slopes"), dtype=np.float64),
            THEORY.identities()["link_slopes"](field.reshape(-1, 4, 4, 2)).reshape(200, 8),
            rtol=1e-10,
            atol=1e-10,
        )

    @pytest.mark.parametrize("name", KERNELS)
    def test_every_ensemble_has_the_exact_values(self, name: str, finished: Path) -> None:
        exact = u1_exact((4, 4), 1.5)
        plaquettes = plaquette_angles(Ensemble(finished / "out" / f"{name}.h5").streams[0].configurations())
        charge = wrapped(plaquettes).sum(axis=(-2, -1)) / (2 * pi)
        known = {
            "plaquette": (np.cos(plaquettes).mean(axis=(-2, -1)), exact.plaquette),
            "charge": (charge, 0.0),
            "charge_squared": (charge**2, exact.charge_squared),
        }
        scores = []
        for label, (series, value) in known.items():
            estimate = gamma_method(series.T).estimate
            scores.append(z_score(label, estimate.value, value, estimate.error))
        assert judge(scores, level=1e-4).passed, scores

    def test_other_commands(self, finished: Path, flowmc: Command) -> None:
        out = finished / "out"
        certificate = json.loads(flowmc("certify", out / "flow.safetensors", "--json").stdout)
        assert certificate["passed"]
        names = {check["name"] for check in certificate["checks"]}
        assert {"draws against their density", "log-determinant against the full Jacobian"} <= names
        summary = flowmc("inspect", out / "hybrid.h5", "--json", "--verify")
        assert summary.exit_code == 0
        assert json.loads(summary.stdout)["theory"] == "u1"
        compared = flowmc("compare", out / "hmc.h5", out / "metropolis.h5", "--json")
        assert compared.exit_code == 0, compared.output
        analysed = flowmc("analyze", out / "flow.h5", "--json")
        assert analysed.exit_code == 0, analysed.output
        observables = set(json.loads(analysed.stdout)["observables"])
        assert {"plaquette", "wilson_loop_2x2", "topological_susceptibility", "polyakov_loop"} <= observables


class TestResume:
    @pytest.mark.parametrize("name", ["hybrid", "metropolis", "hmc"])
    def test_extension_equals_the_longer_run(
        self, name: str, finished: Path, tmp_path: Path, flowmc: Command, u1_config: Path
    ) -> None:
        flow = ("--flow", finished / "out" / "flow.safetensors") if name == "hybrid" else ()
        config = edited(u1_config, kernel(name), ("thermalisation = 40", "thermalisation = 20"))
        cycles = "200"
        for wanted, output in (("60", "whole.h5"), ("20", "parts.h5"), ("60", "parts.h5")):
            edited(config, (f"cycles = {cycles}\n", f"cycles = {wanted}\n"))
            cycles = wanted
            outcome = flowmc("sample", config, *flow, "--output", output, "--resume")
            assert outcome.exit_code == 0, outcome.output
        one, other = (Ensemble(tmp_path / output).streams[0] for output in ("whole.h5", "parts.h5"))
        np.testing.assert_array_equal(one.configurations(), other.configurations())
        np.testing.assert_array_equal(one.observable("link_slopes"), other.observable("link_slopes"))
        for column in set(one.history_names) - {"walltime"}:
            np.testing.assert_array_equal(one.history(column), other.history(column), err_msg=column)

    def test_stopped_training_resumes_to_the_same_flow(
        self, finished: Path, tmp_path: Path, flowmc: Command, u1_config: Path
    ) -> None:
        stopped = flowmc("train", u1_config, "--output", "f.safetensors", "--max-minutes", "0.0001")
        assert stopped.exit_code == 0
        assert not (tmp_path / "f.safetensors").exists()
        assert flowmc("train", u1_config, "--output", "f.safetensors", "--resume").exit_code == 0
        _, saved = load_flow(tmp_path / "f.safetensors")
        _, whole = load_flow(finished / "out" / "flow.safetensors")
        assert saved.fingerprint == whole.fingerprint

    def test_weights_serve_another_lattice_and_coupling(
        self, finished: Path, tmp_path: Path, flowmc: Command, u1_config: Path
    ) -> None:
        start = finished / "out" / "flow.safetensors"
        config = edited(
            u1_config,
            ("[4, 4]", "[8, 8]"),
            ("beta = 1.5", "beta = 2.0"),
            ("steps = 60", "steps = 1"),
            ("learning_rate = 0.02", "learning_rate = 1e-12"),
            ("[training]", f'[training]\nstart_from = "{start}"'),
        )
        outcome = flowmc("train", config, "--output", "large.safetensors")
        assert outcome.exit_code == 0, outcome.output
        large, saved = load_flow(tmp_path / "large.safetensors")
        small, _ = load_flow(start)
        assert isinstance(large, GaugeFlow)
        assert large.shape == (8, 8, 2)
        weights = small.state_dict()
        assert saved.training["start_from"]["weights"].startswith(f"{len(weights)} of {len(weights)} ")
        for name, tensor in large.state_dict().items():
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-9)


FLOW = 'kind = "gauge"\nlayers = 8\nhidden = [4]\ntransformation = "projection"\npieces = 1'
BASELINES = ('["flow", "hmc", "metropolis"]', "[]")
PHI4 = ('name = "u1"\nshape = [4, 4]\nbeta = 1.5', 'name = "phi4"\nshape = [4, 4]\nm2 = -4.0\nlam = 8.0')
WRONG: dict[str, tuple[list[tuple[str, str]], str]] = {
    "heat bath for links": ([kernel("heat_bath+flow")], "heat_bath"),
    "clusters of links": ([kernel("wolff")], "wolff"),
    "blocks of links": ([kernel("blocks+flow")], "block moves"),
    "pseudofermions without fermions": ([kernel("pseudofermion_hmc")], "pseudofermions"),
    "links that are real numbers": ([PHI4, BASELINES], "TheoryMismatchError"),
    "a flow of real fields": ([(FLOW, 'kind = "coupling"')], "TheoryMismatchError"),
    "too few layers": ([("layers = 8", "layers = 4")], "unmoved"),
    "a mask that does not close": ([("[4, 4]", "[4, 5]")], "close"),
    "a mask that cannot be packed": ([("pieces = 1", 'pieces = 1\nmask = "rows"')], "packed"),
    "an even kernel": ([("pieces = 1", "pieces = 1\nkernel = 2")], "odd kernel"),
    "three extents": ([("[4, 4]", "[4, 4, 4]")], "two extents"),
    "a negative coupling": ([("beta = 1.5", "beta = -1.5")], "positive"),
    "one draw": ([('"path_gradient"', '"reinforce"'), ("batch_size = 64", "batch_size = 1")], "batch_size = 1"),
    "an unknown key": ([("pieces = 1", "bins = 3")], "pieces"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_before_the_training(case: str, tmp_path: Path, flowmc: Command, u1_config: Path) -> None:
    changes, word = WRONG[case]
    outcome = flowmc("run", edited(u1_config, *changes), "--output", "out")
    assert outcome.exit_code == 1
    assert word in outcome.stderr
    for part in ("got:", "expected:", "fix:"):
        assert part in outcome.stderr
    assert not list(tmp_path.glob("out/*"))


def test_example_is_valid() -> None:
    run = read_run(Path(__file__).parents[2] / "examples" / "u1_8x8.toml")
    assert isinstance(run.theory, U1Gauge2D)
    assert run.flow is not None
    assert isinstance(build_flow(run.flow, run.theory), GaugeFlow)
    assert set(run.baselines()) == {"hmc", "metropolis"}
