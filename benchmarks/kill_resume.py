"""Kill the main job at random moments, resume it, and compare the result bit by bit with an uninterrupted run.

Run from the checkout: ``python -m benchmarks.kill_resume [--quick] [--json PATH]``. The job is the one of
examples/phi4_8x8.toml with fewer steps and cycles: training, certificate, hybrid, flow-only and HMC. Each process gets
SIGKILL after a random time, drawn so that the kills fall on all stages; then ``--resume`` goes on.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.claims import Claim, parser, write_claims
from flowmc.flows import SavedFlow
from flowmc_ensembles import Ensemble

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


def run_with_kills(config: Path, output: Path, kills: int, seconds: float, seed: int) -> tuple[int, list[str]]:
    """Run the job, killing it ``kills`` times; return how many kills hit a living process, and what each hit."""
    generator = random.Random(seed)
    stages: list[str] = []
    while len(stages) < kills:
        process = subprocess.Popen(command(config, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Start-up takes a few seconds, and what is done already shortens the rest: aim at all of it.
        time.sleep(generator.uniform(0.3, 1.6 * seconds / (kills + 1) + 5))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        stages.append(", ".join(sorted(item.name for item in output.glob("*.h5"))) or "training")
        print(f"kill {len(stages)}: {stages[-1]}", flush=True)
    subprocess.run(command(config, output), check=True, stdout=subprocess.DEVNULL)
    return len(stages), stages


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "").parse_args()
    wanted = 3 if arguments.quick else 10
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
        seed = random.SystemRandom().randrange(2**32)
        print(f"uninterrupted: {seconds:.0f} s; random moments from seed {seed}", flush=True)
        kills, stages = run_with_kills(config, killed, wanted, seconds, seed)
        wrong = differences(whole, killed)
    spread = f"{len(set(stages))} stages of the job, seed {seed}"
    write_claims(
        [
            Claim("kills survived", kills, spread, f"at least {wanted}", "kills", kills >= wanted),
            Claim("tables that differ from the uninterrupted run", len(wrong), str(wrong), "0", "tables", not wrong),
        ],
        arguments.json,
    )
    raise SystemExit(0 if kills >= wanted and not wrong else 1)


if __name__ == "__main__":
    main()
