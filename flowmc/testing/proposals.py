"""The contracts of proposals, and a proposal that is known in closed form."""

from __future__ import annotations

from math import log, pi
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmc.proposals import BlockProposal, Proposal, ProposalMetadata, certify
from flowmc.seeds import numpy_generator
from flowmc.theories import SPACES

__all__ = ["BlockProposalContract", "GaussianProposal", "ProposalContract"]


class GaussianProposal:
    """White noise of one width as a proposal: exact by construction, good for tests and as a template for adapters.

    Parameters
    ----------
    shape
        Shape of one configuration.
    width
        Standard deviation at every site.
    """

    def __init__(self, shape: tuple[int, ...], width: float) -> None:
        self._shape = shape
        self._width = width

    @property
    def metadata(self) -> ProposalMetadata:
        """What the proposal says of itself."""
        return ProposalMetadata(
            self._shape, "float64", deterministic=True, exact=True, fingerprint=float(self._width).hex()
        )

    def sample(self, seed: int, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw ``n`` fields and log q."""
        field = self._width * numpy_generator(seed).standard_normal((n, *self._shape))
        return field, self.log_prob(field)

    def log_prob(self, field: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return log q of fields."""
        square = (field.reshape(len(field), -1) / self._width) ** 2
        log_q: NDArray[np.float64] = -0.5 * square.sum(1) - square.shape[1] * (log(self._width) + 0.5 * log(2 * pi))
        return log_q


class ProposalContract:
    """Tests of a `Proposal`; provide the fixture ``proposal``."""

    @pytest.fixture
    def proposal(self) -> Proposal:
        """Return the proposal under test."""
        raise NotImplementedError

    def test_is_a_proposal(self, proposal: Proposal) -> None:
        assert isinstance(proposal, Proposal)

    def test_draws_have_shape_and_type(self, proposal: Proposal) -> None:
        field, log_q = proposal.sample(1, 7)
        assert field.shape == (7, *proposal.metadata.event_shape)
        assert log_q.shape == (7,)
        assert log_q.dtype == np.float64
        assert proposal.log_prob(field).dtype == np.float64

    def test_draws_depend_on_the_seed_alone(self, proposal: Proposal) -> None:
        first, _ = proposal.sample(2, 5)
        proposal.sample(3, 8)
        again, _ = proposal.sample(2, 5)
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, proposal.sample(4, 5)[0])

    def test_global_generators_are_left_alone(self, proposal: Proposal) -> None:
        before = np.random.get_state(legacy=False)  # noqa: NPY002 - it is the legacy state that must not move
        proposal.sample(5, 3)
        after = np.random.get_state(legacy=False)  # noqa: NPY002
        np.testing.assert_equal(after, before)

    def test_certificate_passes(self, proposal: Proposal) -> None:
        certify(proposal, 6, n_finite=1000, n_compare=100).require()


class BlockProposalContract(ProposalContract):
    """Tests of a `BlockProposal`; provide the fixture ``proposal``. The certificate checks its probabilities as well."""

    @pytest.fixture
    def spins(self, proposal: Proposal) -> NDArray[np.int8]:
        """Return random spins, that nobody may write into: kernels hand over views of other libraries' buffers."""
        field: NDArray[np.int8] = SPACES["spin"].start(
            np.random.default_rng(1), 20, proposal.metadata.event_shape, "hot"
        )
        field.setflags(write=False)
        return field

    def test_has_blocks(self, proposal: Proposal) -> None:
        assert isinstance(proposal, BlockProposal)
        assert proposal.metadata.space == "spin"
        extent = proposal.metadata.event_shape[0]
        assert proposal.metadata.event_shape == (extent, extent)
        assert proposal.block_sides
        assert list(proposal.block_sides) == sorted(set(proposal.block_sides), reverse=True)
        assert all(side >= 1 and extent % (side + 1) == 0 for side in proposal.block_sides)

    def test_insides_have_shape_and_type(self, proposal: BlockProposal, spins: NDArray[np.int8]) -> None:
        for side in proposal.block_sides:
            new, log_new, log_old = proposal.resample_blocks(spins, side, 1)
            cells = spins.shape[1] // (side + 1)
            assert new.shape == spins.shape
            assert new.dtype == np.int8
            assert log_new.shape == log_old.shape == (len(spins), cells, cells)
            assert log_new.dtype == log_old.dtype == np.float64

    def test_insides_depend_on_the_seed(self, proposal: BlockProposal, spins: NDArray[np.int8]) -> None:
        for side in proposal.block_sides:
            first, _, log_old = proposal.resample_blocks(spins, side, 2)
            other, _, log_old_again = proposal.resample_blocks(spins, side, 3)
            assert not np.array_equal(first, other)
            np.testing.assert_array_equal(proposal.resample_blocks(spins, side, 2)[0], first)
            np.testing.assert_array_equal(log_old_again, log_old)

    def test_every_inside_moves_and_no_border(self, proposal: BlockProposal, spins: NDArray[np.int8]) -> None:
        for side in proposal.block_sides:
            draws = np.stack([proposal.resample_blocks(spins, side, seed)[0] for seed in range(10)])
            moved = (draws != spins).any((0, 1))
            inside = np.arange(spins.shape[1]) % (side + 1) > 0
            np.testing.assert_array_equal(moved, inside[:, None] & inside)
