"""Killed with SIGKILL at random moments, interrupted with Ctrl-C: the run resumes to the same bits."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from flowmc.flows import SavedFlow
from flowmc_ensembles import Ensemble


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flowmc.cli", "run", config.name, "--output", "out", "--resume"],
        cwd=config.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_same_results(one: Path, other: Path) -> None:
    assert (
        SavedFlow.read(one / "flow.safetensors").fingerprint == SavedFlow.read(other / "flow.safetensors").fingerprint
    )
    for kernel in ("hybrid", "flow", "hmc"):
        a, b = (Ensemble(folder / f"{kernel}.h5").streams[0] for folder in (one, other))
        np.testing.assert_array_equal(a.configurations(), b.configurations(), err_msg=kernel)
        for name in set(a.history_names) - {"walltime"}:
            np.testing.assert_array_equal(a.history(name), b.history(name), err_msg=f"{kernel}/{name}")


def test_killed_runs_end_bit_identical(finished: Path, config: Path, test_seed: int) -> None:
    moments = random.Random(test_seed)
    kills = 0
    for _ in range(4):
        process = start(config)
        # Any moment from start-up on; a run that is through by then has nothing left to be killed.
        try:
            process.wait(moments.uniform(2, 12))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    process = start(config)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert kills > 0
    assert_same_results(config.parent / "out", finished / "out")


def test_interrupt_stops_at_a_committed_state(finished: Path, config: Path) -> None:
    process = start(config)
    # Wait for the first ensemble: from then on there is a block to finish.
    deadline = time.monotonic() + 120
    while not (config.parent / "out" / "hybrid.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode in {0, 130}, errors
    assert "Traceback" not in errors
    if process.returncode == 130:
        assert "--resume" in errors
        process = start(config)
        process.communicate()
    assert_same_results(config.parent / "out", finished / "out")
