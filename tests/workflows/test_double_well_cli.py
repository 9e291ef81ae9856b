"""The example of the double well from end to end, on four sites, and what is refused of its flow before a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowmc.config import read_run
from flowmc.flows import InterpolatingFlow, build_flow
from flowmc.theories import DoubleWell
from flowmc_ensembles import Ensemble

Command = Callable[..., Any]

EXAMPLE = Path(__file__).parents[2] / "examples" / "double_well.toml"
SMALL = (
    ("n_sites = 8", "n_sites = 4"),
    ("mass = 3.0", "mass = 1.5"),
    ("\nsteps = 10 ", "\nsteps = 4 "),
    ("trajectory_steps = 20", "trajectory_steps = 8"),
    ("residual_times = 8", "residual_times = 4"),
    ("hidden = [8, 8]", "hidden = [3, 3]"),
    ("radius = 4", "radius = 2"),
    ("windows = 4", "windows = 1"),
    ("steps = 800", "steps = 60"),
    ("warmup_steps = 50", "warmup_steps = 5"),
    ("checkpoint_every = 100", "checkpoint_every = 20"),
    ("chains = 32", "chains = 8"),
    ("cycles = 1000", "cycles = 200"),
    ("hmc_trajectories = 50", "hmc_trajectories = 10"),
)


def edited(folder: Path, *changes: tuple[str, str]) -> Path:
    text = EXAMPLE.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "double_well.toml"
    path.write_text(text)
    return path


def test_example_is_of_the_deep_well_with_an_exact_flow() -> None:
    run = read_run(EXAMPLE)
    assert run.theory == DoubleWell(8, extent=4.0, mass=3.0)
    assert run.flow is not None
    flow = build_flow(run.flow, run.theory)
    assert isinstance(flow, InterpolatingFlow)
    assert flow.exact
    assert set(run.baselines()) == {"hmc"}


def test_example_runs_from_end_to_end_on_four_sites(tmp_path: Path, flowmc: Command) -> None:
    config = edited(tmp_path, *SMALL)
    outcome = flowmc("run", config, "--output", "out", "--max-minutes", "0.0001")
    assert outcome.exit_code == 0, outcome.output
    assert not (tmp_path / "out" / "flow.safetensors").exists()
    outcome = flowmc("run", config, "--output", "out", "--resume")
    assert outcome.exit_code == 0, outcome.output
    out = tmp_path / "out"
    names = {item.name for item in out.iterdir()}
    assert {"flow.safetensors", "hmc+flow.h5", "hmc.h5", "report.html", "analysis.json"} <= names
    assert json.loads((out / "analysis.json").read_text())["comparison"]["labels"] == ["hmc+flow", "hmc"]
    for name in ("hmc+flow", "hmc"):
        analysed = json.loads(flowmc("analyze", out / f"{name}.h5", "--json").stdout)
        known = {"phi_squared", "phi_fourth", "magnetisation", "effective_mass[1]"}
        assert known <= set(analysed["exact"])
        # Weights of a flow that was trained for seconds are too few for ln Z.
        scores = {key: score["z"] for key, score in analysed["exact"].items() if key != "ln_z"}
        assert all(abs(z) < 5 for z in scores.values()), str(scores)
    log_q = Ensemble(out / "hmc+flow.h5").description.log_q
    assert log_q is not None
    assert log_q.exact
    certificate = json.loads(flowmc("certify", out / "flow.safetensors", "--json").stdout)
    assert certificate["passed"]
    outcome = flowmc("plot-training", out / "flow.safetensors", "--output", "training.png")
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "training.png").stat().st_size > 10_000


WRONG: dict[str, tuple[tuple[str, str], str]] = {
    "adaptive steps": (('integrator = "midpoint"', 'integrator = "dopri5"'), "fixed steps"),
    "a path that is not known": (('kind = "learned"', 'kind = "diffusion"'), "Gaussian mixture"),
    "three hidden layers": (("hidden = [8, 8]", "hidden = [8, 8, 8]"), "two hidden layers"),
    "no sites": (("n_sites = 8", ""), "no n_sites"),
    "no mass": (("mass = 3.0", ""), "no mass"),
    "exact determinants of a large lattice": (("n_sites = 8", "n_sites = 64"), "at most 32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_before_the_training(case: str, tmp_path: Path, flowmc: Command) -> None:
    change, word = WRONG[case]
    outcome = flowmc("run", edited(tmp_path, change), "--output", "out")
    assert outcome.exit_code == 1
    assert word in outcome.stderr
    for part in ("got:", "expected:", "fix:"):
        assert part in outcome.stderr
    assert not list(tmp_path.glob("out/*"))
