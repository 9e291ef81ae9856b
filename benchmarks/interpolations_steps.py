"""What a step of training a continuous flow costs: the continuity equation, and back-propagation through the solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import torch

from benchmarks.claims import Claim
from benchmarks.interpolations_flows import interpolating_flows, mixture_name, well_name
from benchmarks.kept import KeptFlow
from benchmarks.measuring import INFORMATIVE, Timing, one_thread, ratio_claim, saved_megabytes, take_turns
from flowmc.flows import InterpolatingFlow, build_flow
from flowmc.seeds import torch_generator
from flowmc.theories import SmoothTheory
from flowmc.training import continuity, reverse_kl
from flowmc_analysis.tables import Table, format_number

__all__ = ["StepCost", "measure_step_cost", "step_cost_claims", "step_cost_parts", "step_cost_table"]

TRAINED = {"two": mixture_name("two", "learned", 0)} | {
    f"N = {n}": well_name(n, 3.0, "learned", 0) for n in (8, 16, 32)
}
SOLVER_STEPS = 20
KEPT, RECOMPUTED = "reverse KL", "reverse KL, checkpointed"
FEW_TIMES, ALL_TIMES = "continuity", "continuity, all times"


@dataclass(frozen=True)
class StepCost:
    """Time and memory of the gradient of a batch, by objective.

    Parameters
    ----------
    what
        The theory.
    batch
        Draws of a step.
    timings
        Seconds of a step.
    megabytes
        What the graph keeps for the way back.
    """

    what: str
    batch: int
    timings: Mapping[str, Timing]
    megabytes: Mapping[str, float]


def _shaken(training: KeptFlow, **changed: Any) -> tuple[InterpolatingFlow, SmoothTheory]:
    config = training.config()
    assert config.flow is not None
    flow = cast(InterpolatingFlow, build_flow({**config.flow, "integrator": "rk4_trace", **changed}, config.theory, 1))
    generator = torch_generator(1, "shaken")
    # Away from zero, where the velocity begins.
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype), alpha=0.02)
    return flow, cast(SmoothTheory, config.theory)


def measure_step_cost(what: str, training: KeptFlow, batch: int, turns: int) -> StepCost:
    """Measure the gradient of a batch by the continuity equation and by the reverse divergence, of the same flow.

    Both take `SOLVER_STEPS` steps of the Runge-Kutta method, the reverse divergence with the divergence in place of the
    log-determinant, which is the cheapest.
    """
    solver: dict[str, Any] = {"steps": SOLVER_STEPS, "trajectory_steps": SOLVER_STEPS}
    contenders: dict[str, tuple[Any, dict[str, Any]]] = {
        FEW_TIMES: (continuity, solver),
        ALL_TIMES: (continuity, {**solver, "residual_times": 0}),
        KEPT: (reverse_kl, {**solver, "checkpointed": False}),
        RECOMPUTED: (reverse_kl, {**solver, "checkpointed": True}),
    }

    def stepper(objective: Any, changed: dict[str, Any]) -> tuple[InterpolatingFlow, Callable[[], None]]:
        flow, theory = _shaken(training, **changed)

        def step() -> None:
            flow.zero_grad()
            for piece in objective(flow, theory, batch, torch_generator(1, "step")):
                piece.value.backward()

        return flow, step

    with one_thread():
        made = {name: stepper(*contender) for name, contender in contenders.items()}
        timings = take_turns({name: step for name, (_, step) in made.items()}, turns, 0.0)
        megabytes = {name: saved_megabytes(*made[name]) for name in (FEW_TIMES, ALL_TIMES, KEPT)}
        # With checkpoints: the graph of one step, and the fields between all of them, which no hook sees.
        flow, step = stepper(reverse_kl, {**solver, "steps": 1, "checkpointed": False})
        between = SOLVER_STEPS * batch * flow.theory.volume * flow.dtype.itemsize / 2**20
        megabytes[RECOMPUTED] = saved_megabytes(flow, step) + between
    return StepCost(what, batch, timings, megabytes)


def step_cost_table(costs: Sequence[StepCost]) -> Table:
    """Tabulate time and memory of a training step."""
    rows = []
    for cost in costs:
        for name, timing in cost.timings.items():
            ratios = timing.over(cost.timings[FEW_TIMES])
            seconds = 1e3 * median(timing.cpu)
            rows.append(
                (
                    cost.what,
                    str(cost.batch),
                    name,
                    f"{seconds:.3g} ({1e3 * min(timing.cpu):.3g} to {1e3 * max(timing.cpu):.3g})",
                    f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    format_number(cost.megabytes[name]),
                )
            )
    columns = ("theory", "batch", "objective", "ms", "of continuity", "MB for the way back")
    turns = len(costs[0].timings[KEPT].cpu)
    note = (
        f"Processor time of a gradient in float32 with one thread, medians of {turns} turns (lowest to highest). All go "
        f"{SOLVER_STEPS} steps of rk4; continuity: residuals at 8 times of each trajectory, chosen at random, or at all "
        f"{SOLVER_STEPS + 1}; reverse KL: through the solver with rk4_trace. Memory with checkpoints: the graph of one "
        "step and the fields between steps, added up."
    )
    return Table("Cost of a training step", columns, tuple(rows), note)


def step_cost_claims(costs: Sequence[StepCost]) -> list[Claim]:
    """Return whether a step of the continuity equation is cheaper than one through the solver."""
    claims = []
    for cost in costs:
        for name in (KEPT, RECOMPUTED):
            above, below = cost.timings[name], cost.timings[FEW_TIMES]
            claims.append(ratio_claim(f"time of a step, {cost.what}: {name} / continuity", above, below, 1.0))
        ratio = cost.megabytes[KEPT] / cost.megabytes[FEW_TIMES]
        detail = f"{cost.megabytes[KEPT]:.3g} MB over {cost.megabytes[FEW_TIMES]:.3g} MB"
        name = f"memory for the way back, {cost.what}: {KEPT} / continuity"
        claims.append(Claim(name, ratio, detail, INFORMATIVE, "", holds=True))
    return claims


def step_cost_parts(*, quick: bool) -> tuple[list[Table], list[Claim]]:
    """Measure steps of the trainings for the mixture and for wells of 8, 16 and 32 sites, with untrained weights."""
    costs, known = [], interpolating_flows(quick=quick)
    for what, name in TRAINED.items():
        batch = 16 if quick else int(known[name].training["batch_size"])
        costs.append(measure_step_cost(what, known[name], batch, 2 if quick else 5))
    return [step_cost_table(costs)], step_cost_claims(costs)
