"""Independence Metropolis with pre-drawn proposals: a scan over weights that returns indices.

With log w = −S − log q, a proposal y is accepted from x with probability min(1, w(y)/w(x)) (Tierney, Ann. Stat. 22
(1994) 1701; in lattice field theory Albergo et al., arXiv:1904.12072). Since y does not depend on x, fields
stay out of the sequential loop: it carries one number a chain, and fields are gathered once at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import check_field, require_x64
from flowmc.errors import LatticeMismatchError, NonFiniteError, ParameterError, TheoryMismatchError
from flowmc.kernels.accept import accept, log_ratio
from flowmc.kernels.base import FixedMember, HybridState, Updates
from flowmc.proposals import Proposal
from flowmc.seeds import fold, numpy_generator
from flowmc.theories import Theory

__all__ = ["FlowProposals", "Independence", "IndependenceInfo", "Proposals"]


class Proposals(NamedTuple):
    """Pre-drawn proposals for all chains, leading axes (k, chains); each is used once."""

    field: jax.Array
    """(k, chains, *field_shape), in the type of the theory's space."""
    action: jax.Array
    """(k, chains), float64."""
    log_q: jax.Array
    """(k, chains), float64."""
    log_weight: jax.Array
    """(k, chains), float64: −S − log q, −inf where that is not finite or the field is outside its space."""
    log_u: jax.Array
    """(k, chains), float64: logarithms of uniform numbers on [0, 1)."""


class IndependenceInfo(NamedTuple):
    """Diagnostics of ``k`` proposals, each of shape (k, chains)."""

    accepted: jax.Array
    action: jax.Array
    """S after the proposal."""
    log_weight_current: jax.Array
    """log w of the state before the proposal."""


@dataclass(frozen=True)
class Independence:
    """Independence Metropolis as a pure kernel on a batch of chains.

    Parameters
    ----------
    theory
        The theory, whose action weighs the proposals.
    """

    theory: Theory

    def weigh(self, field: jax.Array, log_q: jax.Array, log_u: jax.Array) -> Proposals:
        """Compute action and log weight of drawn fields.

        Parameters
        ----------
        field
            (k, chains, *field_shape), in the type of the theory's space.
        log_q
            (k, chains), float64.
        log_u
            (k, chains), float64.
        """
        lattice = self.theory.field_shape
        flat = field.reshape(-1, *lattice)
        action = self.theory.action(flat).reshape(log_q.shape)
        inside = self.theory.space.contains(field.reshape(*log_q.shape, -1))
        usable = inside & jnp.isfinite(action) & jnp.isfinite(log_q)
        log_weight = jnp.where(usable, -action - log_q, -jnp.inf)
        return Proposals(field, action, log_q, log_weight, log_u)

    def step(self, state: HybridState, proposals: Proposals) -> tuple[HybridState, IndependenceInfo]:
        """Offer every chain its ``k`` proposals, one after the other.

        Parameters
        ----------
        state
            Needs valid `action` and `log_q`, and leaves them so; `force` goes stale. log q = −inf is legal (another
            kernel went where the flow cannot): its weight is +inf and every proposal is rejected.
        proposals
            The block; its uniform numbers make the step deterministic, so there is no key.
        """
        current = -state.action - state.log_q

        def offer(
            carry: tuple[jax.Array, jax.Array], offered: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
            weight, index = carry
            number, proposed, log_u = offered
            accepted = accept(log_ratio(proposed, weight), log_u)
            after = (jnp.where(accepted, proposed, weight), jnp.where(accepted, number, index))
            return after, (accepted, after[1], weight)

        k, chains = proposals.log_weight.shape
        start = (current, jnp.full(chains, -1))
        (_, last), (accepted, indices, before) = jax.lax.scan(
            offer, start, (jnp.arange(k), proposals.log_weight, proposals.log_u)
        )
        chain = jnp.arange(chains)
        moved = last >= 0

        def gather(block: jax.Array, old: jax.Array) -> jax.Array:
            wide = moved.reshape(-1, *[1] * (old.ndim - 1))
            return jnp.where(wide, block[jnp.maximum(last, 0), chain], old)

        state_after = HybridState(
            gather(proposals.field, state.field),
            gather(proposals.action, state.action),
            state.force,
            gather(proposals.log_q, state.log_q),
        )
        picked = proposals.action[jnp.maximum(indices, 0), chain]
        action = jnp.where(indices >= 0, picked, state.action)
        return state_after, IndependenceInfo(accepted, action, before)


@partial(jax.jit, static_argnames=("kernel",))
def _weigh(kernel: Independence, field: jax.Array, log_q: jax.Array, log_u: jax.Array) -> Proposals:
    return kernel.weigh(field, log_q, log_u)


@partial(jax.jit, static_argnames=("kernel", "k"))
def _offer(
    kernel: Independence, state: HybridState, block: Proposals, first: jax.Array, k: int
) -> tuple[HybridState, IndependenceInfo]:
    proposals = Proposals(*(jax.lax.dynamic_slice_in_dim(part, first, k) for part in block))
    return kernel.step(state, proposals)


@dataclass(frozen=True)
class FlowProposals(FixedMember):
    """Independence Metropolis as a member of a cycle: ``n_updates`` proposals of a flow for every chain.

    The proposals of block b are batch number b of the run, drawn at once before the block starts; what a batch holds
    depends on the seed and its number alone.

    Parameters
    ----------
    kernel
        The kernel.
    proposal
        The certified proposal.
    seed
        Seed of the run.
    n_updates
        Proposals for every chain in one cycle.

    Raises
    ------
    ParameterError
        If there is no proposal in a cycle.
    LatticeMismatchError, TheoryMismatchError
        If proposal and theory live on different lattices, or in different spaces.
    """

    kernel: Independence
    proposal: Proposal
    seed: int
    n_updates: int

    kind = "flow"
    needs = frozenset({"action", "log_q"})
    leaves = frozenset({"action", "log_q"})

    def __post_init__(self) -> None:
        if self.n_updates < 1:
            raise ParameterError(
                got=f"{self.n_updates} proposals per cycle", expected="at least one", fix="correct `flow_proposals`"
            )
        theory = self.kernel.theory
        if self.proposal.metadata.space != theory.space.name:
            raise TheoryMismatchError(
                got=f"a proposal of {self.proposal.metadata.space} fields",
                expected=f"{theory.space.name} fields, those of {theory}",
                fix="use a flow that was built for this theory",
            )
        event, lattice = self.proposal.metadata.event_shape, theory.field_shape
        if tuple(event) != tuple(lattice):
            raise LatticeMismatchError(
                got=f"a proposal for fields of shape {tuple(event)}",
                expected=f"{tuple(lattice)}, the field of {theory}",
                fix="use a flow that was built for this lattice",
            )

    @property
    def theory(self) -> Theory:
        """The theory whose distribution the kernel keeps."""
        return self.kernel.theory

    def prepare(self, block: int, n_cycles: int, n_chains: int) -> Proposals:
        """Draw and weigh the proposals of a block: leading axes (n_cycles × n_updates, chains)."""
        require_x64()
        k = n_cycles * self.n_updates
        field, log_q = self.proposal.sample(fold(self.seed, "proposal", block), k * n_chains)
        check_field(field, self.kernel.theory.field_shape, "proposal")
        space = self.kernel.theory.space
        # Before the cast, which would make a field of what is none: log q would be that of another one.
        log_q = np.where(space.contains(field.reshape(len(field), -1)), log_q, np.nan)
        uniform = numpy_generator(self.seed, "accept", block).random((k, n_chains))
        with np.errstate(divide="ignore"):
            log_u = np.log(uniform)
        weighed: Proposals = _weigh(
            self.kernel,
            jnp.asarray(field.astype(space.dtype).reshape(k, n_chains, *field.shape[1:])),
            jnp.asarray(log_q.reshape(k, n_chains)),
            jnp.asarray(log_u),
        )
        return weighed

    def run(self, cycle: int, index: int, state: HybridState, prepared: Proposals) -> tuple[HybridState, Updates]:  # noqa: ARG002
        """Offer the proposals of one cycle."""
        state, info = _offer(self.kernel, state, prepared, np.int64(index * self.n_updates), self.n_updates)
        mine = slice(index * self.n_updates, (index + 1) * self.n_updates)
        accepted = np.asarray(info.accepted)
        return state, Updates.plain(accepted, np.asarray(info.action))._replace(
            log_weight=np.asarray(prepared.log_weight[mine]),
            log_weight_current=np.asarray(info.log_weight_current),
            action_proposed=np.asarray(prepared.action[mine]),
        )

    def log_prob(self, field: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return log q at states that another kernel moved, (chains,); −inf is legal there.

        Raises
        ------
        NonFiniteError
            If log q is NaN or +inf.
        """
        log_q = np.asarray(self.proposal.log_prob(field), dtype=np.float64)
        bad = np.isnan(log_q) | np.isposinf(log_q)
        if bad.any():
            raise NonFiniteError(
                got=f"log q = {log_q[bad][0]} at the current state of {int(bad.sum())} of {log_q.size} chains",
                expected="a number, or -inf where the flow's density vanishes",
                fix="certify the flow; its inverse pass breaks down on these configurations (a continuous flow may "
                "need more `steps`)",
            )
        return log_q

    def describe(self) -> dict[str, Any]:
        """Return the flow's fingerprint and the number of proposals."""
        return {"flow_sha256": self.proposal.metadata.fingerprint, "proposals_per_cycle": self.n_updates}
