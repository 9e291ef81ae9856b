"""Every kernel of run descriptions: the contract, and that what cannot move a theory's fields is refused beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowmc.config import HYBRIDS, KERNELS, SamplingConfig
from flowmc.errors import FlowmcError, LatticeMismatchError, ParameterError
from flowmc.flows import build_flow
from flowmc.kernels import CycleMember
from flowmc.proposals import Proposal, as_proposal
from flowmc.seeds import torch_generator
from flowmc.testing import ExactStart, GaussianProposal, KernelContract, ising_start
from flowmc.theories import SPACES, FreeScalar, Ising, Phi4, Theory
from flowmc.workflows.cycles import OWN, WITH_FLOW, build_cycle, build_members

SETTINGS = SamplingConfig(
    chains=4, hmc_trajectories=2, flow_proposals=3, sweeps=2, cluster_updates=3, block_moves=2, step_size=0.5, tuning=0
)
FREE = FreeScalar((4, 2), 0.8)
SPINS = Ising((4, 4), 0.35)
CASES: list[tuple[str, Theory]] = [
    ("hmc", FREE),
    ("flow", FREE),
    ("heat_bath", SPINS),
    ("metropolis", SPINS),
    ("metropolis", Ising((4, 2), 0.3, coupling=-1.0, field=0.3)),
    ("wolff", SPINS),
    ("wolff", Ising((3, 3), 0.3, field=0.2)),
    ("swendsen_wang", SPINS),
    ("swendsen_wang", Ising((3, 5), 0.3, coupling=-1.0, field=0.2)),
    ("blocks", SPINS),
    ("flow", Ising((4, 4), 0.2)),
]


def proposal_for(theory: Theory, kind: str = "hierarchical") -> Proposal:
    """A proposal near to the theory: white noise, or a flow of spins whose weights are near to their start."""
    if theory.space.name == "real":
        return GaussianProposal(theory.shape, 0.5)
    flow = build_flow({"kind": kind}, theory).double()
    generator = torch_generator(4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return as_proposal(flow)


def test_every_kernel_can_be_built_and_is_tested() -> None:
    assert set(KERNELS) == {*OWN, *WITH_FLOW} == {name for name, _ in CASES}
    assert not OWN.keys() & WITH_FLOW.keys()
    assert set(HYBRIDS) == set(SPACES)
    assert all(set(hybrid.split("+")) <= set(KERNELS) for hybrid in HYBRIDS.values())


@pytest.mark.parametrize("case", CASES, ids=str)
class TestContract(KernelContract):
    @pytest.fixture
    def theory(self, case: tuple[str, Theory]) -> Theory:
        return case[1]

    @pytest.fixture
    def target(self, theory: Theory) -> ExactStart:
        if isinstance(theory, Ising):
            return ising_start(theory)
        assert isinstance(theory, FreeScalar)
        observables = {"action": theory.action, "mean": lambda f: f.mean(axis=(1, 2)), "first": lambda f: f[:, 0, 0]}
        return ExactStart(theory.draw, observables)

    @pytest.fixture
    def member(self, theory: Theory, case: tuple[str, Theory]) -> CycleMember:
        kernel = case[0]
        proposal = proposal_for(theory) if kernel in WITH_FLOW else None
        (member,) = build_members(theory, replace(SETTINGS, kernel=kernel), 7, proposal)
        assert member.kind == kernel
        return member


def test_hybrid_stands_for_the_kernels_of_the_field() -> None:
    for theory, kinds in ((FREE, ("hmc", "flow")), (SPINS, ("heat_bath", "flow"))):
        assert build_cycle(theory, SETTINGS, 7, proposal_for(theory)).kinds == kinds
    assert build_cycle(SPINS, replace(SETTINGS, kernel="wolff+blocks+flow"), 7, proposal_for(SPINS)).kinds == (
        "wolff",
        "blocks",
        "flow",
    )


def test_kernels_without_a_flow_are_checked_before_there_is_one() -> None:
    (member,) = build_members(SPINS, SETTINGS, 7, None)
    assert member.kind == "heat_bath"


WRONG: list[tuple[str, Theory, str]] = [
    ("hmc", SPINS, "heat_bath"),
    ("heat_bath", Phi4((4, 4), 1.0, 1.0), "ising"),
    ("metropolis", FREE, "ising"),
    ("wolff", FREE, "ising"),
    ("swendsen_wang", FREE, "ising"),
    ("heat_bath", Ising((3, 4), 0.4), "even"),
    ("metropolis", Ising((5,), 0.4), "even"),
]


@pytest.mark.parametrize(("kernel", "theory", "word"), WRONG, ids=str)
def test_kernels_of_other_fields_are_refused(kernel: str, theory: Theory, word: str) -> None:
    with pytest.raises(FlowmcError, match=word) as caught:
        build_members(theory, replace(SETTINGS, kernel=kernel), 7, None)
    assert caught.value.fix


def test_blocks_of_real_fields_are_refused() -> None:
    with pytest.raises(ParameterError, match="hierarchical"):
        build_members(FREE, replace(SETTINGS, kernel="blocks"), 7, proposal_for(FREE))


@pytest.mark.parametrize("kernel", ["blocks", "flow"])
def test_flows_of_another_lattice_are_refused(kernel: str) -> None:
    other = proposal_for(Ising((8, 8), 0.35))
    with pytest.raises(LatticeMismatchError, match="8, 8"):
        build_members(SPINS, replace(SETTINGS, kernel=kernel), 7, other)


@pytest.mark.parametrize("kernel", ["flow+hmc", "flow+heat_bath", "hmc+hmc", "hmc+", "hybrid+flow", "", "nuts"])
def test_cycles_that_are_none_are_refused(kernel: str) -> None:
    with pytest.raises(ParameterError, match="last"):
        replace(SETTINGS, kernel=kernel)
