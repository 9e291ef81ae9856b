"""Where the time of an operator flow goes, and how it grows with the lattice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.claims import Claim
from benchmarks.measuring import INFORMATIVE, one_thread, take_turns
from benchmarks.operator_flow_trainings import KERNELS, LAM, M2
from flowmc.flows import OperatorFlow, build_flow
from flowmc.flows.integrators import INTEGRATORS
from flowmc.flows.operator_velocity import SUMS
from flowmc.flows.velocities import Velocity
from flowmc.seeds import torch_generator
from flowmc.theories import Phi4
from flowmc_analysis.tables import Table, format_seconds

__all__ = [
    "Scaling",
    "Split",
    "cost_claims",
    "cost_parts",
    "measure_scaling",
    "measure_split",
    "scaling_table",
    "split_table",
]

BATCH = 64
EXTENTS: Mapping[str, tuple[int, ...]] = {
    "matrix": (8, 12, 16, 20, 24),
    "fourier": (16, 24, 32, 48, 64, 96),
    "displacements": (16, 24, 32, 48, 64, 96),
}
"""Extents by the way to sum."""
FAMILY_OF = {"matrix": "local", "fourier": "spectral", "displacements": "local"}


def _flow(family: str, extent: int, sums: str = "automatic") -> OperatorFlow:
    networks: dict[str, Any] = {"kernel": KERNELS[family]}
    theory = Phi4((extent, extent), M2, LAM)
    flow = build_flow({"kind": "operator", "networks": {**networks, "sums": sums}}, theory, seed=1)
    generator = torch_generator(1, "shaken")
    # Away from zero, where the velocity begins.
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype), alpha=0.02)
    assert isinstance(flow, OperatorFlow)
    return flow


@dataclass(frozen=True)
class Split:
    """Seconds of the parts of an evaluation of velocity and divergence for one batch, and of what is made of it."""

    family: str
    extent: int
    sums: str
    parts: Mapping[str, float]

    def share(self, part: str) -> float:
        """Return the share of a part in a step of the solver."""
        return self.parts[part] / self.parts["step"]


def measure_split(family: str, extent: int, turns: int) -> Split:
    """Time the parts of a Runge-Kutta step without a gradient, each alone."""
    flow = _flow(family, extent)
    operator = flow.velocity
    velocity = operator.prepare()
    field = flow.base.draw(BATCH, torch_generator(1)).flatten(1)
    time = torch.tensor(0.3)
    solver = INTEGRATORS["rk4_trace"]
    with one_thread(), torch.inference_mode():
        kernels, features = operator.kernels(time), operator.features(field)
        calls: dict[str, Callable[[], object]] = {
            "coefficients": lambda: operator.kernels(time),
            "features": lambda: operator.features(field),
            "sum": lambda: operator.summed(kernels, features),
            "velocity": lambda: velocity(time, field),
            "both": lambda: velocity.with_divergence(time, field),
            "step": lambda: solver.step(velocity, 0.3, 0.1, field),
            "draw": lambda: flow.sample(BATCH, torch_generator(1)),
        }
        timed = {name: median(timing.cpu) for name, timing in take_turns(calls, turns, 0.1).items()}
    evaluations = 4
    parts = {
        "kernel coefficients": evaluations * timed["coefficients"],
        "features": evaluations * timed["features"],
        "sum over sites": evaluations * timed["sum"],
        "gates": evaluations * (timed["velocity"] - timed["coefficients"] - timed["features"] - timed["sum"]),
        "divergence": evaluations * (timed["both"] - timed["velocity"]),
        "solver": timed["step"] - evaluations * timed["both"],
        "step": timed["step"],
        "draw": timed["draw"],
    }
    return Split(family, extent, operator.sums, parts)


def split_table(splits: Sequence[Split]) -> Table:
    """Tabulate the shares of the parts."""
    names = ("kernel coefficients", "features", "sum over sites", "gates", "divergence", "solver")
    rows = [
        (
            split.family,
            str(split.extent),
            split.sums,
            *(f"{100 * split.share(name):.0f} %" for name in names),
            format_seconds(split.parts["step"] / BATCH),
            format_seconds(split.parts["draw"] / BATCH),
        )
        for split in splits
    ]
    columns = ("kernels", "L", "sums", *names, "a step, per field", "a draw, per field")
    note = (
        f"Processor time on one core, batches of {BATCH}, float32, no gradients; a step of the fourth-order Runge-Kutta "
        "method has four evaluations, a draw ten steps. Parts are timed alone, and the solver is what is left: a few per "
        "cent, of either sign, are noise."
    )
    return Table("Where the time goes", columns, tuple(rows), note)


@dataclass(frozen=True)
class Scaling:
    """Seconds of an evaluation per field, by extent, and the exponent in V of the largest lattices."""

    sums: str
    seconds: Mapping[int, float]
    spread: Mapping[int, tuple[float, float]]

    @property
    def exponent(self) -> tuple[float, float]:
        """Slope of the logarithms against that of V, from the third lattice on, and its error by the scatter."""
        extents = np.array(sorted(self.seconds))[2:]
        x, y = 2 * np.log(extents), np.log([self.seconds[int(extent)] for extent in extents])
        if len(x) < 3:
            return float((y[-1] - y[0]) / (x[-1] - x[0])), float("nan")
        fit, covariance = np.polyfit(x, y, 1, cov="unscaled")
        rest = y - np.polyval(fit, x)
        return float(fit[0]), float(np.sqrt(covariance[0, 0] * (rest**2).sum() / (len(x) - 2)))


def measure_scaling(sums: str, turns: int, *, quick: bool) -> Scaling:
    """Time velocity and divergence on larger and larger lattices."""
    assert sums in SUMS
    seconds, spread = {}, {}
    with one_thread(), torch.inference_mode():
        for extent in EXTENTS[sums][: 4 if quick else None]:
            flow = _flow(FAMILY_OF[sums], extent, sums)
            velocity = flow.velocity.prepare()
            # About as many sites at once on all lattices: else caches decide.
            batch = max(1, BATCH * 256 // extent**2)
            field = flow.base.draw(batch, torch_generator(1)).flatten(1)
            time = torch.tensor(0.3)

            def both(velocity: Velocity = velocity, time: Tensor = time, field: Tensor = field) -> object:
                return velocity.with_divergence(time, field)

            timing = take_turns({"both": both}, turns, 0.1)["both"]
            each = [value / batch for value in timing.cpu]
            seconds[extent], spread[extent] = median(each), (min(each), max(each))
    return Scaling(sums, seconds, spread)


def scaling_table(scalings: Sequence[Scaling]) -> Table:
    """Tabulate the seconds by extent."""
    extents = sorted({extent for scaling in scalings for extent in scaling.seconds})
    rows = []
    for scaling in scalings:
        cells = [format_seconds(scaling.seconds[extent]) if extent in scaling.seconds else "" for extent in extents]
        exponent, error = scaling.exponent
        rows.append((f"{FAMILY_OF[scaling.sums]}, {scaling.sums}", *cells, f"{exponent:.2f} ± {error:.2f}"))
    note = (
        "Velocity and divergence of one field, float32, processor time on one core; the exponent from the third lattice "
        "on. Batches have about as many sites on all lattices, so that the overhead of a call counts alike. By Fourier "
        "transform the cost is V log V, by displacements V, by a matrix V²."
    )
    columns = ("kernels, sums", *(f"L = {extent}" for extent in extents), "exponent in V")
    return Table("Cost of an evaluation", columns, tuple(rows), note)


def cost_claims(splits: Sequence[Split], scalings: Sequence[Scaling]) -> list[Claim]:
    """Return the exponents and the shares."""
    claims = []
    targets = {"fourier": 1.2, "displacements": 1.1}
    for scaling in scalings:
        exponent, error = scaling.exponent
        largest = targets.get(scaling.sums)
        target = INFORMATIVE if largest is None else f"<= {largest:g}"
        holds = largest is None or exponent <= largest
        name = f"exponent in V of an evaluation, {FAMILY_OF[scaling.sums]}, {scaling.sums}"
        claims.append(Claim(name, exponent, f"± {error:.2f}", target, "", holds))
    for split in splits:
        name = f"share of the divergence in a step, {split.family}, L = {split.extent}"
        others = f"sum over sites {split.share('sum over sites'):.2f}, features {split.share('features'):.2f}"
        claims.append(Claim(name, split.share("divergence"), others, INFORMATIVE, "", holds=True))
    return claims


def cost_parts(*, quick: bool) -> tuple[list[Split], list[Scaling]]:
    """Measure everything."""
    turns = 3 if quick else 7
    extents = (8,) if quick else (8, 16)
    splits = [measure_split(family, extent, turns) for family in KERNELS for extent in extents]
    scalings = [measure_scaling(sums, turns, quick=quick) for sums in EXTENTS]
    return splits, scalings
