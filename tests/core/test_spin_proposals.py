"""The certificate of spin flows: it passes right ones and refuses a zoo of wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from flowmc.errors import CertificateError, ParameterError
from flowmc.flows import AutoregressiveFlow, Flow
from flowmc.kernels import Cycle, FlowProposals, Independence
from flowmc.proposals import BlockProposal, FlowProposal, Proposal, ProposalMetadata, as_proposal, certify
from flowmc.proposals.closure import ENUMERATED_SITES, spin_closure, total_probability
from flowmc.seeds import numpy_generator
from flowmc.testing import BlockProposalContract, ExactIsing, ProposalContract
from flowmc.theories import Ising, Theory
from flowmc_analysis.zscores import family_p_value

Shaken = Callable[[Mapping[str, object], Theory], Flow]

SQUARE = Ising((4, 4), 0.44)
DENSE = {"kind": "autoregressive"}


class Boltzmann:
    """The exact distribution of a small model as a proposal."""

    def __init__(self, theory: Ising) -> None:
        self._exact = ExactIsing(theory)

    @property
    def metadata(self) -> ProposalMetadata:
        return ProposalMetadata(
            self._exact.theory.shape, "float64", deterministic=True, exact=True, fingerprint="exact", space="spin"
        )

    def sample(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        field = self._exact.draw(numpy_generator(seed), n)
        return field, self.log_prob(field)

    def log_prob(self, field: np.ndarray) -> np.ndarray:
        return -np.asarray(self._exact.theory.action(field)) - self._exact.log_z


class TestBoltzmann(ProposalContract):
    @pytest.fixture
    def proposal(self) -> Proposal:
        return Boltzmann(SQUARE)


class TestAutoregressive(ProposalContract):
    @pytest.fixture
    def proposal(self, shaken: Shaken) -> Proposal:
        return as_proposal(shaken(DENSE, SQUARE))

    def test_says_what_it_is(self, proposal: Proposal) -> None:
        assert proposal.metadata.space == "spin"
        assert proposal.sample(1, 3)[0].dtype == np.int8
        assert not isinstance(proposal, BlockProposal)


@pytest.mark.parametrize(
    ("extent", "hyper"), [(4, {}), (6, {}), (8, {"exact_cross": False}), (12, {"translations": True})], ids=str
)
class TestHierarchical(BlockProposalContract):
    @pytest.fixture
    def proposal(self, extent: int, hyper: dict[str, object], shaken: Shaken) -> Proposal:
        return as_proposal(shaken({"kind": "hierarchical", **hyper}, Ising((extent, extent), 0.44)))


def strongly_coupled(flow: Flow, factor: float = 4.0) -> Flow:
    """The flow with larger logits, so that its spins are far from fair coins."""
    assert isinstance(flow, AutoregressiveFlow)
    scaled = deepcopy(flow)
    with torch.no_grad():
        for name in ("last", "direct", "bias"):
            getattr(scaled.network, name).mul_(factor)
    return scaled


class Wrong:
    """Draws of one proposal with the log q of another, or with another disease."""

    def __init__(self, draws: Proposal, density: Proposal, disease: str = "") -> None:
        self._draws, self._density, self._disease = draws, density, disease

    @property
    def metadata(self) -> ProposalMetadata:
        return replace(self._density.metadata, fingerprint=self._disease or "mixed")

    def sample(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        field, _ = self._draws.sample(seed, n)
        log_q = self.log_prob(field)
        if self._disease == "zeros for minus one":
            field = (field > 0).astype(np.int8)
        return field, log_q

    def log_prob(self, field: np.ndarray) -> np.ndarray:
        log_q = self._density.log_prob(field)
        if self._disease == "not normalised":
            log_q = log_q + 0.1
        if self._disease == "depends on the batch":
            log_q = log_q + 1e-3 * field.mean()
        return log_q


def zoo(name: str, shaken: Shaken) -> Proposal:
    flow = strongly_coupled(shaken(DENSE, SQUARE))
    right = as_proposal(flow)
    if name == "log q without the average over the spin flip":
        component = deepcopy(flow)
        component.config = replace(flow.config, z2=False)
        return Wrong(right, as_proposal(component))
    if name == "log q with an average over flips that are not made":
        component = deepcopy(flow)
        component.config = replace(flow.config, z2=False)
        return Wrong(as_proposal(component), right)
    if name == "draws at another temperature":
        return Wrong(as_proposal(strongly_coupled(flow, 1 / 1.3)), right)
    if name == "draws of one phase alone":
        exact = Boltzmann(SQUARE)
        return Wrong(OnePhase(exact), exact)
    if name == "draws in the other order":
        return Wrong(Transposed(right), right)
    return Wrong(right, right, name)


class OnePhase:
    """Draws turned over until their magnetisation is positive: a chain of them would never see the other phase."""

    def __init__(self, inner: Boltzmann) -> None:
        self._inner = inner

    @property
    def metadata(self) -> ProposalMetadata:
        return self._inner.metadata

    def sample(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        field, log_q = self._inner.sample(seed, n)
        up = field.sum(axis=(1, 2), keepdims=True, dtype=np.int64) >= 0
        return np.where(up, field, -field), log_q

    def log_prob(self, field: np.ndarray) -> np.ndarray:
        return self._inner.log_prob(field)


class Transposed:
    """The same draws with the axes of the lattice exchanged, as after a careless reshape."""

    def __init__(self, inner: FlowProposal) -> None:
        self._inner = inner

    @property
    def metadata(self) -> ProposalMetadata:
        return self._inner.metadata

    def sample(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        field, log_q = self._inner.sample(seed, n)
        return field.swapaxes(1, 2), log_q

    def log_prob(self, field: np.ndarray) -> np.ndarray:
        return self._inner.log_prob(field.swapaxes(1, 2))


ZOO = {
    "log q without the average over the spin flip": "draws against their density",
    "log q with an average over flips that are not made": "draws against their density",
    "draws at another temperature": "draws against their density",
    "draws of one phase alone": "draws against their density",
    "draws in the other order": "draws against their density",
    "not normalised": "total probability",
    "zeros for minus one": "finite draws",
    "depends on the batch": "log_prob one by one",
}


@pytest.mark.parametrize("disease", ZOO)
def test_certificate_refuses(disease: str, shaken: Shaken, test_seed: int) -> None:
    certificate = certify(zoo(disease, shaken), test_seed)
    failed = {check.name for check in certificate.checks if not check.passed}
    assert any(name.startswith(ZOO[disease]) for name in failed), certificate.checks
    with pytest.raises(CertificateError):
        certificate.require()


def test_certificate_passes_the_healthy_one(shaken: Shaken, test_seed: int) -> None:
    flow = as_proposal(strongly_coupled(shaken(DENSE, SQUARE)))
    certify(Wrong(flow, flow), test_seed).require()


@pytest.mark.parametrize("beta", [0.1, 0.44, 0.7, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("shape", [(4, 4), (2, 4)], ids=str)
def test_certificate_passes_exact_draws_at_every_temperature(
    shape: tuple[int, ...], beta: float, test_seed: int
) -> None:
    # Deep in the ordered phase a turned spin is so rare that it may be missing among the draws, and with it the noise.
    for field in (0.0, 0.3):
        certify(Boltzmann(Ising(shape, beta, field=field)), test_seed, n_finite=2000).require()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("description", "extent"), [(DENSE, 8), ({"kind": "hierarchical"}, 16), ({"kind": "hierarchical"}, 12)], ids=str
)
def test_both_precisions_pass(description: dict[str, object], extent: int, dtype: str, shaken: Shaken) -> None:
    flow = shaken(description, Ising((extent, extent), 0.44)).to(getattr(torch, dtype))
    certify(as_proposal(flow), 1, n_finite=2000).require()


def test_total_probability_counts_every_configuration() -> None:
    assert total_probability(Boltzmann(SQUARE)) == pytest.approx(1, abs=1e-12)
    assert total_probability(Boltzmann(Ising((2, 3), 0.4, field=0.2))) == pytest.approx(1, abs=1e-12)
    assert np.prod(SQUARE.shape) <= ENUMERATED_SITES


def test_identities_hold_for_the_exact_distribution(rng: np.random.Generator) -> None:
    proposal = Boltzmann(Ising((3, 4), 0.4, field=0.1))
    field, _ = proposal.sample(int(rng.integers(2**62)), 20000)
    identities = spin_closure(proposal, field, 1)
    scores = [identity.score for identity in identities.values()]
    assert family_p_value(np.array(scores)) > 1e-5


def test_no_draws_are_refused(shaken: Shaken) -> None:
    with pytest.raises(ParameterError, match="at least one"):
        as_proposal(shaken(DENSE, SQUARE)).sample(1, 0)


class NoSpins:
    """Another proposal's draws, stretched to ±1.7 in some configurations: cast to int8 they would be spins again."""

    def __init__(self, inner: Proposal, every: int) -> None:
        self._inner, self._every = inner, every

    @property
    def metadata(self) -> ProposalMetadata:
        return self._inner.metadata

    def sample(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        field, log_q = self._inner.sample(seed, n)
        stretch = np.where(np.arange(n) % self._every, 1.0, 1.7)
        return field * stretch[:, None, None], log_q

    def log_prob(self, field: np.ndarray) -> np.ndarray:
        return self._inner.log_prob(field)


class TestNumbersThatAreNoSpins:
    def test_are_never_accepted(self) -> None:
        member = FlowProposals(Independence(SQUARE), NoSpins(Boltzmann(SQUARE), 1), 5, 10)
        cycle = Cycle(SQUARE, (member,))
        start = SQUARE.start(np.random.default_rng(1), 20, "hot")
        state, happened = cycle.run(0, 0, cycle.init(start), cycle.prepare(0, 1, 20)[0])
        assert np.isneginf(happened.updates[0].log_weight).all()
        assert not happened.updates[0].accepted.any()
        np.testing.assert_array_equal(state.field, start)

    def test_spoil_no_others(self) -> None:
        exact = Boltzmann(SQUARE)
        members = [FlowProposals(Independence(SQUARE), proposal, 5, 10) for proposal in (NoSpins(exact, 3), exact)]
        mixed, right = (np.asarray(member.prepare(0, 1, 20).log_weight).ravel() for member in members)
        outside = np.arange(200) % 3 == 0
        assert np.isneginf(mixed[outside]).all()
        np.testing.assert_array_equal(mixed[~outside], right[~outside])

    def test_are_refused_by_the_certificate(self, test_seed: int) -> None:
        certificate = certify(NoSpins(Boltzmann(SQUARE), 3), test_seed, n_finite=999)
        (check,) = [check for check in certificate.checks if check.name == "finite draws"]
        assert (check.value, check.passed) == (333, False)
