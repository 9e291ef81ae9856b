"""The flows of the Schwinger benchmark: which are trained, and how; each is made once and then kept.

``python -m benchmarks.schwinger_flows [--quick] [--folder DIR] [NAME ...]`` trains some or all beforehand, interrupted
and resumed at will; `benchmarks.schwinger` trains those that are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.kept import KeptFlow, train_kept

__all__ = ["ESTIMATORS", "SCHWINGER", "folder_of", "gauge_flows"]

# The critical point of arXiv:2202.11712 and 2308.13294.
SCHWINGER = {"name": "schwinger", "beta": 2.0, "kappa": 0.276}
PLAQUETTES = {"kind": "gauge", "layers": 16, "hidden": [32, 32]}
FERMIONS = {**PLAQUETTES, "holonomies": True}
ESTIMATORS = {"RE": "reinforce", "RT": "reverse_kl", "path": "path_gradient"}


def folder_of(given: Path | None, *, quick: bool) -> Path:
    """Return the folder of flows and ensembles: the given one, or one that a smoke run does not share."""
    return given or Path("runs/schwinger_quick" if quick else "runs/schwinger")


def gauge_flows(*, quick: bool) -> dict[str, KeptFlow]:
    """Return the trainings of the benchmark by name, in order."""
    found = []

    def add(name: str, theory: dict[str, Any], flow: dict[str, Any], start_from: str = "", **training: Any) -> None:
        settings = {"seed": 1, "checkpoint_every": 50, "warmup_steps": 20, "log_every": 20, **training}
        if quick:
            settings |= {"steps": 20, "annealing": min(settings.get("annealing", 0.0), 0.5)}
        found.append(KeptFlow(name, theory, flow, settings, start_from))

    before = ""
    for beta, steps in ((2.0, 800), (3.0, 400), (4.0, 400), (5.0, 600)):
        name = f"u1_8_{beta:g}"
        theory = {"name": "u1", "shape": [8, 8], "beta": beta}
        rate = 1e-3 if before else 3e-3
        add(
            name, theory, PLAQUETTES, before, objective="path_gradient", steps=steps, batch_size=128, learning_rate=rate
        )
        before = name
    for extent, layers, steps, rate in ((4, 16, 700, 1e-3), (8, 32, 450, 2e-3)):
        for label, objective in ESTIMATORS.items():
            # Hot fields come close to zeros of the determinant; the way there leads over small kappa.
            add(
                f"schwinger_{extent}_{label}",
                {**SCHWINGER, "shape": [extent] * 2},
                {**FERMIONS, "layers": layers},
                objective=objective,
                steps=steps,
                batch_size=128,
                learning_rate=rate,
                annealing=0.97,
            )
    large = {**FERMIONS, "layers": 32}
    continued = {"objective": "path_gradient", "batch_size": 128, "learning_rate": 1e-3, "steps": 450}
    add("schwinger_8", {**SCHWINGER, "shape": [8, 8]}, large, "schwinger_8_path", **continued)
    further = {"objective": "path_gradient", "batch_size": 32, "learning_rate": 1e-3, "steps": 400}
    add("schwinger_16", {**SCHWINGER, "shape": [16, 16]}, large, "schwinger_8", **further)
    return {training.name: training for training in found}


if __name__ == "__main__":
    train_kept(
        __doc__ or "",
        lambda quick: gauge_flows(quick=quick),
        lambda given, quick: folder_of(given, quick=quick),
    )
