"""The contract of a proposal, and a proposal that is known in closed form."""

from __future__ import annotations

from math import log, pi
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmc.proposals import Proposal, ProposalMetadata, certify
from flowmc.seeds import numpy_generator

__all__ = ["GaussianProposal", "ProposalContract"]


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
