"""Run descriptions: defaults, unknown keys with the nearest name, wrong types and values, before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flowmc.config import parse_run, read_run
from flowmc.errors import ConfigError
from flowmc.theories import Phi4

THEORY = {"name": "phi4", "shape": [8, 8], "m2": -4.0, "lam": 8.0}


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    run = read_run(path)
    assert run.flow is not None
    assert run.baselines()


def test_example_of_phi4() -> None:
    run = read_run(EXAMPLES / "phi4_8x8.toml")
    assert run.theory == Phi4((8, 8), -4.0, 8.0)
    assert run.sampling.kernel == "hybrid"
    assert list(run.baselines()) == ["flow", "hmc"]


def test_a_theory_is_enough() -> None:
    run = parse_run({"theory": THEORY})
    assert run.flow is None
    assert run.baselines() == {}


def test_baselines_take_the_sampling_section() -> None:
    run = parse_run(
        {
            "theory": THEORY,
            "sampling": {"chains": 8, "cycles": 100, "thermalisation": 50, "tuning": 20},
            "baseline": {"kernels": ["hmc"], "cycles": 300},
        }
    )
    hmc = run.baselines()["hmc"]
    assert (hmc.kernel, hmc.chains, hmc.cycles) == ("hmc", 8, 300)


def test_baselines_have_their_own_trajectory_length() -> None:
    # Fictitious time means something else with Fourier acceleration.
    run = parse_run(
        {
            "theory": THEORY,
            "sampling": {"kernel": "hmc", "trajectory_length": 1.0, "acceleration_mass": 0.4},
            "baseline": {"kernels": ["fourier_hmc"], "trajectory_length": 1.5},
        }
    )
    baseline = run.baselines()["fourier_hmc"]
    assert (baseline.trajectory_length, baseline.acceleration_mass) == (1.5, 0.4)
    assert baseline.plan.tuning == run.sampling.tuning
    assert run.sampling.trajectory_length == 1.0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown section": ({"theory": THEORY, "samplings": {}}, "did you mean 'sampling'"),
    "unknown key": ({"theory": THEORY, "sampling": {"chain": 3}}, "did you mean 'chains'"),
    "unknown coupling": ({"theory": {**THEORY, "lambda": 1.0}}, "did you mean 'lam'"),
    "unknown hyper-parameter": ({"theory": THEORY, "flow": {"kind": "coupling", "layer": 3}}, "did you mean 'layers'"),
    "unknown theory": ({"theory": {**THEORY, "name": "phi_4"}}, "did you mean 'phi4'"),
    "unknown flow": ({"theory": THEORY, "flow": {"kind": "coupled"}}, "did you mean 'coupling'"),
    "no theory": ({"sampling": {}}, "no [theory] section"),
    "missing coupling": ({"theory": {"name": "phi4", "shape": [8, 8], "m2": 1.0}}, "no lam"),
    "wrong type": ({"theory": THEORY, "sampling": {"chains": "many"}}, "chains = 'many'"),
    "number as text": ({"theory": {**THEORY, "lam": "8.0"}}, "lam = '8.0'"),
    "fraction for a count": ({"theory": THEORY, "sampling": {"cycles": 10.5}}, "cycles = 10.5"),
    "negative coupling": ({"theory": {**THEORY, "lam": -1.0}}, "lam = -1.0"),
    "one-site extent": ({"theory": {**THEORY, "shape": [8, 1]}}, "[8, 1]"),
    "not a section": ({"theory": THEORY, "flow": 3}, "flow = 3"),
    "unknown kernel": ({"theory": THEORY, "sampling": {"kernel": "nuts"}}, "'nuts'"),
    "unknown baseline": ({"theory": THEORY, "baseline": {"kernels": ["nuts"]}}, "'nuts'"),
    "blocks do not fit": ({"theory": THEORY, "sampling": {"cycles": 101}}, "multiple of 50"),
    "baseline blocks do not fit": ({"theory": THEORY, "baseline": {"kernels": ["hmc"], "cycles": 101}}, "[baseline]"),
    "tuning in production": ({"theory": THEORY, "sampling": {"tuning": 200}}, "tuning = 200"),
    "flow start of hmc": ({"theory": THEORY, "sampling": {"kernel": "hmc", "start": "flow"}}, "flow to draw from"),
    "zero step": ({"theory": THEORY, "sampling": {"step_size": 0.0}}, "step_size = 0.0"),
    "zero mass": ({"theory": THEORY, "sampling": {"acceleration_mass": 0.0}}, "acceleration_mass = 0.0"),
    "kernel nearly named": ({"theory": THEORY, "sampling": {"kernel": "fourier"}}, "did you mean 'fourier_hmc'"),
    "short baseline": ({"theory": THEORY, "baseline": {"kernels": ["hmc"], "trajectory_length": 0.01}}, "[baseline]"),
    "training value": ({"theory": THEORY, "training": {"steps": -5}}, "steps = -5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_descriptions_are_refused(case: str) -> None:
    tables, word = WRONG[case]
    with pytest.raises(ConfigError, match=re.escape(word)) as caught:
        parse_run(tables)
    assert caught.value.got
    assert caught.value.expected
    assert caught.value.fix


def test_missing_and_malformed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        read_run(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[theory\nname =")
    with pytest.raises(ConfigError, match="TOML"):
        read_run(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="TOML"):
        read_run(tmp_path / "binary.toml")
