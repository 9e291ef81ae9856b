"""Metropolis updates of U(1) links: which links move together, detailed balance, and exact averages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import iv

from flowmc.errors import ParameterError
from flowmc.kernels import Cycle, CycleMember, LinkMetropolis, LocalUpdates
from flowmc.kernels.links import link_parts
from flowmc.sampling import MemoryStore, SamplingPlan, sample
from flowmc.seeds import jax_key
from flowmc.testing import ExactStart, KernelContract, acceptance_probabilities, gauge_start
from flowmc.theories import FreeScalar, Schwinger, Theory, U1Gauge2D
from flowmc.theories.u1 import plaquette_angles
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.zscores import judge, z_score

THEORY = U1Gauge2D((4, 6), 2.0)


def plaquettes_of_links(shape: tuple[int, ...]) -> np.ndarray:
    """Which plaquettes each link is in, (links, plaquettes), from the slopes of the plaquettes themselves."""
    n_links = 2 * shape[0] * shape[1]
    turned = np.eye(n_links).reshape(n_links, *shape, 2)
    return np.asarray(plaquette_angles(turned).reshape(n_links, -1) != 0)


@pytest.mark.parametrize("shape", [(4, 6), (2, 4), (2, 2)], ids=str)
def test_links_that_move_together_share_no_plaquette(shape: tuple[int, ...]) -> None:
    parts = link_parts(shape).reshape(4, -1)
    np.testing.assert_array_equal(parts.sum(0), 1)
    member = plaquettes_of_links(shape)
    np.testing.assert_array_equal(member.sum(1), 2)
    for part in parts:
        np.testing.assert_array_equal(member[part].sum(0), 1)


def test_action_change_is_that_of_one_link(rng: np.random.Generator) -> None:
    kernel = LinkMetropolis(THEORY)
    field = THEORY.start(rng, 2, "hot")
    move = rng.uniform(-1, 1, field.shape)
    found = np.asarray(kernel.action_change(jnp.asarray(field), jnp.asarray(move)))
    for index in np.ndindex(*THEORY.field_shape):
        other = field.copy()
        other[:, *index] += move[:, *index]
        expected = THEORY.action(other) - THEORY.action(field)
        np.testing.assert_allclose(found[:, *index], expected, atol=1e-12)


def test_a_link_moves_with_the_probability_of_metropolis(rng: np.random.Generator) -> None:
    # Detailed balance of one link: forward and backward probabilities are in the ratio of the weights.
    kernel, n = LinkMetropolis(U1Gauge2D((2, 2), 1.5)), 50
    field = kernel.theory.start(rng, n, "hot")
    move = np.zeros(field.shape)
    move[:, 1, 0, 1] = rng.uniform(-kernel.width, kernel.width, n)

    def probability(start: np.ndarray, step: np.ndarray) -> np.ndarray:
        change = np.asarray(kernel.action_change(jnp.asarray(start), jnp.asarray(step)))[:, 1, 0, 1]
        return acceptance_probabilities(lambda log_u: log_u < np.minimum(0, -change), n)

    there, back = probability(field, move), probability(field + move, -move)
    ratio = np.exp(kernel.theory.action(field) - kernel.theory.action(field + move))
    np.testing.assert_allclose(there, back * ratio, rtol=1e-10)


@pytest.mark.parametrize("beta", [2.0, 8.0])
def test_half_of_the_moves_are_accepted_and_counted(beta: float, test_seed: int) -> None:
    theory = U1Gauge2D((4, 4), beta)
    kernel = LinkMetropolis(theory)
    field = gauge_start(theory).draw(np.random.default_rng(test_seed), 400)
    state = Cycle(theory, (LocalUpdates(kernel, 1, 1),)).init(field)
    after, info = jax.jit(kernel.step)(jax_key(test_seed), state)
    differs = np.asarray(after.field) != field
    np.testing.assert_allclose(info.acceptance, differs.mean((1, 2, 3)), atol=1e-12)
    np.testing.assert_array_equal(info.moved, differs.any((1, 2, 3)))
    turn = np.abs((np.asarray(after.field) - field + np.pi) % (2 * np.pi) - np.pi)
    assert turn.max() <= kernel.width + 1e-12
    assert 0.4 < differs.mean() < 0.6
    assert np.all((np.asarray(after.field) >= -np.pi) & (np.asarray(after.field) <= np.pi))


class TestContract(KernelContract):
    @pytest.fixture
    def theory(self) -> Theory:
        return U1Gauge2D((4, 4), 2.0)

    @pytest.fixture
    def target(self, theory: U1Gauge2D) -> ExactStart:
        return gauge_start(theory)

    @pytest.fixture
    def member(self, theory: U1Gauge2D) -> CycleMember:
        return LocalUpdates(LinkMetropolis(theory), 4, 2)


def test_a_chain_has_the_exact_plaquette(test_seed: int) -> None:
    theory = U1Gauge2D((4, 4), 1.0)
    plan = SamplingPlan(64, 200, thermalisation=50, tuning=0, cycles_per_block=50)
    store = MemoryStore()
    member = LocalUpdates(LinkMetropolis(theory), test_seed, 2)
    observers = theory.identities()
    start = theory.start(np.random.default_rng(test_seed), 64, "cold")
    sample(Cycle(theory, (member,)), plan, store, lambda: start, observers=observers)
    order = np.arange(-40, 41)
    slope = 0.5 * (iv(order - 1, 1.0) + iv(order + 1, 1.0))
    exact = (iv(order, 1.0) ** 15 * slope).sum() / (iv(order, 1.0) ** 16).sum()
    plaquette = gamma_method(-store.table("configurations", "action").T / 16).estimate
    slopes = gamma_method(store.table("observables", "link_slopes").T).estimate
    scores = [
        z_score("plaquette", plaquette.value, exact, plaquette.error),
        z_score("link_slopes", slopes.value, 0.0, slopes.error),
    ]
    assert judge(scores, level=1e-5).passed, scores


def test_what_the_kernel_cannot_move_is_refused() -> None:
    for theory, word in (
        (Schwinger((4, 4), 2.0, 0.2), "pseudofermion_hmc"),
        (FreeScalar((4, 4), 1.0), "hmc"),
        (U1Gauge2D((4, 3), 1.0), "even"),
    ):
        with pytest.raises(ParameterError) as caught:
            LinkMetropolis(theory)  # type: ignore[arg-type]
        assert word in caught.value.fix
    for width in (-1.0, 4.0, float("nan")):
        with pytest.raises(ParameterError, match="width"):
            LinkMetropolis(THEORY, width)
