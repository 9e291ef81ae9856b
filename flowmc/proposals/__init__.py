"""Independence proposals and the certificate without which none is used in production."""

from __future__ import annotations

from flowmc.proposals.base import BlockProposal, Proposal, ProposalMetadata, TransportProposal
from flowmc.proposals.certificate import LARGEST_BOUND, Certificate, Check, certify
from flowmc.proposals.flow import BlockFlowProposal, FlowProposal, TransportFlowProposal, as_proposal

__all__ = [
    "LARGEST_BOUND",
    "BlockFlowProposal",
    "BlockProposal",
    "Certificate",
    "Check",
    "FlowProposal",
    "Proposal",
    "ProposalMetadata",
    "TransportFlowProposal",
    "TransportProposal",
    "as_proposal",
    "certify",
]
