"""The flow as a move of emcee: the right distribution, the caches, unusable draws, and resuming."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any, ClassVar

import emcee
import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from flowmc.errors import CertificateError, LatticeMismatchError, NonFiniteError, ParameterError
from flowmc.proposals import ProposalMetadata, certify
from flowmc.seeds import numpy_generator
from flowmc.testing import ExactStart, GaussianProposal, exact_start_scores
from flowmc_adapters import emcee as adapter
from flowmc_adapters.emcee import FlowMove
from flowmc_analysis.gamma import gamma_method

Array = NDArray[np.float64]


class Counting:
    """A proposal that counts how often it is asked, and what for; what it returns may be spoilt."""

    def __init__(
        self, inner: Any, spoil: Callable[[Array, Array, int], None] = lambda *_: None, **changed: Any
    ) -> None:
        self.inner, self.spoil, self.changed = inner, spoil, changed
        self.seeds: list[int] = []
        self.evaluated: list[int] = []

    @property
    def metadata(self) -> ProposalMetadata:
        return ProposalMetadata(**{**vars(self.inner.metadata), **self.changed})

    def sample(self, seed: int, n: int) -> tuple[Array, Array]:
        self.seeds.append(seed)
        field, log_q = self.inner.sample(seed, n)
        self.spoil(field, log_q, seed)
        return field, log_q

    def log_prob(self, field: Array) -> Array:
        self.evaluated.append(len(field))
        found: Array = self.inner.log_prob(field)
        return found


class Box:
    """Uniform draws of one number between −2 and 2."""

    metadata = ProposalMetadata((1,), "float64", True, True, "box", full_support=False)

    def sample(self, seed: int, n: int) -> tuple[Array, Array]:
        field = numpy_generator(seed).uniform(-2, 2, (n, 1))
        return field, self.log_prob(field)

    def log_prob(self, field: Array) -> Array:
        return np.where(np.abs(field[:, 0]) < 2, -log(4.0), -np.inf)


def skewed(x: Array) -> Array:
    """N(1, 1), which a wrong sign moves."""
    log_p: Array = -0.5 * ((x - 1.0) ** 2).sum(axis=1)
    return log_p


def sampler_of(moves: Any, n_walkers: int, ndim: int, seed: int, target: Any = skewed, **options: Any) -> Any:
    sampler = emcee.EnsembleSampler(n_walkers, ndim, target, moves=moves, vectorize=True, **options)
    # emcee begins with NumPy's global state.
    sampler.random_state = np.random.RandomState(seed).get_state()
    return sampler


def kernel_of(moves: Any, ndim: int, seed: int, steps: int = 3) -> Callable[[Array], Array]:
    def kernel(field: Array) -> Array:
        sampler = sampler_of(moves, len(field), ndim, seed)
        state = sampler.run_mcmc(field, steps, store=False, skip_initial_state_check=True)
        coords: Array = state.coords
        return coords

    return kernel


def reversed_factors(proposal: GaussianProposal) -> Any:
    """Independence Metropolis as emcee's own move, with log q(new) − log q(old): the wrong way round."""

    def propose(coords: Array, random: np.random.RandomState) -> tuple[Array, Array]:
        field, log_q = proposal.sample(int(random.randint(0, 2**31)), len(coords))
        return field, log_q - proposal.log_prob(coords)

    return emcee.moves.MHMove(propose)


TARGET = ExactStart(
    lambda generator, n: generator.normal(1.0, 1.0, (n, 1)),
    {"x": lambda x: x[:, 0], "exceeds": lambda x: (x[:, 0] > 1.5).astype(np.float64)},
)


class TestDistribution:
    def test_leaves_a_skewed_target_invariant(self, rng: np.random.Generator, test_seed: int) -> None:
        move = FlowMove(GaussianProposal((1,), 2.0))
        scores = exact_start_scores(TARGET, kernel_of(move, 1, test_seed % 2**32), rng, 20_000)
        assert max(map(abs, scores.values())) < 5, scores
        assert 0.4 < move.acceptance_fraction < 0.8
        assert move.n_nonfinite == move.n_offsupport == 0

    def test_the_wrong_sign_is_caught(self, rng: np.random.Generator, test_seed: int) -> None:
        wrong = reversed_factors(GaussianProposal((1,), 2.0))
        scores = exact_start_scores(TARGET, kernel_of(wrong, 1, test_seed % 2**32), rng, 20_000)
        assert max(map(abs, scores.values())) > 10, scores

    def test_finds_the_target_from_elsewhere(self, test_seed: int) -> None:
        move = FlowMove(GaussianProposal((2,), 2.0), steps_per_batch=50)
        sampler = sampler_of(move, 10, 2, test_seed % 2**32)
        sampler.run_mcmc(np.full((10, 2), 5.0), 1500, skip_initial_state_check=True)
        chain = sampler.get_chain(discard=100)
        for values, exact in ((chain[..., 0], 1.0), (chain[..., 1] ** 2, 2.0)):
            found = gamma_method(values.T).estimate
            assert abs(found.value - exact) < 5 * found.error

    def test_mixes_with_moves_of_emcee_at_few_walkers(self, test_seed: int) -> None:
        move = FlowMove(GaussianProposal((3, 4), 1.5))
        moves = [(move, 0.5), (emcee.moves.GaussianMove(0.05), 0.3), (emcee.moves.DEMove(live_dangerously=True), 0.2)]
        sampler = sampler_of(moves, 6, 12, test_seed % 2**32)
        sampler.run_mcmc(np.zeros((6, 12)), 6000, skip_initial_state_check=True)
        chain = sampler.get_chain(discard=500)
        assert move.n_accepted > 100
        # Walkers that move along each other's differences are no replicas, their common mean is one chain.
        for values, exact in ((chain, 1.0), (chain**2, 2.0)):
            found = gamma_method(values.mean(axis=(1, 2))).estimate
            assert abs(found.value - exact) < 5 * found.error
        # emcee alone refuses so few walkers.
        with pytest.raises(RuntimeError, match="fewer walkers"):
            sampler_of(emcee.moves.StretchMove(), 6, 12, 1).run_mcmc(
                np.zeros((6, 12)), 1, skip_initial_state_check=True
            )

    def test_walkers_of_zero_density_are_freed(self, test_seed: int) -> None:
        def halved(x: Array) -> Array:
            return np.where(x[:, 0] > 0, skewed(x), -np.inf)

        sampler = sampler_of(FlowMove(GaussianProposal((1,), 2.0)), 8, 1, test_seed % 2**32, halved)
        state = sampler.run_mcmc(np.full((8, 1), -1.0), 60, skip_initial_state_check=True)
        assert (state.coords > 0).all()


class TestCaches:
    def test_log_prob_is_called_for_moved_walkers_only(self, rng: np.random.Generator, test_seed: int) -> None:
        proposal = Counting(GaussianProposal((2, 2), 1.5))
        move, other = FlowMove(proposal), emcee.moves.GaussianMove(0.5)
        random = np.random.RandomState(test_seed % 2**32)
        sampler = sampler_of(move, 12, 4, 1)
        model = emcee.model.Model(sampler.log_prob_fn, sampler.compute_log_prob, map, random)
        coords = rng.standard_normal((12, 4))
        state = emcee.State(coords, log_prob=skewed(coords))
        expected = [12]
        for _ in range(5):
            state, _ = move.propose(model, state)
            state, _ = move.propose(model, state)
            assert proposal.evaluated == expected
            state, accepted = other.propose(model, state)
            state, _ = move.propose(model, state)
            expected += [int(accepted.sum())] if accepted.any() else []
            assert proposal.evaluated == expected
            np.testing.assert_allclose(move._log_q, proposal.inner.log_prob(state.coords.reshape(-1, 2, 2)), rtol=1e-13)
            np.testing.assert_array_equal(move._coords, state.coords)

    def test_flows_made_of_jax_are_given_batches_of_one_size(self, test_seed: int) -> None:
        class OnDevice(GaussianProposal):
            sizes: ClassVar[set[int]] = set()

            def log_prob(self, field: NDArray[Any]) -> Array:
                self.sizes.add(len(field))
                return super().log_prob(field)

            def device_sample(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
                raise NotImplementedError

            def device_log_prob(self, field: jax.Array) -> jax.Array:
                raise NotImplementedError

        move = FlowMove(OnDevice((2,), 1.5))
        OnDevice.sizes.clear()
        sampler = sampler_of([(move, 0.5), (emcee.moves.GaussianMove(0.5), 0.5)], 9, 2, test_seed % 2**32)
        state = sampler.run_mcmc(np.arange(18.0).reshape(9, 2) ** 2 / 100, 50)
        state, _ = move.propose(emcee.model.Model(None, sampler.compute_log_prob, map, sampler._random), state)
        # Nine draws and nine walkers.
        assert OnDevice.sizes == {9}
        expected = GaussianProposal((2,), 1.5).log_prob(state.coords)
        np.testing.assert_allclose(move._log_q, expected, rtol=1e-13)

    def test_statistics_are_those_of_the_move_alone(self, test_seed: int) -> None:
        move = FlowMove(GaussianProposal((1,), 2.0))
        sampler = sampler_of([(move, 0.5), (emcee.moves.GaussianMove(1.0), 0.5)], 7, 1, test_seed % 2**32)
        assert np.isnan(move.acceptance_fraction)
        sampler.run_mcmc(np.linspace(0, 1, 7)[:, None], 100)
        steps = len(move.accepted)
        assert 20 < steps < 80
        assert move.accepted.shape == move.log_weight.shape == move.log_weight_current.shape == (steps, 7)
        assert (move.n_proposed, move.n_accepted) == (7 * steps, move.accepted.sum())
        weight = np.exp(move.log_weight)
        # Of N(1, 1) without its constant and a normalised q: the mean weight is √(2π).
        assert abs(weight.mean() - np.sqrt(2 * np.pi)) < 5 * weight.std() / np.sqrt(weight.size)
        move.reset_statistics()
        assert move.n_proposed == move.log_weight.size == 0

    def test_each_draw_is_used_once(self, test_seed: int) -> None:
        proposal = Counting(GaussianProposal((1,), 2.0))
        move = FlowMove(proposal, steps_per_batch=4)
        for n_walkers in (5, 3):
            sampler = sampler_of(move, n_walkers, 1, test_seed % 2**32)
            sampler.run_mcmc(np.linspace(0, 1, n_walkers)[:, None], 10)
        assert len(set(proposal.seeds)) == len(proposal.seeds)
        weights = np.concatenate(move._log_weight)
        assert len(np.unique(weights)) == weights.size == 80


class TestUnusable:
    def test_broken_draws_are_counted_and_never_raised(self, test_seed: int) -> None:
        broken = 0

        def spoil(field: Array, log_q: Array, seed: int) -> None:
            nonlocal broken
            kind = numpy_generator(seed, "kind").integers(0, 10, len(log_q))
            field[kind == 0] = np.nan
            field[kind == 1, 0] = np.inf
            for number, value in ((2, np.nan), (3, np.inf), (4, -np.inf)):
                log_q[kind == number] = value
            broken += int((kind < 5).sum())

        move = FlowMove(Counting(GaussianProposal((2,), 2.0), spoil))
        sampler = sampler_of(move, 10, 2, test_seed % 2**32)
        sampler.run_mcmc(np.full((10, 2), 1.0) + np.arange(20).reshape(10, 2) ** 2 / 400, 1500)
        assert move.n_nonfinite == broken > 0
        assert np.isneginf(move.log_weight).sum() == broken
        chain = sampler.get_chain(discard=100)
        assert np.isfinite(chain).all()
        # They are broken whatever their position is, so the others are still distributed as the flow's density says.
        found = gamma_method(chain[..., 0].T).estimate
        assert abs(found.value - 1.0) < 5 * found.error

    @pytest.mark.parametrize("with_blobs", [False, True])
    def test_a_target_that_is_not_a_number_rejects(self, with_blobs: bool, test_seed: int) -> None:
        def target(x: Array) -> Any:
            value = -0.5 * (x[0] - 1.0) ** 2 if x[0] < 2 else np.nan if x[0] < 4 else np.inf
            return (value, 2 * x[0]) if with_blobs else value

        move = FlowMove(GaussianProposal((1,), 2.0))
        sampler = emcee.EnsembleSampler(6, 1, target, moves=move)
        sampler.random_state = np.random.RandomState(test_seed % 2**32).get_state()
        sampler.run_mcmc(np.linspace(0, 1, 6)[:, None], 200)
        chain = sampler.get_chain()
        assert chain.max() < 2
        # Of N(0, 4) that is the share beyond 2, the upper tail from one standard deviation on.
        assert abs(move.n_nonfinite / move.n_proposed - 0.1587) < 5 * np.sqrt(0.1587 * 0.8413 / move.n_proposed)
        if with_blobs:
            np.testing.assert_array_equal(sampler.get_blobs(), 2 * chain[..., 0])

    def test_other_errors_of_the_target_are_raised(self) -> None:
        def target(x: Array) -> Array:
            if len(x) and np.abs(x).max() > 1.0:
                raise ValueError("no such model")
            return skewed(x)

        sampler = sampler_of(FlowMove(GaussianProposal((1,), 9.0)), 6, 1, 1, target)
        with pytest.raises(ValueError, match="no such model"):
            sampler.run_mcmc(np.linspace(0, 1, 6)[:, None], 20)

    def test_places_beyond_the_flow_are_legal_and_counted(self, test_seed: int) -> None:
        with pytest.warns(UserWarning, match="support"):
            move = FlowMove(Box())
        moves = [(move, 0.5), (emcee.moves.GaussianMove(4.0), 0.5)]
        sampler = sampler_of(moves, 10, 1, test_seed % 2**32)
        sampler.run_mcmc(np.linspace(2.5, 3.5, 10)[:, None], 3000)
        assert move.n_offsupport > 0
        assert np.isposinf(move.log_weight_current).sum() == move.n_offsupport
        assert not move.accepted[np.isposinf(move.log_weight_current)].any()
        found = gamma_method(sampler.get_chain(discard=200)[..., 0].T).estimate
        assert abs(found.value - 1.0) < 5 * found.error

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_broken_inverse_pass_is_an_error(self, value: float) -> None:
        class Broken(GaussianProposal):
            def log_prob(self, field: NDArray[Any]) -> Array:
                return np.full(len(field), value)

        with pytest.raises(NonFiniteError, match="inverse pass"):
            sampler_of(FlowMove(Broken((1,), 2.0)), 4, 1, 1).run_mcmc(np.linspace(0, 1, 4)[:, None], 1)


class TestResume:
    def run(self, path: Path, proposal: Any, pieces: list[int], seed: int, steps_per_batch: int = 1) -> Array:
        for number, steps in enumerate(pieces):
            # New objects, as in a new process: all that goes on is in the file.
            move = FlowMove(proposal, steps_per_batch=steps_per_batch)
            moves = [(move, 0.6), (emcee.moves.GaussianMove(0.3), 0.4)]
            sampler = sampler_of(moves, 4, 6, seed, backend=emcee.backends.HDFBackend(path))
            if number:
                sampler.random_state = emcee.backends.HDFBackend(path).random_state
            sampler.run_mcmc(None if number else np.zeros((4, 6)), steps, skip_initial_state_check=True)
        chain: Array = emcee.backends.HDFBackend(path).get_chain()
        return chain

    def test_a_resumed_run_repeats_the_uninterrupted_one(self, tmp_path: Path, test_seed: int) -> None:
        seed, proposal = test_seed % 2**32, GaussianProposal((2, 3), 1.3)
        whole = self.run(tmp_path / "whole.h5", proposal, [60], seed)
        pieces = self.run(tmp_path / "pieces.h5", proposal, [7, 33, 20], seed)
        assert len(np.unique(whole[:, 0, 0])) > 5
        np.testing.assert_array_equal(pieces, whole)

    def test_batches_of_a_resumed_run_are_new(self, tmp_path: Path, test_seed: int) -> None:
        proposal = Counting(GaussianProposal((2, 3), 1.3))
        chain = self.run(tmp_path / "pieces.h5", proposal, [20, 20, 20], test_seed % 2**32, steps_per_batch=8)
        assert len(chain) == 60
        # Each piece draws at least one of its own.
        assert len(set(proposal.seeds)) == len(proposal.seeds) >= 3


class TestRefusals:
    @pytest.mark.parametrize("space", ["angle", "spin"])
    def test_fields_that_are_no_real_vectors(self, space: str) -> None:
        with pytest.raises(ParameterError, match=space):
            FlowMove(Counting(GaussianProposal((2,), 1.0), space=space))

    def test_no_step_in_a_batch(self) -> None:
        with pytest.raises(ParameterError, match="steps_per_batch"):
            FlowMove(GaussianProposal((2,), 1.0), steps_per_batch=0)

    def test_other_dimensions(self) -> None:
        with pytest.raises(LatticeMismatchError, match="6"):
            sampler_of(FlowMove(GaussianProposal((2, 3), 1.0)), 4, 5, 1).run_mcmc(
                np.zeros((4, 5)), 1, skip_initial_state_check=True
            )

    def test_draws_of_another_shape(self) -> None:
        class Flat(GaussianProposal):
            def sample(self, seed: int, n: int) -> tuple[Array, Array]:
                field, log_q = super().sample(seed, n)
                return field.reshape(n, -1), log_q

        with pytest.raises(LatticeMismatchError, match="draws of shape"):
            sampler_of(FlowMove(Flat((2, 2), 1.0)), 4, 4, 1).run_mcmc(
                np.zeros((4, 4)), 1, skip_initial_state_check=True
            )

    def test_certificates(self) -> None:
        proposal = GaussianProposal((2,), 1.0)
        certificate = certify(proposal, 1, n_finite=1000, n_compare=100)
        FlowMove(proposal, certificate=certificate)
        with pytest.raises(CertificateError, match="of the proposal"):
            FlowMove(GaussianProposal((2,), 2.0), certificate=certificate)

        class Wrong(GaussianProposal):
            def sample(self, seed: int, n: int) -> tuple[Array, Array]:
                field, log_q = super().sample(seed, n)
                return field, log_q + 0.1 * field[:, 0]

        wrong = Wrong((2,), 1.0)
        with pytest.raises(CertificateError):
            FlowMove(wrong, certificate=certify(wrong, 1, n_finite=1000, n_compare=100))

    def test_a_missing_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "emcee", None)
        specification = importlib.util.spec_from_file_location("without_emcee", str(adapter.__file__))
        assert specification is not None
        assert specification.loader is not None
        with pytest.raises(ParameterError, match="pip install emcee"):
            specification.loader.exec_module(importlib.util.module_from_spec(specification))
