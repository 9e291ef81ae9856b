"""Flows along learned interpolations: modes of mixtures, exact values of the double well, integrators and chains.

Run from the checkout: ``python -m benchmarks.interpolations [--quick] [--json PATH] [--folder DIR] [--figures DIR]``.
Flows, their weights and ensembles are kept in the folder (by default runs/interpolations), so that the command is
interrupted and repeated at will; `benchmarks.interpolations_flows` trains single flows beforehand. With ``--finished``
nothing is trained, and flows that are not there are left out.

The mixtures and the double well are those of Máté and Fleuret, arXiv:2301.07388. Each flow is held against what is known
exactly of its target: ln Z, weights of modes, moments and correlator, and against exact, independent samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.claims import Claim, parser, write_claims
from benchmarks.interpolations_chains import CHAIN_FLOWS, chain_parts
from benchmarks.interpolations_figures import draw_densities, draw_mixture_paths, draw_well_paths, draw_wells
from benchmarks.interpolations_flows import (
    EXACT_REVERSE,
    MIXTURES,
    PATHS,
    SEEDS,
    WELL_METHODS,
    WELLS,
    folder_of,
    interpolating_flows,
    mixture_name,
    recast,
    well_name,
)
from benchmarks.interpolations_integrators import INTEGRATOR_FLOWS, integrator_parts
from benchmarks.interpolations_mixtures import MixtureQuality, mixture_claims, mixture_tables
from benchmarks.interpolations_quality import Weighed, exact_samples, weigh
from benchmarks.interpolations_wells import WellQuality, well_claims, well_tables
from benchmarks.ising import show
from benchmarks.kept import KeptFlow
from flowmc.flows import SavedFlow
from flowmc_analysis.tables import Table

DRAWS, WELL_DRAWS, WELL_SAMPLES = 8192, 4096, 1024
"""Draws of a flow and exact samples for a mixture, and both for a double well, whose log q takes longer."""
QUICK_DRAWS, QUICK_SAMPLES = 256, 64
DRAWN_SEED = SEEDS[0]
"""The seed of which pictures are drawn."""


def finished_only(known: Mapping[str, KeptFlow], folder: Path) -> dict[str, KeptFlow]:
    """Return the trainings that are finished, and print how many are not."""
    found = {name: training for name, training in known.items() if (folder / f"{name}.safetensors").is_file()}
    print(f"{len(found)} of {len(known)} flows are finished: {', '.join(found)}")
    return found


def weigh_seeds(
    names: list[str],
    known: Mapping[str, KeptFlow],
    folder: Path,
    n: int,
    samples: int,
    others: tuple[str, int] | None = None,
) -> list[Weighed]:
    """Return draws and weights of the flows of some names, of which others than known are left out.

    Parameters
    ----------
    names, known, folder
        Which; the trainings by name; where they are kept.
    n, samples
        Draws and exact samples.
    others
        Integrator and steps other than those of the training.
    """
    found = []
    for name in names:
        if name in known:
            known[name].make(folder, known)
            drawn = recast(known[name], folder, known, *others) if others else known[name]
            path = folder / f"{drawn.name}.safetensors"
            found.append(weigh(path, n, exact_samples(SavedFlow.read(path).theory, samples)))
    return found


def measure_mixtures(
    known: Mapping[str, KeptFlow], folder: Path, *, quick: bool
) -> dict[tuple[str, str], list[MixtureQuality]]:
    """Measure the flows of mixtures, by mixture and method."""
    found, n, seeds = {}, QUICK_DRAWS if quick else DRAWS, SEEDS[:1] if quick else SEEDS
    for mixture in MIXTURES:
        for method in (*PATHS[mixture], "reverse"):
            names = [mixture_name(mixture, method, seed) for seed in seeds]
            found[mixture, method] = [MixtureQuality.of(one) for one in weigh_seeds(names, known, folder, n, n)]
    return {key: qualities for key, qualities in found.items() if qualities}


def measure_wells(
    known: Mapping[str, KeptFlow], folder: Path, *, quick: bool
) -> dict[tuple[int, float, str], list[WellQuality]]:
    """Measure the flows of double wells, by sites, mass and method."""
    found, seeds = {}, SEEDS[:1] if quick else SEEDS
    n, samples = (QUICK_DRAWS, QUICK_SAMPLES) if quick else (WELL_DRAWS, WELL_SAMPLES)
    for sites, mass in WELLS[:3] if quick else WELLS:
        for method in WELL_METHODS:
            names = [well_name(sites, mass, method, seed) for seed in seeds]
            others = EXACT_REVERSE if method == "reverse" else None
            weighed = weigh_seeds(names, known, folder, n, samples, others)
            found[sites, mass, method] = [WellQuality.of(one) for one in weighed]
    return {key: qualities for key, qualities in found.items() if qualities}


def draw_figures(
    known: Mapping[str, KeptFlow],
    wells: Mapping[tuple[int, float, str], list[WellQuality]],
    folder: Path,
    figures: Path,
    *,
    quick: bool,
) -> list[Path]:
    """Draw what there is to draw, and return where."""
    figures.mkdir(parents=True, exist_ok=True)
    drawn, n = [], 1000 if quick else 10000

    def file(name: str) -> Path:
        return folder / f"{name}.safetensors"

    ways = {}
    for mixture in MIXTURES:
        names = {method: mixture_name(mixture, method, DRAWN_SEED) for method in ("learned", "linear", "reverse")}
        flows = {method: file(name) for method, name in names.items() if name in known}
        if flows:
            ways[mixture] = flows
            drawn.append(figures / f"interpolations_{mixture}.png")
            draw_densities(flows, drawn[-1], n=n)
    if ways:
        drawn.append(figures / "interpolations_paths.png")
        draw_mixture_paths(ways, drawn[-1], n=100)
    labels = {}
    drawn_wells = {
        "m = 1.5": (1.5, "learned"),
        "m = 3": (3.0, "learned"),
        "m = 3, on trajectories only": (3.0, "along"),
        "m = 3, no Z2": (3.0, "uneven"),
    }
    for label, (mass, method) in drawn_wells.items():
        seeds = SEEDS[:1] if quick else SEEDS
        files = [file(name) for seed in seeds if (name := well_name(16, mass, method, seed)) in known]
        if (16, mass, method) in wells:
            labels[label] = files
    if labels:
        drawn.append(figures / "interpolations_well_paths.png")
        draw_well_paths(labels, drawn[-1], n=n // 4)
    chosen = {
        f"N = 16, m = {mass:g}": wells[16, mass, "learned"] for mass in (1.5, 3.0) if (16, mass, "learned") in wells
    }
    if chosen:
        drawn.append(figures / "interpolations_wells.png")
        draw_wells(chosen, drawn[-1])
    return drawn


def parts_of_others(
    known: Mapping[str, KeptFlow], folder: Path, figures: Path, *, quick: bool, finished: bool
) -> tuple[list[Table], list[Claim]]:
    """Return tables and claims on integrators and on chains; where only finished flows count, without missing ones."""
    tables: list[Table] = []
    claims: list[Claim] = []
    parts: tuple[tuple[str, tuple[str, ...], Callable[[], tuple[list[Table], list[Claim]]]], ...] = (
        ("integrators", INTEGRATOR_FLOWS, lambda: integrator_parts(known, folder, quick=quick)),
        ("chains", CHAIN_FLOWS, lambda: chain_parts(known, folder, figures, quick=quick)),
    )
    for name, needed, make in parts:
        missing = [flow for flow in needed if flow not in known]
        if finished and missing:
            print(f"{name} are left out: {', '.join(missing)} not finished")
            continue
        more_tables, more_claims = make()
        tables += more_tables
        claims += more_claims
    return tables, claims


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__ or "")
    options.add_argument("--folder", type=Path, help="where flows, weights and ensembles are kept")
    options.add_argument("--figures", type=Path, help="where the figures are drawn; the folder by default")
    options.add_argument(
        "--finished", action="store_true", help="only flows whose training is finished, instead of training the others"
    )
    arguments = options.parse_args()
    quick, folder = arguments.quick, folder_of(arguments.folder, quick=arguments.quick)
    figures = arguments.figures or folder
    known = interpolating_flows(quick=quick)
    if arguments.finished:
        known = finished_only(known, folder)
    torch.set_num_threads(1)

    mixtures = measure_mixtures(known, folder, quick=quick)
    for table in mixture_tables(mixtures):
        show(table)
    wells = measure_wells(known, folder, quick=quick)
    for table in well_tables(wells):
        show(table)
    claims = mixture_claims(mixtures, quick=quick) + well_claims(wells, quick=quick)
    drawn = draw_figures(known, wells, folder, figures, quick=quick)
    tables, more = parts_of_others(known, folder, figures, quick=quick, finished=arguments.finished)
    for table in tables:
        show(table)
    print(f"\nfigures: {', '.join(map(str, drawn))}\n")
    write_claims(claims + more, arguments.json)
    raise SystemExit(0 if all(claim.holds for claim in claims + more) else 1)


if __name__ == "__main__":
    main()
