"""The driver with spins: cycles of several kernels, resumed bit by bit, against the exact distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from flowmc.flows import Flow
from flowmc.kernels import (
    BlockMoves,
    Checkerboard,
    ClusterKernel,
    ClusterUpdates,
    Cycle,
    CycleMember,
    FlowProposals,
    Independence,
    LocalUpdates,
)
from flowmc.kernels.cluster import CLUSTER_RULES
from flowmc.proposals import BlockFlowProposal, as_proposal
from flowmc.sampling import MemoryStore, SamplingPlan, sample
from flowmc.testing import ExactIsing
from flowmc.theories import Ising, Theory
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.zscores import judge, z_score

Shaken = Callable[[Mapping[str, object], Theory], Flow]

THEORY = Ising((4, 4), 0.3)
CYCLES = [
    "heat_bath+flow",
    "metropolis+flow",
    "wolff+flow",
    "swendsen_wang+blocks+flow",
    "blocks+flow",
    "blocks",
    "flow",
]


@pytest.fixture
def cycle_of(shaken: Shaken) -> Callable[[str], Cycle]:
    proposal = as_proposal(shaken({"kind": "hierarchical"}, THEORY))
    assert isinstance(proposal, BlockFlowProposal)

    def member(kind: str) -> CycleMember:
        if kind == "flow":
            return FlowProposals(Independence(THEORY), proposal, 5, 3)
        if kind == "blocks":
            return BlockMoves(THEORY, proposal, 5, 2)
        if kind in CLUSTER_RULES:
            return ClusterUpdates(ClusterKernel(THEORY, kind), 5, 2)
        return LocalUpdates(Checkerboard(THEORY, kind), 5, 2)

    return lambda kinds: Cycle(THEORY, tuple(member(kind) for kind in kinds.split("+")))


def run(cycle: Cycle, store: MemoryStore, cycles: int, chains: int = 4, **options: Any) -> bool:
    plan = SamplingPlan(chains, cycles, thermalisation=6, tuning=0, cycles_per_block=3)
    start = lambda: THEORY.start(np.random.default_rng(0), chains, "hot")  # noqa: E731
    return sample(cycle, plan, store, start, observers=THEORY.identities(), **options).finished


def assert_same(one: MemoryStore, other: MemoryStore) -> None:
    np.testing.assert_array_equal(one.trajectory, other.trajectory)
    tables = [(group, name) for group in ("configurations", "history", "observables") for name in one.blocks[0][group]]
    for group, name in tables:
        if name != "walltime":
            np.testing.assert_array_equal(one.table(group, name), other.table(group, name), err_msg=f"{group}/{name}")


@pytest.mark.parametrize("kinds", CYCLES)
def test_resumed_and_extended_runs_are_bit_identical(kinds: str, cycle_of: Callable[[str], Cycle]) -> None:
    whole, stopped, extended = MemoryStore(), MemoryStore(), MemoryStore()
    cycle = cycle_of(kinds)
    run(cycle, whole, 9)
    while not run(cycle, stopped, 9, should_stop=lambda: "test"):
        pass
    run(cycle, extended, 3)
    run(cycle, extended, 9)
    assert_same(whole, stopped)
    assert_same(whole, extended)


def test_tables_fit_together(cycle_of: Callable[[str], Cycle]) -> None:
    store = MemoryStore()
    run(cycle_of("swendsen_wang+blocks+flow"), store, 9)
    field, action = store.table("configurations", "spin"), store.table("configurations", "action")
    assert field.dtype == np.int8
    assert field.shape == (9, 4, 4, 4)
    assert set(np.unique(field)) == {-1, 1}
    assert "phi" not in store.blocks[0]["configurations"]
    np.testing.assert_allclose(THEORY.action(field.reshape(-1, 4, 4)), action.reshape(-1), atol=1e-12)
    np.testing.assert_array_equal(store.table("history", "action")[store.trajectory - 1], action)
    kinds = store.table("history", "proposal_kind")
    np.testing.assert_array_equal(kinds[:7], [0, 0, 1, 1, 2, 2, 2])
    for name in ("log_weight", "log_weight_current", "action_proposed"):
        column = store.table("history", name)
        assert np.isfinite(column[kinds == 2]).all()
        assert np.isnan(column[kinds != 2]).all()
    identity = THEORY.identities()["local_field"]
    np.testing.assert_allclose(store.table("observables", "local_field")[0], identity(field[0]), atol=1e-12)


def test_weights_are_those_of_states_and_proposals(cycle_of: Callable[[str], Cycle]) -> None:
    store = MemoryStore()
    cycle = cycle_of("heat_bath+flow")
    run(cycle, store, 9)
    flow = cycle.members[-1]
    assert isinstance(flow, FlowProposals)
    kinds = store.table("history", "proposal_kind")
    action, proposed, weight, current, accepted = (
        store.table("history", name)[kinds == 1].reshape(-1, 3, 4)
        for name in ("action", "action_proposed", "log_weight", "log_weight_current", "accepted")
    )
    taken = accepted.astype(bool)
    np.testing.assert_array_equal(action[taken], proposed[taken])
    for k in (0, 1):
        np.testing.assert_array_equal(current[:, k + 1], np.where(taken[:, k], weight[:, k], current[:, k]))
    # The state after the last proposal is the one that is stored.
    field = store.table("configurations", "spin")
    last = np.where(taken[:, 2], weight[:, 2], current[:, 2])[-len(field) :]
    expected = -THEORY.action(field.reshape(-1, 4, 4)) - flow.log_prob(field.reshape(-1, 4, 4))
    np.testing.assert_allclose(last.reshape(-1), expected, rtol=1e-10)


@pytest.mark.parametrize("kinds", CYCLES)
def test_observables_are_exact(kinds: str, cycle_of: Callable[[str], Cycle]) -> None:
    store, exact = MemoryStore(), ExactIsing(THEORY)
    run(cycle_of(kinds), store, 300, chains=64)
    field = store.table("configurations", "spin").astype(np.float64)

    def observables(spins: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "neighbours": (spins * np.roll(spins, 1, -1)).mean(axis=(-2, -1)),
            "susceptibility": 16 * spins.mean(axis=(-2, -1)) ** 2,
            "magnetisation_abs": np.abs(spins.mean(axis=(-2, -1))),
            "diagonal": spins[..., 0, 0] * spins[..., 2, 2],
        }

    known, scores = observables(exact.states.astype(np.float64)), []
    for name, series in observables(field).items():
        estimate = gamma_method(series.T).estimate
        scores.append(z_score(name, estimate.value, exact.expectation(known[name]), estimate.error))
    identity = gamma_method(store.table("observables", "local_field").T).estimate
    scores.append(z_score("local_field", identity.value, 0.0, identity.error))
    assert judge(scores, level=1e-4).passed, scores
