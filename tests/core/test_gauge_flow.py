"""The gauge-equivariant flow: symmetries, masks, what its networks see, other lattices, refusals, exact values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from math import pi

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmc.errors import ParameterError, TheoryMismatchError
from flowmc.flows import Flow, GaugeFlow, build_flow
from flowmc.flows.gauge import GaugeConfig
from flowmc.flows.gauge_networks import MASKS, ConvolutionalNetwork, Mask, build_mask
from flowmc.seeds import torch_generator
from flowmc.testing.links import gauge_transformed
from flowmc.theories import FreeScalar, Theory, U1Gauge2D
from flowmc.theories.spaces import wrapped
from flowmc.theories.u1 import plaquette_angles
from flowmc_analysis.exact_u1 import u1_exact

Shaken = Callable[[Mapping[str, object], Theory], Flow]

SMALL = {"kind": "gauge", "layers": 8, "hidden": [4], "pieces": 3}
FLOWS: dict[str, dict[str, object]] = {
    "cells, packed": {},
    "cells": {"network": "lattice"},
    "stripes, packed": {"mask": "stripes", "transformation": "projection"},
    "stripes": {"mask": "stripes", "network": "lattice", "pieces": 1},
    "rows": {"mask": "rows", "network": "lattice", "dilations": [1, 2]},
    "cells, packed, lines": {"holonomies": True},
    "rows, lines": {"mask": "rows", "network": "lattice", "holonomies": True, "pieces": 1},
}
LOCAL = {name: hyper for name, hyper in FLOWS.items() if "holonomies" not in hyper}
# The translations that keep the masks of every layer.
PERIODS = {"cells": (2, 2), "stripes": (4, 4), "rows": (4, 4)}


@pytest.fixture(params=FLOWS)
def flow(request: pytest.FixtureRequest, shaken: Shaken) -> GaugeFlow:
    return gauge_flow(shaken, (4, 8), **FLOWS[request.param])


def gauge_flow(shaken: Shaken, shape: tuple[int, int], **hyper: object) -> GaugeFlow:
    flow = shaken({**SMALL, **hyper}, U1Gauge2D(shape, 2.0))
    assert isinstance(flow, GaugeFlow)
    return flow.requires_grad_(False)


def coupling_layers(flow: GaugeFlow) -> list[tuple[torch.nn.Module, ConvolutionalNetwork]]:
    """The layers that move plaquettes, with their networks."""
    pairs = [(layer, layer.get_submodule("network")) for layer in flow.layers]
    return [(layer, network) for layer, network in pairs if isinstance(network, ConvolutionalNetwork)]


def assert_same_links(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(wrapped(one - other), torch.zeros_like(one), rtol=0, atol=tolerance)


class TestSymmetries:
    def test_gauge_transformations_commute_with_the_flow(self, flow: GaugeFlow, rng: np.random.Generator) -> None:
        latent = flow.base.draw(10, torch_generator(1))
        angle = rng.uniform(-pi, pi, (10, *flow.theory.shape))
        field, log_det = flow.forward(latent)
        assert not torch.allclose(field, latent)
        other, log_det_other = flow.forward(torch.tensor(gauge_transformed(latent.numpy(), angle)))
        assert_same_links(other, torch.tensor(gauge_transformed(field.numpy(), angle)))
        torch.testing.assert_close(log_det_other, log_det, rtol=0, atol=1e-9)

    def test_log_q_is_gauge_invariant(self, flow: GaugeFlow, rng: np.random.Generator) -> None:
        field, log_q = flow.sample(10, torch_generator(2))
        angle = rng.uniform(-pi, pi, (10, *flow.theory.shape))
        moved = torch.tensor(gauge_transformed(field.numpy(), angle))
        torch.testing.assert_close(flow.log_prob(moved), log_q, rtol=0, atol=1e-9)
        assert log_q.std() > 0.1

    def test_log_q_has_the_period_of_every_link(self, flow: GaugeFlow, rng: np.random.Generator) -> None:
        field, log_q = flow.sample(10, torch_generator(3))
        turns = torch.tensor(rng.integers(-3, 4, (10, *flow.shape)), dtype=torch.float64)
        torch.testing.assert_close(flow.log_prob(field + 2 * pi * turns), log_q, rtol=0, atol=1e-9)

    def test_translations_by_the_period_of_the_masks(self, flow: GaugeFlow) -> None:
        latent = flow.base.draw(5, torch_generator(4))
        field, log_det = flow.forward(latent)
        periods = PERIODS[flow.config.mask]
        for shifts in ((periods[0], 0), (0, periods[1]), periods):
            moved, log_det_moved = flow.forward(torch.roll(latent, shifts, (1, 2)))
            assert_same_links(moved, torch.roll(field, shifts, (1, 2)))
            torch.testing.assert_close(log_det_moved, log_det, rtol=0, atol=1e-9)

    def test_of_shorter_periods_there_is_none(self, flow: GaugeFlow) -> None:
        latent = flow.base.draw(5, torch_generator(4))
        _, log_det = flow.forward(latent)
        for shifts in ((1, 0), (0, 1), (1, 1)):
            assert not torch.allclose(flow.forward(torch.roll(latent, shifts, (1, 2)))[1], log_det)

    @pytest.mark.parametrize("direction", [0, 1])
    def test_only_holonomies_tell_apart_fields_of_the_same_plaquettes(self, direction: int, flow: GaugeFlow) -> None:
        field, log_q = flow.sample(10, torch_generator(3))
        turned = field.clone()
        # All links of one slice: every line that crosses it turns, no plaquette does.
        turned.select(1 + direction, 0)[..., direction] += 0.7
        torch.testing.assert_close(plaquette_angles(turned), plaquette_angles(field))
        same = torch.isclose(flow.log_prob(turned), log_q, rtol=0, atol=1e-9)
        assert not same.any() if flow.config.holonomies else same.all()

    def test_draws_are_in_the_fundamental_domain(self, flow: GaugeFlow) -> None:
        field, _ = flow.sample(100, torch_generator(5))
        assert (field.abs() <= pi).all()


class TestLayers:
    @pytest.mark.parametrize("layers", [8, 11, 16])
    def test_every_link_is_moved(self, layers: int, flow: GaugeFlow, shaken: Shaken) -> None:
        hyper = {name: getattr(flow.config, name) for name in ("mask", "network", "dilations", "holonomies")}
        longer = gauge_flow(shaken, (4, 8), **{**hyper, "layers": layers})
        moves = torch.zeros(flow.shape, dtype=torch.int64)
        links = longer.base.draw(5, torch_generator(6))
        for layer, _ in coupling_layers(longer):
            before = links
            links, log_slope = layer(links, inverse=False)
            moved = links != before
            assert log_slope.shape == (5, moved[0].sum())
            moves += moved.all(0)
            assert torch.equal(moved.any(0), moved.all(0))
        # Eight layers in a row move every link once.
        assert (moves >= layers // 8).all()
        assert (moves <= -(-layers // 8)).all()

    def test_layers_see_the_loops_that_they_do_not_move(self, flow: GaugeFlow, rng: np.random.Generator) -> None:
        links = flow.base.draw(4, torch_generator(7))
        seen: list[Tensor] = []
        for layer, network in coupling_layers(flow):
            hook = network.register_forward_hook(lambda *heard: seen.append(heard[2]))
            moved, _ = layer(links, inverse=False)
            noise = torch.tensor(rng.uniform(-pi, pi, links.shape))
            active = (moved != links).any(0)
            for fresh in (links + noise * active, moved, links + noise * ~active):
                layer(fresh, inverse=False)
            hook.remove()
            asked, with_active_moved, after, with_others_moved = seen
            seen.clear()
            torch.testing.assert_close(with_active_moved, asked, rtol=0, atol=1e-11)
            torch.testing.assert_close(after, asked, rtol=0, atol=1e-11)
            # Every parameter of every active link depends on something.
            assert (with_others_moved != asked).any(0).all()

    def test_inverse_undoes_every_layer(self, flow: GaugeFlow) -> None:
        links = flow.base.draw(20, torch_generator(8))
        for layer in flow.layers:
            moved, log_slope = layer(links, inverse=False)
            back, log_slope_back = layer(moved, inverse=True)
            assert_same_links(back, links)
            torch.testing.assert_close(log_slope_back, -log_slope, rtol=0, atol=1e-9)

    def test_holonomy_layers_turn_lines_and_no_plaquette(self, shaken: Shaken) -> None:
        flow = gauge_flow(shaken, (8, 4), holonomies=True, layers=17)
        layers = [
            (number, layer)
            for number, layer in enumerate(flow.layers)
            if not isinstance(layer.network, ConvolutionalNetwork)
        ]
        assert [number for number, _ in layers] == [8, 9, 18, 19]
        links = flow.base.draw(20, torch_generator(8))
        for direction, (_, layer) in zip((0, 1, 0, 1), layers, strict=True):
            moved, log_slope = layer(links, inverse=False)
            torch.testing.assert_close(plaquette_angles(moved), plaquette_angles(links), rtol=0, atol=1e-12)
            assert log_slope.shape == (20, 1)
            turned = (moved - links).abs().amax(0)[..., direction]
            assert (turned > 1e-6).all()
            assert torch.equal(moved[..., 1 - direction], links[..., 1 - direction])
            # The phase of the mean line moves along a map of the circle whose slope is the determinant.
            along = torch.zeros_like(links)
            along[..., direction] = 1e-5
            ends = [layer(links + sign * along, inverse=False)[0] for sign in (1, -1)]
            slope = (wrapped(ends[0] - ends[1])[:, 0, 0, direction] / 2e-5)[:, None]
            torch.testing.assert_close(torch.log(slope), log_slope, rtol=0, atol=1e-6)

    def test_untrained_flow_is_the_identity(self) -> None:
        flow = build_flow({**SMALL, "transformation": "projection", "dtype": "float64"}, U1Gauge2D((4, 4), 2.0))
        assert isinstance(flow, GaugeFlow)
        latent = flow.base.draw(5, torch_generator(9))
        field, log_q = flow.sample(5, torch_generator(9))
        assert_same_links(field, latent, 1e-13)
        torch.testing.assert_close(log_q, torch.zeros_like(log_q), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("mask", ["cells", "stripes"])
    def test_packed_network_reaches_farther(self, mask: str, shaken: Shaken) -> None:
        # One layer, two convolutions of extent three: displacements to two sites, or to two cells.
        reaches = {}
        found: list[Tensor] = []
        for name in ("lattice", "packed"):
            flow = gauge_flow(shaken, (16, 16), mask=mask, network=name)
            layer, network = coupling_layers(flow)[0]
            hook = network.register_forward_hook(lambda *heard: found.append(heard[2]))
            links = flow.base.draw(1, torch_generator(10))
            other = links.clone()
            other[:, 8, 7, 1] += 1.0
            for field in (links, other):
                layer(field, inverse=False)
            hook.remove()
            reaches[name] = int((found[-1] != found[-2]).any(1).sum())
        assert reaches["packed"] > reaches["lattice"] > 0


def loops(along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """The loops of a frame, (3, along, across): plaquette, two along, two across, each by its own perimeter."""

    def rectangle(length: int, width: int) -> np.ndarray:
        bottom = sum(np.roll(along, -i, 0) for i in range(length))
        top = np.roll(bottom, -width, 1)
        left = sum(np.roll(across, -i, 1) for i in range(width))
        return np.asarray(bottom + np.roll(left, -length, 0) - top - left)

    return np.stack([rectangle(1, 1), rectangle(2, 1), rectangle(1, 2)])


MASK_CASES = [
    (name, shape, offset)
    for name, shapes in {
        "cells": ((4, 4), (2, 4), (6, 2)),
        "stripes": ((4, 4), (3, 8)),
        "rows": ((4, 4), (8, 2), (4, 6)),
    }.items()
    for shape in shapes
    for offset in ((0, 0), (1, 0), (0, 1), (3, 2))
]


@pytest.mark.parametrize(("name", "shape", "offset"), MASK_CASES, ids=str)
class TestMasks:
    @pytest.fixture
    def mask(self, name: str, shape: tuple[int, int], offset: tuple[int, int]) -> Mask:
        return build_mask(name, shape, offset)

    def test_active_and_passive_plaquettes_are_disjoint(self, mask: Mask) -> None:
        active = mask.is_active
        passive = np.roll(active, -1, 1)
        assert active.sum() == passive.sum() == len(mask.active) == len(set(mask.active))
        assert not (active & passive).any()
        np.testing.assert_array_equal(mask.frozen_loops[0], ~(active | passive))
        assert active.sum() * 4 == active.size
        assert set(np.flatnonzero(active)) == set(mask.active)

    def test_frozen_loops_stay_when_active_links_move(self, mask: Mask, rng: np.random.Generator) -> None:
        along, across = rng.uniform(-pi, pi, (2, *mask.shape))
        moved = along + rng.uniform(-pi, pi, mask.shape) * mask.is_active
        same = np.isclose(loops(moved, across), loops(along, across), rtol=0, atol=1e-12)
        assert same[mask.frozen_loops].all()
        # The others all move, but for loops that wind around a short lattice and touch an active link twice.
        winding = np.zeros_like(same)
        winding[2] = mask.shape[1] == 2
        winding[1] = mask.shape[0] == 1
        assert not same[~mask.frozen_loops & ~winding].any()
        # The pair of an active and its passive plaquette is seen.
        assert mask.frozen_loops[2][np.roll(mask.is_active, -1, 1)].all() or mask.shape[1] == 2

    def test_offset_moves_the_mask(self, name: str, offset: tuple[int, int], mask: Mask) -> None:
        np.testing.assert_array_equal(
            mask.is_active, np.roll(build_mask(name, mask.shape, (0, 0)).is_active, offset, (0, 1))
        )


class TestOtherLattices:
    @pytest.mark.parametrize("hyper", LOCAL.values(), ids=LOCAL)
    def test_same_weights_do_the_same_to_a_repeated_field(self, hyper: dict[str, object], shaken: Shaken) -> None:
        small = gauge_flow(shaken, (8, 8), **hyper)
        for shape, copies in (((16, 16), (2, 2)), ((8, 16), (1, 2))):
            large = build_flow({**SMALL, **hyper}, U1Gauge2D(shape, 7.0)).double()
            assert isinstance(large, GaugeFlow)
            large.load_state_dict(small.state_dict())
            latent = small.base.draw(3, torch_generator(11))
            field, log_det = small.forward(latent)
            field_large, log_det_large = large.requires_grad_(False).forward(latent.repeat(1, *copies, 1))
            assert_same_links(field_large, field.repeat(1, *copies, 1))
            torch.testing.assert_close(log_det_large, copies[0] * copies[1] * log_det, rtol=1e-9, atol=1e-9)


class TestRefusals:
    @pytest.mark.parametrize(
        ("shape", "hyper", "word"),
        [
            ((3, 4), {}, "close"),
            ((4, 5), {}, "close"),
            ((4, 6), {"mask": "stripes"}, "close"),
            ((6, 4), {"mask": "stripes"}, "close"),
            ((4, 6), {"mask": "rows", "network": "lattice"}, "close"),
            ((4, 4), {"mask": "rows"}, "packed"),
            ((4, 4), {"layers": 7}, "unmoved"),
            ((4, 4), {"kernel": 7}, "around the lattice"),
            ((4, 4), {"network": "lattice", "kernel": 5, "dilations": [4, 1]}, "around the lattice"),
            ((4, 4), {"kernel": 2}, "odd kernel"),
            ((4, 4), {"dilations": [1]}, "2 dilations"),
            ((4, 4), {"dilations": [1, 0]}, "above zero"),
            ((4, 4), {"pieces": 0}, "above zero"),
            ((4, 4), {"hidden": [4, 0]}, "above zero"),
            ((4, 4), {"mask": "checkerboard"}, "stripes"),
            ((4, 4), {"transformation": "affine"}, "projection"),
            ((4, 4), {"network": "dense"}, "lattice"),
            ((4, 4), {"dtype": "float16"}, "float32"),
        ],
        ids=str,
    )
    def test_hyper_parameters(self, shape: tuple[int, int], hyper: dict[str, object], word: str) -> None:
        with pytest.raises(ParameterError, match=word):
            build_flow({**SMALL, **hyper}, U1Gauge2D(shape, 2.0))

    def test_fields_that_are_no_links(self) -> None:
        with pytest.raises(TheoryMismatchError, match="real"):
            build_flow(SMALL, FreeScalar((4, 4), 1.0))

    def test_angles_that_are_no_links(self) -> None:
        class Rotors(U1Gauge2D):
            @property
            def field_shape(self) -> tuple[int, ...]:
                return self.shape

        with pytest.raises(TheoryMismatchError, match="links"):
            build_flow(SMALL, Rotors((4, 4), 2.0))

    def test_every_mask_network_and_transformation_has_its_test(self) -> None:
        assert {hyper.get("mask", "cells") for hyper in FLOWS.values()} == set(MASKS) == set(PERIODS)
        assert GaugeConfig().network == "packed"


class TestExactness:
    """Importance weights of any flow give the exact partition function and plaquette."""

    @pytest.mark.parametrize(("shape", "beta"), [((2, 2), 1.0), ((4, 4), 0.5)], ids=str)
    @pytest.mark.parametrize("hyper", [{"pieces": 2}, {"transformation": "projection", "pieces": 3}], ids=str)
    def test_weights_have_the_exact_means(
        self, hyper: dict[str, object], shape: tuple[int, int], beta: float, test_seed: int, shaken: Shaken
    ) -> None:
        theory = U1Gauge2D(shape, beta)
        flow = gauge_flow(shaken, shape, **hyper)
        exact = u1_exact(shape, beta)
        field, log_q = flow.sample(10000, torch_generator(test_seed))
        weight = torch.exp(-theory.action(field) - log_q - exact.log_z).numpy()
        plaquette = torch.cos(plaquette_angles(field)).mean((1, 2)).numpy()
        for deviation in (weight - 1, weight * (plaquette - exact.plaquette)):
            assert abs(deviation.mean()) < 5 * deviation.std() / np.sqrt(len(deviation))

    @pytest.mark.parametrize("transformation", ["spline", "projection"])
    def test_density_is_normalised(self, transformation: str, test_seed: int, shaken: Shaken) -> None:
        flow = gauge_flow(shaken, (2, 2), transformation=transformation, pieces=1)
        q = torch.exp(flow.log_prob(flow.base.draw(20000, torch_generator(test_seed)))).numpy()
        assert abs(q.mean() - 1) < 5 * q.std() / np.sqrt(len(q))
        assert q.std() > 0.1

    def test_untrained_flow_is_the_limit_of_strong_coupling(self, test_seed: int) -> None:
        flow = build_flow({**SMALL, "dtype": "float64"}, U1Gauge2D((4, 4), 2.0)).requires_grad_(False)
        field, log_q = flow.sample(5000, torch_generator(test_seed))
        torch.testing.assert_close(log_q, torch.zeros_like(log_q), rtol=0, atol=1e-12)
        for power, x, y in product((1, 2), (0, 1), (0, 1)):
            phases = torch.cos(power * plaquette_angles(field)[:, x, y])
            assert abs(float(phases.mean())) < 5 * float(phases.std()) / np.sqrt(len(phases))


def test_projections_of_a_combination_learn_different_things() -> None:
    theory = U1Gauge2D((4, 4), 2.0)
    flow = build_flow({**SMALL, "transformation": "projection", "pieces": 3}, theory)
    before = {name: weight.clone() for name, weight in flow.named_parameters()}
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for step in range(5):
        field, log_q = flow.sample(32, torch_generator(step))
        optimiser.zero_grad()
        (log_q + theory.action(field)).mean().backward()
        optimiser.step()
    for name, weight in flow.named_parameters():
        if name.endswith("convolutions.1.bias"):
            stretches = (weight - before[name])[:3]
            assert float(stretches.detach().std()) > 0.1 * float(stretches.detach().abs().max()) > 0
