"""Cluster updates of Ising spins: Swendsen and Wang's, and Wolff's.

A link is satisfied if J s(x) s(y) > 0. Every satisfied link becomes a bond with probability 1 − exp(−2 β |J|), and bonds
join spins to clusters; given the bonds, all clusters may be turned over freely as far as the links are concerned.

- Swendsen-Wang builds all clusters and turns each over, or not, by a heat bath of its magnetisation M_C = Σ_C s(x) in
  the field: with probability 1 / (1 + exp(2 β h M_C)), ½ without a field.
- Wolff builds the one cluster of a random site and turns it over with probability min(1, exp(−2 β h M_C)), always
  without a field.

Both leave p = exp(−S)/Z invariant on every lattice, for either sign of J, with and without a field, and are ergodic.
(Wolff at β J = β h = 0 is not: it would turn over one spin at a time, always.) They decorrelate fast near the critical
point of a ferromagnet, or of an antiferromagnet with even extents; where links frustrate each other, or in a strong
field, they are as right but slow.

References
----------
.. [1] P. W. Kasteleyn and C. M. Fortuin, J. Phys. Soc. Japan Suppl. 26 (1969) 11.
.. [2] R. H. Swendsen and J.-S. Wang, Phys. Rev. Lett. 58 (1987) 86.
.. [3] U. Wolff, Phys. Rev. Lett. 62 (1989) 361.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numba
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import check_field
from flowmc.errors import ParameterError
from flowmc.kernels.base import FixedMember, HybridState, Updates, batch_action
from flowmc.lattice import volume
from flowmc.seeds import numpy_generator
from flowmc.theories import Ising, Theory

__all__ = ["CLUSTER_RULES", "ClusterInfo", "ClusterKernel", "ClusterNumbers", "ClusterUpdates", "neighbour_table"]

CLUSTER_RULES = ("swendsen_wang", "wolff")
"""Every cluster update by its name in run descriptions."""


@lru_cache
def neighbour_table(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return the neighbours of every site of a periodic lattice, the sites counted in C order.

    Parameters
    ----------
    shape
        Lattice extents (T, ..., X).

    Returns
    -------
    (V, 2 d): x+μ for every direction μ, then x−μ for every direction.

    >>> neighbour_table((4,)).tolist()
    [[1, 3], [2, 0], [3, 1], [0, 2]]
    """
    sites = np.arange(volume(shape), dtype=np.int32).reshape(shape)
    columns = [np.roll(sites, step, axis=axis) for step in (-1, 1) for axis in range(len(shape))]
    table = np.stack(columns, axis=-1).reshape(-1, 2 * len(shape))
    # It is kept for the next call, so nobody may write into it.
    table.setflags(write=False)
    return table


@numba.njit(nogil=True)
def _swendsen_wang(
    field: NDArray[np.int8],
    neighbours: NDArray[np.int32],
    sign: int,
    bond_probability: float,
    twice_field: float,
    links: NDArray[np.float64],
    turns: NDArray[np.float64],
) -> None:
    """Update the spins (chains, V) in place; ``links`` (chains, V, d) and ``turns`` (chains, V) are uniform numbers."""
    chains, sites = field.shape
    parent = np.empty(sites, np.int32)
    magnetisation = np.empty(sites, np.int64)
    for chain in range(chains):
        spins = field[chain]
        for site in range(sites):
            parent[site] = site
            magnetisation[site] = 0

        for site in range(sites):
            for direction in range(links.shape[2]):
                other = neighbours[site, direction]
                if sign * spins[site] * spins[other] < 0 or links[chain, site, direction] >= bond_probability:
                    continue
                # Union-find; every look-up halves its path.
                one, two = site, other
                while parent[one] != one:
                    parent[one] = parent[parent[one]]
                    one = parent[one]
                while parent[two] != two:
                    parent[two] = parent[parent[two]]
                    two = parent[two]
                # The root is the cluster's smallest site, so that a parent never comes after its child.
                parent[max(one, two)] = min(one, two)

        for site in range(sites):
            parent[site] = parent[parent[site]]
            magnetisation[parent[site]] += spins[site]
        for site in range(sites):
            root = parent[site]
            if turns[chain, root] < 1.0 / (1.0 + math.exp(twice_field * magnetisation[root])):
                spins[site] = -spins[site]


@numba.njit(nogil=True)
def _wolff(
    field: NDArray[np.int8],
    neighbours: NDArray[np.int32],
    sign: int,
    bond_probability: float,
    twice_field: float,
    links: NDArray[np.float64],
    turns: NDArray[np.float64],
    start: NDArray[np.int64],
) -> None:
    """Update the spins (chains, V) in place; ``links`` as above, ``turns`` and ``start`` (chains,)."""
    chains, sites = field.shape
    dimensions = links.shape[2]
    cluster = np.empty(sites, np.int32)
    inside = np.zeros(sites, np.bool_)
    for chain in range(chains):
        spins = field[chain]
        cluster[0] = start[chain]
        inside[start[chain]] = True
        size, done, magnetisation = 1, 0, 0
        while done < size:
            site = cluster[done]
            done += 1
            magnetisation += spins[site]
            for neighbour in range(2 * dimensions):
                other = neighbours[site, neighbour]
                if inside[other] or sign * spins[site] * spins[other] < 0:
                    continue
                # A link has one number, kept at the end that it leads forward from. That is exact because a link is
                # asked at most once: from the end that joined first, and never from the other one, which finds its
                # neighbour inside. (The two links between the same sites of an extent of 2 have a number each.)
                if neighbour < dimensions:
                    number = links[chain, site, neighbour]
                else:
                    number = links[chain, other, neighbour - dimensions]
                if number < bond_probability:
                    inside[other] = True
                    cluster[size] = other
                    size += 1

        turned = turns[chain] < math.exp(min(0.0, -twice_field * magnetisation))
        for member in cluster[:size]:
            inside[member] = False
            if turned:
                spins[member] = -spins[member]


class ClusterInfo(NamedTuple):
    """Diagnostics of one update, each of shape (chains,)."""

    moved: NDArray[np.bool_]
    """Whether any spin differs from what it was before the update."""
    acceptance: NDArray[np.float32]
    """Wolff: one if the cluster was turned over, else zero; Swendsen-Wang: one, for it rejects nothing."""


class ClusterNumbers(NamedTuple):
    """Random numbers of one update."""

    links: NDArray[np.float64]
    """For each link (x, x+μ): decides on the bond, (chains, V, d), uniform on [0, 1)."""
    turns: NDArray[np.float64]
    """Decides whether a cluster is turned over, uniform on [0, 1): (chains, V) for Swendsen-Wang, of which a cluster
    takes that of its first site, and (chains, 1) for Wolff's one cluster."""
    start: NDArray[np.int64]
    """The site where Wolff's cluster starts, (chains,), uniform over the lattice."""


@dataclass(frozen=True)
class ClusterKernel:
    """A cluster update as a pure kernel on a batch of chains: a function of the spins and of random numbers.

    Parameters
    ----------
    theory
        The Ising model, of any dimension, coupling and field.
    rule
        "swendsen_wang" or "wolff".

    Raises
    ------
    ParameterError
        If there is no rule of that name, or the theory is not the Ising model.
    """

    theory: Ising
    rule: str

    def __post_init__(self) -> None:
        if self.rule not in CLUSTER_RULES:
            raise ParameterError(
                got=f"a cluster update {self.rule!r}", expected=f"one of {list(CLUSTER_RULES)}", fix="correct its name"
            )
        if not isinstance(self.theory, Ising):
            raise ParameterError(
                got=f"cluster updates ({self.rule}) for the theory {self.theory.name!r}",
                expected="the theory 'ising', whose links are bonds with a known probability",
                fix='choose another kernel, for example "hmc" for a continuous field',
            )

    @property
    def bond_probability(self) -> float:
        """Probability 1 − exp(−2 β |J|) that a satisfied link becomes a bond."""
        return -math.expm1(-2 * self.theory.beta * abs(self.theory.coupling))

    def draw(self, generator: np.random.Generator, chains: int) -> ClusterNumbers:
        """Draw the random numbers of one update of so many chains, whatever their state."""
        sites, dimensions = self.theory.volume, len(self.theory.shape)
        return ClusterNumbers(
            links=generator.random((chains, sites, dimensions)),
            turns=generator.random((chains, sites if self.rule == "swendsen_wang" else 1)),
            start=generator.integers(sites, size=chains),
        )

    def step(self, field: NDArray[np.int8], numbers: ClusterNumbers) -> tuple[NDArray[np.int8], ClusterInfo]:
        """Update every chain once.

        Parameters
        ----------
        field
            Spins, (chains, *shape); left as they are.
        numbers
            What `draw` drew.

        Returns
        -------
        The new spins, (chains, *shape), and diagnostics.

        Raises
        ------
        LatticeMismatchError
            If the spins are not a batch of this lattice.
        """
        theory, (links, turns, start) = self.theory, numbers
        check_field(field, theory.shape)
        spins = np.array(field, dtype=np.int8, order="C").reshape(len(field), theory.volume)
        neighbours = neighbour_table(theory.shape)
        sign, twice_field = 1 if theory.coupling > 0 else -1, 2 * theory.beta * theory.field
        if self.rule == "swendsen_wang":
            _swendsen_wang(spins, neighbours, sign, self.bond_probability, twice_field, links, turns)
        else:
            _wolff(spins, neighbours, sign, self.bond_probability, twice_field, links, turns[:, 0], start)

        after = spins.reshape(field.shape)
        moved = (after != field).reshape(len(field), -1).any(axis=1)
        # Wolff's cluster changes if and only if it is turned over.
        passed = moved if self.rule == "wolff" else np.ones_like(moved)
        return after, ClusterInfo(moved, passed.astype(np.float32))


@dataclass(frozen=True)
class ClusterUpdates(FixedMember):
    """Cluster updates as a member of a cycle; they run on the host.

    In its `Updates`, ``accepted`` says whether any spin of the chain changed, and ``acceptance`` is one but for clusters
    that the field kept from being turned over by Wolff's update.

    Parameters
    ----------
    kernel
        The kernel; its rule is the member's `kind`.
    seed
        Seed of the run; the numbers of cycle c come from the generator (seed, kind, c).
    n_updates
        Swendsen-Wang updates of the lattice, or Wolff clusters, in one cycle.

    Raises
    ------
    ParameterError
        If there is no update in a cycle, or the rule is Wolff's and the spins are free.
    """

    kernel: ClusterKernel
    seed: int
    n_updates: int

    needs = frozenset[str]()
    leaves = frozenset({"action"})

    def __post_init__(self) -> None:
        if self.n_updates < 1:
            raise ParameterError(
                got=f"{self.n_updates} cluster updates per cycle", expected="at least one", fix="correct `n_updates`"
            )
        theory = self.kernel.theory
        free = theory.beta * theory.coupling == 0 and theory.beta * theory.field == 0
        if free and self.kind == "wolff":
            raise ParameterError(
                got=f"Wolff clusters for {theory}, whose spins are free",
                expected="a coupling or a field: else every cluster is one spin that always turns over, a periodic chain",
                fix="choose another kernel: swendsen_wang, heat_bath or metropolis",
            )

    @property
    def kind(self) -> str:
        """The rule: "swendsen_wang" or "wolff"."""
        return self.kernel.rule

    @property
    def theory(self) -> Theory:
        """The theory whose distribution the kernel keeps."""
        return self.kernel.theory

    def prepare(self, block: int, n_cycles: int, n_chains: int) -> None:
        """Prepare nothing: the numbers of a whole block would fill the memory."""

    def run(self, cycle: int, index: int, state: HybridState, prepared: None) -> tuple[HybridState, Updates]:  # noqa: ARG002
        """Run the updates of one cycle."""
        generator = numpy_generator(self.seed, self.kind, cycle)
        field = np.asarray(state.field)
        moved, acceptance, action = [], [], []
        for _ in range(self.n_updates):
            # Update by update, so that the numbers in memory are those of one.
            field, info = self.kernel.step(field, self.kernel.draw(generator, len(field)))
            moved.append(info.moved)
            acceptance.append(info.acceptance)
            action.append(np.asarray(batch_action(self.kernel.theory, field)))
        state = state._replace(field=jnp.asarray(field), action=jnp.asarray(action[-1]))
        return state, Updates.plain(np.array(moved), np.array(action), np.array(acceptance))

    def describe(self) -> dict[str, Any]:
        """Return the number of updates."""
        return {"updates_per_cycle": self.n_updates}
