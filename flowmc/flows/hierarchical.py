"""Hierarchical autoregressive networks (HAN) for the two-dimensional Ising model.

Spins interact with their neighbours only, so that a closed line of spins cuts the lattice into parts that are independent
given the line (Hammersley and Clifford). The hierarchy of Białas, Korcyl and Stebel (Comput. Phys. Commun. 281 (2022)
108502, arXiv:2203.10989) draws

- the *boundary*, two rows and two columns of the torus, 4L − 4 spins, from an autoregressive network;
- then, in the four blocks that it encloses, and in the blocks inside those, and so on, a *cross*: the middle row and the
  middle column of a block of side l, 2l − 1 spins, from an autoregressive network that sees the 4l spins around the
  block. One network serves all blocks of a level: given its border, a block does not know where it is, nor on how large
  a lattice, so that a trained network serves other lattices too;
- the last spins exactly, from the Boltzmann distribution given their neighbours (heat bath).

Two things go beyond the paper. The cross of a block of side 3, five spins, can be drawn exactly as well: its 32
probabilities, with the four spins in the corners of the block summed over, are enumerated. And lattices of L = 3·2^k end
with blocks of side 2, which are drawn exactly from the 16 states of their spins.

Everything inside a block, given its border, can be drawn anew with its exact probability: this is what
`flowmc.kernels.blocks` proposes.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.flows.base import DTYPES
from flowmc.flows.causal import CausalDense
from flowmc.flows.spins import SpinFlow, spin_log_prob
from flowmc.theories import Ising, Theory

__all__ = ["HierarchicalConfig", "HierarchicalFlow"]

Offset = tuple[int, int]
"""A site (t, x) of a cell, counted from its upper left corner."""


@dataclass(frozen=True)
class HierarchicalConfig:
    """Hyper-parameters of a `HierarchicalFlow`.

    Parameters
    ----------
    width
        Hidden units for each spin of the boundary and of the crosses.
    depth
        Hidden layers of the networks.
    exact_cross
        Whether crosses in blocks of side 3 are drawn exactly; the paper draws them from a network.
    z2
        Whether to average over the global spin flip.
    translations
        Whether to average over translations along the last axis; every log q then costs as many passes as that is long.
    dtype
        "float32" or "float64": the type in which the flow is trained.

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    """

    width: int = 4
    depth: int = 1
    exact_cross: bool = True
    z2: bool = True
    translations: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ParameterError(
                got=f"dtype = {self.dtype!r}", expected=f"one of {list(DTYPES)}", fix="correct `dtype`"
            )
        if self.width < 1 or self.depth < 1:
            raise ParameterError(
                got=f"width = {self.width}, depth = {self.depth}", expected="1 or more", fix="correct the value"
            )


class _Level(torch.nn.Module, abc.ABC):
    """Spins that are drawn together, in every block of a level, each block by itself.

    The cells of a level have period c: cell (a, b) has its corner at (a c, b c), and its block is what lies strictly
    inside. Blocks are numbered row by row.
    """

    def __init__(self, extent: int, period: int) -> None:
        super().__init__()
        self.extent, self.period = extent, period

    def sites(self, offsets: Sequence[Offset]) -> Tensor:
        """Return the numbers of the sites at these offsets in every cell, (cells, offsets)."""
        numbers = [
            [((a + t) % self.extent) * self.extent + (b + x) % self.extent for t, x in offsets]
            for a in range(0, self.extent, self.period)
            for b in range(0, self.extent, self.period)
        ]
        return torch.tensor(numbers, dtype=torch.int64).reshape(len(numbers), len(offsets))

    @abc.abstractmethod
    def draw(self, spins: Tensor, ising: Ising, generator: torch.Generator) -> Tensor:
        """Draw this level's spins into spins (n, V); return the log probability of each block, (n, cells) float64."""

    @abc.abstractmethod
    def log_prob(self, spins: Tensor, ising: Ising) -> Tensor:
        """Return the log probability of this level's spins, given those before, (n, cells) float64."""


class _NetworkLevel(_Level):
    """Spins from an autoregressive network that is shared by all blocks."""

    def __init__(
        self, extent: int, period: int, context: Sequence[Offset], drawn: Sequence[Offset], config: HierarchicalConfig
    ) -> None:
        super().__init__(extent, period)
        self.register_buffer("_context", self.sites(context), persistent=False)
        self.register_buffer("_drawn", self.sites(drawn), persistent=False)
        self.network = CausalDense(len(context), len(drawn), config.width, config.depth)

    _context: Tensor
    _drawn: Tensor

    def draw(self, spins: Tensor, ising: Ising, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Draw this level's spins; see `_Level.draw`."""
        n, (cells, drawn) = len(spins), self._drawn.shape
        uniform = torch.rand(drawn, n * cells, generator=generator, device=spins.device, dtype=torch.float64)
        new, logits = self.network.draw(self._rows(spins, self._context), uniform)
        spins[:, self._drawn.flatten()] = new.reshape(n, cells * drawn)
        return spin_log_prob(new, logits).sum(1, dtype=torch.float64).reshape(n, cells)

    def log_prob(self, spins: Tensor, ising: Ising) -> Tensor:  # noqa: ARG002
        """Return the log probability of this level's spins; see `_Level.log_prob`."""
        given = self._rows(spins, self._drawn)
        logits = self.network(self._rows(spins, self._context), given)
        return spin_log_prob(given, logits).sum(1, dtype=torch.float64).reshape(len(spins), -1)

    @staticmethod
    def _rows(spins: Tensor, sites: Tensor) -> Tensor:
        """Return the spins at the sites of each cell, one row for each cell of each configuration."""
        return spins[:, sites.flatten()].reshape(len(spins) * sites.shape[0], sites.shape[1])


class _ExactLevel(_Level):
    """Spins from their exact probabilities given the spins around the block, by enumeration of their states.

    The log weight of a state t of the drawn spins, given sums K of the spins around the block, is

        Σ_a β (J K_a + h) t_a + β J Σ_ab t_a t_b + Σ_c ln 2 cosh β (J (K_c + Σ_a t_a) + h),

    where a runs over the drawn spins, ab over their links, and c over spins that are summed over, each with its drawn
    neighbours and two neighbours around the block. So K_c is −2, 0 or 2, on which every function is quadratic, and the
    weights of all states are linear in K_a, K_c and K_c².
    """

    def __init__(self, extent: int, period: int, drawn: Sequence[Offset], summed: Sequence[Offset] = ()) -> None:
        super().__init__(extent, period)
        self.register_buffer("_drawn", self.sites(drawn), persistent=False)
        for name, offsets in (("_around_drawn", drawn), ("_around_summed", summed)):
            outside = [[near for near in _neighbours(one) if self._on_border(near)] for one in offsets]
            count = max((len(near) for near in outside), default=0)
            sites = self.sites([near for group in outside for near in group])
            # A spin without neighbours around the block (the centre of a cross) takes part with none.
            present = torch.tensor([len(near) == count for near in outside], dtype=torch.bool)
            self.register_buffer(
                name, sites.reshape(len(sites), int(present.sum()) if count else 0, count), persistent=False
            )
            self.register_buffer(f"{name}_present", present, persistent=False)
        states = torch.tensor(list(product((-1.0, 1.0), repeat=len(drawn))), dtype=torch.float64)
        links = [(i, j) for i, one in enumerate(drawn) for j, other in enumerate(drawn) if _right_or_below(one, other)]
        pairs = [states[:, i] * states[:, j] for i, j in links]
        near = [[float(other in _neighbours(one)) for other in drawn] for one in summed]
        self._states = states
        self._pairs = torch.stack(pairs, 1).sum(1) if pairs else torch.zeros(len(states), dtype=torch.float64)
        self._near = states @ torch.tensor(near, dtype=torch.float64).reshape(len(summed), len(drawn)).T

    _drawn: Tensor
    _around_drawn: Tensor
    _around_drawn_present: Tensor
    _around_summed: Tensor

    def _on_border(self, site: Offset) -> bool:
        return any(coordinate in (0, self.period) for coordinate in site)

    def _log_weights(self, spins: Tensor, ising: Ising) -> Tensor:
        """Return the normalised log probability of every state, (n, cells, states), dtype of the spins."""
        coupling, field = ising.beta * ising.coupling, ising.beta * ising.field
        states = self._states
        constant = coupling * self._pairs + field * states.sum(1)
        linear_part = coupling * states[:, self._around_drawn_present.cpu()]
        values = torch.stack(
            [_log_two_cosh(coupling * (sum_around + self._near) + field) for sum_around in (-2.0, 0.0, 2.0)]
        )
        constant = constant + values[1].sum(1)
        first, second = (values[2] - values[0]) / 4, (values[2] + values[0] - 2 * values[1]) / 8
        matrix = torch.cat([linear_part, first, second], 1).to(spins)
        around = spins[:, self._around_drawn.flatten()].reshape(len(spins), *self._around_drawn.shape).sum(-1)
        corner = spins[:, self._around_summed.flatten()].reshape(len(spins), *self._around_summed.shape).sum(-1)
        features = torch.cat([around, corner, corner * corner], -1)
        return torch.log_softmax(linear(features, matrix, constant.to(spins)), -1)

    def draw(self, spins: Tensor, ising: Ising, generator: torch.Generator) -> Tensor:
        """Draw this level's spins; see `_Level.draw`."""
        log_weights = self._log_weights(spins, ising)
        # In double precision: rare states are drawn as rarely as log q says.
        below = log_weights.to(torch.float64).exp().cumsum(-1)
        n, cells, states = log_weights.shape
        uniform = torch.rand(n, cells, 1, generator=generator, device=spins.device, dtype=torch.float64)
        # Against the computed total, so that rounding in it cannot lead beyond the last state.
        state = (uniform * below[..., -1:] >= below).sum(-1).clamp(max=states - 1)
        new = self._states.to(spins)[state]
        spins[:, self._drawn.flatten()] = new.reshape(n, -1)
        return log_weights.gather(-1, state[..., None])[..., 0].to(torch.float64)

    def log_prob(self, spins: Tensor, ising: Ising) -> Tensor:
        """Return the log probability of this level's spins; see `_Level.log_prob`."""
        with torch.no_grad():  # nothing here is learned
            log_weights = self._log_weights(spins, ising)
            given = spins[:, self._drawn.flatten()].reshape(len(spins), *self._drawn.shape)
            place = 2 ** torch.arange(given.shape[-1] - 1, -1, -1, device=spins.device)
            state = ((given > 0) * place).sum(-1)
            return log_weights.gather(-1, state[..., None])[..., 0].to(torch.float64)


def _log_two_cosh(x: Tensor) -> Tensor:
    return torch.logaddexp(x, -x)


def _neighbours(site: Offset) -> list[Offset]:
    t, x = site
    return [(t - 1, x), (t + 1, x), (t, x - 1), (t, x + 1)]


def _right_or_below(one: Offset, other: Offset) -> bool:
    return other in ((one[0] + 1, one[1]), (one[0], one[1] + 1))


class HierarchicalFlow(SpinFlow):
    """Spins of a square lattice, drawn level by level of a hierarchy of blocks; see the module.

    Parameters
    ----------
    theory
        The Ising model, on L × L sites with L = 2^k ≥ 4 or L = 3·2^k ≥ 6. (A cross cuts a block of side l into blocks of
        side (l − 1)/2, which has to stay whole until the blocks are of side 1 or 2.)
    config
        Hyper-parameters.

    Raises
    ------
    LatticeMismatchError
        If the hierarchy does not fit the lattice.
    """

    kind: ClassVar[str] = "hierarchical"
    Config: ClassVar[type] = HierarchicalConfig
    config: HierarchicalConfig

    def __init__(self, theory: Theory, config: HierarchicalConfig) -> None:
        super().__init__(theory, config)
        self.periods = _periods(theory.shape)
        extent = theory.shape[0]
        boundary = [(t, x) for t in range(extent) for x in range(extent) if 0 in (t % (extent // 2), x % (extent // 2))]
        levels: dict[str, _Level] = {"boundary": _NetworkLevel(extent, extent, [], boundary, config)}
        for period in self.periods:
            inside = range(1, period)
            border = [(t, x) for t in (0, period) for x in inside] + [(t, x) for x in (0, period) for t in inside]
            middle = period // 2
            cross = [(middle, x) for x in inside] + [(t, middle) for t in inside if t != middle]
            if period <= 3:
                level: _Level = _ExactLevel(extent, period, [(t, x) for t in inside for x in inside])
            elif period == 4 and config.exact_cross:
                level = _ExactLevel(extent, period, cross, [(t, x) for t in (1, 3) for x in (1, 3)])
            else:
                level = _NetworkLevel(extent, period, border, cross, config)
            # By the side of the block and not by the number of the level: so it is found again on another lattice.
            levels[f"block_{period - 1}"] = level
        self.levels = torch.nn.ModuleDict(levels)
        self.to(DTYPES[config.dtype])

    @property
    def block_sides(self) -> tuple[int, ...]:
        """Sides of the blocks of each level, from large to small."""
        return tuple(period - 1 for period in self.periods)

    def component_sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw spins; see `SpinFlow.component_sample`."""
        spins = torch.empty(n, self.ising.volume, dtype=self.dtype, device=self.device)
        log_q = torch.zeros(n, dtype=torch.float64, device=self.device)
        for level in self._levels():
            log_q += level.draw(spins, self.ising, generator).sum(1)
        return spins.reshape(n, *self.shape).to(torch.int8), log_q

    def component_log_prob(self, field: Tensor) -> Tensor:
        """Return log q₁ of spins; see `SpinFlow.component_log_prob`."""
        spins = field.reshape(len(field), -1).to(self.dtype)
        log_q = torch.zeros(len(field), dtype=torch.float64, device=self.device)
        for level in self._levels():
            log_q = log_q + level.log_prob(spins, self.ising).sum(1)
        return log_q

    def resample_blocks(self, field: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the inside of every block of one side anew, given the spins around it, from the component q₁.

        Parameters
        ----------
        field
            Spins (n, L, L), int8.
        side
            Side of the blocks, one of `block_sides`.
        generator
            Source of the random numbers.

        Returns
        -------
        The new spins (n, L, L), int8, and the log probabilities of the new and of the old inside of each block, given its
        border, each (n, L / (side + 1), L / (side + 1)), float64.
        """
        cells = self.shape[0] // (side + 1)
        old = field.reshape(len(field), -1).to(self.dtype)
        new = old.clone()
        log_new, log_old = (
            torch.zeros(len(field), cells, cells, dtype=torch.float64, device=self.device) for _ in "ab"
        )
        for level in self._levels()[1 + self.block_sides.index(side) :]:
            for total, part in (
                (log_new, level.draw(new, self.ising, generator)),
                (log_old, level.log_prob(old, self.ising)),
            ):
                finer = self.shape[0] // level.period // cells
                total += part.reshape(len(field), cells, finer, cells, finer).sum((2, 4))
        return new.reshape(field.shape).to(torch.int8), log_new, log_old

    def _levels(self) -> list[_Level]:
        return list(self.levels.values())  # type: ignore[arg-type]


def _periods(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the periods of the cells, from L/2 down to 2 or 3."""
    extent = shape[0]
    periods = [extent // 2]
    while periods[-1] > 3 and periods[-1] % 2 == 0:
        periods.append(periods[-1] // 2)
    if len(shape) != 2 or shape[0] != shape[1] or extent % 2 or periods[-1] not in (2, 3):
        raise LatticeMismatchError(
            got=f"a hierarchical flow on a lattice of {shape}",
            expected="L x L sites with L = 4, 8, 16, ... or 6, 12, 24, ...",
            fix='change `shape` in [theory], or take kind = "autoregressive" in [flow]',
        )
    return tuple(periods)
