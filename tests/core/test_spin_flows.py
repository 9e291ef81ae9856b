"""Flows of spins: normalised by enumeration, drawn as log q says, causal, and symmetric where they should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from flowmc.errors import ParameterError
from flowmc.flows import Flow, SpinFlow, build_flow
from flowmc.flows.causal import CausalConvolution, CausalDense, CausalNetwork
from flowmc.seeds import torch_generator
from flowmc.testing import ExactIsing, counts_p_value, enumerate_spins
from flowmc.theories import Ising, Theory

Shaken = Callable[[Mapping[str, object], Theory], Flow]

DENSE: dict[str, object] = {"kind": "autoregressive"}
CONVOLUTION: dict[str, object] = {"kind": "autoregressive", "network": "convolutional"}
HIERARCHY: dict[str, object] = {"kind": "hierarchical"}
SQUARE = Ising((4, 4), 0.44)
IN_A_FIELD = Ising((4, 4), 0.3, coupling=-0.8, field=0.4)

VARIANTS: list[tuple[dict[str, object], Ising]] = [
    (DENSE, SQUARE),
    ({**DENSE, "width": 2, "depth": 3, "z2": False}, IN_A_FIELD),
    ({**DENSE, "z2": False, "translations": True}, SQUARE),
    ({**DENSE, "translations": True}, SQUARE),
    (DENSE, Ising((2, 3), 0.4)),
    ({**DENSE, "translations": True}, Ising((3, 3), 0.4)),
    ({**DENSE, "depth": 2}, Ising((8,), 0.6)),
    (DENSE, Ising((2, 2, 2), 0.2)),
    (CONVOLUTION, SQUARE),
    ({**CONVOLUTION, "radius": 1, "depth": 2, "width": 3, "z2": False}, IN_A_FIELD),
    ({**CONVOLUTION, "radius": 2, "translations": True}, Ising((2, 5), 0.4)),
    (HIERARCHY, SQUARE),
    ({**HIERARCHY, "z2": False, "exact_cross": False}, IN_A_FIELD),
    ({**HIERARCHY, "width": 2, "depth": 2, "translations": True}, SQUARE),
]
every_variant = pytest.mark.parametrize(("description", "theory"), VARIANTS, ids=str)


def log_q(flow: Flow, states: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(flow.log_prob(torch.tensor(states)))


@every_variant
def test_probabilities_sum_to_one(description: dict[str, object], theory: Ising, shaken: Shaken) -> None:
    flow = shaken(description, theory)
    probability = np.exp(log_q(flow, enumerate_spins(theory.shape)))
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    # Away from fair coins, or the test would be empty.
    assert probability.max() > 2 * probability.mean()


@every_variant
def test_draws_are_distributed_as_log_q_says(
    description: dict[str, object], theory: Ising, shaken: Shaken, rng: np.random.Generator
) -> None:
    flow = shaken(description, theory)
    assert isinstance(flow, SpinFlow)
    n = 20000
    field, _ = flow.sample(n, torch_generator(int(rng.integers(2**62))))
    number = ExactIsing(theory).number(field.numpy())
    probability = np.exp(log_q(flow, enumerate_spins(theory.shape)))
    p_values = []
    # The joint distribution of a few sites at a time: their bits in the number of a configuration.
    chosen = [rng.permutation(theory.volume)[:6] for _ in range(6)]
    for sites in chosen:
        cell = (np.arange(len(probability))[:, None] >> sites & 1) @ (1 << np.arange(len(sites)))
        expected = n * np.bincount(cell, probability).astype(np.float64)
        p_values.append(counts_p_value(np.bincount(cell[number], minlength=len(expected)), expected))
    assert min(p_values) * len(p_values) > 1e-5


NETWORKS: dict[str, Callable[[], CausalNetwork]] = {
    "dense 16": lambda: CausalDense(0, 16, 4, 1),
    "dense 36, depth 3": lambda: CausalDense(0, 36, 3, 3),
    "dense 100, context 7": lambda: CausalDense(7, 100, 2, 2),
    "dense 256": lambda: CausalDense(0, 256, 1, 1),
    "dense 1, context 4": lambda: CausalDense(4, 1, 3, 2),
    "convolution 4x4": lambda: CausalConvolution((4, 4), 4, 1, 3),
    "convolution 3x7, depth 3": lambda: CausalConvolution((3, 7), 3, 3, 1),
    "convolution 8x8": lambda: CausalConvolution((8, 8), 5, 2, 2),
    "convolution 16x16": lambda: CausalConvolution((16, 16), 3, 1, 4),
}


def network(name: str) -> CausalNetwork:
    """A network away from its initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        built = NETWORKS[name]().double()
    generator = torch_generator(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return built


def context_of(net: CausalNetwork, n: int) -> torch.Tensor:
    given = net.n_context if isinstance(net, CausalDense) else 0
    return torch.randint(2, (n, given), generator=torch_generator(3)).double() * 2 - 1


@pytest.mark.parametrize("name", NETWORKS)
class TestNetworks:
    def test_drawing_step_by_step_is_one_pass(self, name: str) -> None:
        net, n = network(name), 20
        context = context_of(net, n)
        uniform = torch.rand(net.n_spins, n, generator=torch_generator(4), dtype=torch.float64)
        with torch.no_grad():
            spins, logits = net.draw(context, uniform)
            torch.testing.assert_close(net(context, spins), logits, rtol=1e-12, atol=1e-12)
        assert set(np.unique(spins.numpy())) == {-1.0, 1.0}
        # Each spin is up exactly where its number is below its probability.
        assert torch.equal(spins > 0, torch.sigmoid(logits) > uniform.T)

    def test_logits_depend_on_earlier_spins_alone(self, name: str) -> None:
        net = network(name)
        context = context_of(net, 1)
        spins = torch.randint(2, (1, net.n_spins), generator=torch_generator(5)).double() * 2 - 1
        flips = spins * (1 - 2 * torch.eye(net.n_spins, dtype=torch.float64))
        with torch.no_grad():
            before, after = net(context, spins), net(context.expand(net.n_spins, -1), flips)
        changed = (after - before).abs() > 1e-12
        # Row j: what the flip of spin j changes.
        assert not changed.tril().any(), "a logit depends on its own spin or on a later one"
        if isinstance(net, CausalDense):
            # The direct connection reaches every later spin.
            assert changed.triu(1).sum() == net.n_spins * (net.n_spins - 1) // 2
        elif net.n_spins > 1:
            assert changed.any()

    def test_context_reaches_every_spin(self, name: str) -> None:
        net = network(name)
        if not isinstance(net, CausalDense) or not net.n_context:
            return
        context = context_of(net, 1)
        spins = torch.ones((1, net.n_spins), dtype=torch.float64)
        with torch.no_grad():
            for entry in range(net.n_context):
                other = context.clone()
                other[0, entry] *= -1
                assert ((net(other, spins) - net(context, spins)).abs() > 1e-12).all()


@pytest.mark.parametrize("description", [DENSE, CONVOLUTION, HIERARCHY], ids=str)
class TestSymmetries:
    def states(self) -> np.ndarray:
        return SQUARE.start(np.random.default_rng(1), 50, "hot")

    def test_spin_flip(self, description: dict[str, object], shaken: Shaken) -> None:
        states = self.states()
        flow = shaken(description, SQUARE)
        np.testing.assert_allclose(log_q(flow, -states), log_q(flow, states), rtol=1e-12)
        bare = shaken({**description, "z2": False}, SQUARE)
        assert np.abs(log_q(bare, -states) - log_q(bare, states)).max() > 0.1

    def test_translations_along_the_last_axis(self, description: dict[str, object], shaken: Shaken) -> None:
        states = self.states()
        flow = shaken({**description, "translations": True}, SQUARE)
        bare = shaken(description, SQUARE)
        for shift in (1, 2, -1):
            moved = np.roll(states, shift, -1)
            np.testing.assert_allclose(log_q(flow, moved), log_q(flow, states), rtol=1e-12)
            assert np.abs(log_q(bare, moved) - log_q(bare, states)).max() > 0.1

    def test_average_is_that_of_the_component(self, description: dict[str, object], shaken: Shaken) -> None:
        states = self.states()
        flow = shaken({**description, "translations": True}, SQUARE)
        bare = shaken({**description, "z2": False}, SQUARE)
        images = [sign * np.roll(states, shift, -1) for sign in (1, -1) for shift in range(4)]
        mean = np.mean([np.exp(log_q(bare, image)) for image in images], axis=0)
        np.testing.assert_allclose(np.exp(log_q(flow, states)), mean, rtol=1e-12)

    def test_spin_flip_in_a_field_is_refused(self, description: dict[str, object]) -> None:
        with pytest.raises(ParameterError, match="z2 = false"):
            build_flow(description, IN_A_FIELD)


def test_untrained_networks_are_fair_coins() -> None:
    for description in (DENSE, CONVOLUTION):
        flow = build_flow({**description, "dtype": "float64"}, SQUARE)
        np.testing.assert_allclose(log_q(flow, enumerate_spins((4, 4))), -16 * np.log(2), rtol=1e-12)


@pytest.mark.parametrize("shape", [(8,), (2, 2, 2)])
def test_convolutions_need_two_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError, match="dense"):
        build_flow(CONVOLUTION, Ising(shape, 0.4))


@pytest.mark.parametrize(
    "hyper", [{"network": "x"}, {"width": 0}, {"depth": 0}, {"radius": 0}, {"dtype": "float16"}], ids=str
)
def test_bad_hyper_parameters_are_refused(hyper: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        build_flow({**DENSE, **hyper}, SQUARE)
