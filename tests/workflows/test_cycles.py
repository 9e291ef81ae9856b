"""Every kernel of run descriptions: the contract, and that what cannot move a theory's fields is refused beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from flowmc.config import HYBRIDS, KERNELS, TRAJECTORY_KERNELS, SamplingConfig
from flowmc.errors import FlowmcError, LatticeMismatchError, ParameterError
from flowmc.flows import build_flow
from flowmc.kernels import CycleMember, Trajectories
from flowmc.proposals import Proposal, ProposalMetadata, as_proposal
from flowmc.sampling import MemoryStore, SamplingPlan, sample
from flowmc.seeds import numpy_generator, torch_generator
from flowmc.testing import ExactIsing, ExactStart, GaussianProposal, KernelContract, gauge_start, ising_start
from flowmc.theories import SPACES, FreeScalar, GaugeTheory2D, Ising, Phi4, Schwinger, Theory, U1Gauge2D
from flowmc.workflows.cycles import OWN, WITH_FLOW, build_cycle, build_members
from flowmc.workflows.ensembles import _flow_start
from flowmc.workflows.flows import for_production
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.history import HMC_KINDS
from flowmc_analysis.zscores import judge, z_score

SETTINGS = SamplingConfig(
    chains=4, hmc_trajectories=2, flow_proposals=3, sweeps=2, cluster_updates=3, block_moves=2, step_size=0.5, tuning=0
)
FREE = FreeScalar((4, 2), 0.8)
SPINS = Ising((4, 4), 0.35)
LINKS = U1Gauge2D((2, 4), 1.5)
FERMIONS = Schwinger((2, 4), 1.5, 0.2)
CASES: list[tuple[str, Theory]] = [
    ("hmc", FREE),
    ("fourier_hmc", FREE),
    ("flow", FREE),
    ("blackjax", FREE),
    ("hmc", LINKS),
    ("hmc", FERMIONS),
    ("pseudofermion_hmc", FERMIONS),
    ("metropolis", LINKS),
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
        if isinstance(theory, GaugeTheory2D):
            return gauge_start(theory)
        assert isinstance(theory, FreeScalar)
        observables = {"action": theory.action, "mean": lambda f: f.mean(axis=(1, 2)), "first": lambda f: f[:, 0, 0]}
        return ExactStart(theory.draw, observables)

    @pytest.fixture
    def member(self, theory: Theory, case: tuple[str, Theory]) -> CycleMember:
        kernel = case[0]
        proposal = proposal_for(theory) if kernel in WITH_FLOW else None
        (member,) = build_members(theory, replace(SETTINGS, kernel=kernel), 7, proposal)
        assert member.kind == kernel
        assert isinstance(member, Trajectories) == (kernel in TRAJECTORY_KERNELS)
        return member


def test_the_analysis_knows_the_kernels_that_move_along_trajectories() -> None:
    assert set(HMC_KINDS) == set(TRAJECTORY_KERNELS) <= set(KERNELS)


def test_fourier_acceleration_takes_its_settings_and_joins_a_flow() -> None:
    settings = replace(SETTINGS, kernel="fourier_hmc+flow", tuning=50, acceleration_mass=0.3, trajectory_length=1.5)
    assert settings.plan.tuning == 50
    cycle = build_cycle(FREE, settings, 7, proposal_for(FREE))
    assert cycle.kinds == ("fourier_hmc", "flow")
    description = cycle.members[0].describe()
    assert (description["acceleration_mass"], description["trajectory_length"]) == (0.3, 1.5)
    assert cycle.members[0].adaptation()["target"] == settings.target_acceptance


def test_hybrid_stands_for_the_kernels_of_the_field() -> None:
    for theory, kinds in ((FREE, ("hmc", "flow")), (SPINS, ("heat_bath", "flow"))):
        assert build_cycle(theory, SETTINGS, 7, proposal_for(theory)).kinds == kinds
    assert build_cycle(SPINS, replace(SETTINGS, kernel="wolff+blocks+flow"), 7, proposal_for(SPINS)).kinds == (
        "wolff",
        "blocks",
        "flow",
    )


def test_hybrid_of_links_moves_by_trajectories() -> None:
    for theory in (LINKS, FERMIONS):
        assert replace(SETTINGS, kernel="hybrid").kernels_for(theory) == ("hmc", "flow")
    settings = replace(SETTINGS, kernel="pseudofermion_hmc", tuning=50, thermalisation=100)
    assert settings.plan.tuning == 50
    (member,) = build_members(FERMIONS, replace(settings, solver_tolerance=1e-8), 7, None)
    assert member.describe()["solver_tolerance"] == 1e-8
    assert member.adaptation()["target"] == settings.target_acceptance


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1e-3])
def test_tolerances_that_are_none_are_refused(tolerance: float) -> None:
    with pytest.raises(ParameterError, match="solver_tolerance"):
        replace(SETTINGS, solver_tolerance=tolerance)


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
    ("metropolis", FERMIONS, "local"),
    ("metropolis", U1Gauge2D((4, 3), 1.0), "even"),
    ("heat_bath", LINKS, "ising"),
    ("wolff", LINKS, "ising"),
    ("pseudofermion_hmc", LINKS, "n_flavours = 2"),
    ("pseudofermion_hmc", Schwinger((4, 4), 1.0, 0.2, n_flavours=1), "n_flavours = 2"),
    ("pseudofermion_hmc", FREE, "n_flavours = 2"),
    ("fourier_hmc", SPINS, "real scalar"),
    ("fourier_hmc", LINKS, "real scalar"),
    ("fourier_hmc", FERMIONS, "real scalar"),
]


@pytest.mark.parametrize(("kernel", "theory", "word"), WRONG, ids=str)
def test_kernels_of_other_fields_are_refused(kernel: str, theory: Theory, word: str) -> None:
    with pytest.raises(FlowmcError, match=word) as caught:
        build_members(theory, replace(SETTINGS, kernel=kernel), 7, None)
    assert caught.value.fix


def test_blocks_of_real_fields_are_refused() -> None:
    with pytest.raises(ParameterError, match="free_scalar"):
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


class NoSpins:
    """A proposal of which all draws but one in eight are ±1.7: cast to int8 they would be spins, and of large weight."""

    metadata = ProposalMetadata((4, 4), "float64", deterministic=True, exact=True, fingerprint="none", space="spin")

    def sample(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        field = SPINS.start(numpy_generator(seed), n, "hot").astype(np.float64)
        outside = np.arange(n) % 8 > 0
        field[outside] = 1.7
        return field, np.where(outside, -1000.0, 0.0)

    def log_prob(self, field: np.ndarray) -> np.ndarray:
        return np.zeros(len(field))


def test_chains_never_start_from_numbers_that_are_no_spins() -> None:
    start = _flow_start(SPINS, NoSpins(), 3, 20)
    assert start.shape == (20, 4, 4)
    assert start.dtype == np.int8
    assert SPINS.space.contains(start.reshape(20, -1)).all()
    # Truncated, the others would be ordered.
    assert (np.abs(start.sum((1, 2))) < 16).all()


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_chains_in_every_precision_are_exact(precision: str, test_seed: int) -> None:
    flow = build_flow({"kind": "hierarchical"}, SPINS)
    generator = torch_generator(4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    proposal = for_production(flow, precision, "cpu")
    assert proposal.metadata.dtype == precision
    settings = replace(SETTINGS, kernel="blocks+flow")
    store, exact = MemoryStore(), ExactIsing(SPINS)
    plan = SamplingPlan(64, 300, thermalisation=10, tuning=0, cycles_per_block=10)
    start = SPINS.start(np.random.default_rng(1), 64, "hot")
    sample(build_cycle(SPINS, settings, test_seed, proposal), plan, store, lambda: start)

    def observables(spins: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "neighbours": (spins * np.roll(spins, 1, -1)).mean((-2, -1)),
            "columns": (spins * np.roll(spins, 1, -2)).mean((-2, -1)),
            "susceptibility": spins.mean((-2, -1)) ** 2,
            "magnetisation_abs": np.abs(spins.mean((-2, -1))),
            "corner": spins[..., 0, 0] * spins[..., 2, 2],
        }

    scores = []
    known = observables(exact.states.astype(np.float64))
    for name, series in observables(store.table("configurations", "spin").astype(np.float64)).items():
        estimate = gamma_method(series.T).estimate
        scores.append(z_score(name, estimate.value, exact.expectation(known[name]), estimate.error))
    assert judge(scores, level=1e-5).passed, scores
