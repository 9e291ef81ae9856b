"""Adapters' tests run torch on one thread, and train each library's flow once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.adapter_flows import trained
from flowmc.proposals import Proposal


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def flow_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Proposal]:
    """Return what trains the flow of an adapter, or gives it again."""
    builders = trained(tmp_path_factory.mktemp("flows"))
    made: dict[str, Proposal] = {}

    def build(name: str) -> Proposal:
        if name not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                made[name] = builders[name]().proposal
        return made[name]

    return build
