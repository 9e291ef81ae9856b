"""Symplectic integrators of Hamilton's equations, batch first, with the force carried along.

Both are second order, reversible and preserve phase-space volume; the force at the end of one step is that at the start
of the next, so that leapfrog costs one and the minimum-norm scheme two force evaluations a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax

from flowmc.theories.spaces import ContinuousSpace

__all__ = ["INTEGRATORS", "Integrator", "Phase", "leapfrog", "minimum_norm"]

# Minimises the leading error's norm: Omelyan, Mryglod, Folk, Comput. Phys. Commun. 151 (2003) 272.
OMELYAN = 0.1931833275037836


class Phase(NamedTuple):
    """A point in phase space with the force there; arrays (chains, *field_shape)."""

    field: jax.Array
    momentum: jax.Array
    force: jax.Array


Force = Callable[[jax.Array], jax.Array]


class Integrator(Protocol):
    """Integrate for ``n_steps`` steps of fictitious time ``step_size``; the momentum is not flipped at the end."""

    def __call__(
        self, space: ContinuousSpace, force: Force, phase: Phase, step_size: jax.Array, n_steps: jax.Array
    ) -> Phase:
        """Return the end point."""


def leapfrog(space: ContinuousSpace, force: Force, phase: Phase, step_size: jax.Array, n_steps: jax.Array) -> Phase:
    """Integrate with the leapfrog (velocity Verlet) scheme: kick ½, drift 1, kick ½.

    Parameters
    ----------
    space
        The field's manifold, which knows how to drift.
    force
        Maps fields (chains, *field_shape) to −∂S/∂φ, same shape.
    phase
        Starting point; its force must be that of its field.
    step_size
        Molecular-dynamics step ε, dimensionless.
    n_steps
        Number of steps.

    References
    ----------
    .. [1] Duane, Kennedy, Pendleton, Roweth, Phys. Lett. B 195 (1987) 216.
    """

    def step(_: int, point: Phase) -> Phase:
        momentum = point.momentum + 0.5 * step_size * point.force
        field = space.drift(point.field, momentum, step_size)
        kick = force(field)
        return Phase(field, momentum + 0.5 * step_size * kick, kick)

    end: Phase = jax.lax.fori_loop(0, n_steps, step, phase)
    return end


def minimum_norm(space: ContinuousSpace, force: Force, phase: Phase, step_size: jax.Array, n_steps: jax.Array) -> Phase:
    """Integrate with the second-order minimum-norm scheme: kick ξ, drift ½, kick 1 − 2ξ, drift ½, kick ξ.

    At equal cost its energy violation is about a third of leapfrog's. Parameters as in `leapfrog`.

    References
    ----------
    .. [1] Omelyan, Mryglod, Folk, Comput. Phys. Commun. 151 (2003) 272.
    .. [2] Takaishi, de Forcrand, Phys. Rev. E 73 (2006) 036706.
    """

    def step(_: int, point: Phase) -> Phase:
        momentum = point.momentum + OMELYAN * step_size * point.force
        field = space.drift(point.field, momentum, 0.5 * step_size)
        momentum = momentum + (1 - 2 * OMELYAN) * step_size * force(field)
        field = space.drift(field, momentum, 0.5 * step_size)
        kick = force(field)
        return Phase(field, momentum + OMELYAN * step_size * kick, kick)

    end: Phase = jax.lax.fori_loop(0, n_steps, step, phase)
    return end


INTEGRATORS: dict[str, Integrator] = {"leapfrog": leapfrog, "minimum_norm": minimum_norm}
"""Every integrator by its name in run descriptions."""
