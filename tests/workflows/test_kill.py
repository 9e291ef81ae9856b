"""Killed with SIGKILL at random moments, interrupted with Ctrl-C: the run resumes to the same bits."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from flowmc.flows import SavedFlow
from flowmc_ensembles import Ensemble, EnsembleError


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


def committed(path: Path) -> int:
    """Configurations that a reader sees; none while there is no file or its first block is being written."""
    try:
        return Ensemble(path).streams[0].n_configurations
    except (EnsembleError, OSError):
        return 0


def test_killed_runs_end_bit_identical(finished: Path, config: Path, test_seed: int) -> None:
    moments = random.Random(test_seed)
    stages = []
    for kernel in (None, "hybrid", "hybrid", "hmc"):
        process = start(config)
        out = config.parent / "out"
        deadline = time.monotonic() + 120
        # Each kill waits until its ensemble has grown, so that there is something to lose, and then for a random time.
        before = committed(out / f"{kernel}.h5") if kernel else 0
        while kernel and committed(out / f"{kernel}.h5") <= before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, 0.05) if kernel else moments.uniform(0, 8))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            stages.append(kernel)
    assert "hybrid" in stages, "no kill hit a run with committed configurations"
    process = start(config)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
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
