"""The certificate: measured evidence that a proposal's log q is the log density of what it draws.

A flow whose log q is off by δ nats samples exp(−S) e^{δ(φ)} instead of exp(−S), without any sign in the acceptance. So
every proposal is measured before production, and refused with the reason if a check fails:

- forward log q against ``log_prob`` of the same fields, as quantiles in nats;
- the draws against the density, by identities that every density obeys over its own draws (`flowmc.proposals.closure`).
  (Not for a flow of real fields with narrow support, whose boundary spoils the identities. Nor do they, or any local
  check, see how much weight a density gives to modes that its draws never reach.)
- for spins on at most 16 sites, the sum of the probabilities of all configurations;
- for a proposal that draws blocks anew, the same of what it tells of blocks (`flowmc.proposals.blocks`), of which log q
  knows nothing: log q of new insides against that of the same as old ones, whatever other blocks hold; untouched borders;
  repetition and batch size; draws against their density; the sum of the probabilities of all insides up to side 3;
- repetition: the same call twice, and training-mode layers or random trace estimates give themselves away; other seeds
  give other draws, and no batch of continuous fields holds one twice;
- batch size: the same fields in a batch, in halves and alone;
- log-determinant against the full Jacobian of the discrete map as run, at a few points (V ≤ 4096);
- finite fields and log q on 10⁴ draws;
- for real fields the proposal's own word that q > 0 everywhere: log q of draws stretched away from zero is finite;
- the dtype, and the proposal's own word: that log q is exact, or by how many nats it is off at most.

Slow proposals are measured on fewer draws, as many as a minute or so allows: details of the checks say how many.

A proposal that says its log q is not exact may be off by what it states, at most `LARGEST_BOUND`, in one check only: the
log-determinant against the full Jacobian. That forward and reverse agree proves nothing there, for an integrator with
the trace of the velocity makes the same error both ways. Where the error cannot be measured, the proposal is refused.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowmc.errors import CertificateError, ParameterError
from flowmc.flows.base import LARGEST_BOUND
from flowmc.proposals.base import BlockProposal, Proposal, ProposalMetadata, TransportProposal
from flowmc.proposals.blocks import measure_blocks
from flowmc.proposals.closure import CLOSURES, ENUMERATED_SITES, EVALUATIONS, Identity, total_probability
from flowmc.seeds import fold
from flowmc.theories import SPACES, FieldSpace

__all__ = ["LARGEST_BOUND", "Certificate", "Check", "certify"]

JACOBIAN = "log-determinant against the full Jacobian"
JACOBIAN_VOLUME = 4096
# Points for a proposal that is exact, where any one shows a mistake.
JACOBIAN_DRAWS = 3
# For one that is not the error varies with the draw, and production has many: as many as are cheap.
FEWEST_INEXACT, MOST_INEXACT, INEXACT_ROWS = 16, 128, 4096
# Two-sided probability 6e-7 a score: a good flow fails about once in a hundred thousand certificates.
CLOSURE_SCORE = 5.0
TIMED_DRAWS = 64
# Logarithm of a probability that a good flow does not meet.
UNLIKELY = -15.0
# Evaluations of log q where densities are compared: once, repeated, and in halves.
COMPARISONS = 3
# Largest tolerated discrepancies in nats: rounding of a deep network in its own precision, with a margin of ten over
# what 32 coupling layers show (forward against inverse pass, the worst case), and of a log-determinant summed in it.
TOLERANCES = {"float32": 2e-2, "float64": 1e-8}


class _Number(NamedTuple):
    """How many draws a check is made on: fewer than the most for a slow proposal, whose certificate would take hours."""

    most: int
    fewest: int
    seconds: float
    """Within which they are to be made, unless there would be fewer than the fewest."""

    def affordable(self, seconds: float) -> int:
        """Return how many, if each takes so many seconds."""
        if seconds * self.most <= self.seconds:
            return self.most
        return max(self.fewest, int(self.seconds / seconds))

    def reduction(self, number: int) -> str:
        """Say that an affordable number is not the most; an empty text where it is."""
        return f" ({self.most} but for a slow proposal)" if number < self.most else ""


# Draws are stretched by so much: out of a box, if they fill one, but not out of where a flow's networks were trained.
STRETCH = 1.5

FINITE = _Number(10_000, 1000, 20.0)
COMPARED = _Number(512, 128, 15.0)
CLOSURE = _Number(2000, 250, 40.0)
ADVICE_ON_BOUNDS = ", or take more steps of the integrator, or an exact one, or state a `log_q_bound` that holds"


@dataclass(frozen=True)
class Check:
    """One measured property of a proposal.

    Parameters
    ----------
    name
        What was measured.
    value
        The measured figure.
    tolerance
        The largest value that passes.
    unit
        Unit of both.
    passed
        Whether the check passed.
    detail
        Quantiles and circumstances, for the reader.
    """

    name: str
    value: float
    tolerance: float
    unit: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Certificate:
    """The outcome of `certify`.

    Parameters
    ----------
    fingerprint
        Of the proposal.
    dtype
        Type in which it computed.
    checks
        What was measured.
    exact
        Whether the proposal says that its log q is exact.
    log_q_bound
        By how many nats it says that log q is off at most: zero if exact, None without a bound.
    jacobian_draws
        Points at which the full Jacobian was taken; zero where it could not be.
    full_support
        Whether the proposal says that q > 0 everywhere; without it some checks are not made.
    """

    fingerprint: str
    dtype: str
    checks: tuple[Check, ...]
    exact: bool = True
    log_q_bound: float | None = 0.0
    jacobian_draws: int = 0
    full_support: bool = True

    @property
    def passed(self) -> bool:
        """Whether there are checks, and every one passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def require(self) -> None:
        """Refuse a proposal that failed.

        Raises
        ------
        CertificateError
            If a check failed; the message names each.
        """
        failed = [check for check in self.checks if not check.passed]
        if not self.checks:
            raise CertificateError(got="a certificate without checks", expected="measured ones", fix="certify the flow")
        if failed:
            raise CertificateError(
                got="; ".join(f"{check.name}: {check.value:.3g} {check.unit} ({check.detail})" for check in failed),
                expected="; ".join(f"{check.name} <= {check.tolerance:.3g} {check.unit}" for check in failed),
                fix="mend the flow's log q (log-determinant of the map as run, evaluation mode, no batch statistics), "
                f"or run its networks in float64{ADVICE_ON_BOUNDS if not self.exact else ''}; "
                "a flow that fails may not propose in production",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as plain data; a value that is not finite becomes None.

        ``log_q`` is what ensembles, analyses and reports repeat: whether log q is exact, by how many nats it is off at
        most as stated (``bound``), and how far it was found off (``measured``) on how many ``draws``.
        """
        checks = [{**asdict(check), "value": _finite(check.value)} for check in self.checks]
        measured = next((check.value for check in self.checks if check.name == JACOBIAN), float("nan"))
        return {
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "full_support": self.full_support,
            "log_q": {
                "exact": self.exact,
                "bound": self.log_q_bound,
                "measured": _finite(measured),
                "draws": self.jacobian_draws,
            },
            "checks": checks,
            "passed": self.passed,
        }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


@np.errstate(all="ignore")  # a broken flow's infinities are findings, and reported as such
def certify(
    proposal: Proposal,
    seed: int,
    *,
    n_finite: int | None = None,
    n_compare: int | None = None,
    n_jacobian: int | None = None,
    tolerance: float | None = None,
) -> Certificate:
    """Measure a proposal and return its certificate; `Certificate.require` refuses a failed one.

    Parameters
    ----------
    proposal
        The proposal, as it will be used in production.
    seed
        Seed of the draws.
    n_finite
        Draws that must be finite; by default 10 000, of a slow proposal as many as 20 seconds allow, at least 1000. The
        identities are measured on 2000 of them, or as many as 40 seconds allow, at least 250.
    n_compare
        Draws on which log densities are compared; by default 512, or as many as 15 seconds allow, at least 128.
    n_jacobian
        Points at which the full Jacobian is taken, for transport proposals with V ≤ 4096; by default 3, or for one that
        says its log q is not exact 4096 / V, from 16 to 128: the largest error in production exceeds what is found.
    tolerance
        Largest tolerated discrepancy in nats; by default 2e-2 for float32 and 1e-8 for float64. What a proposal states
        as the error of its log q is added for the log-determinant.

    Raises
    ------
    ParameterError
        If a number of draws is not positive, or the proposal computes in another type than float32 or float64.
    CertificateError
        If what is told of blocks has the wrong shape.
    """
    metadata = proposal.metadata
    _check_numbers(metadata, n_finite=n_finite, n_compare=n_compare, n_jacobian=n_jacobian)
    limit = TOLERANCES[metadata.dtype] if tolerance is None else tolerance
    space = SPACES[metadata.space]
    of_draw, of_log_q = _seconds(proposal, fold(seed, "timing"))
    reduced = ""
    if n_finite is None:
        n_finite = FINITE.affordable(of_draw)
        reduced = FINITE.reduction(n_finite)
    n_compare = COMPARED.affordable(COMPARISONS * of_log_q) if n_compare is None else n_compare
    fields, log_q = proposal.sample(fold(seed, "finite"), n_finite)
    finite = _sound(fields, log_q, space)
    bad = int(n_finite - np.count_nonzero(finite))
    checks = [
        Check("finite draws", bad, 0, "draws", bad == 0, f"{n_finite} draws{reduced}"),
        _own_word(metadata),
        _stated("own word: deterministic", metadata.deterministic),
    ]
    fields, log_q = fields[finite], log_q[finite]
    if len(fields):
        checks += _density_checks(proposal, fields[:n_compare], log_q[:n_compare], limit)
        if metadata.full_support or metadata.space != "real":
            n_closure = CLOSURE.affordable(EVALUATIONS[metadata.space] * of_log_q)
            closure = _closure(proposal, fields[:n_closure], fold(seed, "closure"))
            checks.append(replace(closure, detail=closure.detail + CLOSURE.reduction(n_closure)))
        if metadata.full_support and metadata.space == "real":
            checks.append(_support(proposal, fields[:n_compare]))
        checks.append(_repetition(proposal, fold(seed, "repetition"), min(n_compare, 64)))
        checks.append(_fresh_draws(proposal, fields, fold(seed, "fresh")))
    if metadata.space == "spin" and np.prod(metadata.event_shape) <= ENUMERATED_SITES:
        checks.append(_normalisation(proposal, limit))
    unmeasured = _why_no_jacobian(proposal)
    if n_jacobian is None:
        rows = INEXACT_ROWS // int(np.prod(metadata.event_shape))
        n_jacobian = JACOBIAN_DRAWS if metadata.exact else min(max(FEWEST_INEXACT, rows), MOST_INEXACT)
    draws = 0 if unmeasured else n_jacobian
    if isinstance(proposal, TransportProposal) and not unmeasured:
        checks.append(_jacobian(proposal, fold(seed, "jacobian"), draws, limit))
    elif not metadata.exact:
        checks.append(Check(JACOBIAN, float("inf"), limit, "nats", False, f"cannot be measured: {unmeasured}"))
    if isinstance(proposal, BlockProposal) and len(fields):
        checks += _block_checks(proposal, fields, fold(seed, "blocks"), limit)
    bound = metadata.log_q_bound if metadata.states_a_bound else None
    return Certificate(
        metadata.fingerprint, metadata.dtype, tuple(checks), metadata.exact, bound, draws, metadata.full_support
    )


def _check_numbers(metadata: ProposalMetadata, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ParameterError(got=f"{name} = {number}", expected="at least one", fix="leave it out, or raise it")
    if metadata.dtype not in TOLERANCES:
        raise ParameterError(
            got=f"a proposal that computes in {metadata.dtype!r}",
            expected=f"one of {list(TOLERANCES)}",
            fix="let the proposal compute in one of them",
        )


def _seconds(proposal: Proposal, seed: int) -> tuple[float, float]:
    """Return the seconds that a draw takes and that log q of a field takes, without what the first call takes longer."""
    of_draw = of_log_q = 0.0
    for _ in range(2):
        began = time.perf_counter()
        fields, log_q = proposal.sample(seed, TIMED_DRAWS)
        of_draw = (time.perf_counter() - began) / TIMED_DRAWS
        fields = fields[_sound(fields, log_q, SPACES[proposal.metadata.space])]
        if len(fields):
            began = time.perf_counter()
            proposal.log_prob(fields)
            of_log_q = (time.perf_counter() - began) / len(fields)
    return of_draw, of_log_q


def _sound(fields: NDArray[Any], log_q: NDArray[np.float64], space: FieldSpace) -> NDArray[np.bool_]:
    """Return which draws have finite log q and lie in the space."""
    sound: NDArray[np.bool_] = np.isfinite(log_q) & space.contains(fields.reshape(len(fields), -1))
    return sound


def _own_word(metadata: ProposalMetadata) -> Check:
    bound = metadata.log_q_bound if metadata.states_a_bound else float("inf")
    stated = f"not exact, off by at most {bound:g} nats" if np.isfinite(bound) else "not exact, no bound is stated"
    detail = "exact" if metadata.exact else stated
    return Check("own word: error of log q", bound, LARGEST_BOUND, "nats", bound <= LARGEST_BOUND, detail)


def _stated(name: str, value: bool) -> Check:
    return Check(name, float(not value), 0, "", value, "yes" if value else "no")


def _discrepancy(name: str, one: NDArray[np.float64], other: NDArray[np.float64], limit: float) -> Check:
    difference = np.abs(one - other)
    # NaN must fail, not compare false and pass.
    worst = float(np.max(difference)) if np.all(np.isfinite(difference)) else float("inf")
    median, high = np.quantile(np.nan_to_num(difference, nan=np.inf), [0.5, 0.99], method="higher")
    detail = f"median {median:.2g}, 99 % {high:.2g}, max {worst:.2g} nats on {difference.size} draws"
    return Check(name, worst, limit, "nats", worst <= limit, detail)


def _density_checks(proposal: Proposal, fields: NDArray[Any], log_q: NDArray[np.float64], limit: float) -> list[Check]:
    log_prob = proposal.log_prob(fields)
    again = proposal.log_prob(fields)
    half = len(fields) // 2
    parts = [proposal.log_prob(part) for part in (fields[:half], fields[half:]) if len(part)]
    few = min(8, len(fields))
    alone = np.concatenate([proposal.log_prob(fields[i : i + 1]) for i in range(few)])
    return [
        _discrepancy("forward log q against log_prob", log_q, log_prob, limit),
        _discrepancy("log_prob repeated", log_prob, again, limit * 1e-2),
        _discrepancy("log_prob in halves", log_prob, np.concatenate(parts), limit),
        _discrepancy("log_prob one by one", log_prob[:few], alone, limit),
    ]


def _closure(proposal: Proposal, fields: NDArray[Any], seed: int) -> Check:
    identities = CLOSURES[proposal.metadata.space](proposal, fields, seed)
    return _scored("draws against their density", identities, f"{len(fields)} draws")


def _scored(name: str, identities: dict[str, Identity], draws: str) -> Check:
    scores = {name: identity.score for name, identity in identities.items()}
    # NaN must fail, not compare false and pass.
    finite = np.isfinite(list(scores.values())).all()
    worst = max(scores, key=lambda name: abs(scores[name])) if finite else "not finite"
    value = abs(scores[worst]) if finite else float("inf")
    detail = f"worst: {worst}, {len(scores)} identities on {draws}"
    return Check(name, value, CLOSURE_SCORE, "sigma", value <= CLOSURE_SCORE, detail)


def _normalisation(proposal: Proposal, limit: float) -> Check:
    excess = abs(total_probability(proposal) - 1)
    detail = f"all 2^{int(np.prod(proposal.metadata.event_shape))} configurations"
    return Check("total probability minus one", excess, limit, "", excess <= limit, detail)


def _support(proposal: Proposal, fields: NDArray[Any]) -> Check:
    # The logarithm of zero, or what an inverse makes of a point that is no image: both are outside of the support.
    log_q = proposal.log_prob((STRETCH * fields).astype(fields.dtype))
    vanishing = int(np.count_nonzero(~np.isfinite(log_q)))
    detail = f"{len(fields)} draws, {STRETCH} times as far from zero; full_support = False permits hybrids"
    return Check("own word: q > 0 everywhere", vanishing, 0, "fields", vanishing == 0, detail)


def _repetition(proposal: Proposal, seed: int, n: int) -> Check:
    (one_field, one), (other_field, other) = proposal.sample(seed, n), proposal.sample(seed, n)
    same = np.array_equal(one_field, other_field, equal_nan=True) and np.array_equal(one, other, equal_nan=True)
    return Check("same seed, same draws", float(not same), 0, "", same, f"{n} draws, bit by bit")


def _fresh_draws(proposal: Proposal, fields: NDArray[Any], seed: int) -> Check:
    """Count draws that come again: for another seed, or (of continuous fields, which never do) within one batch."""
    # Of one size: what is compiled for a size may hold draws of its own.
    n = min(len(fields), TIMED_DRAWS)
    (one, log_q), (other, _) = (proposal.sample(fold(seed, number), n) for number in range(2))
    if proposal.metadata.space == "spin":
        # Configurations do come again: by chance all of them with the probability that q gives to the batch.
        repeated = n * int(np.array_equal(one, other) and float(np.sum(log_q)) < UNLIKELY)
    elif fields[0].size == 1:
        # Ten thousand single numbers in float32 do meet.
        repeated = n * int(np.array_equal(one, other))
    else:
        rows = [row.tobytes() for row in (*fields, *one, *other)]
        repeated = len(rows) - len(set(rows))
    detail = (
        f"{len(fields)} draws, and {n} of each of two other seeds; a flow draws from the generator or key of the call"
    )
    return Check("other seeds, other draws", repeated, 0, "draws", repeated == 0, detail)


def _why_no_jacobian(proposal: Proposal) -> str:
    """Say why the full Jacobian is not taken; an empty text where it is."""
    volume = int(np.prod(proposal.metadata.event_shape))
    if not isinstance(proposal, TransportProposal):
        return "the proposal shows no map of a base density (TransportProposal)"
    return f"V = {volume} > {JACOBIAN_VOLUME}" if volume > JACOBIAN_VOLUME else ""


def _jacobian(proposal: TransportProposal, seed: int, n: int, limit: float) -> Check:
    metadata = proposal.metadata
    latent = proposal.base_sample(seed, n)
    _, log_det = proposal.forward(latent)
    full = np.array([np.linalg.slogdet(proposal.jacobian(point).astype(np.float64))[1] for point in latent])
    if metadata.exact or not metadata.states_a_bound:
        return _discrepancy(JACOBIAN, log_det, full, limit)
    check = _discrepancy(JACOBIAN, log_det, full, metadata.log_q_bound + limit)
    return replace(check, detail=f"{check.detail}; {metadata.log_q_bound:g} nats stated")


def _block_checks(proposal: BlockProposal, fields: NDArray[Any], seed: int, limit: float) -> list[Check]:
    """Return the checks of a proposal's blocks, each over the blocks of all sides."""
    figures = [measure_blocks(proposal, fields, side, fold(seed, side)) for side in proposal.block_sides]
    sides = f"blocks of side {', '.join(str(one.side) for one in figures)}"
    bad = sum(int(one.bad.sum()) for one in figures)
    draws = f"{sum(one.bad.size for one in figures)} draws, {sides}"
    repeated = all(one.repeated for one in figures)
    checks = [
        Check("blocks: finite draws, borders untouched", bad, 0, "draws", bad == 0, draws),
        Check("blocks: same seed, same draws", float(not repeated), 0, "", repeated, f"{sides}, bit by bit"),
    ]
    if any(one.bad.all() for one in figures):
        return checks
    pairs = {
        "blocks: log q of new insides against that of old ones": [one.again for one in figures],
        "blocks: log q beside other blocks": [one.mixed for one in figures],
        "blocks: log q in halves": [one.batches for one in figures],
    }
    for name, found in pairs.items():
        first, second = (np.concatenate([pair[number].ravel() for pair in found]) for number in range(2))
        # Both may say that what is there is impossible.
        possible = ~(np.isneginf(first) & np.isneginf(second))
        checks.append(_discrepancy(name, np.where(possible, first, 0.0), np.where(possible, second, 0.0), limit))
    identities = {f"side {one.side}: {name}": value for one in figures for name, value in one.identities.items()}
    checks.append(_scored("blocks: draws against their density", identities, draws))
    totals = np.concatenate([one.total.ravel() for one in figures])
    if totals.size:
        excess = float(np.abs(totals - 1).max())
        detail = f"all insides of small blocks in {totals.size} borders"
        checks.append(Check("blocks: total probability minus one", excess, limit, "", excess <= limit, detail))
    return checks
