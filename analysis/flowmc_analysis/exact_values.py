"""What is known exactly about a simulated theory: values to hold its ensembles against.

The two-dimensional Ising model without a field by Kaufman's formula, the antiferromagnet on even extents only, the
free scalar field in any dimension, and U(1) gauge theory in two dimensions by its characters. Of φ⁴ theory only what
follows from its symmetry φ → −φ is known: chains that stay in one of two modes miss it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from flowmc_analysis.exact import (
    free_scalar_action_density,
    free_scalar_log_z,
    free_scalar_phi_squared,
    free_scalar_susceptibility,
)
from flowmc_analysis.exact_ising import ising_exact
from flowmc_analysis.exact_u1 import u1_exact, u1_flux_mean, u1_polyakov_loop_squared
from flowmc_analysis.observables import ObservableContext

__all__ = ["exact_values"]

_SMALLEST_EXTENT = 2
_LARGEST_LOOP = 3


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
    {'magnetisation': 0.0}
    """
    solution = _SOLUTIONS.get(theory)
    return {} if solution is None else solution(context)


def _ising(context: ObservableContext) -> dict[str, float]:
    beta, coupling = context.coupling("beta"), context.coupling("coupling")
    size = context.lattice_size
    if len(size) != 2 or min(size) < _SMALLEST_EXTENT or context.coupling("field") != 0.0:
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


def _phi4(context: ObservableContext) -> dict[str, float]:  # noqa: ARG001 - part of the signature of solutions
    return {"magnetisation": 0.0}


def _free_scalar(context: ObservableContext) -> dict[str, float]:
    mass, size = context.coupling("mass"), context.lattice_size
    return {
        "magnetisation": 0.0,
        "phi_squared": free_scalar_phi_squared(size, mass),
        "action_density": free_scalar_action_density(),
        "susceptibility": free_scalar_susceptibility(mass),
        "ln_z": free_scalar_log_z(size, mass),
    }


def _u1(context: ObservableContext) -> dict[str, float]:
    beta, lattice = context.coupling("beta"), context.lattice_size
    if len(lattice) != 2 or min(lattice) < _SMALLEST_EXTENT or not beta > 0.0:
        return {}
    size = (lattice[0], lattice[1])
    solution = u1_exact(size, beta)
    sides = range(1, _LARGEST_LOOP + 1)
    fitting = {(r, t): u1_flux_mean(size, beta, r * t) for r in sides for t in sides if r < size[1] and t < size[0]}
    loops = {f"wilson_loop_{r}x{t}": value for (r, t), value in fitting.items() if (r, t) != (1, 1)}
    if (2, 2) in fitting:
        ratio = fitting[2, 2] * fitting[1, 1] / (fitting[1, 2] * fitting[2, 1])
        loops["string_tension"] = -math.log(ratio)
    return {
        "plaquette": solution.plaquette,
        **loops,
        "topological_charge": 0.0,
        "charge_squared": solution.charge_squared,
        "topological_susceptibility": solution.topological_susceptibility,
        "polyakov_loop": 0.0,
        "polyakov_loop_squared": u1_polyakov_loop_squared(size, beta),
        "action_density": solution.action_density,
        "ln_z": solution.log_z,
        "action_importance": solution.action_density * context.volume,
    }


_SOLUTIONS: Mapping[str, Callable[[ObservableContext], dict[str, float]]] = MappingProxyType(
    {"ising": _ising, "free_scalar": _free_scalar, "phi4": _phi4, "u1": _u1}
)
