"""The training loop: Adam on an objective, resumable bit by bit, with a log of what it cost and reached."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import ceil, isfinite, log
from pathlib import Path
from typing import Any

import torch

from flowmc.errors import NonFiniteError, ParameterError
from flowmc.flows import Flow, describe_flow, fingerprint
from flowmc.seeds import torch_generator
from flowmc.theories import Theory
from flowmc.training.checkpoint import TrainingFiles, TrainingRecord
from flowmc.training.objectives import OBJECTIVES, Objective, check_micro_batch, choose_objective
from flowmc.training.schedules import SCHEDULES
from flowmc_analysis.weights import acceptance_independence, ess_reverse

__all__ = ["TrainingConfig", "TrainingResult", "train"]

# Steps between lines of the log and refreshes of the display.
LOG_EVERY = 20
# So near to the target in the fraction of the way, annealing is over.
ANNEALED = 1e-4


@dataclass(frozen=True)
class TrainingConfig:
    """The ``[training]`` section of a run.

    Parameters
    ----------
    objective
        A name in `flowmc.training.objectives.OBJECTIVES`, or "auto" for the one that suits flow and theory.
    steps
        Optimiser steps.
    batch_size
        Draws per step.
    micro_batch
        Draws whose graph is held at once, a divisor of ``batch_size``: gradients of micro-batches add up to that of the
        batch, in less memory. 0 is the whole batch. Another number draws other fields.
    learning_rate
        Adam's step size at the start of the schedule.
    schedule
        A name in `flowmc.training.schedules.SCHEDULES`.
    warmup_steps
        Steps over which the learning rate rises linearly before the schedule takes over.
    gradient_clip
        Largest gradient norm; longer gradients are shortened to it.
    annealing
        Rate r of an approach to the target: step t trains for the theory at a fraction 1 − r^t of the way from a trivial
        one (inverse temperature β (1 − r^t)), and for the target itself once r^t < 10⁻⁴. 0 is no annealing.
    start_from
        Path of a flow file to take weights from, relative to the run description: a flow of the same kind for other
        couplings, or for another lattice where the kind allows it. What does not fit starts afresh.
    seed
        Seed of weights and draws.
    checkpoint_every
        Steps between checkpoints.
    threads
        Threads of torch. Another number may change the last bits of the result.
    device
        Device of torch, for example "cpu" or "cuda".

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    """

    objective: str = "auto"
    steps: int = 2000
    batch_size: int = 1024
    micro_batch: int = 0
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup_steps: int = 50
    gradient_clip: float = 10.0
    annealing: float = 0.0
    start_from: str = ""
    seed: int = 0
    checkpoint_every: int = 200
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "gradient_clip", "checkpoint_every", "threads"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ParameterError(got=f"{name} = {value}", expected=f"{name} > 0", fix=f"correct `{name}`")
        check_micro_batch(self.batch_size, self.micro_batch)
        if self.warmup_steps < 0:
            raise ParameterError(got=f"warmup_steps = {self.warmup_steps}", expected="0 or more", fix="correct it")
        if not 0 <= self.annealing < 1:
            raise ParameterError(
                got=f"annealing = {self.annealing}",
                expected="0 (none) or a rate below 1, for example 0.996",
                fix="correct it",
            )
        if self.annealing and self.start_from:
            raise ParameterError(
                got=f"annealing = {self.annealing} with start_from = {self.start_from!r}",
                expected="one or the other: annealing begins far from the target, and the weights would be forgotten",
                fix="leave out `annealing`",
            )
        if self.annealing and self.annealing**self.steps >= ANNEALED:
            needed = ceil(log(ANNEALED) / log(self.annealing))
            raise ParameterError(
                got=f"annealing = {self.annealing} with steps = {self.steps}: the target is not reached",
                expected=f"at least {needed} steps at this rate, the last ones at the target",
                fix=f"raise `steps`, or lower `annealing` to {ANNEALED ** (2 / self.steps):.3g}",
            )
        for name, known in (("objective", ("auto", *OBJECTIVES)), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)!r}", expected=f"one of {sorted(known)}", fix=f"correct `{name}`"
                )

    def identity(self) -> dict[str, Any]:
        """Return the entries that decide what a training computes: all but how often it is saved."""
        return {key: value for key, value in asdict(self).items() if key != "checkpoint_every"}

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return self.learning_rate * warm * SCHEDULES[self.schedule](step / self.steps)

    def theory_at(self, step: int, theory: Theory) -> Theory:
        """Return the theory that a step, counted from 1, trains for."""
        missing = self.annealing**step
        return theory if missing < ANNEALED else theory.annealed(1 - missing)


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended."""

    step: int
    seconds: float
    stop_reason: str
    """Why it stopped early; empty for a finished training."""
    records: tuple[TrainingRecord, ...]

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
    resume
        Whether to go on from the checkpoint, if there is one.
    should_stop
        Asked at every step; a text that is not empty stops there, after a checkpoint.
    on_record
        Told of every line of the log.

    Raises
    ------
    ParameterError
        If the objective cannot train this flow, or the theory cannot be annealed.
    NonFiniteError
        If the loss stops being finite; the last checkpoint stays.
    FlowFileError
        If the checkpoint to resume from cannot be read or belongs to another training.
    """
    torch.set_num_threads(config.threads)
    files = TrainingFiles(output)
    identity: dict[str, Any] = {
        "theory": theory.describe(),
        "flow": describe_flow(flow),
        "training": config.identity(),
        "start": fingerprint(flow),
    }
    objective = choose_objective(config.objective, flow, theory, config.batch_size)
    config.theory_at(1, theory)
    flow.train()
    optimiser = torch.optim.Adam(flow.parameters(), lr=config.learning_rate)
    first, before = 0, 0.0
    records: list[TrainingRecord] = []
    if resume and files.checkpoint.is_file():
        first, before, records = files.restore(flow, optimiser, identity)
    began = time.perf_counter()
    step, stop = first, ""
    try:
        for step in range(first + 1, config.steps + 1):
            learning_rate = config.learning_rate_at(step - 1)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            flow.theory = config.theory_at(step, theory)
            optimiser.zero_grad()
            log_w = _accumulate(objective, flow, config, step)
            norm = float(torch.nn.utils.clip_grad_norm_(flow.parameters(), config.gradient_clip))
            value = -float(log_w.mean())
            if not (isfinite(value) and isfinite(norm)):
                bad = int((~torch.isfinite(log_w)).sum())
                raise NonFiniteError(
                    got=f"loss {value}, gradient norm {norm} at step {step}; S + log q is not finite for {bad} of "
                    f"{len(log_w)} draws",
                    expected="finite numbers",
                    fix="lower `learning_rate` or `gradient_clip`, and train anew"
                    + (f" ({files.checkpoint} is the state before)" if files.checkpoint.exists() else ""),
                )
            optimiser.step()
            seconds = before + time.perf_counter() - began
            if step % LOG_EVERY == 0 or step in (1, config.steps):
                weights = log_w.cpu().numpy()
                record = TrainingRecord(
                    step, value, ess_reverse(weights), acceptance_independence(weights), norm, learning_rate, seconds
                )
                records.append(record)
                on_record(record)
            stop = should_stop() if step < config.steps else ""
            if stop or step % config.checkpoint_every == 0 or step == config.steps:
                files.save(flow, optimiser, step, seconds, identity, records)
            if stop:
                break
    finally:
        flow.theory = theory
    return TrainingResult(step, before + time.perf_counter() - began, stop, tuple(records))


def _accumulate(objective: Objective, flow: Flow, config: TrainingConfig, step: int) -> torch.Tensor:
    """Add the gradients of a step's micro-batches to those of the weights; return log w of all draws."""
    generator = torch_generator(config.seed, "step", step, device=flow.device)
    log_w = []
    for piece in objective(flow, flow.theory, config.batch_size, generator, config.micro_batch):
        piece.value.backward()  # type: ignore[no-untyped-call]
        log_w.append(piece.log_w)
    return torch.cat(log_w)
