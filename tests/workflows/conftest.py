"""Runs that are small enough for the suite and have every part: 4×4 lattices, small flows, all kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowmc.cli import app

SMALL_RUN = """
[theory]
name = "phi4"
shape = [4, 4]
m2 = -4.0
lam = 8.0

[flow]
kind = "coupling"
repeat = 1
layers = [{ kind = "affine", hidden = [4] }, { kind = "sinh_arcsinh" }]

[training]
steps = 150
batch_size = 128
seed = 1
checkpoint_every = 50
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
kernels = ["flow", "hmc"]
"""

SMALL_ISING_RUN = """
[theory]
name = "ising"
shape = [4, 4]
beta = 0.4

[flow]
kind = "hierarchical"

[training]
objective = "reinforce"
steps = 100
batch_size = 64
learning_rate = 0.01
annealing = 0.9
seed = 1
checkpoint_every = 50

[sampling]
seed = 3
chains = 8
cycles = 200
thermalisation = 40
tuning = 0
cycles_per_block = 20
flow_proposals = 2

[baseline]
kernels = ["heat_bath", "metropolis", "wolff", "swendsen_wang", "blocks+flow"]
"""


class Command:
    """Runs `flowmc` in this process, with captured streams."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *arguments: str | Path) -> Any:
        from typer.testing import CliRunner

        before = Path.cwd()
        os.chdir(self._folder)
        try:
            return CliRunner().invoke(app, [str(argument) for argument in arguments])
        finally:
            os.chdir(before)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL_RUN)
    return path


@pytest.fixture
def ising_config(tmp_path: Path) -> Path:
    path = tmp_path / "ising.toml"
    path.write_text(SMALL_ISING_RUN)
    return path


@pytest.fixture
def flowmc(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.toml").write_text(SMALL_RUN)
    outcome = Command(folder)("run", "small.toml", "--output", "out")
    assert outcome.exit_code == 0, outcome.output
    return folder


@pytest.fixture(scope="session")
def finished_ising(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the Ising model; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished_ising")
    (folder / "ising.toml").write_text(SMALL_ISING_RUN)
    outcome = Command(folder)("run", "ising.toml", "--output", "out")
    assert outcome.exit_code == 0, outcome.output
    return folder


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `flowmc` in a process of its own, to be signalled or killed."""

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flowmc.cli", *map(str, arguments)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
