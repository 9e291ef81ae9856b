"""Every adapter of the public list: the contract, the certificate, and the chain that its proposals make."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.adapter_flows import Setting, trained
from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.kernels import Cycle, FlowProposals, Independence
from flowmc.proposals import DeviceProposal, Proposal, TransportProposal
from flowmc.sampling import MemoryStore, SamplingPlan, sample
from flowmc.testing import ProposalContract
from flowmc_adapters import ADAPTERS, proposal
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.zscores import family_p_value

FALSE_ALARM = 1e-5
SHAPE, THEORY, SPINS = Setting().shape, Setting().theory, Setting().ising
MAPS = {
    "bijx", "distrax", "flow_matching", "flowjax", "flowmc_nfmodel", "nflows", "normflows", "torch_distributions",
    "torch_export", "torch_module", "zuko",
}  # fmt: skip
"""Adapters that know the flow as a map of a base, whose log-determinant can be checked."""
DEVICE = {"bijx", "distrax", "flowjax", "flowmc_nfmodel", "jax_callables"}
"""Adapters of flows that are made of JAX."""


@pytest.fixture(params=sorted(ADAPTERS), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


class TestAdapters(ProposalContract):
    @pytest.fixture
    def proposal(self, name: str, flow_of: Callable[[str], Proposal]) -> Proposal:
        return flow_of(name)

    def test_global_generator_of_torch_is_left_alone(self, proposal: Proposal) -> None:
        before = torch.random.get_rng_state()
        proposal.sample(5, 3)
        proposal.log_prob(proposal.sample(6, 3)[0])
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_capabilities(self, proposal: Proposal, name: str) -> None:
        assert isinstance(proposal, TransportProposal) == (name in MAPS)
        assert isinstance(proposal, DeviceProposal) == (name in DEVICE)

    def test_chunks_make_no_difference_to_log_q(self, proposal: Proposal) -> None:
        field, log_q = proposal.sample(7, 1100)
        assert len(field) == len(log_q) == 1100
        np.testing.assert_allclose(proposal.log_prob(field), log_q, atol=1e-8)
        assert len(np.unique(np.round(log_q, 12))) > (1000 if proposal.metadata.space == "real" else 10)

    def test_chain_samples_the_theory(self, proposal: Proposal, test_seed: int) -> None:
        theory = SPINS if proposal.metadata.space == "spin" else THEORY
        cycle = Cycle(theory, (FlowProposals(Independence(theory), proposal, test_seed, 4),))
        store = MemoryStore()
        plan = SamplingPlan(chains=16, cycles=400, thermalisation=50, tuning=0, cycles_per_block=50)
        sample(cycle, plan, store, lambda: proposal.sample(test_seed, 16)[0])
        fields = store.table("configurations", theory.space.field_name)
        flat = fields.reshape(-1, *fields.shape[2:])
        measured = {
            "action": theory.action(flat),
            "neighbours": (flat * np.roll(flat, 1, axis=1)).mean(axis=(1, 2)),
        }
        exact = exact_values(theory)
        scores = []
        for key, values in measured.items():
            estimate = gamma_method(values.reshape(fields.shape[:2]).T).estimate
            scores.append((estimate.value - exact[key]) / estimate.error)
        assert family_p_value(np.array(scores)) > FALSE_ALARM, scores


def exact_values(theory: object) -> dict[str, float]:
    """Return means over fresh exact draws, so many that their error is none beside that of the chain."""
    if theory is SPINS:
        numbers = np.arange(2**SPINS.volume)
        spins: np.ndarray[Any, Any] = 2 * (numbers[:, None] >> np.arange(SPINS.volume) & 1) - 1
        every = spins.reshape(-1, *SPINS.shape)
        weight = np.exp(-SPINS.action(every))
        weight /= weight.sum()
        neighbours = (every * np.roll(every, 1, axis=1)).mean(axis=(1, 2))
        return {"action": float(weight @ SPINS.action(every)), "neighbours": float(weight @ neighbours)}
    field = THEORY.draw(np.random.default_rng(11), 400_000)
    neighbours = (field * np.roll(field, 1, axis=1)).mean(axis=(1, 2))
    return {"action": 0.5 * THEORY.volume, "neighbours": float(neighbours.mean())}


def test_every_adapter_has_a_trained_flow(tmp_path: Path) -> None:
    assert set(trained(tmp_path)) == set(ADAPTERS)


def test_jax_flows_agree_on_host_and_device(flow_of: Callable[[str], Proposal]) -> None:
    import jax

    found = flow_of("flowjax")
    assert isinstance(found, DeviceProposal)
    field, log_q = jax.jit(found.device_sample, static_argnums=1)(jax.random.key(3), 20)
    np.testing.assert_allclose(found.log_prob(np.asarray(field)), log_q, atol=1e-8)


def test_unknown_flows_are_refused() -> None:
    with pytest.raises(ParameterError, match="torch_module"):
        proposal(object(), event_shape=SHAPE)
    with pytest.raises(ParameterError, match="zuuko"):
        proposal(object(), event_shape=SHAPE, adapter="zuuko")


def test_wrong_lattice_is_refused() -> None:
    import zuko

    with pytest.raises(LatticeMismatchError, match="9 numbers"):
        proposal(zuko.flows.NSF(features=8), event_shape=(3, 3))


def test_wrong_library_is_refused() -> None:
    for name in ("zuko", "normflows", "nflows", "torch_distributions", "flowjax", "distrax", "bijx", "flowmc_nfmodel"):
        with pytest.raises(ParameterError, match="Linear"):
            proposal(torch.nn.Linear(2, 2), event_shape=(2,), adapter=name)


@pytest.mark.parametrize("package", sorted({"blackjax", "emcee", "numpyro", *itertools.chain(*ADAPTERS.values())}))
def test_library_is_installed(package: str) -> None:
    # Nothing here is skipped for want of a library.
    importlib.import_module(package)


def test_missing_library_says_how_to_install_it() -> None:
    from flowmc_adapters.base import require_library

    with pytest.raises(ParameterError, match="pip install no_such_library"):
        require_library("no_such_library")
