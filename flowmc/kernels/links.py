"""Local Metropolis updates of U(1) links.

A link is in two plaquettes. Those of one direction whose coordinates across it have one parity share none, so that all of
them can be updated at once while the others stand still: a sweep has four parts, two directions with two parities each,
and the extents must be even. A link is proposed to move by an angle that is uniform on [−w, w), and does so with
probability min(1, exp(−ΔS)). Each part leaves p = exp(−S)/Z invariant, and so does the sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, pi, sqrt
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flowmc.errors import ParameterError
from flowmc.kernels.base import HybridState
from flowmc.kernels.local import LocalInfo
from flowmc.theories import U1Gauge2D
from flowmc.theories.spaces import wrapped
from flowmc.theories.u1 import plaquette_angles

__all__ = ["LinkMetropolis"]

# The default width is this over sqrt(beta), and π at most: it accepts 0.54 of the moves at β = 2 and 0.49 at β = 20;
# at β = 1 and below, where every move is likely, more.
WIDTH = 2.2


@dataclass(frozen=True)
class LinkMetropolis:
    """A Metropolis sweep over the links as a pure kernel on a batch of chains.

    Parameters
    ----------
    theory
        U(1) gauge theory without fermions, on even extents.
    width
        Largest angle of a proposed move, in radians; by default one for which about half of the moves are accepted.

    Raises
    ------
    ParameterError
        If the theory is another one, an extent is odd or the width is not in (0, π].
    """

    theory: U1Gauge2D
    width: float = 0.0

    rule: ClassVar[str] = "metropolis"

    def __post_init__(self) -> None:
        if not isinstance(self.theory, U1Gauge2D):
            raise ParameterError(
                got=f"local updates of links (metropolis) for the theory {self.theory.name!r}",
                expected="the theory 'u1', whose action is local; a determinant is not",
                fix='choose the kernel "hmc" or, for two flavours, "pseudofermion_hmc"',
            )
        if any(extent % 2 for extent in self.theory.shape):
            raise ParameterError(
                got=f"local updates of links (metropolis) on the lattice {self.theory.shape}",
                expected="even extents: around an odd one, links that share a plaquette have one parity",
                fix='make the extents even, or choose the kernel "hmc"',
            )
        if not self.width:
            object.__setattr__(self, "width", min(pi, WIDTH / sqrt(self.theory.beta)))
        if not (isfinite(self.width) and 0 < self.width <= pi):
            raise ParameterError(
                got=f"width = {self.width}", expected="an angle in (0, pi]", fix="correct `width`, or leave it out"
            )

    def action_change(self, field: jax.Array, move: jax.Array) -> jax.Array:
        """Return ΔS of moving each link alone by an angle; shapes (chains, T, X, 2)."""
        plaquette = plaquette_angles(field)
        # As in `link_gradient`: a time link turns the plaquette at x forward and that at x − 1 back.
        turns = [
            (plaquette, move[..., 0], jnp.roll(plaquette, 1, axis=-1)),
            (plaquette, -move[..., 1], jnp.roll(plaquette, 1, axis=-2)),
        ]
        changes = [
            jnp.cos(one) - jnp.cos(one + turn) + jnp.cos(other) - jnp.cos(other - turn) for one, turn, other in turns
        ]
        return self.theory.beta * jnp.stack(changes, axis=-1)

    def step(self, key: jax.Array, state: HybridState) -> tuple[HybridState, LocalInfo]:
        """Sweep once over every chain.

        Parameters
        ----------
        key
            Typed JAX key of this sweep.
        state
            Needs nothing beside the field; leaves a valid `action`, and `force` and `log_q` go stale.
        """
        # A link is updated once in a sweep: one pair of numbers each does for all parts.
        move_key, accept_key = jax.random.split(key)
        shape = state.field.shape
        move = self.width * jax.random.uniform(move_key, shape, dtype=jnp.float64, minval=-1.0, maxval=1.0)
        uniform = jax.random.uniform(accept_key, shape, dtype=jnp.float64)

        def part(carry: tuple[jax.Array, jax.Array], links: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            field, accepted = carry
            moves = links & (uniform < jnp.exp(jnp.minimum(0.0, -self.action_change(field, move))))
            return (jnp.where(moves, wrapped(field + move), field), accepted | moves), None

        start = (state.field, jnp.zeros(shape, bool))
        (field, accepted), _ = jax.lax.scan(part, start, jnp.asarray(link_parts(self.theory.shape)))
        acceptance = jnp.mean(accepted, axis=(1, 2, 3), dtype=jnp.float64)
        return state._replace(field=field, action=self.theory.action(field)), LocalInfo(acceptance > 0, acceptance)

    def describe(self) -> dict[str, Any]:
        """Return the width of the moves."""
        return {"width": self.width}


def link_parts(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the masks of links that are updated together, (4, T, X, 2): by direction and parity across it."""
    across = np.stack([np.indices(shape)[1], np.indices(shape)[0]], axis=-1)
    return np.stack([(across % 2 == parity) & (np.arange(2) == direction) for direction in (0, 1) for parity in (0, 1)])
