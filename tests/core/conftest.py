"""The core's tests run torch on one thread, as production does beside JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from flowmc.flows import Flow, build_flow
from flowmc.seeds import torch_generator
from flowmc.theories import Theory


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def shaken() -> Callable[[Mapping[str, object], Theory], Flow]:
    """Build a flow in float64 whose weights are away from the identity map, or the fair coins, that it starts as."""

    def build(description: Mapping[str, object], theory: Theory) -> Flow:
        flow = build_flow(description, theory, seed=3).double()
        generator = torch_generator(4)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return flow

    return build
