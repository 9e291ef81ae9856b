"""The contract of a member of a cycle: it keeps the distribution of its theory, and repeats itself bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmc.kernels import Cycle, CycleMember, HybridState
from flowmc.seeds import fold, numpy_generator
from flowmc.testing.exactness import ExactStart, exact_start_scores
from flowmc.theories import ContinuousSpace, FreeScalar, Theory
from flowmc_analysis.zscores import family_p_value

__all__ = ["KernelContract"]

FEW = 20
CHAINS = 4000
FALSE_ALARM = 1e-5


class KernelContract:
    """Tests of a `CycleMember`; provide the fixture ``member``, built for the fixture ``theory``.

    The theory is a free field unless the subclass says otherwise; with another one it provides ``target`` too.
    """

    @pytest.fixture
    def theory(self) -> Theory:
        """Return the theory of the test, one that can be drawn from exactly."""
        return FreeScalar((4, 2), 0.8)

    @pytest.fixture
    def target(self, theory: Theory) -> ExactStart:
        """Return exact draws of the theory, and what is measured of them."""
        if not isinstance(theory, FreeScalar):
            raise NotImplementedError
        return ExactStart(
            theory.draw,
            {
                "action": theory.action,
                "magnetisation": lambda field: field.mean(axis=(1, 2)),
                "neighbours": lambda field: (field * np.roll(field, 1, axis=1)).mean(axis=(1, 2)),
            },
        )

    @pytest.fixture
    def member(self, theory: Theory) -> CycleMember:
        """Return the member under test."""
        raise NotImplementedError

    @pytest.fixture
    def state(self, theory: Theory, target: ExactStart, member: CycleMember) -> HybridState:
        """Return a valid state of a few chains."""
        return Cycle(theory, (member,)).init(target.draw(np.random.default_rng(1), FEW))

    def test_leaves_what_it_says(self, theory: Any, member: CycleMember, state: HybridState) -> None:
        after, updates = member.run(0, 0, state, member.prepare(0, 1, FEW))
        field = np.asarray(after.field)
        assert field.dtype == theory.space.dtype
        assert np.all(theory.space.contains(field.reshape(FEW, -1)))
        if "action" in member.leaves:
            np.testing.assert_allclose(after.action, theory.action(field), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(updates.action[-1], after.action, rtol=1e-12, atol=1e-12)
        if "force" in member.leaves:
            np.testing.assert_allclose(after.force, theory.force(field), rtol=1e-10, atol=1e-12)

    def test_updates_fit_together(self, member: CycleMember, state: HybridState) -> None:
        _, updates = member.run(0, 0, state, member.prepare(0, 1, FEW))
        for name, column in updates._asdict().items():
            assert column.shape == (
                (member.n_updates,) if name in ("step_size", "n_steps") else (member.n_updates, FEW)
            )
        assert updates.accepted.dtype == np.bool_
        assert updates.acceptance.dtype == np.float32
        assert ((updates.acceptance >= 0) & (updates.acceptance <= 1)).all()

    def test_rejection_keeps_and_acceptance_moves(
        self, theory: Theory, member: CycleMember, state: HybridState
    ) -> None:
        after, updates = member.run(0, 0, state, member.prepare(0, 1, FEW))
        moved = (np.asarray(after.field) != np.asarray(state.field)).reshape(FEW, -1).any(axis=1)
        accepted = updates.accepted.any(axis=0)
        assert not (moved & ~accepted).any()
        if isinstance(theory.space, ContinuousSpace):
            # Discrete fields can be moved to where they were.
            np.testing.assert_array_equal(moved, accepted)

    def test_repeats_bit_by_bit(self, member: CycleMember, state: HybridState) -> None:
        one, _ = member.run(3, 0, state, member.prepare(3, 1, FEW))
        other, _ = member.run(3, 0, state, member.prepare(3, 1, FEW))
        np.testing.assert_array_equal(one.field, other.field)
        third, _ = member.run(4, 0, state, member.prepare(4, 1, FEW))
        assert not np.array_equal(one.field, third.field)

    def test_keeps_the_target(
        self, theory: Theory, target: ExactStart, member: CycleMember, request: pytest.FixtureRequest
    ) -> None:
        cycle = Cycle(theory, (member,))
        test_seed = fold(0, request.node.nodeid) % 2**31

        def kernel(field: NDArray[Any]) -> NDArray[Any]:
            state = cycle.init(field)
            # A block number of the test's own: the member's random numbers follow from it.
            prepared, _ = cycle.prepare(test_seed, 3, CHAINS)
            for index in range(3):
                state, _ = cycle.run(test_seed + index, index, state, prepared)
            return np.asarray(state.field)

        scores = exact_start_scores(target, kernel, numpy_generator(test_seed), CHAINS)
        assert family_p_value(np.array(list(scores.values()))) > FALSE_ALARM, scores
