"""The training loop: Adam on an objective, resumable bit by bit, with a log of what it cost and reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.errors import NonFiniteError
from flowmc.flows import Flow, describe_flow, fingerprint
from flowmc.seeds import torch_generator
from flowmc.theories import Theory
from flowmc.training.checkpoint import TrainingFiles
from flowmc.training.companions import Companion, companions
from flowmc.training.compilation import check_compilable, compiled
from flowmc.training.config import STOP_WINDOW, TrainingConfig
from flowmc.training.forward import Samples, forward_kl
from flowmc.training.log import TrainingLog, TrainingRecord
from flowmc.training.losses import Objective
from flowmc_analysis.weights import acceptance_independence, ess_reverse

__all__ = ["TrainingResult", "train"]


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended."""

    step: int
    """Steps that were made."""
    seconds: float
    stop_reason: str
    """Why it was stopped before its end; empty for a finished training."""
    ended_by: str
    """What a finished training came to: "steps", all of them, or "target_acceptance". Empty if it was stopped."""
    records: tuple[TrainingRecord, ...]
    samples: Mapping[str, Any] = field(default_factory=dict)
    """Number and SHA-256 of the samples that it used; empty if there were none."""

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return not self.stop_reason


def train(
    flow: Flow,
    theory: Theory,
    config: TrainingConfig,
    output: Path,
    *,
    samples: NDArray[Any] | None = None,
    resume: bool = False,
    should_stop: Callable[[], str] = lambda: "",
    on_record: Callable[[TrainingRecord], None] = lambda _: None,
) -> TrainingResult:
    """Train a flow in place, with checkpoints beside ``output``.

    Parameters
    ----------
    flow
        The flow; its weights change.
    theory
        The theory to train for.
    config
        How.
    output
        Path of the flow file that this training will become; only checkpoint and log are written here.
    samples
        Configurations of the theory, ``(N, *field_shape)``, for objectives with a forward part. (The path in ``config``
        is not read here.)
    resume
        Whether to go on from the checkpoint, if there is one.
    should_stop
        Asked at every step; a text that is not empty stops there, after a checkpoint.
    on_record
        Told of every line of the log.

    Raises
    ------
    ParameterError
        If the objective cannot train this flow, the theory cannot be annealed, or samples are missing, superfluous or no
        fields of the theory.
    LatticeMismatchError
        If the samples live on another lattice.
    NonFiniteError
        If the loss stops being finite; the last checkpoint stays.
    FlowFileError
        If the checkpoint to resume from cannot be read or belongs to another training.
    """
    torch.set_num_threads(config.threads)
    config.require_samples(given=samples is not None)
    given = None if samples is None else Samples(samples, theory)
    others = companions(flow, theory, config.also)
    objectives = [config.reverse_objective(other.flow, other.theory) for other in others]
    own = config.reverse_objective(flow, theory)
    descent = _Descent(config, own, given, [*zip(others, objectives, strict=True)])
    if config.compile:
        check_compilable(flow)
    files = TrainingFiles(output)
    identity: dict[str, Any] = {
        "theory": theory.describe(),
        "flow": describe_flow(flow),
        "training": config.identity(),
        "start": fingerprint(flow),
    }
    if given is not None:
        identity["samples"] = given.identity
    flow.train()
    # Fused: on small lattices the optimiser is a tenth of a step.
    optimiser = torch.optim.Adam(flow.parameters(), lr=config.learning_rate, fused=True)
    step, before = 0, 0.0
    log = TrainingLog(files.log)
    if resume and files.checkpoint.is_file():
        step, before, records = files.restore(flow, optimiser, identity)
        log = TrainingLog(files.log, records)
    began = time.perf_counter()
    stop, reached = "", _target_reached(config, log)
    with compiled(flow, wanted=config.compile), _theory_kept(flow):
        while step < config.steps and not (stop or reached):
            step += 1
            learning_rate = config.learning_rate_at(step - 1)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            flow.theory = config.theory_at(step, theory)
            optimiser.zero_grad()
            batch = descent.accumulate(flow, step)
            norm = float(torch.nn.utils.clip_grad_norm_(flow.parameters(), config.gradient_clip))
            if not (isfinite(batch.loss) and isfinite(norm)):
                raise NonFiniteError(
                    got=f"loss {batch.loss}, gradient norm {norm} at step {step}; {batch.faults()}",
                    expected="finite numbers",
                    fix="lower `learning_rate` or `gradient_clip`, and train anew"
                    + (f" ({files.checkpoint} is the state before)" if files.checkpoint.exists() else ""),
                )
            log_w = batch.log_w
            if log_w is None and config.is_logged(step):
                # With the weights that the gradient belongs to, as for draws that serve the gradient itself.
                log_w = _fresh_log_w(flow, config, step)
            optimiser.step()
            seconds = before + time.perf_counter() - began
            if config.is_logged(step) and log_w is not None:
                ess, acceptance = _quality(log_w)
                record = TrainingRecord(
                    step, batch.loss, ess, acceptance, norm, learning_rate, seconds, batch.forward_loss
                )
                log.append(record)
                on_record(record)
                reached = _target_reached(config, log)
            stop = "" if reached or step == config.steps else should_stop()
            if stop or reached or step % config.checkpoint_every == 0 or step == config.steps:
                files.save(flow, optimiser, step, seconds, identity, log)
    ended_by = "" if stop else "target_acceptance" if reached else "steps"
    seconds = before + time.perf_counter() - began
    return TrainingResult(step, seconds, stop, ended_by, log.records, identity.get("samples", {}))


@contextmanager
def _theory_kept(flow: Flow) -> Iterator[None]:
    """Give a flow back the theory that it was built for, whatever annealing has put in its place."""
    theory = flow.theory
    try:
        yield
    finally:
        flow.theory = theory


class _Batch(NamedTuple):
    """What a step's gradient was made of: log w = −S − log q of its draws, log q at its samples, and the loss."""

    loss: float
    forward_loss: float | None
    log_w: Tensor | None
    log_q: Tensor | None
    seen: Mapping[str, Tensor]
    """log w of the draws by what they are for: several theories may have been trained for."""

    def faults(self) -> str:
        """Say how many numbers are not finite."""
        found = []
        draws = [(values, "S + log q", where) for where, values in self.seen.items()]
        samples = [] if self.log_q is None else [(self.log_q, "log q", "samples")]
        for values, what, where in (*draws, *samples):
            if len(values):
                bad = int((~torch.isfinite(values)).sum())
                found.append(f"{what} is not finite for {bad} of {len(values)} {where}")
        return "; ".join(found) or "the residual of the continuity equation is not finite at some field"


@dataclass(frozen=True)
class _Descent:
    """What is minimised: a reverse objective, the forward one on samples, or both with their weights."""

    config: TrainingConfig
    objective: Objective | None
    samples: Samples | None
    others: list[tuple[Companion, Objective | None]]

    def accumulate(self, flow: Flow, step: int) -> _Batch:
        """Add the gradients of a step's micro-batches to those of the weights."""
        config = self.config
        weight = config.weight_of_samples
        loss, forward_loss, log_w, log_q = 0.0, None, None, None
        # By their numbers among all, so that the draws of one do not depend on who else takes part.
        numbers = [n for n, (other, _) in enumerate(self.others) if other.takes_part(step, config.steps)]
        own = config.own_takes_part(step) and self.objective is not None
        part = (1 - weight) / max(1, len(numbers) + own)
        seen: dict[str, Tensor] = {}
        for number in numbers:
            other, objective = self.others[number]
            other.flow.theory = config.theory_at(step, other.theory)
            value, its_log_w = self._reverse(other.flow, objective, part, step, "also", number)
            loss += part * value
            seen[f"draws for {other.theory}"] = its_log_w
        if own:
            value, its_log_w = self._reverse(flow, self.objective, part, step)
            loss += part * value
            seen["draws"] = its_log_w
            log_w = its_log_w if len(its_log_w) else None
        if self.samples is not None:
            fields = self.samples.batch(config.batch_size, config.seed, step, flow)
            parts = []
            for likelihood in forward_kl(flow, fields, config.micro_batch):
                (weight * likelihood.value).backward()  # type: ignore[no-untyped-call]
                parts.append(likelihood.log_q)
            log_q = torch.cat(parts)
            forward_loss = -float(log_q.mean())
            loss += weight * forward_loss
        return _Batch(loss, forward_loss, log_w, log_q, seen)

    def _reverse(
        self, flow: Flow, objective: Objective | None, weight: float, step: int, *label: str | int
    ) -> tuple[float, Tensor]:
        """Add the gradients of one theory's reverse loss, times a weight; return the loss and log w, empty for some."""
        assert objective is not None
        config = self.config
        generator = torch_generator(config.seed, "step", step, *label, device=flow.device)
        parts, value = [], 0.0
        for piece in objective(flow, flow.theory, config.batch_size, generator, config.micro_batch):
            (weight * piece.value).backward()  # type: ignore[no-untyped-call]
            value += float(piece.value.detach())
            parts.append(piece.log_w)
        found = torch.cat(parts)
        return -float(found.mean()) if len(found) else value, found


def _fresh_log_w(flow: Flow, config: TrainingConfig, step: int) -> Tensor:
    """Return log w of draws that no gradient needs, (batch_size,), with random numbers of their own."""
    generator = torch_generator(config.seed, "quality", step, device=flow.device)
    size = config.micro_batch or config.batch_size
    parts = []
    with torch.no_grad():
        for _ in range(config.batch_size // size):
            fields, log_q = flow.sample(size, generator)
            parts.append(-flow.theory.action(fields) - log_q)
    return torch.cat(parts)


def _quality(log_w: Tensor) -> tuple[float, float]:
    """Return ESS and acceptance; draws whose weight is not finite count as rejected, as in production."""
    weights = log_w.cpu().numpy()
    weights = np.where(np.isfinite(weights), weights, -np.inf)
    if np.isneginf(weights).all():
        return 0.0, 0.0
    return ess_reverse(weights), acceptance_independence(weights)


def _target_reached(config: TrainingConfig, log: TrainingLog) -> bool:
    """Return whether the log ends in a window, all of it at the target theory, of the acceptance that is asked for."""
    expected = STOP_WINDOW // config.log_every
    window = log.latest(STOP_WINDOW)
    if not (config.target_acceptance and window):
        return False
    first = window[-1].step - STOP_WINDOW + 1
    estimates = [record.acceptance for record in window if record.step >= first]
    if first < 1 or not (config.at_target(first) and config.own_takes_part(first)) or len(estimates) < expected:
        return False
    return sum(estimates) / len(estimates) >= config.target_acceptance
