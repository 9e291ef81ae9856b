"""The certificate of block proposals: it passes right ones and refuses a zoo of wrong ones, whose log q is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit

from flowmc.errors import CertificateError
from flowmc.flows import Flow, HierarchicalFlow, build_flow
from flowmc.proposals import BlockFlowProposal, Certificate, Proposal, ProposalMetadata, as_proposal, certify
from flowmc.proposals.blocks import block_closure, block_total_probability, measure_blocks
from flowmc.seeds import numpy_generator
from flowmc.testing import BlockProposalContract, ExactIsing, transfer_matrix_draws
from flowmc.theories import Ising, Theory
from flowmc_analysis.zscores import family_p_value

Shaken = Callable[[Mapping[str, object], Theory], Flow]
Resampled = tuple[np.ndarray, np.ndarray, np.ndarray]

EIGHT = Ising((8, 8), 0.44)


def lopsided(shaken: Shaken) -> HierarchicalFlow:
    """A flow whose networks, and one component above all, are far from symmetric under the spin flip."""
    flow = shaken({"kind": "hierarchical", "exact_cross": False}, EIGHT)
    assert isinstance(flow, HierarchicalFlow)
    with torch.no_grad():
        flow.get_parameter("levels.block_3.network.bias").add_(0.7)
    return flow


def hotter(flow: HierarchicalFlow, factor: float) -> HierarchicalFlow:
    """The same flow with all logits divided by a factor."""
    other = build_flow({"kind": "hierarchical", "exact_cross": False}, Ising(EIGHT.shape, EIGHT.beta / factor)).double()
    other.load_state_dict(flow.state_dict())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith(("last", "direct", "bias")):
                parameter.div_(factor)
    assert isinstance(other, HierarchicalFlow)
    return other


class Altered(BlockFlowProposal):
    """A hierarchical flow with a disease in its blocks alone."""

    def __init__(self, flow: HierarchicalFlow, disease: str) -> None:
        super().__init__(flow)
        self._disease = disease
        self._hotter = BlockFlowProposal(hotter(flow, 1.3))
        self._calls = 0

    def resample_blocks(self, field: np.ndarray, side: int, seed: int) -> Resampled:
        self._calls += 1
        if self._disease == "forgets the seed":
            seed = self._calls
        draw = super().resample_blocks
        if self._disease == "draws at temperature 1.3":
            draw = self._hotter.resample_blocks
        new = self._sick(draw(field, side, seed)[0], field, side)
        if self._disease == "writes into its argument":
            field[:] = new
        # The probability of new insides is that of the same as old ones.
        log_new, log_old = (self._log_q(one, side, seed, number) for number, one in enumerate((new, field)))
        if self._disease == "swapped":
            return new, log_old, log_new
        if self._disease == "log q of old insides averaged over the spin flip":
            return new, log_new, self._averaged(field, side)
        if self._disease == "one log q for a configuration":
            return new, log_new.sum((1, 2), keepdims=True), log_old.sum((1, 2), keepdims=True)
        return new, log_new, log_old

    def _sick(self, new: np.ndarray, field: np.ndarray, side: int) -> np.ndarray:
        inside = np.arange(field.shape[1]) % (side + 1) > 0
        inside = inside[:, None] & inside
        if self._disease == "changes a border":
            new[:, 0, 1] *= -1
        if self._disease == "zeros for minus one":
            new = np.where(inside, (new > 0).astype(np.int8), new)
        if self._disease == "one phase alone":
            down = (new * inside).sum((1, 2), keepdims=True) < 0
            new = np.where(inside & down, -new, new)
        if self._disease == "draws transposed":
            new = np.where(inside, new.swapaxes(1, 2), new)
        return new

    def _right(self, field: np.ndarray, side: int) -> np.ndarray:
        return super().resample_blocks(field, side, 1)[2]

    def _averaged(self, field: np.ndarray, side: int) -> np.ndarray:
        """One component draws a block: the average is right for whole configurations alone."""
        averaged: np.ndarray = np.logaddexp(self._right(field, side), self._right(-field, side)) - np.log(2)
        return averaged

    def _log_q(self, field: np.ndarray, side: int, seed: int, number: int) -> np.ndarray:
        log_q = self._right(field, side)
        if self._disease == "halved":
            return log_q / 2
        if self._disease == "left out":
            return np.zeros_like(log_q)
        if self._disease == "averaged over the spin flip":
            return self._averaged(field, side)
        if self._disease == "not normalised":
            return log_q + 0.1
        if self._disease == "depends on other blocks":
            log_q += 1e-3 * field.sum((1, 2), keepdims=True)
        if self._disease == "depends on the batch":
            return log_q + 1e-3 * float(field.mean())
        if self._disease == "estimated":
            noise: np.ndarray = numpy_generator(seed, number).standard_normal(log_q.shape)
            return log_q + 1e-3 * noise
        if self._disease == "not a number":
            log_q[log_q < np.quantile(log_q, 0.01)] = np.nan
        return log_q


NEW_AGAINST_OLD = "blocks: log q of new insides"
DENSITY = "blocks: draws against their density"
TOTAL = "blocks: total probability"
DRAWS = "blocks: finite draws"
ZOO = {
    "halved": DENSITY,
    "left out": TOTAL,
    "swapped": NEW_AGAINST_OLD,
    "averaged over the spin flip": DENSITY,
    "log q of old insides averaged over the spin flip": NEW_AGAINST_OLD,
    "not normalised": TOTAL,
    "draws at temperature 1.3": DENSITY,
    "one phase alone": DENSITY,
    "draws transposed": DENSITY,
    "depends on other blocks": "blocks: log q beside other blocks",
    "depends on the batch": "blocks: log q in halves",
    "estimated": "blocks: log q in halves",
    "forgets the seed": "blocks: same seed",
    "changes a border": DRAWS,
    "zeros for minus one": DRAWS,
    "not a number": DRAWS,
    "writes into its argument": DRAWS,
}


def failures(certificate: Certificate) -> set[str]:
    return {check.name for check in certificate.checks if not check.passed}


@pytest.mark.parametrize("disease", ZOO)
def test_certificate_refuses(disease: str, shaken: Shaken, test_seed: int) -> None:
    certificate = certify(Altered(lopsided(shaken), disease), test_seed, n_finite=500)
    failed = failures(certificate)
    assert any(name.startswith(ZOO[disease]) for name in failed), certificate.checks
    # Nothing is wrong but the blocks, and all else is blind to them.
    assert all(name.startswith("blocks: ") for name in failed)
    with pytest.raises(CertificateError, match="blocks: "):
        certificate.require()


def test_healthy_one_passes(shaken: Shaken, test_seed: int) -> None:
    certify(Altered(lopsided(shaken), ""), test_seed, n_finite=500).require()


def test_wrong_shapes_are_refused(shaken: Shaken, test_seed: int) -> None:
    with pytest.raises(CertificateError, match="one log q for each block"):
        certify(Altered(lopsided(shaken), "one log q for a configuration"), test_seed, n_finite=100)


@pytest.mark.parametrize("beta", [0.1, 0.44, 3.0])
@pytest.mark.parametrize("extent", [4, 12])
def test_exact_blocks_pass_at_every_temperature(extent: int, beta: float, test_seed: int) -> None:
    # Deep in the ordered phase a turned spin is so rare that it may be missing among the draws, and with it the noise.
    for field in (0.0, 0.3):
        flow = build_flow({"kind": "hierarchical", "z2": not field}, Ising((extent, extent), beta, field=field))
        certify(as_proposal(flow.double()), test_seed, n_finite=500).require()


class HeatBathOfSites:
    """Exact draws of a small model whose blocks are single sites: a proposal without a network."""

    block_sides = (1,)

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

    def resample_blocks(self, field: np.ndarray, side: int, seed: int) -> Resampled:
        theory, sites = self._exact.theory, (slice(None), slice(1, None, side + 1), slice(1, None, side + 1))
        around = sum(np.roll(field, step, axis) for step in (1, -1) for axis in (1, 2))
        local = theory.beta * (theory.coupling * np.asarray(around)[sites] + theory.field)
        up = numpy_generator(seed).random(local.shape) < expit(2 * local)
        new = field.copy()
        new[sites] = 2 * up - 1
        log_new, log_old = (log_expit(2 * one[sites] * local) for one in (new, field))
        return new, log_new, log_old


class TestWithoutNetwork(BlockProposalContract):
    @pytest.fixture(params=[Ising((4, 4), 0.44), Ising((4, 4), 0.3, coupling=-1.0, field=0.4)], ids=str)
    def proposal(self, request: pytest.FixtureRequest) -> Proposal:
        return HeatBathOfSites(request.param)


class TestMeasurements:
    def test_identities_hold_for_the_draws_of_many_borders(self, shaken: Shaken, rng: np.random.Generator) -> None:
        proposal = as_proposal(lopsided(shaken))
        assert isinstance(proposal, BlockFlowProposal)
        seed = int(rng.integers(2**62))
        border = transfer_matrix_draws(EIGHT, rng, 5000)
        for side in proposal.block_sides:
            new, log_new, _ = proposal.resample_blocks(border, side, seed)
            scores = [identity.score for identity in block_closure(proposal, new, log_new, side, seed).values()]
            assert family_p_value(np.array(scores)) > 1e-5

    @pytest.mark.parametrize(("extent", "side"), [(4, 1), (6, 2), (8, 3), (16, 3)])
    def test_insides_of_every_block_sum_to_one(self, extent: int, side: int, shaken: Shaken) -> None:
        theory = Ising((extent, extent), 0.44)
        proposal = as_proposal(shaken({"kind": "hierarchical", "exact_cross": False}, theory))
        assert isinstance(proposal, BlockFlowProposal)
        border = theory.start(np.random.default_rng(1), 100, "hot")
        total = block_total_probability(proposal, border, side, 1)
        assert total.size >= 16
        np.testing.assert_allclose(total, 1, atol=1e-12)

    def test_large_blocks_are_not_enumerated(self, shaken: Shaken) -> None:
        proposal = as_proposal(shaken({"kind": "hierarchical"}, Ising((16, 16), 0.44)))
        assert isinstance(proposal, BlockFlowProposal)
        fields, _ = proposal.sample(1, 10)
        assert measure_blocks(proposal, fields, 7, 1).total.size == 0
        assert measure_blocks(proposal, fields, 3, 1).total.size > 0

    def test_flows_without_blocks_have_no_such_checks(self, shaken: Shaken) -> None:
        names = [
            {check.name for check in certify(as_proposal(shaken({"kind": kind}, EIGHT)), 1, n_finite=100).checks}
            for kind in ("autoregressive", "hierarchical")
        ]
        assert all(name.startswith("blocks: ") for name in names[1] - names[0])
        assert not names[0] - names[1]
        assert len(names[1]) > len(names[0])
