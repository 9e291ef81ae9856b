"""Block moves: the exact distribution, what they report, a zoo of wrong ones, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from flowmc.errors import ParameterError
from flowmc.flows import Flow
from flowmc.kernels import BlockMoves, Cycle, CycleMember, HybridState
from flowmc.proposals import BlockFlowProposal, as_proposal
from flowmc.testing import ExactStart, KernelContract, exact_start_scores, ising_start
from flowmc.theories import Ising, Phi4, Theory
from flowmc_analysis.zscores import family_p_value

Shaken = Callable[[Mapping[str, object], Theory], Flow]

EIGHT = Ising((8, 8), 0.4)
FALSE_ALARM = 1e-5


def proposal_for(theory: Ising, shaken: Shaken, **hyper: object) -> BlockFlowProposal:
    made = as_proposal(shaken({"kind": "hierarchical", "z2": not theory.field, **hyper}, theory))
    assert isinstance(made, BlockFlowProposal)
    return made


CASES: list[tuple[Ising, int, dict[str, object]]] = [
    (Ising((4, 4), 0.44), 1, {}),
    (Ising((4, 4), 0.3, coupling=-1.0, field=0.3), 1, {}),
    (Ising((6, 6), 0.4), 2, {}),
    (Ising((8, 8), 0.3, field=0.1), 3, {}),
    (EIGHT, 3, {"exact_cross": False}),
    (EIGHT, 1, {"exact_cross": False, "translations": True}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
class TestContract(KernelContract):
    @pytest.fixture
    def theory(self, case: tuple[Ising, int, dict[str, object]]) -> Theory:
        return case[0]

    @pytest.fixture
    def target(self, theory: Theory) -> ExactStart:
        assert isinstance(theory, Ising)
        return ising_start(theory)

    @pytest.fixture
    def member(self, theory: Theory, case: tuple[Ising, int, dict[str, object]], shaken: Shaken) -> CycleMember:
        assert isinstance(theory, Ising)
        return BlockMoves(theory, proposal_for(theory, shaken, **case[2]), 5, 2, case[1])


def moves(theory: Ising, proposal: Any, n_updates: int = 1, side: int = 0, seed: int = 5) -> BlockMoves:
    return BlockMoves(theory, proposal, seed, n_updates, side)


def moved(member: BlockMoves, field: np.ndarray, cycles: int = 1) -> tuple[HybridState, list[Any]]:
    cycle = Cycle(member.theory, (member,))
    state, updates = cycle.init(field), []
    for number in range(cycles):
        state, happened = cycle.run(number, 0, state, (None,))
        updates.append(happened.updates[0])
    return state, updates


class WithoutTranslations(BlockMoves):
    """Blocks always at the same place."""

    def _update(self, field: np.ndarray, cycle: int, number: int) -> Any:  # noqa: ARG002
        new, _, _ = self.proposal.resample_blocks(field, self.side, cycle)
        # Exact blocks: every one is accepted.
        return new, np.zeros(len(field)), np.ones((len(field), 2, 2), bool)


def test_without_translations_the_boundary_never_moves(shaken: Shaken) -> None:
    start = EIGHT.start(np.random.default_rng(1), 50, "hot")
    proposal = proposal_for(EIGHT, shaken)
    stuck, _ = moved(WithoutTranslations(EIGHT, proposal, 5, 1), start, 20)
    still = (np.asarray(stuck.field) == start).all(axis=0)
    boundary = np.zeros((8, 8), bool)
    boundary[::4], boundary[:, ::4] = True, True
    np.testing.assert_array_equal(still, boundary)
    free, _ = moved(moves(EIGHT, proposal), start, 20)
    assert not (np.asarray(free.field) == start).all(axis=0).any()


class Altered:
    """A block proposal with another log probability of the insides than that of the draws."""

    def __init__(self, inner: BlockFlowProposal, disease: str) -> None:
        self._inner, self._disease = inner, disease

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def block_sides(self) -> tuple[int, ...]:
        return self._inner.block_sides

    def resample_blocks(self, field: np.ndarray, side: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        new, log_new, log_old = self._inner.resample_blocks(field, side, seed)
        if self._disease == "averaged over the spin flip":
            # The whole flow's q is symmetric, but one component draws the block.
            log_new, log_old = (
                np.logaddexp(own, self._inner.resample_blocks(-one, side, 1)[2]) - np.log(2)
                for one, own in ((new, log_new), (field, log_old))
            )
        if self._disease == "swapped":
            log_new, log_old = log_old, log_new
        if self._disease == "left out":
            log_new, log_old = np.zeros_like(log_new), np.zeros_like(log_old)
        if self._disease == "halved":
            log_new, log_old = log_new / 2, log_old / 2
        return new, log_new, log_old


def p_value(member: BlockMoves, rng: np.random.Generator) -> float:
    scores = exact_start_scores(
        ising_start(member.theory), lambda field: np.asarray(moved(member, field)[0].field), rng, 10000
    )
    return float(family_p_value(np.array(list(scores.values()))))


@pytest.mark.parametrize("disease", ["averaged over the spin flip", "swapped", "left out", "halved", ""])
def test_wrong_probabilities_are_caught(disease: str, shaken: Shaken, rng: np.random.Generator) -> None:
    flow = shaken({"kind": "hierarchical", "exact_cross": False}, EIGHT)
    with torch.no_grad():
        # A component that is far from symmetric under the spin flip.
        flow.get_parameter("levels.block_3.network.bias").add_(0.7)
    inner = as_proposal(flow)
    assert isinstance(inner, BlockFlowProposal)
    member = moves(EIGHT, Altered(inner, disease), n_updates=4, side=3)
    assert (p_value(member, rng) < FALSE_ALARM) == bool(disease)


class TestUpdates:
    def test_exact_blocks_are_always_accepted(self, shaken: Shaken) -> None:
        start = EIGHT.start(np.random.default_rng(1), 20, "hot")
        for side in (1, 3):
            _, (updates,) = moved(moves(EIGHT, proposal_for(EIGHT, shaken), 3, side), start)
            np.testing.assert_array_equal(updates.acceptance, 1)

    def test_acceptance_is_the_fraction_of_blocks(self, shaken: Shaken) -> None:
        start = EIGHT.start(np.random.default_rng(1), 200, "hot")
        proposal = proposal_for(EIGHT, shaken, exact_cross=False)
        _, (updates,) = moved(moves(EIGHT, proposal, 3), start)
        # Two by two blocks of side 3.
        np.testing.assert_array_equal(np.unique(updates.acceptance), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_array_equal(updates.accepted, updates.acceptance > 0)
        for name in ("delta_H", "log_weight", "log_weight_current", "action_proposed"):
            assert np.isnan(getattr(updates, name)).all()

    def test_every_update_leaves_its_own_action(self, shaken: Shaken) -> None:
        theory = Ising((8, 8), 0.4, field=0.2)
        start = theory.start(np.random.default_rng(1), 20, "hot")
        proposal = proposal_for(theory, shaken, exact_cross=False)
        _, (together,) = moved(moves(theory, proposal, 3), start)
        for n_updates in (1, 2, 3):
            state, _ = moved(moves(theory, proposal, n_updates), start)
            np.testing.assert_allclose(
                together.action[n_updates - 1], theory.action(np.asarray(state.field)), atol=1e-10
            )

    def test_largest_blocks_are_the_default(self, shaken: Shaken) -> None:
        theory = Ising((16, 16), 0.4)
        member = moves(theory, proposal_for(theory, shaken))
        assert member.side == 7
        assert member.describe()["block_side"] == 7


class TestRefusals:
    def test_other_theories(self, shaken: Shaken) -> None:
        with pytest.raises(ParameterError, match="phi4"):
            BlockMoves(Phi4((8, 8), -4.0, 8.0), proposal_for(EIGHT, shaken), 5, 1)  # type: ignore[arg-type]

    def test_flows_without_blocks(self, shaken: Shaken) -> None:
        with pytest.raises(ParameterError, match="hierarchical"):
            moves(EIGHT, as_proposal(shaken({"kind": "autoregressive"}, EIGHT)))

    @pytest.mark.parametrize(("side", "n_updates"), [(2, 1), (7, 1), (-1, 1), (3, 0)])
    def test_sides_that_are_none(self, side: int, n_updates: int, shaken: Shaken) -> None:
        with pytest.raises(ParameterError, match=r"\[3, 1\]"):
            moves(EIGHT, proposal_for(EIGHT, shaken), n_updates, side)
