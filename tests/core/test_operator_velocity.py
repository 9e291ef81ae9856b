"""Neural operators: closed forms against automatic differentiation, symmetries, one set of weights on many lattices."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.integral_kernels import KERNEL_FAMILIES, KernelConfig, kernel_basis
from flowmc.flows.operator_velocity import SUMS, OperatorNetworkConfig, OperatorVelocity, OperatorWeights
from flowmc.seeds import torch_generator

Shake = Callable[[torch.nn.Module], None]
KERNELS: dict[str, dict[str, Any]] = {
    "distance": {"hidden": (4, 3), "reach": 2.0},
    "local": {"functions": 3, "reach": 1.7},
    "multiscale": {"functions": 3},
    "spectral": {"functions": 3, "cutoff": 2.5},
}
SHAPES = [(5,), (4, 4), (2, 3, 2)]


def weights(shake: Shake, family: str, couplings: int = 0, **more: Any) -> OperatorWeights:
    config = OperatorNetworkConfig(**{"features": 5, "gates": 2, "moments": 3, **more}, kernel=kernel(family))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = OperatorWeights(config, couplings).double()
    shake(made)
    return made


def kernel(family: str, **more: Any) -> KernelConfig:
    return KernelConfig(family, **{**KERNELS[family], **more})


def values(shape: tuple[int, ...], number: int = 7) -> Tensor:
    return torch.randn((number, prod(shape)), generator=torch_generator(3), dtype=torch.float64)


def test_every_family_is_tested() -> None:
    assert set(KERNELS) == set(KERNEL_FAMILIES)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", KERNELS)
@pytest.mark.parametrize("gates", [0, 2])
class TestClosedForms:
    @pytest.fixture
    def operator(self, family: str, gates: int, shape: tuple[int, ...], shake: Shake) -> OperatorVelocity:
        return OperatorVelocity(weights(shake, family, gates=gates), shape, spacing=0.8).double()

    @pytest.fixture(params=["one", "each"])
    def time(self, request: pytest.FixtureRequest) -> Tensor:
        if request.param == "one":
            return torch.tensor(0.3, dtype=torch.float64)
        return torch.rand(7, generator=torch_generator(2), dtype=torch.float64)

    @pytest.fixture
    def jacobian(self, operator: OperatorVelocity, shape: tuple[int, ...], time: Tensor) -> Tensor:
        velocity, field = operator.prepare(), values(shape)
        times = time.expand(7)
        each = [torch.func.jacrev(lambda at, i=i: velocity(times[i], at[None])[0])(field[i]) for i in range(7)]
        return torch.stack(each)

    def test_jacobian(self, operator: OperatorVelocity, shape: tuple[int, ...], time: Tensor, jacobian: Tensor) -> None:
        velocity, field = operator.prepare(), values(shape)
        value, found = velocity.with_jacobian(time, field)
        assert jacobian.abs().max() > 0.01
        torch.testing.assert_close(value, velocity(time, field), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, jacobian, rtol=1e-11, atol=1e-12)

    def test_divergence(
        self, operator: OperatorVelocity, shape: tuple[int, ...], time: Tensor, jacobian: Tensor
    ) -> None:
        velocity, field = operator.prepare(), values(shape)
        value, found = velocity.with_divergence(time, field)
        torch.testing.assert_close(value, velocity(time, field), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, jacobian.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-11, atol=1e-12)

    def test_sites(self, operator: OperatorVelocity, shape: tuple[int, ...], time: Tensor, jacobian: Tensor) -> None:
        velocity, field = operator.prepare(), values(shape)
        sites = torch.tensor([4, 0])
        value, slopes = velocity.at_sites(time, field, sites)
        torch.testing.assert_close(value, velocity(time, field)[:, sites], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slopes, jacobian.diagonal(dim1=1, dim2=2)[:, sites], rtol=1e-11, atol=1e-12)

    def test_around_frozen_sites(self, operator: OperatorVelocity, shape: tuple[int, ...], time: Tensor) -> None:
        velocity, field = operator.prepare(), values(shape)
        sites = torch.tensor(max(velocity.colour_classes, key=len))
        changed = torch.randn((7, len(sites)), generator=torch_generator(5), dtype=torch.float64)
        value, slopes = velocity.around(time, field, sites)(changed)
        moved = velocity.with_jacobian(time, field.index_copy(1, sites, changed))
        torch.testing.assert_close(value, moved[0][:, sites], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(slopes, moved[1].diagonal(dim1=1, dim2=2)[:, sites], rtol=1e-11, atol=1e-12)

    @pytest.mark.parametrize("sums", SUMS)
    def test_all_ways_to_sum_agree(
        self, sums: str, family: str, gates: int, operator: OperatorVelocity, shape: tuple[int, ...], time: Tensor
    ) -> None:
        if sums == "displacements" and family != "local":
            with pytest.raises(ParameterError, match="finite reach"):
                OperatorNetworkConfig(kernel=kernel(family), sums=sums)
            return
        config = OperatorNetworkConfig(kernel(family), features=5, gates=gates, moments=3, sums=sums)
        made = OperatorWeights(config, 0).double()
        # Fewer functions than features, and the other way round: they are transformed in another order.
        assert (operator.kernels(time).shape[1] > 6) == (family == "distance" and shape == (4, 4))
        made.load_state_dict(operator.weights.state_dict())
        other = OperatorVelocity(made, shape, spacing=0.8).double()
        assert operator.sums == "matrix"
        assert other.sums == ("matrix" if sums == "automatic" else sums)
        torch.testing.assert_close(
            other.prepare()(time, values(shape)), operator.prepare()(time, values(shape)), rtol=1e-11, atol=1e-12
        )


@pytest.mark.parametrize("family", KERNELS)
class TestSymmetries:
    @pytest.mark.parametrize("shape", [(4, 4), (3, 5), (2, 3, 2)], ids=str)
    def test_translations_point_group_and_sign(self, family: str, shape: tuple[int, ...], shake: Shake) -> None:
        made = weights(shake, family)
        velocity = OperatorVelocity(made, shape).double().prepare()
        time, field = torch.tensor(0.4, dtype=torch.float64), values(shape)
        lattice, value = field.reshape(-1, *shape), velocity(time, field).reshape(-1, *shape)
        assert torch.equal(velocity(time, -field).reshape(-1, *shape), -value)
        for axis in range(1, len(shape) + 1):
            for before, after in ((lattice.roll(1, axis), value.roll(1, axis)), (lattice.flip(axis), value.flip(axis))):
                moved = velocity(time, before.flatten(1)).reshape(-1, *shape)
                torch.testing.assert_close(moved, after, rtol=1e-11, atol=1e-12)
        # Axes are exchanged together with the extents.
        turned = OperatorVelocity(made, shape[::-1]).double().prepare()
        axes = (0, *range(len(shape), 0, -1))
        found = turned(time, lattice.permute(axes).flatten(1)).reshape(-1, *shape[::-1])
        torch.testing.assert_close(found, value.permute(axes), rtol=1e-11, atol=1e-12)

    @pytest.mark.parametrize("shape", [(4, 4), (3, 4)], ids=str)
    def test_repeated_fields_are_repeated(self, family: str, shape: tuple[int, ...], shake: Shake) -> None:
        """A field on the torus is a periodic one in the plane: so is V, if kernels count all images."""
        made = weights(shake, family)
        time, field = torch.tensor(0.4, dtype=torch.float64), values(shape)
        value = OperatorVelocity(made, shape).double().prepare()(time, field).reshape(-1, *shape)
        larger = (2 * shape[0], 3 * shape[1])
        tiled = field.reshape(-1, *shape).repeat(1, 2, 3).flatten(1)
        found = OperatorVelocity(made, larger).double().prepare()(time, tiled).reshape(-1, *larger)
        # The shortest distance around the torus, the form of the paper, knows of no images.
        assert torch.allclose(found, value.repeat(1, 2, 3), rtol=1e-11, atol=1e-11) == (family != "distance")

    @pytest.mark.parametrize("dimensions", [1, 2, 3])
    def test_finer_lattices_approach_an_integral(self, family: str, dimensions: int, shake: Shake) -> None:
        made = weights(shake, family)
        time, found = torch.tensor(0.4, dtype=torch.float64), []
        extents = (6, 12, 24) if dimensions == 3 else (8, 16, 32)
        for extent in extents:
            spacing = 6.0 / extent
            along = torch.cos(2 * torch.pi * torch.arange(extent, dtype=torch.float64) / extent)
            field = sum(
                along.reshape([-1 if axis == d else 1 for d in range(dimensions)]) for axis in range(dimensions)
            )
            # The field in the units of the kernels is the same on all lattices.
            unit = spacing ** (0.5 * (dimensions - 2))
            shape = (extent,) * dimensions
            operator = OperatorVelocity(made, shape, spacing=spacing).double()
            value = operator.prepare()(time, unit * field.expand(shape).reshape(1, -1)) / unit  # type: ignore[union-attr]
            found.append(float(value[0, 0].detach()))
        coarse, fine = abs(found[1] - found[0]), abs(found[2] - found[1])
        assert coarse > 1e-6
        assert fine < 0.5 * coarse


class TestCouplings:
    def test_kernels_depend_on_them_and_weights_do_not(self, shake: Shake) -> None:
        made = weights(shake, "multiscale", couplings=2)
        time, field = torch.tensor(0.4, dtype=torch.float64), values((4, 4))
        one, other = (
            OperatorVelocity(made, (4, 4), couplings=couplings).double().prepare()(time, field)
            for couplings in ((0.3, -0.2), (0.3, 0.5))
        )
        assert (one - other).abs().max() > 1e-3

    def test_polynomials(self) -> None:
        made = OperatorWeights(OperatorNetworkConfig(degree=2), 2)
        x, y = 0.3, -0.2
        expected = [1, y, 2 * y**2 - 1, x, x * y, 2 * x**2 - 1]
        np.testing.assert_allclose(made.polynomials((x, y)), expected, rtol=1e-14)


class TestColours:
    @pytest.mark.parametrize(("shape", "number"), [((6, 6), 4), ((8, 8), 4), ((7, 6), 6), ((2, 8), 4), ((9,), 3)])
    def test_nearest_neighbours(self, shape: tuple[int, ...], number: int, shake: Shake) -> None:
        config = OperatorNetworkConfig(KernelConfig("local", functions=2, reach=1.2), features=2, gates=1)
        made = OperatorWeights(config, 0).double()
        shake(made)
        velocity = OperatorVelocity(made, shape).double().prepare()
        _, jacobian = velocity.with_jacobian(torch.tensor(0.4, dtype=torch.float64), values(shape, 2))
        classes = velocity.colour_classes
        assert len(classes) == number
        assert sorted(site for sites in classes for site in sites) == list(range(prod(shape)))
        for sites in classes:
            block = jacobian[:, sites][:, :, sites]
            assert torch.equal(block, torch.diag_embed(block.diagonal(dim1=1, dim2=2)))

    def test_kernels_without_a_reach_give_each_site_its_own(self, shake: Shake) -> None:
        velocity = OperatorVelocity(weights(shake, "multiscale"), (4, 4)).double().prepare()
        assert [*velocity.colour_classes] == [[site] for site in range(16)]


class TestBasis:
    def test_local_kernels_count_images(self) -> None:
        small = kernel_basis(KernelConfig("local", functions=2, reach=5.0), (4,), 1.0)
        large = kernel_basis(KernelConfig("local", functions=2, reach=5.0), (16,), 1.0)
        np.testing.assert_allclose(small.places, large.places.reshape(-1, 4, 4).sum(1), rtol=1e-13, atol=1e-13)

    def test_heat_kernels_have_unit_weight(self) -> None:
        found = kernel_basis(KernelConfig("multiscale", functions=3, reach=2.0), (8, 6), 0.5)
        np.testing.assert_allclose(found.places[1:].sum((1, 2)), 1, rtol=1e-12)
        # Their mean square radius is d times the square of the width, apart from the lattice's own.
        wide = kernel_basis(KernelConfig("multiscale", functions=1, reach=2.0), (64,), 0.5)
        offsets = 0.5 * np.minimum(np.arange(64), 64 - np.arange(64))
        assert (wide.places[1] * offsets**2).sum() == pytest.approx(4.0, rel=1e-6)

    def test_nothing_but_the_delta_beyond_the_cutoff(self) -> None:
        found = kernel_basis(KernelConfig("spectral", functions=4, cutoff=1.5), (16,), 1.0)
        momentum = 2 * np.abs(np.sin(np.pi * np.arange(16) / 16))
        np.testing.assert_allclose(found.symbols[1:, momentum >= 1.5], 0, atol=1e-14)
        np.testing.assert_allclose(found.symbols[0], 1, rtol=1e-13)


@pytest.mark.parametrize(
    "wrong",
    [
        {"family": "gaussian"},
        {"reach": 0.0},
        {"reach": float("inf")},
        {"cutoff": -1.0},
        {"functions": 0},
        {"family": "distance", "hidden": (8,)},
    ],
)
def test_bad_kernels_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="expected"):
        KernelConfig(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"features": 0}, {"gates": -1}, {"moments": 0}, {"degree": 0}, {"frequency": 0.0}, {"sums": "fft"}]
)
def test_bad_networks_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="expected"):
        OperatorNetworkConfig(**wrong)


def test_tables_follow_the_weights(shake: Shake) -> None:
    """In float64 they are those of float64 from the beginning, and so are those of a lattice that shares the weights."""
    made = weights(shake, "multiscale")
    time, field = torch.tensor(0.4, dtype=torch.float64), values((4, 4))
    operator = OperatorVelocity(made, (4, 4))
    expected = operator.prepare()(time, field)
    made.float()
    narrow = operator.prepare()(time.float(), field.float())
    assert narrow.dtype == torch.float32
    made.double()
    found = operator.prepare()(time, field)
    # The weights were rounded on the way, the tables were not.
    torch.testing.assert_close(found, OperatorVelocity(made, (4, 4)).prepare()(time, field), rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_kernels_that_reach_too_far_are_refused() -> None:
    with pytest.raises(ParameterError, match="within reach"):
        kernel_basis(KernelConfig("local", reach=60.0), (4, 4, 4, 4), 1.0)


def test_starts_at_rest() -> None:
    for family in KERNELS:
        made = OperatorWeights(OperatorNetworkConfig(kernel(family)), 0)
        velocity = OperatorVelocity(made, (4, 4)).float().prepare()
        assert not velocity(torch.tensor(0.3), values((4, 4)).float()).any()
