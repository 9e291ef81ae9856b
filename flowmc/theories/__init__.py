"""Lattice field theories. To add one: one file, one line in `THEORIES`, which also parametrises the contract tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmc.errors import ConfigError
from flowmc.theories.base import ScalarTheory, SmoothTheory, Theory
from flowmc.theories.callable import CallableTheory
from flowmc.theories.density import DensityTheory
from flowmc.theories.double_well import DoubleWell
from flowmc.theories.free import FreeScalar
from flowmc.theories.gaussian_mixture import GaussianMixture
from flowmc.theories.ising import Ising
from flowmc.theories.phi4 import Phi4
from flowmc.theories.schwinger import Schwinger
from flowmc.theories.spaces import SPACES, AngleSpace, ContinuousSpace, FieldSpace, RealSpace, SpinSpace
from flowmc.theories.u1 import GaugeTheory2D, U1Gauge2D

__all__ = [
    "SPACES",
    "THEORIES",
    "AngleSpace",
    "CallableTheory",
    "ContinuousSpace",
    "DensityTheory",
    "DoubleWell",
    "FieldSpace",
    "FreeScalar",
    "GaugeTheory2D",
    "GaussianMixture",
    "Ising",
    "Phi4",
    "RealSpace",
    "ScalarTheory",
    "Schwinger",
    "SmoothTheory",
    "SpinSpace",
    "Theory",
    "U1Gauge2D",
    "from_description",
]

THEORIES: dict[str, type[Theory]] = {
    theory.name: theory
    for theory in (
        DoubleWell,
        FreeScalar,
        GaussianMixture,
        Ising,
        Phi4,
        Schwinger,
        U1Gauge2D,
    )
}
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
    if name in (CallableTheory.name, DensityTheory.name):
        raise ConfigError(
            got=f"a theory whose action is a Python function, {couplings.get('label')!r}",
            expected="a theory that is made of its couplings; the function itself is in no file",
            fix="build the CallableTheory or DensityTheory in Python and pass it, for example load_flow(path, theory)",
        )
    if not isinstance(name, str) or name not in THEORIES:
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
