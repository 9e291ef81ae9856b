"""Local updates: sweeps of any kind as members of a cycle, and heat bath and Metropolis for Ising spins.

The neighbours of an even site are odd, so that all spins of one sublattice can be updated at once while the other one
stands still. With the local field a(x) = β (J Σ_μ [s(x+μ) + s(x−μ)] + h) a spin is flipped with probability

    heat bath: 1 / (1 + exp(2 s(x) a(x))),    Metropolis: ρ min(1, exp(−2 s(x) a(x))),   ρ = 0.9,

the first of which draws the spin afresh from p(s(x) | all others) = exp(s(x) a(x)) / (2 cosh a(x)). Each half of a sweep
leaves p = exp(−S)/Z invariant, and so does the sweep: even sites first, then odd ones.

Why Metropolis proposes only a fraction ρ of the flips: without a field, spins with a(x) = 0 are common. Proposed always,
they are flipped always, and where no spin of a configuration can stand still the whole lattice moves in lockstep. In two
dimensions, with extents that are multiples of four, diagonal stripes (s = + + − − along both axes) turn into shifted ones
for ever, and nothing else turns into them: the chain would not be ergodic, which shows on small lattices. With ρ < 1, as
in the heat bath, one sweep can lead from every configuration to every other one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flowmc.errors import ParameterError
from flowmc.kernels.base import FixedMember, HybridState, Updates
from flowmc.lattice import checkerboard
from flowmc.seeds import jax_key
from flowmc.theories import Ising, Theory

__all__ = ["LOCAL_RULES", "Checkerboard", "LocalInfo", "LocalKernel", "LocalRule", "LocalUpdates"]

# ρ: far enough from one that no chain gets stuck, near enough that Metropolis remains faster than the heat bath.
PROPOSED = 0.9


@dataclass(frozen=True)
class LocalRule:
    """How a spin is flipped, given what it costs.

    Parameters
    ----------
    proposed
        Probability with which the flip is proposed.
    accepted
        Maps the cost 2 s(x) a(x) to the probability with which a proposed flip is accepted.
    """

    proposed: float
    accepted: Callable[[jax.Array], jax.Array]


LOCAL_RULES: dict[str, LocalRule] = {
    "heat_bath": LocalRule(1.0, lambda cost: jax.nn.sigmoid(-cost)),
    "metropolis": LocalRule(PROPOSED, lambda cost: jnp.exp(jnp.minimum(0.0, -cost))),
}
"""Every local update by its name in run descriptions."""


class LocalInfo(NamedTuple):
    """Diagnostics of one sweep, each of shape (chains,)."""

    moved: jax.Array
    """Whether any number of the field differs from what it was before the sweep."""
    acceptance: jax.Array
    """Metropolis: accepted changes over proposed ones; heat bath: one, for it draws spins and rejects none."""


class LocalKernel(Protocol):
    """What `LocalUpdates` needs of a kernel, a frozen dataclass whose updates are sweeps over the lattice."""

    @property
    def theory(self) -> Theory:
        """The theory whose distribution the kernel keeps."""

    @property
    def rule(self) -> str:
        """Name of the kernel in run descriptions and in the ensemble's history."""

    def step(self, key: jax.Array, state: HybridState) -> tuple[HybridState, LocalInfo]:
        """Sweep once over every chain; leaves a valid action."""

    def describe(self) -> dict[str, Any]:
        """Return the kernel's parameters as plain data."""


@dataclass(frozen=True)
class Checkerboard:
    """A sweep over both sublattices as a pure kernel on a batch of chains.

    Parameters
    ----------
    theory
        The Ising model.
    rule
        "heat_bath" or "metropolis".

    Raises
    ------
    ParameterError
        If there is no rule of that name, the theory is not the Ising model, or an extent is odd.
    """

    theory: Ising
    rule: str

    def __post_init__(self) -> None:
        if self.rule not in LOCAL_RULES:
            raise ParameterError(
                got=f"a local update {self.rule!r}", expected=f"one of {sorted(LOCAL_RULES)}", fix="correct its name"
            )
        if not isinstance(self.theory, Ising):
            raise ParameterError(
                got=f"local updates ({self.rule}) for the theory {self.theory.name!r}",
                expected="the theory 'ising', whose spins have a known conditional probability",
                fix='choose another kernel, for example "hmc" for a continuous field',
            )
        if any(extent % 2 for extent in self.theory.shape):
            raise ParameterError(
                got=f"local updates ({self.rule}) on the lattice {self.theory.shape}",
                expected="even extents: around an odd one, neighbours lie on the same sublattice",
                fix='make the extents even, or choose the cluster updates "wolff" or "swendsen_wang"',
            )

    def flip_probability(self, field: jax.Array) -> jax.Array:
        """Return the probability that an update of the spin at x flips it, all other spins standing still.

        Parameters
        ----------
        field
            Spins, (chains, *shape).

        Returns
        -------
        Probabilities, (chains, *shape), float64; for Metropolis, of proposing the flip and accepting it.
        """
        rule = LOCAL_RULES[self.rule]
        return rule.proposed * rule.accepted(2 * field * self.theory.local_field(field))

    def step(self, key: jax.Array, state: HybridState) -> tuple[HybridState, LocalInfo]:
        """Sweep once over every chain.

        Parameters
        ----------
        key
            Typed JAX key of this sweep.
        state
            Needs nothing beside the field; leaves a valid `action`, and `force` and `log_q` go stale.
        """
        # A site is updated once in a sweep: one number each does for both sublattices.
        uniform = jax.random.uniform(key, state.field.shape, dtype=jnp.float64)

        def half(field: jax.Array, sublattice: jax.Array) -> tuple[jax.Array, None]:
            flips = sublattice & (uniform < self.flip_probability(field))
            return jnp.where(flips, -field, field), None

        # A loop, though it has two turns only: written out, XLA fuses the halves and draws the numbers again for every
        # neighbour that the second half looks at, which takes several times as long.
        even = checkerboard(self.theory.shape)
        field, _ = jax.lax.scan(half, state.field, jnp.asarray(np.stack([even, ~even])))

        axes = tuple(range(1, field.ndim))
        # Every site was visited once, so that the flips are the sites that differ.
        flipped = jnp.sum(field != state.field, axis=axes)
        if self.rule == "heat_bath":
            acceptance = jnp.ones(len(field))
        else:
            # The same number that decides on a flip proposes it. A sweep without a proposal has no test that failed.
            offered = jnp.sum(uniform < LOCAL_RULES[self.rule].proposed, axis=axes)
            acceptance = jnp.where(offered > 0, flipped / jnp.maximum(offered, 1), 1.0)
        moved = state._replace(field=field, action=self.theory.action(field))
        return moved, LocalInfo(flipped > 0, acceptance)

    def describe(self) -> dict[str, Any]:
        """Return nothing: the rules have no parameters."""
        return {}


@partial(jax.jit, static_argnames=("kernel", "n_sweeps"))
def _sweeps(
    kernel: LocalKernel, key: jax.Array, state: HybridState, n_sweeps: int
) -> tuple[HybridState, tuple[LocalInfo, jax.Array]]:
    def body(carry: HybridState, number: jax.Array) -> tuple[HybridState, tuple[LocalInfo, jax.Array]]:
        carry, info = kernel.step(jax.random.fold_in(key, number), carry)
        return carry, (info, carry.action)

    return jax.lax.scan(body, state, jnp.arange(n_sweeps))


@dataclass(frozen=True)
class LocalUpdates(FixedMember):
    """Local updates as a member of a cycle: ``n_updates`` sweeps over the lattice.

    In its `Updates`, ``accepted`` says whether anything in the chain changed in the sweep, and ``acceptance`` which
    fraction of Metropolis' proposed changes was accepted (one for the heat bath).

    Parameters
    ----------
    kernel
        The kernel, `Checkerboard` or another one that sweeps; its rule is the member's `kind`.
    seed
        Seed of the run; sweep i of cycle c uses the key (seed, kind, c, i).
    n_updates
        Sweeps in one cycle.

    Raises
    ------
    ParameterError
        If there is no sweep in a cycle.
    """

    kernel: LocalKernel
    seed: int
    n_updates: int

    needs = frozenset[str]()
    leaves = frozenset({"action"})

    def __post_init__(self) -> None:
        if self.n_updates < 1:
            raise ParameterError(
                got=f"{self.n_updates} sweeps per cycle", expected="at least one", fix="correct `n_updates`"
            )

    @property
    def kind(self) -> str:
        """The rule: "heat_bath" or "metropolis"."""
        return self.kernel.rule

    @property
    def theory(self) -> Theory:
        """The theory whose distribution the kernel keeps."""
        return self.kernel.theory

    def prepare(self, block: int, n_cycles: int, n_chains: int) -> None:
        """Prepare nothing: the random numbers of a sweep are drawn where they are used."""

    def run(self, cycle: int, index: int, state: HybridState, prepared: None) -> tuple[HybridState, Updates]:  # noqa: ARG002
        """Run the sweeps of one cycle."""
        key = jax_key(self.seed, self.kind, cycle)
        state, (info, action) = _sweeps(self.kernel, key, state, self.n_updates)
        acceptance = np.asarray(info.acceptance, dtype=np.float32)
        return state, Updates.plain(np.asarray(info.moved), np.asarray(action), acceptance)

    def describe(self) -> dict[str, Any]:
        """Return the kernel's parameters and the number of sweeps."""
        return {**self.kernel.describe(), "sweeps_per_cycle": self.n_updates}
