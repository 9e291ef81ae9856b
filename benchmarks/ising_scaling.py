"""Time and memory of hierarchical and plain autoregressive networks of random weights, against the extent L.

Every figure comes from a process of its own, whose largest memory is counted from where the libraries are loaded:
``python -m benchmarks.ising_scaling KIND WHAT L BATCH`` prints one as JSON. KIND is "hierarchical" or "autoregressive";
WHAT is "train" (draw, log q, gradient), "sample" (draw and log q) or "naive" (draw with a full pass of the network for
every spin, as the published code of VAN does). One thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.ising_flows import AUTOREGRESSIVE, BETAS, HIERARCHICAL
from flowmc.flows import AutoregressiveFlow, Flow, build_flow
from flowmc.flows.spins import spin_log_prob
from flowmc.seeds import torch_generator
from flowmc.theories import Ising
from flowmc.training import reinforce

__all__ = ["CASES", "QUICK_CASES", "Case", "Measurement", "exponent", "measure", "process_memory"]

FLOWS = {"hierarchical": HIERARCHICAL, "autoregressive": AUTOREGRESSIVE}


@dataclass(frozen=True)
class Case:
    """What is timed: a kind of flow, an action on it, L, and the batch."""

    kind: str
    what: str
    extent: int
    batch: int


@dataclass(frozen=True)
class Measurement:
    """Seconds of one call (median, smallest, largest) and the largest memory that it took, flow included, in MB."""

    case: Case
    seconds: float
    fastest: float
    slowest: float
    megabytes: float

    @property
    def per_configuration(self) -> float:
        """Seconds for each configuration of the batch."""
        return self.seconds / self.case.batch


CASES = (
    *(Case("hierarchical", what, extent, 64) for what in ("train", "sample") for extent in (8, 16, 32, 64, 128)),
    *(Case("hierarchical", "sample", extent, 8) for extent in (256, 512)),
    *(Case("autoregressive", what, extent, 64) for what in ("train", "sample") for extent in (8, 16, 32, 64)),
    *(Case("autoregressive", "naive", extent, 64) for extent in (8, 16, 32)),
)
QUICK_CASES = tuple(case for case in CASES if case.extent <= 16)


def measure(case: Case, folder: Path) -> Measurement:
    """Measure a case in a process of its own, or read what was measured before."""
    words = [case.kind, case.what, str(case.extent), str(case.batch)]
    kept = folder / f"scaling_{'_'.join(words)}.json"
    if not kept.is_file():
        command = [sys.executable, "-m", "benchmarks.ising_scaling", *words]
        kept.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return Measurement(case, **json.loads(kept.read_text()))


def exponent(extents: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Fit values ~ L^e; return e and its error from the scatter about the line."""
    x, y = np.log(extents), np.log(values)
    (slope, _), residuals, *_ = np.polyfit(x, y, 1, full=True)
    freedom = len(x) - 2
    scatter = float(residuals[0]) / freedom if freedom > 0 and len(residuals) else float("nan")
    return float(slope), sqrt(scatter / float(((x - x.mean()) ** 2).sum()))


def _naive_draw(flow: Flow, n: int, generator: torch.Generator) -> None:
    if not isinstance(flow, AutoregressiveFlow):
        raise TypeError("the naive draw is that of a plain autoregressive flow")
    network = flow.network
    uniform = torch.rand(network.n_spins, n, generator=generator)
    spins, context = torch.zeros(n, network.n_spins), torch.empty(n, 0)
    for i in range(network.n_spins):
        logits = network(context, spins)
        spins[:, i] = torch.where(uniform[i] < torch.sigmoid(logits[:, i]), 1.0, -1.0)
    spin_log_prob(spins, network(context, spins)).sum(1)


def _act(case: Case, flow: Flow, theory: Ising, number: int) -> None:
    generator = torch_generator(1, number)
    if case.what == "train":
        for piece in reinforce(flow, theory, case.batch, generator):
            piece.value.backward()  # type: ignore[no-untyped-call]
        flow.zero_grad()
        return
    with torch.inference_mode():
        if case.what == "naive":
            _naive_draw(flow, case.batch, generator)
        else:
            flow.sample(case.batch, generator)


def process_memory(entry: str) -> float:
    """Return a figure of this process's memory, in MB (Linux; what `resource` knows includes the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(entry)).split()[1]) / 1024


def main() -> None:
    """Measure one case in this process."""
    kind, what, extent, batch = sys.argv[1:]
    case = Case(kind, what, int(extent), int(batch))
    torch.set_num_threads(1)
    before = process_memory("VmRSS")
    theory = Ising((case.extent, case.extent), BETAS["critical"])
    flow = build_flow({**FLOWS[kind], "z2": False}, theory, seed=1)
    seconds: list[float] = []
    # Long calls are not repeated as often; the first one warms up, unless it is long itself.
    while len(seconds) < 6 and not (len(seconds) >= 2 and sum(seconds) > 30):
        began = time.perf_counter()
        _act(case, flow, theory, len(seconds))
        seconds.append(time.perf_counter() - began)
    timed = seconds[1:]
    peak = process_memory("VmHWM") - before
    print(
        json.dumps({"seconds": median(timed), "fastest": min(timed), "slowest": max(timed), "megabytes": peak}),
    )


if __name__ == "__main__":
    main()
