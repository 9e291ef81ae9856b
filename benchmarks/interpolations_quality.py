"""What is measured of any flow along an interpolation: weights of its draws and of exact samples, and the alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, isfinite, nan, sqrt
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.claims import Claim
from benchmarks.interpolations_exact import WellPaths
from flowmc.flows import InterpolatingFlow, SavedFlow, load_flow
from flowmc.seeds import numpy_generator, torch_generator
from flowmc.theories import DoubleWell, GaussianMixture, Theory
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.free_energy import log_partition_function, log_partition_function_variational
from flowmc_analysis.importance import importance_mean
from flowmc_analysis.monitors import Monitor, mode_drop_alarm, monitor_mode_drop
from flowmc_analysis.unseen import TOLERATED_SHARE, UnseenStates, unseen_states
from flowmc_analysis.weights import acceptance_independence, ess_forward, ess_reverse, pareto_k

__all__ = [
    "KEPT_SHARE",
    "LARGEST_Z",
    "Alarm",
    "Weighed",
    "exact_samples",
    "excess",
    "missed_part",
    "of_seeds",
    "spread",
    "weigh",
    "z_of",
]

Array = NDArray[np.float64]

KEPT_SHARE = 0.1
"""A mode is kept if the draws give it at least this part of its weight."""
LARGEST_Z = 4.0
"""Targets for z-scores, of some hundred of them."""
CHUNK = 2048
"""Numbers drawn at once: beyond caches Jacobians take longer."""
LARGE_PART = 0.1
"""Part of Z that must not be missed without an alarm."""
CHAINS = 8
"""Chains that a run with the flow alone is imitated with."""


def exact_samples(theory: Theory, n: int) -> Array:
    """Draw ``n`` exact, independent samples of a mixture or a double well, always the same."""
    generator = numpy_generator(6, "exact", str(theory))
    if isinstance(theory, GaussianMixture):
        return theory.draw(generator, n)
    if isinstance(theory, DoubleWell):
        return WellPaths(theory).draw(generator, n)
    raise NotImplementedError(theory)


@dataclass(frozen=True)
class Alarm:
    """What the analysis of a run says, if these are its draws of the flow and the states of its chains."""

    monitor: Monitor
    unseen: UnseenStates

    @classmethod
    def of(cls, log_w: Array, log_w_of_states: Array) -> Alarm:
        """Compare log-weights of draws with those of states, (chains, n) each; there may be more of the draws."""
        paired = log_w[:, : log_w_of_states.shape[1]]
        return cls(monitor_mode_drop(paired, log_w_of_states), unseen_states(log_w, log_w_of_states))

    @property
    def raised(self) -> bool:
        """Whether the mode-drop alarm is raised."""
        return mode_drop_alarm((self.monitor,), self.unseen)


@dataclass(frozen=True)
class Weighed:
    """Draws of a flow and exact samples of its target, with the weights w = e^−S / q of both.

    Parameters
    ----------
    theory
        The target.
    field, log_w
        The draws, (n, V), and their log-weights; −inf where the map folds or overflows.
    samples, log_w_samples
        The exact samples, and theirs; +inf where the flow has no density.
    seed, steps, seconds
        Of the training.
    log_q_bound
        How many nats log q may be off.
    path_log_z
        ∫C(t) dt, what the path of the training has learned ln Z to be; NaN without a path.
    """

    theory: Theory
    field: Array
    log_w: Array
    samples: Array
    log_w_samples: Array
    seed: int
    steps: int
    seconds: float
    log_q_bound: float
    path_log_z: float

    @cached_property
    def ess_reverse(self) -> float:
        """Effective fraction of the draws, as they see it."""
        return ess_reverse(self.log_w)

    @cached_property
    def ess_forward(self) -> float:
        """Effective fraction of the draws, as exact samples see it."""
        return ess_forward(self.log_w_samples, self.log_w)

    @cached_property
    def acceptance(self) -> float:
        """Acceptance of independence Metropolis."""
        return acceptance_independence(self.log_w)

    @cached_property
    def pareto_k(self) -> float:
        """Shape of the tail of the weights."""
        return pareto_k(self.log_w)

    @cached_property
    def log_z(self) -> Estimate:
        """Logarithm of Z by importance sampling."""
        return log_partition_function(self.log_w)

    @cached_property
    def bound(self) -> Estimate:
        """The variational bound E_q[log w] of ln Z (ELBO)."""
        return log_partition_function_variational(self.log_w)

    @property
    def failed(self) -> int:
        """Draws without a density."""
        return int(np.isneginf(self.log_w).sum())

    def forward_divergence(self, log_z: float) -> Estimate:
        """KL(p‖q) = E_p[log p − log q] in nats, given the exact ln Z."""
        values = self.log_w_samples - log_z
        if not np.isfinite(values).all():
            return Estimate(inf, nan)
        return Estimate(float(values.mean()), float(values.std()) / sqrt(len(values) - 1))

    def reweighted(self, values: Array) -> Estimate:
        """Return the mean of an observable of the draws under the target, by their weights."""
        return importance_mean(self.log_w, values)

    @cached_property
    def alarm(self) -> Alarm:
        """The alarm of a run whose chains are at exact samples: of other kernels that move between the modes."""
        return Alarm.of(self.log_w[None], self.log_w_samples[None])

    @cached_property
    def alarm_alone(self) -> Alarm:
        """The alarm of a run with the flow alone: its states are earlier draws, so that it knows of no others."""
        generator = numpy_generator(6, "chains", str(self.theory))
        proposed = self.log_w[: len(self.log_w) // CHAINS * CHAINS].reshape(CHAINS, -1)
        # Each chain begins at a draw, and each column is one proposal for all.
        current, states = proposed[:, 0], np.empty_like(proposed[:, 1:])
        for column in range(states.shape[1]):
            states[:, column] = current
            new = proposed[:, column + 1]
            accepted = np.log(generator.random(CHAINS)) < new - current
            current = np.where(accepted, new, current)
        return Alarm.of(proposed[:, 1:], states)


def weigh(path: Path, n: int, samples: Array) -> Weighed:
    """Draw from a flow, and weigh its draws and samples of the target, in float64; kept beside the flow.

    Parameters
    ----------
    path
        The flow file.
    n
        Draws.
    samples
        Exact samples of the target, ``(N, V)``.
    """
    saved, kept = SavedFlow.read(path), path.with_suffix(".weights.npz")
    mark = f"{saved.fingerprint} {n} {len(samples)}"
    stored = _read(kept, mark)
    if stored is None:
        flow, _ = load_flow(path)
        flow.double()
        stored = {"mark": np.asarray(mark), **_draw(flow, saved.theory, path.stem, n, samples)}
        with kept.open("wb") as file:
            np.savez(file, **stored)  # type: ignore[arg-type]
    return Weighed(
        theory=saved.theory,
        field=stored["field"],
        log_w=stored["log_w"],
        samples=samples,
        log_w_samples=stored["log_w_samples"],
        seed=int(saved.training["config"]["seed"]),
        steps=int(saved.training["steps"]),
        seconds=float(saved.training["seconds"]),
        log_q_bound=float(stored["log_q_bound"]),
        path_log_z=float(stored["path_log_z"]) if saved.training["config"]["objective"] == "continuity" else nan,
    )


def _read(path: Path, mark: str) -> dict[str, Array] | None:
    if not path.is_file():
        return None
    with np.load(path) as stored:
        return dict(stored) if str(stored["mark"]) == mark else None


def _draw(flow: torch.nn.Module, theory: Theory, label: str, n: int, samples: Array) -> dict[str, Array]:
    assert isinstance(flow, InterpolatingFlow)
    fields, log_w = [], []
    with torch.inference_mode():
        chunk = CHUNK // theory.volume
        for start in range(0, n, chunk):
            field, log_q = flow.sample(min(chunk, n - start), torch_generator(6, label, start // chunk))
            fields.append(field.numpy())
            log_w.append((-theory.action(field) - log_q).numpy())
        of_samples = [
            (-theory.action(part) - flow.log_prob(part)).numpy()
            for part in torch.split(torch.as_tensor(samples), chunk)
        ]
        times = torch.linspace(0, 1, 201, dtype=torch.float64)
        path_log_z = torch.trapezoid(flow.interpolation.rate_of_log_z(times), times)
    weights, states = np.concatenate(log_w), np.concatenate(of_samples)
    return {
        "field": np.concatenate(fields),
        # Where the map folds or overflows there is no density.
        "log_w": np.where(np.isfinite(weights), weights, -np.inf),
        "log_w_samples": np.where(np.isfinite(states), states, np.inf),
        "log_q_bound": np.asarray(flow.log_q_bound),
        "path_log_z": np.asarray(float(path_log_z)),
    }


def z_of(estimate: Estimate, exact: float) -> float:
    """Return the z-score of an estimate against an exact value; infinite where it has no error."""
    z = (estimate.value - exact) / estimate.error if estimate.error > 0 else nan
    return z if isfinite(z) else inf


def spread(values: Sequence[float], pattern: str = ".3g") -> str:
    """Return the median of the seeds' values, and the smallest and the largest unless they look the same."""
    middle, low, high = (f"{value:{pattern}}" for value in (float(np.median(values)), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} … {high})"


def of_seeds(numbers: Sequence[float], pattern: str = "+.1f") -> str:
    """Return the value of every seed."""
    return ", ".join(f"{number:{pattern}}" for number in numbers)


def excess(weighed: Weighed, log_z: float) -> float:
    """Return by how many of its errors the variational bound exceeds the exact ln Z and what log q may be off."""
    if weighed.bound.value == -inf:
        return -inf
    return (weighed.bound.value - log_z - weighed.log_q_bound) / weighed.bound.error


def missed_part(weighed: Weighed, log_z: float) -> float:
    """Return the part of the exact Z that the weights of the draws do not add up to."""
    return 1 - exp(weighed.log_z.value - log_z)


def alarm_claim(where: str, weighed: Sequence[Weighed], log_z: float, *, quick: bool) -> Claim:
    """Say in how many seeds the alarm is raised by exact states: in those that miss a large part of Z."""
    raised = [one.alarm.raised for one in weighed]
    alone = sum(one.alarm_alone.raised for one in weighed)
    missed = [missed_part(one, log_z) for one in weighed]
    # Between what is tolerated and what is large both verdicts are right.
    right = all(
        alarm == (part > LARGE_PART) or TOLERATED_SHARE < part <= LARGE_PART
        for alarm, part in zip(raised, missed, strict=True)
    )
    detail = f"of {len(raised)} seeds, which miss {of_seeds(missed, '.2g')} of Z; with the flow alone {alone}"
    target = f"{sum(part > LARGE_PART for part in missed)}, the seeds that miss more than {LARGE_PART:g} of Z"
    return Claim(f"alarm raised, {where}", sum(raised), detail, target, "", quick or right)
