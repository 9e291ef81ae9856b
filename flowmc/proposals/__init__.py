"""Independence proposals and the certificate without which none is used in production."""

from __future__ import annotations

from flowmc.proposals.base import BlockProposal, DeviceProposal, Proposal, ProposalMetadata, TransportProposal
from flowmc.proposals.callback import CallbackProposal, on_device
from flowmc.proposals.certificate import LARGEST_BOUND, Certificate, Check, certify
from flowmc.proposals.flow import BlockFlowProposal, FlowProposal, TransportFlowProposal, as_proposal
from flowmc.proposals.records import CertificateRecord

__all__ = [
    "LARGEST_BOUND",
    "BlockFlowProposal",
    "BlockProposal",
    "CallbackProposal",
    "Certificate",
    "CertificateRecord",
    "Check",
    "DeviceProposal",
    "FlowProposal",
    "Proposal",
    "ProposalMetadata",
    "TransportFlowProposal",
    "TransportProposal",
    "as_proposal",
    "certify",
    "on_device",
]
