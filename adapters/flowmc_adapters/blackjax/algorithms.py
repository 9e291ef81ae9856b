"""Our kernels as algorithms of BlackJAX: for `run_inference_algorithm`, and as inner kernels of its SMC samplers.

Each is called as BlackJAX's own are, ``hmc(logdensity_fn, ...)`` returning a `blackjax.base.SamplingAlgorithm`, and has
the low-level ``init`` and ``build_kernel``. A position is one field (*field_shape); several chains are `jax.vmap`.

The accept test and the integrators are flowmc's own. A flow proposal y is accepted from x with probability
min(1, w(y)/w(x)), w = exp(logdensity − log q); log q of the state is kept beside it, from the pass that drew it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowmc.arrays import require_x64
from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.kernels import Phase, accept, log_ratio
from flowmc.kernels.hmc import check_integrator, trajectory
from flowmc.proposals import DeviceProposal, Proposal, on_device
from flowmc.theories import SPACES, RealSpace
from flowmc_adapters.base import require_library

__all__ = [
    "HMCAlgorithmInfo",
    "HMCAlgorithmState",
    "HybridAlgorithmInfo",
    "HybridAlgorithmState",
    "IndependenceAlgorithmInfo",
    "IndependenceAlgorithmState",
    "SamplingAPI",
    "hmc",
    "hybrid",
    "independence",
    "irmh",
]

LogDensity = Callable[[jax.Array], jax.Array]
Kernel = Callable[..., tuple[Any, Any]]


@dataclass(frozen=True)
class SamplingAPI:
    """What BlackJAX's ``GenerateSamplingAPI`` is: a factory of algorithms, with its low-level parts.

    Parameters
    ----------
    factory
        Makes a `blackjax.base.SamplingAlgorithm`.
    init
        Makes a state: ``init(position, logdensity_fn)``, with the proposal third where there is one.
    build_kernel
        Makes a kernel ``(key, state, logdensity_fn, ...) -> (state, info)``.
    """

    factory: Callable[..., Any]
    init: Callable[..., Any]
    build_kernel: Callable[..., Kernel]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return the algorithm; see the factory."""
        return self.factory(*arguments, **options)


class HMCAlgorithmState(NamedTuple):
    """State of one chain of `hmc`."""

    position: jax.Array
    logdensity: jax.Array
    logdensity_grad: jax.Array


class HMCAlgorithmInfo(NamedTuple):
    """Diagnostics of one trajectory, scalars."""

    acceptance_rate: jax.Array
    is_accepted: jax.Array
    delta_H: jax.Array


class IndependenceAlgorithmState(NamedTuple):
    """State of one chain of `independence`."""

    position: jax.Array
    logdensity: jax.Array
    log_q: jax.Array


class IndependenceAlgorithmInfo(NamedTuple):
    """Diagnostics of one flow proposal, scalars."""

    acceptance_rate: jax.Array
    is_accepted: jax.Array
    log_weight: jax.Array
    """logdensity − log q of the proposal, −inf where it is not finite."""
    log_weight_current: jax.Array
    """The same of the state before."""


class HybridAlgorithmState(NamedTuple):
    """State of one chain of `hybrid`."""

    position: jax.Array
    logdensity: jax.Array
    logdensity_grad: jax.Array
    log_q: jax.Array


class HybridAlgorithmInfo(NamedTuple):
    """Diagnostics of one step: those of the trajectories, (trajectories,), and of the flow proposals, (proposals,)."""

    acceptance_rate: jax.Array
    """Mean over trajectories and proposals, a scalar."""
    is_accepted: jax.Array
    """Whether any of them was accepted, a scalar."""
    hmc: HMCAlgorithmInfo
    flow: IndependenceAlgorithmInfo


def _hmc_init(position: jax.Array, logdensity_fn: LogDensity) -> HMCAlgorithmState:
    require_x64()
    return HMCAlgorithmState(position, *jax.value_and_grad(logdensity_fn)(position))


def _hmc_kernel(integrator: str = "minimum_norm") -> Kernel:
    check_integrator(integrator)

    def kernel(
        key: jax.Array,
        state: HMCAlgorithmState,
        logdensity_fn: LogDensity,
        step_size: jax.Array | float,
        num_integration_steps: jax.Array | int,
    ) -> tuple[HMCAlgorithmState, HMCAlgorithmInfo]:
        def force(fields: jax.Array) -> jax.Array:
            return jnp.asarray(jax.vmap(jax.grad(logdensity_fn))(fields))

        def potential(fields: jax.Array) -> jax.Array:
            return -jax.vmap(logdensity_fn)(fields)

        field, slope = state.position[None], state.logdensity_grad[None]
        end, end_potential, info = trajectory(
            key,
            RealSpace(),
            integrator,
            potential,
            force,
            Phase(field, jnp.zeros_like(field), slope),
            -state.logdensity[None],
            jnp.asarray(step_size),
            jnp.asarray(num_integration_steps),
        )
        reached = HMCAlgorithmState(end.field[0], -end_potential[0], end.force[0])
        accepted, delta = info.accepted[0], info.delta_H[0]
        rate = jnp.exp(jnp.minimum(0.0, jnp.where(jnp.isnan(delta), -jnp.inf, -delta)))
        return _chosen(accepted, reached, state), HMCAlgorithmInfo(rate, accepted, delta)

    return kernel


def _chosen(accepted: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda one, other: jnp.where(accepted, one, other), new, old)


def _hmc(
    logdensity_fn: LogDensity,
    step_size: float,
    num_integration_steps: int,
    *,
    integrator: str = "minimum_norm",
) -> Any:
    return require_library("blackjax").base.build_sampling_algorithm(
        _hmc_kernel(integrator), _hmc_init, logdensity_fn, kernel_args=(step_size, num_integration_steps)
    )


hmc = SamplingAPI(_hmc, _hmc_init, _hmc_kernel)
"""``hmc(logdensity_fn, step_size, num_integration_steps, *, integrator="minimum_norm")``: hybrid Monte Carlo of real
fields with unit masses and an integrator of `flowmc.kernels.INTEGRATORS`; ``init(position, logdensity_fn)``,
``build_kernel(integrator)``."""


def _log_prob(device: DeviceProposal, position: jax.Array) -> jax.Array:
    if tuple(jnp.shape(position)) != tuple(device.metadata.event_shape):
        raise LatticeMismatchError(
            got=f"a position of shape {tuple(jnp.shape(position))}",
            expected=f"{tuple(device.metadata.event_shape)}, one field of the flow",
            fix="start from a field of this lattice, or use a flow that was built for it",
        )
    return device.device_log_prob(jnp.asarray(position)[None])[0]


def _independence_init(
    position: jax.Array, logdensity_fn: LogDensity, proposal: Proposal
) -> IndependenceAlgorithmState:
    require_x64()
    return IndependenceAlgorithmState(
        position, jnp.asarray(logdensity_fn(position)), _log_prob(on_device(proposal), position)
    )


def _offered(
    key: jax.Array, state: IndependenceAlgorithmState, logdensity_fn: LogDensity, device: DeviceProposal, n: int
) -> tuple[IndependenceAlgorithmState, IndependenceAlgorithmInfo]:
    """Offer a chain ``n`` fresh proposals, one after the other; the Info has a leading axis (n,)."""
    space = SPACES[device.metadata.space]
    draw_key, accept_key = jax.random.split(key)
    fields, log_q = device.device_sample(draw_key, n)
    logdensity = jax.vmap(logdensity_fn)(fields)
    usable = space.contains(fields.reshape(n, -1)) & jnp.isfinite(logdensity) & jnp.isfinite(log_q)
    log_weight = jnp.where(usable, logdensity - log_q, -jnp.inf)
    log_u = jnp.log(jax.random.uniform(accept_key, (n,), dtype=jnp.float64))

    def offer(
        carry: IndependenceAlgorithmState, offered: tuple[IndependenceAlgorithmState, jax.Array, jax.Array]
    ) -> tuple[IndependenceAlgorithmState, IndependenceAlgorithmInfo]:
        new, weight, log_uniform = offered
        current = carry.logdensity - carry.log_q
        log_alpha = log_ratio(weight, current)
        accepted = accept(log_alpha, log_uniform)
        info = IndependenceAlgorithmInfo(jnp.exp(jnp.minimum(0.0, log_alpha)), accepted, weight, current)
        return _chosen(accepted, new, carry), info

    block = IndependenceAlgorithmState(fields.astype(state.position.dtype), logdensity, log_q)
    after, info = jax.lax.scan(offer, state, (block, log_weight, log_u))
    return after, info


def _independence_kernel(proposal: Proposal) -> Kernel:
    device = on_device(proposal)

    def kernel(
        key: jax.Array, state: IndependenceAlgorithmState, logdensity_fn: LogDensity
    ) -> tuple[IndependenceAlgorithmState, IndependenceAlgorithmInfo]:
        after, info = _offered(key, state, logdensity_fn, device, 1)
        return after, jax.tree.map(lambda column: column[0], info)

    return kernel


def _independence(logdensity_fn: LogDensity, proposal: Proposal) -> Any:
    return require_library("blackjax").base.build_sampling_algorithm(
        _independence_kernel(proposal), _independence_init, logdensity_fn, init_args=(proposal,)
    )


independence = SamplingAPI(_independence, _independence_init, _independence_kernel)
"""``independence(logdensity_fn, proposal)``: independence Metropolis with a flow, any `flowmc.proposals.Proposal`, one
proposal a step; ``init(position, logdensity_fn, proposal)``, ``build_kernel(proposal)``."""


def _hybrid_init(position: jax.Array, logdensity_fn: LogDensity, proposal: Proposal) -> HybridAlgorithmState:
    state = _hmc_init(position, logdensity_fn)
    return HybridAlgorithmState(*state, log_q=_log_prob(on_device(proposal), position))


def _hybrid_kernel(
    proposal: Proposal, *, trajectories: int = 1, proposals: int = 4, integrator: str = "minimum_norm"
) -> Kernel:
    device = on_device(proposal)
    if trajectories < 1 or proposals < 1:
        raise ParameterError(
            got=f"trajectories = {trajectories}, proposals = {proposals}",
            expected="at least one of each in a step",
            fix="take `hmc` or `independence` for one of them alone",
        )
    if proposal.metadata.space != "real":
        raise ParameterError(
            got=f"a flow of {proposal.metadata.space} fields for a hybrid with HMC of real ones",
            expected="a flow of real fields",
            fix="take `independence`, or a cycle of flowmc's own",
        )
    move = _hmc_kernel(integrator)

    def kernel(
        key: jax.Array,
        state: HybridAlgorithmState,
        logdensity_fn: LogDensity,
        step_size: jax.Array | float,
        num_integration_steps: jax.Array | int,
    ) -> tuple[HybridAlgorithmState, HybridAlgorithmInfo]:
        hmc_key, flow_key = jax.random.split(key)

        def run(carry: HMCAlgorithmState, number: jax.Array) -> tuple[HMCAlgorithmState, HMCAlgorithmInfo]:
            return move(jax.random.fold_in(hmc_key, number), carry, logdensity_fn, step_size, num_integration_steps)

        start = HMCAlgorithmState(state.position, state.logdensity, state.logdensity_grad)
        moved, trajectory_info = jax.lax.scan(run, start, jnp.arange(trajectories))
        # A chain that did not move keeps the log q of the pass that drew it.
        stays = jnp.all(moved.position == state.position)
        log_q = jnp.where(stays, state.log_q, _log_prob(device, moved.position))
        before = IndependenceAlgorithmState(moved.position, moved.logdensity, log_q)
        after, flow_info = _offered(flow_key, before, logdensity_fn, device, proposals)
        kept = ~jnp.any(flow_info.is_accepted)
        slope = jnp.where(kept, moved.logdensity_grad, jax.grad(logdensity_fn)(after.position))
        rates = jnp.concatenate([trajectory_info.acceptance_rate, flow_info.acceptance_rate])
        any_accepted = jnp.any(trajectory_info.is_accepted) | ~kept
        info = HybridAlgorithmInfo(rates.mean(), any_accepted, trajectory_info, flow_info)
        return HybridAlgorithmState(after.position, after.logdensity, slope, after.log_q), info

    return kernel


def _hybrid(
    logdensity_fn: LogDensity,
    proposal: Proposal,
    step_size: float,
    num_integration_steps: int,
    *,
    trajectories: int = 1,
    proposals: int = 4,
    integrator: str = "minimum_norm",
) -> Any:
    kernel = _hybrid_kernel(proposal, trajectories=trajectories, proposals=proposals, integrator=integrator)
    return require_library("blackjax").base.build_sampling_algorithm(
        kernel, _hybrid_init, logdensity_fn, init_args=(proposal,), kernel_args=(step_size, num_integration_steps)
    )


hybrid = SamplingAPI(_hybrid, _hybrid_init, _hybrid_kernel)
"""``hybrid(logdensity_fn, proposal, step_size, num_integration_steps, *, trajectories=1, proposals=4,
integrator="minimum_norm")``: in each step HMC trajectories, then flow proposals; ``init(position, logdensity_fn,
proposal)``, ``build_kernel(proposal, ...)``."""


def irmh(logdensity_fn: LogDensity, proposal: Proposal) -> Any:
    """Return BlackJAX's own independence Metropolis with a flow as its proposal.

    `blackjax.irmh` asks for the density of a *transition between states*: called as ``(new, previous)`` it must return
    the density of drawing ``previous``, log q(previous.position). Without it, or with log q(new.position), BlackJAX
    samples another distribution without a word. It evaluates log q twice a step; `independence` does so only once.

    Parameters
    ----------
    logdensity_fn
        log p of one field up to a constant.
    proposal
        The flow.
    """
    require_x64()
    device = on_device(proposal)

    def draw(key: jax.Array) -> jax.Array:
        return device.device_sample(key, 1)[0][0]

    def density(new: Any, previous: Any) -> jax.Array:  # noqa: ARG001
        return _log_prob(device, previous.position)

    return require_library("blackjax").irmh(logdensity_fn, draw, density)
