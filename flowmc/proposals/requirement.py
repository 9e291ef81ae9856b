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
        If there is no check, one failed, or what the proposal says of itself has changed.
    """
    certificate.require()
    metadata = proposal.metadata
    bound = metadata.log_q_bound if metadata.states_a_bound else None
    measured = {
        "fingerprint": certificate.fingerprint,
        "dtype": certificate.dtype,
        "exact": certificate.exact,
        "log_q_bound": certificate.log_q_bound,
        "full_support": certificate.full_support,
    }
    used = {
        "fingerprint": metadata.fingerprint,
        "dtype": metadata.dtype,
        "exact": metadata.exact,
        "log_q_bound": bound,
        "full_support": metadata.full_support,
    }
    if different := [name for name in used if used[name] != measured[name]]:
        raise CertificateError(
            got=f"a certificate of a proposal with {', '.join(f'{name} {measured[name]}' for name in different)}",
            expected=f"one of the proposal in use, with {', '.join(f'{name} {used[name]}' for name in different)}",
            fix="certify the proposal after its last change: certify(proposal, seed)",
        )
