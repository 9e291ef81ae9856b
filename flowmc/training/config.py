"""The ``[training]`` section of a run description: what a training does, and what it refuses to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil, isfinite, log
from typing import Any

from flowmc.errors import ParameterError
from flowmc.flows import Flow, OperatorFlow
from flowmc.theories import Theory
from flowmc.theories.tempered import tempered
from flowmc.training.companions import check_also, takes_part
from flowmc.training.continuity import CONTINUITY
from flowmc.training.forward import FORWARD_KL
from flowmc.training.losses import Objective, check_micro_batch
from flowmc.training.objectives import OBJECTIVES, choose_objective
from flowmc.training.schedules import SCHEDULES

__all__ = ["ANNEALING_PATHS", "STOP_WINDOW", "TrainingConfig"]

# So near to the target in the fraction of the way, annealing is over.
ANNEALED = 1e-4
STOP_WINDOW = 50
"""Steps over which the estimates of the acceptance are averaged before they can end a training."""

ANNEALING_PATHS: dict[str, Callable[[Theory, float], Theory]] = {
    "couplings": lambda theory, fraction: theory.annealed(fraction),
    "temperature": tempered,
}
"""Ways from a trivial theory to the target, by their names in run descriptions."""


@dataclass(frozen=True)
class TrainingConfig:
    """The ``[training]`` section of a run.

    Parameters
    ----------
    objective
        A name in `flowmc.training.objectives.OBJECTIVES`, estimators of the gradient of the reverse KL divergence, or
        "auto" for the one that suits flow and theory; "continuity", the residual of the continuity equation, for
        flows with a path of densities; or "forward_kl", which maximises the likelihood of ``samples``.
    forward_weight
        Weight w in (0, 1) of the forward KL divergence in a mixed objective, (1 − w) times the reverse one and w times
        the forward one on ``samples``. 0 is the reverse one alone.
    samples
        Path of an ensemble of the same theory, relative to the run description: all configurations of all its chains
        and streams are the samples of the forward divergence, ``batch_size`` of them in each step.
    steps
        Optimiser steps, at most; 0 takes the weights of ``start_from`` as they are.
    target_acceptance
        The training ends before its last step once the acceptance, averaged over the estimates of the last `STOP_WINDOW`
        steps, has reached this value, and annealing is over. 0 is never.
    batch_size
        Draws (and samples, where there are any) per step.
    micro_batch
        Draws whose graph is held at once, a divisor of ``batch_size``: gradients of micro-batches add up to that of the
        batch, in less memory. 0 is the whole batch. Another number draws other fields.
    learning_rate
        Adam's step size at the start of the schedule.
    schedule
        A name in `flowmc.training.schedules.SCHEDULES`: "constant", "cosine" or "linear" (to zero), "exponential" (to
        1 %).
    warmup_steps
        Steps over which the learning rate rises linearly before the schedule takes over.
    gradient_clip
        Largest gradient norm; longer gradients are shortened to it.
    annealing
        Rate r of an approach to the target: step t trains for the theory at a fraction 1 − r^t of the way from a trivial
        one, and for the target itself once r^t < 10⁻⁴. 0 is no annealing.
    annealing_path
        The way: "couplings" is the theory's own `flowmc.theories.Theory.annealed` (from infinite temperature for spins
        and links, from a free field for φ⁴), "temperature" scales the whole action by the fraction.
    start_from
        Path of a flow file to take weights from, relative to the run description: a flow of the same kind for other
        couplings, or for another lattice where the kind allows it. What does not fit starts afresh.
    also
        Other theories for which an operator flow is trained in the same steps, each by the entries of the theory that are
        different, for example ``[{"shape": [6, 6]}]``; with "begin" and "end", fractions of the steps between which it
        takes part. Each has a batch of its own, and the loss is the mean of theirs.
    begin
        Fraction of the steps after which the own theory takes part.
    seed
        Seed of weights and draws.
    log_every
        Steps between lines of the log; the first and the last step are always in it. With "forward_kl" and "continuity"
        each line costs a batch of draws, which is what its ESS and acceptance are estimated from.
    checkpoint_every
        Steps between checkpoints.
    threads
        Threads of torch. Another number may change the last bits of the result.
    device
        Device of torch, for example "cpu" or "cuda".
    compile
        Whether the maps of a transport go through torch.compile, which needs a C++ compiler and half a minute or so, and
        then saves up to a quarter of each step.

    Raises
    ------
    ParameterError
        If a value is out of range, a name unknown, or settings contradict each other.
    """

    objective: str = "auto"
    forward_weight: float = 0.0
    samples: str = ""
    steps: int = 2000
    target_acceptance: float = 0.0
    batch_size: int = 1024
    micro_batch: int = 0
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup_steps: int = 50
    gradient_clip: float = 10.0
    annealing: float = 0.0
    annealing_path: str = "couplings"
    start_from: str = ""
    also: tuple[Mapping[str, Any], ...] = ()
    begin: float = 0.0
    seed: int = 0
    log_every: int = 1
    checkpoint_every: int = 200
    threads: int = 1
    device: str = "cpu"
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "also", tuple(dict(entry) for entry in self.also))
        check_also(self.also, self.begin)
        if self.also and self.weight_of_samples:
            raise ParameterError(
                got=f"[[training.also]] with objective = {self.objective!r}, forward_weight = {self.forward_weight}",
                expected="an objective without samples: those belong to one theory",
                fix="leave out one of them",
            )
        if self.steps == 0 and not self.start_from:
            raise ParameterError(
                got="steps = 0 without start_from",
                expected="a flow whose weights are taken as they are",
                fix="set `start_from`, or raise `steps`",
            )
        names = ("batch_size", "learning_rate", "gradient_clip", "log_every", "checkpoint_every", "threads")
        for name in names:
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ParameterError(got=f"{name} = {value}", expected=f"{name} > 0", fix=f"correct `{name}`")
        check_micro_batch(self.batch_size, self.micro_batch)
        for name in ("steps", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ParameterError(got=f"{name} = {getattr(self, name)}", expected="0 or more", fix="correct it")
        known = {
            "objective": ("auto", CONTINUITY, FORWARD_KL, *OBJECTIVES),
            "schedule": SCHEDULES,
            "annealing_path": ANNEALING_PATHS,
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)!r}",
                    expected=f"one of {sorted(values)}",
                    fix=f"correct `{name}`",
                )
        self._check_annealing()
        self._check_samples()
        self._check_target()

    def _check_annealing(self) -> None:
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
        if self.annealing and not self.at_target(self.steps):
            needed = ceil(log(ANNEALED) / log(self.annealing))
            raise ParameterError(
                got=f"annealing = {self.annealing} with steps = {self.steps}: the target is not reached",
                expected=f"at least {needed} steps at this rate, the last ones at the target",
                fix=f"raise `steps`, or lower `annealing` to {ANNEALED ** (2 / self.steps):.3g}",
            )

    def _check_samples(self) -> None:
        if not 0 <= self.forward_weight < 1:
            raise ParameterError(
                got=f"forward_weight = {self.forward_weight}",
                expected="0 (the reverse divergence alone) or a weight in (0, 1)",
                fix=f'correct it; for the forward divergence alone, set objective = "{FORWARD_KL}"',
            )
        if self.forward_weight and self.objective == FORWARD_KL:
            raise ParameterError(
                got=f'forward_weight = {self.forward_weight} with objective = "{FORWARD_KL}"',
                expected="a reverse objective to mix with the forward one",
                fix="leave out `forward_weight`, or choose another objective",
            )
        if self.forward_weight and self.objective == CONTINUITY:
            raise ParameterError(
                got=f'forward_weight = {self.forward_weight} with objective = "{CONTINUITY}"',
                expected="a reverse divergence to mix with the forward one: the residual is no divergence",
                fix="leave out `forward_weight`; a flow that was trained so can be the `start_from` of a mixed training",
            )
        if self.samples:
            self.require_samples(given=True)
        if self.annealing and self.weight_of_samples:
            raise ParameterError(
                got=f"annealing = {self.annealing} with an objective on samples",
                expected="one or the other: samples are of the target, not of the theories on the way to it",
                fix="leave out `annealing`",
            )

    def _check_target(self) -> None:
        if not 0 <= self.target_acceptance < 1:
            raise ParameterError(
                got=f"target_acceptance = {self.target_acceptance}",
                expected="0 (off) or an acceptance below 1, for example 0.9",
                fix="correct it",
            )
        if self.target_acceptance and self.log_every > STOP_WINDOW:
            raise ParameterError(
                got=f"target_acceptance = {self.target_acceptance} with log_every = {self.log_every}",
                expected=f"an estimate of the acceptance at least every {STOP_WINDOW} steps",
                fix="lower `log_every`",
            )

    @property
    def weight_of_samples(self) -> float:
        """Weight of the forward divergence in what is minimised, 0 to 1."""
        return 1.0 if self.objective == FORWARD_KL else self.forward_weight

    def require_samples(self, *, given: bool) -> None:
        """Check that there are samples if the objective needs them, and only then.

        Raises
        ------
        ParameterError
            If not.
        """
        if self.weight_of_samples and not given:
            raise ParameterError(
                got=f"objective = {self.objective!r}, forward_weight = {self.forward_weight} without samples",
                expected="samples of the target: an ensemble of the theory",
                fix="set `samples` in [training], for example to an ensemble that `flowmc sample` has made with HMC",
            )
        if given and not self.weight_of_samples:
            raise ParameterError(
                got=f"samples with objective = {self.objective!r} and forward_weight = 0, which do not use them",
                expected=f'objective = "{FORWARD_KL}", or a forward_weight in (0, 1)',
                fix="set one of them, or leave out `samples`",
            )

    def reverse_objective(self, flow: Flow, theory: Theory) -> Objective | None:
        """Return the reverse objective of a training, or None where there is none.

        Raises
        ------
        ParameterError
            If it cannot train the flow for the theory and for that of the first step, which annealing makes another, or
            the theory cannot be annealed.
        """
        first = self.theory_at(1, theory)
        if self.objective == FORWARD_KL:
            return None
        pieces = self.micro_batch or self.batch_size
        if self.objective == CONTINUITY and isinstance(flow, OperatorFlow) and pieces < 2:
            raise ParameterError(
                got=f"batch_size = {self.batch_size}, micro_batch = {self.micro_batch} with objective = {CONTINUITY!r}",
                expected="pieces of at least 2 draws: the residual is that to their mean",
                fix="raise them",
            )
        if first is not theory:
            choose_objective(self.objective, flow, first, self.batch_size)
        return choose_objective(self.objective, flow, theory, self.batch_size)

    def identity(self) -> dict[str, Any]:
        """Return the entries that decide what a training computes: all but how often it is saved and logged.

        With `target_acceptance`, lines of the log decide where it ends; then their number counts as well.
        """
        free = {"checkpoint_every"} if self.target_acceptance else {"checkpoint_every", "log_every"}
        return {key: value for key, value in asdict(self).items() if key not in free}

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return self.learning_rate * warm * SCHEDULES[self.schedule](step / self.steps)

    def at_target(self, step: int) -> bool:
        """Return whether a step, counted from 1, trains for the target itself."""
        return self.annealing**step < ANNEALED

    def theory_at(self, step: int, theory: Theory) -> Theory:
        """Return the theory that a step, counted from 1, trains for."""
        if self.at_target(step):
            return theory
        return ANNEALING_PATHS[self.annealing_path](theory, 1 - self.annealing**step)

    def own_takes_part(self, step: int) -> bool:
        """Return whether a step, counted from 1, trains for the flow's own theory."""
        return takes_part(step, self.steps, self.begin, 1.0)

    def is_logged(self, step: int) -> bool:
        """Return whether a step, counted from 1, has a line in the log."""
        return step % self.log_every == 0 or step in (1, self.steps)
