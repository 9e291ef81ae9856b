"""Certificates in files: a record that an ensemble refers to by its name, the SHA-256 of what it says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmc.errors import CertificateError, FlowFileError
from flowmc.proposals.base import Proposal
from flowmc.proposals.certificate import Certificate, Check
from flowmc.proposals.requirement import require_certificate

__all__ = ["CertificateRecord"]

FORMAT = 1


@dataclass(frozen=True)
class CertificateRecord:
    """A certificate and the versions of the libraries that it was measured with.

    Parameters
    ----------
    certificate
        What was measured.
    versions
        Versions by the name of the library.
    """

    certificate: Certificate
    versions: Mapping[str, str]

    @property
    def name(self) -> str:
        """SHA-256, in hexadecimal, of all that the record says."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, "certificate": self.certificate.to_dict(), "versions": dict(self.versions)}

    def save(self, path: Path) -> None:
        """Write the record as JSON, in one step."""
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps({**self._content(), "name": self.name}, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> CertificateRecord:
        """Read a record.

        Raises
        ------
        FlowFileError
            If the file is missing, no record, or changed since it was written.
        """
        expected = "a record written by `flowmc certify --save`"
        if not path.is_file():
            raise FlowFileError(got=f"{path}, which is no file", expected=expected, fix="check the path, or certify")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']!r}, not {FORMAT}")  # noqa: TRY301 - told below
            record = cls(_certificate(found["certificate"]), found["versions"])
            same = record.name == found["name"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FlowFileError(
                got=f"{path}, which does not read as a record ({type(error).__name__}: {error})",
                expected=expected,
                fix="certify the flow again",
            ) from error
        if not same:
            raise FlowFileError(
                got=f"{path}, whose content is not what its name {found['name'][:16]} says",
                expected="a record as it was written",
                fix="certify the flow again",
            )
        return record

    def require_for(self, proposal: Proposal, versions: Mapping[str, str]) -> None:
        """Refuse to use the record for a proposal unless it passed, and was measured on this very one.

        Parameters
        ----------
        proposal
            The proposal that is about to be used.
        versions
            Versions of the libraries in use; those that the record names must be the same.

        Raises
        ------
        CertificateError
            If a check failed, or flow, type or versions differ.
        """
        require_certificate(self.certificate, proposal)
        if different := [name for name, one in self.versions.items() if versions.get(name) != one]:
            raise CertificateError(
                got=f"a certificate measured with {', '.join(f'{name} {self.versions[name]}' for name in different)}",
                expected=", ".join(f"{name} {versions.get(name)}" for name in different),
                fix="certify the flow as it is used now: flowmc certify FLOW --save FILE",
            )


def _certificate(found: Mapping[str, Any]) -> Certificate:
    # What was not finite has become None in the file.
    checks = [
        Check(**{**check, "value": float("inf") if check["value"] is None else check["value"]})
        for check in found["checks"]
    ]
    if wrong := [check.name for check in checks if check.passed and not check.value <= check.tolerance]:
        raise ValueError(f"{wrong[0]} is said to have passed, above its limit")
    log_q = found["log_q"]
    return Certificate(
        found["fingerprint"],
        found["dtype"],
        tuple(checks),
        log_q["exact"],
        log_q["bound"],
        log_q["draws"],
        found["full_support"],
    )
