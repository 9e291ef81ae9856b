"""A flow whose log q is off by a known amount: it may propose only with a bound that holds, which every report prints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import h5py
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from flowmc.cli import app
from flowmc.errors import CertificateError, ParameterError
from flowmc.flows import FLOWS, build_flow
from flowmc.flows.coupling import CouplingConfig, CouplingFlow
from flowmc.proposals import LARGEST_BOUND, Certificate, ProposalMetadata, as_proposal, certificate, certify
from flowmc.testing import GaussianProposal
from flowmc.theories import Phi4, Theory
from flowmc_analysis.ensemble import EnsembleAnalysis, analyze
from flowmc_analysis.report import render_report
from flowmc_analysis.tables import sampler_table
from flowmc_ensembles import CorruptionError, LogQAccuracy, format_summary, inspect

TILT = 5e-4
STATED = "log q of the flow is not exact: off by at most 0.001 nats (stated)"
OWN_WORD = "own word: error of log q"

RUN = """
[theory]
name = "phi4"
shape = [4, 4]
m2 = -4.0
lam = 8.0

[flow]
kind = "tilted"
log_q_bound = 1e-3
repeat = 1
layers = [{ kind = "affine", hidden = [4] }, { kind = "sinh_arcsinh" }]

[training]
steps = 50
batch_size = 128
seed = 1
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
kernels = ["hmc"]
"""

Command = Callable[..., Any]


@dataclass(frozen=True)
class TiltedConfig(CouplingConfig):
    """With what the flow says of itself."""

    claims_exact: bool = False
    log_q_bound: float = 1e-3


class TiltedFlow(CouplingFlow):
    """A coupling flow whose log-determinant is off by a smooth function of the field, both ways alike."""

    kind: ClassVar[str] = "tilted"
    Config: ClassVar[type] = TiltedConfig

    def __init__(self, theory: Theory, config: TiltedConfig) -> None:
        super().__init__(theory, config)
        self.exact = config.claims_exact
        self.log_q_bound = config.log_q_bound

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        field, log_det = super().forward(latent)
        return field, log_det + self._tilt(field)

    def inverse(self, field: Tensor) -> tuple[Tensor, Tensor]:
        latent, log_det = super().inverse(field)
        return latent, log_det - self._tilt(field)

    @staticmethod
    def _tilt(field: Tensor) -> Tensor:
        return TILT * torch.sin(3 * field.to(torch.float64).flatten(1).sum(1))


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FLOWS, TiltedFlow.kind, TiltedFlow)
        yield


def certified(**says: Any) -> Certificate:
    small = {"layers": ({"kind": "affine", "hidden": [4]},), "repeat": 1, "dtype": "float64"}
    flow = build_flow({"kind": "tilted", **small, **says}, Phi4((4, 4), -4.0, 8.0), seed=1)
    return certify(as_proposal(flow), 2, n_finite=1000, n_compare=64)


def failures(found: Certificate) -> set[str]:
    return {check.name for check in found.checks if not check.passed}


def test_bound_that_holds_passes() -> None:
    found = certified(log_q_bound=1e-3)
    found.require()
    own_word, jacobian = (check for check in found.checks if check.name in (OWN_WORD, certificate.JACOBIAN))
    assert own_word.detail == "not exact, off by at most 0.001 nats"
    assert 0.5 * TILT < jacobian.value <= TILT * (1 + 1e-6)
    assert jacobian.tolerance == pytest.approx(1e-3 + 1e-8)
    assert "on 128 draws; 0.001 nats stated" in jacobian.detail
    # Nothing but the Jacobian is granted the bound.
    strict = [check.tolerance for check in found.checks if check.unit == "nats" and check not in (own_word, jacobian)]
    assert max(strict) == 1e-8


@pytest.mark.parametrize(
    ("says", "refused"),
    [
        ({"log_q_bound": 1e-4}, {certificate.JACOBIAN}),
        ({"log_q_bound": 2 * LARGEST_BOUND}, {OWN_WORD}),
        ({"log_q_bound": 0.0}, {OWN_WORD, certificate.JACOBIAN}),
        ({"log_q_bound": float("inf")}, {OWN_WORD, certificate.JACOBIAN}),
        ({"claims_exact": True, "log_q_bound": 0.0}, {certificate.JACOBIAN}),
    ],
)
def test_refused(says: dict[str, Any], refused: set[str]) -> None:
    found = certified(**says)
    assert failures(found) == refused
    assert not json.loads(json.dumps(found.to_dict(), allow_nan=False))["passed"]
    with pytest.raises(CertificateError) as caught:
        found.require()
    assert ("log_q_bound" in caught.value.fix) == (not found.exact)


class Unmeasured(GaussianProposal):
    """An exact one that says it is not, and shows no map."""

    @property
    def metadata(self) -> ProposalMetadata:
        return replace(super().metadata, exact=False, log_q_bound=1e-3)


def test_bound_that_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = certify(Unmeasured((2, 2), 0.5), 1, n_finite=500)
    assert failures(found) == {certificate.JACOBIAN}
    with pytest.raises(CertificateError, match="shows no map"):
        found.require()
    assert found.to_dict()["log_q"] == {"exact": False, "bound": 1e-3, "measured": None, "draws": 0}
    monkeypatch.setattr(certificate, "JACOBIAN_VOLUME", 15)
    with pytest.raises(CertificateError, match="V = 16 > 15"):
        certified().require()


@pytest.mark.parametrize(("exact", "bound"), [(True, 1e-3), (False, -1e-3), (False, float("nan")), (True, -1.0)])
def test_contradictory_metadata_are_refused(exact: bool, bound: float) -> None:
    with pytest.raises(ParameterError):
        ProposalMetadata((2,), "float64", deterministic=True, exact=exact, fingerprint="", log_q_bound=bound)


@pytest.fixture(scope="module")
def tilted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with such a flow; tests must not change it."""
    folder = tmp_path_factory.mktemp("tilted")
    (folder / "small.toml").write_text(RUN)
    outcome = CliRunner().invoke(app, ["run", str(folder / "small.toml"), "--output", str(folder / "out")])
    assert outcome.exit_code == 0, outcome.output
    assert f"checks, float64); {STATED}" in outcome.stderr
    assert f"warning (hybrid): {STATED}" in outcome.stderr
    assert "warning (hmc): log q" not in outcome.stderr
    return folder / "out"


def test_certificate_prints_the_bound(tilted: Path, flowmc: Command) -> None:
    outcome = flowmc("certify", tilted / "flow.safetensors")
    assert outcome.exit_code == 0, outcome.output
    assert STATED in " ".join(outcome.stdout.split())
    assert json.loads(flowmc("certify", tilted / "flow.safetensors", "--json").stdout)["log_q"]["bound"] == 1e-3


def test_ensemble_prints_the_bound(tilted: Path) -> None:
    summary: Any = inspect(tilted / "hybrid.h5")
    assert (summary["log_q"]["exact"], summary["log_q"]["bound"], summary["log_q"]["draws"]) == (False, 1e-3, 128)
    assert 0 < summary["log_q"]["measured"] <= 1e-3
    assert STATED in format_summary(summary)
    assert inspect(tilted / "hmc.h5")["log_q"] is None


def test_analysis_prints_the_bound(tilted: Path, flowmc: Command) -> None:
    outcome = flowmc("analyze", tilted / "hybrid.h5")
    assert "0.001" in next(line for line in outcome.stdout.splitlines() if "off by at most (nats, stated)" in line)
    assert " on 128 draws" in next(line for line in outcome.stdout.splitlines() if "off by (nats, measured)" in line)
    assert STATED in outcome.stderr
    comparison = json.loads(flowmc("compare", tilted / "hybrid.h5", tilted / "hmc.h5", "--json").stdout)
    alone = json.loads(flowmc("analyze", tilted / "hybrid.h5", "--json").stdout)
    assert alone["log_q"] == comparison["ensembles"]["hybrid"]["log_q"]
    assert comparison["ensembles"]["hmc"]["log_q"] is None
    assert json.loads((tilted / "analysis.json").read_text())["log_q"] == alone["log_q"]


def test_report_prints_the_bound(tilted: Path) -> None:
    html = (tilted / "report.html").read_text()
    assert f'<li class="attention">hybrid: {STATED}' in html
    assert "0.001 nats stated" in html
    assert "off by at most (nats, stated)" in html


def without_log_q(ensemble: Path, copy: Path, entry: Any = None) -> Path:
    """Copy an ensemble as it was before certificates had the entry."""
    shutil.copy(ensemble, copy)
    with h5py.File(copy, "r+") as file:
        run = json.loads(file.attrs["run_json"])
        run["certificate"].pop("log_q")
        if entry is not None:
            run["certificate"]["log_q"] = entry
        file.attrs["run_json"] = json.dumps(run)
    return copy


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowmc_analysis.report.draw_pictures", lambda *_: ())


@pytest.mark.usefixtures("without_pictures")
def test_old_ensemble_is_still_read(tilted: Path, tmp_path: Path) -> None:
    old = without_log_q(tilted / "hybrid.h5", tmp_path / "old.h5")
    analysis = analyze(old)
    assert analysis.log_q is None
    assert analysis.to_dict()["log_q"] is None
    assert "nats, stated" not in render_report([analysis])
    assert "log q of the flow" not in format_summary(inspect(old))


def test_spoilt_entry_is_refused(tilted: Path, tmp_path: Path) -> None:
    spoilt = without_log_q(tilted / "hybrid.h5", tmp_path / "spoilt.h5", {"exact": False, "bound": "little"})
    with pytest.raises(CorruptionError, match="little"):
        inspect(spoilt)


@pytest.mark.usefixtures("without_pictures")
def test_exact_flow_says_so(tilted: Path, tmp_path: Path) -> None:
    exact = {"exact": True, "bound": 0.0, "measured": 2e-13, "draws": 3}
    analysis: EnsembleAnalysis = analyze(without_log_q(tilted / "hybrid.h5", tmp_path / "exact.h5", exact))
    assert not any("log q of the flow" in warning for warning in analysis.warnings)
    rows = {row[0]: row[1] for row in sampler_table([analysis]).rows}
    assert rows["log q of the flow off by at most (nats, stated)"] == "exact"
    assert rows["log q of the flow off by (nats, measured)"] == "2e-13 on 3 draws"
    assert str(analysis.log_q) == "log q of the flow is exact (log-determinant off by 2e-13 measured on 3 draws)"


def test_no_bound_is_said_too() -> None:
    assert "no bound is stated, not measured" in str(LogQAccuracy(False, None, None, 0))
