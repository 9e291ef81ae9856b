"""Independence proposals and the certificate without which none is used in production."""

from __future__ import annotations

from flowmc.proposals.base import Proposal, ProposalMetadata, TransportProposal
from flowmc.proposals.certificate import Certificate, Check, certify
from flowmc.proposals.flow import FlowProposal, TransportFlowProposal, as_proposal

__all__ = [
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
