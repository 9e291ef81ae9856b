"""The contract of a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flowmc.kernels import HMC, Cycle, Trajectories
from flowmc.sampling import SamplingPlan, Store, sample
from flowmc.theories import Phi4

__all__ = ["StoreContract"]

Reader = Callable[[Store, str, str], np.ndarray]


class StoreContract:
    """Tests of a `Store`; provide ``store`` (empty, for 3 chains of field "phi" on (4, 4)), ``reopen`` and ``read``."""

    @pytest.fixture
    def store(self) -> Store:
        """Return an empty store."""
        raise NotImplementedError

    @pytest.fixture
    def reopen(self) -> Callable[[Store], Store]:
        """Return what closes a store and opens it again, as a resumed run would."""
        raise NotImplementedError

    @pytest.fixture
    def read(self) -> Reader:
        """Return what reads a table, given its group ("configurations", "history", "observables") and name."""
        raise NotImplementedError

    def run(self, store: Store, n_cycles: int) -> None:
        """Run a small production into the store."""
        theory = Phi4((4, 4), m2=-4.0, lam=8.0)
        member = Trajectories.build(HMC(theory), 5, 2, trajectory_length=1.0, step_size=0.2, target_acceptance=0.8)
        plan = SamplingPlan(3, n_cycles, thermalisation=4, tuning=3, cycles_per_block=2)
        start = lambda: theory.start(np.random.default_rng(0), 3, "hot")  # noqa: E731
        sample(Cycle(theory, (member,)), plan, store, start, observers={"virial": theory.virial})

    def test_checkpoint_comes_back(self, store: Store, reopen: Callable[[Store], Store]) -> None:
        assert store.checkpoint() is None
        saved: dict[str, Any] = {"number": 3, "ratio": 0.1, "word": "text", "array": np.arange(6.0).reshape(2, 3)}
        store.append(
            trajectory=np.array([1]),
            configurations={"phi": np.ones((1, 3, 4, 4)), "action": np.zeros((1, 3))},
            history={"update": np.array([1]), "accepted": np.ones((1, 3), np.uint8)},
            observables={},
            checkpoint=saved,
        )
        found = reopen(store).checkpoint()
        assert found is not None
        assert {key: found[key] for key in ("number", "ratio", "word")} == {"number": 3, "ratio": 0.1, "word": "text"}
        np.testing.assert_array_equal(found["array"], saved["array"])
        assert found["array"].dtype == np.float64

    def test_resumed_and_extended_run_equals_the_uninterrupted_one(
        self, store: Store, reopen: Callable[[Store], Store], read: Reader
    ) -> None:
        from flowmc.sampling import MemoryStore

        whole = MemoryStore()
        self.run(whole, 8)
        self.run(store, 2)
        store = reopen(store)
        self.run(store, 8)
        store = reopen(store)
        for group, name in (
            ("configurations", "phi"),
            ("configurations", "action"),
            ("history", "update"),
            ("history", "accepted"),
            ("history", "delta_H"),
            ("observables", "virial"),
        ):
            np.testing.assert_array_equal(read(store, group, name), whole.table(group, name), err_msg=name)
