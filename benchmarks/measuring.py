"""Time and memory of functions in this process: contenders take turns, and what a graph keeps is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.claims import Claim

__all__ = ["INFORMATIVE", "Timing", "one_thread", "ratio_claim", "saved_megabytes", "take_turns"]

INFORMATIVE = "informative"


class Timing(NamedTuple):
    """Seconds of one call, in each turn: processor time and wall clock."""

    cpu: list[float]
    wall: list[float]

    def over(self, other: Timing) -> list[float]:
        """Return the ratios of processor time to that of another one, turn by turn."""
        return [mine / its for mine, its in zip(self.cpu, other.cpu, strict=True)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Give torch one thread, as processor time is what is measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_turns(calls: Mapping[str, Callable[[], object]], turns: int, seconds: float) -> dict[str, Timing]:
    """Time functions one after the other, again and again.

    Parameters
    ----------
    calls
        The functions by name.
    turns
        How often each has its turn.
    seconds
        Least length of a turn; short functions are called several times in it.
    """
    found = {name: Timing([], []) for name in calls}
    numbers = {}
    for name, call in calls.items():
        call()
        began = time.perf_counter()
        call()
        numbers[name] = 1 + int(seconds / (time.perf_counter() - began))
    for _ in range(turns):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(numbers[name]):
                call()
            found[name].cpu.append((time.process_time() - cpu) / numbers[name])
            found[name].wall.append((time.perf_counter() - wall) / numbers[name])
    return found


def ratio_claim(name: str, above: Timing, below: Timing, target: float | None = None, note: str = "") -> Claim:
    """Return the median ratio of two timings, turn by turn."""
    ratios = above.over(below)
    wall = median(a / b for a, b in zip(above.wall, below.wall, strict=True))
    value = median(ratios)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} turns; wall clock {wall:.2f}{note}"
    wanted = INFORMATIVE if target is None else f">= {target:g}"
    return Claim(name, value, spread, wanted, "", target is None or value >= target)


def saved_megabytes(module: torch.nn.Module, step: Callable[[], object]) -> float:
    """Return what a step's graph keeps for the way back: storages not the module's own, each counted once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values()) / 2**20
