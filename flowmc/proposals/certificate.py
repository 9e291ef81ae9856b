"""The certificate: measured evidence that a proposal's log q is the log density of what it draws.

A flow whose log q is off by δ nats samples exp(−S) e^{δ(φ)} instead of exp(−S), without any sign in the acceptance. So
every proposal is measured before production, and refused with the reason if a check fails:

- forward log q against ``log_prob`` of the same fields, as quantiles in nats;
- the draws against the density: by partial integration any density on real fields obeys ⟨φ·∂ log q⟩ = −V and, for a
  fixed direction u, ⟨(u·φ)(u·∂ log q)⟩ = −|u|² and ⟨u·∂ log q⟩ = 0, over its own draws. A base that draws too wide, or
  noise of the wrong shape, shows nowhere else: forward and inverse pass agree, and the weights are self-consistent.
  (Not for a flow of narrow support, whose boundary spoils the identities. Nor do they, or any local check, see how much
  weight a density gives to modes that its draws never reach.)
- repetition: the same call twice, and training-mode layers or random trace estimates give themselves away;
- batch size: the same fields in a batch, in halves and alone;
- log-determinant against the full Jacobian of the discrete map as run, at a few points (V ≤ 4096);
- finite fields and log q on 10⁴ draws;
- the dtype, and the proposal's own word on exactness.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.errors import CertificateError
from flowmc.proposals.base import Proposal, TransportProposal
from flowmc.seeds import fold, numpy_generator

__all__ = ["Certificate", "Check", "certify"]

JACOBIAN_VOLUME = 4096
# Two-sided probability 6e-7 a score: a good flow fails about once in a hundred thousand certificates.
CLOSURE_SCORE = 5.0
CLOSURE_DRAWS = 2000
CLOSURE_DIRECTIONS = 2
# Relative step of the directional derivatives of log q: small against the field, large against float32's rounding.
CLOSURE_STEP = 1e-3
# Largest tolerated discrepancies in nats: rounding of a deep network in its own precision, with a margin of ten over
# what 32 coupling layers show (forward against inverse pass, the worst case), and of a log-determinant summed in it.
TOLERANCES = {"float32": 2e-2, "float64": 1e-8}


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
    """The outcome of `certify` for the proposal with this fingerprint."""

    fingerprint: str
    dtype: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def require(self) -> None:
        """Refuse a proposal that failed.

        Raises
        ------
        CertificateError
            If a check failed; the message names each.
        """
        failed = [check for check in self.checks if not check.passed]
        if failed:
            raise CertificateError(
                got="; ".join(f"{check.name}: {check.value:.3g} {check.unit} ({check.detail})" for check in failed),
                expected="; ".join(f"{check.name} <= {check.tolerance:.3g} {check.unit}" for check in failed),
                fix="mend the flow's log q (exact divergence, evaluation mode, no batch statistics), "
                "or run its networks in float64; a flow that fails may not propose in production",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as plain data; a value that is not finite becomes None."""
        checks = [
            {**asdict(check), "value": check.value if np.isfinite(check.value) else None} for check in self.checks
        ]
        return {**asdict(self), "checks": checks, "passed": self.passed}


@np.errstate(all="ignore")  # a broken flow's infinities are findings, and reported as such
def certify(
    proposal: Proposal,
    seed: int,
    *,
    n_finite: int = 10_000,
    n_compare: int = 512,
    n_jacobian: int = 3,
    tolerance: float | None = None,
) -> Certificate:
    """Measure a proposal of real fields and return its certificate; `Certificate.require` refuses a failed one.

    Parameters
    ----------
    proposal
        The proposal, as it will be used in production.
    seed
        Seed of the draws.
    n_finite
        Draws that must be finite.
    n_compare
        Draws on which log densities are compared.
    n_jacobian
        Points at which the full Jacobian is taken, for transport proposals with V ≤ 4096.
    tolerance
        Largest tolerated discrepancy in nats; by default 2e-2 for float32 and 1e-8 for float64.
    """
    metadata = proposal.metadata
    limit = TOLERANCES[metadata.dtype] if tolerance is None else tolerance
    fields, log_q = proposal.sample(fold(seed, "finite"), n_finite)
    finite = np.isfinite(log_q) & np.isfinite(fields).reshape(n_finite, -1).all(axis=1)
    bad = int(n_finite - np.count_nonzero(finite))
    checks = [
        Check("finite draws", bad, 0, "draws", bad == 0, f"{n_finite} draws"),
        _stated("own word: exact", metadata.exact),
        _stated("own word: deterministic", metadata.deterministic),
    ]
    fields, log_q = fields[finite], log_q[finite]
    if len(fields):
        checks += _density_checks(proposal, fields[:n_compare], log_q[:n_compare], limit)
        if metadata.full_support:
            checks.append(_closure(proposal, fields[:CLOSURE_DRAWS], fold(seed, "closure")))
        checks.append(_repetition(proposal, fold(seed, "repetition"), min(n_compare, 64)))
    if isinstance(proposal, TransportProposal) and np.prod(metadata.event_shape) <= JACOBIAN_VOLUME:
        checks.append(_jacobian(proposal, fold(seed, "jacobian"), n_jacobian, limit))
    return Certificate(metadata.fingerprint, metadata.dtype, tuple(checks))


def _stated(name: str, value: bool) -> Check:
    return Check(name, float(not value), 0, "", value, "yes" if value else "no")


def _discrepancy(name: str, one: NDArray[np.float64], other: NDArray[np.float64], limit: float) -> Check:
    difference = np.abs(one - other)
    # NaN must fail, not compare false and pass.
    worst = float(np.max(difference)) if np.all(np.isfinite(difference)) else float("inf")
    median, high = np.quantile(np.nan_to_num(difference, nan=np.inf), [0.5, 0.99], method="higher")
    detail = f"median {median:.2g}, 99 % {high:.2g}, max {worst:.2g} nats on {difference.size} draws"
    return Check(name, worst, limit, "nats", worst <= limit, detail)


def _density_checks(
    proposal: Proposal, fields: NDArray[np.floating[Any]], log_q: NDArray[np.float64], limit: float
) -> list[Check]:
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


def _closure(proposal: Proposal, fields: NDArray[np.floating[Any]], seed: int) -> Check:
    n, volume = len(fields), fields[0].size
    directions = numpy_generator(seed).standard_normal((CLOSURE_DIRECTIONS, *fields.shape[1:]))
    directions *= fields.std() / directions.std(axis=tuple(range(1, directions.ndim)), keepdims=True)

    def slope(shift: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        ends = [proposal.log_prob((fields + sign * CLOSURE_STEP * shift).astype(fields.dtype)) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * CLOSURE_STEP)

    samples = [slope(fields) + volume]
    for direction in directions:
        along = (fields * direction).reshape(n, -1).sum(1)
        derivative = slope(np.broadcast_to(direction, fields.shape))
        samples += [derivative, along * derivative + float((direction**2).sum())]
    scores = np.array([sample.mean() / (sample.std(ddof=1) / np.sqrt(n)) for sample in samples])
    # NaN must fail, not compare false and pass.
    worst = float(np.abs(scores).max()) if np.isfinite(scores).all() else float("inf")
    detail = f"<phi d log q> + V = {samples[0].mean():.2g}, {len(scores)} identities on {n} draws"
    return Check("draws against their density", worst, CLOSURE_SCORE, "sigma", worst <= CLOSURE_SCORE, detail)


def _repetition(proposal: Proposal, seed: int, n: int) -> Check:
    (one_field, one), (other_field, other) = proposal.sample(seed, n), proposal.sample(seed, n)
    same = np.array_equal(one_field, other_field, equal_nan=True) and np.array_equal(one, other, equal_nan=True)
    return Check("same seed, same draws", float(not same), 0, "", same, f"{n} draws, bit by bit")


def _jacobian(proposal: TransportProposal, seed: int, n: int, limit: float) -> Check:
    latent = proposal.base_sample(seed, n)
    _, log_det = proposal.forward(latent)
    full = np.array([np.linalg.slogdet(proposal.jacobian(point).astype(np.float64))[1] for point in latent])
    return _discrepancy("log-determinant against the full Jacobian", log_det, full, limit)
