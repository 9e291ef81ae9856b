"""Contracts that any theory, flow, proposal, kernel or store must keep, in-house or not, and the exactness kit.

A contract is a class of tests with one abstract fixture. Subclass it in a test module, provide the fixture, and pytest
runs the rest::

    class TestMyTheory(TheoryContract):
        @pytest.fixture
        def theory(self):
            return MyTheory((4, 4), coupling=0.3)

The kit (`flowmc.testing.exactness`) tests a Markov kernel of any origin against a distribution that can be drawn from.
"""

from __future__ import annotations

from flowmc.testing.exactness import ExactStart, acceptance_probabilities, counts_p_value, exact_start_scores
from flowmc.testing.flows import FlowContract
from flowmc.testing.kernels import KernelContract
from flowmc.testing.layers import LayerContract
from flowmc.testing.links import gauge_start, schwinger_draws, u1_draws
from flowmc.testing.proposals import BlockProposalContract, GaussianProposal, ProposalContract
from flowmc.testing.spins import ExactIsing, enumerate_spins, ising_start, transfer_matrix_draws
from flowmc.testing.stores import StoreContract
from flowmc.testing.theories import GaugeTheoryContract, ScalarTheoryContract, SmoothTheoryContract, TheoryContract

__all__ = [
    "BlockProposalContract",
    "ExactIsing",
    "ExactStart",
    "FlowContract",
    "GaugeTheoryContract",
    "GaussianProposal",
    "KernelContract",
    "LayerContract",
    "ProposalContract",
    "ScalarTheoryContract",
    "SmoothTheoryContract",
    "StoreContract",
    "TheoryContract",
    "acceptance_probabilities",
    "counts_p_value",
    "enumerate_spins",
    "exact_start_scores",
    "gauge_start",
    "ising_start",
    "schwinger_draws",
    "transfer_matrix_draws",
    "u1_draws",
]
