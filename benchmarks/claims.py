"""What every benchmark writes: claims with measured values, the versions and the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flowmc.workflows import versions

__all__ = ["Claim", "parser", "write_claims"]


@dataclass(frozen=True)
class Claim:
    """One measured figure beside its target.

    Parameters
    ----------
    name
        What was measured.
    value
        The measured figure; a median where it was repeated.
    spread
        Smallest and largest of the repetitions, or the statistical error; text.
    target
        What it should be; text.
    unit
        Unit of the value.
    holds
        Whether the target is met.
    """

    name: str
    value: float
    spread: str
    target: str
    unit: str
    holds: bool


def parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="smoke run of a minute or two, same code")
    made.add_argument("--json", type=Path, help="where to write the claims")
    return made


def write_claims(claims: Sequence[Claim], path: Path | None) -> None:
    """Print the claims, and write them with versions and machine."""
    for claim in claims:
        verdict = "holds" if claim.holds else "MISSED"
        print(f"{claim.name}: {claim.value:.6g} {claim.unit} ({claim.spread}); target {claim.target}: {verdict}")
    if path is not None:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        content = {"claims": [asdict(claim) for claim in claims], "versions": versions(), "machine": machine}
        path.write_text(json.dumps(content, indent=1) + "\n")
