"""Which observables belong to which stored field."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.gauge_observables import GAUGE_OBSERVABLES
from flowmc_analysis.ising_observables import ISING_OBSERVABLES
from flowmc_analysis.observables import ObservableSet
from flowmc_analysis.scalar_observables import SCALAR_OBSERVABLES

__all__ = ["OBSERVABLE_SETS", "observable_set"]

OBSERVABLE_SETS: Mapping[str, ObservableSet] = MappingProxyType(
    {entry.field_name: entry for entry in (SCALAR_OBSERVABLES, ISING_OBSERVABLES, GAUGE_OBSERVABLES)}
)
"""The sets of observables by the name of the field in an ensemble."""


def observable_set(field_name: str) -> ObservableSet:
    """Find the observables of a stored field.

    Parameters
    ----------
    field_name
        Name of the field in the ensemble.

    Raises
    ------
    AnalysisError
        If there are none for a field of that name.

    Examples
    --------
    >>> list(observable_set("spin").observables)[:2]
    ['energy', 'magnetisation']
    """
    if field_name not in OBSERVABLE_SETS:
        known = ", ".join(f"{name!r} ({entry.values})" for name, entry in OBSERVABLE_SETS.items())
        raise AnalysisError(
            got=f"the field {field_name!r}",
            expected=f"one of {known}",
            fix="read the configurations with flowmc_ensembles and use the array-level functions of flowmc_analysis",
        )
    return OBSERVABLE_SETS[field_name]
