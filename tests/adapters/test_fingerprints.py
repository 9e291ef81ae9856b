"""Fingerprints: the same in another process and after use, another one for whatever changes the draws."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.adapter_flows import AffineCoupling, Setting
from flowmc.proposals import Proposal
from flowmc_adapters import proposal
from flowmc_adapters.fingerprints import digest

SHAPE, SIZE = Setting().shape, Setting().size
CODE = """
import os, runpy, warnings
os.environ["JAX_ENABLE_X64"] = "1"
warnings.simplefilter("ignore")
for name, build in runpy.run_path({path!r}, run_name={name!r})["untrained"]().items():
    print(name, build().metadata.fingerprint)
"""


def zuko_flow() -> Proposal:
    import zuko

    torch.manual_seed(1)
    return proposal(zuko.flows.NSF(features=SIZE, hidden_features=(8,)), event_shape=SHAPE)


def normflows_flow() -> Proposal:
    import normflows

    torch.manual_seed(1)
    layer = normflows.flows.AffineCouplingBlock(normflows.nets.MLP([SIZE // 2, 8, SIZE]))
    return proposal(normflows.NormalizingFlow(normflows.distributions.DiagGaussian(SIZE), [layer]), event_shape=SHAPE)


def nflows_flow() -> Proposal:
    from nflows import distributions, flows, transforms

    torch.manual_seed(1)
    layer = transforms.MaskedAffineAutoregressiveTransform(SIZE, 16)
    return proposal(flows.Flow(layer, distributions.StandardNormal([SIZE])), event_shape=SHAPE)


def pyro_flow() -> Proposal:
    from pyro.distributions import Normal, TransformedDistribution
    from pyro.distributions.transforms import affine_coupling

    torch.manual_seed(1)
    base = Normal(torch.zeros(SIZE), torch.ones(SIZE)).to_event(1)
    return proposal(TransformedDistribution(base, [affine_coupling(SIZE)]), event_shape=SHAPE)


def module_flow() -> Proposal:
    torch.manual_seed(1)
    return proposal(AffineCoupling(), event_shape=SHAPE, adapter="torch_module")


def flowjax_flow() -> Proposal:
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow

    flow = coupling_flow(jax.random.key(1), base_dist=Normal(jnp.zeros(SIZE)), flow_layers=1, nn_width=8)
    return proposal(flow, event_shape=SHAPE)


def distrax_flow() -> Proposal:
    import distrax

    base = distrax.MultivariateNormalDiag(jnp.zeros(SIZE), jnp.ones(SIZE))
    layer = distrax.Block(distrax.ScalarAffine(jnp.zeros(SIZE), jnp.full(SIZE, 0.5)), 1)
    return proposal(distrax.Transformed(base, layer), event_shape=SHAPE)


def bijx_flow() -> Proposal:
    import bijx
    from flax import nnx

    class Pointwise(bijx.Bijection):  # type: ignore[misc]
        """A map with a function for an attribute."""

        def __init__(self) -> None:
            self.function = jax.nn.gelu

        def forward(self, x: jax.Array, log_density: jax.Array) -> tuple[jax.Array, jax.Array]:
            return 2 * x, log_density - SIZE * jnp.log(2.0)

        def reverse(self, x: jax.Array, log_density: jax.Array) -> tuple[jax.Array, jax.Array]:
            return x / 2, log_density + SIZE * jnp.log(2.0)

    base = bijx.IndependentNormal(event_shape=SHAPE, rngs=nnx.Rngs(0))
    return proposal(
        bijx.Transformed(base, bijx.Chain(bijx.FreeTheoryScaling(1.0, SHAPE), Pointwise())), event_shape=SHAPE
    )


def nfmodel_flow() -> Proposal:
    from flowMC.resource.model.nf_model.realNVP import RealNVP

    return proposal(RealNVP(SIZE, 2, 8, jax.random.key(1)), event_shape=SHAPE)


def function_flow(width: float = 0.5) -> Proposal:
    def sample(key: jax.Array, n: int) -> jax.Array:
        return width * jax.random.normal(key, (n, SIZE))

    def log_prob(field: jax.Array) -> jax.Array:
        return jax.scipy.stats.norm.logpdf(field, scale=width).sum(1)

    return proposal((sample, log_prob), event_shape=SHAPE, adapter="jax_callables")


def untrained() -> dict[str, Callable[[], Proposal]]:
    builders = (
        zuko_flow, normflows_flow, nflows_flow, pyro_flow, module_flow,
        flowjax_flow, distrax_flow, bijx_flow, nfmodel_flow, function_flow,
    )  # fmt: skip
    return {build.__name__: build for build in builders}


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """Fingerprints of the same flows, made in another process."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(path=__file__, name=__name__)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", sorted(untrained()))
def test_same_in_another_process(name: str, elsewhere: dict[str, str]) -> None:
    with torch.random.fork_rng(devices=[]):
        assert untrained()[name]().metadata.fingerprint == elsewhere[name]


def test_use_changes_nothing() -> None:
    from pyro.distributions import Normal, TransformedDistribution
    from pyro.distributions.transforms import affine_coupling

    with torch.random.fork_rng(devices=[]):
        base = Normal(torch.zeros(SIZE), torch.ones(SIZE)).to_event(1)
        flow = TransformedDistribution(base, [affine_coupling(SIZE)])
        before = proposal(flow, event_shape=SHAPE)
        # Pyro remembers the points of its last evaluation.
        flow.log_prob(flow.sample((3,)))
        assert proposal(flow, event_shape=SHAPE).metadata.fingerprint == before.metadata.fingerprint


def test_all_differ(elsewhere: dict[str, str]) -> None:
    assert len(set(elsewhere.values())) == len(untrained())


def test_training_changes_it_and_the_proposal_keeps_its_weights() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        module = AffineCoupling()
    build = partial(proposal, module, event_shape=SHAPE, adapter="torch_module")
    before = build()
    field, log_q = before.sample(1, 4)
    with torch.no_grad():
        next(module.parameters()).add_(1e-3)
    assert build().metadata.fingerprint != before.metadata.fingerprint
    np.testing.assert_array_equal(before.sample(1, 4)[0], field)
    np.testing.assert_array_equal(before.sample(1, 4)[1], log_q)


def test_wider_type_keeps_it() -> None:
    with torch.random.fork_rng(devices=[]):
        module = AffineCoupling()
        single = proposal(module, event_shape=SHAPE, adapter="torch_module")
        double = proposal(module, event_shape=SHAPE, adapter="torch_module", dtype="float64")
    assert (single.metadata.dtype, double.metadata.dtype) == ("float32", "float64")
    # The base is part of the flow, and white noise is the same in either type.
    assert single.metadata.fingerprint == double.metadata.fingerprint


def test_functions_are_told_apart_by_code_and_by_what_they_close_over() -> None:
    assert function_flow().metadata.fingerprint != function_flow(0.6).metadata.fingerprint

    def make(power: int) -> Callable[[float], float]:
        return lambda x: x**power

    one: Callable[[float], float] = lambda x: x + 1  # noqa: E731
    other: Callable[[float], float] = lambda x: x + 2  # noqa: E731
    assert digest(make(2)) == digest(make(2)) != digest(make(3))
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, [2, 3]], [[1, 2], 3]),
        (["ab", "c"], ["a", "bc"]),
        ({"a": 1.0}, {"a": 1}),
        (np.zeros(3), np.zeros((3, 1))),
        (torch.zeros(2), torch.tensor([0.0, -0.0])),
        (jnp.arange(3), jnp.arange(1, 4)),
        (jax.random.key(0), jax.random.key(1)),
        ({1, 2}, {1, 3}),
        (np.float64(1.0), np.float64(2.0)),
        (partial(max, 1), partial(max, 2)),
        (torch.float32, torch.float64),
        (AffineCoupling, torch.nn.Linear),
    ],
)
def test_neighbours_are_told_apart(one: Any, other: Any) -> None:
    assert digest(one) == digest(one)
    assert digest(one) != digest(other)


def executed(source: str) -> dict[str, Any]:
    """Run code as a user's module; its functions and classes are his own."""
    module: dict[str, Any] = {"__name__": "a_users_module"}
    exec(source, module)
    return module


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "class Flow:\n    def forward(self, x):\n        return x + 1\nflow = Flow()",
            "class Flow:\n    def forward(self, x):\n        return x - 1\nflow = Flow()",
        ),
        (
            "class Flow:\n    scale = 1.0\n    def forward(self, x):\n        return self.scale * x\nflow = Flow()",
            "class Flow:\n    scale = 2.0\n    def forward(self, x):\n        return self.scale * x\nflow = Flow()",
        ),
        (
            "class Flow:\n    @property\n    def width(self):\n        return 1\nflow = Flow()",
            "class Flow:\n    @property\n    def width(self):\n        return 2\nflow = Flow()",
        ),
        ("weight = 1.0\ndef flow(x):\n    return weight * x", "weight = 2.0\ndef flow(x):\n    return weight * x"),
        (
            "def inner(x):\n    return x\ndef flow(x):\n    return [inner(y) for y in x]",
            "def inner(x):\n    return -x\ndef flow(x):\n    return [inner(y) for y in x]",
        ),
        (
            "def flow(x):\n    return getattr(x, 'sin')()",
            "def flow(x):\n    return getattr(x, 'cos')()",
        ),
    ],
    ids=["method", "attribute", "property", "global", "called", "text"],
)
def test_code_of_a_user_counts(one: str, other: str) -> None:
    assert digest(executed(one)["flow"]) == digest(executed(one)["flow"])
    assert digest(executed(one)["flow"]) != digest(executed(other)["flow"])


def test_attributes_of_scripted_modules_count() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * x

    def scripted(scale: float) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.script(Scaled(scale))

    assert digest(scripted(2.0)) == digest(scripted(2.0)) != digest(scripted(3.0))


def test_masks_of_bijx_count() -> None:
    import bijx
    from flax import nnx

    def flow(parity: bool) -> str:
        mask = bijx.checker_mask(SHAPE, parity)
        base = bijx.IndependentNormal(event_shape=SHAPE, rngs=nnx.Rngs(0))
        layer = bijx.Chain(bijx.FreeTheoryScaling(1.0, SHAPE))
        layer.mask = mask
        return proposal(bijx.Transformed(base, layer), event_shape=SHAPE).metadata.fingerprint

    assert flow(True) == flow(True) != flow(False)


def test_size_of_chunks_counts() -> None:
    with torch.random.fork_rng(devices=[]):
        module = AffineCoupling()
        sizes = {
            proposal(module, event_shape=SHAPE, adapter="torch_module", largest_batch=n).metadata.fingerprint
            for n in (64, 128)
        }
    assert len(sizes) == 2


def test_circles_end() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert digest(circle) == digest(circle)
