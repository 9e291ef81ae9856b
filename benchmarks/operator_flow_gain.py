"""What training on small lattices saves on a larger one: ESS against processor time, trained on and from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.claims import Claim
from benchmarks.kept import KeptFlow
from benchmarks.measuring import INFORMATIVE, one_thread, take_turns
from benchmarks.operator_flow_trainings import SEEDS, TARGETS
from flowmc.flows import build_flow
from flowmc.seeds import torch_generator
from flowmc.theories import Phi4
from flowmc.training import TrainingFiles, read_log, reverse_kl
from flowmc.training.companions import other_theories
from flowmc_analysis.tables import ABSENT, Table

__all__ = ["Curve", "gain_claims", "gain_table", "measure_gain", "seconds_of_step"]

Array = NDArray[np.float64]

WINDOW = 10
"""Lines of the log, every tenth step, over which the ESS of batches is averaged."""
LEVELS = (0.5, 0.7)


@dataclass(frozen=True)
class Curve:
    """The ESS of a training's batches, averaged over `WINDOW` lines of its log.

    Parameters
    ----------
    name
        Name of the training.
    step, ess
        Steps at the ends of the windows, and the averages.
    seconds_per_step
        Processor seconds.
    before
        Processor seconds of the trainings that it starts from.
    """

    name: str
    step: Array
    ess: Array
    seconds_per_step: float
    before: float

    @property
    def seconds(self) -> Array:
        """Processor seconds since the start of this training."""
        return self.step * self.seconds_per_step

    def seconds_to(self, ess: float) -> float:
        """Return the processor seconds until the average first reaches a value; infinite if it does not."""
        above = np.flatnonzero(self.ess >= ess)
        return float(self.seconds[above[0]]) if above.size else inf


def seconds_of_step(training: KeptFlow) -> float:
    """Return the processor seconds of the gradient of a step, over all theories of the training; a median of five."""
    config = training.config()
    assert config.flow is not None
    theories = [config.theory, *other_theories(config.theory, config.training.also)]
    total = 0.0
    with one_thread():
        for theory in theories:
            assert isinstance(theory, Phi4)
            flow = build_flow(config.flow, theory, seed=1)

            def step(flow: torch.nn.Module = flow, theory: Phi4 = theory) -> None:
                flow.zero_grad()
                for piece in reverse_kl(flow, theory, config.training.batch_size, torch_generator(1)):  # type: ignore[arg-type]
                    piece.value.backward()  # type: ignore[no-untyped-call]

            total += median(take_turns({"step": step}, 5, 0.0)["step"].cpu)
    return total


def _curve(name: str, known: Mapping[str, KeptFlow], folder: Path, per_step: Mapping[str, float]) -> Curve:
    records = read_log(TrainingFiles(folder / f"{name}.safetensors").log)
    window = min(WINDOW, len(records))
    ess = np.convolve([record.ess for record in records], np.full(window, 1 / window), mode="valid")
    step = np.array([float(record.step) for record in records][window - 1 :])
    before, start = 0.0, known[name].start_from
    while start:
        before += per_step[_kind(start)] * known[start].training["steps"]
        start = known[start].start_from
    return Curve(name, step, ess, per_step[_kind(name)], before)


def _kind(name: str) -> str:
    """Return what trainings that differ by their seed have in common."""
    return name.rpartition("_")[0]


def measure_gain(known: Mapping[str, KeptFlow], folder: Path) -> dict[int, list[tuple[Curve, Curve]]]:
    """Return, by extent, the curves of trainings from pretrained weights and from scratch, seed by seed."""
    names = ["local_0", *(f"{kind}_{extent}_0" for extent in TARGETS for kind in ("fine", "scratch"))]
    per_step = {_kind(name): seconds_of_step(known[name]) for name in names}
    return {
        extent: [
            (
                _curve(f"fine_{extent}_{seed}", known, folder, per_step),
                _curve(f"scratch_{extent}_{seed}", known, folder, per_step),
            )
            for seed in SEEDS
        ]
        for extent in TARGETS
    }


@dataclass(frozen=True)
class SpeedUp:
    """How much sooner a pretrained flow reaches an ESS than one from scratch, seed by seed."""

    ess: tuple[float, ...]
    alone: tuple[float, ...]
    """Ratios of processor time, the pretraining not counted."""
    with_pretraining: tuple[float, ...]
    """The same with the whole pretraining counted."""


def speed_up(pairs: Sequence[tuple[Curve, Curve]], level: float = nan) -> SpeedUp:
    """Return the speed-up to an ESS, or, for NaN, to the lower one of what both have in their last windows."""
    levels, alone, whole = [], [], []
    for fine, scratch in pairs:
        target = level if isfinite(level) else float(min(fine.ess[-1], scratch.ess[-1]))
        own, other = fine.seconds_to(target), scratch.seconds_to(target)
        levels.append(target)
        # Infinite where only the pretrained one gets there, not a number where neither does.
        alone.append(other / own if isfinite(own) else nan)
        whole.append(other / (own + fine.before) if isfinite(own) else nan)
    return SpeedUp(tuple(levels), tuple(alone), tuple(whole))


def gain_table(curves: Mapping[int, Sequence[tuple[Curve, Curve]]]) -> Table:
    """Tabulate what both reach, and when."""
    rows = []
    for extent, pairs in curves.items():
        for fine, scratch in pairs:
            for curve in (fine, scratch):
                times = [curve.seconds_to(level) for level in LEVELS]
                rows.append(
                    (
                        str(extent),
                        curve.name,
                        f"{curve.ess[0]:.3f}",
                        f"{curve.ess[-1]:.3f}",
                        *(f"{time:.0f}" if isfinite(time) else ABSENT for time in times),
                        f"{curve.seconds[-1]:.0f}",
                        f"{curve.before:.0f}" if curve.before else ABSENT,
                    )
                )
    columns = (
        "L",
        "training",
        "ESS, first window",
        "ESS, last window",
        *(f"s to ESS {level:g}" for level in LEVELS),
        "s in all",
        "s before",
    )
    note = (
        f"ESS of batches of 64 draws, averaged over {WINDOW} lines of the log (100 steps): higher than that of many "
        "draws, for both alike. Those from scratch have a schedule of their own length. Processor seconds on one core, "
        "measured step by step; before: of the pretraining."
    )
    return Table("Training on and from scratch", columns, tuple(rows), note)


def gain_claims(curves: Mapping[int, Sequence[tuple[Curve, Curve]]]) -> list[Claim]:
    """Return the speed-ups."""
    claims = []
    for extent, pairs in curves.items():
        for level in (nan, *LEVELS):
            found = speed_up(pairs, level)
            what = f"ESS {level:g}" if isfinite(level) else "the ESS that both reach"
            detail = ", ".join(f"{ess:.2f}" for ess in found.ess)
            for kind, ratios in (("", found.alone), (", pretraining counted", found.with_pretraining)):
                known = [ratio for ratio in ratios if not np.isnan(ratio)]
                if not known:
                    continue
                spread = f"{min(known):.3g} to {max(known):.3g} over {len(known)} seeds"
                target, holds = INFORMATIVE, True
                if not kind and not isfinite(level):
                    target, holds = "> 1 in every seed", len(known) == len(ratios) and min(known) > 1
                    spread += f"; ESS {detail}"
                name = f"speed-up by pretraining to {what}, L = {extent}{kind}"
                claims.append(Claim(name, median(known), spread, target, "", holds))
    return claims
