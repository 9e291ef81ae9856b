"""Velocities: closed forms against automatic differentiation, windows in time, symmetries."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.networks import NETWORKS
from flowmc.flows.velocities import FieldNetworkConfig, Velocity, WindowedVelocity, build_layers
from flowmc.seeds import torch_generator

Shake = Callable[[torch.nn.Module], None]
CASES = [("fully_connected", (5,)), ("fully_connected", (2, 3)), ("convolutional", (6,)), ("convolutional", (2, 4))]


def test_every_network_is_tested() -> None:
    assert {network for network, _ in CASES} == set(NETWORKS)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(("network", "shape"), CASES)
class TestVelocity:
    @pytest.fixture
    def velocity(self, network: str, shape: tuple[int, ...], odd: bool, shake: Shake) -> Velocity:
        config = FieldNetworkConfig(network, (4, 3), radius=1, windows=3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            field = WindowedVelocity(config, shape, odd=odd).double()
        shake(field)
        return field.prepare()

    @pytest.fixture
    def time(self) -> Tensor:
        return torch.rand(7, generator=torch_generator(2), dtype=torch.float64)

    @pytest.fixture
    def field(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn((7, prod(shape)), generator=torch_generator(3), dtype=torch.float64)

    @pytest.fixture
    def jacobian(self, velocity: Velocity, time: Tensor, field: Tensor) -> Tensor:
        """∂V_x/∂φ_y by automatic differentiation, (7, V, V)."""
        each = [torch.func.jacrev(lambda at, i=i: velocity(time[i], at[None])[0])(field[i]) for i in range(7)]
        return torch.stack(each)

    def test_jacobian(self, velocity: Velocity, time: Tensor, field: Tensor, jacobian: Tensor) -> None:
        value, found = velocity.with_jacobian(time, field)
        assert jacobian.abs().max() > 0.01
        torch.testing.assert_close(value, velocity(time, field), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, jacobian, rtol=1e-12, atol=1e-12)

    def test_divergence(self, velocity: Velocity, time: Tensor, field: Tensor, jacobian: Tensor) -> None:
        value, found = velocity.with_divergence(time, field)
        torch.testing.assert_close(value, velocity(time, field), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, jacobian.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-12, atol=1e-12)

    def test_sites(self, velocity: Velocity, time: Tensor, field: Tensor, jacobian: Tensor) -> None:
        sites = torch.tensor([4, 0])
        value, slopes = velocity.at_sites(time, field, sites)
        torch.testing.assert_close(value, velocity(time, field)[:, sites], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slopes, jacobian.diagonal(dim1=1, dim2=2)[:, sites], rtol=1e-12, atol=1e-12)

    def test_around_frozen_sites(self, velocity: Velocity, time: Tensor, field: Tensor) -> None:
        sites, values = torch.tensor([3]), torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
        value, slopes = velocity.around(time, field, sites)(values)
        moved = velocity.at_sites(time, field.index_copy(1, sites, values), sites)
        torch.testing.assert_close(value, moved[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slopes, moved[1], rtol=1e-12, atol=1e-12)

    def test_colours_are_blind_to_each_other(self, velocity: Velocity, jacobian: Tensor) -> None:
        classes = velocity.colour_classes
        assert sorted(site for sites in classes for site in sites) == list(range(jacobian.shape[1]))
        for sites in classes:
            block = jacobian[:, sites][:, :, sites]
            assert torch.equal(block, torch.diag_embed(block.diagonal(dim1=1, dim2=2)))

    def test_symmetries(
        self,
        velocity: Velocity,
        network: str,
        shape: tuple[int, ...],
        odd: bool,
        time: Tensor,
        field: Tensor,
    ) -> None:
        value = velocity(time, field)
        assert torch.equal(velocity(time, -field), -value) == odd
        lattice = field.reshape(7, *shape)
        for axis in range(1, len(shape) + 1):
            moved = velocity(time, lattice.roll(1, axis).flatten(1))
            same = torch.allclose(moved, value.reshape(7, *shape).roll(1, axis).flatten(1), rtol=1e-11, atol=1e-11)
            assert same == (network == "convolutional")


def test_windows_are_a_partition_of_one() -> None:
    layers = build_layers(FieldNetworkConfig(windows=4), (3,), pooled=False).double()()
    time = torch.linspace(0, 1, 9, dtype=torch.float64, requires_grad=True)
    windows, rates = layers.windows_and_rates(time)
    torch.testing.assert_close(windows.sum(0), torch.ones(9, 1, dtype=torch.float64))
    # Their ratios are those of exp(−16 (t − c)²) around c = 0, 1/3, 2/3, 1.
    expected = torch.exp(-16 * (time - 1 / 3) ** 2 + 16 * time**2)
    torch.testing.assert_close(windows[1, :, 0] / windows[0, :, 0], expected)
    for number in range(4):
        (slope,) = torch.autograd.grad(windows[number].sum(), time, retain_graph=True)
        torch.testing.assert_close(rates[number, :, 0], slope)


def test_one_window_is_always_open() -> None:
    layers = build_layers(FieldNetworkConfig(windows=1), (3,), pooled=False)()
    assert torch.equal(layers.windows(torch.tensor([0.0, 0.7])), torch.ones(1, 2, 1))


@pytest.mark.parametrize("network", NETWORKS)
def test_starts_at_rest(network: str) -> None:
    velocity = WindowedVelocity(FieldNetworkConfig(network, (4, 4), radius=1), (4,), odd=False).prepare()
    assert not velocity(torch.tensor(0.3), torch.randn((3, 4), generator=torch_generator(1))).any()


@pytest.mark.parametrize("wrong", [{"hidden": (8,)}, {"hidden": (8, 8, 8)}, {"hidden": (8, 0)}, {"network": "dense"}])
def test_networks_without_a_closed_form_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match="expected"):
        FieldNetworkConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("radius", "windows"), [(1, 0), (0, 1)])
def test_sizes_out_of_range_are_refused(radius: int, windows: int) -> None:
    with pytest.raises(ParameterError, match="at least 1"):
        FieldNetworkConfig(radius=radius, windows=windows)
