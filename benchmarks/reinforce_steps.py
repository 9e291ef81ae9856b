"""One training step for the Schwinger model, taken apart: time and memory of objectives and of ways to a determinant.

Every lattice is measured in processes of its own with one thread: ``python -m benchmarks.reinforce_steps time L DTYPE
REPEATS`` prints the seconds of all cases, taken in turn, as JSON; ``... memory L DTYPE`` the largest memory of a step of
each case, and ``... micro L DTYPE`` that with micro-batches. The flow is the one of arXiv:2308.13294, 48 layers of
gauge-equivariant splines, with weights shaken out of their initial values, where the last convolutions vanish.

Ways to a determinant ("assembly"):

- "even_odd": the library's, a matrix of half the size in one gather;
- "full": the whole Dirac matrix in one gather;
- "site_by_site": the whole matrix, written block by block in a loop over sites and directions, as the code published
  with arXiv:2308.13294 does.

Torch differentiates each of them. "reverse_kl" and "path_gradient" take the library's analytic force instead.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ising_scaling import process_memory
from benchmarks.measuring import saved_megabytes
from flowmc.flows import DTYPES, GaugeFlow
from flowmc.flows.gauge import GaugeConfig
from flowmc.seeds import torch_generator
from flowmc.theories import Schwinger
from flowmc.theories.wilson import GAMMA, dirac_matrix, even_odd_matrix
from flowmc.training import OBJECTIVES

__all__ = [
    "ASSEMBLIES",
    "BATCH",
    "FLOW",
    "Case",
    "Memory",
    "Seconds",
    "cases",
    "measure_memory",
    "measure_micro",
    "measure_seconds",
]

BATCH = 8
BETA, KAPPA = 2.0, 0.276
FLOW: dict[str, Any] = {
    "layers": 48,
    "mask": "rows",
    "network": "lattice",
    "hidden": (64, 64),
    "kernel": 3,
    "dilations": (1, 2, 3),
    "transformation": "spline",
    "pieces": 8,
}
# Batches and micro-batches that are compared; 0 is the whole batch.
MICRO = ((8, 0), (64, 0), (64, 8))
# A matrix written block by block takes minutes for a step on larger lattices.
LARGEST_SITE_BY_SITE = 16


def site_by_site_matrix(links: Tensor, kappa: float) -> Tensor:
    """Return D, (n, 2V, 2V), numbered as by `dirac_matrix`, from blocks of 2 × 2 written one after the other."""
    n, n_time, n_space = links.shape[:3]
    hopping = torch.zeros(n, 2 * n_time * n_space, 2 * n_time * n_space, dtype=links.dtype.to_complex())
    one, gamma = torch.eye(2, dtype=hopping.dtype), torch.tensor(GAMMA, dtype=hopping.dtype)
    for t, x in product(range(n_time), range(n_space)):
        here = 2 * (t * n_space + x)
        for direction, site in enumerate((((t + 1) % n_time, x), (t, (x + 1) % n_space))):
            there = 2 * (site[0] * n_space + site[1])
            # Antiperiodic in time.
            sign = -1 if direction == 0 and t == n_time - 1 else 1
            link = sign * torch.exp(1j * links[:, t, x, direction])[:, None, None]
            hopping[:, here : here + 2, there : there + 2] = (one - gamma[direction]) * link
            hopping[:, there : there + 2, here : here + 2] = (one + gamma[direction]) * link.conj()
    return torch.eye(hopping.shape[-1], dtype=hopping.dtype) - kappa * hopping


ASSEMBLIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "even_odd": even_odd_matrix,
    "full": dirac_matrix,
    "site_by_site": site_by_site_matrix,
}


class Clock:
    """Seconds spent in the parts of a step: processor time, which other work on the machine does not add to."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part's."""
        began = time.process_time()
        yield
        self.add(part, time.process_time() - began)

    def add(self, part: str, seconds: float) -> None:
        """Add to a part's time."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds


@dataclass(frozen=True)
class TimedSchwinger(Schwinger):
    """The Schwinger model with a choice of how its matrix is assembled, and a clock."""

    assembly: str = "even_odd"
    clock: Clock = field(default_factory=Clock, compare=False)

    def action(self, links: Tensor) -> Tensor:
        """Return S; where torch differentiates it, the time of that is taken as well."""
        differentiated = links.requires_grad and torch.is_grad_enabled()
        began = 0.0

        def begin(_: Tensor) -> None:
            nonlocal began
            began = time.process_time()

        def end(_: Tensor) -> None:
            self.clock.add("action, backward", time.process_time() - began)

        with self.clock.time("action"):
            if differentiated:
                # Torch goes back through the nodes in the reverse order of their making: the action's come first.
                links = links.view_as(links)
                links.register_hook(end)  # type: ignore[no-untyped-call]
            log_modulus = torch.linalg.slogdet(ASSEMBLIES[self.assembly](links, self.kappa))[1]
            action: Tensor = self.gauge_action(links) - self.n_flavours * log_modulus.double()
            if differentiated:
                action.register_hook(begin)  # type: ignore[no-untyped-call]
        return action

    def action_and_force(self, links: Tensor) -> tuple[Tensor, Tensor]:
        """Return S and the analytic force, by the library's even-odd matrix."""
        with self.clock.time("action"):
            action, force = super().action_and_force(links)
        return action, force


class TimedFlow(GaugeFlow):
    """A gauge flow with a clock."""

    clock: Clock

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw; see `Flow.sample`."""
        with self.clock.time("draw"):
            return super().sample(n, generator)

    def log_prob(self, links: Tensor) -> Tensor:
        """Return log q; see `Flow.log_prob`."""
        with self.clock.time("log q"):
            return super().log_prob(links)


@dataclass(frozen=True)
class Case:
    """An objective, and how its determinant is made."""

    objective: str
    assembly: str

    @property
    def label(self) -> str:
        """Name in tables."""
        short = {"reinforce": "RE", "reverse_kl": "RT", "reverse_kl_autograd": "RT", "path_gradient": "path"}
        how = "analytic force" if self.objective in ("reverse_kl", "path_gradient") else self.assembly.replace("_", " ")
        return f"{short[self.objective]}, {how}"


def cases(extent: int) -> tuple[Case, ...]:
    """Return the cases that are feasible for an L × L lattice."""
    found = [Case("reinforce", "even_odd"), Case("reverse_kl", "even_odd"), Case("path_gradient", "even_odd")]
    found += [Case("reverse_kl_autograd", "even_odd")]
    slow = ("full", "site_by_site") if extent <= LARGEST_SITE_BY_SITE else ("full",)
    found += [Case(objective, assembly) for assembly in slow for objective in ("reinforce", "reverse_kl_autograd")]
    return tuple(found)


@dataclass(frozen=True)
class Seconds:
    """Measured seconds of a step: the whole and its parts in processor time, and the whole by the wall clock."""

    case: Case
    total: list[float]
    wall: list[float]
    parts: dict[str, list[float]]


@dataclass(frozen=True)
class Memory:
    """Memory of a step of a batch in micro-batches, 0 for none.

    Parameters
    ----------
    resident
        Largest memory beyond what was there before, in MB.
    saved
        What the graph of one piece holds, in MB.
    seconds
        Processor time of the step.
    """

    case: Case
    batch: int
    micro_batch: int
    resident: float
    saved: float
    seconds: float


def _build(case: Case, extent: int, dtype: str) -> tuple[TimedFlow, TimedSchwinger]:
    theory = TimedSchwinger((extent, extent), BETA, KAPPA, assembly=case.assembly)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        flow = TimedFlow(theory, GaugeConfig(**FLOW, dtype=dtype))
    flow.clock = theory.clock
    generator = torch_generator(1, "shaken")
    with torch.no_grad():
        for weight in flow.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_(noise.to(weight.dtype), alpha=0.02)
    return flow, theory


def _step(case: Case, flow: TimedFlow, theory: TimedSchwinger, batch: int, micro_batch: int, number: int) -> float:
    """Take the gradient of a batch; return the seconds of it in processor time."""
    flow.zero_grad()
    theory.clock.seconds.clear()
    began = time.process_time()
    for piece in OBJECTIVES[case.objective](flow, theory, batch, torch_generator(1, number), micro_batch):
        piece.value.backward()  # type: ignore[no-untyped-call]
    return time.process_time() - began


def _time_all(extent: int, dtype: str, repeats: int) -> list[Seconds]:
    """Time the steps of all cases in turn, after one each to warm up."""
    built = [(case, *_build(case, extent, dtype)) for case in cases(extent)]
    found = [Seconds(case, [], [], {}) for case, *_ in built]
    for number in range(repeats + 1):
        for (case, flow, theory), kept in zip(built, found, strict=True):
            began = time.perf_counter()
            total = _step(case, flow, theory, BATCH, 0, number)
            wall = time.perf_counter() - began
            flow.zero_grad()
            parts = dict(theory.clock.seconds)
            parts["networks, backward"] = total - sum(parts.values())
            if number:
                kept.total.append(total)
                kept.wall.append(wall)
                for part, seconds in parts.items():
                    kept.parts.setdefault(part, []).append(seconds)
    return found


def _largest_memory(extent: int, dtype: str, case: Case, batch: int, micro_batch: int) -> Memory:
    """Measure one step in this process (Linux)."""
    flow, theory = _build(case, extent, dtype)
    # What the libraries set up once is not the step's.
    _step(case, flow, theory, 2, 0, 0)
    flow.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident memory so far is forgotten
    seconds = _step(case, flow, theory, batch, micro_batch, 1)
    resident = process_memory("VmHWM") - before
    piece = micro_batch or batch
    saved = saved_megabytes(flow, lambda: _step(case, flow, theory, piece, 0, 2))
    return Memory(case, batch, micro_batch, resident, saved, seconds)


def _measured(folder: Path, *words: object) -> list[dict[str, Any]]:
    """Return what a process of its own measures, or has measured before."""
    kept = folder / f"{'_'.join(map(str, words))}.json"
    if not kept.is_file():
        command = [sys.executable, "-m", "benchmarks.reinforce_steps", *map(str, words)]
        # Every large tensor gets pages of its own, given back when it is freed: memory in use, not that of the allocator.
        settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"} if words[0] != "time" else None
        kept.write_text(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=settings).stdout)
    found: list[dict[str, Any]] = json.loads(kept.read_text())
    return [{**one, "case": Case(**one["case"])} for one in found]


def measure_seconds(extent: int, dtype: str, repeats: int, folder: Path) -> list[Seconds]:
    """Time the cases of a lattice, or read what was measured before."""
    return [Seconds(**one) for one in _measured(folder, "time", extent, dtype, repeats)]


def measure_memory(extent: int, dtype: str, folder: Path) -> list[Memory]:
    """Measure the memory of the cases of a lattice, or read what was measured before."""
    return [Memory(**one) for one in _measured(folder, "memory", extent, dtype)]


def measure_micro(extent: int, dtype: str, folder: Path) -> list[Memory]:
    """Measure the memory of REINFORCE and of the reparametrised gradient with and without micro-batches; see above."""
    return [Memory(**one) for one in _measured(folder, "micro", extent, dtype)]


def main() -> None:
    """Measure in this process."""
    what, words, dtype, *rest = sys.argv[1:]
    extent = int(words)
    if dtype not in DTYPES:
        raise SystemExit(f"{dtype!r} is none of {sorted(DTYPES)}")
    torch.set_num_threads(1)
    found: Sequence[Seconds | Memory]
    if what == "time":
        found = _time_all(extent, dtype, int(rest[0]))
    elif what == "memory":
        found = [_largest_memory(extent, dtype, case, BATCH, 0) for case in cases(extent)]
    else:
        found = [_largest_memory(extent, dtype, case, *sizes) for case in cases(extent)[:2] for sizes in MICRO]
    print(json.dumps([asdict(one) for one in found]))


if __name__ == "__main__":
    main()
