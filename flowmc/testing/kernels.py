"""The contract of a member of a cycle: it keeps the free field's distribution, and repeats itself bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from flowmc.kernels import Cycle, CycleMember, HybridState
from flowmc.seeds import fold, numpy_generator
from flowmc.testing.exactness import ExactStart, exact_start_scores
from flowmc.theories import FreeScalar
from flowmc_analysis.zscores import family_p_value

__all__ = ["KernelContract"]

CHAINS = 4000
FALSE_ALARM = 1e-5


class KernelContract:
    """Tests of a `CycleMember`; provide the fixture ``member``, built for the fixture ``theory``."""

    @pytest.fixture
    def theory(self) -> FreeScalar:
        """Return the theory of the test, one that can be drawn from exactly."""
        return FreeScalar((4, 2), 0.8)

    @pytest.fixture
    def member(self, theory: FreeScalar) -> CycleMember:
        """Return the member under test."""
        raise NotImplementedError

    @pytest.fixture
    def state(self, theory: FreeScalar, member: CycleMember) -> HybridState:
        """Return a valid state of a few chains."""
        return Cycle(theory, (member,)).init(theory.draw(np.random.default_rng(1), 6))

    def test_leaves_what_it_says(self, theory: FreeScalar, member: CycleMember, state: HybridState) -> None:
        after, updates = member.run(0, 0, state, member.prepare(0, 1, 6))
        field = np.asarray(after.field)
        if "action" in member.leaves:
            np.testing.assert_allclose(after.action, theory.action(field), rtol=1e-12)
            np.testing.assert_allclose(updates.action[-1], after.action, rtol=1e-12)
        if "force" in member.leaves:
            np.testing.assert_allclose(after.force, theory.force(field), rtol=1e-10, atol=1e-12)
        assert updates.accepted.shape == (member.n_updates, 6)

    def test_rejection_keeps_and_acceptance_moves(self, member: CycleMember, state: HybridState) -> None:
        after, updates = member.run(0, 0, state, member.prepare(0, 1, 6))
        moved = (np.asarray(after.field) != np.asarray(state.field)).reshape(6, -1).any(axis=1)
        np.testing.assert_array_equal(moved, updates.accepted.any(axis=0))

    def test_repeats_bit_by_bit(self, member: CycleMember, state: HybridState) -> None:
        one, _ = member.run(3, 0, state, member.prepare(3, 1, 6))
        other, _ = member.run(3, 0, state, member.prepare(3, 1, 6))
        np.testing.assert_array_equal(one.field, other.field)
        third, _ = member.run(4, 0, state, member.prepare(4, 1, 6))
        assert not np.array_equal(one.field, third.field)

    def test_keeps_the_target(self, theory: FreeScalar, member: CycleMember, request: pytest.FixtureRequest) -> None:
        cycle = Cycle(theory, (member,))
        test_seed = fold(0, request.node.nodeid) % 2**31

        def kernel(field: np.ndarray) -> np.ndarray:
            state = cycle.init(field)
            # A block number of the test's own: the member's random numbers follow from it.
            prepared, _ = cycle.prepare(test_seed, 3, CHAINS)
            for index in range(3):
                state, _ = cycle.run(test_seed + index, index, state, prepared)
            return np.asarray(state.field)

        target = ExactStart(
            theory.draw,
            {
                "action": theory.action,
                "magnetisation": lambda field: field.mean(axis=(1, 2)),
                "neighbours": lambda field: (field * np.roll(field, 1, axis=1)).mean(axis=(1, 2)),
            },
        )
        scores = exact_start_scores(target, kernel, numpy_generator(test_seed), CHAINS)
        assert family_p_value(np.array(list(scores.values()))) > FALSE_ALARM, scores
