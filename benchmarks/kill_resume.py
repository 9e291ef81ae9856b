"""Kill the main job at random moments, resume it, and compare the result bit by bit with an uninterrupted run.

Run from the checkout: ``python -m benchmarks.kill_resume [--quick] [--json PATH]``. The job is the one of
examples/phi4_8x8.toml with fewer steps and cycles: training, certificate, hybrid, flow-only and HMC. Each process gets
SIGKILL at a random moment of a given stage; then ``--resume`` goes on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random, SystemRandom

import numpy as np

from benchmarks.claims import Claim, parser, write_claims
from flowmc.flows import SavedFlow
from flowmc_ensembles import Ensemble, EnsembleError

EXAMPLE = Path(__file__).parents[1] / "examples" / "phi4_8x8.toml"
# Smaller numbers, the same kernels; blocks are short so that kills meet many commits.
CHANGES = {
    "steps = 2000": "steps = 300",
    "checkpoint_every = 250": "checkpoint_every = 20",
    "cycles = 1500": "cycles = 900",
    "thermalisation = 150": "thermalisation = 60",
    "tuning = 75": "tuning = 30",
    "cycles_per_block = 75": "cycles_per_block = 10",
}
KERNELS = ("hybrid", "flow", "hmc")
# Where each kill falls, and the longest random delay in seconds: from the start of the process for the training, from
# the first new commit for the ensembles. The stages differ in length by a factor of ten; blind moments all hit the first.
PLAN = [
    *[("training", 12.0)] * 3,
    *[("hybrid", 2.0)] * 3,
    *[("flow", 0.5)] * 2,
    *[("hmc", 0.15)] * 2,
]


def command(config: Path, output: Path) -> list[str]:
    """Return the command line of the job."""
    return [sys.executable, "-m", "flowmc.cli", "run", str(config), "--output", str(output), "--resume"]


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of all tables that differ between two folders of results, wall times left out."""
    found = []
    if SavedFlow.read(one / "flow.safetensors").fingerprint != SavedFlow.read(other / "flow.safetensors").fingerprint:
        found.append("flow")
    for kernel in KERNELS:
        a, b = (Ensemble(folder / f"{kernel}.h5").streams[0] for folder in (one, other))
        pairs = {"phi": (a.configurations(), b.configurations()), "trajectory": (a.trajectory, b.trajectory)}
        pairs |= {name: (a.history(name), b.history(name)) for name in a.history_names if name != "walltime"}
        pairs |= {name: (a.observable(name), b.observable(name)) for name in a.observable_names}
        last_a, last_b = a.checkpoint() or {}, b.checkpoint() or {}
        pairs |= {f"checkpoint {name}": (np.asarray(last_a[name]), np.asarray(last_b[name])) for name in last_a}
        found += [
            f"{kernel}/{name}"
            for name, (x, y) in pairs.items()
            if not np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        ]
    return found


def rows(path: Path) -> int:
    """Return the updates that a reader sees; none while the file is being created."""
    try:
        return Ensemble(path).streams[0].n_updates
    except (EnsembleError, OSError):
        return 0


def run_with_kills(config: Path, output: Path, plan: Sequence[tuple[str, float]], generator: Random) -> list[str]:
    """Run the job, killing it once for each entry of the plan; return where the kills that met a living process fell."""
    fallen = []
    for stage, longest in plan:
        process = subprocess.Popen(command(config, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        target = output / f"{stage}.h5"
        before = rows(target)
        # In a sampling stage: once its file has grown, so that there is something to lose, and a random time after that.
        while stage in KERNELS and rows(target) <= before and process.poll() is None:
            time.sleep(0.003)
        time.sleep(generator.uniform(0, longest))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            fallen.append(stage)
            print(f"kill {len(fallen)}: in {stage}, {rows(target)} updates committed", flush=True)
    subprocess.run(command(config, output), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return fallen


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "").parse_args()
    plan = PLAN[::3] if arguments.quick else PLAN
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "job.toml"
        text = EXAMPLE.read_text()
        for old, new in CHANGES.items():
            if old not in text:
                raise SystemExit(f"{EXAMPLE.name} no longer says {old!r}")
            text = text.replace(old, new)
        config.write_text(text)
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        began = time.perf_counter()
        subprocess.run(command(config, whole), check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        seed = SystemRandom().randrange(2**32)
        print(f"uninterrupted: {seconds:.0f} s; random moments from seed {seed}", flush=True)
        fallen = run_with_kills(config, killed, plan, Random(seed))
        wrong = differences(whole, killed)
    where = ", ".join(f"{fallen.count(stage)} in {stage}" for stage in dict.fromkeys(fallen))
    enough = len(fallen) == len(plan)
    write_claims(
        [
            Claim("kills", len(fallen), f"{where}; seed {seed}", str(len(plan)), "", enough),
            Claim("tables that differ from the uninterrupted run", len(wrong), str(wrong), "0", "", not wrong),
        ],
        arguments.json,
    )
    raise SystemExit(0 if enough and not wrong else 1)


if __name__ == "__main__":
    main()
