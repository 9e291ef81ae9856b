"""What every benchmark writes: claims with measured values, the versions and the machine.

``python -m benchmarks.claims docs/results/*.json`` prints the tables of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from flowmc.workflows import versions

__all__ = ["Claim", "parser", "write_claims", "write_table"]


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
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "claims": [asdict(claim) for claim in claims],
            "versions": versions(),
            "machine": machine,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")


def write_table(paths: Sequence[Path]) -> str:
    """Return a Markdown table of the claims in files, each under its name, with versions and machine."""
    lines = []
    for path in paths:
        content = json.loads(path.read_text())
        lines += [f"## {path.stem}", "", f"`python -m benchmarks.{path.stem} --json PATH`, {content['date']}", ""]
        lines += ["| measured | value | spread | target | holds |", "| --- | --- | --- | --- | --- |"]
        for claim in content["claims"]:
            value = f"{claim['value']:.4g} {claim['unit']}".strip()
            holds = "yes" if claim["holds"] else "**no**"
            cells = [claim["name"], value, claim["spread"], claim["target"], holds]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        facts = {**content["versions"], **content["machine"]}
        lines += ["", ", ".join(f"{name} {fact}" for name, fact in facts.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(write_table([Path(name) for name in sys.argv[1:]]))
