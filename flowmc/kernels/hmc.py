"""Hybrid Monte Carlo on a batch of chains, with the action and the force kept in the state.

Momenta are drawn afresh for every trajectory, Hamilton's equations of H = S_kin(π) + S(φ) are integrated, and the end
point is accepted with probability min(1, exp(−ΔH)) (Duane et al., Phys. Lett. B 195 (1987) 216).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, isfinite
from typing import Any, ClassVar, NamedTuple, Protocol

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
from flowmc.theories import ContinuousSpace, SmoothTheory, Theory

__all__ = ["HMC", "HMCInfo", "Trajectories", "TrajectoryKernel"]

# Longest tuned trajectory, in steps: a target acceptance that is out of reach must not stall the run.
MOST_STEPS = 1000


class HMCInfo(NamedTuple):
    """Diagnostics of one trajectory, each of shape (chains,)."""

    accepted: jax.Array
    delta_H: jax.Array
    """H at the end minus H at the start, float64; +inf or NaN if the trajectory diverged."""


class TrajectoryKernel(Protocol):
    """What `Trajectories` needs of a kernel, a frozen dataclass whose updates are trajectories."""

    @property
    def kind(self) -> str:
        """Name of the kernel in run descriptions and in the ensemble's history."""

    @property
    def theory(self) -> SmoothTheory:
        """The theory whose distribution the kernel keeps."""

    @property
    def needs(self) -> frozenset[str]:
        """Entries of the state that must be valid before; see `flowmc.kernels.base.CycleMember`."""

    @property
    def leaves(self) -> frozenset[str]:
        """Entries of the state that are valid afterwards."""

    def step(
        self, key: jax.Array, state: HybridState, step_size: jax.Array | float, n_steps: jax.Array | int
    ) -> tuple[HybridState, HMCInfo]:
        """Run one trajectory of every chain."""

    def describe(self) -> dict[str, Any]:
        """Return the kernel's parameters as plain data."""


def check_integrator(name: str) -> None:
    """Check that there is an integrator of this name.

    Raises
    ------
    ParameterError
        If there is none.
    """
    if name not in INTEGRATORS:
        raise ParameterError(
            got=f"integrator {name!r}", expected=f"one of {sorted(INTEGRATORS)}", fix="correct `integrator`"
        )


def trajectory(
    key: jax.Array,
    space: ContinuousSpace,
    integrator: str,
    potential: Callable[[jax.Array], jax.Array],
    force: Callable[[jax.Array], jax.Array],
    start: Phase,
    start_potential: jax.Array,
    step_size: jax.Array,
    n_steps: jax.Array,
) -> tuple[Phase, jax.Array, HMCInfo]:
    """Draw momenta, integrate the equations of motion of a potential, and decide about the end point.

    Parameters
    ----------
    key
        Typed JAX key.
    space
        The space of the field.
    integrator
        A name in `flowmc.kernels.integrators.INTEGRATORS`.
    potential, force
        Map fields (chains, *field_shape) to the potential, (chains,), and to minus its slope, shape of the field.
    start
        Starting fields and the force there; the momenta are overwritten.
    start_potential
        The potential there, (chains,).
    step_size, n_steps
        Step of the trajectory and their number.

    Returns
    -------
    The end points, the potential there, and whether they are accepted.
    """
    momentum_key, accept_key = jax.random.split(key)
    momentum = space.draw_momentum(momentum_key, start.field)
    end = INTEGRATORS[integrator](space, force, start._replace(momentum=momentum), step_size, n_steps)
    end_potential = potential(end.field)
    energy = space.kinetic_energy(momentum) + start_potential
    end_energy = space.kinetic_energy(end.momentum) + end_potential
    log_u = jnp.log(jax.random.uniform(accept_key, end_potential.shape, dtype=jnp.float64))
    accepted = accept(log_ratio(-end_energy, -energy), log_u)
    return end, end_potential, HMCInfo(accepted, end_energy - energy)


def moved_state(state: HybridState, accepted: jax.Array, **reached: jax.Array) -> HybridState:
    """Return the state with the named entries, (chains, ...), replaced in the chains that accepted."""

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return state._replace(**{name: chosen(new, getattr(state, name)) for name, new in reached.items()})


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

    kind: ClassVar[str] = "hmc"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "force"})
    leaves: ClassVar[frozenset[str]] = frozenset({"action", "force"})

    def __post_init__(self) -> None:
        if not isinstance(self.theory, SmoothTheory):
            raise ParameterError(
                got=f"hybrid Monte Carlo for the theory {self.theory.name!r} of {self.theory.space.name} fields",
                expected="a theory with a force, of a continuous field",
                fix='choose another kernel: "heat_bath", "metropolis", "wolff" or "swendsen_wang" for spins',
            )
        check_integrator(self.integrator)

    def init(self, field: jax.Array) -> HybridState:
        """Return the state of chains at these fields, (chains, *field_shape), in float64; log q is left at zero."""
        require_x64()
        field = jnp.asarray(field, dtype=jnp.float64)
        action, force = self.theory.action_and_force(field)
        return HybridState(field, action, force, jnp.zeros_like(action))

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
        theory = self.theory
        end, action, info = trajectory(
            key,
            theory.space,
            self.integrator,
            theory.action,
            theory.force,
            Phase(state.field, jnp.zeros_like(state.field), state.force),
            state.action,
            jnp.asarray(step_size),
            jnp.asarray(n_steps),
        )
        return moved_state(state, info.accepted, field=end.field, action=action, force=end.force), info

    def describe(self) -> dict[str, Any]:
        """Return the integrator."""
        return {"integrator": self.integrator}


@partial(jax.jit, static_argnames=("kernel", "n_trajectories"))
def _trajectories(
    kernel: TrajectoryKernel,
    key: jax.Array,
    state: HybridState,
    step_size: jax.Array,
    n_steps: jax.Array,
    n_trajectories: int,
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
        The kernel, `HMC` or another one that moves along trajectories.
    seed
        Seed of the run; trajectory i of cycle c uses the key (seed, kind, c, i).
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

    kernel: TrajectoryKernel
    seed: int
    n_updates: int
    trajectory_length: float
    step_size: float
    n_steps: int
    tuner: StepSizeTuner | None

    def __post_init__(self) -> None:
        for name in ("n_updates", "trajectory_length", "step_size", "n_steps"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ParameterError(got=f"{name} = {value}", expected=f"{name} > 0", fix=f"correct `{name}`")

    @classmethod
    def build(
        cls,
        kernel: TrajectoryKernel,
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
    def kind(self) -> str:
        """Name of the kernel."""
        return self.kernel.kind

    @property
    def needs(self) -> frozenset[str]:
        """Entries of the state that must be valid before."""
        return self.kernel.needs

    @property
    def leaves(self) -> frozenset[str]:
        """Entries of the state that are valid afterwards."""
        return self.kernel.leaves

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
            jax_key(self.seed, self.kind, cycle),
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
        """Return the kernel's parameters, trajectory length and number of trajectories."""
        return {
            **self.kernel.describe(),
            "trajectory_length": self.trajectory_length,
            "trajectories_per_cycle": self.n_updates,
        }
