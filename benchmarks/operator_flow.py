"""Operator flows for phi^4: trained on small lattices, and run on larger ones as they are.

Run from the checkout: ``python -m benchmarks.operator_flow [--quick] [--json PATH] [--folder DIR] [--figures DIR]``.
Flows, weights and ensembles are kept in the folder (by default runs/operator_flow), so that the command is interrupted
and repeated at will; `benchmarks.operator_flow_trainings` trains single flows beforehand. All of it takes some three
hours on two cores.

The theory is phi^4 in two dimensions with m^2 = -4, at lambda = 6.008, along the line of m_p L = 4 of arXiv:1904.12072,
and at the critical point, lambda = 4.25. Compared with: Fourier-accelerated HMC, ln Z by integration over the hopping
parameter, a convolutional coupling flow, and training from scratch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

from benchmarks.claims import Claim, parser, write_claims
from benchmarks.ising import show
from benchmarks.kept import KeptFlow
from benchmarks.measuring import INFORMATIVE
from benchmarks.operator_flow_chains import EXTENT, chain_claims, chain_tables, make_chains
from benchmarks.operator_flow_cost import cost_claims, cost_parts, scaling_table, split_table
from benchmarks.operator_flow_figures import draw_gain, draw_scaling, draw_sizes
from benchmarks.operator_flow_gain import gain_claims, gain_table, measure_gain
from benchmarks.operator_flow_quality import EFFECTIVE, Point, Quality, Reference, make_reference, measure_quality
from benchmarks.operator_flow_trainings import (
    CRITICAL,
    E_LINE,
    KERNELS,
    LAM,
    OBJECTIVES,
    SEEDS,
    TARGETS,
    TRAINED,
    folder_of,
    operator_flows,
)
from flowmc.flows import SavedFlow
from flowmc_analysis.tables import ABSENT, Table

SHAPES = ((6, 6), (8, 8), (10, 10), (12, 12), (8, 16), (16, 16), (20, 20))
LARGEST_Z = 4.0
LEAST_ESS = {6: 0.8, 8: 0.8, 12: 0.5}
"""Targets of the reverse ESS, by extent."""
MINUTES = 30.0
GROWTH = 2.0
"""Largest ratio of Var(log w) / V at twice the largest extent of the training to that there."""
CRITICAL_EXTENTS = (8, 12, 16)
E_TRAINED = (6, 8, 10)
INTEGRATED = (Point((6, 6), E_LINE[6]), Point((8, 8), CRITICAL), Point((16, 16), CRITICAL))
"""Where ln Z is integrated to besides λ = 6.008."""

Measured = Mapping[str, Sequence[Quality]]


class Study:
    """The flows and references of the study, made when they are asked for.

    Parameters
    ----------
    folder
        Where they are kept.
    quick
        Whether this is a smoke run.
    """

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.known: Mapping[str, KeptFlow] = operator_flows(quick=quick)
        self._references: dict[Point, Reference] = {}

    def reference(self, point: Point) -> Reference:
        """Return what is known of a lattice without a flow."""
        if point not in self._references:
            # Of a smoke run only where the chains need it: every point of an integral is compiled anew.
            integrate = point.shape == (EXTENT, EXTENT) if self.quick else point.lam == LAM or point in INTEGRATED
            self._references[point] = make_reference(point, self.folder, integrate=integrate, quick=self.quick)
        return self._references[point]

    def measure(self, names: Sequence[str], points: Sequence[Point]) -> dict[str, list[Quality]]:
        """Weigh flows, trained if they are not there, on lattices."""
        found = {}
        for name in names:
            self.known[name].make(self.folder, self.known)
            found[name] = [
                measure_quality(name, point, self.folder, self.reference(point), quick=self.quick) for point in points
            ]
        return found

    def minutes(self, name: str) -> float:
        """Return the minutes that a flow's training took, with those that it started from."""
        return float(SavedFlow.read(self.folder / f"{name}.safetensors").training["seconds"]) / 60


def _cell(value: float, *, small: bool) -> str:
    if isnan(value):
        return ABSENT
    return f"{value:.2e}" if small else f"{value:.3f}"


def size_tables(title: str, study: Study, measured: Measured) -> list[Table]:
    """Tabulate ESS, forward ESS and the spread of the weights: flows by sizes."""
    sizes = [quality.point.size for quality in next(iter(measured.values()))]
    tables = []
    for what, text in (("ess", "reverse ESS"), ("ess_forward", "forward ESS"), ("variance_per_site", "Var(log w) / V")):
        rows = [
            (
                name,
                *(_cell(getattr(quality, what), small=what == "variance_per_site") for quality in found),
                f"{study.minutes(name):.1f}",
            )
            for name, found in measured.items()
        ]
        columns = ("flow", *(f"L = {size}" for size in sizes), "minutes of training")
        tables.append(Table(f"{title}: {text}", columns, tuple(rows)))
    return tables


def physics_table(title: str, study: Study, measured: Measured) -> tuple[Table, list[Claim]]:
    """Tabulate the largest z-score of observables and ln Z where there are enough effective draws."""
    rows, claims = [], []
    for name, found in measured.items():
        cells, worst = [], []
        for quality in found:
            if quality.effective < (50 if study.quick else EFFECTIVE):
                cells.append(ABSENT)
                continue
            scores = quality.scores(study.reference(quality.point))
            largest = max(scores, key=lambda key: abs(scores[key]))
            cells.append(f"{scores[largest]:+.1f} ({largest})")
            worst.append(abs(scores[largest]))
        rows.append((name, *cells))
        if worst:
            value = max(worst)
            spread = f"observables and ln Z on {len(worst)} lattices"
            claims.append(Claim(f"largest |z|, {name}", value, spread, f"< {LARGEST_Z:g}", "", value < LARGEST_Z))
    sizes = [quality.point.size for quality in next(iter(measured.values()))]
    note = (
        "Of φ², φ⁴, |m|, the susceptibility and ln Z, reweighted, against Fourier-accelerated HMC and integration over "
        f"the hopping parameter; {ABSENT} where fewer than {EFFECTIVE} effective draws carry it."
    )
    return Table(f"{title}: largest z-score", ("flow", *(f"L = {size}" for size in sizes)), tuple(rows), note), claims


def log_z_table(study: Study, measured: Measured, names: Sequence[str]) -> Table:
    """Tabulate ln Z of flows beside that by integration."""
    points = [quality.point for quality in next(iter(measured.values()))]
    rows = []
    for number, point in enumerate(points):
        known = study.reference(point).log_z
        cells = [str(measured[name][number].log_z) for name in names]
        rows.append((point.size, *cells, "" if known is None else f"{known.value:.4f} ± {known.error:.1g}"))
    return Table("ln Z", ("L", *names, "integration"), tuple(rows), "Errors of one standard deviation.")


def transfer_claims(study: Study, measured: Measured) -> list[Claim]:
    """Hold the flows against what they must reach."""
    claims = []
    for name, found in measured.items():
        main = name.startswith("local_")
        at = {quality.point.shape: quality for quality in found}
        if main:
            minutes = study.minutes(name)
            claims.append(
                Claim(f"minutes of training, {name}", minutes, "", f"<= {MINUTES:g}", "min", minutes <= MINUTES)
            )
        for extent in (*TRAINED, 10, 12, 16, 20):
            quality = at[extent, extent]
            least = LEAST_ESS.get(extent) if main else None
            target, holds = (INFORMATIVE, True) if least is None else (f">= {least:g}", quality.ess >= least)
            detail = f"forward {quality.ess_forward:.3f}, Var(log w)/V {quality.variance_per_site:.2e}"
            claims.append(Claim(f"reverse ESS, {name}, L = {extent}", quality.ess, detail, target, "", holds))
        trained, twice = (at[extent, extent].variance_per_site for extent in (max(TRAINED), 2 * max(TRAINED)))
        target, holds = (f"<= {GROWTH:g}", twice <= GROWTH * trained) if main else (INFORMATIVE, True)
        title = f"Var(log w)/V at L = {2 * max(TRAINED)} over that at {max(TRAINED)}, {name}"
        claims.append(Claim(title, twice / trained, f"{twice:.2e} over {trained:.2e}", target, "", holds))
    return claims


def informative(measured: Measured) -> list[Claim]:
    """Return the reverse ESS of flows on lattices, without a target."""
    return [
        Claim(
            f"reverse ESS, {name}, L = {quality.point.size}, lambda = {quality.point.lam:g}",
            quality.ess,
            f"forward {quality.ess_forward:.3f}, Var(log w)/V {quality.variance_per_site:.2e}",
            INFORMATIVE,
            "",
            holds=True,
        )
        for name, found in measured.items()
        for quality in found
    ]


def main() -> None:
    """Run the benchmark."""
    options: argparse.ArgumentParser = parser(__doc__ or "")
    options.add_argument("--folder", type=Path, help="where flows, weights and ensembles are kept")
    options.add_argument("--figures", type=Path, help="where the figures are drawn; the folder by default")
    arguments = options.parse_args()
    study = Study(folder_of(arguments.folder, quick=arguments.quick), quick=arguments.quick)
    figures = arguments.figures or study.folder
    figures.mkdir(parents=True, exist_ok=True)

    main_flows = [f"local_{seed}" for seed in SEEDS]
    families = [f"{family}_0" for family in [*KERNELS][1:]]
    sizes = study.measure([*main_flows, *families, "coupling_0"], [Point(shape, LAM) for shape in SHAPES])
    for table in size_tables("Trained on L = 6 and 8 only (coupling_0 on L = 8)", study, sizes):
        show(table)
    table, claims = physics_table("Trained on L = 6 and 8 only", study, sizes)
    show(table)
    show(log_z_table(study, sizes, [*main_flows, "coupling_0"]))
    claims = transfer_claims(study, sizes) + claims
    shown = {"local": "local_0", **{family: f"{family}_0" for family in [*KERNELS][1:]}, "coupling": "coupling_0"}
    draw_sizes(
        {label: sizes[name] for label, name in shown.items()},
        figures / "operator_sizes.png",
        title="λ = 6.008",
        trained=TRAINED,
    )

    for extent in TARGETS:
        names = [f"{kind}_{extent}_{seed}" for kind in ("fine", "scratch") for seed in SEEDS]
        both = study.measure(names, [Point((extent, extent), LAM)])
        for table in size_tables(f"Trained on L = {extent}", study, both):
            show(table)
        table, more = physics_table(f"Trained on L = {extent}", study, both)
        show(table)
        claims += informative(both) + more
    curves = measure_gain(study.known, study.folder)
    show(gain_table(curves))
    claims += gain_claims(curves)
    draw_gain(curves, figures / "operator_gain.png")

    line = [Point((extent, extent), lam) for extent, lam in E_LINE.items()]
    along = study.measure(["line"], line)
    for table in size_tables("m_p L = 4, trained on L = 6, 8 and 10", study, along):
        show(table)
    table, more = physics_table("m_p L = 4", study, along)
    show(table)
    claims += informative(along) + more
    draw_sizes(along, figures / "operator_line.png", title="m_p L = 4", trained=E_TRAINED)

    small = study.measure([f"objective_{name}" for name in OBJECTIVES], [Point((6, 6), LAM), Point((8, 8), LAM)])
    for table in size_tables("Objectives, trained on L = 6", study, small):
        show(table)
    claims += informative(small)

    critical = study.measure(
        ["critical_8", "critical_16"], [Point((extent, extent), CRITICAL) for extent in CRITICAL_EXTENTS]
    )
    for table in size_tables("Critical point, λ = 4.25", study, critical):
        show(table)
    table, more = physics_table("Critical point, λ = 4.25", study, critical)
    show(table)
    claims += informative(critical) + more

    log_z = study.reference(Point((EXTENT, EXTENT), LAM)).log_z
    assert log_z is not None
    chains = make_chains(study.known, study.folder, quick=study.quick)
    tables, worst = chain_tables(chains, log_z)
    for table in tables:
        show(table)
    claims += chain_claims(chains, worst)

    splits, scalings = cost_parts(quick=study.quick)
    show(split_table(splits))
    show(scaling_table(scalings))
    claims += cost_claims(splits, scalings)
    draw_scaling(scalings, figures / "operator_scaling.png")

    print(f"\nfigures: {', '.join(str(path) for path in sorted(figures.glob('operator_*.png')))}\n")
    write_claims(claims, arguments.json)
    raise SystemExit(0 if all(claim.holds for claim in claims) else 1)


if __name__ == "__main__":
    main()
