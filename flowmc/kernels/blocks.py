"""Block moves: the inside of every block of a hierarchical flow is proposed anew, given the spins around it.

A flow that draws an autoregressive hierarchy knows the exact probability q(s_B | ∂B) of the inside of a block, given the
spins around it. Drawn from it, a new inside is accepted with probability

    min(1, exp(−ΔS_B) q(s_B | ∂B) / q(s'_B | ∂B)),

a Metropolis-Hastings test that involves one block alone. Blocks of a level do not interact, given the spins between them,
so that all of them move at once, each with its own test: the acceptance depends on the size of a block and not on that of
the lattice. The spins between blocks stand still; every update first shifts the lattice by a random translation, and
back after it, without which they would never move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.kernels.base import FixedMember, HybridState, Updates, batch_action
from flowmc.proposals import BlockProposal
from flowmc.seeds import fold, numpy_generator
from flowmc.theories import Ising

__all__ = ["BlockMoves", "block_actions"]


def block_actions(theory: Ising, field: NDArray[np.int8], side: int) -> NDArray[np.float64]:
    """Return the part of the action that involves the inside of each block, (n, cells, cells).

    Parameters
    ----------
    theory
        The Ising model on a square lattice.
    field
        Spins (n, L, L).
    side
        Side of the blocks; cell (a, b) has its corner at ((side + 1) a, (side + 1) b), its block is strictly inside.
    """
    period = side + 1
    cells = field.shape[1] // period
    split = (len(field), cells, period, cells, period)
    inside = slice(1, None)
    links = [(field * np.roll(field, -1, axis)).reshape(split) for axis in (1, 2)]
    # A link belongs to the site at its upper or left end: those that enter the block begin on its border.
    down = links[0][:, :, :, :, inside].sum((2, 4), dtype=np.int64)
    right = links[1][:, :, inside].sum((2, 4), dtype=np.int64)
    spins = field.reshape(split)[:, :, inside, :, inside].sum((2, 4), dtype=np.int64)
    actions: NDArray[np.float64] = -theory.beta * (theory.coupling * (down + right) + theory.field * spins)
    return actions


@dataclass(frozen=True)
class BlockMoves(FixedMember):
    """Block moves as a member of a cycle: one update offers a new inside to all blocks of one side.

    Parameters
    ----------
    theory
        The Ising model.
    proposal
        The certified proposal.
    seed
        Seed of the run.
    n_updates
        Updates in one cycle.
    side
        Side of the blocks; 0 stands for the largest.

    Raises
    ------
    ParameterError
        If the proposal has no blocks, or none of that side, or no update is asked for.
    LatticeMismatchError
        If proposal and theory live on different lattices.
    """

    theory: Ising
    proposal: BlockProposal
    seed: int
    n_updates: int
    side: int = 0

    kind = "blocks"
    needs = frozenset({"action"})
    leaves = frozenset({"action"})

    def __post_init__(self) -> None:
        if not isinstance(self.theory, Ising):
            raise ParameterError(
                got=f"block moves for the theory {self.theory.name!r}",
                expected="the Ising model",
                fix="choose another kernel, for example HMC for a continuous field",
            )
        if not isinstance(self.proposal, BlockProposal):
            raise ParameterError(
                got="block moves with a flow that has no blocks",
                expected='a hierarchical flow: kind = "hierarchical"',
                fix='change `kind` in [flow], or take "blocks" out of `kernel`',
            )
        event = self.proposal.metadata.event_shape
        if tuple(event) != self.theory.shape:
            raise LatticeMismatchError(
                got=f"block moves with a flow for fields of shape {tuple(event)}",
                expected=f"{self.theory.shape}, the field of {self.theory}",
                fix="use a flow that was built for this lattice",
            )
        sides = self.proposal.block_sides
        if self.side == 0:
            object.__setattr__(self, "side", sides[0])
        if self.side not in sides or self.n_updates < 1:
            raise ParameterError(
                got=f"{self.n_updates} block moves per cycle, of blocks of side {self.side}",
                expected=f"one or more, of a side among {list(sides)}",
                fix="correct `block_moves` or `block_side`",
            )

    def prepare(self, block: int, n_cycles: int, n_chains: int) -> None:
        """Prepare nothing: block moves depend on the state."""

    def run(self, cycle: int, index: int, state: HybridState, prepared: None) -> tuple[HybridState, Updates]:  # noqa: ARG002
        """Offer new insides to all blocks, as often as the cycle asks for."""
        field, action = np.asarray(state.field), np.asarray(state.action)
        accepted, fractions, actions = [], [], []
        for number in range(self.n_updates):
            field, change, passed = self._update(field, cycle, number)
            action = action + change
            accepted.append(passed.any((1, 2)))
            fractions.append(passed.mean((1, 2), dtype=np.float32))
            actions.append(action)
        # Afresh, so that rounding does not add up from update to update.
        actions[-1] = np.asarray(batch_action(self.theory, field))
        state = state._replace(field=jnp.asarray(field), action=jnp.asarray(actions[-1]))
        return state, Updates.plain(np.stack(accepted), np.stack(actions), np.stack(fractions))

    def _update(
        self, field: NDArray[np.int8], cycle: int, number: int
    ) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.bool_]]:
        generator = numpy_generator(self.seed, self.kind, cycle, number)
        shift = generator.integers(field.shape[1], size=(2, len(field)))
        old = _shifted(field, shift)
        new, log_new, log_old = self.proposal.resample_blocks(old, self.side, fold(self.seed, "inside", cycle, number))
        change = block_actions(self.theory, new, self.side) - block_actions(self.theory, old, self.side)
        with np.errstate(divide="ignore", invalid="ignore"):
            # A ratio that is not a number compares false, and so rejects.
            passed = np.log(generator.random(change.shape)) < -change + log_old - log_new
        period = self.side + 1
        moved = np.where(passed.repeat(period, 1).repeat(period, 2), new, old)
        return _shifted(moved, -shift), np.where(passed, change, 0.0).sum((1, 2)), passed

    def describe(self) -> dict[str, Any]:
        """Return the flow's fingerprint, the side of the blocks and the number of updates."""
        return {
            "flow_sha256": self.proposal.metadata.fingerprint,
            "block_side": self.side,
            "updates_per_cycle": self.n_updates,
        }


def _shifted(field: NDArray[np.int8], shift: NDArray[np.int64]) -> NDArray[np.int8]:
    """Translate each configuration (n, L, L) by its own vector, shift (2, n)."""
    rows = (np.arange(field.shape[1]) + shift[0][:, None]) % field.shape[1]
    columns = (np.arange(field.shape[2]) + shift[1][:, None]) % field.shape[2]
    moved: NDArray[np.int8] = field[np.arange(len(field))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved
