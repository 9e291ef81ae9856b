"""Trainings on samples, early ends and figures of trainings, from the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmc.flows import SavedFlow
from flowmc.theories import Phi4
from flowmc.training import Samples, TrainingFiles, read_log
from flowmc.workflows.samples import read_samples
from flowmc_ensembles import Ensemble

Command = Callable[..., Any]

PNG = b"\x89PNG\r\n\x1a\n"
THEORY = Phi4((4, 4), m2=-4.0, lam=8.0)
TRAINING = "steps = 150\nbatch_size = 128"


def training(config: Path, lines: str) -> Path:
    """Replace the length of the training, and whatever else."""
    text = config.read_text()
    assert TRAINING in text
    config.write_text(text.replace(TRAINING, lines))
    return config


def on_samples(config: Path, ensemble: Path, lines: str = 'objective = "forward_kl"') -> Path:
    return training(config, f'steps = 30\nbatch_size = 32\nsamples = "{ensemble}"\n{lines}')


@pytest.fixture
def ensemble(finished: Path, tmp_path: Path) -> Path:
    """HMC's ensemble, beside the run description."""
    shutil.copy(finished / "out" / "hmc.h5", tmp_path / "hmc.h5")
    return Path("hmc.h5")


class TestSamples:
    def test_are_all_configurations(self, finished: Path) -> None:
        path = finished / "out" / "hmc.h5"
        samples = read_samples(path, THEORY)
        (stream,) = Ensemble(path).streams
        stored = stream.configurations()
        assert samples.fields.shape == (200 * 8, 4, 4)
        np.testing.assert_array_equal(samples.fields[:8], stored[0])
        np.testing.assert_array_equal(samples.fields[-8:], stored[-1])
        assert samples.seconds == pytest.approx(np.asarray(stream.history("walltime")).sum())

    @pytest.mark.parametrize("lines", ['objective = "forward_kl"', "forward_weight = 0.4"])
    def test_train_a_flow_and_are_recorded_with_it(
        self, lines: str, ensemble: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        outcome = flowmc("train", on_samples(config, ensemble, lines), "--output", "f.safetensors")
        assert outcome.exit_code == 0, outcome.output
        assert "1600 configurations" in outcome.stderr
        facts = SavedFlow.read(tmp_path / "f.safetensors").training
        samples = read_samples(tmp_path / ensemble, THEORY)
        assert facts["samples"] == {**Samples(samples.fields, THEORY).identity, "seconds": samples.seconds}
        # What it has cost to make them is part of the cost of the flow.
        records = read_log(TrainingFiles(tmp_path / "f.safetensors").log)
        assert facts["seconds"] >= records[-1].seconds + samples.seconds
        assert (facts["steps"], facts["ended_by"]) == (30, "steps")
        assert all(record.forward_loss is not None for record in records)
        assert flowmc("certify", "f.safetensors").exit_code == 0
        # A finished flow is kept, and no longer needs its samples.
        (tmp_path / ensemble).unlink()
        assert flowmc("train", config, "--output", "f.safetensors", "--resume").exit_code == 0

    def test_that_have_changed_are_noticed_on_resumption(
        self, ensemble: Path, finished: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        on_samples(config, ensemble)
        arguments = ("train", config, "--output", "f.safetensors")
        assert flowmc(*arguments, "--max-minutes", "0.0001").exit_code == 0
        shutil.copy(finished / "out" / "flow.h5", tmp_path / ensemble)
        outcome = flowmc(*arguments, "--resume")
        assert outcome.exit_code == 1
        assert "['samples'] differ" in outcome.stderr
        shutil.copy(finished / "out" / "hmc.h5", tmp_path / ensemble)
        assert flowmc(*arguments, "--resume").exit_code == 0

    @pytest.mark.parametrize(
        ("lines", "kind"),
        [
            ('samples = "nowhere.h5"\nobjective = "forward_kl"', "MissingError"),
            ('samples = "small.toml"\nobjective = "forward_kl"', "NotAnEnsembleError"),
            ('objective = "forward_kl"', "ParameterError"),
            ("forward_weight = 0.4", "ParameterError"),
            ('samples = "hmc.h5"', "ConfigError"),
            ('samples = "hmc.h5"\nforward_weight = 1.0', "ConfigError"),
            ('samples = "hmc.h5"\nforward_weight = 0.4\nannealing = 0.5', "ConfigError"),
        ],
    )
    def test_refused_before_the_training(
        self, lines: str, kind: str, ensemble: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        training(config, f"{TRAINING}\n{lines}")
        for command, output in (("train", "f.safetensors"), ("run", "out")):
            outcome = flowmc(command, config, "--output", output)
            assert outcome.exit_code == 1
            assert kind in outcome.stderr
            for part in ("got:", "expected:", "fix:"):
                assert part in outcome.stderr
        assert {item.name for item in tmp_path.iterdir()} == {config.name, str(ensemble)}

    @pytest.mark.parametrize(("old", "new"), [("lam = 8.0", "lam = 7.0"), ("shape = [4, 4]", "shape = [4, 6]")])
    def test_of_another_theory_are_refused(
        self, old: str, new: str, ensemble: Path, tmp_path: Path, flowmc: Command, config: Path
    ) -> None:
        on_samples(config, ensemble)
        config.write_text(config.read_text().replace(old, new))
        outcome = flowmc("train", config, "--output", "f.safetensors")
        assert outcome.exit_code == 1
        assert "TheoryMismatchError" in outcome.stderr
        assert {item.name for item in tmp_path.iterdir()} == {config.name, str(ensemble)}


def test_training_that_reached_its_acceptance_is_finished(tmp_path: Path, flowmc: Command, config: Path) -> None:
    training(config, "steps = 150\nbatch_size = 16\ntarget_acceptance = 0.01")
    arguments = ("train", config, "--output", "f.safetensors")
    assert flowmc(*arguments, "--max-minutes", "0.0001").exit_code == 0
    assert not (tmp_path / "f.safetensors").exists()
    outcome = flowmc(*arguments, "--resume")
    assert outcome.exit_code == 0, outcome.output
    assert "ended after 50 of 150 steps" in outcome.stderr
    before = (tmp_path / "f.safetensors").read_bytes()
    saved = SavedFlow.read(tmp_path / "f.safetensors")
    assert (saved.training["steps"], saved.training["ended_by"]) == (50, "target_acceptance")
    assert flowmc(*arguments, "--resume").exit_code == 0
    assert (tmp_path / "f.safetensors").read_bytes() == before
    # Killed before the flow file was written: the checkpoint knows that it is the end.
    (tmp_path / "f.safetensors").unlink()
    assert flowmc(*arguments, "--resume").exit_code == 0
    assert SavedFlow.read(tmp_path / "f.safetensors").fingerprint == saved.fingerprint


class TestPlot:
    @pytest.fixture
    def log(self, finished: Path, tmp_path: Path) -> Path:
        source = TrainingFiles(finished / "out" / "flow.safetensors").log
        return Path(shutil.copy(source, tmp_path / "flow.training.jsonl"))

    @pytest.mark.parametrize("source", ["flow.safetensors", "flow.training.jsonl"])
    def test_is_drawn_beside_the_log(self, source: str, log: Path, tmp_path: Path, flowmc: Command) -> None:
        # The flow itself need not be there: its training may be going on.
        outcome = flowmc("plot-training", source)
        assert outcome.exit_code == 0, outcome.output
        assert "flow.training.png" in outcome.stdout
        assert (tmp_path / "flow.training.png").read_bytes().startswith(PNG)
        # What is drawn again replaces the old figure; nothing else is left behind.
        assert flowmc("plot-training", source).exit_code == 0
        assert {item.name for item in tmp_path.iterdir()} == {log.name, "flow.training.png"}

    def test_of_a_line_that_is_being_written(self, log: Path, tmp_path: Path, flowmc: Command) -> None:
        text = log.read_text()
        log.write_text(text[: text.rindex('"ess"')])
        assert len(read_log(log)) == text.count("\n") - 1
        assert flowmc("plot-training", log, "--output", "figures/training.svg").exit_code == 0
        assert "<svg" in (tmp_path / "figures" / "training.svg").read_text()

    def test_of_several_trainings(self, log: Path, tmp_path: Path, flowmc: Command) -> None:
        for name in ("other.training.jsonl", "folder/flow.training.jsonl"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(log, tmp_path / name)
        assert flowmc("plot-training", log.name, "other.safetensors").exit_code == 0
        assert (tmp_path / "training.png").read_bytes().startswith(PNG)
        outcome = flowmc("plot-training", log.name, "folder/flow.safetensors", "--output", "both.svg")
        assert outcome.exit_code == 0, outcome.output

    @pytest.mark.parametrize(
        ("arguments", "kind"),
        [
            (("none.safetensors",), "FlowFileError"),
            (("empty.training.jsonl",), "FlowFileError"),
            (("garbled.training.jsonl",), "FlowFileError"),
            (("binary.training.jsonl",), "FlowFileError"),
            (("folder.jsonl",), "FlowFileError"),
            (("flow.safetensors", "flow.training.jsonl"), "ParameterError"),
            (("flow.safetensors", "--output", "figure.txt"), "OutputError"),
            (("flow.safetensors", "--output", "figure"), "OutputError"),
            (("flow.safetensors", "--output", "folder.jsonl"), "OutputError"),
        ],
    )
    def test_refusals(self, arguments: tuple[str, ...], kind: str, log: Path, tmp_path: Path, flowmc: Command) -> None:
        (tmp_path / "empty.training.jsonl").touch()
        (tmp_path / "garbled.training.jsonl").write_text(log.read_text().replace('"loss": ', '"loss": x', 1))
        (tmp_path / "binary.training.jsonl").write_bytes(bytes(range(256)))
        (tmp_path / "folder.jsonl").mkdir()
        before = {item.name for item in tmp_path.iterdir()}
        outcome = flowmc("plot-training", *arguments)
        assert outcome.exit_code == 1
        assert kind in outcome.stderr
        for part in ("got:", "expected:", "fix:"):
            assert part in outcome.stderr
        assert {item.name for item in tmp_path.iterdir()} == before

    def test_is_in_the_report(self, finished: Path) -> None:
        assert "gradient norm and learning rate" in (finished / "out" / "report.html").read_text()
