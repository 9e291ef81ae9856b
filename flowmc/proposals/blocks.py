"""Measurements of block proposals: whether new insides are drawn with the probabilities that are told of them.

Block moves (`flowmc.kernels.blocks`) never ask a flow for log q of a configuration. They rely on what
`BlockProposal.resample_blocks` returns, q(s_B | ∂B) of each block, new and old, and that can be wrong where log q is
right. So it is measured by itself, at the blocks of every side: what the two numbers have to do with one another, with
the other blocks and with the other configurations of the batch, the draws against them by the identities of
`flowmc.proposals.closure`, and for small blocks the sum of the probabilities of all insides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowmc.errors import CertificateError
from flowmc.proposals.base import BlockProposal
from flowmc.proposals.closure import Identity, flip_identities, local_field, spins_of_numbers
from flowmc.seeds import fold, numpy_generator
from flowmc.theories import SPACES

__all__ = ["ENUMERATED_SIDE", "BlockFigures", "block_closure", "block_total_probability", "measure_blocks"]

Array = NDArray[np.float64]
Spins = NDArray[np.int8]

ENUMERATED_SIDE = 3
"""Largest side of the blocks for which the probabilities of all insides are summed."""
# Sites in which spins are drawn at once, which bounds the memory, and configurations on small and on large lattices.
DRAWN_SITES = 2**17
FEWEST, MOST = 64, 1024
CHUNK_SITES = 2**19
# Sites of each block at which a spin is flipped.
SITES = 4
# Borders, at least, around which all insides are enumerated.
BORDERS = 16


class BlockFigures(NamedTuple):
    """What `measure_blocks` found at the blocks of one side."""

    side: int
    bad: NDArray[np.bool_]
    """Configurations with a border that was changed, spins that are none, or log q that is not finite, (n,)."""
    repeated: bool
    """Whether the same call gave the same again, bit by bit."""
    again: tuple[Array, Array]
    """Log q as told of the new insides, and of the same insides as old ones."""
    mixed: tuple[Array, Array]
    """Log q as told of new and old insides, and of the same insides beside others: some blocks new, some old."""
    batches: tuple[Array, Array]
    """Log q of the old insides in one batch, and in halves of it with another seed."""
    identities: dict[str, Identity]
    total: Array
    """Sums of the probabilities of all insides, for a number of borders; empty for large blocks."""


def measure_blocks(proposal: BlockProposal, fields: NDArray[Any], side: int, seed: int) -> BlockFigures:
    """Measure the blocks of one side.

    Parameters
    ----------
    proposal
        The proposal.
    fields
        Draws of it, (n, L, L), of which some are used, moved by a random translation as in production, beside as many
        random spins: the chain, not the proposal, makes the borders.
    side
        Side of the blocks.
    seed
        Seed of all that is random.

    Raises
    ------
    CertificateError
        If what the proposal returns has the wrong shape.
    """
    generator = numpy_generator(seed, "borders")
    extent = fields.shape[-1]
    count = int(np.clip(DRAWN_SITES // extent**2, FEWEST, MOST))
    space = SPACES["spin"]
    shift = generator.integers(extent, size=2)
    drawn = np.roll(fields[: count // 2], shift, (1, 2)).astype(space.dtype)
    old = np.concatenate([drawn, space.start(generator, count - len(drawn), fields.shape[1:], "hot")])
    kept = old.copy()

    draw_seed = fold(seed, "inside")
    new, log_new, log_old = _resampled(proposal, old, side, draw_seed)
    repeated = all(
        np.array_equal(one, other, equal_nan=True)
        for one, other in zip((new, log_new, log_old), _resampled(proposal, old, side, draw_seed), strict=True)
    )
    border = ~_insides(extent, side)
    right = space.contains(new.reshape(count, -1)) & (old == kept).all((1, 2)) & (new == kept)[:, border].all(1)
    # Log q = −inf is legal for what is there, not for what was drawn.
    right &= np.isfinite(log_new).all((1, 2)) & (log_old < np.inf).all((1, 2))
    empty = np.zeros((0, *log_new.shape[1:]))
    if not right.any():
        nothing = (empty, empty)
        return BlockFigures(side, ~right, repeated, nothing, nothing, nothing, {}, empty)
    old, new, log_new, log_old = kept[right], new[right].astype(space.dtype), log_new[right], log_old[right]

    log_again = _log_old(proposal, new, side, fold(seed, "again"))
    chosen = generator.random(log_new.shape) < 0.5
    mixture = np.where(_spread(chosen, side), new, old)
    log_mixture = _log_old(proposal, mixture, side, fold(seed, "mixed"))
    halves = [_log_old(proposal, part, side, fold(seed, "halves")) for part in np.array_split(old, min(2, len(old)))]
    return BlockFigures(
        side,
        ~right,
        repeated,
        (log_new, log_again),
        (np.where(chosen, log_new, log_old), log_mixture),
        (log_old, np.concatenate(halves)),
        block_closure(proposal, new, log_again, side, fold(seed, "closure")),
        block_total_probability(proposal, old, side, fold(seed, "total")) if side <= ENUMERATED_SIDE else empty,
    )


def block_closure(proposal: BlockProposal, fields: Spins, log_q: Array, side: int, seed: int) -> dict[str, Identity]:
    """Return the identities of the probability of an inside, given its border.

    They are those of `flowmc.proposals.closure.spin_closure`, with log q(s_B | ∂B) in the place of log q: a flip of one
    spin of each block, and of the whole inside. Given their borders, blocks do not know of one another, so that all of
    them are flipped at once. Half of the spins lie on the middle row or column, which a hierarchy draws first, and which
    in a large block hold few of the spins.

    Parameters
    ----------
    proposal
        The proposal.
    fields
        Spins (n, L, L) whose insides it has just drawn.
    log_q
        Log probabilities of these insides, (n, L / (side + 1), L / (side + 1)).
    side
        Side of the blocks.
    seed
        Seed of the sites.
    """
    generator = numpy_generator(seed)
    extent, period = fields.shape[-1], side + 1
    configuration = np.arange(len(fields))[:, None, None]
    corner = period * np.arange(extent // period)
    insides = _insides(extent, side)
    cells = (len(fields), len(corner), period, len(corner), period)
    total = (fields * insides).reshape(cells).sum((2, 4), dtype=np.float64)
    parts: dict[str, list[tuple[Array, Array]]] = {}
    for number in range(SITES):
        offsets = generator.integers(1, period, size=(2, *log_q.shape))
        if number % 2:
            which = generator.integers(2, size=log_q.shape)
            offsets = np.where(which == np.arange(2)[:, None, None, None], period // 2, offsets)
        row, column = corner[:, None] + offsets[0], corner[None, :] + offsets[1]
        flipped = fields.copy()
        flipped[configuration, row, column] *= -1
        change = log_q - _log_old(proposal, flipped, side, fold(seed, number))
        here = fields[configuration, row, column].astype(np.float64)
        around = sum(
            fields[configuration, (row + down) % extent, (column + right) % extent].astype(np.float64)
            for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1))
        )
        functions = {
            "<s_x - t_x>": np.ones_like(here),
            "<(s_x - t_x) a_x>": local_field(here, change),
            "<(s_x - t_x) neighbours>": around,
            "<(s_x - t_x) M_B>": (total - here) / side,
        }
        for name, function in functions.items():
            parts.setdefault(name, []).append((here * function, change))
    mirrored = _log_old(proposal, np.where(insides, -fields, fields), side, fold(seed, "mirrored"))
    parts["<M_B - mean of M_B and -M_B>"] = [(total / side, log_q - mirrored)]
    return flip_identities(parts)


def block_total_probability(proposal: BlockProposal, fields: Spins, side: int, seed: int) -> Array:
    """Return Σ q(s_B | ∂B) over all insides of blocks, (configurations, L / (side + 1), L / (side + 1)).

    All blocks of a configuration hold the same inside at the same time, so that every block is another border.

    Parameters
    ----------
    proposal
        The proposal.
    fields
        Spins (n, L, L) with the borders, as many as it takes for a few borders.
    side
        Side of the blocks, at most `ENUMERATED_SIDE`.
    seed
        Seed of the draws, which are not looked at.
    """
    extent, period = fields.shape[-1], side + 1
    cells = extent // period
    insides = _insides(extent, side)
    chunk = max(1, CHUNK_SITES // extent**2)
    borders = fields[: -(-BORDERS // cells**2)]
    totals = np.zeros((len(borders), cells, cells))
    for start in range(0, 2**side**2, chunk):
        numbers = np.arange(start, min(start + chunk, 2**side**2))
        blocks = np.pad(spins_of_numbers(numbers, (side, side)), ((0, 0), (1, 0), (1, 0)))
        everywhere = np.tile(blocks, (1, cells, cells))
        for total, border in zip(totals, borders, strict=True):
            log_q = _log_old(proposal, np.where(insides, everywhere, border), side, seed)
            total += np.exp(log_q).sum(0)
    return totals


def _resampled(proposal: BlockProposal, fields: Spins, side: int, seed: int) -> tuple[NDArray[Any], Array, Array]:
    new, log_new, log_old = proposal.resample_blocks(fields, side, seed)
    cells = fields.shape[-1] // (side + 1)
    shapes = (len(fields), *fields.shape[1:]), (len(fields), cells, cells), (len(fields), cells, cells)
    if (new.shape, log_new.shape, log_old.shape) != shapes:
        raise CertificateError(
            got=f"blocks of side {side}: new spins {new.shape}, log q {log_new.shape} and {log_old.shape}",
            expected=f"{shapes[0]}, and one log q for each block, {shapes[1]}, twice",
            fix="mend `resample_blocks`",
        )
    return new, log_new, log_old


def _log_old(proposal: BlockProposal, fields: Spins, side: int, seed: int) -> Array:
    return _resampled(proposal, fields, side, seed)[2]


def _insides(extent: int, side: int) -> NDArray[np.bool_]:
    """Return the sites inside of blocks, (L, L)."""
    line = np.arange(extent) % (side + 1) > 0
    return line[:, None] & line


def _spread(of_blocks: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Return what is given for each block, (n, L / (side + 1), L / (side + 1)), at its sites, (n, L, L)."""
    return of_blocks.repeat(side + 1, 1).repeat(side + 1, 2)
