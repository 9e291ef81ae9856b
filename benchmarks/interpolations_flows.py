"""The flows of the study of learned interpolations: which are trained, and how; each is made once and then kept.

``python -m benchmarks.interpolations_flows [--quick] [--folder DIR] [NAME ...]`` trains some or all beforehand,
interrupted and resumed at will; `benchmarks.interpolations` trains those that are missing.

The mixtures and the double well are those of arXiv:2301.07388, with its base densities and learning rate. Other than
there, networks have two hidden layers (then the divergence has a closed form), those of the double well are
equivariant, trainings are shorter, and the residual is taken at 8 times of each trajectory, chosen at random; for double
wells at stretched or squeezed fields, since without that one seed of three had missed a part of the target (16 sites,
m = 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.kept import KeptFlow, train_kept
from flowmc.flows import build_flow, load_flow, save_flow

__all__ = [
    "EXACT_REVERSE",
    "EXTENT",
    "MIXTURES",
    "PATHS",
    "SEEDS",
    "WELLS",
    "WELL_METHODS",
    "folder_of",
    "interpolating_flows",
    "mixture_name",
    "recast",
    "well_name",
]

SEEDS = (0, 1, 2)
MIXTURES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "four": {
            "name": "gaussian_mixture",
            "means": [[8.0, 8.0], [8.0, -8.0], [-8.0, 8.0], [-8.0, -8.0]],
            "scales": [1.0] * 4,
            "weights": [0.25] * 4,
        },
        "two": {
            "name": "gaussian_mixture",
            "means": [[4.0, 4.0], [-8.0, -8.0]],
            "scales": [1.0] * 2,
            "weights": [1 / 3, 2 / 3],
        },
    }
)
"""Four modes of equal weight, and two of unequal weight at unequal distance."""
BASE_WIDTHS = {"four": sqrt(2), "two": sqrt(8)}
EXTENT = 4.0
WELLS = ((8, 1.5), (8, 3.0), (16, 1.5), (16, 3.0), (32, 1.5), (32, 3.0))
"""Sites and mass of the double wells."""
EXACT_REVERSE = ("rk4", 10)
"""How flows for double wells that were trained by the reverse divergence are drawn from: their own map, and its log q."""
WELL_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "learned": "equivariant convolutions, continuity",
        "along": "equivariant convolutions, continuity on trajectories only",
        "uneven": "convolutions without Z2, continuity",
        "reverse": "equivariant convolutions, reverse KL",
    }
)
"""What trainings for double wells are called in tables, by their names in files; all but "learned" of `COMPARED` only."""
COMPARED = (16, 3.0)
"""Sites and mass of the double well for which methods are compared."""
SPREAD = 0.1
"""By how much fields are stretched for double wells; for mixtures the residual is on trajectories, as in the paper."""
PATHS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"four": ("learned", "linear"), "two": ("learned", "linear", "trigonometric", "diffusion")}
)
"""Kinds of paths that flows for the mixtures are trained along."""


def folder_of(given: Path | None, *, quick: bool) -> Path:
    """Return the folder of flows and ensembles: the given one, or one that a smoke run does not share."""
    return given or Path("runs/interpolations_quick" if quick else "runs/interpolations")


def mixture_name(mixture: str, method: str, seed: int) -> str:
    """Return the name of a training for a mixture: a kind of path, or "reverse"."""
    return f"{mixture}_{method}_{seed}"


def well_name(sites: int, mass: float, method: str, seed: int) -> str:
    """Return the name of a training for a double well: a name in `WELL_METHODS`."""
    return f"well_{sites}_{mass:g}_{method}_{seed}"


def _networks(radius: int) -> dict[str, Any]:
    networks = {"network": "convolutional", "hidden": [8, 8], "radius": radius}
    return {"networks": networks, "interpolation": {"kind": "learned", "networks": networks}}


def interpolating_flows(*, quick: bool) -> dict[str, KeptFlow]:
    """Return the trainings by name, in order."""
    found = {}

    def add(name: str, theory: Mapping[str, Any], flow: Mapping[str, Any], steps: int, **training: Any) -> None:
        settings = {
            "steps": 40 if quick else steps,
            "batch_size": 256,
            "learning_rate": 3e-3,
            "warmup_steps": 5 if quick else 50,
            "log_every": 20 if quick else 50,
            "checkpoint_every": 100,
            "threads": 1,
            **training,
        }
        found[name] = KeptFlow(name, theory, {"kind": "interpolating", **flow}, settings)

    for seed in SEEDS:
        for mixture, theory in MIXTURES.items():
            base = {"base_width": BASE_WIDTHS[mixture], "base_power": 2.0, "residual_spread": 0.0}
            for path in PATHS[mixture]:
                flow = {**base, "interpolation": {"kind": path}, "residual_times": 8}
                steps = 3000 if path == "learned" and mixture == "two" else 2000
                add(mixture_name(mixture, path, seed), theory, flow, steps, objective="continuity", seed=seed)
            # Through the solver, with what the logarithm of its determinant costs least; drawn from with the exact one.
            flow = {**base, "checkpointed": False}
            add(mixture_name(mixture, "reverse", seed), theory, flow, 600, objective="reverse_kl", seed=seed)
        for sites, mass in WELLS:
            theory = {"name": "double_well", "n_sites": sites, "extent": EXTENT, "mass": mass, "coupling": 1.0}
            common: dict[str, Any] = {
                "base_width": 1.0,
                "base_power": 4.0,
                "residual_times": 8,
                "residual_spread": SPREAD,
                # The exact log-determinant where it is cheap enough.
                "integrator": "midpoint" if sites <= 16 else "rk4_trace",
                "steps": 3 if quick else 10 if sites <= 16 else 20,
            }
            if sites > 16:
                # As many steps as production of the others takes; trajectories are most of what a training costs.
                common["trajectory_steps"] = 10
            even = {**common, **_networks(min(sites // 2, 8)), "z2": True}
            # Odd velocities take the field and its mirror image: half the batch for the same cost.
            half = {"objective": "continuity", "batch_size": 128, "seed": seed}
            add(well_name(sites, mass, "learned", seed), theory, even, 1500, **half)
            if (sites, mass) == COMPARED:
                along = {**even, "residual_spread": 0.0}
                add(well_name(sites, mass, "along", seed), theory, along, 1500, **half)
                uneven = {**even, "z2": False}
                add(well_name(sites, mass, "uneven", seed), theory, uneven, 1500, objective="continuity", seed=seed)
                # The map of `EXACT_REVERSE`, with the integral of the divergence: what costs least through a solver.
                backward = {**even, "integrator": "rk4_trace", "checkpointed": False}
                half = {"objective": "reverse_kl", "batch_size": 128, "seed": seed}
                add(well_name(sites, mass, "reverse", seed), theory, backward, 500, **half)
    return found


def recast(training: KeptFlow, folder: Path, known: Mapping[str, KeptFlow], integrator: str, steps: int) -> KeptFlow:
    """Return a training whose flow file has the same weights, and other steps from the base to the target.

    Nothing is trained anew: the continuity equation is trained on trajectories with steps of their own.

    Parameters
    ----------
    training
        The training, made if it is not there.
    folder
        Where flows are kept.
    known
        The trainings by name.
    integrator, steps
        The other steps.
    """
    training.make(folder, known)
    changed = {"integrator": integrator, "steps": steps}
    made = replace(training, name=f"{training.name}_{integrator}_{steps}", flow={**training.flow, **changed})
    trained, saved = load_flow(folder / f"{training.name}.safetensors")
    flow = build_flow({**saved.flow, **changed}, saved.theory)
    flow.load_state_dict(trained.state_dict())
    save_flow(folder / f"{made.name}.safetensors", flow, saved.training)
    return made


if __name__ == "__main__":
    train_kept(
        __doc__ or "",
        lambda quick: interpolating_flows(quick=quick),
        lambda given, quick: folder_of(given, quick=quick),
    )
