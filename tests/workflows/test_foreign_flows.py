"""Flows of other libraries on the command line: references, records of certificates, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from flowmc.cli import app
from flowmc_analysis.ensemble import analyze
from flowmc_ensembles import Ensemble

RUN = """
[theory]
name = "phi4"
shape = [4, 2]
m2 = 1.0
lam = 0.5

[sampling]
kernel = "hmc+flow"
seed = 3
chains = 8
cycles = 100
thermalisation = 40
tuning = 20
cycles_per_block = 20
flow_proposals = 2
"""

MODULE = '''
import torch
from flowmc.proposals import certify
from flowmc_adapters import torch_callables

class Noise(torch.nn.Module):
    """White noise of a width."""

    def __init__(self, width=0.45, wrong=0.0):
        super().__init__()
        self.width = torch.nn.Parameter(torch.tensor(width, dtype=torch.float64))
        self.wrong = wrong

    def forward(self, z):
        return self.width * z, 8 * self.width.log().expand(len(z)) + self.wrong * z.sum((1, 2))

    def inverse(self, x):
        return x / self.width, -8 * self.width.log().expand(len(x))

raw = Noise()

def pair(width):
    base = torch.distributions.Normal(torch.zeros(4, 2, dtype=torch.float64), width)
    return (lambda n: base.sample((n,)), lambda x: base.log_prob(x).sum((1, 2)))

def proposal():
    return torch_callables.proposal(pair(0.45), event_shape=(4, 2), weights=0.45)

def other():
    return torch_callables.proposal(pair(0.5), event_shape=(4, 2), weights=0.5)

def single():
    base = torch.distributions.Normal(torch.zeros(4, 2), 0.45)
    functions = (lambda n: base.sample((n,)), lambda x: base.log_prob(x).sum((1, 2)))
    return torch_callables.proposal(functions, event_shape=(4, 2), weights=0.45)

def wrong():
    sample, log_prob = pair(0.45)
    return torch_callables.proposal((lambda n: 2 * sample(n), log_prob), event_shape=(4, 2), weights=0.45)

def broken():
    raise OSError("no weights here")

def leaves():
    raise SystemExit(0)

def elsewhere():
    base = torch.distributions.Normal(torch.zeros(2, 4, dtype=torch.float64), 0.45)
    functions = (lambda n: base.sample((n,)), lambda x: base.log_prob(x).sum((1, 2)))
    return torch_callables.proposal(functions, event_shape=(2, 4))

def spins():
    coins = (lambda n: 2 * torch.bernoulli(torch.full((n, 4, 2), 0.5).double()) - 1, lambda s: s.sum((1, 2)) * 0 - 5.545)
    return torch_callables.proposal(coins, event_shape=(4, 2), space="spin")

distribution = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(8).double(), 0.45), 1)
number = 17
'''


@pytest.fixture
def invoke() -> Callable[..., Any]:
    def run(*words: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / "flows.py").write_text(MODULE)
    return tmp_path


def plain(text: str) -> str:
    """Return an error without its line breaks."""
    return re.sub(r"\s+", " ", text)


def test_sampling_with_a_reference(files: Path, invoke: Callable[..., Any]) -> None:
    output = files / "ens.h5"
    result = invoke("sample", files / "run.toml", "--flow", f"{files}/flows.py:proposal", "--output", output)
    assert result.exit_code == 0, result.output
    facts = Ensemble(output).description.run
    assert facts["flow"]["kind"] == "foreign"  # type: ignore[index]
    assert facts["certificate"]["passed"] is True  # type: ignore[index]
    assert len(str(facts["certificate_name"])) == 64
    analysis = analyze(output)
    assert analysis.acceptance_by_kind["flow"].value > 0.05
    assert any("training of the flow" in warning for warning in analysis.warnings)
    assert analysis.verdict is not None
    assert analysis.verdict.passed
    # The same run goes on, and no other flow gets into it.
    longer = RUN.replace("cycles = 100", "cycles = 140")
    (files / "run.toml").write_text(longer)
    again = invoke("sample", files / "run.toml", "--flow", f"{files}/flows.py:proposal", "--output", output, "--resume")
    assert again.exit_code == 0, again.output
    assert Ensemble(output).streams[0].n_configurations == 140
    refused = invoke("sample", files / "run.toml", "--flow", f"{files}/flows.py:other", "--output", output, "--resume")
    assert refused.exit_code == 1
    assert "flow_sha256" in refused.output


def test_training_that_the_module_tells_of(files: Path, invoke: Callable[..., Any]) -> None:
    (files / "flows.py").write_text(MODULE + "\nTRAINING_SECONDS = 12.5\n")
    output = files / "ens.h5"
    assert (
        invoke("sample", files / "run.toml", "--flow", f"{files}/flows.py:proposal", "--output", output).exit_code == 0
    )
    analysis = analyze(output)
    assert analysis.cost.training_seconds == 12.5
    assert not any("training of the flow" in warning for warning in analysis.warnings)


def test_flow_that_an_adapter_knows_needs_no_wrapper(files: Path, invoke: Callable[..., Any]) -> None:
    output = files / "ens.h5"
    result = invoke("sample", files / "run.toml", "--flow", f"{files}/flows.py:distribution", "--output", output)
    assert result.exit_code == 0, result.output


def test_type_of_the_flow_is_recorded(files: Path, invoke: Callable[..., Any]) -> None:
    output = files / "ens.h5"
    assert invoke("sample", files / "run.toml", "--flow", f"{files}/flows.py:single", "--output", output).exit_code == 0
    assert Ensemble(output).streams[0].description.algorithm_parameters["precision"] == "float32"


class TestRecords:
    def test_is_saved_and_taken(self, files: Path, invoke: Callable[..., Any]) -> None:
        record = files / "certificate.json"
        made = invoke("certify", f"{files}/flows.py:proposal", "--save", record)
        assert made.exit_code == 0, made.output
        name = json.loads(record.read_text())["name"]
        assert name[:16] in made.output
        output = files / "ens.h5"
        arguments = ["sample", files / "run.toml", "--flow", f"{files}/flows.py:proposal", "--output", output]
        result = invoke(*arguments, "--certificate", record)
        assert result.exit_code == 0, result.output
        assert Ensemble(output).description.run["certificate_name"] == name

    @pytest.mark.parametrize("damage", ["another flow", "changed", "no record", "other versions", "absent"])
    def test_is_refused(self, files: Path, invoke: Callable[..., Any], damage: str) -> None:
        record = files / "certificate.json"
        assert invoke("certify", f"{files}/flows.py:proposal", "--save", record).exit_code == 0
        found = json.loads(record.read_text())
        if damage == "changed":
            found["certificate"]["checks"][0]["detail"] = "a million draws"
            record.write_text(json.dumps(found))
        elif damage == "no record":
            record.write_text("{}")
        elif damage == "absent":
            record.unlink()
        elif damage == "other versions":
            from flowmc.proposals import CertificateRecord

            taken = CertificateRecord.read(record)
            CertificateRecord(taken.certificate, {**taken.versions, "torch": "1.0"}).save(record)
        flow = f"{files}/flows.py:{'other' if damage == 'another flow' else 'proposal'}"
        output = files / "ens.h5"
        result = invoke("sample", files / "run.toml", "--flow", flow, "--output", output, "--certificate", record)
        assert result.exit_code == 1
        assert "certi" in plain(result.output)
        assert not output.exists()

    def test_of_a_flow_that_failed_is_saved_and_refused(self, files: Path, invoke: Callable[..., Any]) -> None:
        record = files / "certificate.json"
        made = invoke("certify", f"{files}/flows.py:wrong", "--save", record)
        assert made.exit_code == 1
        assert "draws against their density" in made.output
        arguments = ["sample", files / "run.toml", "--flow", f"{files}/flows.py:wrong", "--output", files / "ens.h5"]
        assert invoke(*arguments, "--certificate", record).exit_code == 1
        assert invoke(*arguments).exit_code == 1
        assert not (files / "ens.h5").exists()


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("flows.py:propsal", "no 'propsal'"),
        ("flow.py:proposal", "no file"),
        ("flows.py:broken", "OSError: no weights here"),
        ("flows.py:number", "a flow of class builtins.int"),
        ("flows.py:raw", "torch_module"),
        ("syntax.py:proposal", "SyntaxError"),
        ("flows.py", "flows.py:NAME"),
        ("flows.py:leaves", "SystemExit"),
        ("flows.py:elsewhere", "(2, 4)"),
        ("flows.py:spins", "spin fields"),
    ],
)
def test_wrong_references(files: Path, invoke: Callable[..., Any], reference: str, told: str) -> None:
    (files / "syntax.py").write_text("def proposal(:\n")
    output = files / "ens.h5"
    result = invoke("sample", files / "run.toml", "--flow", f"{files}/{reference}", "--output", output)
    assert result.exit_code == 1
    assert told in plain(result.output)
    assert "fix:" in result.output
    assert not output.exists()


def test_certify_needs_a_proposal(files: Path, invoke: Callable[..., Any]) -> None:
    result = invoke("certify", f"{files}/flows.py:distribution")
    assert result.exit_code == 1
    assert "event_shape" in plain(result.output)


def test_no_such_module(invoke: Callable[..., Any]) -> None:
    result = invoke("certify", "no_such_module.flows:proposal")
    assert result.exit_code == 1
    assert "ModuleNotFoundError" in plain(result.output)


def test_global_generator_is_left_alone(files: Path, invoke: Callable[..., Any]) -> None:
    before = torch.random.get_rng_state()
    assert invoke("certify", f"{files}/flows.py:proposal").exit_code == 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_file_imports_its_neighbour(files: Path, invoke: Callable[..., Any]) -> None:
    (files / "neighbour_of_flows.py").write_text(MODULE)
    (files / "user.py").write_text("from neighbour_of_flows import proposal\n")
    record = files / "new" / "folder" / "record.json"
    made = invoke("certify", f"{files}/user.py:proposal", "--save", record)
    assert made.exit_code == 0, made.output
    assert record.is_file()


def test_training_seconds_that_are_none(files: Path, invoke: Callable[..., Any]) -> None:
    (files / "flows.py").write_text(MODULE + "\nTRAINING_SECONDS = 'ten'\n")
    result = invoke("certify", f"{files}/flows.py:proposal")
    assert result.exit_code == 1
    assert "TRAINING_SECONDS" in plain(result.output)


def test_type_is_not_that_of_the_command_line(files: Path, invoke: Callable[..., Any]) -> None:
    result = invoke("certify", f"{files}/flows.py:proposal", "--precision", "float32")
    assert result.exit_code == 1
    assert "has its own" in plain(result.output)


def test_edited_code_is_another_flow(files: Path, invoke: Callable[..., Any]) -> None:
    code = (
        MODULE
        + """
from flowmc_adapters import torch_module

def scaled():
    return torch_module.proposal(Noise(), event_shape=(4, 2))
"""
    )
    (files / "flows.py").write_text(code)
    record, output = files / "record.json", files / "ens.h5"
    assert invoke("certify", f"{files}/flows.py:scaled", "--save", record).exit_code == 0
    other = files / "edited.py"
    other.write_text(code.replace("return self.width * z, 8 *", "return self.width * z.flip(1), 8 *"))
    result = invoke(
        "sample", files / "run.toml", "--flow", f"{other}:scaled", "--output", output, "--certificate", record
    )
    assert result.exit_code == 1
    assert "fingerprint" in plain(result.output)


def test_versions_of_the_flows_library_are_recorded(files: Path, invoke: Callable[..., Any]) -> None:
    (files / "flows.py").write_text("import zuko\n" + MODULE)
    record = files / "record.json"
    assert invoke("certify", f"{files}/flows.py:proposal", "--save", record).exit_code == 0
    assert "zuko" in json.loads(record.read_text())["versions"]
