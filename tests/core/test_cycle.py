"""What a cycle refuses: members of another theory, whatever their kind, and kernels that cannot reach every field."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from flowmc.errors import ParameterError, TheoryMismatchError
from flowmc.flows import build_flow
from flowmc.kernels import (
    HMC,
    BlockMoves,
    Checkerboard,
    ClusterKernel,
    ClusterUpdates,
    Cycle,
    CycleMember,
    FlowProposals,
    Independence,
    LocalUpdates,
    Trajectories,
)
from flowmc.kernels.cluster import CLUSTER_RULES
from flowmc.kernels.local import LOCAL_RULES
from flowmc.proposals import BlockFlowProposal, as_proposal
from flowmc.testing import GaussianProposal
from flowmc.theories import FreeScalar, Ising, Theory

COLD = Ising((4, 4), 0.44)


def blocks(theory: Any) -> CycleMember:
    proposal = as_proposal(build_flow({"kind": "hierarchical", "z2": False}, theory))
    assert isinstance(proposal, BlockFlowProposal)
    return BlockMoves(theory, proposal, 1, 1)


def spin_proposals(theory: Theory) -> CycleMember:
    flow = build_flow({"kind": "autoregressive", "z2": False}, theory)
    return FlowProposals(Independence(theory), as_proposal(flow), 1, 1)


def sweeps(rule: str, theory: Any) -> CycleMember:
    return LocalUpdates(Checkerboard(theory, rule), 1, 1)


def clusters(rule: str, theory: Any) -> CycleMember:
    return ClusterUpdates(ClusterKernel(theory, rule), 1, 1)


SPIN_MEMBERS: dict[str, Callable[[Any], CycleMember]] = {
    **{rule: partial(sweeps, rule) for rule in LOCAL_RULES},
    **{rule: partial(clusters, rule) for rule in CLUSTER_RULES},
    "blocks": blocks,
    "flow": spin_proposals,
}
REAL_MEMBERS: dict[str, Callable[[Any], CycleMember]] = {
    "hmc": lambda theory: Trajectories.build(
        HMC(theory), 1, 1, trajectory_length=1.0, step_size=0.2, target_acceptance=None
    ),
    "flow": lambda theory: FlowProposals(Independence(theory), GaussianProposal(theory.shape, 0.5), 1, 1),
}
OTHERS = [Ising((4, 4), 0.43), Ising((4, 4), 0.44, field=0.1), Ising((4, 4), 0.44, coupling=-1.0), Ising((8, 8), 0.44)]


@pytest.mark.parametrize("other", OTHERS, ids=str)
@pytest.mark.parametrize("kind", SPIN_MEMBERS)
def test_members_of_another_model_of_spins_are_refused(kind: str, other: Ising) -> None:
    member = SPIN_MEMBERS[kind](other)
    assert Cycle(other, (member,)).kinds == (kind,)
    with pytest.raises(TheoryMismatchError, match=kind) as caught:
        Cycle(COLD, (member,))
    assert str(other) in caught.value.got
    assert str(COLD) in caught.value.got


@pytest.mark.parametrize("kind", REAL_MEMBERS)
def test_members_of_another_theory_of_real_fields_are_refused(kind: str) -> None:
    own, other = FreeScalar((4, 2), 0.8), FreeScalar((4, 2), 0.9)
    member = REAL_MEMBERS[kind](other)
    assert Cycle(other, (member,)).kinds == (kind,)
    with pytest.raises(TheoryMismatchError, match=kind):
        Cycle(own, (member,))


def test_one_wrong_member_among_right_ones_is_refused() -> None:
    right = (SPIN_MEMBERS["wolff"](COLD), SPIN_MEMBERS["flow"](COLD))
    assert Cycle(COLD, right).kinds == ("wolff", "flow")
    with pytest.raises(TheoryMismatchError, match="heat_bath"):
        Cycle(COLD, (right[0], SPIN_MEMBERS["heat_bath"](OTHERS[0]), right[1]))


FREE = [Ising((4, 4), 0.0), Ising((4, 4), 0.0, field=0.3), Ising((4, 4), 0.4, coupling=0.0)]


class TestFreeSpins:
    """Without links and field Wolff turns one spin over in every update: the number of spins up alternates."""

    @pytest.mark.parametrize("theory", FREE, ids=str)
    def test_wolff_is_refused(self, theory: Ising) -> None:
        with pytest.raises(ParameterError, match="swendsen_wang"):
            SPIN_MEMBERS["wolff"](theory)

    @pytest.mark.parametrize("theory", FREE, ids=str)
    def test_swendsen_wang_is_not(self, theory: Ising) -> None:
        assert Cycle(theory, (SPIN_MEMBERS["swendsen_wang"](theory),)).kinds == ("swendsen_wang",)

    @pytest.mark.parametrize("theory", [Ising((4, 4), 0.4, coupling=0.0, field=0.3), Ising((4, 4), 1e-3)], ids=str)
    def test_a_field_or_a_coupling_is_enough(self, theory: Ising) -> None:
        assert Cycle(theory, (SPIN_MEMBERS["wolff"](theory),)).kinds == ("wolff",)
