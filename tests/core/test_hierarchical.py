"""Hierarchical flows: their levels, and the exact ones against the Boltzmann distribution by enumeration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.flows import Flow, HierarchicalFlow, build_flow
from flowmc.kernels.blocks import block_actions
from flowmc.seeds import torch_generator
from flowmc.testing import counts_p_value, enumerate_spins
from flowmc.theories import Ising, Theory

Shaken = Callable[[Mapping[str, object], Theory], Flow]

SIZES = [4, 6, 8, 12, 16, 24]


@pytest.fixture
def hierarchy(shaken: Shaken) -> Callable[..., HierarchicalFlow]:
    def build(theory: Ising, **hyper: object) -> HierarchicalFlow:
        flow = shaken({"kind": "hierarchical", "z2": not theory.field, **hyper}, theory)
        assert isinstance(flow, HierarchicalFlow)
        return flow

    return build


def level_sizes(flow: HierarchicalFlow) -> dict[str, int]:
    """Draw level by level into a lattice of NaN; return how many spins each drew, checking what it touched and read."""
    spins = torch.full((40, flow.ising.volume), torch.nan, dtype=torch.float64)
    generator = torch_generator(1)
    sizes = {}
    for name, level in flow.levels.items():
        before = spins.clone()
        log_prob = level.draw(spins, flow.ising, generator)  # type: ignore[operator]
        assert torch.isfinite(log_prob).all(), f"{name} reads spins that are not drawn yet"
        missing = before.isnan()
        assert torch.equal(spins[~missing], before[~missing]), f"{name} draws spins again"
        sizes[name] = int((missing & ~spins.isnan())[0].sum())
        torch.testing.assert_close(level.log_prob(spins, flow.ising), log_prob, rtol=1e-12, atol=1e-12)  # type: ignore[operator]
    assert not spins.isnan().any()
    return sizes


@pytest.mark.parametrize("exact_cross", [True, False])
@pytest.mark.parametrize("extent", SIZES)
def test_every_site_is_drawn_once(extent: int, exact_cross: bool, hierarchy: Callable[..., HierarchicalFlow]) -> None:
    sizes = level_sizes(hierarchy(Ising((extent, extent), 0.4), exact_cross=exact_cross))
    assert sizes["boundary"] == 4 * extent - 4
    assert sum(sizes.values()) == extent**2


def test_levels_of_16_and_24(hierarchy: Callable[..., HierarchicalFlow]) -> None:
    flow = hierarchy(Ising((16, 16), 0.4))
    assert flow.block_sides == (7, 3, 1)
    assert level_sizes(flow) == {"boundary": 60, "block_7": 4 * 13, "block_3": 16 * 5, "block_1": 64}
    flow = hierarchy(Ising((24, 24), 0.4))
    assert flow.block_sides == (11, 5, 2)
    assert level_sizes(flow) == {"boundary": 92, "block_11": 4 * 21, "block_5": 16 * 9, "block_2": 64 * 4}


def fill(field: np.ndarray, side: int, cell: tuple[int, int], insides: np.ndarray) -> np.ndarray:
    """Copies of one configuration (L, L), the inside of one block replaced by each of (n, side, side)."""
    top, left = ((side + 1) * index + 1 for index in cell)
    filled = np.repeat(field[None], len(insides), axis=0)
    filled[:, top : top + side, left : left + side] = insides
    return filled


def conditional(theory: Ising, fields: np.ndarray) -> np.ndarray:
    """Boltzmann probabilities of configurations relative to one another."""
    weight = np.exp(-theory.action(fields) + theory.action(fields).min())
    normalised: np.ndarray = weight / weight.sum()
    return normalised


def log_old(flow: HierarchicalFlow, fields: np.ndarray, side: int, cell: tuple[int, int]) -> np.ndarray:
    with torch.no_grad():
        found = flow.resample_blocks(torch.tensor(fields), side, torch_generator(1))[2]
    return np.asarray(found[:, *cell])


COUPLINGS = [{"beta": 0.44}, {"beta": 0.3, "coupling": -1.3}, {"beta": 0.6, "coupling": 0.7, "field": 0.35}]


@pytest.mark.parametrize("couplings", COUPLINGS, ids=str)
@pytest.mark.parametrize(("extent", "side"), [(4, 1), (8, 1), (6, 2), (12, 2), (8, 3), (16, 3)])
def test_exact_blocks_have_the_boltzmann_distribution(
    extent: int, side: int, couplings: dict[str, float], hierarchy: Callable[..., HierarchicalFlow]
) -> None:
    theory = Ising((extent, extent), **couplings)
    flow = hierarchy(theory)
    cells = extent // (side + 1)
    for number, cell in enumerate([(0, 0), (cells - 1, 0), (1, cells - 1)]):
        start = theory.start(np.random.default_rng(number), 1, "hot")[0]
        fields = fill(start, side, cell, enumerate_spins((side, side)))
        probability = np.exp(log_old(flow, fields, side, cell))
        np.testing.assert_allclose(probability, conditional(theory, fields), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("extent", "side", "exact_cross"), [(8, 3, False), (16, 3, False)])
def test_blocks_with_a_network_are_normalised(
    extent: int, side: int, exact_cross: bool, hierarchy: Callable[..., HierarchicalFlow]
) -> None:
    theory = Ising((extent, extent), 0.44)
    flow = hierarchy(theory, exact_cross=exact_cross)
    start = theory.start(np.random.default_rng(1), 1, "hot")[0]
    fields = fill(start, side, (1, 0), enumerate_spins((side, side)))
    probability = np.exp(log_old(flow, fields, side, (1, 0)))
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    assert np.abs(probability - conditional(theory, fields)).max() > 1e-3


@pytest.mark.parametrize(
    ("extent", "side", "hyper"),
    [(6, 2, {}), (8, 3, {}), (8, 3, {"exact_cross": False}), (8, 1, {}), (4, 1, {})],
    ids=str,
)
def test_new_insides_are_drawn_as_their_probability_says(
    extent: int,
    side: int,
    hyper: dict[str, object],
    hierarchy: Callable[..., HierarchicalFlow],
    rng: np.random.Generator,
) -> None:
    theory = Ising((extent, extent), 0.35)
    flow = hierarchy(theory, **hyper)
    cells, cell, n = extent // (side + 1), (1, 1), 20000
    start = theory.start(rng, 1, "hot")
    with torch.no_grad():
        old = torch.tensor(np.repeat(start, n, axis=0))
        new, log_new, _ = flow.resample_blocks(old, side, torch_generator(int(rng.integers(2**62))))
        again = flow.resample_blocks(new, side, torch_generator(2))[2]
    torch.testing.assert_close(again, log_new, rtol=1e-12, atol=1e-12)
    assert log_new.shape == (n, cells, cells)
    period = side + 1
    split = new.numpy().reshape(n, cells, period, cells, period)
    np.testing.assert_array_equal(split[:, :, 0], old.numpy().reshape(split.shape)[:, :, 0])
    np.testing.assert_array_equal(split[..., 0], old.numpy().reshape(split.shape)[..., 0])
    inside = split[:, cell[0], 1:, cell[1], 1:]
    states = enumerate_spins((side, side))
    expected = n * np.exp(log_old(flow, fill(start[0], side, cell, states), side, cell))
    found = np.bincount((inside.reshape(n, -1) > 0) @ (1 << np.arange(side**2)), minlength=len(states))
    assert counts_p_value(found, expected) > 1e-5


@pytest.mark.parametrize(("extent", "side"), [(4, 1), (6, 2), (8, 1), (8, 3), (12, 5), (16, 7)])
@pytest.mark.parametrize("couplings", COUPLINGS, ids=str)
def test_block_actions_are_what_changes_with_a_block(
    extent: int, side: int, couplings: dict[str, float], rng: np.random.Generator
) -> None:
    theory = Ising((extent, extent), **couplings)
    old = theory.start(rng, 1, "hot")[0]
    cells = extent // (side + 1)
    assert block_actions(theory, old[None], side).shape == (1, cells, cells)
    for cell in np.ndindex(cells, cells):
        new = fill(old, side, cell, theory.space.start(rng, 6, (side, side), "hot"))
        change = block_actions(theory, new, side) - block_actions(theory, old[None], side)
        elsewhere = np.ones((cells, cells), bool)
        elsewhere[cell] = False
        np.testing.assert_array_equal(change[:, elsewhere], 0)
        np.testing.assert_allclose(change[:, *cell], theory.action(new) - theory.action(old[None]), atol=1e-11)


def test_a_block_does_not_know_where_it_is_nor_on_how_large_a_lattice(
    hierarchy: Callable[..., HierarchicalFlow],
) -> None:
    small, large = (hierarchy(Ising((extent, extent), 0.4), exact_cross=False) for extent in (8, 16))
    weights = {name: tensor for name, tensor in large.state_dict().items() if name.startswith("levels.block_3.")}
    assert weights
    small.load_state_dict({**small.state_dict(), **weights})
    rng = np.random.default_rng(1)
    field = Ising((8, 8), 0.4).start(rng, 5, "hot")
    wide = np.tile(field, (1, 2, 2))
    with torch.no_grad():
        one = small.resample_blocks(torch.tensor(field), 3, torch_generator(1))[2]
        other = large.resample_blocks(torch.tensor(wide), 3, torch_generator(1))[2]
    torch.testing.assert_close(other, one.repeat(1, 2, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(10, 10), (4, 6), (4, 4, 4), (8,), (2, 2), (3, 3), (20, 20), (14, 14)], ids=str)
def test_other_lattices_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LatticeMismatchError, match="L = 4, 8, 16") as caught:
        build_flow({"kind": "hierarchical"}, Ising(shape, 0.4))
    assert str(shape) in caught.value.got
    assert "autoregressive" in caught.value.fix


@pytest.mark.parametrize("hyper", [{"width": 0}, {"depth": 0}, {"dtype": "float16"}], ids=str)
def test_bad_hyper_parameters_are_refused(hyper: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        build_flow({"kind": "hierarchical", **hyper}, Ising((8, 8), 0.4))
