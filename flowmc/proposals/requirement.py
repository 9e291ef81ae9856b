"""What is asked before a proposal is used: that a certificate of this very proposal says that it passed."""

from __future__ import annotations

from flowmc.errors import CertificateError
from flowmc.proposals.base import Proposal
from flowmc.proposals.certificate import Certificate

__all__ = ["require_certificate"]


def require_certificate(certificate: Certificate, proposal: Proposal) -> None:
    """Refuse a proposal whose certificate failed, or is another proposal's.

    Parameters
    ----------
    certificate
        What `certify` found.
    proposal
        The proposal that is about to be used.

    Raises
    ------
    CertificateError
        If a check failed, or fingerprint or type differ.
    """
    certificate.require()
    metadata = proposal.metadata
    if (certificate.fingerprint, certificate.dtype) != (metadata.fingerprint, metadata.dtype):
        raise CertificateError(
            got=f"a certificate of the proposal {certificate.fingerprint[:16]} in {certificate.dtype}",
            expected=f"one of the proposal in use, {metadata.fingerprint[:16]} in {metadata.dtype}",
            fix="certify the proposal after its last change: certify(proposal, seed)",
        )
