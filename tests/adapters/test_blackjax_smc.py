"""Tempered SMC from a flow: ln Z of the free field, weighted samples, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import log, pi
from typing import Any

import jax
import numpy as np
import pytest

from flowmc.errors import FlowmcError, LatticeMismatchError, ParameterError, TheoryMismatchError
from flowmc.lattice import momentum_squared
from flowmc.proposals import ProposalMetadata
from flowmc.testing import GaussianProposal
from flowmc.theories import FreeScalar, Ising
from flowmc_adapters.blackjax import FlowSMC, SMCResult, flow_smc

THEORY = FreeScalar((4, 2), 0.8)
EXACT = float(0.5 * np.log(pi / (momentum_squared(THEORY.shape) + THEORY.mass**2)).sum())
SITES = THEORY.volume


@pytest.fixture(autouse=True)
def _quick_compilation() -> Iterator[None]:
    """Compilation takes nearly all the time of these tests, and what it is optimised for is no matter of exactness."""
    jax.config.update("jax_disable_most_optimizations", True)  # type: ignore[no-untyped-call]
    yield
    jax.config.update("jax_disable_most_optimizations", False)  # type: ignore[no-untyped-call]


class DeviceGaussian(GaussianProposal):
    """White noise as a proposal that is made of JAX."""

    def __init__(self, width: float) -> None:
        super().__init__(THEORY.shape, width)
        self.width = width

    def device_sample(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        field = self.width * jax.random.normal(key, (n, *THEORY.shape))
        return field, self.device_log_prob(field)

    def device_log_prob(self, field: jax.Array) -> jax.Array:
        flat = field.reshape(len(field), -1) / self.width
        return -0.5 * (flat**2).sum(1) - SITES * (log(self.width) + 0.5 * log(2 * pi))


def actions(result: SMCResult) -> np.ndarray:
    field = result.field
    return np.asarray(THEORY.action(field.reshape(-1, *THEORY.shape)).reshape(field.shape[:2]))


@pytest.mark.parametrize("inner", ["hmc", "independence", "random_walk"])
def test_ln_z_and_samples_of_the_free_field(inner: str, test_seed: int) -> None:
    # A proposal on the host for the walk; the others need the gradient, or many single draws.
    proposal = GaussianProposal(THEORY.shape, 0.6) if inner == "random_walk" else DeviceGaussian(0.6)
    repeats = 12
    result = flow_smc(THEORY, proposal, test_seed, inner=inner, particles=500, repeats=repeats)
    # Student's t with eleven degrees of freedom: 6.5 of its errors are as rare as 4.5 of a normal one's.
    assert abs(result.log_z - EXACT) < 6.5 * result.log_z_error
    assert result.log_z_error < 0.3
    assert result.schedule[-1] == 1
    assert (np.diff(result.schedule) > 0).all()
    mean, error = result.expectation(actions(result))
    assert abs(mean - SITES / 2) < 6.5 * error
    assert result.field.shape == (repeats, 500, *THEORY.shape)
    assert len(result.step_sizes) == len(result.acceptance) == len(result.schedule)


class Shifted(GaussianProposal):
    """A proposal whose log q is wrong by one nat."""

    def log_prob(self, field: np.ndarray) -> np.ndarray:
        return super().log_prob(field) + 1.0


def test_wrong_log_q_is_seen_and_runs_repeat_themselves(test_seed: int) -> None:
    settings = FlowSMC(THEORY, Shifted(THEORY.shape, 0.6), particles=500)
    one, again = settings.run(test_seed, 12), settings.run(test_seed, 12)
    np.testing.assert_array_equal(one.log_z_runs, again.log_z_runs)
    np.testing.assert_array_equal(one.field, again.field)
    assert len(set(one.log_z_runs)) == 12
    assert abs(one.log_z - EXACT) > 6.5 * one.log_z_error
    assert abs(one.log_z + 1.0 - EXACT) < 6.5 * one.log_z_error


def test_hmc_moves_the_particles_where_there_are_gradients() -> None:
    assert FlowSMC(THEORY, DeviceGaussian(0.6)).kernel == "hmc"
    assert FlowSMC(THEORY, GaussianProposal(THEORY.shape, 0.6)).kernel == "random_walk"


class TestRefusals:
    @pytest.mark.parametrize(
        ("changed", "error"),
        [
            ({"inner": "hmc"}, ParameterError),
            ({"inner": "nuts"}, ParameterError),
            ({"particles": 1}, ParameterError),
            ({"target_ess": 1.5}, ParameterError),
            ({"proposal": GaussianProposal((4, 4), 0.5)}, LatticeMismatchError),
            ({"theory": Ising((4, 2), 0.3)}, TheoryMismatchError),
        ],
        ids=["gradient", "unknown", "particles", "ess", "lattice", "space"],
    )
    def test_what_does_not_fit(self, changed: dict[str, Any], error: type[FlowmcError]) -> None:
        settings: dict[str, Any] = {"theory": THEORY, "proposal": GaussianProposal(THEORY.shape, 0.5), **changed}
        with pytest.raises(error):
            FlowSMC(**settings)

    def test_flow_of_smaller_support(self) -> None:
        class Bounded(GaussianProposal):
            @property
            def metadata(self) -> ProposalMetadata:
                return replace(super().metadata, full_support=False)

        with pytest.raises(ParameterError, match="support"):
            FlowSMC(THEORY, Bounded(THEORY.shape, 0.5))

    def test_too_few_runs_for_an_error(self) -> None:
        with pytest.raises(ParameterError, match="repeats"):
            FlowSMC(THEORY, GaussianProposal(THEORY.shape, 0.5)).run(1, 1)
