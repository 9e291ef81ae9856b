"""The core's tests run torch on one thread, as production does beside JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt

import pytest
import torch

from flowmc.flows import Flow, build_flow
from flowmc.flows.networks import SiteConvolution
from flowmc.seeds import torch_generator
from flowmc.theories import Theory


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def shake() -> Callable[[torch.nn.Module], None]:
    """Return what adds noise to the weights of a module in float64.

    Convolutions of many channels, one after the other, make a chaotic map of weights that are all shaken by 0.2: log
    determinants of tens of nats, and inverses without digits. The more inputs theirs sum, the less they are shaken.
    """

    def apply(module: torch.nn.Module) -> None:
        generator = torch_generator(4)
        scales = {
            part.weight: 0.6 / sqrt(part.fan_in if isinstance(part, SiteConvolution) else part.weight[0].numel())
            for part in module.modules()
            if isinstance(part, torch.nn.Conv2d | SiteConvolution)
        }
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(scales.get(parameter, 0.2) * noise)

    return apply


@pytest.fixture
def shaken(shake: Callable[[torch.nn.Module], None]) -> Callable[[Mapping[str, object], Theory], Flow]:
    """Build a flow in float64 whose weights are away from the identity map, or the fair coins, that it starts as."""

    def build(description: Mapping[str, object], theory: Theory) -> Flow:
        flow = build_flow(description, theory, seed=3).double()
        shake(flow)
        return flow

    return build
