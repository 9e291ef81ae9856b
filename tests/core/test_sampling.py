"""The driver: plans, bit-identical resumption, extension, stopping, and agreement with an independent Metropolis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from flowmc.errors import NonFiniteError, ParameterError, StateError
from flowmc.kernels import HMC, Cycle, FlowProposals, Independence, Trajectories
from flowmc.sampling import MemoryStore, SamplingPlan, Store, sample
from flowmc.testing import GaussianProposal, StoreContract
from flowmc.theories import Phi4
from flowmc_analysis.exact import phi4_exact
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.zscores import judge, z_score
from flowmc_ensembles import EnsembleDescription, EnsembleWriter, StreamDescription

THEORY = Phi4((4, 4), m2=-4.0, lam=8.0)


def cycle_of(kind: str, theory: Phi4 = THEORY, target: float | None = 0.8) -> Cycle:
    trajectories = Trajectories.build(
        HMC(theory), 5, 2, trajectory_length=1.0, step_size=0.25, target_acceptance=target
    )
    proposal = GaussianProposal(theory.shape, 0.35)
    if kind == "hmc":
        return Cycle(theory, (trajectories,))
    if kind == "flow":
        return Cycle(theory, (FlowProposals(Independence(theory), proposal, 5, 3),))
    return Cycle(theory, (trajectories, FlowProposals(Independence(theory), proposal, 5, 3)))


def start(theory: Phi4 = THEORY, chains: int = 4) -> Callable[[], np.ndarray]:
    return lambda: theory.start(np.random.default_rng(0), chains, "hot")


def run(store: Store, kind: str, n_cycles: int, **options: Any) -> Any:
    plan = SamplingPlan(4, n_cycles, thermalisation=6, tuning=0 if kind == "flow" else 4, cycles_per_block=3)
    return sample(cycle_of(kind), plan, store, start(), observers={"virial": THEORY.virial}, **options)


TABLES = [
    ("configurations", "phi"),
    ("configurations", "action"),
    ("observables", "virial"),
    *(("history", name) for name in ("update", "proposal_kind", "accepted", "action", "delta_H", "log_weight")),
    ("history", "log_weight_current"),
]


def assert_same(one: MemoryStore, other: MemoryStore) -> None:
    for group, name in TABLES:
        np.testing.assert_array_equal(one.table(group, name), other.table(group, name), err_msg=f"{group}/{name}")
    np.testing.assert_array_equal(one.trajectory, other.trajectory)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()

    @pytest.fixture
    def reopen(self) -> Callable[[Store], Store]:
        return lambda store: store

    @pytest.fixture
    def read(self) -> Callable[[Store, str, str], np.ndarray]:
        return lambda store, group, name: store.table(group, name)  # type: ignore[attr-defined]


class TestEnsembleWriter(StoreContract):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "ensemble.h5"

    @pytest.fixture
    def store(self, path: Path) -> Store:
        description = EnsembleDescription("phi4", {"name": "phi4"}, (4, 4), "as in arXiv:1904.12072")
        return EnsembleWriter.create(path, description, StreamDescription(5, "hmc", {}, 3))

    @pytest.fixture
    def reopen(self, path: Path) -> Callable[[Store], Store]:
        def again(store: Store) -> Store:
            assert isinstance(store, EnsembleWriter)
            store.close()
            return EnsembleWriter.open(path)

        return again

    @pytest.fixture
    def read(self, path: Path) -> Callable[[Store, str, str], np.ndarray]:
        from flowmc_ensembles import Ensemble

        def table(_: Store, group: str, name: str) -> np.ndarray:
            stream = Ensemble(path).streams[0]
            reader = {
                "configurations": stream.configurations,
                "history": stream.history,
                "observables": stream.observable,
            }
            return reader[group](name)

        return table


@pytest.mark.parametrize("kind", ["hmc", "flow", "hybrid"])
class TestResume:
    def test_resumed_run_is_bit_identical(self, kind: str) -> None:
        whole, parts = MemoryStore(), MemoryStore()
        run(whole, kind, 9)
        while not run(parts, kind, 9, should_stop=lambda: "test").finished:
            pass
        assert_same(whole, parts)

    def test_extended_run_is_bit_identical(self, kind: str) -> None:
        whole, extended = MemoryStore(), MemoryStore()
        run(whole, kind, 9)
        run(extended, kind, 3)
        run(extended, kind, 9)
        assert_same(whole, extended)


def test_finished_run_does_nothing_more() -> None:
    store = MemoryStore()
    run(store, "hybrid", 6)
    blocks = len(store.blocks)
    result = run(store, "hybrid", 6)
    assert result.finished
    assert len(store.blocks) == blocks


def test_stop_reason_is_reported() -> None:
    result = run(MemoryStore(), "hmc", 9, should_stop=lambda: "wall-time limit")
    assert (result.cycles_done, result.finished, result.stop_reason) == (3, False, "wall-time limit")


def test_tables_fit_together() -> None:
    store = MemoryStore()
    run(store, "hybrid", 9)
    update = store.table("history", "update")
    np.testing.assert_array_equal(update, np.arange(1, 15 * 5 + 1))
    kinds = store.table("history", "proposal_kind")
    np.testing.assert_array_equal(kinds[:5], [0, 0, 1, 1, 1])
    assert np.isnan(store.table("history", "delta_H")[kinds == 1]).all()
    assert np.isnan(store.table("history", "log_weight")[kinds == 0]).all()
    assert np.isfinite(store.table("history", "log_weight")[kinds == 1]).all()
    # Configurations are the states after the last update of their cycle, and none is from the thermalisation.
    np.testing.assert_array_equal(store.trajectory, np.arange(7, 16) * 5)
    field, action = store.table("configurations", "phi"), store.table("configurations", "action")
    np.testing.assert_allclose(THEORY.action(field.reshape(-1, 4, 4)), action.reshape(-1), rtol=1e-12)
    np.testing.assert_array_equal(store.table("history", "action")[store.trajectory - 1], action)
    np.testing.assert_allclose(store.table("observables", "virial")[0], THEORY.virial(field[0]), rtol=1e-12)


def test_each_log_weight_is_that_of_its_state() -> None:
    store = MemoryStore()
    run(store, "hybrid", 9)
    kinds = store.table("history", "proposal_kind")
    current, proposed, accepted = (
        store.table("history", name)[kinds == 1].reshape(-1, 3, 4)
        for name in ("log_weight_current", "log_weight", "accepted")
    )
    for k in (0, 1):
        np.testing.assert_array_equal(current[:, k + 1], np.where(accepted[:, k], proposed[:, k], current[:, k]))


def test_nothing_adapts_after_the_freeze_point() -> None:
    store, sizes = MemoryStore(), []
    run(store, "hmc", 9, on_block=lambda report: sizes.append(dict(report.adaptation)))
    assert "hmc.target" in sizes[0]
    assert "hmc.target" not in sizes[1]
    assert all(later == sizes[1] for later in sizes[1:])


def test_save_every_keeps_the_chain() -> None:
    dense, sparse = MemoryStore(), MemoryStore()
    for store, save_every in ((dense, 1), (sparse, 2)):
        plan = SamplingPlan(4, 12, 0, 0, cycles_per_block=3, save_every=save_every)
        sample(cycle_of("hmc"), plan, store, start())
    np.testing.assert_array_equal(sparse.table("configurations", "phi"), dense.table("configurations", "phi")[1::2])


def test_broken_action_stops_the_run_before_the_block_is_stored() -> None:
    store = MemoryStore()
    with pytest.raises(NonFiniteError):
        sample(cycle_of("hmc"), SamplingPlan(4, 3, 0, 0, 3), store, lambda: np.full((4, 4, 4), np.inf))
    assert not store.blocks


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"cycles": 0}, "cycles = 0"),
        ({"chains": 0}, "chains = 0"),
        ({"cycles": 7}, "multiple"),
        ({"thermalisation": 4}, "multiple"),
        ({"tuning": 9}, "tuning = 9"),
        ({"save_every": 0}, "save_every"),
    ],
)
def test_meaningless_plans_are_refused(changes: dict[str, int], word: str) -> None:
    plan = {"chains": 2, "cycles": 6, "thermalisation": 3, "tuning": 1, "cycles_per_block": 3, **changes}
    with pytest.raises(ParameterError, match=word):
        SamplingPlan(**plan)


@pytest.mark.parametrize("kind", ["hmc", "flow", "hybrid"])
def test_three_by_three_torus_is_exact(kind: str) -> None:
    theory = Phi4((3, 3), m2=-4.0, lam=8.0)
    exact = phi4_exact((3, 3), -4.0, 8.0)
    store = MemoryStore()
    plan = SamplingPlan(64, 400, thermalisation=50, tuning=25 if kind != "flow" else 0, cycles_per_block=50)
    sample(cycle_of(kind, theory), plan, store, start(theory, 64))
    field = store.table("configurations", "phi")
    measured = {
        "phi_squared": ((field**2).mean(axis=(2, 3)), exact.phi_squared),
        "action_density": (store.table("configurations", "action") / 9, exact.action_density),
        "susceptibility": (9 * field.mean(axis=(2, 3)) ** 2, exact.susceptibility),
    }
    scores = []
    for name, (series, value) in measured.items():
        estimate = gamma_method(series.T).estimate
        scores.append(z_score(name, estimate.value, value, estimate.error))
    assert judge(scores, level=1e-4).passed, scores


def numpy_metropolis(
    m2: float, lam: float, size: int, n_sweeps: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Local Metropolis of φ⁴ on a checkerboard, many lattices at once; shares no code with the package."""
    chains = 200
    field = 0.1 * rng.standard_normal((chains, size, size))
    even = (np.add.outer(np.arange(size), np.arange(size)) % 2) == 0
    series: dict[str, list[np.ndarray]] = {"phi_squared": [], "susceptibility": [], "neighbour": []}

    def local(x: np.ndarray, around: np.ndarray) -> np.ndarray:
        return np.asarray((4 + m2) * x**2 + lam * x**4 - 2 * x * around)

    for sweep in range(n_sweeps + 100):
        for sites in (even, ~even):
            around = np.sum([np.roll(field, shift, axis) for shift in (1, -1) for axis in (1, 2)], axis=0)
            new = field + 0.5 * rng.uniform(-1, 1, field.shape)
            change = local(new, around) - local(field, around)
            field = np.where(sites & (rng.random(field.shape) < np.exp(np.minimum(0, -change))), new, field)
        if sweep >= 100:
            series["phi_squared"].append((field**2).mean(axis=(1, 2)))
            series["susceptibility"].append(size**2 * field.mean(axis=(1, 2)) ** 2)
            series["neighbour"].append((field * np.roll(field, 1, 1)).mean(axis=(1, 2)))
    return {name: np.array(values).T for name, values in series.items()}


def test_hmc_agrees_with_an_independent_metropolis(rng: np.random.Generator) -> None:
    theory = Phi4((8, 8), m2=-4.0, lam=8.0)
    store = MemoryStore()
    plan = SamplingPlan(100, 400, thermalisation=100, tuning=50, cycles_per_block=50)
    sample(cycle_of("hmc", theory), plan, store, start(theory, 100))
    field = store.table("configurations", "phi")
    ours = {
        "phi_squared": (field**2).mean(axis=(2, 3)),
        "susceptibility": 64 * field.mean(axis=(2, 3)) ** 2,
        "neighbour": (field * np.roll(field, 1, 2)).mean(axis=(2, 3)),
    }
    theirs = numpy_metropolis(-4.0, 8.0, 8, 500, rng)
    scores = []
    for name, series in ours.items():
        one, other = gamma_method(series.T).estimate, gamma_method(theirs[name]).estimate
        scores.append(z_score(name, one.value, other.value, float(np.hypot(one.error, other.error))))
    assert judge(scores, level=1e-4).passed, scores


class LateNaN:
    """HMC whose action is NaN from the fifth cycle on, as after a hardware fault."""

    def __init__(self, inner: Trajectories) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, cycle: int, index: int, state: Any, prepared: Any) -> Any:
        state, updates = self._inner.run(cycle, index, state, prepared)
        return (state._replace(action=state.action * np.nan) if cycle == 4 else state), updates


def test_broken_action_stops_the_run_before_its_block_is_stored() -> None:
    store = MemoryStore()
    healthy = cycle_of("hmc")
    broken = Cycle(THEORY, (LateNaN(healthy.members[0]),))  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match="action"):
        sample(broken, SamplingPlan(4, 9, 0, 0, 3), store, start())
    assert len(store.blocks) == 1


class LateSlip(LateNaN):
    """HMC that keeps another action than that of its fields from the fifth cycle on, as miscompiled code does."""

    def run(self, cycle: int, index: int, state: Any, prepared: Any) -> Any:
        state, updates = self._inner.run(cycle, index, state, prepared)
        return (state._replace(action=state.action + 1e-3) if cycle == 4 else state), updates


def test_action_of_another_field_stops_the_run_before_its_block_is_stored() -> None:
    store = MemoryStore()
    broken = Cycle(THEORY, (LateSlip(cycle_of("hmc").members[0]),))  # type: ignore[arg-type]
    with pytest.raises(StateError, match="4 of 4 chains"):
        sample(broken, SamplingPlan(4, 10, 0, 0, 5), store, start())
    assert not store.blocks


def test_wrong_number_of_starting_fields_is_refused() -> None:
    with pytest.raises(ParameterError, match="3 starting fields"):
        sample(cycle_of("hmc"), SamplingPlan(4, 3, 0, 0, 3), MemoryStore(), start(chains=3))


def test_every_block_has_proposals_and_uniform_numbers_of_its_own() -> None:
    member = cycle_of("flow").members[0]
    one, other = (member.prepare(block, 2, 4) for block in (0, 1))
    assert not np.isin(one.field, other.field).any()
    assert not np.isin(one.log_u, other.log_u).any()
    assert len(np.unique(one.log_u)) == one.log_u.size


class RoundingProposal(GaussianProposal):
    """Its inverse pass differs from its forward pass in the last digits, as that of every deep network."""

    def sample(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        field, log_q = super().sample(seed, n)
        return field, log_q + 1e-9


def test_log_q_of_a_flow_born_state_is_never_recomputed() -> None:
    # Trajectories of too large a step are rejected now and then; those chains must keep their log q to the bit.
    trajectories = Trajectories.build(HMC(THEORY), 5, 1, trajectory_length=1.0, step_size=0.5, target_acceptance=None)
    flow = FlowProposals(Independence(THEORY), RoundingProposal((4, 4), 0.35), 5, 2)
    store = MemoryStore()
    sample(Cycle(THEORY, (trajectories, flow)), SamplingPlan(16, 40, 0, 0, 40), store, start(chains=16))
    accepted, current, proposed = (
        store.table("history", name).reshape(40, 3, 16) for name in ("accepted", "log_weight_current", "log_weight")
    )
    last = np.where(accepted[:, 2] == 1, proposed[:, 2], current[:, 2])
    stayed = accepted[1:, 0] == 0
    assert 0 < stayed.sum() < stayed.size
    np.testing.assert_array_equal(current[1:, 1][stayed], last[:-1][stayed])


def test_log_q_is_that_of_the_state_that_hmc_left() -> None:
    proposal = GaussianProposal((4, 4), 0.35)
    trajectories = Trajectories.build(HMC(THEORY), 5, 1, trajectory_length=1.0, step_size=0.2, target_acceptance=None)
    flow = FlowProposals(Independence(THEORY), proposal, 5, 2)
    cycle = Cycle(THEORY, (trajectories, flow))
    state = cycle.init(start()())
    prepared, _ = cycle.prepare(0, 3, 4)
    for index in range(3):
        # By hand: the flow left the force stale, and the cycle refreshes it.
        fresh = state._replace(force=jnp.asarray(THEORY.force(np.asarray(state.field))))
        before_flow, _ = trajectories.run(index, index, fresh, None)
        state, happened = cycle.run(index, index, state, prepared)
        field = np.asarray(before_flow.field)
        expected = -THEORY.action(field) - proposal.log_prob(field)
        np.testing.assert_allclose(happened.updates[1].log_weight_current[0], expected, rtol=1e-12)


def test_flow_proposals_come_last() -> None:
    trajectories = Trajectories.build(HMC(THEORY), 5, 1, trajectory_length=1.0, step_size=0.2, target_acceptance=None)
    flow = FlowProposals(Independence(THEORY), GaussianProposal((4, 4), 0.35), 5, 2)
    with pytest.raises(ParameterError, match="last"):
        Cycle(THEORY, (flow, trajectories))
