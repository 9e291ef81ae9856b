"""The Ising model: its printed energy, its conditional probabilities, its identity, and spaces of fields."""

from __future__ import annotations

import numpy as np
import pytest

from flowmc.errors import ParameterError, TheoryMismatchError
from flowmc.flows import build_flow
from flowmc.kernels import Cycle, FlowProposals, Independence
from flowmc.proposals import as_proposal
from flowmc.testing import ExactIsing, enumerate_spins, transfer_matrix_draws
from flowmc.theories import SPACES, THEORIES, FreeScalar, Ising, Phi4, RealSpace, SpinSpace
from flowmc_analysis.zscores import family_p_value

MODELS = [
    Ising((4, 4), 0.44),
    Ising((3, 4), 0.3, coupling=-1.2, field=0.4),
    Ising((6,), 0.8, field=-0.5),
    Ising((2, 3, 2), 0.2, coupling=0.7, field=0.1),
]


def energy_written_out(spins: np.ndarray, coupling: float, field: float) -> float:
    """H exactly as it is printed, link by link."""
    total = 0.0
    for site in np.ndindex(*spins.shape):
        for axis in range(spins.ndim):
            ahead = tuple((s + (a == axis)) % n for a, (s, n) in enumerate(zip(site, spins.shape, strict=True)))
            total -= coupling * float(spins[site]) * float(spins[ahead])
        total -= field * float(spins[site])
    return total


@pytest.mark.parametrize("theory", MODELS, ids=repr)
def test_action_is_beta_times_the_printed_energy(theory: Ising, rng: np.random.Generator) -> None:
    spins = theory.start(rng, 5, "hot")
    expected = [theory.beta * energy_written_out(one, theory.coupling, theory.field) for one in spins]
    np.testing.assert_allclose(theory.action(spins), expected, rtol=1e-12, atol=1e-12)


def test_int8_does_not_overflow() -> None:
    # 5·40² links and as many sites: far more than an int8 holds.
    theory = Ising((40, 40, 2, 2, 2), 1.0, field=1.0)
    cold = theory.start(np.random.default_rng(0), 1, "cold")
    assert cold.dtype == np.int8
    assert theory.action(cold)[0] == -6.0 * theory.volume
    np.testing.assert_array_equal(theory.local_field(cold), 11.0)


@pytest.mark.parametrize("theory", MODELS, ids=repr)
def test_local_field_is_half_the_change_of_the_action(theory: Ising, rng: np.random.Generator) -> None:
    spins = theory.start(rng, 4, "hot")
    local = theory.local_field(spins)
    for site in np.ndindex(*theory.shape):
        flipped = spins.copy()
        flipped[(slice(None), *site)] *= -1
        change = theory.action(flipped) - theory.action(spins)
        here = (slice(None), *site)
        np.testing.assert_allclose(2 * spins[here] * local[here], change, atol=1e-12)


@pytest.mark.parametrize("theory", MODELS, ids=repr)
def test_identity_has_expectation_zero(theory: Ising) -> None:
    exact = ExactIsing(theory)
    for identity in theory.identities().values():
        values = np.asarray(identity(exact.states))
        assert abs(exact.expectation(values)) < 1e-12
        assert exact.expectation(np.abs(values)) > 0.1


def test_identity_tells_temperatures_apart() -> None:
    exact, other = ExactIsing(Ising((4, 4), 0.44)), Ising((4, 4), 0.4)
    values = np.asarray(other.identities()["local_field"](exact.states))
    assert abs(exact.expectation(values)) > 0.1


def test_annealing_goes_from_infinite_temperature_to_the_target() -> None:
    theory = Ising((4, 4), 0.6, coupling=-2.0, field=0.3)
    np.testing.assert_array_equal(theory.annealed(0.0).action(enumerate_spins((4, 4))[:100]), 0.0)
    assert theory.annealed(1.0) == theory
    assert theory.annealed(0.5) == Ising((4, 4), 0.3, coupling=-2.0, field=0.3)


@pytest.mark.parametrize(
    ("couplings", "word"),
    [
        ({"beta": -0.1}, "beta = -0.1"),
        ({"beta": float("nan")}, "nan"),
        ({"beta": 0.4, "coupling": float("inf")}, "inf"),
        ({"beta": 0.4, "field": float("nan")}, "nan"),
        ({"beta": 0.4, "shape": (4, 1)}, "[4, 1]"),
    ],
)
def test_meaningless_couplings_are_refused(couplings: dict[str, object], word: str) -> None:
    with pytest.raises(ParameterError) as caught:
        Ising(**{"shape": (4, 4), **couplings})  # type: ignore[arg-type]
    assert word in caught.value.got


@pytest.mark.parametrize("theory", [Ising((4, 4), 0.3, field=0.2), Ising((3, 4), 0.5, coupling=-1.0)], ids=repr)
def test_transfer_matrix_draws_are_those_of_the_enumeration(theory: Ising, rng: np.random.Generator) -> None:
    exact, n = ExactIsing(theory), 20000
    drawn = transfer_matrix_draws(theory, rng, n)
    scores = []
    # Products of spins span all functions of a configuration.
    for _ in range(30):
        chosen = rng.random(theory.volume) < 0.2

        def product(field: np.ndarray, chosen: np.ndarray = chosen) -> np.ndarray:
            return np.asarray(field.reshape(len(field), -1)[:, chosen].prod(1, dtype=np.float64))

        mean = exact.expectation(product(exact.states))
        if abs(mean) < 1 - 1e-12:
            scores.append((product(drawn).mean() - mean) / np.sqrt((1 - mean**2) / n))
    assert family_p_value(np.array(scores)) > 1e-5


def test_too_large_lattices_are_not_enumerated() -> None:
    with pytest.raises(ParameterError, match="transfer_matrix_draws"):
        enumerate_spins((5, 5))
    for shape in ((4, 12), (4, 2, 2)):
        with pytest.raises(ParameterError, match="two dimensions"):
            transfer_matrix_draws(Ising(shape, 0.4), np.random.default_rng(0), 3)


class TestSpaces:
    def test_every_space_is_that_of_a_theory(self) -> None:
        assert {theory.space.name for theory in THEORIES.values()} == set(SPACES)
        assert all(SPACES[theory.space.name].dtype == theory.space.dtype for theory in THEORIES.values())

    def test_spins_are_plus_and_minus_one(self) -> None:
        rows = np.array([[1, -1, 1], [0, 1, 1], [1, 1, 2], [-1, -1, -1]], np.int8)
        np.testing.assert_array_equal(SpinSpace().contains(rows), [True, False, False, True])
        nan = np.array([[1.0, np.nan], [0.5, 1.0], [1.0, -1.0]])
        np.testing.assert_array_equal(SpinSpace().contains(nan), [False, False, True])

    def test_real_fields_are_finite(self) -> None:
        rows = np.array([[0.0, 1e300], [np.inf, 0.0], [np.nan, 0.0]])
        np.testing.assert_array_equal(RealSpace().contains(rows), [True, False, False])

    def test_hot_spins_are_fair_and_independent(self, rng: np.random.Generator) -> None:
        spins = SpinSpace().start(rng, 4000, (3, 4), "hot").reshape(4000, -1).astype(float)
        scores = [spins.mean() * np.sqrt(spins.size), (spins[:, 1:] * spins[:, :-1]).mean() * np.sqrt(4000 * 11)]
        assert family_p_value(np.array(scores)) > 1e-5

    @pytest.mark.parametrize("kind", ["warm", ""])
    def test_unknown_starts_are_refused(self, kind: str) -> None:
        with pytest.raises(ParameterError, match="cold"):
            Ising((4, 4), 0.4).start(np.random.default_rng(0), 3, kind)

    def test_chains_start_inside_the_space_of_their_theory(self) -> None:
        theory = Ising((4, 4), 0.4)
        flow = as_proposal(build_flow({"kind": "autoregressive"}, theory).double())
        cycle = Cycle(theory, (FlowProposals(Independence(theory), flow, 1, 1),))
        assert cycle.init(np.ones((3, 4, 4))).field.dtype == np.int8
        for outside in (0.0, 0.5, -3.0):
            field = np.ones((3, 4, 4))
            field[1, 2, 3] = outside
            with pytest.raises(ParameterError, match="1 of 3 starting fields"):
                cycle.init(field)

    @pytest.mark.parametrize("theory", [Phi4((4, 4), 1.0, 1.0), FreeScalar((4, 4), 1.0)], ids=repr)
    def test_real_theories_take_no_proposals_of_spins(self, theory: Phi4 | FreeScalar) -> None:
        flow = as_proposal(build_flow({"kind": "autoregressive"}, Ising((4, 4), 0.4)).double())
        with pytest.raises(TheoryMismatchError, match="spin"):
            FlowProposals(Independence(theory), flow, 1, 1)
