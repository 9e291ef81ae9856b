"""ln Z of phi^4 without a flow: hybrid Monte Carlo along the hopping parameter, from independent sites to the target.

With the action S_k(phi) = sum [-2 k sum_mu phi phi_+mu + (1 - 2 l) phi^2 + l phi^4] (`Phi4.from_kappa`), d ln Z_k / dk =
2 <sum_x,mu phi phi_+mu>, and at k = 0 the sites are independent: one integral. The integral over k is done with Gauss and
Legendre's rule, every point of it a simulation of its own, so that their errors add in quadrature.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path

import jax
import numpy as np
from scipy.integrate import quad

from flowmc.kernels import Cycle, FourierHMC, Trajectories
from flowmc.lattice import volume
from flowmc.sampling import MemoryStore, SamplingPlan, sample
from flowmc.seeds import numpy_generator
from flowmc.theories import Phi4
from flowmc_analysis import gamma_method

__all__ = ["ReferenceLogZ", "log_z_by_integration"]

jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]

POINTS = 12
CHAINS = 64
CYCLES = 400


@dataclass(frozen=True)
class ReferenceLogZ:
    """ln Z in the convention of `Phi4`, with its statistical error."""

    value: float
    error: float


def log_z_by_integration(shape: tuple[int, ...], kappa: float, lam: float, path: Path, *, quick: bool) -> ReferenceLogZ:
    """Return ln Z by thermodynamic integration, or read it from where it was kept.

    Parameters
    ----------
    shape
        Lattice extents.
    kappa, lam
        Couplings in the convention of `Phi4.from_kappa`.
    path
        JSON file in which the result is kept.
    quick
        Whether a tenth of the statistics is enough.
    """
    if path.is_file():
        return ReferenceLogZ(**json.loads(path.read_text()))
    sites = volume(shape)
    single, _ = quad(lambda phi: exp(-((1 - 2 * lam) * phi**2 + lam * phi**4)), -np.inf, np.inf, epsabs=1e-13)
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)
    value, variance = sites * log(single), 0.0
    for number, (node, weight) in enumerate(zip(nodes, weights, strict=True)):
        here = 0.5 * kappa * (node + 1)
        links, error = _links(shape, here, lam, number, quick=quick)
        value += 0.5 * kappa * weight * 2 * links
        variance += (kappa * weight * error) ** 2
    # Z_kappa is that of the field phi / sqrt(kappa): the Jacobian turns it into ours.
    result = ReferenceLogZ(value + 0.5 * sites * log(kappa), variance**0.5)
    path.write_text(json.dumps(asdict(result)) + "\n")
    return result


def _links(shape: tuple[int, ...], kappa: float, lam: float, number: int, *, quick: bool) -> tuple[float, float]:
    """Return <sum_x,mu phi phi_+mu> in the convention of the hopping parameter, with its error."""
    theory = Phi4.from_kappa(shape, kappa, lam)
    kernel = FourierHMC(theory, "minimum_norm", theory.gaussian_mass())
    cycles = CYCLES // 10 if quick else CYCLES
    member = Trajectories.build(
        kernel, seed=number, n_updates=1, trajectory_length=1.5, step_size=0.3, target_acceptance=0.9
    )
    plan = SamplingPlan(
        chains=CHAINS, cycles=cycles, thermalisation=cycles // 2, tuning=cycles // 4, cycles_per_block=cycles // 4
    )
    store = MemoryStore()
    generator = numpy_generator(number, shape[0])
    sample(Cycle(theory, (member,)), plan, store, lambda: theory.start(generator, CHAINS, "hot"))
    field = store.table("configurations", "phi")
    axes = tuple(range(2, field.ndim))
    links = sum((field * np.roll(field, -1, axis)).sum(axis=axes) for axis in axes) / kappa
    estimate = gamma_method(links.T).estimate
    return estimate.value, estimate.error
