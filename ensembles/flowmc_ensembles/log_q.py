"""What an ensemble's file tells of log q of the flow that proposed: exact, or off by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

from flowmc_ensembles.errors import CorruptionError

__all__ = ["LogQAccuracy"]


@dataclass(frozen=True)
class LogQAccuracy:
    """By how much log q of a flow differs from the log density of what the flow draws, in nats.

    Parameters
    ----------
    exact
        Whether the flow says that its log q is exact, up to rounding.
    bound
        By how much it says that log q is off at most: zero if exact, None if it gave no bound.
    measured
        The largest difference found between its log-determinant and that of the full Jacobian; None if none was taken.
    draws
        On how many draws it was measured.

    Examples
    --------
    >>> print(LogQAccuracy(False, 1e-3, 2.1e-6, 16))
    log q of the flow is not exact: off by at most 0.001 nats (stated), 2.1e-06 measured on 16 draws
    """

    exact: bool
    bound: float | None
    measured: float | None
    draws: int

    def __str__(self) -> str:
        measured = "" if self.measured is None else f"{self.measured:.2g} measured on {self.draws} draws"
        if self.exact:
            return f"log q of the flow is exact{f' (log-determinant off by {measured})' if measured else ''}"
        stated = "no bound is stated" if self.bound is None else f"off by at most {self.bound:g} nats (stated)"
        return f"log q of the flow is not exact: {stated}, {measured or 'not measured'}"

    def to_dict(self) -> dict[str, object]:
        """Give the fields for JSON."""
        return asdict(self)

    @classmethod
    def of_certificate(cls, certificate: object) -> LogQAccuracy | None:
        """Read the entry ``log_q`` of a certificate as plain data; None without one, as in files from before it.

        Raises
        ------
        CorruptionError
            If the entry is there and cannot be read.
        """
        if not isinstance(certificate, Mapping) or certificate.get("log_q") is None:
            return None
        found = certificate["log_q"]
        try:
            entry = cast(Mapping[str, object], found)
            bound, measured = (
                None if entry[name] is None else float(cast(float, entry[name])) for name in ("bound", "measured")
            )
            return cls(bool(entry["exact"]), bound, measured, int(cast(int, entry["draws"])))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                got=f"log_q = {found!r} in the certificate of the flow",
                expected="exact, bound, measured and draws",
                fix="restore the file from a copy",
            ) from error
