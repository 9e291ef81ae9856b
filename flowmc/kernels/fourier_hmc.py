"""Fourier-accelerated hybrid Monte Carlo of real scalar fields: momenta with a mass for each lattice momentum.

The kinetic energy is diagonal in momentum space, with the kernel of the free action of mass M as its mass matrix,

    S_kin = ½ Σ_p |π̃(p)|² / M(p),   M(p) = 2 (p̂² + M²),   p̂² = Σ_μ 4 sin²(p_μ / 2),

with the unitary Fourier transform. π is not a part of the target, so that any M(p) > 0 leaves it exact: M decides about
autocorrelations only. In the convention of `flowmc.theories.FreeScalar`, where S = Σ_p (p̂² + m²) |φ̃(p)|², a mode of the
free field oscillates with the frequency

    ω(p)² = (p̂² + m²) / (p̂² + M²)   instead of   ω(p)² = 2 (p̂² + m²)   with unit masses.

At M = m all modes move at the frequency one: a trajectory of length π/2 ends at φ̃ = π̃ / M(p), which knows nothing of
where it began, and the largest step is set by one and the same frequency instead of by the shortest wavelength. With
interactions, M near the inverse correlation length does the same approximately, as long as the modes are nearly Gaussian
about one minimum of the action; it does not help to tunnel between minima.

Each drift costs two real Fourier transforms.

References
----------
.. [1] Batrouni et al., Phys. Rev. D 32 (1985) 2736: Fourier acceleration of the Langevin equation.
.. [2] Duane, Kennedy, Pendleton, Roweth, Phys. Lett. B 195 (1987) 216: hybrid Monte Carlo.
.. [3] Catterall, Karamov, Phys. Lett. B 528 (2002) 301, hep-lat/0112025: both, for supersymmetric quantum mechanics.
.. [4] Christ, Wickenden, arXiv:1812.05281: both, for φ⁴ theory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import Array, batch_axes
from flowmc.errors import ParameterError
from flowmc.kernels.base import HybridState
from flowmc.kernels.hmc import HMC, HMCInfo, check_integrator, moved_state, trajectory
from flowmc.kernels.integrators import Phase
from flowmc.lattice import momentum_squared
from flowmc.theories import RealSpace, SmoothTheory

__all__ = ["FourierHMC", "FourierSpace"]


@dataclass(frozen=True)
class FourierSpace(RealSpace):
    """Real fields whose momenta have the masses M(p) = 2 (p̂² + M²) in momentum space.

    Parameters
    ----------
    shape
        Lattice extents (T, ..., X), in lattice units.
    mass
        Acceleration mass M > 0, in lattice units.
    """

    shape: tuple[int, ...]
    mass: float

    def mass_matrix(self) -> NDArray[np.float64]:
        """Return M(p) on the half of the dual lattice that a real Fourier transform keeps, (T, ..., X // 2 + 1)."""
        half = momentum_squared(self.shape)[..., : self.shape[-1] // 2 + 1]
        return 2 * (half + self.mass**2)

    def draw_momentum(self, key: jax.Array, field: jax.Array) -> jax.Array:
        """Draw Gaussian momenta with ⟨|π̃(p)|²⟩ = M(p), the shape and type of ``field``, (n, *shape)."""
        return self._multiplied(super().draw_momentum(key, field), np.sqrt(self.mass_matrix()))

    def kinetic_energy(self, momentum: Array) -> Array:
        """Return ½ Σ_p |π̃(p)|² / M(p), shape (n,), in float64."""
        # Summed over sites, where no momentum counts twice.
        product = momentum * self.velocity(momentum)
        return 0.5 * jnp.sum(product, axis=batch_axes(self.shape), dtype=jnp.float64)

    def drift(self, field: Array, momentum: Array, step: Array) -> Array:
        """Return φ + ε v, with v of `velocity`."""
        return field + step * self.velocity(momentum)

    def velocity(self, momentum: Array) -> Array:
        """Return ∂S_kin/∂π, which is π̃(p) / M(p) back on the lattice, (n, *shape)."""
        return self._multiplied(momentum, 1 / self.mass_matrix())

    def _multiplied(self, field: Array, factor: NDArray[np.float64]) -> jax.Array:
        """Return a batch of real fields after multiplication with a function of p̂², in momentum space."""
        axes = batch_axes(self.shape)
        return jnp.fft.irfftn(factor * jnp.fft.rfftn(field, axes=axes), s=self.shape, axes=axes)


@dataclass(frozen=True)
class FourierHMC:
    """Fourier-accelerated hybrid Monte Carlo as a pure kernel: ``init`` and ``step`` on a batch of chains.

    Parameters
    ----------
    theory
        A theory of a real scalar field, whose `action` and `force` are used.
    integrator
        A name in `flowmc.kernels.integrators.INTEGRATORS`.
    mass
        Acceleration mass M > 0, in lattice units: best near the inverse correlation length.

    Raises
    ------
    ParameterError
        If the field is not a real scalar one or the theory has no force, there is no such integrator, or the mass is not
        positive, or so small or large that M² or its inverse is not a finite number.
    """

    theory: SmoothTheory
    integrator: str = "minimum_norm"
    mass: float = 1.0

    kind: ClassVar[str] = "fourier_hmc"
    needs: ClassVar[frozenset[str]] = HMC.needs
    leaves: ClassVar[frozenset[str]] = HMC.leaves

    def __post_init__(self) -> None:
        theory = self.theory
        scalar = theory.space.name == RealSpace.name and theory.field_shape == theory.shape
        if not (scalar and isinstance(theory, SmoothTheory)):
            raise ParameterError(
                got=f"Fourier acceleration for the theory {theory.name!r} of {theory.space.name} fields",
                expected="a theory with a force, of a real scalar field, for example phi4",
                fix='choose another kernel: "hmc" for other fields with a force, for example "heat_bath" for spins',
            )
        check_integrator(self.integrator)
        # The masses of momenta are made of the square, and divide.
        square = self.mass * self.mass
        if not (self.mass > 0 and 0 < square < inf and 1 / square < inf):
            raise ParameterError(
                got=f"acceleration mass {self.mass}",
                expected="a finite mass > 0, in lattice units",
                fix="correct `acceleration_mass`, for example to the inverse correlation length",
            )

    @property
    def space(self) -> FourierSpace:
        """The space of the field, with the momenta of this kernel."""
        return FourierSpace(self.theory.shape, self.mass)

    def init(self, field: jax.Array) -> HybridState:
        """Return the state of chains at these fields, (chains, *shape), in float64; log q is left at zero."""
        return HMC(self.theory, self.integrator).init(field)

    def step(
        self, key: jax.Array, state: HybridState, step_size: jax.Array | float, n_steps: jax.Array | int
    ) -> tuple[HybridState, HMCInfo]:
        """Run one trajectory of every chain.

        Parameters
        ----------
        key
            Typed JAX key of this trajectory.
        state
            Needs valid `action` and `force`, and leaves them so; `log_q` goes stale.
        step_size
            Molecular-dynamics step, dimensionless: in units in which the free field of mass M has the frequency one.
        n_steps
            Steps of the trajectory.
        """
        end, action, info = trajectory(
            key,
            self.space,
            self.integrator,
            self.theory.action,
            self.theory.force,
            Phase(state.field, jnp.zeros_like(state.field), state.force),
            state.action,
            jnp.asarray(step_size),
            jnp.asarray(n_steps),
        )
        return moved_state(state, info.accepted, field=end.field, action=action, force=end.force), info

    def describe(self) -> dict[str, Any]:
        """Return integrator and acceleration mass."""
        return {"integrator": self.integrator, "acceleration_mass": self.mass}
