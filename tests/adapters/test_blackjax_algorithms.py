"""Our kernels as algorithms of BlackJAX: right signs on a skewed target, BlackJAX's own loop, and its SMC samplers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import log, pi
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.proposals import DeviceProposal, Proposal
from flowmc.testing import ExactStart, GaussianProposal, exact_start_scores
from flowmc.theories import FreeScalar
from flowmc_adapters.blackjax import SamplingAPI, hmc, hybrid, independence, irmh, logdensity_of
from flowmc_analysis.zscores import family_p_value

FALSE_ALARM = 1e-5
CHAINS = 4000
Q = 2.0


@pytest.fixture(autouse=True)
def _quick_compilation() -> Iterator[None]:
    """Compilation takes nearly all the time of these tests, and what it is optimised for is no matter of exactness."""
    jax.config.update("jax_disable_most_optimizations", True)  # type: ignore[no-untyped-call]
    yield
    jax.config.update("jax_disable_most_optimizations", False)  # type: ignore[no-untyped-call]


class DeviceGaussian(GaussianProposal):
    """White noise as a proposal that is made of JAX, with a factor in front of its log q for tests of wrong signs."""

    def __init__(self, shape: tuple[int, ...], width: float, sign: float = 1.0) -> None:
        super().__init__(shape, width)
        self.shape, self.width, self.sign = shape, width, sign

    def device_sample(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        field = self.width * jax.random.normal(key, (n, *self.shape))
        return field, self.device_log_prob(field)

    def device_log_prob(self, field: jax.Array) -> jax.Array:
        flat = field.reshape(len(field), -1) / self.width
        return self.sign * (-0.5 * (flat**2).sum(1) - flat.shape[1] * (log(self.width) + 0.5 * log(2 * pi)))


def skewed(position: jax.Array) -> jax.Array:
    """log N(1, 1) up to a constant, of which the proposal N(0, 2²) is no mirror image."""
    return -0.5 * jnp.sum((position - 1.0) ** 2)


SKEWED = ExactStart(lambda generator, n: generator.normal(1.0, 1.0, (n, 1)), {"phi": lambda field: field[:, 0]})


def kept(algorithm: Any, target: ExactStart, rng: np.random.Generator, n_steps: int = 10) -> float:
    """Return the p-value of the hypothesis that the algorithm keeps the target."""

    def chain(key: jax.Array, position: jax.Array) -> jax.Array:
        keys = jax.random.split(key, n_steps)
        state = algorithm.init(position, None)
        last, _ = jax.lax.scan(lambda now, step: (algorithm.step(step, now)[0], None), state, keys)
        return jnp.asarray(last.position)

    def kernel(field: np.ndarray) -> np.ndarray:
        keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), len(field))
        return np.asarray(jax.jit(jax.vmap(chain))(keys, jnp.asarray(field)))

    return family_p_value(np.array(list(exact_start_scores(target, kernel, rng, CHAINS).values())))


class TestSigns:
    def test_the_right_ones_keep_a_skewed_target(self, rng: np.random.Generator) -> None:
        proposal = DeviceGaussian((1,), Q)
        assert isinstance(proposal, DeviceProposal)
        assert kept(independence(skewed, proposal), SKEWED, rng) > FALSE_ALARM
        assert kept(irmh(skewed, proposal), SKEWED, rng) > FALSE_ALARM
        assert kept(hybrid(skewed, proposal, 0.9, 2, proposals=2), SKEWED, rng) > FALSE_ALARM

    @pytest.mark.parametrize("sign", [0.0, -1.0])
    def test_wrong_ones_of_ours_are_noticed(self, sign: float, rng: np.random.Generator) -> None:
        assert kept(independence(skewed, DeviceGaussian((1,), Q, sign)), SKEWED, rng) < FALSE_ALARM

    @pytest.mark.parametrize("wrong", ["swapped", "left out"])
    def test_wrong_ones_of_blackjax_are_noticed(self, wrong: str, rng: np.random.Generator) -> None:
        proposal = DeviceGaussian((1,), Q)

        def swapped(new: Any, previous: Any) -> jax.Array:  # noqa: ARG001
            return proposal.device_log_prob(new.position[None])[0]

        density = swapped if wrong == "swapped" else None
        algorithm = blackjax.irmh(skewed, lambda key: proposal.device_sample(key, 1)[0][0], density)
        assert kept(algorithm, SKEWED, rng) < FALSE_ALARM


class TestFields:
    THEORY = FreeScalar((4, 2), 0.8)

    @pytest.fixture
    def target(self) -> ExactStart:
        return ExactStart(
            self.THEORY.draw,
            {"action": self.THEORY.action, "magnetisation": lambda field: field.mean(axis=(1, 2))},
        )

    def test_hmc_and_hybrid_keep_the_free_field(self, target: ExactStart, rng: np.random.Generator) -> None:
        logdensity_fn = logdensity_of(self.THEORY)
        assert kept(hmc(logdensity_fn, 0.5, 3, integrator="leapfrog"), target, rng, 3) > FALSE_ALARM
        proposal = DeviceGaussian((4, 2), 0.5)
        assert kept(hybrid(logdensity_fn, proposal, 0.5, 3, trajectories=2), target, rng, 3) > FALSE_ALARM

    def test_info_tells_of_energies_and_weights(self, test_seed: int) -> None:
        logdensity_fn = logdensity_of(self.THEORY)
        proposal = DeviceGaussian((4, 2), 0.5)
        algorithm = hybrid(logdensity_fn, proposal, 0.3, 3, trajectories=2, proposals=5)
        state = algorithm.init(jnp.zeros((4, 2)))
        after, info = jax.jit(algorithm.step)(jax.random.key(test_seed), state)
        assert info.hmc.delta_H.shape == (2,)
        assert info.flow.log_weight.shape == (5,)
        assert 0 <= info.acceptance_rate <= 1
        assert bool(info.is_accepted) == bool((after.position != state.position).any())
        np.testing.assert_allclose(after.logdensity, -self.THEORY.action(np.asarray(after.position)[None])[0])
        np.testing.assert_allclose(after.logdensity_grad, self.THEORY.force(np.asarray(after.position)[None])[0])
        np.testing.assert_allclose(after.log_q, proposal.log_prob(np.asarray(after.position)[None])[0])

    @pytest.mark.parametrize("name", ["hmc", "independence", "hybrid"])
    def test_runs_in_the_loop_of_blackjax(self, name: str, test_seed: int) -> None:
        logdensity_fn = logdensity_of(self.THEORY)
        # A host proposal, as any flow of torch is: called back.
        proposal: Proposal = GaussianProposal((4, 2), 0.5)
        algorithm = {
            "hmc": lambda: hmc(logdensity_fn, 0.3, 3),
            "independence": lambda: independence(logdensity_fn, proposal),
            "hybrid": lambda: hybrid(logdensity_fn, proposal, 0.3, 3),
        }[name]()
        assert isinstance(algorithm, blackjax.SamplingAlgorithm)
        last, (states, infos) = blackjax.util.run_inference_algorithm(
            jax.random.key(test_seed), algorithm, 50, initial_position=jnp.zeros((4, 2))
        )
        fields = np.asarray(states.position)
        assert fields.shape == (50, 4, 2)
        np.testing.assert_array_equal(last.position, fields[-1])
        assert 0 < np.asarray(infos.is_accepted).mean() <= 1
        np.testing.assert_allclose(states.logdensity, -self.THEORY.action(fields), rtol=1e-12)
        if name != "hmc":
            # log q is kept beside the state; it must belong to the position that it is kept with.
            np.testing.assert_allclose(states.log_q, proposal.log_prob(fields), rtol=1e-12)

    def test_unknown_integrator_is_refused(self) -> None:
        with pytest.raises(ParameterError, match="integrator"):
            hmc(skewed, 0.1, 1, integrator="euler")

    def test_positions_of_another_shape_are_refused(self) -> None:
        flow = GaussianProposal((4, 2), 0.5)
        for algorithm in (independence(skewed, flow), hybrid(skewed, flow, 0.1, 2)):
            with pytest.raises(LatticeMismatchError, match="position"):
                algorithm.init(jnp.zeros((2, 4)))

    def test_hybrids_of_one_kind_alone_are_refused(self) -> None:
        for numbers in ({"proposals": 0}, {"trajectories": 0}):
            with pytest.raises(ParameterError, match="at least one"):
                hybrid(skewed, GaussianProposal((4, 2), 0.5), 0.1, 2, **numbers)


CASES: dict[str, tuple[SamplingAPI, tuple[Any, ...], dict[str, Any]]] = {
    "hmc": (hmc, (), {"step_size": 0.5, "num_integration_steps": 3}),
    "independence": (independence, (DeviceGaussian((1,), Q),), {}),
    "hybrid": (hybrid, (DeviceGaussian((1,), Q),), {"step_size": 0.5, "num_integration_steps": 3}),
}


@pytest.mark.parametrize(
    ("name", "adaptive"), [("hmc", True), ("hmc", False), ("independence", True), ("hybrid", False)]
)
def test_moves_the_particles_of_tempered_smc(name: str, adaptive: bool, test_seed: int) -> None:
    """From N(0, 2²) to N(1, 1) with our kernels inside, by an adaptive or a fixed schedule."""
    api, proposal, parameters = CASES[name]
    prior = DeviceGaussian((1,), Q)

    def log_prior(position: jax.Array) -> jax.Array:
        return prior.device_log_prob(position[None])[0]

    def log_likelihood(position: jax.Array) -> jax.Array:
        return skewed(position) - log_prior(position)

    n = 2000
    arguments = (
        log_prior,
        log_likelihood,
        api.build_kernel(*proposal),
        partial(api.init, proposal=proposal[0]) if proposal else api.init,
        {key: jnp.asarray([value]) for key, value in parameters.items()},
        blackjax.smc.resampling.systematic,
    )
    start = jnp.asarray(prior.sample(test_seed, n)[0])
    if adaptive:
        sampler = blackjax.adaptive_tempered_smc(*arguments, target_ess=0.5, num_mcmc_steps=3)
    else:
        sampler = blackjax.tempered_smc(*arguments, num_mcmc_steps=3)
    step = jax.jit(sampler.step)
    state = sampler.init(start)._replace(tempering_param=jnp.zeros(()))
    for number, inverse_temperature in enumerate((0.1, 0.3, 0.6, 1.0)):
        state, _ = step(jax.random.key(test_seed + number), state, *([] if adaptive else [inverse_temperature]))
    assert state.tempering_param == 1.0
    weights, field = np.asarray(state.weights), np.asarray(state.particles)[:, 0]
    mean = (weights * field).sum()
    # Weighted particles that share ancestors: rather twice the naive error than too small a one.
    error = 2 * np.sqrt((weights**2 * (field - mean) ** 2).sum())
    assert abs(mean - 1) < 4 * error
