"""Every update of the Ising model against the exact distribution of all configurations of small lattices.

From exact draws the distribution must stay what it is, and from an ordered start it must become what it should be. The
same two tests must catch a zoo of wrong kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from flowmc.kernels import Cycle, CycleMember
from flowmc.kernels.cluster import CLUSTER_RULES, ClusterInfo, ClusterKernel, ClusterNumbers, ClusterUpdates
from flowmc.kernels.local import LOCAL_RULES, Checkerboard, LocalRule, LocalUpdates
from flowmc.theories import Ising
from flowmc_analysis.zscores import family_p_value

EVEN = [
    Ising((2, 4), 0.3, field=0.2),
    Ising((4, 2), 0.4, coupling=-1.0),
    Ising((2, 2, 2), 0.15),
]
MORE = [
    Ising((6,), 0.5, field=0.3),
    Ising((5,), 0.6, coupling=-1.0, field=0.1),
    Ising((2, 3), 0.4),
    Ising((3, 3), 0.35, field=-0.1),
    Ising((3, 3), 0.3, coupling=-1.0),
]
KINDS = [*LOCAL_RULES, *CLUSTER_RULES]
# Compiled for every theory, local updates take most of the time; their exact matrices are tested on more lattices.
CASES = [(kind, theory) for kind in KINDS for theory in (EVEN if kind in LOCAL_RULES else EVEN + MORE)]
CHAINS = 10000
FALSE_ALARM = 1e-5

Kernel = Callable[[np.ndarray], np.ndarray]


def member(kind: str, theory: Ising, seed: int) -> CycleMember:
    if kind in CLUSTER_RULES:
        return ClusterUpdates(ClusterKernel(theory, kind), seed, 2)
    return LocalUpdates(Checkerboard(theory, kind), seed, 2)


def run_cycles(theory: Ising, part: CycleMember, n_cycles: int) -> Kernel:
    """Cycles of one member, as a map of fields."""

    def kernel(field: np.ndarray) -> np.ndarray:
        cycle = Cycle(theory, (part,))
        state = cycle.init(field)
        prepared, _ = cycle.prepare(0, n_cycles, len(field))
        for index in range(n_cycles):
            state, _ = cycle.run(index, index, state, prepared)
        return np.asarray(state.field)

    return kernel


def enumerate_states(theory: Ising) -> np.ndarray:
    """All configurations, (2^V, *shape); the first site is the highest bit of the number, and up is 0."""
    bits = np.indices((2,) * theory.volume, dtype=np.int8).reshape(theory.volume, -1).T
    return (1 - 2 * bits).reshape(-1, *theory.shape)


def distribution(theory: Ising) -> np.ndarray:
    weight = np.exp(-theory.action(enumerate_states(theory)))
    normalised: np.ndarray = weight / weight.sum()
    return normalised


def exact_draws(theory: Ising, rng: np.random.Generator) -> np.ndarray:
    states = enumerate_states(theory)
    return states[rng.choice(len(states), CHAINS, p=distribution(theory))]


def p_value(theory: Ising, field: np.ndarray) -> float:
    """Probability of fields (n, *shape) that lie as far off, or farther, if they are independent draws of the target.

    Two batteries, each at half the rate: the histogram of all configurations, and the means of action, magnetisation
    and their squares.
    """
    states, exact, n = enumerate_states(theory), distribution(theory), len(field)
    number = (field.reshape(n, -1) == -1) @ (2 ** np.arange(theory.volume)[::-1])
    counts, expected = np.bincount(number, minlength=len(states)), n * exact
    # Configurations too rare for normal errors are counted together.
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    deviation = np.where(expected > 0, (counts - expected) ** 2 / np.where(expected > 0, expected, 1), 0)
    histogram = chi2.sf(deviation.sum(), np.count_nonzero(expected) - 1)

    def observables(fields: np.ndarray) -> np.ndarray:
        action, magnetisation = theory.action(fields), fields.sum(axis=tuple(range(1, fields.ndim)), dtype=float)
        return np.array([action, magnetisation, action**2, magnetisation**2])

    values = observables(states)
    mean = values @ exact
    error = np.sqrt((values**2 @ exact - mean**2) / n)
    # A square may be the same number everywhere, and then has no error.
    known = error > 1e-12
    z = (observables(field).mean(axis=1) - mean)[known] / error[known]
    return float(min(1.0, 2 * min(histogram, family_p_value(z))))


@pytest.mark.parametrize(("kind", "theory"), CASES, ids=str)
def test_keeps_the_target(kind: str, theory: Ising, rng: np.random.Generator, test_seed: int) -> None:
    kernel = run_cycles(theory, member(kind, theory, test_seed), 2)
    assert p_value(theory, kernel(exact_draws(theory, rng))) > FALSE_ALARM


@pytest.mark.parametrize("theory", EVEN, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_reaches_the_target_from_an_ordered_start(kind: str, theory: Ising, test_seed: int) -> None:
    cold = np.ones((CHAINS, *theory.shape), np.int8)
    assert p_value(theory, cold) < FALSE_ALARM
    # 80 updates: the relaxation times of these small lattices are about ten.
    assert p_value(theory, run_cycles(theory, member(kind, theory, test_seed), 40)(cold)) > FALSE_ALARM


def all_sites_at_once(theory: Ising, rng: np.random.Generator) -> Kernel:
    def kernel(field: np.ndarray) -> np.ndarray:
        flips = rng.random(field.shape) < Checkerboard(theory, "heat_bath").flip_probability(jnp.asarray(field))
        return np.where(flips, -field, field)

    return kernel


class HalfTheBonds(ClusterKernel):
    """The convention of Potts spins, whose energy of a link is half as large, taken for Ising spins."""

    @property
    def bond_probability(self) -> float:
        return float(-np.expm1(-self.theory.beta * abs(self.theory.coupling)))


class FieldForgotten(ClusterKernel):
    """Turns clusters over whatever the field."""

    def step(self, field: np.ndarray, numbers: ClusterNumbers) -> tuple[np.ndarray, ClusterInfo]:
        return super().step(field, numbers._replace(turns=np.where(numbers.turns < 0.5, 0.0, 1.0)))


def cluster_update(kernel: type[ClusterKernel], rule: str) -> Callable[[Ising, np.random.Generator], Kernel]:
    def build(theory: Ising, rng: np.random.Generator) -> Kernel:
        one = kernel(theory, rule)
        return lambda field: one.step(field, one.draw(rng, len(field)))[0]

    return build


MUTANTS = {"all_sites_at_once": all_sites_at_once} | {
    f"{kernel.__name__}_{rule}": cluster_update(kernel, rule)
    for kernel in (HalfTheBonds, FieldForgotten)
    for rule in CLUSTER_RULES
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_kernel_is_caught(mutant: str, rng: np.random.Generator) -> None:
    theory = Ising((2, 4), 0.3, field=0.2)
    assert p_value(theory, MUTANTS[mutant](theory, rng)(exact_draws(theory, rng))) < FALSE_ALARM


def test_metropolis_that_always_proposes_is_caught(test_seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # It keeps the target but is not ergodic: what it cannot reach is missing after an ordered start.
    monkeypatch.setitem(LOCAL_RULES, "always", LocalRule(1.0, LOCAL_RULES["metropolis"].accepted))
    theory = Ising((2, 2), 0.4)
    cold = np.ones((CHAINS, *theory.shape), np.int8)
    assert p_value(theory, run_cycles(theory, member("always", theory, test_seed), 40)(cold)) < FALSE_ALARM
