"""Layers of coupling flows: the contract over the public list, one set of weights on lattices of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import flowmc.flows.layers as public
from flowmc.flows import CouplingFlow, build_flow
from flowmc.flows.densities import SpectralDensity
from flowmc.flows.layers import LAYERS, CouplingLayer, Layer, SiteOrder, Spectral, layer_config
from flowmc.flows.networks import DisplacementKernel
from flowmc.flows.partitions import PARTITIONS
from flowmc.lattice import momentum_squared
from flowmc.seeds import torch_generator
from flowmc.testing import LayerContract
from flowmc.theories import FreeScalar, Phi4

Shake = Callable[[torch.nn.Module], None]


@dataclass(frozen=True)
class Case:
    """A layer on a lattice."""

    kind: str
    hyper: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (4, 4)
    z2: bool = True

    def build(self) -> Layer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            config = layer_config({"kind": self.kind, **self.hyper})
            return LAYERS[self.kind](SiteOrder(self.shape), config, z2=self.z2).double()


COUPLINGS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"output_radius": -1}, (4, 4)),
    ({"partition": "stripes", "symmetric": False, "radius": 1, "hidden": [3, 2]}, (4, 6)),
    ({"partition": "quarters"}, (4, 4)),
    ({"radius": 1, "output_radius": 2, "hidden": [4]}, (2, 4, 2)),
    ({"network": "fully_connected", "hidden": [7, 5]}, (3, 5)),
]
CASES = [
    Case(kind, hyper, shape, z2)
    for kind, layer in LAYERS.items()
    if issubclass(layer, CouplingLayer)
    for hyper, shape in COUPLINGS
    for z2 in (True, False)
] + [
    Case("spline", {"bins": 2, "bound": 1.0}),
    Case("rescale"),
    Case("sinh_arcsinh", shape=(3, 5)),
    Case("spectral"),
    Case("spectral", shape=(3, 4, 2)),
]


def test_every_public_layer_is_tested() -> None:
    assert {case.kind for case in CASES} == set(LAYERS)
    concrete = {
        value
        for value in vars(public).values()
        if isinstance(value, type) and issubclass(value, Layer) and value not in {Layer, CouplingLayer}
    }
    assert concrete == set(LAYERS.values())
    assert {case.hyper.get("partition", "checkerboard") for case in CASES} == set(PARTITIONS)


@pytest.mark.parametrize("case", CASES, ids=str)
class TestContract(LayerContract):
    @pytest.fixture
    def layer(self, case: Case, shake: Shake) -> Layer:
        layer = case.build()
        shake(layer)
        return layer

    @pytest.fixture
    def fresh(self, case: Case) -> Layer:
        return case.build()


@pytest.mark.parametrize("shape", [(4,), (4, 6), (2, 4, 2)])
@pytest.mark.parametrize("name", PARTITIONS)
def test_partitions_move_every_site(name: str, shape: tuple[int, ...]) -> None:
    masks = np.array(PARTITIONS[name](shape))
    assert masks.shape[1:] == shape
    times = masks.sum(axis=0)
    # Each site equally often; stripes once for every axis.
    assert (times == (len(shape) if name == "stripes" else 1)).all()
    assert len({mask.sum() for mask in masks}) == 1


class TestDisplacementKernel:
    def sites(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        even, odd = (np.flatnonzero(mask.reshape(-1)) for mask in PARTITIONS["checkerboard"](shape))
        return even, odd

    def test_images_beyond_the_lattice_add_up(self) -> None:
        # Radius 3 on an extent of 4: displacements 3 and −1 are the same one, 1 and −3 too.
        kernel = DisplacementKernel.build((4,), *self.sites((4,)), 3, symmetric=False)
        assert kernel.images.shape == (2, 4)
        assert kernel.images.sum(axis=1).tolist() == [2, 2]

    def test_symmetric_weights_are_shared(self) -> None:
        # Odd displacements up to 3 in the plane: (0,1), (0,3), (1,2), (2,3) and what reflections make of them.
        kernel = DisplacementKernel.build((8, 8), *self.sites((8, 8)), 3, symmetric=True)
        assert kernel.images.shape[1] == 4
        assert kernel.images.sum(axis=0).tolist() == [4, 4, 8, 8]

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_the_same_weights_on_every_lattice(self, symmetric: bool) -> None:
        numbers = set()
        for extent in (2, 4, 6, 8, 12):
            sites = self.sites((extent, extent))
            numbers.add(DisplacementKernel.build((extent, extent), *sites, 3, symmetric=symmetric).images.shape[1])
        assert len(numbers) == 1


LAYERS_OF_MANY_SIZES: list[dict[str, Any]] = [
    {"kind": "affine", "radius": 3, "hidden": [3], "output_radius": 3},
    {"kind": "spline", "radius": 1, "hidden": [3], "partition": "quarters"},
    {"kind": "additive", "radius": 2, "symmetric": False, "partition": "stripes"},
    {"kind": "sinh_arcsinh"},
    {"kind": "rescale"},
]


def test_weights_of_a_small_lattice_do_the_same_on_periodic_fields_of_a_large_one(shake: Shake) -> None:
    small, large = (
        build_flow({"kind": "coupling", "layers": LAYERS_OF_MANY_SIZES, "repeat": 1}, FreeScalar(shape, 1.0)).double()
        for shape in ((4, 6), (12, 12))
    )
    assert isinstance(small, CouplingFlow)
    assert isinstance(large, CouplingFlow)
    shake(small)
    assert set(large.start_from(small)) == set(small.state_dict())
    latent = torch.randn((5, 4, 6), generator=torch_generator(1), dtype=torch.float64)
    field, log_det = small.forward(latent)
    repeated, log_det_repeated = large.forward(latent.repeat(1, 3, 2))
    torch.testing.assert_close(repeated, field.repeat(1, 3, 2), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det_repeated, 6 * log_det, rtol=1e-9, atol=1e-9)


def test_momentum_weights_are_interpolated_between_lattices() -> None:
    layers = [{"kind": "spectral"}]
    description: dict[str, Any] = {
        "kind": "coupling",
        "base": "spectral",
        "layers": layers,
        "repeat": 1,
        "dtype": "float64",
    }
    small, large = (
        build_flow({**description, "base_mass": mass}, FreeScalar(shape, 1.0))
        for shape, mass in (((4, 4), 0.7), ((8, 8), 2.0))
    )
    spectral, moved = small.get_submodule("layers.0"), large.get_submodule("layers.0")
    assert isinstance(spectral, Spectral)
    assert isinstance(moved, Spectral)
    with torch.no_grad():
        # A factor for each shell that rises with p̂².
        spectral.log_factor_of_shell.copy_(0.1 * torch.arange(len(spectral.log_factor_of_shell)))
    assert set(large.start_from(small)) == set(small.state_dict())
    exact = build_flow({**description, "base_mass": 0.7}, FreeScalar((8, 8), 1.0))
    bases = [flow.get_submodule("base") for flow in (large, exact)]
    widths = [base.log_width() for base in bases if isinstance(base, SpectralDensity)]
    # The inverse squared width of a free field is linear in p̂²: its interpolation is exact.
    torch.testing.assert_close(*widths, rtol=1e-12, atol=1e-12)
    factors = moved.log_factor_of_shell.detach()
    assert (factors.diff() >= 0).all()
    assert float(factors[0]) == 0.0
    assert float(factors[-1]) == float(spectral.log_factor_of_shell.detach()[-1])


def test_fully_connected_weights_stay_on_their_lattice() -> None:
    layers = [{"kind": "affine", "network": "fully_connected", "hidden": [4]}, {"kind": "rescale"}]
    description = {"kind": "coupling", "layers": layers, "repeat": 1}
    flat, square = (build_flow(description, FreeScalar(shape, 1.0)) for shape in ((2, 8), (4, 4)))
    # As many sites, and so the same shapes of all weights.
    assert set(square.start_from(flat)) == {"base.log_mass", "layers.1.log_factor"}
    assert set(square.start_from(square)) == set(square.state_dict())


def test_a_mass_that_is_kept_is_not_taken_over() -> None:
    description: dict[str, Any] = {"kind": "coupling", "base_mass": "matched", "base_learned": False, "repeat": 1}
    small, large = (build_flow(description, Phi4(shape, -4.0, 6.0)) for shape in ((4, 4), (8, 8)))
    own = large.state_dict()["base.log_mass"].clone()
    assert not torch.equal(own, small.state_dict()["base.log_mass"])
    assert "base.log_mass" not in large.start_from(small)
    assert torch.equal(large.state_dict()["base.log_mass"], own)


def test_matched_base_is_the_nearest_free_field() -> None:
    # E_q[S + log q] over free fields q of one mass, in closed form, has its minimum at the mass of the gap equation.
    theory = Phi4((6, 4), m2=-4.0, lam=6.0)
    hat = momentum_squared(theory.shape)

    def bound(mass: float) -> float:
        width = 0.5 / (hat + mass**2)
        square = width.mean()
        return float((hat * width).sum() + theory.volume * (theory.m2 * square + 3 * theory.lam * square**2)) - float(
            0.5 * np.log(width).sum()
        )

    mass = theory.gaussian_mass()
    assert bound(mass) < min(bound(mass * 1.001), bound(mass / 1.001))
    assert FreeScalar((4, 4), 0.7).gaussian_mass() == 0.7
    # Deep in the broken phase, too, and on a lattice where the zero mode decides.
    assert Phi4((2, 2), m2=-50.0, lam=1.0).gaussian_mass() > 0
