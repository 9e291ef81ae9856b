"""Integrators of continuous flows in nats and seconds.

- *Inverse consistency*: log q of a draw by the forward pass against `log_prob` of the field. It shows that the reverse
  pass is the inverse map, and nothing else.
- *Exactness*: the log-determinant that the integrator gives against that of the Jacobian of the discrete map, by
  automatic differentiation. The Jacobian of all steps is the product of those of the steps, which are taken one by one.

Where others integrate back with −h, the map is another one than that of the draws: what comes out as log q is neither
consistent nor exact. With the exact log-determinant, on the other hand, steps may be as coarse as the map bears: what
they cost is seen in the weights of the draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.claims import Claim
from benchmarks.interpolations_flows import mixture_name, well_name
from benchmarks.interpolations_steps import step_cost_parts
from benchmarks.kept import KeptFlow
from benchmarks.measuring import INFORMATIVE, Timing, one_thread, take_turns
from flowmc.flows import InterpolatingFlow, build_flow, load_flow
from flowmc.flows.integrators import INTEGRATORS, runge_kutta_step
from flowmc.seeds import torch_generator
from flowmc_analysis.tables import Table, format_seconds
from flowmc_analysis.weights import acceptance_independence, ess_reverse

__all__ = ["INTEGRATOR_FLOWS", "Accuracy", "integrator_parts", "measure_accuracy", "measure_time"]

Array = NDArray[np.float64]
STUDIED = (mixture_name("two", "learned", 0), well_name(16, 3.0, "learned", 0))
BOUNDED = tuple(well_name(32, mass, "learned", 0) for mass in (1.5, 3.0))
"""Flows whose production states a bound instead of being exact."""
INTEGRATOR_FLOWS = (*STUDIED, *BOUNDED)
"""All that the parts on integrators need trained."""
COUNTS = (5, 10, 20, 50)
DRAWS, JACOBIANS = 64, 16
TIMED_SITES = 1024
"""Sites of all fields of a batch that is timed."""
LARGEST_EXACT = 1e-8
BACK = "rk4_trace, back with −h"
"""What others take for the reverse pass; not an integrator here."""
COARSE = (3, 5, 7, 10, 20)
"""Numbers of steps of the map whose draws are weighed."""
WEIGHED, CHUNK = 1024, 64


@dataclass(frozen=True)
class Accuracy:
    """How far log q is off, in nats; the largest of the draws that are finite.

    Parameters
    ----------
    flow, integrator, steps
        What was measured.
    consistency
        Forward log q against `log_prob`.
    exactness
        The log-determinant against that of the full Jacobian.
    lost
        Draws of `DRAWS` whose log q is not a number, one way or the other: there the step is too coarse to be inverted.
    """

    flow: str
    integrator: str
    steps: int
    consistency: float
    exactness: float
    lost: int


def with_integrator(path: Path, integrator: str, steps: int) -> InterpolatingFlow:
    """Return a trained flow, in float64, with another integrator or number of steps."""
    trained, saved = load_flow(path)
    description = {**saved.flow, "integrator": integrator, "steps": steps, "dtype": "float64"}
    flow = cast(InterpolatingFlow, build_flow(description, saved.theory))
    flow.load_state_dict(trained.double().state_dict())
    return flow.requires_grad_(False)


def largest(values: Tensor) -> float:
    """Return the largest modulus of the finite ones; NaN if there are none."""
    finite = values[torch.isfinite(values)]
    return float(finite.abs().max()) if len(finite) else nan


def log_det_by_autograd(flow: InterpolatingFlow, latent: Tensor) -> Tensor:
    """Return log|det| of the discrete map at base points (n, *shape), from Jacobians by automatic differentiation."""
    move, velocity = INTEGRATORS[flow.config.integrator].step, flow.velocity.prepare()
    size, flat = 1 / flow.config.steps, latent.flatten(1)
    total = torch.zeros(len(flat), dtype=torch.float64)
    for number in range(flow.config.steps):
        with torch.enable_grad():
            leaf = flat.detach().requires_grad_()
            new, _ = move(velocity, number * size, size, leaf)
            # Row by row: the fields of a batch do not feel each other.
            rows = [torch.autograd.grad(new[:, k].sum(), leaf, retain_graph=True)[0] for k in range(flat.shape[1])]
        total += torch.linalg.slogdet(torch.stack(rows, dim=1))[1]
        flat = new.detach()
    return total


def log_q_back(flow: InterpolatingFlow, field: Tensor) -> Tensor:
    """Return what integrating back with −h gives for log q of fields."""
    integrator, velocity = INTEGRATORS["rk4_trace"], flow.velocity.prepare()
    steps, flat = flow.config.steps, field.flatten(1)
    total = torch.zeros(len(flat), dtype=torch.float64)
    for number in reversed(range(steps)):
        flat, change = integrator.step(velocity, (number + 1) / steps, -1 / steps, flat)
        total += change
    return flow.base.log_prob(flat.reshape(field.shape)) + total


def measure_accuracy(path: Path, integrator: str, steps: int, draws: int = DRAWS) -> list[Accuracy]:
    """Measure a trained flow with an integrator; for "rk4_trace" also what integrating back with −h makes of it."""
    flow = with_integrator(path, integrator, steps)
    with torch.no_grad():
        latent = flow.base.draw(draws, torch_generator(7, "accuracy"))
        field, log_det = flow.forward(latent)
        log_q = flow.base.log_prob(latent) - log_det
        again = flow.log_prob(field)
        few = latent[:JACOBIANS]
        exactness = largest(log_det[: len(few)] - log_det_by_autograd(flow, few))
        lost = int((~(torch.isfinite(log_q) & torch.isfinite(again))).sum())
        found = [Accuracy(path.stem, integrator, steps, largest(log_q - again), exactness, lost)]
        if integrator == "rk4_trace":
            back = log_q_back(flow, field)
            exact = flow.base.log_prob(few) - log_det_by_autograd(flow, few)
            inexact = largest(back[: len(few)] - exact)
            lost = int((~torch.isfinite(back)).sum())
            found.append(Accuracy(path.stem, BACK, steps, largest(log_q - back), inexact, lost))
    return found


def measure_time(path: Path, steps: int, turns: int) -> dict[str, Timing]:
    """Time draws and log q of as many fields, in float64, with each integrator in turn: seconds of a thousand."""
    calls: dict[str, Callable[[], object]] = {}
    for name in INTEGRATORS:
        flow = with_integrator(path, name, steps)
        draws = TIMED_SITES // flow.theory.volume
        latent = flow.base.draw(draws, torch_generator(7, "time"))
        field = latent
        for number in range(steps):
            field = runge_kutta_step(flow.velocity.prepare(), number / steps, 1 / steps, field)
        calls[name] = lambda flow=flow, latent=latent: flow.forward(latent)  # type: ignore[misc]
        calls[f"{name} inverse"] = lambda flow=flow, field=field: flow.inverse(field)  # type: ignore[misc]
    with torch.no_grad(), one_thread():
        found = take_turns(calls, turns, 0.0)
    return {
        name: Timing(*([1000 / draws * seconds for seconds in clock] for clock in timing))
        for name, timing in found.items()
    }


def weigh(path: Path, steps: int, draws: int) -> Array:
    """Return log-weights of draws with so many steps of "rk4"; −∞ where log q is not a number."""
    flow = with_integrator(path, "rk4", steps)
    found = []
    with torch.no_grad():
        for number in range(draws // CHUNK):
            field, log_q = flow.sample(CHUNK, torch_generator(7, "weigh", number))
            log_w = -flow.theory.action(field) - log_q
            found.append(torch.where(torch.isfinite(log_w), log_w, -torch.inf).numpy())
    return np.concatenate(found)


def steps_table(weights: Mapping[str, Mapping[int, Array]]) -> Table:
    """Tabulate what fewer steps cost, where log q is that of the map."""
    rows = []
    for flow, mine in weights.items():
        for quantity, measure in (("acceptance", acceptance_independence), ("reverse ESS", ess_reverse)):
            cells = []
            for log_w in mine.values():
                lost = int(np.isneginf(log_w).sum())
                cells.append(f"{measure(log_w):.3f}" + (f" ({lost} lost)" if lost else ""))
            rows.append((flow, quantity, *cells))
    counts = next(iter(weights.values()))
    columns = ("flow", "quantity", *(f"{count} steps" for count in counts))
    draws = len(next(iter(counts.values())))
    note = (
        f"Of {draws} draws by rk4 with its exact log-determinant, of the same base draws; lost ones are never accepted."
    )
    return Table("What coarse steps cost", columns, tuple(rows), note)


def accuracy_table(found: Sequence[Accuracy], quantity: str) -> Table:
    """Tabulate "consistency" or "exactness" by integrator and number of steps."""
    counts = sorted({one.steps for one in found})
    rows = []
    for flow, integrator in dict.fromkeys((one.flow, one.integrator) for one in found):
        mine = {one.steps: one for one in found if (one.flow, one.integrator) == (flow, integrator)}
        exact = integrator in INTEGRATORS and INTEGRATORS[integrator].exact
        cells = []
        for count in counts:
            one = mine.get(count)
            lost = f" ({one.lost} lost)" if one is not None and one.lost else ""
            cells.append("" if one is None else f"{getattr(one, quantity):.1e}{lost}")
        rows.append((flow, integrator, "yes" if exact else "no", *cells))
    titles = {
        "consistency": "Inverse consistency: forward log q against log_prob, nats",
        "exactness": "Exactness: log-determinant against the full Jacobian of the discrete map, nats",
    }
    notes = {
        "consistency": f"Largest of {DRAWS} draws, float64; lost: log q is not a number, as the step has no inverse.",
        "exactness": f"Largest of {JACOBIANS} draws, float64; back with −h: what that gives for log q against the exact "
        "log q of the draws. Integrators that agree with themselves may be wrong all the same.",
    }
    columns = ("flow", "integrator", "exact", *(f"{count} steps" for count in counts))
    return Table(titles[quantity], columns, tuple(rows), notes[quantity])


def time_table(timings: Mapping[str, Mapping[str, Timing]], steps: Mapping[str, int]) -> Table:
    """Tabulate seconds of draws and of their inverse, relative to "rk4_trace"."""
    rows = []
    for flow, mine in timings.items():
        for name in INTEGRATORS:
            cells = []
            for key, against in ((name, "rk4_trace"), (f"{name} inverse", "rk4_trace")):
                ratios = mine[key].over(mine[against])
                cells += [
                    format_seconds(median(mine[key].cpu)),
                    f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                ]
            rows.append((flow, str(steps[flow]), name, *cells))
    columns = (
        "flow",
        "steps",
        "integrator",
        "1000 draws",
        "of rk4_trace",
        "log q of 1000 fields",
        "of rk4_trace draws",
    )
    turns = len(next(iter(next(iter(timings.values())).values())).cpu)
    note = (
        f"Processor time in float64 with one thread, {DRAWS} at once; medians of {turns} turns, from lowest to highest."
    )
    return Table("Time of drawing and of log q", columns, tuple(rows), note)


def _worst(found: Sequence[Accuracy], quantity: str) -> tuple[float, str]:
    """Return the largest figure, a NaN before all, and where it is."""
    worst = max(found, key=lambda one: inf if (value := getattr(one, quantity)) != value else value)
    value = getattr(worst, quantity)
    return value, f"{worst.integrator}, {worst.steps} steps; {DRAWS if quantity == 'consistency' else JACOBIANS} draws"


def accuracy_claims(found: Sequence[Accuracy], production: Mapping[str, int], bound: float) -> list[Claim]:
    """Return whether exact integrators are exact, and how far others are off.

    Parameters
    ----------
    found
        The figures.
    production
        Numbers of steps in production, by flow.
    bound
        What flows with inexact integrators state.
    """
    claims = []
    for flow, steps in production.items():
        exact = [one for one in found if one.flow == flow and one.integrator in INTEGRATORS]
        exact = [one for one in exact if INTEGRATORS[one.integrator].exact]
        for what, quantity in (("inverse consistency", "consistency"), ("error of log q", "exactness")):
            if exact:
                value, where = _worst(exact, quantity)
                holds = value < LARGEST_EXACT
                name = f"{what}, exact integrators, {flow}"
                claims.append(Claim(name, value, where, f"< {LARGEST_EXACT:g}", "nats", holds))
        mine = {one.integrator: one for one in found if one.flow == flow and one.steps == steps}
        detail = f"{steps} steps as in production; {JACOBIANS} draws"
        for name in ("rk4_trace", "midpoint_trace"):
            if name in mine:
                value = mine[name].exactness
                # Flows that are made with an exact integrator state no bound; what the other would do is beside it.
                wanted, holds = (INFORMATIVE, True) if exact else (f"<= {bound:g}, as stated", value <= bound)
                where = f"error of log q, {name}{' in its place' if exact else ''}, {flow}"
                claims.append(Claim(where, value, detail, wanted, "nats", holds))
        if BACK in mine:
            value, text = mine[BACK].consistency, f"{steps} steps; {DRAWS} draws"
            claims.append(Claim(f"inverse consistency, {BACK}, {flow}", value, text, INFORMATIVE, "nats", holds=True))
    return claims


def integrator_parts(known: Mapping[str, KeptFlow], folder: Path, *, quick: bool) -> tuple[list[Table], list[Claim]]:
    """Measure the integrators on trained flows, and the cost of a training step on untrained ones.

    Parameters
    ----------
    known
        The trainings by name.
    folder
        Where trained flows are kept; those that are missing are trained.
    quick
        Whether this is a smoke run.
    """
    counts = COUNTS[:2] if quick else COUNTS
    turns = 2 if quick else 5
    accuracies, production, timings, weights = [], {}, {}, {}
    for name in STUDIED:
        trained = load_made(known[name], folder, known)
        production[name] = trained.config.steps
        path = folder / f"{name}.safetensors"
        for integrator in INTEGRATORS:
            for steps in sorted({*counts, production[name]}):
                accuracies += measure_accuracy(path, integrator, steps)
        timings[name] = measure_time(path, production[name], turns)
        weights[name] = {steps: weigh(path, steps, CHUNK if quick else WEIGHED) for steps in COARSE}
    # On larger lattices, only what they are used with.
    for name in () if quick else BOUNDED:
        trained = load_made(known[name], folder, known)
        production[name] = trained.config.steps
        path = folder / f"{name}.safetensors"
        accuracies += measure_accuracy(path, trained.config.integrator, production[name])
    tables = [accuracy_table(accuracies, "consistency"), accuracy_table(accuracies, "exactness")]
    tables += [time_table(timings, production), steps_table(weights)]
    claims = accuracy_claims(accuracies, production, trained.config.log_q_bound)
    cost_tables, cost_claims = step_cost_parts(quick=quick)
    return tables + cost_tables, claims + cost_claims


def load_made(training: KeptFlow, folder: Path, known: Mapping[str, KeptFlow]) -> InterpolatingFlow:
    """Return a trained flow, trained now if it is not there."""
    training.make(folder, known)
    return cast(InterpolatingFlow, load_flow(folder / f"{training.name}.safetensors")[0])
