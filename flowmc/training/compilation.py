"""Compiled maps: torch.compile for the time of a training.

Fused elementwise operations save memory traffic; on a CPU a training step takes up to a quarter less
(``benchmarks/coupling_speed.py`` measures it), at the price of half a minute or so of compilation. Results differ in the
last bits from those without, so that the choice belongs to a training's identity. Production never uses it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flowmc.errors import ParameterError
from flowmc.flows import ContinuousFlow, Flow, TransportFlow

__all__ = ["check_compilable", "compiled"]

# What torch.compile looks for where CXX names nothing.
COMPILER = "clang++" if sys.platform == "darwin" else "g++"
MAPS = ("forward", "inverse")


def check_compilable(flow: Flow) -> None:
    """Check that the maps of a flow can be compiled here.

    Raises
    ------
    ParameterError
        If the flow is no transport, or a continuous one, whose solvers iterate until they have converged; or the machine
        has no C++ compiler, which torch.compile needs on a CPU.
    """
    if not isinstance(flow, TransportFlow) or isinstance(flow, ContinuousFlow):
        raise ParameterError(
            got=f"compile = true for a {flow.kind!r} flow",
            expected="a transport whose maps can be compiled: coupling or gauge",
            fix="leave out `compile`",
        )
    needed = os.environ.get("CXX") or COMPILER
    if flow.device.type == "cpu" and not shutil.which(needed):
        raise ParameterError(
            got=f"compile = true on a machine without the C++ compiler {needed!r}",
            expected=f"{COMPILER}, or the compiler that CXX names",
            fix="install one, or leave out `compile`",
        )


@contextmanager
def compiled(flow: Flow, *, wanted: bool) -> Iterator[None]:
    """Run the maps of a transport through torch.compile inside a ``with`` block, if it is wanted."""
    if not wanted:
        yield
        return
    check_compilable(flow)
    for name in MAPS:
        # An attribute of the instance stands before the method of the class.
        setattr(flow, name, torch.compile(getattr(flow, name), dynamic=False))
    try:
        yield
    finally:
        for name in MAPS:
            delattr(flow, name)
