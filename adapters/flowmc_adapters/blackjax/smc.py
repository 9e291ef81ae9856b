"""Sequential Monte Carlo that starts from a flow: ln Z without bias in Z, and weighted samples.

Particles are drawn from the flow's density q and led to p = exp(−S)/Z through

    p_β(φ) ∝ q(φ)^{1−β} exp(−β S(φ)),   0 = β₀ < β₁ < … < β_K = 1:

at each stage they are resampled, moved by a kernel that keeps p_β, and weighed by w^{β'−β}, w = exp(−S)/q. The product of
the mean weights is an unbiased estimate of Z on a schedule fixed beforehand (Del Moral, Doucet, Jasra, J. R. Stat. Soc. B
68 (2006) 411). Therefore a pilot finds schedule and step sizes (`blackjax.adaptive_tempered_smc`), which then are frozen
for independent runs (`blackjax.tempered_smc`), whose spread gives the error. The samples are weighted: they are no chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import exp, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import check_field, require_x64
from flowmc.errors import LatticeMismatchError, NonFiniteError, ParameterError, TheoryMismatchError
from flowmc.proposals import CallbackProposal, DeviceProposal, Proposal, on_device
from flowmc.seeds import fold, jax_key
from flowmc.theories import ContinuousSpace, SmoothTheory, Theory
from flowmc_adapters.base import require_library
from flowmc_adapters.blackjax import algorithms
from flowmc_adapters.blackjax.member import logdensity_of

__all__ = ["INNER_KERNELS", "FlowSMC", "SMCResult", "flow_smc"]

MOST_STAGES = 1000
# Acceptance that the pilot aims at, and how strongly a stage's acceptance moves the next one's step size.
TARGETS = {"hmc": 0.8, "random_walk": 0.3, "independence": 0.0}
GAIN = 2.0
INNER_KERNELS = tuple(TARGETS)
"""What may move the particles at a stage."""


@dataclass(frozen=True)
class SMCResult:
    """What independent runs on one frozen schedule gave."""

    log_z: float
    """ln Z of p = exp(−S)/Z, the logarithm of the mean of the estimates of Z, its leading bias removed (jackknife)."""
    log_z_error: float
    """Its standard error, from the spread of the runs (jackknife)."""
    log_z_runs: NDArray[np.float64]
    """ln of the unbiased estimate of Z by each run, (repeats,)."""
    schedule: NDArray[np.float64]
    """β after each stage, (stages,); the last is one."""
    step_sizes: NDArray[np.float64]
    """Step size of the inner kernel at each stage, (stages,)."""
    acceptance: NDArray[np.float64]
    """Mean acceptance of the inner kernel at each stage, over all runs, (stages,)."""
    field: NDArray[np.float64]
    """Particles at the end, (repeats, particles, *field_shape)."""
    log_weight: NDArray[np.float64]
    """Logarithms of their weights, comparable over all runs, (repeats, particles); −inf for lost ones."""

    def expectation(self, values: NDArray[np.float64]) -> tuple[float, float]:
        """Return the expectation of an observable under p, with its standard error (jackknife over the runs).

        Parameters
        ----------
        values
            The observable on all particles, (repeats, particles).
        """
        weights = np.exp(self.log_weight - self.log_weight.max())
        above, below = (weights * values).sum(axis=1), weights.sum(axis=1)
        return _jackknife(lambda kept: float(above[kept].sum() / below[kept].sum()), len(above))


def _jackknife(estimate: Callable[[NDArray[np.bool_]], float], n: int) -> tuple[float, float]:
    """Return an estimate from ``n`` runs with its leading bias removed, and its standard error.

    Parameters
    ----------
    estimate
        Maps which runs to use, (n,), to the estimate from them.
    n
        Number of runs.
    """
    everything = estimate(np.ones(n, bool))
    without = np.array([estimate(np.arange(n) != run) for run in range(n)])
    value = n * everything - (n - 1) * float(without.mean())
    return value, sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))


@dataclass(frozen=True)
class FlowSMC:
    """Tempered SMC from a flow to a theory.

    Parameters
    ----------
    theory
        The theory, of a continuous field.
    proposal
        The flow, of full support. Any proposal will do; one that is not made of JAX is called back on the host.
    inner
        What moves the particles: "hmc" (for flows made of JAX, whose gradient is needed), "random_walk", or
        "independence" (proposals of the flow itself; slow for a flow that is called back, one field at a time). "auto"
        takes HMC where it can, and else the random walk.
    particles
        Particles of one run.
    mcmc_steps
        Updates of every particle at a stage.
    integration_steps
        Steps of a trajectory of "hmc".
    step_size
        Step size of the inner kernel, the pilot's first guess.
    target_ess
        Effective sample size, as a fraction of the particles, that the pilot keeps at each stage.

    Raises
    ------
    ParameterError
        If a number is out of range, the flow has not full support, or the inner kernel cannot be used with it.
    TheoryMismatchError, LatticeMismatchError
        If flow and theory do not fit together.
    """

    theory: Theory
    proposal: Proposal
    inner: str = "auto"
    particles: int = 1024
    mcmc_steps: int = 3
    integration_steps: int = 5
    step_size: float = 0.1
    target_ess: float = 0.5

    def __post_init__(self) -> None:
        require_library("blackjax")
        numbers = (self.particles, self.mcmc_steps, self.integration_steps, self.step_size)
        if min(numbers) <= 0 or not 0 < self.target_ess < 1 or self.particles < 2:
            raise ParameterError(
                got=f"particles, mcmc_steps, integration_steps, step_size = {numbers}, target_ess = {self.target_ess}",
                expected="two particles or more, positive numbers, and an effective sample size between 0 and 1",
                fix="correct them",
            )
        theory, metadata = self.theory, self.proposal.metadata
        if not isinstance(theory.space, ContinuousSpace) or metadata.space != theory.space.name:
            raise TheoryMismatchError(
                got=f"a flow of {metadata.space} fields for {theory}, of {theory.space.name} fields",
                expected="a flow of the same continuous fields",
                fix="use a flow that was built for this theory",
            )
        if tuple(metadata.event_shape) != tuple(theory.field_shape):
            raise LatticeMismatchError(
                got=f"a flow for fields of shape {tuple(metadata.event_shape)}",
                expected=f"{tuple(theory.field_shape)}, the field of {theory}",
                fix="use a flow that was built for this lattice",
            )
        if not metadata.full_support:
            raise ParameterError(
                got="a flow whose support is smaller than the theory's",
                expected="q > 0 wherever exp(-S) > 0: Z of the rest would be missed",
                fix="use another flow",
            )
        if self.inner not in ("auto", *INNER_KERNELS):
            raise ParameterError(
                got=f"inner = {self.inner!r}", expected=f"one of {['auto', *INNER_KERNELS]}", fix="correct `inner`"
            )
        if self.inner == "hmc" and not self.has_gradient:
            raise ParameterError(
                got='inner = "hmc" with a flow that is called back on the host, or a theory without a force',
                expected="a flow made of JAX and a theory with a force: HMC needs the gradient of both",
                fix='set inner = "random_walk" or "independence"',
            )

    @property
    def device(self) -> DeviceProposal:
        """The flow in a form that compiled code can use."""
        return on_device(self.proposal)

    @property
    def has_gradient(self) -> bool:
        """Whether −S and log q can both be differentiated."""
        return not isinstance(self.device, CallbackProposal) and isinstance(self.theory, SmoothTheory)

    @property
    def kernel(self) -> str:
        """The inner kernel that is used."""
        return self.inner if self.inner != "auto" else "hmc" if self.has_gradient else "random_walk"

    def densities(self) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
        """Return BlackJAX's log prior, log q, and log likelihood, −S − log q, of one field."""
        device, logdensity_fn, space = self.device, logdensity_of(self.theory), self.theory.space

        def inside(position: jax.Array) -> jax.Array:
            # Angles that were moved are brought back to where the flow has its density.
            if not isinstance(space, ContinuousSpace):
                return position
            return jnp.asarray(space.drift(position[None], jnp.zeros_like(position)[None], 0.0))[0]

        def log_prior(position: jax.Array) -> jax.Array:
            return device.device_log_prob(inside(position)[None])[0]

        def log_likelihood(position: jax.Array) -> jax.Array:
            value = logdensity_fn(inside(position)) - log_prior(position)
            # A particle where a density is no number is lost, and counts as one of weight zero.
            return jnp.where(jnp.isnan(value), -jnp.inf, value)

        return log_prior, log_likelihood

    def moves(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return step and init of the inner kernel, for BlackJAX's SMC; the step takes ``step_size``."""
        if self.kernel == "hmc":
            trajectory = algorithms.hmc.build_kernel()

            def hmc(key: jax.Array, state: Any, logdensity_fn: Any, step_size: jax.Array) -> tuple[Any, Any]:
                return trajectory(key, state, logdensity_fn, step_size, self.integration_steps)

            return hmc, algorithms.hmc.init
        if self.kernel == "independence":
            offer = algorithms.independence.build_kernel(self.proposal)

            def flow(key: jax.Array, state: Any, logdensity_fn: Any, step_size: jax.Array) -> tuple[Any, Any]:  # noqa: ARG001
                return offer(key, state, logdensity_fn)

            return flow, partial(algorithms.independence.init, proposal=self.proposal)
        walk = require_library("blackjax").additive_step_random_walk

        def random_walk(key: jax.Array, state: Any, logdensity_fn: Any, step_size: jax.Array) -> tuple[Any, Any]:
            def step(step_key: jax.Array, position: jax.Array) -> jax.Array:
                return step_size * jax.random.normal(step_key, position.shape, position.dtype)

            after, info = walk.build_kernel()(key, state, logdensity_fn, step)
            return after, info

        return random_walk, walk.init

    def draw(self, seed: int) -> jax.Array:
        """Draw the particles of a run from the flow, (particles, *field_shape)."""
        field, _ = self.proposal.sample(seed, self.particles)
        check_field(field, self.theory.field_shape, "draw of the flow")
        return jnp.asarray(field, dtype=jnp.float64)

    def pilot(self, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Find the schedule and the step sizes, each (stages,).

        Raises
        ------
        NonFiniteError
            If the effective sample size cannot be kept by any step in β.
        """
        state = require_library("blackjax").adaptive_tempered_smc.init(self.draw(fold(seed, "pilot")))
        state = state._replace(tempering_param=jnp.zeros(()))
        schedule: list[float] = []
        step_sizes: list[float] = []
        step_size, before = self.step_size, 0.0
        while before < 1:
            state, acceptance = _pilot_stage(self, jax_key(seed, "pilot", len(schedule)), state, jnp.asarray(step_size))
            now = float(state.tempering_param)
            if not now > before or len(schedule) == MOST_STAGES:
                raise NonFiniteError(
                    got=f"no way on from β = {before:g} after {len(schedule)} stages",
                    expected="weights of which some step in β keeps the effective sample size",
                    fix="certify the flow; raise `particles`, or lower `target_ess`",
                )
            schedule.append(now)
            step_sizes.append(step_size)
            if self.kernel != "independence":
                step_size *= exp(GAIN * (float(acceptance) - TARGETS[self.kernel]))
            before = now
        return np.array(schedule), np.array(step_sizes)

    def run(self, seed: int, repeats: int = 8) -> SMCResult:
        """Find a schedule, freeze it, and run ``repeats`` times independently.

        Parameters
        ----------
        seed
            Seed of the whole.
        repeats
            Runs on the frozen schedule, from whose spread the error follows.

        Raises
        ------
        ParameterError
            If there are too few runs for an error.
        NonFiniteError
            If the pilot or a run breaks down.
        """
        require_x64()
        if repeats < 2:
            raise ParameterError(got=f"repeats = {repeats}", expected="two or more, for an error", fix="raise it")
        schedule, step_sizes = self.pilot(seed)
        log_z, fields, log_weights, acceptance = [], [], [], []
        for number in range(repeats):
            own = fold(seed, "run", number)
            particles = self.draw(fold(own, "start"))
            state, (increments, rates) = _frozen(
                self, jax_key(own), particles, jnp.asarray(schedule), jnp.asarray(step_sizes)
            )
            log_z.append(float(increments.sum()))
            fields.append(np.asarray(state.particles))
            acceptance.append(np.asarray(rates))
            with np.errstate(divide="ignore"):
                log_weights.append(log_z[-1] + np.log(np.asarray(state.weights)))
        runs = np.array(log_z)
        if not np.isfinite(runs).all():
            raise NonFiniteError(
                got=f"ln Z = {log_z} of the runs", expected="finite numbers", fix="certify the flow; raise `particles`"
            )
        largest = float(runs.max())
        value, error = _jackknife(lambda kept: largest + float(np.log(np.exp(runs[kept] - largest).mean())), repeats)
        return SMCResult(
            value,
            error,
            runs,
            schedule,
            step_sizes,
            np.mean(acceptance, axis=0),
            np.stack(fields),
            np.stack(log_weights),
        )


@partial(jax.jit, static_argnames=("settings",))
def _pilot_stage(settings: FlowSMC, key: jax.Array, state: Any, step_size: jax.Array) -> tuple[Any, jax.Array]:
    """Run a stage whose β follows from the effective sample size; return the state and the mean acceptance."""
    blackjax = require_library("blackjax")
    kernel = blackjax.adaptive_tempered_smc.build_kernel(
        *settings.densities(), *settings.moves(), blackjax.smc.resampling.systematic, settings.target_ess
    )
    after, info = kernel(key, state, settings.mcmc_steps, {"step_size": step_size[None]})
    return after, info.update_info.acceptance_rate.mean()


@partial(jax.jit, static_argnames=("settings",))
def _frozen(
    settings: FlowSMC, key: jax.Array, particles: jax.Array, schedule: jax.Array, step_sizes: jax.Array
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Run all stages; return the state, and of each stage the logarithm of the mean weight and the mean acceptance."""
    blackjax = require_library("blackjax")
    kernel = blackjax.tempered_smc.build_kernel(
        *settings.densities(), *settings.moves(), blackjax.smc.resampling.systematic
    )

    def stage(state: Any, planned: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        number, inverse_temperature, step_size = planned
        after, info = kernel(
            jax.random.fold_in(key, number),
            state,
            settings.mcmc_steps,
            inverse_temperature,
            {"step_size": step_size[None]},
        )
        return after, (info.log_likelihood_increment, info.update_info.acceptance_rate.mean())

    start = blackjax.tempered_smc.init(particles)._replace(tempering_param=jnp.zeros(()))
    return jax.lax.scan(stage, start, (jnp.arange(len(schedule)), schedule, step_sizes))


def flow_smc(theory: Theory, proposal: Proposal, seed: int, *, repeats: int = 8, **options: Any) -> SMCResult:
    """Run tempered SMC from a flow to a theory.

    Parameters
    ----------
    theory, proposal
        See `FlowSMC`.
    seed
        Seed of the whole.
    repeats
        Independent runs on the frozen schedule.
    **options
        Other parameters of `FlowSMC`.

    Returns
    -------
    ln Z with its error, and weighted samples.
    """
    return FlowSMC(theory, proposal, **options).run(seed, repeats)
