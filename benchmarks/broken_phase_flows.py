"""The flows of the broken phase of phi^4: which are trained, and how; each is made once and then kept.

``python -m benchmarks.broken_phase_flows [--quick] [--folder DIR] [NAME ...]`` trains some or all beforehand, interrupted
and resumed at will; `benchmarks.broken_phase` trains those that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.kept import KeptEnsemble, KeptFlow, train_kept

__all__ = ["LABELS", "THEORY", "broken_flows", "folder_of", "make_samples"]

THEORY: Mapping[str, Any] = MappingProxyType({"name": "phi4", "shape": [8, 8], "m2": -4.0, "lam": 3.2})
LAYERS = {
    "base": "spectral",
    "base_mass": 1.0,
    "layers": [{"kind": "affine", "hidden": [8], "radius": 6, "output_radius": 0}, {"kind": "sinh_arcsinh"}],
    "repeat": 8,
}
FREE = {"kind": "coupling", **LAYERS, "z2": False}
EQUIVARIANT = {"kind": "coupling", **LAYERS, "z2": True}
MIRRORED = {"kind": "mirrored", **LAYERS, "z2": False}

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "reverse": "no Z2, reverse KL",
        "annealed": "no Z2, temperature annealed",
        "forward": "no Z2, forward KL",
        "mixed": "no Z2, mixed KL",
        "equivariant": "equivariant, reverse KL",
        "equivariant_annealed": "equivariant, couplings annealed",
        "mirrored": "mirrored, reverse KL",
    }
)
"""What the flows are called in tables, by the names of their files."""

SAMPLES = "samples"
CHAINS, CYCLES = 256, 100


def folder_of(given: Path | None, *, quick: bool) -> Path:
    """Return the folder of flows and ensembles: the given one, or one that a smoke run does not share."""
    return given or Path("runs/broken_phase_quick" if quick else "runs/broken_phase")


def make_samples(folder: Path, *, quick: bool) -> None:
    """Make the configurations for forward divergences: HMC from many hot starts, of which each falls into one mode."""
    sampling = {
        "seed": 3,
        "start": "hot",
        "chains": CHAINS,
        "cycles": CYCLES // 5 if quick else CYCLES,
        "thermalisation": 100,
        "tuning": 80,
        "cycles_per_block": 20,
        "target_acceptance": 0.9,
    }
    KeptEnsemble(KeptFlow(SAMPLES, THEORY, FREE, {}), "hmc", sampling).make(folder)


def broken_flows(*, quick: bool) -> dict[str, KeptFlow]:
    """Return the trainings by name, in order."""
    found = {}

    def add(name: str, flow: Mapping[str, Any], **training: Any) -> None:
        settings = {
            "objective": "path_gradient",
            "steps": 1000,
            "batch_size": 256,
            "learning_rate": 5e-3,
            "warmup_steps": 50,
            "seed": 1,
            "checkpoint_every": 100,
            "threads": 1,
            **training,
        }
        if quick:
            settings |= {"steps": 40, "warmup_steps": 5}
            if "annealing" in training:
                settings["annealing"] = 0.7
        found[name] = KeptFlow(name, THEORY, flow, settings)

    samples = f"{SAMPLES}_hmc.h5"
    add("reverse", FREE)
    add("annealed", FREE, annealing=0.98, annealing_path="temperature")
    add("forward", FREE, objective="forward_kl", samples=samples)
    add("mixed", FREE, forward_weight=0.5, samples=samples)
    add("equivariant", EQUIVARIANT)
    add("equivariant_annealed", EQUIVARIANT, annealing=0.98, annealing_path="couplings")
    add("mirrored", MIRRORED, objective="reverse_kl")
    return found


if __name__ == "__main__":
    train_kept(
        __doc__ or "",
        lambda quick: broken_flows(quick=quick),
        lambda given, quick: folder_of(given, quick=quick),
        prepare=lambda folder, quick: make_samples(folder, quick=quick),
    )
