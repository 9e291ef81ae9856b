"""Lattice field theories. To add one: one file, one line in `THEORIES`, which also parametrises the contract tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmc.errors import ConfigError
from flowmc.theories.base import FieldSpace, RealSpace, Theory
from flowmc.theories.free import FreeScalar
from flowmc.theories.phi4 import Phi4

__all__ = ["THEORIES", "FieldSpace", "FreeScalar", "Phi4", "RealSpace", "Theory", "from_description"]

THEORIES: dict[str, type[Theory]] = {theory.name: theory for theory in (FreeScalar, Phi4)}
"""Every theory by its name in run descriptions and files."""


def from_description(description: Mapping[str, Any]) -> Theory:
    """Build a theory from plain data, the inverse of `Theory.describe`.

    Raises
    ------
    ConfigError
        If the name is unknown or a coupling is missing or superfluous.

    >>> from_description({"name": "phi4", "shape": [8, 8], "m2": -4.0, "lam": 8.0})
    Phi4(shape=(8, 8), m2=-4.0, lam=8.0)
    """
    couplings = dict(description)
    name = couplings.pop("name", None)
    if name not in THEORIES:
        raise ConfigError(
            got=f"theory name {name!r}", expected=f"one of {sorted(THEORIES)}", fix="correct `name` in the theory"
        )
    kind = THEORIES[name]
    try:
        return kind(**couplings)
    except TypeError as error:
        raise ConfigError(
            got=f"couplings {sorted(couplings)} for theory {name!r} ({error})",
            expected=f"exactly {list(kind.__dataclass_fields__)}",  # type: ignore[attr-defined]
            fix="correct the theory's description",
        ) from error
