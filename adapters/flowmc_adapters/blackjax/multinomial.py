"""Multinomial hybrid Monte Carlo that keeps its distribution: what BlackJAX's own forward trajectory does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flowmc_adapters.base import require_library

__all__ = ["multinomial_proposal"]


def multinomial_proposal(
    integrator: Callable[..., Any],
    kinetic_energy: Callable[..., Any],
    step_size: Any,
    num_integration_steps: Any = 1,
    divergence_threshold: float = 1000,
) -> Callable[[jax.Array, Any], tuple[Any, Any, None]]:
    """Return the transition of multinomial HMC, for `blackjax.hmc.build_kernel(build_proposal=...)`.

    The trajectory of L + 1 points has the current state at a uniformly random place; one of its points is picked with
    probability exp(−H)/Σ exp(−H). Seen from any of its points the trajectory is as likely, so that p is kept exactly. A
    point whose energy is no number is never picked.

    Parameters
    ----------
    integrator, kinetic_energy
        BlackJAX's integrator of one step, and the kinetic energy.
    step_size, num_integration_steps
        Step of the trajectory, and their number L.
    divergence_threshold
        Energy violation above which the Info speaks of a divergence.

    References
    ----------
    .. [1] Betancourt, arXiv:1701.02434, appendix A.2.
    """
    mcmc = require_library("blackjax").mcmc
    energy_of = mcmc.trajectory.hmc_energy(kinetic_energy)
    _, weighed = mcmc.proposal.proposal_generator(energy_of)

    def generate(key: jax.Array, start: Any) -> tuple[Any, Any, None]:
        place_key, pick_key = jax.random.split(key)
        behind = jax.random.randint(place_key, (), 0, num_integration_steps + 1)
        energy = energy_of(start)

        def step(number: jax.Array, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            current, picked, diverged = carry
            # Backwards in time first; then forwards, again from the current state.
            current = jax.tree.map(lambda first, now: jnp.where(number == behind, first, now), start, current)
            current = integrator(current, jnp.where(number < behind, -step_size, step_size))
            offered = weighed(energy, current)
            diverged = diverged | (-offered.weight > divergence_threshold)
            picked = mcmc.proposal.progressive_uniform_sampling(jax.random.fold_in(pick_key, number), picked, offered)
            return current, picked, diverged

        first = mcmc.proposal.Proposal(start, energy, 0.0, -jnp.inf)
        _, picked, diverged = jax.lax.fori_loop(0, num_integration_steps, step, (start, first, False))
        info = mcmc.hmc.HMCInfo(
            momentum=start.momentum,
            acceptance_rate=jnp.exp(picked.sum_log_p_accept) / num_integration_steps,
            is_accepted=True,
            is_divergent=diverged,
            energy=picked.energy,
            proposal=picked.state,
            num_integration_steps=num_integration_steps,
        )
        return picked.state, info, None

    return generate
