"""Hybrid Monte Carlo of the Schwinger model with two flavours, by pseudofermions.

The square of the determinant is an integral over a complex spinor field,

    (det D)² = det D†D ∝ ∫ dφ dφ* exp(−S_pf),   S_pf = φ† (D†D)⁻¹ φ,

so that (θ, φ) can be updated in turns (Weingarten and Petcher, Phys. Lett. B 99 (1981) 333): φ = D†η with complex normal
η, of density exp(−|η|²), is an exact draw at fixed links, and then a trajectory of the links keeps φ and is accepted with
the change of H = S_kin + S_gauge + S_pf. A force costs one solution X = (D†D)⁻¹ φ by conjugate gradients, instead of the
decomposition of a matrix:

    −∂S_pf/∂θ = 2 Re [Y† (∂D/∂θ) X],   Y = D X.

Every solution starts from zero, so that the force depends on the links and φ alone: with the same φ, a trajectory can be
run back, whatever the tolerance of its forces. What decides about the acceptance is S_pf at both ends, |η|² at the first
one. Where a solution does not reach its tolerance, there or along the trajectory, the trajectory is rejected, and its ΔH
is recorded as infinite.

Near a vanishing determinant the force of a fixed φ is large: ΔH has a long tail there, so that ⟨exp(−ΔH)⟩ = 1 rests on
rare events and is estimated too small by about the probability of ΔH ≫ 1. What tells of exactness without such events is
⟨min(1, exp(−ΔH))⟩ = 2 P(ΔH < 0), which holds for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from flowmc.arrays import require_x64
from flowmc.errors import ParameterError
from flowmc.kernels.base import HybridState
from flowmc.kernels.hmc import HMCInfo, check_integrator, moved_state, trajectory
from flowmc.kernels.integrators import Phase
from flowmc.theories import Schwinger
from flowmc.theories.wilson import dirac_adjoint_apply, fermion_links, gamma5_apply, hopping, hopping_slope

__all__ = ["PseudofermionHMC"]

# The residual that conjugate gradients update drifts from the true one by rounding: how far it may be off.
SLACK = 10.0


@dataclass(frozen=True)
class PseudofermionHMC:
    """Hybrid Monte Carlo with pseudofermions as a pure kernel: ``init`` and ``step`` on a batch of chains.

    Parameters
    ----------
    theory
        The Schwinger model with two flavours.
    integrator
        A name in `flowmc.kernels.integrators.INTEGRATORS`.
    tolerance
        Largest norm of the residual φ − D†D X relative to that of φ. It bounds the error of S_pf in the accept test too,
        where a solution that is broken off early makes S_pf too small: keep it far below the noise of ΔH.

    Raises
    ------
    ParameterError
        If the theory is another one, there is no such integrator, or the tolerance is not in (0, 1).
    """

    theory: Schwinger
    integrator: str = "minimum_norm"
    tolerance: float = 1e-10

    kind: ClassVar[str] = "pseudofermion_hmc"
    needs: ClassVar[frozenset[str]] = frozenset({"action"})
    leaves: ClassVar[frozenset[str]] = frozenset({"action"})

    def __post_init__(self) -> None:
        if not isinstance(self.theory, Schwinger) or self.theory.n_flavours != 2:
            raise ParameterError(
                got=f"pseudofermions for {self.theory}",
                expected="the theory 'schwinger' with n_flavours = 2: (det D)^2 is det of D^dagger D",
                fix='choose the kernel "hmc", which computes the determinant',
            )
        check_integrator(self.integrator)
        if not 0 < self.tolerance < 1:
            raise ParameterError(
                got=f"solver tolerance {self.tolerance}",
                expected="a number between 0 and 1",
                fix="correct `solver_tolerance`, for example 1e-10",
            )

    def init(self, field: jax.Array) -> HybridState:
        """Return the state of chains at these fields, (chains, *field_shape), in float64; log q is left at zero."""
        require_x64()
        field = jnp.asarray(field, dtype=jnp.float64)
        action = self.theory.action(field)
        return HybridState(field, action, jnp.zeros((len(field), 0)), jnp.zeros_like(action))

    def draw(self, key: jax.Array, field: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw pseudofermions at fixed links.

        Returns
        -------
        φ = D†η, (chains, T, X, 2), complex, and its S_pf = |η|², (chains,).
        """
        # Real and imaginary part have the variance 1/2.
        eta = jax.random.normal(key, field.shape, dtype=jnp.complex128)
        pseudofermion: jax.Array = dirac_adjoint_apply(field, self.theory.kappa, eta)
        return pseudofermion, _square(eta)

    def solve(self, field: jax.Array, pseudofermion: jax.Array) -> jax.Array:
        """Return X = (D†D)⁻¹ φ, same shape; NaN in chains where the residual is above the tolerance."""
        link = fermion_links(field)

        def hermitian(spinor: jax.Array) -> jax.Array:
            # γ_5 D, the square of which is D†D.
            return jnp.asarray(gamma5_apply(spinor - self.theory.kappa * hopping(link, spinor)))

        def normal(spinor: jax.Array) -> jax.Array:
            # A loop, though it has two turns only: written out, XLA takes longer to compile it and no less to run it.
            image: jax.Array = jax.lax.fori_loop(0, 2, lambda _, part: hermitian(part), spinor)
            return image

        solution = conjugate_gradients(normal, pseudofermion, self.tolerance)
        residual = _square(pseudofermion - normal(solution))
        converged = residual <= (SLACK * self.tolerance) ** 2 * _square(pseudofermion)
        return jnp.where(_wide(converged), solution, jnp.nan)

    def pseudofermion_action(self, field: jax.Array, pseudofermion: jax.Array) -> jax.Array:
        """Return S_pf = φ† (D†D)⁻¹ φ, (chains,); NaN where it is not known to the tolerance."""
        solution = self.solve(field, pseudofermion)
        return jnp.sum(jnp.real(jnp.conj(pseudofermion) * solution), axis=(1, 2, 3))

    def force(self, field: jax.Array, pseudofermion: jax.Array) -> jax.Array:
        """Return −∂/∂θ of S_gauge + S_pf at fixed φ, shape of ``field``; NaN where the solution did not converge."""
        link, kappa = fermion_links(field), self.theory.kappa
        solution = self.solve(field, pseudofermion)
        image = solution - kappa * hopping(link, solution)
        return jnp.asarray(self.theory.gauge_force(field) - 2 * kappa * hopping_slope(link, image, solution))

    def step(
        self, key: jax.Array, state: HybridState, step_size: jax.Array | float, n_steps: jax.Array | int
    ) -> tuple[HybridState, HMCInfo]:
        """Draw pseudofermions and run one trajectory of every chain.

        Parameters
        ----------
        key
            Typed JAX key of this trajectory.
        state
            Needs a valid `action`, and leaves it so: log|det D|, which the trajectory does not use, is computed at its
            end. `force` and `log_q` go stale.
        step_size
            Molecular-dynamics step, dimensionless.
        n_steps
            Steps of the trajectory.
        """
        draw_key, key = jax.random.split(key)
        field = state.field
        pseudofermion, start = self.draw(draw_key, field)
        end, _, info = trajectory(
            key,
            self.theory.space,
            self.integrator,
            lambda links: self.theory.gauge_action(links) + self.pseudofermion_action(links, pseudofermion),
            lambda links: self.force(links, pseudofermion),
            Phase(field, jnp.zeros_like(field), self.force(field, pseudofermion)),
            self.theory.gauge_action(field) + start,
            jnp.asarray(step_size),
            jnp.asarray(n_steps),
        )
        diverged = jnp.isnan(info.delta_H)
        info = info._replace(delta_H=jnp.where(diverged, jnp.inf, info.delta_H))
        # A field that is not finite has no determinant, and its trajectory was rejected.
        reached = jnp.where(_wide(diverged), field, end.field)
        return moved_state(state, info.accepted, field=reached, action=self.theory.action(reached)), info

    def describe(self) -> dict[str, Any]:
        """Return integrator and tolerance."""
        return {"integrator": self.integrator, "solver_tolerance": self.tolerance}


def conjugate_gradients(operator: Callable[[jax.Array], jax.Array], right: jax.Array, tolerance: float) -> jax.Array:
    """Solve A x = b for all chains together, from x = 0; a chain that has converged stands still.

    Parameters
    ----------
    operator
        Maps spinors (chains, T, X, 2) to A of each, Hermitian and positive definite.
    right
        b, (chains, T, X, 2).
    tolerance
        Norm of the residual relative to that of b at which a chain stops, by the residual that is updated along.

    Returns
    -------
    The solutions, same shape; where they have not converged after ten times as many steps as there are numbers in a
    chain, what there is.

    References
    ----------
    .. [1] M. R. Hestenes, E. Stiefel, J. Res. Natl. Bur. Stand. 49 (1952) 409.
    """
    most = 10 * right[0].size
    goal = tolerance**2 * _square(right)

    def unfinished(search: _Search) -> jax.Array:
        return jnp.any(search.norm > goal) & (search.steps < most)

    def step(search: _Search) -> _Search:
        active = search.norm > goal
        image = operator(search.direction)
        curvature = jnp.sum(jnp.real(jnp.conj(search.direction) * image), axis=(1, 2, 3))
        length = _wide(jnp.where(active, search.norm / curvature, 0.0))
        residual = search.residual - length * image
        norm = jnp.where(active, _square(residual), search.norm)
        direction = residual + _wide(jnp.where(active, norm / search.norm, 0.0)) * search.direction
        return _Search(search.solution + length * search.direction, residual, direction, norm, search.steps + 1)

    start = _Search(jnp.zeros_like(right), right, right, _square(right), jnp.zeros((), jnp.int64))
    return jax.lax.while_loop(unfinished, step, start).solution


class _Search(NamedTuple):
    """State of conjugate gradients; `norm` is that of the residual, squared."""

    solution: jax.Array
    residual: jax.Array
    direction: jax.Array
    norm: jax.Array
    steps: jax.Array


def _wide(numbers: jax.Array) -> jax.Array:
    """Return one number of each chain in a shape that multiplies fields, (chains, 1, 1, 1)."""
    return numbers[:, None, None, None]


def _square(spinor: jax.Array) -> jax.Array:
    """Return |ψ|² of each chain, (chains,)."""
    return jnp.sum(jnp.real(spinor) ** 2 + jnp.imag(spinor) ** 2, axis=(1, 2, 3))
