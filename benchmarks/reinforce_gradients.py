"""Noise of the objectives' gradients for trained flows: total variance over independent batches, and their means.

``python -m benchmarks.reinforce_gradients [--quick] [--work DIR]`` trains the flows and measures; `benchmarks.reinforce`
does so too where it has not been done.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowmc.config import parse_run
from flowmc.display import TerminalDisplay
from flowmc.flows import DTYPES, Flow, build_flow, load_flow
from flowmc.seeds import fold, torch_generator
from flowmc.stopping import Stopper
from flowmc.theories import Theory
from flowmc.training import OBJECTIVES, GradientStatistics, gradient_statistics
from flowmc.workflows import train_flow
from flowmc_analysis.weights import ess_reverse
from flowmc_analysis.zscores import family_p_value

__all__ = ["ESTIMATORS", "Noise", "Subject", "measure_noise", "repeats_of", "subjects"]

BATCH = 64
ESTIMATORS = ("reinforce", "reverse_kl", "path_gradient")
# Batches come in independent groups, whose scatter is the error of the variance.
GROUPS = 8
GAUGE = {"kind": "gauge", "layers": 16, "hidden": [16, 16]}
THEORIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "phi4": (
        {"name": "phi4", "shape": [4, 4], "m2": -4.0, "lam": 8.0},
        {"kind": "coupling", "layers": 8, "hidden": [8], "radius": 2},
    ),
    "u1": ({"name": "u1", "shape": [4, 4], "beta": 2.0}, GAUGE),
    "schwinger": ({"name": "schwinger", "shape": [4, 4], "beta": 2.0, "kappa": 0.276}, GAUGE),
}


@dataclass(frozen=True)
class Subject:
    """A theory's flow after some steps of training."""

    theory: str
    steps: int

    def load(self, folder: Path) -> tuple[Flow, Theory]:
        """Return the flow, trained now unless it is there."""
        theory, flow = THEORIES[self.theory]
        training = {"objective": "reverse_kl", "steps": self.steps, "batch_size": 256, "warmup_steps": 10, "seed": 1}
        path = folder / f"{self.theory}_{self.steps}.safetensors"
        if not path.is_file():
            config = parse_run({"theory": theory, "flow": flow, "training": training})
            with Stopper(None) as stopper:
                saved = train_flow(config, path, resume=True, should_stop=stopper, display=TerminalDisplay())
            if saved is None:
                raise SystemExit("interrupted; repeat the command to go on")
        trained, saved = load_flow(path)
        return trained, saved.theory


@dataclass(frozen=True)
class Noise:
    """What was measured of one flow.

    Parameters
    ----------
    subject
        The flow.
    ess
        Effective fraction of its draws.
    gradient
        Squared length of the gradient, by the estimator with the least noise, that noise subtracted.
    variance, variance_error
        Total variance of one batch's gradient by estimator and type.
    p_values
        Probability of a largest deviation between two means, component by component, as large as seen.
    """

    subject: Subject
    ess: float
    gradient: float
    variance: dict[str, float]
    variance_error: dict[str, float]
    p_values: dict[str, float]


def subjects(*, quick: bool) -> tuple[Subject, ...]:
    """Return the flows of the study: little trained and trained."""
    if quick:
        return (Subject("u1", 50),)
    return tuple(Subject(theory, steps) for theory in THEORIES for steps in (50, 500))


def repeats_of(*, quick: bool) -> int:
    """Return the batches in each group."""
    return 4 if quick else 20


def _pooled(groups: Sequence[GradientStatistics]) -> GradientStatistics:
    """Return the statistics of all batches of independent groups of equal size."""
    mean = np.mean([one.mean for one in groups], axis=0)
    variance = np.mean([one.variance for one in groups], axis=0)
    return GradientStatistics(mean, variance, sum(one.n_repeats for one in groups))


def _p_value(one: GradientStatistics, other: GradientStatistics) -> float:
    error: NDArray[np.float64] = np.hypot(one.error, other.error)
    seen = error > 0
    return family_p_value((one.mean - other.mean)[seen] / error[seen])


def _measure(subject: Subject, folder: Path, repeats: int) -> Noise:
    trained, theory = subject.load(folder)
    # Trained in float32; the same numbers in float64.
    description = THEORIES[subject.theory][1]
    pooled: dict[str, GradientStatistics] = {}
    variance, error = {}, {}
    for dtype in DTYPES:
        flow = build_flow({**description, "dtype": dtype}, theory)
        flow.load_state_dict(trained.state_dict())
        for name in ESTIMATORS:
            key = f"{name} {dtype}"
            seeds = [fold(3, key, group) for group in range(GROUPS)]
            groups = [gradient_statistics(OBJECTIVES[name], flow, theory, BATCH, 0, repeats, seed) for seed in seeds]
            totals = np.array([one.total_variance for one in groups])
            pooled[key] = _pooled(groups)
            variance[key] = float(totals.mean())
            error[key] = float(totals.std(ddof=1) / GROUPS**0.5)
    with torch.inference_mode():
        field, log_q = trained.sample(8192, torch_generator(2, "ess"))
        ess = ess_reverse((-theory.action(field) - log_q).numpy())
    quiet = pooled["path_gradient float64"]
    pairs = {
        "RE - RT": ("reinforce float64", "reverse_kl float64"),
        "path - RT": ("path_gradient float64", "reverse_kl float64"),
        "RE32 - RE64": ("reinforce float32", "reinforce float64"),
        "RT32 - RT64": ("reverse_kl float32", "reverse_kl float64"),
        "path32 - path64": ("path_gradient float32", "path_gradient float64"),
    }
    return Noise(
        subject,
        float(ess),
        float((quiet.mean**2).sum()) - quiet.total_variance / quiet.n_repeats,
        variance,
        error,
        {name: _p_value(pooled[one], pooled[other]) for name, (one, other) in pairs.items()},
    )


def measure_noise(subject: Subject, folder: Path, *, repeats: int) -> Noise:
    """Measure the noise of all estimators for a flow, or read what was measured before.

    Parameters
    ----------
    subject
        The flow.
    folder
        Where flows and measurements are kept.
    repeats
        Batches in each of the groups.
    """
    kept = folder / f"noise_{subject.theory}_{subject.steps}_{repeats}.json"
    if not kept.is_file():
        kept.write_text(json.dumps(asdict(_measure(subject, folder, repeats))))
    content = json.loads(kept.read_text())
    return Noise(Subject(**content.pop("subject")), **content)


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only what the smoke run needs")
    parser.add_argument("--work", type=Path, default=Path("runs/reinforce"), help="where flows and figures are kept")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for subject in subjects(quick=arguments.quick):
        print(measure_noise(subject, arguments.work, repeats=repeats_of(quick=arguments.quick)))


if __name__ == "__main__":
    main()
