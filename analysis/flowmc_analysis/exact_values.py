"""What is known exactly about a simulated theory: values to hold its ensembles against.

The two-dimensional Ising model without a field by Kaufman's formula, the antiferromagnet on even extents only, the
free scalar field in any dimension, U(1) gauge theory in two dimensions by its characters, the particle in a double well
by its transfer matrix and mixtures of Gaussians term by term. Of φ⁴ theory only what follows from its symmetry φ → −φ is
known: chains that stay in one of two modes miss it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import scipy.special

from flowmc_analysis.exact import (
    free_scalar_action_density,
    free_scalar_log_z,
    free_scalar_phi_squared,
    free_scalar_susceptibility,
)
from flowmc_analysis.exact_double_well import double_well_exact
from flowmc_analysis.exact_ising import ising_exact
from flowmc_analysis.exact_u1 import u1_exact, u1_flux_mean, u1_polyakov_loop_squared
from flowmc_analysis.observables import ObservableContext, effective_mass

__all__ = ["exact_values"]

Array = npt.NDArray[np.float64]

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


def _double_well(context: ObservableContext) -> dict[str, float]:
    (n_sites,) = context.lattice_size
    solution = double_well_exact(n_sites, *(context.coupling(name) for name in ("extent", "mass", "coupling")))
    # Of the same estimator on the same lattice: with several states in the trace, it is not the gap itself. One time of
    # each octave, as neighbouring ones fluctuate together.
    masses = effective_mass(solution.two_point_zero_momentum)
    octaves = (2**k for k in range(masses.size.bit_length()))
    return {
        "magnetisation": 0.0,
        "susceptibility": solution.susceptibility,
        "phi_squared": solution.phi_squared,
        "phi_fourth": solution.phi_fourth,
        "action_density": solution.action_density,
        **{f"effective_mass[{time}]": float(masses[time - 1]) for time in octaves},
        "ln_z": solution.log_z,
    }


def _gaussian_mixture(context: ObservableContext) -> dict[str, float]:
    weights, variances = context.coupling_array("weights"), context.coupling_array("scales") ** 2
    means, sites = context.coupling_array("means"), context.volume
    # The mean over the coordinates is Gaussian in each component, too.
    mean, variance = means.mean(axis=1), variances / sites
    ratio = mean / np.sqrt(2.0 * variance)
    modulus = np.sqrt(2.0 * variance / math.pi) * np.exp(-(ratio**2)) + mean * scipy.special.erf(ratio)
    second = float(weights @ (mean**2 + variance))
    fourth = float(weights @ _fourth_moment(mean, variance))
    return {
        "magnetisation": float(weights @ mean),
        "magnetisation_abs": float(weights @ modulus),
        "susceptibility": sites * second,
        "binder_cumulant": 1.0 - fourth / (3.0 * second**2),
        "phi_squared": float(weights @ (np.mean(means**2, axis=1) + variances)),
        "phi_fourth": float(weights @ np.mean(_fourth_moment(means, variances[:, None]), axis=1)),
        **{f"component_{k}": float(weight) for k, weight in enumerate(weights, start=1)},
        "ln_z": 0.0,
    }


def _fourth_moment(mean: Array, variance: Array) -> Array:
    """Fourth moment of a Gaussian about zero."""
    return mean**4 + 6.0 * mean**2 * variance + 3.0 * variance**2


_SOLUTIONS: Mapping[str, Callable[[ObservableContext], dict[str, float]]] = MappingProxyType(
    {
        "double_well": _double_well,
        "free_scalar": _free_scalar,
        "gaussian_mixture": _gaussian_mixture,
        "ising": _ising,
        "phi4": _phi4,
        "u1": _u1,
    }
)
