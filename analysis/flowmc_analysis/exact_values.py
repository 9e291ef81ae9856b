"""What is known exactly about a simulated theory: values to hold its ensembles against.

The two-dimensional Ising model without a field by Kaufman's formula, the antiferromagnet on even extents only, and the
free scalar field in any dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from flowmc_analysis.exact import (
    free_scalar_action_density,
    free_scalar_log_z,
    free_scalar_phi_squared,
    free_scalar_susceptibility,
)
from flowmc_analysis.exact_ising import ising_exact
from flowmc_analysis.observables import ObservableContext

__all__ = ["exact_values"]

_ISING_SMALLEST_EXTENT = 2


def exact_values(theory: str, context: ObservableContext) -> dict[str, float]:
    """Give what is known exactly about a theory on a periodic lattice.

    Parameters
    ----------
    theory
        Name of the theory, as its description has it.
    context
        Lattice and couplings.

    Returns
    -------
    By name, the exact values of observables, of ``ln_z``, and of what importance sampling measures beside them; empty
    where nothing is known.

    Examples
    --------
    >>> exact_values("phi4", ObservableContext((4, 4), {"m2": -4.0, "lam": 8.0}))
    {}
    """
    solution = _SOLUTIONS.get(theory)
    return {} if solution is None else solution(context)


def _ising(context: ObservableContext) -> dict[str, float]:
    beta, coupling = context.coupling("beta"), context.coupling("coupling")
    size = context.lattice_size
    if len(size) != 2 or min(size) < _ISING_SMALLEST_EXTENT or context.coupling("field") != 0.0:
        return {}
    if not beta > 0.0 or coupling == 0.0 or (coupling < 0.0 and any(extent % 2 for extent in size)):
        return {}
    solution = ising_exact((size[0], size[1]), beta, coupling)
    return {
        "energy": solution.energy,
        "specific_heat": solution.specific_heat,
        "ln_z": solution.log_z,
        "entropy_per_site": solution.entropy,
        "free_energy_per_site": solution.free_energy,
        "energy_importance": solution.energy,
    }


def _free_scalar(context: ObservableContext) -> dict[str, float]:
    mass, size = context.coupling("mass"), context.lattice_size
    return {
        "phi_squared": free_scalar_phi_squared(size, mass),
        "action_density": free_scalar_action_density(),
        "susceptibility": free_scalar_susceptibility(mass),
        "ln_z": free_scalar_log_z(size, mass),
    }


_SOLUTIONS: Mapping[str, Callable[[ObservableContext], dict[str, float]]] = MappingProxyType(
    {"ising": _ising, "free_scalar": _free_scalar}
)
