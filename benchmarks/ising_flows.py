"""The flows of the Ising benchmark: which are trained, how, and for how long; each is made once and then kept.

``python -m benchmarks.ising_flows [--quick] [--folder DIR] [NAME ...]`` trains some or all beforehand, interrupted and
resumed at will; `benchmarks.ising` trains those that are missing.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from math import asinh
from pathlib import Path
from typing import Any

from flowmc.config import RunConfig, parse_run
from flowmc.display import TerminalDisplay
from flowmc.flows import SavedFlow, build_flow
from flowmc.seeds import torch_generator
from flowmc.stopping import Stopper
from flowmc.training import OBJECTIVES
from flowmc.workflows import train_flow

__all__ = ["BETAS", "FOLDER", "Training", "trainings"]

FOLDER = Path("runs/ising")
BETAS = {"0.44": 0.44, "critical": asinh(1.0) / 2}
HIERARCHICAL = {"kind": "hierarchical", "width": 4, "z2": True}
AUTOREGRESSIVE = {"kind": "autoregressive", "width": 4, "z2": True}


@dataclass(frozen=True)
class Training:
    """One flow of the benchmark.

    Parameters
    ----------
    name
        Name of its file.
    extent
        L.
    beta
        Inverse temperature.
    flow
        Kind and hyper-parameters.
    training
        The training section.
    time_of
        Name of the training whose time this one is given: its steps follow from a measured step.
    start_from
        Name of the training whose weights this one takes over.
    """

    name: str
    extent: int
    beta: float
    flow: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    time_of: str = ""
    start_from: str = ""

    def config(self, steps: int | None = None) -> RunConfig:
        """Return the run description."""
        training = {"objective": "reinforce", "seed": 1, "checkpoint_every": 50, **self.training}
        if self.start_from:
            training["start_from"] = f"{self.start_from}.safetensors"
        if steps is not None:
            training["steps"] = steps
            # Few steps must still arrive at the target.
            training["annealing"] = min(training["annealing"], 1e-4 ** (1.5 / steps))
        theory = {"name": "ising", "shape": [self.extent] * 2, "beta": self.beta}
        return parse_run({"theory": theory, "flow": self.flow, "training": training})

    def make(self, folder: Path, known: dict[str, Training]) -> SavedFlow:
        """Train the flow and those that it builds on, or read what is there."""
        for needed in (self.start_from, self.time_of):
            if needed:
                known[needed].make(folder, known)
        path = folder / f"{self.name}.safetensors"
        if path.is_file():
            return SavedFlow.read(path)
        steps = self._steps_in_time(folder) if self.time_of else None
        with Stopper(None) as stopper:
            saved = train_flow(
                self.config(steps),
                path,
                resume=True,
                should_stop=stopper,
                display=TerminalDisplay(),
                base=folder,
            )
        if saved is None:
            raise SystemExit("interrupted; repeat the command to go on")
        return saved

    def _steps_in_time(self, folder: Path) -> int:
        """Return how many steps fit into the time of another training; measured once, and kept in a file."""
        kept = folder / f"{self.name}.steps"
        if not kept.is_file():
            available = float(SavedFlow.read(folder / f"{self.time_of}.safetensors").training["seconds"])
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(str(max(20, int(available / step_seconds(self.config())))))
        return int(kept.read_text())


def step_seconds(config: RunConfig, repeats: int = 5) -> float:
    """Measure a training step: draw, log q, gradient; the median of some, after one to warm up."""
    if config.flow is None:
        raise ValueError("no flow")
    flow = build_flow(config.flow, config.theory)
    seconds = []
    for step in range(repeats + 1):
        began = time.perf_counter()
        objective = OBJECTIVES[config.training.objective]
        sizes = config.training.batch_size, config.training.micro_batch
        for piece in objective(flow, config.theory, sizes[0], torch_generator(1, step), sizes[1]):
            piece.value.backward()  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[repeats // 2]


def trainings(*, quick: bool) -> dict[str, Training]:
    """Return the trainings of the benchmark by name, in order."""
    hierarchical = {"annealing": 0.99, "batch_size": 512}
    steps = {8: 3000, 16: 2500, 32: 3000}
    learning_rates = {8: 5e-3, 16: 3e-3, 32: 2e-3}
    if quick:
        steps = {8: 600}
        hierarchical["annealing"] = 0.98
    found = []
    for extent, count in steps.items():
        first, second = f"han_{extent}_0.44", f"han_{extent}_critical"
        own = {**hierarchical, "learning_rate": learning_rates[extent], "steps": count}
        found.append(Training(first, extent, BETAS["0.44"], HIERARCHICAL, own))
        tune = {"batch_size": 512, "learning_rate": 1e-3, "steps": count // 4}
        found.append(Training(second, extent, BETAS["critical"], HIERARCHICAL, tune, start_from=first))
        # Tried at L = 16 for a minute: 4e-3 leaves a smaller error than 1e-3.
        van = {**hierarchical, "learning_rate": 4e-3 if extent < 32 else 2e-3}
        found.append(Training(f"van_{extent}_0.44", extent, BETAS["0.44"], AUTOREGRESSIVE, van, time_of=first))
    if not quick:
        # The networks of smaller blocks are taken over from L = 32; annealing would only make them forget.
        large = {"batch_size": 256, "gradient_clip": 30.0}
        beta = BETAS["0.44"]
        for name, before, learning_rate, count in (
            ("han_64_first", "han_32_0.44", 2e-3, 3500),
            ("han_64_0.44", "han_64_first", 1.5e-3, 5500),
        ):
            own = {**large, "learning_rate": learning_rate, "steps": count}
            found.append(Training(name, 64, beta, HIERARCHICAL, own, start_from=before))
        own = {**large, "learning_rate": 5e-4, "steps": 500}
        found.append(Training("han_64_critical", 64, BETAS["critical"], HIERARCHICAL, own, start_from="han_64_0.44"))
    return {training.name: training for training in found}


def main() -> None:
    """Train flows of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only what the smoke run needs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the flows are kept")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all by default")
    arguments = parser.parse_args()
    known = trainings(quick=arguments.quick)
    for name in arguments.names or known:
        known[name].make(arguments.folder, known)


if __name__ == "__main__":
    main()
