"""The one place where a proposal is accepted or rejected.

Metropolis-Hastings: accept if log u < log α with u uniform on [0, 1). A ratio that is not a number rejects, so that a
diverged trajectory or a broken proposal can never enter a chain.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["accept", "log_ratio"]


def log_ratio(proposed: jax.Array, current: jax.Array) -> jax.Array:
    """Return the log acceptance ratio ``proposed − current``, −inf where that is not a number.

    Parameters
    ----------
    proposed
        Log weight (or −H) of the proposed states, any shape; −inf for an impossible state.
    current
        The same of the current states; +inf where the proposal density vanishes, which rejects.
    """
    difference = proposed - current
    return jnp.where(jnp.isnan(difference), -jnp.inf, difference)


def accept(log_alpha: jax.Array, log_u: jax.Array) -> jax.Array:
    """Return whether to accept, given log α and the logarithm of uniform numbers on [0, 1)."""
    return log_u < log_alpha
