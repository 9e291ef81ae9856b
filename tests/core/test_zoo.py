"""A zoo of wrong kernels, each found in published code: the exactness kit must catch every one.

The right kernel of the same construction passes the same test; the mutants differ from it in the one line that was wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from flowmc.errors import CertificateError
from flowmc.flows import build_flow
from flowmc.proposals import Proposal, ProposalMetadata, as_proposal, certificate, certify
from flowmc.proposals.closure import CLOSURES, EVALUATIONS
from flowmc.testing import ExactStart, GaussianProposal, exact_start_scores
from flowmc.theories import FreeScalar, Ising, U1Gauge2D
from flowmc_analysis.zscores import family_p_value

THEORY = FreeScalar((2, 2), 1.0)
SPINS = as_proposal(build_flow({"kind": "autoregressive"}, Ising((4, 4), 0.3)))
LINKS = as_proposal(build_flow({"kind": "gauge", "layers": 8, "hidden": [4]}, U1Gauge2D((4, 4), 1.0)))
PROPOSAL = GaussianProposal((2, 2), 0.7)
CHAINS = 20000
FALSE_ALARM = 1e-5
STEPS = 4

Array = np.ndarray


def offers(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Proposals (STEPS, CHAINS, ...), their log q and uniform numbers."""
    field, log_q = PROPOSAL.sample(int(rng.integers(2**62)), STEPS * CHAINS)
    return field.reshape(STEPS, CHAINS, 2, 2), log_q.reshape(STEPS, CHAINS), rng.random((STEPS, CHAINS))


def metropolis(field: Array, rng: np.random.Generator, ratio: Callable[..., Array]) -> Array:
    """Independence Metropolis, with the acceptance ratio to be filled in."""
    current, log_q = field, PROPOSAL.log_prob(field)
    for proposed, log_q_proposed, u in zip(*offers(rng), strict=True):
        log_alpha = ratio(THEORY.action(current), log_q, THEORY.action(proposed), log_q_proposed)
        accepted = np.log(u) < log_alpha
        current = np.where(accepted[:, None, None], proposed, current)
        log_q = np.where(accepted, log_q_proposed, log_q)
    return current


def right(field: Array, rng: np.random.Generator) -> Array:
    return metropolis(field, rng, lambda s, q, s_new, q_new: (s - s_new) + (q - q_new))


def proposal_density_left_out(field: Array, rng: np.random.Generator) -> Array:
    return metropolis(field, rng, lambda s, q, s_new, q_new: s - s_new)  # noqa: ARG005


def proposal_density_swapped(field: Array, rng: np.random.Generator) -> Array:
    return metropolis(field, rng, lambda s, q, s_new, q_new: (s - s_new) - (q - q_new))


def log_determinant_sign(field: Array, rng: np.random.Generator) -> Array:
    # log q enters with the scale's log-determinant of the wrong sign: here off by a field-dependent term.
    return metropolis(field, rng, lambda s, q, s_new, q_new: (s - s_new) + 1.2 * (q - q_new))


def counts_acceptances_instead_of_indexing(field: Array, rng: np.random.Generator) -> Array:
    proposed, log_q, u = offers(rng)
    weight = -THEORY.action(field) - PROPOSAL.log_prob(field)
    count = np.zeros(CHAINS, int)
    for j in range(STEPS):
        log_w = -THEORY.action(proposed[j]) - log_q[j]
        accepted = np.log(u[j]) < log_w - weight
        weight, count = np.where(accepted, log_w, weight), count + accepted
    stacked = np.concatenate([field[None], proposed])
    return stacked[count, np.arange(CHAINS)]


def starts_from_the_action_as_log_q(field: Array, rng: np.random.Generator) -> Array:
    proposed, log_q, u = offers(rng)
    accepted = np.log(u[0]) < (-THEORY.action(proposed[0]) - log_q[0]) - (-THEORY.action(field) - THEORY.action(field))
    return np.where(accepted[:, None, None], proposed[0], field)


def stale_log_q_after_another_kernel(field: Array, rng: np.random.Generator) -> Array:
    log_q = PROPOSAL.log_prob(field)
    # Another kernel moves the state as far as a kernel can, and keeps the target; log q stays that of the old state.
    current = THEORY.draw(rng, len(field))
    proposed, log_q_proposed, u = offers(rng)
    accepted = np.log(u[0]) < THEORY.action(current) - THEORY.action(proposed[0]) + log_q - log_q_proposed[0]
    return np.where(accepted[:, None, None], proposed[0], current)


def last_batch_uninitialised(field: Array, rng: np.random.Generator) -> Array:
    after = right(field, rng)
    after[-CHAINS // 20 :] = 0.0
    return after


def redraws_bad_proposals(field: Array, rng: np.random.Generator) -> Array:
    # "Bad" proposals are redrawn instead of rejected, so the declared proposal is not the one that was sampled.
    proposed, log_q, u = offers(rng)
    for _ in range(20):
        bad = np.abs(proposed).max(axis=(2, 3)) > 0.8
        fresh, fresh_log_q, _ = offers(rng)
        proposed = np.where(bad[..., None, None], fresh, proposed)
        log_q = np.where(bad, fresh_log_q, log_q)
    accepted = np.log(u[0]) < THEORY.action(field) - THEORY.action(proposed[0]) + PROPOSAL.log_prob(field) - log_q[0]
    return np.where(accepted[:, None, None], proposed[0], field)


MUTANTS = [
    proposal_density_left_out,
    proposal_density_swapped,
    log_determinant_sign,
    counts_acceptances_instead_of_indexing,
    starts_from_the_action_as_log_q,
    stale_log_q_after_another_kernel,
    last_batch_uninitialised,
    redraws_bad_proposals,
]


def p_value(kernel: Callable[[Array, np.random.Generator], Array], rng: np.random.Generator) -> float:
    target = ExactStart(
        THEORY.draw, {"action": THEORY.action, "first": lambda f: f[:, 0, 0], "link": lambda f: f[:, 0, 0] * f[:, 0, 1]}
    )
    scores = exact_start_scores(target, lambda field: kernel(field, rng), rng, CHAINS)
    return family_p_value(np.array(list(scores.values())))


def test_right_kernel_passes(rng: np.random.Generator) -> None:
    assert p_value(right, rng) > FALSE_ALARM


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_wrong_kernel_is_caught(
    mutant: Callable[[Array, np.random.Generator], Array], rng: np.random.Generator
) -> None:
    assert p_value(mutant, rng) < FALSE_ALARM


class Broken(GaussianProposal):
    """A proposal with one of the diseases that the certificate must find."""

    def __init__(self, disease: str) -> None:
        super().__init__((2, 2), 0.5)
        self._disease = disease
        self._calls = 0

    @property
    def metadata(self) -> ProposalMetadata:
        healthy = super().metadata
        return ProposalMetadata(
            healthy.event_shape,
            healthy.dtype,
            deterministic=healthy.deterministic,
            exact=self._disease != "admits it",
            fingerprint=self._disease,
        )

    def sample(self, seed: int, n: int) -> tuple[Array, Array]:
        self._calls += 1
        field, log_q = super().sample(seed + (self._calls if self._disease == "own seed" else 0), n)
        if self._disease == "too wide":
            field = 1.1 * field
            log_q = self.log_prob(field)
        if self._disease == "shifted":
            field = field + 0.3
            log_q = self.log_prob(field)
        if self._disease == "not finite":
            field[0, 0, 0] = np.nan
        if self._disease == "sign":
            log_q = log_q + 2 * 4 * np.log(0.5)
        return field, log_q

    def log_prob(self, field: Array) -> Array:
        log_q = super().log_prob(field)
        self._calls += 1
        if self._disease == "random trace":
            log_q = log_q + 0.05 * np.random.default_rng(self._calls).standard_normal(len(log_q))
        if self._disease == "batch norm" and len(field) > 1:
            log_q = log_q + 1e-3 * field.std()
        if self._disease == "NaN":
            log_q = np.where(np.arange(len(log_q)) == 3, np.nan, log_q)
        return log_q


@pytest.mark.parametrize(
    "disease",
    ["not finite", "own seed", "sign", "random trace", "batch norm", "NaN", "admits it", "too wide", "shifted"],
)
def test_certificate_refuses(disease: str) -> None:
    certificate = certify(Broken(disease), 1, n_finite=2000, n_compare=64)
    assert not certificate.passed
    with pytest.raises(CertificateError) as caught:
        certificate.require()
    assert caught.value.got


class MidpointTrace(GaussianProposal):
    """White noise carried by the implicit midpoint rule in ten steps, with the trace integral as its log-determinant."""

    def __init__(self, *, exact: bool, log_q_bound: float = 0.0) -> None:
        super().__init__((2, 2), 0.7)
        self._matrix = 0.8 * np.eye(4) + 0.4 * np.random.default_rng(1).standard_normal((4, 4))
        self._exact, self._bound = exact, log_q_bound
        self._step = 0.1

    @property
    def metadata(self) -> ProposalMetadata:
        return replace(super().metadata, exact=self._exact, log_q_bound=self._bound)

    def _slopes(self, middle: Array) -> Array:
        return (1 - np.tanh(middle @ self._matrix.T)[:, :, None] ** 2) * self._matrix

    def _middles(self, points: Array, step: float) -> tuple[Array, list[Array]]:
        flat, middles = points.reshape(len(points), 4), []
        for _ in range(10):
            middle = flat
            for _ in range(40):
                middle = flat + 0.5 * step * np.tanh(middle @ self._matrix.T)
            flat = 2 * middle - flat
            middles.append(middle)
        return flat.reshape(points.shape), middles

    def _carry(self, points: Array, step: float) -> tuple[Array, Array]:
        carried, middles = self._middles(points, step)
        return carried, step * sum(np.trace(self._slopes(middle), axis1=1, axis2=2) for middle in middles)

    def base_sample(self, seed: int, n: int) -> Array:
        return super().sample(seed, n)[0]

    def forward(self, latent: Array) -> tuple[Array, Array]:
        return self._carry(latent, self._step)

    def jacobian(self, latent: Array) -> Array:
        matrix, half = np.eye(4), 0.5 * self._step
        for middle in self._middles(latent[None], self._step)[1]:
            slope = self._slopes(middle)[0]
            matrix = np.linalg.solve(np.eye(4) - half * slope, (np.eye(4) + half * slope) @ matrix)
        return matrix

    def sample(self, seed: int, n: int) -> tuple[Array, Array]:
        latent = self.base_sample(seed, n)
        field, log_det = self.forward(latent)
        return field, GaussianProposal.log_prob(self, latent) - log_det

    def log_prob(self, field: Array) -> Array:
        latent, log_det = self._carry(field, -self._step)
        log_q: Array = super().log_prob(latent) + log_det
        return log_q


def test_forward_and_reverse_of_a_trace_integral_prove_nothing() -> None:
    claims_too_much = certify(MidpointTrace(exact=True), 1, n_finite=2000)
    (failed,) = [check for check in claims_too_much.checks if not check.passed]
    assert failed.name == "log-determinant against the full Jacobian"
    assert 1e-3 < failed.value < 1e-2
    certify(MidpointTrace(exact=False, log_q_bound=1e-2), 1, n_finite=2000).require()


class HalfLine(GaussianProposal):
    """An exact density of narrow support: only fields whose first site is positive."""

    @property
    def metadata(self) -> ProposalMetadata:
        return replace(super().metadata, full_support=False)

    def sample(self, seed: int, n: int) -> tuple[Array, Array]:
        field, _ = super().sample(seed, n)
        field[:, 0, 0] = np.abs(field[:, 0, 0])
        return field, self.log_prob(field)

    def log_prob(self, field: Array) -> Array:
        return np.where(field[:, 0, 0] > 0, super().log_prob(field) + np.log(2), -np.inf)


def test_certificate_passes_an_exact_flow_of_narrow_support() -> None:
    certify(HalfLine((2, 2), 0.5), 1, n_finite=2000, n_compare=64).require()


def test_certificate_passes_the_healthy_one() -> None:
    certify(Broken("none"), 1, n_finite=2000, n_compare=64).require()


def test_certificate_of_a_slow_proposal_says_that_it_rests_on_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws() -> dict[str, str]:
        return {check.name: check.detail for check in certify(PROPOSAL, 1).checks}

    fast = draws()
    for name in ("FINITE", "COMPARED", "CLOSURE"):
        number = getattr(certificate, name)
        # As if each draw took longer than all may.
        monkeypatch.setattr(certificate, name, number._replace(seconds=0.0))
    slow = draws()
    for check, most, fewest in (
        ("finite draws", "10000 draws", "1000 draws (10000 but for a slow proposal)"),
        ("forward log q against log_prob", "on 512 draws", "on 128 draws"),
        ("draws against their density", "on 2000 draws", "on 250 draws (2000 but for a slow proposal)"),
    ):
        assert fast[check].endswith(most)
        assert slow[check].endswith(fewest)


@pytest.mark.parametrize(("seconds", "number"), [(0.0, 100), (0.09, 100), (0.2, 50), (9.0, 20)])
def test_numbers_of_draws_follow_from_the_time_that_one_takes(seconds: float, number: int) -> None:
    assert certificate.FINITE._replace(most=100, fewest=20, seconds=10.0).affordable(seconds) == number


class Counted:
    """A proposal that counts the fields of which log q is asked."""

    def __init__(self, proposal: Proposal) -> None:
        self._proposal = proposal
        self.metadata = proposal.metadata
        self.asked: list[int] = []

    def sample(self, seed: int, n: int) -> tuple[Array, Array]:
        return self._proposal.sample(seed, n)

    def log_prob(self, field: Array) -> Array:
        self.asked.append(len(field))
        return self._proposal.log_prob(field)


@pytest.mark.parametrize("proposal", [PROPOSAL, SPINS, LINKS], ids=lambda proposal: str(proposal.metadata.space))
def test_identities_need_log_q_as_often_as_is_said(proposal: Proposal) -> None:
    counted, space = Counted(proposal), proposal.metadata.space
    CLOSURES[space](counted, proposal.sample(1, 20)[0], 2)
    assert counted.asked == [20] * EVALUATIONS[space]
