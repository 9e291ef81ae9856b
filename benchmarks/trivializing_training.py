"""What the trainings of the scaling study cost: steps and seconds to given acceptances, and how they grow with L."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.kept import KeptFlow
from benchmarks.trivializing_flows import BATCH, VARIANTS
from flowmc.flows import build_flow, load_flow
from flowmc.seeds import torch_generator
from flowmc.training import choose_objective
from flowmc_analysis.tables import Table
from flowmc_analysis.weights import acceptance_independence, ess_reverse

__all__ = ["THRESHOLDS", "PowerLaw", "TrainingCost", "fit_power_law", "growth_table", "training_cost", "training_table"]

THRESHOLDS = (0.5, 0.6, 0.7)
WINDOW = 50
"""Steps over which the acceptance estimates of batches are averaged."""
DRAWS = 8192
FEWEST_POINTS = 5


@dataclass(frozen=True)
class TrainingCost:
    """What a training took, and what it came to.

    Parameters
    ----------
    variant, extent
        Kind of flow, and L.
    steps
        To each of `THRESHOLDS`, averaged over `WINDOW` steps, and to the end; NaN where it was not reached.
    before
        Processor seconds of the trainings that this one started from.
    seconds_per_step
        Processor time of a step on one thread, the median of some: other work on the machine hardly changes it.
    wall_minutes
        Wall time to each of `THRESHOLDS` and to the end, trainings before included, beside whatever else the machine did.
    acceptance, ess
        Of `DRAWS` fresh draws at the end: acceptance of independence Metropolis, reverse ESS per draw.
    log_weight_variance
        Variance of log w over the same draws; its half is near KL(q ‖ p).
    """

    variant: str
    extent: int
    steps: tuple[float, ...]
    before: float
    seconds_per_step: float
    wall_minutes: tuple[float, ...]
    acceptance: float
    ess: float
    log_weight_variance: float

    @property
    def seconds(self) -> tuple[float, ...]:
        """Processor seconds to each of `THRESHOLDS` and to the end, trainings before not included."""
        return tuple(steps * self.seconds_per_step for steps in self.steps)


def step_seconds(name: str, known: Mapping[str, KeptFlow]) -> float:
    """Return the processor seconds of a training step, the median of five."""
    run = known[name].config()
    assert run.flow is not None
    flow = build_flow(run.flow, run.theory, seed=1)
    optimiser = torch.optim.Adam(flow.parameters(), fused=True)
    objective = choose_objective(run.training.objective, flow, run.theory, BATCH)
    torch.set_num_threads(1)
    times = []
    for number in range(6):
        began = time.process_time()
        optimiser.zero_grad()
        for piece in objective(flow, run.theory, BATCH, torch_generator(1, number), 0):
            piece.value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(flow.parameters(), run.training.gradient_clip)
        optimiser.step()
        times.append(time.process_time() - began)
    return float(np.median(times[1:]))


def training_cost(name: str, known: Mapping[str, KeptFlow], folder: Path, *, quick: bool) -> TrainingCost:
    """Read a training's log, and measure the flow on fresh draws."""
    variant, extent = name.rsplit("_", 1)
    lines = (folder / f"{name}.training.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    step, acceptance, wall = (
        np.array([record[key] for record in records]) for key in ("step", "acceptance", "seconds")
    )
    window = min(WINDOW, len(acceptance))
    smooth = np.convolve(acceptance, np.full(window, 1 / window), mode="valid")
    steps, minutes = [], []
    flow, saved = load_flow(folder / f"{name}.safetensors")
    wall = (wall + float(saved.training["seconds"]) - wall[-1]) / 60
    for threshold in THRESHOLDS:
        above = np.flatnonzero(smooth >= threshold)
        steps.append(float(step[window - 1 + above[0]]) if above.size else float("nan"))
        minutes.append(float(wall[window - 1 + above[0]]) if above.size else float("nan"))
    log_w = []
    with torch.inference_mode():
        for number in range((DRAWS // 16 if quick else DRAWS) // 256):
            field, log_q = flow.sample(256, torch_generator(5, name, number))
            log_w.append((-saved.theory.action(field.double()) - log_q).numpy())
    weights = np.concatenate(log_w)
    before, start = 0.0, known[name].start_from
    while start:
        before += step_seconds(start, known) * known[start].training["steps"]
        start = known[start].start_from
    return TrainingCost(
        variant,
        int(extent),
        (*steps, float(step[-1])),
        before,
        step_seconds(name, known),
        (*minutes, float(wall[-1])),
        acceptance_independence(weights),
        ess_reverse(weights),
        float(weights.var()),
    )


def training_table(costs: Sequence[TrainingCost]) -> Table:
    """Tabulate steps and seconds to the thresholds, and the quality at the end."""
    rows = []
    for cost in costs:
        reached = [
            f"{steps:.0f} / {seconds:.0f} s" if np.isfinite(steps) else "—"
            for steps, seconds in zip(cost.steps, cost.seconds, strict=True)
        ]
        quality = (f"{cost.acceptance:.3f}", f"{cost.ess:.3f}", f"{cost.log_weight_variance:.3g}")
        rows.append((cost.variant, str(cost.extent), *reached, f"{cost.before:.0f} s", *quality))
    thresholds = (f"to {100 * threshold:.0f} %" for threshold in THRESHOLDS)
    columns = ("flow", "L", *thresholds, "in all", "trainings before", "acceptance", "ESS", "Var(log w)")
    note = (
        f"Steps of {BATCH} draws / processor seconds until the acceptance, averaged over {WINDOW} steps, was reached; "
        f"acceptance, ESS and Var(log w) of {DRAWS} fresh draws at the end."
    )
    return Table("Trainings", columns, tuple(rows), note)


@dataclass(frozen=True)
class PowerLaw:
    """A fit of y = c x^z."""

    exponent: float
    error: float
    points: int


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Fit a power law to the finite points, all of one relative error, which is taken from their scatter.

    Returns
    -------
    The exponent with its standard error, or None for fewer than `FEWEST_POINTS` points.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    if finite.sum() < FEWEST_POINTS:
        return None
    (exponent, _), covariance = np.polyfit(np.log(np.array(x)[finite]), np.log(np.array(y)[finite]), 1, cov=True)
    return PowerLaw(float(exponent), float(covariance[0, 0] ** 0.5), int(finite.sum()))


def growth_table(costs: Sequence[TrainingCost], xi: Mapping[int, float]) -> tuple[Table, dict[str, PowerLaw]]:
    """Fit the growth of steps, seconds a step and seconds with L, and of seconds with the measured correlation length."""
    rows, fits = [], {}
    for variant in VARIANTS:
        own = [cost for cost in costs if cost.variant == variant]
        extents = [float(cost.extent) for cost in own]
        series = {
            "seconds per step, L": (extents, [cost.seconds_per_step for cost in own]),
            "Var(log w) at the end, L": (extents, [cost.log_weight_variance for cost in own]),
        }
        for number, threshold in enumerate(THRESHOLDS):
            percent = f"{100 * threshold:.0f} %"
            # Reached within the first window: no more than a bound.
            known = [cost.steps[number] > WINDOW for cost in own]
            steps = [cost.steps[number] if fits else float("nan") for cost, fits in zip(own, known, strict=True)]
            series[f"steps to {percent}, L"] = (extents, steps)
            seconds = [cost.before + cost.seconds[number] for cost in own]
            series[f"seconds to {percent}, L"] = (extents, seconds)
            series[f"seconds to {percent}, xi"] = ([xi.get(cost.extent, float("nan")) for cost in own], seconds)
        for name, (x, y) in series.items():
            fit = fit_power_law(x, y)
            if fit is not None:
                fits[f"{variant}: {name}"] = fit
                rows.append((variant, name, f"{fit.exponent:.2f} ± {fit.error:.2f}", str(fit.points)))
    note = "Exponents z of y = c x^z; of the best flow the seconds include the trainings that it started from."
    return Table("Growth", ("flow", "what, with what", "exponent", "points"), tuple(rows), note), fits
