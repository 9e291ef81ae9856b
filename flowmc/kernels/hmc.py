"""Hybrid Monte Carlo on a batch of chains, with the action and the force kept in the state.

Momenta are drawn afresh for every trajectory, Hamilton's equations of H = S_kin(π) + S(φ) are integrated, and the end
point is accepted with probability min(1, exp(−ΔH)) (Duane et al., Phys. Lett. B 195 (1987) 216).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, isfinite
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowmc.arrays import require_x64
from flowmc.errors import ParameterError
from flowmc.kernels.accept import accept, log_ratio
from flowmc.kernels.base import CycleMember, HybridState, Updates
from flowmc.kernels.integrators import INTEGRATORS, Phase
from flowmc.kernels.tuning import StepSizeTuner
from flowmc.seeds import jax_key
from flowmc.theories import SmoothTheory, Theory

__all__ = ["HMC", "HMCInfo", "Trajectories"]

# Longest tuned trajectory, in steps: a target acceptance that is out of reach must not stall the run.
MOST_STEPS = 1000


class HMCInfo(NamedTuple):
    """Diagnostics of one trajectory, each of shape (chains,)."""

    accepted: jax.Array
    delta_H: jax.Array
    """H at the end minus H at the start, float64; +inf or NaN if the trajectory diverged."""


@dataclass(frozen=True)
class HMC:
    """Hybrid Monte Carlo as a pure kernel: ``init`` and ``step`` on a batch of chains.

    Parameters
    ----------
    theory
        The theory, whose `action`, `force` and `space` are used.
    integrator
        A name in `flowmc.kernels.integrators.INTEGRATORS`.

    Raises
    ------
    ParameterError
        If there is no integrator of that name, or the theory has no force.
    """

    theory: SmoothTheory
    integrator: str = "minimum_norm"

    def __post_init__(self) -> None:
        if not isinstance(self.theory, SmoothTheory):
            raise ParameterError(
                got=f"hybrid Monte Carlo for the theory {self.theory.name!r} of {self.theory.space.name} fields",
                expected="a theory with a force, of a continuous field",
                fix='choose another kernel: "heat_bath", "metropolis", "wolff" or "swendsen_wang" for spins',
            )
        if self.integrator not in INTEGRATORS:
            raise ParameterError(
                got=f"integrator {self.integrator!r}",
                expected=f"one of {sorted(INTEGRATORS)}",
                fix="correct `integrator`",
            )

    def init(self, field: jax.Array) -> HybridState:
        """Return the state of chains at these fields, (chains, *field_shape), in float64; log q is left at zero."""
        require_x64()
        field = jnp.asarray(field, dtype=jnp.float64)
        action = self.theory.action(field)
        return HybridState(field, action, self.theory.force(field), jnp.zeros_like(action))

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
            Molecular-dynamics step, dimensionless.
        n_steps
            Steps of the trajectory.
        """
        theory, space = self.theory, self.theory.space
        momentum_key, accept_key = jax.random.split(key)
        momentum = space.draw_momentum(momentum_key, state.field)
        end = INTEGRATORS[self.integrator](
            space, theory.force, Phase(state.field, momentum, state.force), jnp.asarray(step_size), jnp.asarray(n_steps)
        )
        action = theory.action(end.field)
        energy = space.kinetic_energy(momentum) + state.action
        end_energy = space.kinetic_energy(end.momentum) + action
        log_u = jnp.log(jax.random.uniform(accept_key, action.shape, dtype=jnp.float64))
        accepted = accept(log_ratio(-end_energy, -energy), log_u)
        wide = accepted.reshape(-1, *[1] * len(theory.field_shape))
        moved = HybridState(
            jnp.where(wide, end.field, state.field),
            jnp.where(accepted, action, state.action),
            jnp.where(wide, end.force, state.force),
            state.log_q,
        )
        return moved, HMCInfo(accepted, end_energy - energy)


@partial(jax.jit, static_argnames=("kernel", "n_trajectories"))
def _trajectories(
    kernel: HMC, key: jax.Array, state: HybridState, step_size: jax.Array, n_steps: jax.Array, n_trajectories: int
) -> tuple[HybridState, tuple[HMCInfo, jax.Array]]:
    def body(carry: HybridState, number: jax.Array) -> tuple[HybridState, tuple[HMCInfo, jax.Array]]:
        carry, info = kernel.step(jax.random.fold_in(key, number), carry, step_size, n_steps)
        return carry, (info, carry.action)

    return jax.lax.scan(body, state, jnp.arange(n_trajectories))


@dataclass(frozen=True)
class Trajectories:
    """Hybrid Monte Carlo as a member of a cycle: a fixed number of trajectories, tuned before the freeze point.

    Parameters
    ----------
    kernel
        The kernel.
    seed
        Seed of the run; trajectory i of cycle c uses the key (seed, "hmc", c, i).
    n_updates
        Trajectories in one cycle.
    trajectory_length
        Fictitious time of a trajectory, dimensionless.
    step_size
        Step size; the first guess where the tuner is on.
    n_steps
        Steps of a trajectory.
    tuner
        State of the tuner, or None when the step size is fixed (also after the freeze point).

    Raises
    ------
    ParameterError
        If a length or a number is not positive.
    """

    kernel: HMC
    seed: int
    n_updates: int
    trajectory_length: float
    step_size: float
    n_steps: int
    tuner: StepSizeTuner | None

    kind = "hmc"
    needs = frozenset({"action", "force"})
    leaves = frozenset({"action", "force"})

    def __post_init__(self) -> None:
        for name in ("n_updates", "trajectory_length", "step_size", "n_steps"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ParameterError(got=f"{name} = {value}", expected=f"{name} > 0", fix=f"correct `{name}`")

    @classmethod
    def build(
        cls,
        kernel: HMC,
        seed: int,
        n_updates: int,
        *,
        trajectory_length: float,
        step_size: float,
        target_acceptance: float | None,
    ) -> Trajectories:
        """Build the member from what a run description says; no target means a fixed step size."""
        if not (0 < step_size <= trajectory_length and isfinite(trajectory_length)):
            raise ParameterError(
                got=f"step_size = {step_size}, trajectory_length = {trajectory_length}",
                expected="0 < step_size <= trajectory_length, both finite",
                fix="shorten the step or lengthen the trajectory",
            )
        if target_acceptance is not None and not 0 < target_acceptance < 1:
            raise ParameterError(
                got=f"target_acceptance = {target_acceptance}", expected="a number between 0 and 1", fix="correct it"
            )
        n_steps = max(1, round(trajectory_length / step_size))
        tuner = (
            None if target_acceptance is None else StepSizeTuner.start(trajectory_length / n_steps, target_acceptance)
        )
        return cls(kernel, seed, n_updates, trajectory_length, trajectory_length / n_steps, n_steps, tuner)

    @property
    def theory(self) -> Theory:
        """The theory whose distribution the kernel keeps."""
        return self.kernel.theory

    def prepare(self, block: int, n_cycles: int, n_chains: int) -> None:
        """Prepare nothing: trajectories depend on the state."""

    def run(self, cycle: int, index: int, state: HybridState, prepared: None) -> tuple[HybridState, Updates]:  # noqa: ARG002
        """Run the trajectories of one cycle."""
        state, (info, action) = _trajectories(
            self.kernel,
            jax_key(self.seed, "hmc", cycle),
            state,
            np.float64(self.step_size),
            np.int64(self.n_steps),
            self.n_updates,
        )
        return state, Updates.plain(np.asarray(info.accepted), np.asarray(action))._replace(
            delta_H=np.asarray(info.delta_H),
            step_size=np.full(self.n_updates, self.step_size),
            n_steps=np.full(self.n_updates, self.n_steps),
        )

    def adapted(self, updates: Updates, *, last: bool) -> CycleMember:
        """Return the member with its step size moved towards the target acceptance; ``last`` freezes it."""
        if self.tuner is None:
            return self
        probability = np.exp(np.minimum(0.0, -np.nan_to_num(updates.delta_H, nan=np.inf, posinf=np.inf)))
        tuner = self.tuner.update(float(probability.mean()))
        if last:
            # Whole steps fill the trajectory; rounding up keeps the acceptance at the target or above.
            n_steps = min(MOST_STEPS, ceil(self.trajectory_length / tuner.result))
            return replace(self, tuner=None, n_steps=n_steps, step_size=self.trajectory_length / n_steps)
        # While it adapts the step size is free, and the trajectory's length only nearly right.
        step_size = min(tuner.step_size, self.trajectory_length)
        n_steps = min(MOST_STEPS, max(1, round(self.trajectory_length / step_size)))
        return replace(self, tuner=tuner, n_steps=n_steps, step_size=step_size)

    def adaptation(self) -> Mapping[str, float]:
        """Return step size, number of steps and the tuner's numbers."""
        tuner = {} if self.tuner is None else self.tuner.to_dict()
        return {"step_size": self.step_size, "n_steps": float(self.n_steps), **tuner}

    def restored(self, adaptation: Mapping[str, float]) -> CycleMember:
        """Return the member as it was at the checkpoint."""
        numbers = dict(adaptation)
        step_size, n_steps = numbers.pop("step_size"), int(numbers.pop("n_steps"))
        tuner = StepSizeTuner(**numbers) if numbers else None
        return replace(self, step_size=step_size, n_steps=n_steps, tuner=tuner)

    def describe(self) -> dict[str, Any]:
        """Return integrator, trajectory length and number of trajectories."""
        return {
            "integrator": self.kernel.integrator,
            "trajectory_length": self.trajectory_length,
            "trajectories_per_cycle": self.n_updates,
        }
