"""The command line from the user's side: every command, its JSON, its files, its errors and its exit status."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from flowmc.cli import _fitting
from flowmc.flows import load_flow, save_flow
from flowmc_ensembles import Ensemble

Command = Callable[..., Any]


def edited(config: Path, old: str, new: str) -> Path:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    return config


def contents(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in path.iterdir() if item.is_file()}


def table(path: Path, name: str) -> np.ndarray:
    stream = Ensemble(path).streams[0]
    return stream.configurations() if name == "phi" else stream.history(name)


def assert_same_data(one: Path, other: Path) -> None:
    """Everything but time stamps and wall times."""
    a, b = Ensemble(one).streams[0], Ensemble(other).streams[0]
    np.testing.assert_array_equal(a.trajectory, b.trajectory)
    np.testing.assert_array_equal(a.configurations(), b.configurations())
    np.testing.assert_array_equal(a.observable("virial"), b.observable("virial"))
    assert a.history_names == b.history_names
    for name in set(a.history_names) - {"walltime"}:
        np.testing.assert_array_equal(a.history(name), b.history(name), err_msg=name)


class TestRun:
    def test_leaves_everything_a_user_wants(self, finished: Path) -> None:
        names = {item.name for item in (finished / "out").iterdir()}
        assert {"flow.safetensors", "hybrid.h5", "flow.h5", "hmc.h5", "report.html", "analysis.json"} <= names
        report = (finished / "out" / "report.html").read_text()
        assert "<script" not in report
        assert "http://" not in report.replace("http://www.w3.org", "")
        analysis = json.loads((finished / "out" / "analysis.json").read_text())
        assert analysis["consistent"]
        assert analysis["comparison"]["labels"] == ["hybrid", "flow", "hmc"]

    def test_ensembles_record_how_they_were_made(self, finished: Path) -> None:
        ensemble = Ensemble(finished / "out" / "hybrid.h5")
        stream = ensemble.streams[0].description
        assert ensemble.description.action == {"name": "phi4", "shape": [4, 4], "m2": -4.0, "lam": 8.0}
        _, saved = load_flow(finished / "out" / "flow.safetensors")
        assert stream.flow_sha256 == saved.fingerprint
        assert stream.freeze_update == 20 * 3
        assert stream.thermalisation_updates == 40 * 3
        run: Any = ensemble.description.run
        assert run["certificate"]["passed"]
        assert run["training_seconds"] > 0
        expected = {"flowmc", "numpy", "numba", "torch", "jax", "jaxlib", "h5py", "blackjax"}
        assert set(run["versions"]) == expected

    def test_kernels_of_one_run_use_different_random_numbers(self, finished: Path) -> None:
        seeds = {
            Ensemble(finished / "out" / f"{name}.h5").streams[0].description.seed for name in ("hybrid", "flow", "hmc")
        }
        assert len(seeds) == 3

    def test_existing_folder_is_refused_and_left_alone(self, finished: Path, flowmc: Command, config: Path) -> None:
        before = contents(finished / "out")
        outcome = flowmc("run", config, "--output", finished / "out")
        assert outcome.exit_code == 1
        assert "--resume" in outcome.stderr
        assert contents(finished / "out") == before

    def test_resume_of_a_finished_run_repeats_the_report(
        self, finished: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        shutil.copytree(finished / "out", tmp_path / "out")
        outcome = flowmc("run", config, "--output", "out", "--resume", "--json")
        assert outcome.exit_code == 0, outcome.output
        assert json.loads(outcome.stdout)["consistent"]
        assert_same_data(tmp_path / "out" / "hybrid.h5", finished / "out" / "hybrid.h5")

    def test_resume_with_another_theory_is_refused(
        self, finished: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        shutil.copytree(finished / "out", tmp_path / "out")
        outcome = flowmc("run", edited(config, "lam = 8.0", "lam = 7.0"), "--output", "out", "--resume")
        assert outcome.exit_code == 1
        assert "TheoryMismatchError" in outcome.stderr

    def test_wall_time_limit_stops_cleanly_and_resumes(self, tmp_path: Path, flowmc: Command, config: Path) -> None:
        outcome = flowmc("run", config, "--output", "out", "--max-minutes", "0.0001", "--json")
        assert outcome.exit_code == 0
        assert "wall-time limit of 0.0001 min" in outcome.stderr
        assert json.loads(outcome.stdout) == {"finished": False, "stop_reason": "wall-time limit of 0.0001 min"}
        assert not (tmp_path / "out" / "report.html").exists()
        assert flowmc("run", config, "--output", "out", "--resume").exit_code == 0
        assert (tmp_path / "out" / "report.html").exists()


class TestSample:
    def test_extension_equals_the_longer_run(
        self, finished: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        flow = finished / "out" / "flow.safetensors"
        assert (
            flowmc(
                "sample", edited(config, "cycles = 200", "cycles = 100"), "--flow", flow, "--output", "e.h5"
            ).exit_code
            == 0
        )
        outcome = flowmc(
            "sample", edited(config, "cycles = 100", "cycles = 200"), "--flow", flow, "--output", "e.h5", "--resume"
        )
        assert outcome.exit_code == 0, outcome.output
        assert_same_data(tmp_path / "e.h5", finished / "out" / "hybrid.h5")
        assert Ensemble(tmp_path / "e.h5").streams[0].attributes["finished"]

    def test_resume_with_other_settings_names_them(
        self, finished: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        shutil.copy(finished / "out" / "hmc.h5", tmp_path / "e.h5")
        before = (tmp_path / "e.h5").read_bytes()
        changed = edited(edited(config, "chains = 8", "chains = 16"), "[sampling]", '[sampling]\nkernel = "hmc"')
        outcome = flowmc("sample", changed, "--output", "e.h5", "--resume")
        assert outcome.exit_code == 1
        assert "n_chains = 8" in outcome.stderr
        assert "n_chains = 16" in outcome.stderr
        assert (tmp_path / "e.h5").read_bytes() == before

    def test_start_from_the_last_state_of_another_ensemble(
        self, finished: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        parent = finished / "out" / "hybrid.h5"
        text = f'[sampling]\nkernel = "hmc"\nstart_from = "{parent}"'
        changed = edited(
            edited(config, "[sampling]", text), "thermalisation = 40\ntuning = 20", "thermalisation = 0\ntuning = 0"
        )
        outcome = flowmc("sample", changed, "--output", "next.h5")
        assert outcome.exit_code == 0, outcome.output
        stream = Ensemble(tmp_path / "next.h5").streams[0]
        assert stream.description.parent_stream == "hybrid.h5#stream_0000@720"
        first = stream.configurations()[0]
        last = Ensemble(parent).streams[0].configurations()[-1]
        rejected = table(tmp_path / "next.h5", "accepted")[0] == 0
        np.testing.assert_array_equal(first[rejected], last[rejected])

    def test_start_from_the_same_run_is_refused(self, finished: Path, flowmc: Command, config: Path) -> None:
        parent = finished / "out" / "hybrid.h5"
        changed = edited(config, "[sampling]", f'[sampling]\nstart_from = "{parent}"')
        outcome = flowmc("sample", changed, "--flow", finished / "out" / "flow.safetensors", "--output", "next.h5")
        assert outcome.exit_code == 1
        assert "used twice" in outcome.stderr

    def test_flow_is_needed(self, tmp_path: Path, flowmc: Command, config: Path) -> None:
        outcome = flowmc("sample", config, "--output", "e.h5")
        assert outcome.exit_code == 1
        assert "--flow" in outcome.stderr
        assert not (tmp_path / "e.h5").exists()

    @pytest.mark.parametrize(
        ("old", "new", "kind"),
        [
            ("shape = [4, 4]", "shape = [6, 4]", "LatticeMismatchError"),
            ("lam = 8.0", "lam = 7.5", "TheoryMismatchError"),
        ],
    )
    def test_flow_of_another_theory_is_refused(
        self, old: str, new: str, kind: str, finished: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        flow = finished / "out" / "flow.safetensors"
        outcome = flowmc("sample", edited(config, old, new), "--flow", flow, "--output", "e.h5")
        assert outcome.exit_code == 1
        assert kind in outcome.stderr
        for part in ("got:", "expected:", "fix:"):
            assert part in outcome.stderr
        assert not (tmp_path / "e.h5").exists()

    def test_x64_off_is_refused(self, tmp_path: Path, flowmc: Command, config: Path) -> None:
        import jax

        jax.config.update("jax_enable_x64", False)  # type: ignore[no-untyped-call]
        try:
            outcome = flowmc("sample", edited(config, "[sampling]", '[sampling]\nkernel = "hmc"'), "--output", "e.h5")
        finally:
            jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
        assert outcome.exit_code == 1
        assert "PrecisionError" in outcome.stderr
        assert not (tmp_path / "e.h5").exists()

    def test_existing_target_is_refused(self, tmp_path: Path, flowmc: Command, config: Path) -> None:
        (tmp_path / "e.h5").write_text("mine")
        changed = edited(config, "[sampling]", '[sampling]\nkernel = "hmc"')
        outcome = flowmc("sample", changed, "--output", "e.h5")
        assert outcome.exit_code == 1
        assert (tmp_path / "e.h5").read_text() == "mine"
        outcome = flowmc("sample", changed, "--output", "e.h5", "--resume")
        assert outcome.exit_code == 1
        assert "NotAnEnsembleError" in outcome.stderr
        assert (tmp_path / "e.h5").read_text() == "mine"


class TestTrainAndCertify:
    def test_stopped_training_resumes_to_the_same_flow(
        self, finished: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        stopped = flowmc("train", config, "--output", "f.safetensors", "--max-minutes", "0.0001")
        assert stopped.exit_code == 0
        assert not (tmp_path / "f.safetensors").exists()
        refused = flowmc("train", config, "--output", "f.safetensors")
        assert refused.exit_code == 1
        assert flowmc("train", config, "--output", "f.safetensors", "--resume").exit_code == 0
        _, saved = load_flow(tmp_path / "f.safetensors")
        _, whole = load_flow(finished / "out" / "flow.safetensors")
        assert saved.fingerprint == whole.fingerprint

    def test_certificate(self, finished: Path, flowmc: Command) -> None:
        outcome = flowmc("certify", finished / "out" / "flow.safetensors", "--json")
        assert outcome.exit_code == 0, outcome.output
        certificate = json.loads(outcome.stdout)
        assert certificate["passed"]
        assert {"forward log q against log_prob", "log-determinant against the full Jacobian"} <= {
            check["name"] for check in certificate["checks"]
        }
        assert "forward log q" in flowmc("certify", finished / "out" / "flow.safetensors").stdout

    def test_nan_weights_are_refused(self, finished: Path, tmp_path: Path, flowmc: Command) -> None:
        flow, _ = load_flow(finished / "out" / "flow.safetensors")
        with torch.no_grad():
            next(flow.parameters()).fill_(float("nan"))
        save_flow(tmp_path / "nan.safetensors", flow, {})
        outcome = flowmc("certify", "nan.safetensors")
        assert outcome.exit_code == 1
        assert "NaN" in outcome.stderr

    def test_broken_flow_fails_with_json(self, finished: Path, tmp_path: Path, flowmc: Command) -> None:
        flow, _ = load_flow(finished / "out" / "flow.safetensors")
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.mul_(1e3)
        save_flow(tmp_path / "broken.safetensors", flow, {})
        outcome = flowmc("certify", "broken.safetensors", "--json")
        assert outcome.exit_code == 1
        assert not json.loads(outcome.stdout)["passed"]
        assert "CertificateError" in outcome.stderr

    def test_missing_flow(self, flowmc: Command) -> None:
        outcome = flowmc("certify", "none.safetensors")
        assert outcome.exit_code == 1
        assert "FlowFileError" in outcome.stderr


class TestAnalyze:
    def test_json_is_one_object_with_the_promised_keys(self, finished: Path, flowmc: Command) -> None:
        outcome = flowmc("analyze", finished / "out" / "hybrid.h5", "--json")
        assert outcome.exit_code == 0, outcome.output
        analysis = json.loads(outcome.stdout)
        for observable in analysis["observables"].values():
            assert {"value", "error", "tau_int", "tau_int_error"} <= set(observable)
        assert {
            "magnetisation_abs",
            "susceptibility",
            "action_density",
            "binder_cumulant",
            "correlation_length",
        } <= set(analysis["observables"])
        assert 0 < analysis["acceptance"] < 1
        assert 0 < analysis["ess_reverse"] < 1
        assert analysis["ln_z"]["error"] > 0

    def test_table(self, finished: Path, flowmc: Command) -> None:
        outcome = flowmc("analyze", finished / "out" / "hmc.h5")
        assert outcome.exit_code == 0
        assert "susceptibility" in outcome.stdout
        assert "<exp(-ΔH)> = 1" in outcome.stdout

    def test_compare(self, finished: Path, flowmc: Command) -> None:
        paths = finished / "out" / "flow.h5", finished / "out" / "hmc.h5"
        outcome = flowmc("compare", *paths, "--json")
        assert outcome.exit_code == 0, outcome.output
        assert json.loads(outcome.stdout)["passed"]
        table_of_costs = flowmc("compare", *paths).stdout
        assert "E[w(y)/w(x)] = 1" in table_of_costs
        assert "with training" in table_of_costs

    def test_inspect(self, finished: Path, flowmc: Command) -> None:
        outcome = flowmc("inspect", finished / "out" / "hybrid.h5", "--json", "--verify")
        assert outcome.exit_code == 0, outcome.output
        assert json.loads(outcome.stdout)["theory"] == "phi4"
        assert "phi4" in flowmc("inspect", finished / "out" / "hybrid.h5").stdout

    @pytest.mark.parametrize("command", ["analyze", "inspect"])
    def test_bad_files_are_refused(self, command: str, finished: Path, tmp_path: Path, flowmc: Command) -> None:
        data = (finished / "out" / "hmc.h5").read_bytes()
        (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
        (tmp_path / "text.h5").write_text("no ensemble")
        with h5py.File(tmp_path / "foreign.h5", "w") as foreign:
            foreign["x"] = 1
        for name in ("none.h5", "cut.h5", "text.h5", "foreign.h5"):
            outcome = flowmc(command, name)
            assert outcome.exit_code == 1, name
            for part in ("got:", "expected:", "fix:"):
                assert part in outcome.stderr


class TestBadTargets:
    """Refused before the work that they are to hold, with got, expected and fix."""

    @pytest.mark.parametrize("name", ["folder", "small.toml/below.h5"])
    def test_no_file_can_be_there(self, name: str, tmp_path: Path, flowmc: Command, config: Path) -> None:
        (tmp_path / "folder").mkdir()
        changed = edited(config, "[sampling]", '[sampling]\nkernel = "hmc"')
        outcome = flowmc("sample", changed, "--output", name)
        assert outcome.exit_code == 1
        assert "OutputError" in outcome.stderr

    def test_training_into_a_folder(self, tmp_path: Path, flowmc: Command, config: Path) -> None:
        (tmp_path / "folder").mkdir()
        outcome = flowmc("train", config, "--output", "folder")
        assert outcome.exit_code == 1
        assert "OutputError" in outcome.stderr
        assert list((tmp_path / "folder").iterdir()) == []


class TestBeforeTheTraining:
    """What can be known beforehand is refused before a run spends its time on the training."""

    @pytest.mark.parametrize(
        ("old", "new", "word"),
        [
            ("[sampling]", '[sampling]\nstart_from = "nowhere.h5"', "nowhere.h5"),
            ("[sampling]", "[sampling]\nstep_size = 2.0", "step_size"),
            ("[sampling]", "[sampling]\nsave_every = 100", "save_every"),
        ],
    )
    def test_refused(self, old: str, new: str, word: str, flowmc: Command, config: Path, tmp_path: Path) -> None:
        outcome = flowmc("run", edited(config, old, new), "--output", "out")
        assert outcome.exit_code == 1
        assert word in outcome.stderr
        assert not (tmp_path / "out").exists()


def test_flow_for_hmc_is_refused(finished: Path, flowmc: Command, config: Path) -> None:
    changed = edited(config, "[sampling]", '[sampling]\nkernel = "hmc"')
    outcome = flowmc("sample", changed, "--flow", finished / "out" / "flow.safetensors", "--output", "e.h5")
    assert outcome.exit_code == 1
    assert "ConfigError" in outcome.stderr


def test_corrupt_configuration_is_found(finished: Path, tmp_path: Path, flowmc: Command) -> None:
    shutil.copy(finished / "out" / "hmc.h5", tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        file["stream_0000/configurations/phi"][3, 1, 0, 0] += 1e-6
    outcome = flowmc("inspect", "e.h5", "--verify")
    assert outcome.exit_code == 1
    assert "CorruptionError" in outcome.stderr
    assert flowmc("inspect", "e.h5").exit_code == 0
    assert flowmc("analyze", "e.h5").exit_code == 1


def test_ensemble_against_itself_is_refused(finished: Path, flowmc: Command) -> None:
    path = finished / "out" / "hmc.h5"
    outcome = flowmc("compare", path, path)
    assert outcome.exit_code == 1
    assert "same file twice" in outcome.stderr


def test_unknown_precision_is_refused(finished: Path, flowmc: Command) -> None:
    outcome = flowmc("certify", finished / "out" / "flow.safetensors", "--precision", "float16")
    assert outcome.exit_code == 1
    assert "float32" in outcome.stderr


def test_version(flowmc: Command) -> None:
    assert flowmc("--version").stdout.startswith("flowmc ")


def test_no_number_is_broken_in_a_narrow_terminal() -> None:
    columns = ("observable", "hybrid", "flow", "z: hybrid - flow")
    cells = [("two_point_zero_momentum[0]", "0.28018(70)", "0.28004(71)", "+0.14")]
    parts = _fitting(columns, cells, 50)
    assert sorted({number for part in parts for number in part}) == [0, 1, 2, 3]
    assert all(part[0] == 0 for part in parts)
    assert len(parts) > 1
    assert _fitting(columns, cells, 200) == [[0, 1, 2, 3]]


def test_unknown_key_names_the_nearest(flowmc: Command, config: Path, tmp_path: Path) -> None:
    outcome = flowmc("run", edited(config, "chains = 8", "chain = 8"), "--output", "out")
    assert outcome.exit_code == 1
    assert "did you mean 'chains'" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_negative_coupling(flowmc: Command, config: Path, tmp_path: Path) -> None:
    outcome = flowmc("run", edited(config, "lam = 8.0", "lam = -8.0"), "--output", "out")
    assert outcome.exit_code == 1
    assert "lam = -8.0" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_unfinished_ensemble_says_so(flowmc: Command, config: Path) -> None:
    changed = edited(config, "[sampling]", '[sampling]\nkernel = "hmc"')
    stopped = flowmc("sample", changed, "--output", "e.h5", "--max-minutes", "0.00001")
    assert stopped.exit_code == 0
    # Enough blocks to be analysed: each call runs one more before the limit stops it.
    for _ in range(5):
        flowmc("sample", changed, "--output", "e.h5", "--resume", "--max-minutes", "0.00001")
    outcome = flowmc("analyze", "e.h5", "--json")
    assert outcome.exit_code == 0, outcome.output
    assert any("not finished: wall-time limit" in warning for warning in json.loads(outcome.stdout)["warnings"])
    assert "not finished" in outcome.stderr
    assert "not finished (wall-time limit" in flowmc("inspect", "e.h5").stdout
