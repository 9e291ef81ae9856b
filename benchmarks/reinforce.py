"""What REINFORCE saves and what it costs: time, memory, noise and stability of a training step, Schwinger model.

Run from the checkout: ``python -m benchmarks.reinforce [--quick] [--json PATH] [--work DIR] [--figures DIR]``. Every
measurement is kept in a file of the folder (by default runs/reinforce), so that the command is interrupted and repeated
at will; delete a file to measure anew. All of it takes about an hour on one core.

Compared with: Białas, Korcyl, Stebel, arXiv:2308.13294 (REINFORCE up to ten times as fast as the reparametrisation trick
with up to 30 % less memory; GPU), and with what the authors' code does on a core like this (see docs/reinforce.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import torch

from benchmarks.claims import Claim, parser, write_claims
from benchmarks.ising import show
from benchmarks.reinforce_gradients import BATCH as NOISE_BATCH
from benchmarks.reinforce_gradients import ESTIMATORS, Noise, measure_noise, repeats_of, subjects
from benchmarks.reinforce_precision import DISTANCES, METHODS, Failure, Tail, near_zero_modes, quenched, tails
from benchmarks.reinforce_steps import (
    BATCH,
    Case,
    Memory,
    Seconds,
    cases,
    measure_memory,
    measure_micro,
    measure_seconds,
)
from flowmc_analysis.tables import Table

matplotlib.use("Agg")

from matplotlib import pyplot as plt

EXTENTS = {"float32": (4, 8, 12, 16), "float64": (4, 8)}
# With --larger: hours on a shared core.
LARGER = {"float32": (4, 8, 12, 16, 20, 24), "float64": (4, 8, 12, 16)}
# The extent of the targets.
JUDGED = 16
RE, RT, PATH = Case("reinforce", "even_odd"), Case("reverse_kl", "even_odd"), Case("path_gradient", "even_odd")
PARTS = ("draw", "log q", "networks, backward", "action", "action, backward")
KAPPAS = (0.276, 0.3)

Key = tuple[int, str]
Memories = dict[tuple[int, str, Case], Memory]


def remembered(path: Path, measure: Callable[[], list[Any]]) -> list[dict[str, Any]]:
    """Return measurements as plain data, from a file if they were made before."""
    if not path.is_file():
        path.write_text(json.dumps([asdict(one) for one in measure()]))
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def interval(values: Sequence[float]) -> str:
    """Return smallest and largest."""
    return f"{min(values):.3g} to {max(values):.3g}"


def time_table(times: dict[Key, list[Seconds]], dtype: str) -> Table:
    """Tabulate the seconds of steps and of their parts."""
    rows = []
    for (extent, kind), measured in times.items():
        for one in measured if kind == dtype else ():
            parts = [f"{median(one.parts[part]):.3f}" if part in one.parts else "" for part in PARTS]
            rows.append((str(extent), one.case.label, f"{median(one.total):.3f}", interval(one.total), *parts))
    note = f"Batch {BATCH}, one thread, seconds of processor time, medians; the parts are medians of their own."
    return Table(f"Seconds of a step, {dtype}", ("L", "case", "step", "range", *PARTS), tuple(rows), note)


def memory_table(memories: Memories) -> Table:
    """Tabulate the memory of steps."""
    rows = []
    for (extent, dtype, case), one in memories.items():
        reference = memories[extent, dtype, RE if case.objective != "reverse_kl_autograd" else _reinforce(case)]
        ratio = f"{reference.resident / one.resident:.2f}" if case.objective != "reinforce" else ""
        rows.append((dtype, str(extent), case.label, f"{one.resident:.0f}", f"{one.saved:.0f}", ratio))
    note = (
        f"Batch {BATCH}. Largest resident memory during a step beyond that before it, every large tensor in pages of its "
        "own, gradients of the weights included; and what the graph keeps. RE/this: same assembly, by resident memory."
    )
    return Table(
        "Memory of a step, MB", ("type", "L", "case", "largest", "kept in the graph", "RE/this"), (*rows,), note
    )


def micro_table(measured: dict[int, list[Memory]]) -> Table:
    """Tabulate micro-batches."""
    rows = tuple(
        (str(extent), one.case.label, str(one.batch), str(one.micro_batch or one.batch), f"{one.resident:.0f}")
        for extent, found in measured.items()
        for one in found
    )
    columns = ("L", "case", "batch", "micro-batch", "largest, MB")
    return Table("Micro-batches, float32", columns, rows)


def noise_table(noises: Sequence[Noise]) -> Table:
    """Tabulate the noise of gradients."""
    rows = []
    for one in noises:
        for dtype in ("float64", "float32"):
            cells = [
                f"{one.variance[f'{name} {dtype}']:.3g} ± {one.variance_error[f'{name} {dtype}']:.1g}"
                for name in ESTIMATORS
            ]
            wide = dtype == "float64"
            where = (one.subject.theory, str(one.subject.steps), f"{one.ess:.2f}", f"{one.gradient:.2g}")
            p_values = [f"{p:.2g}" for p in one.p_values.values()]
            rows.append((*(where if wide else ("", "", "", "")), dtype, *cells, *(p_values if wide else [""] * 4)))
    names = [f"p({name})" for name in noises[0].p_values]
    note = (
        f"Trace of the covariance of the gradient of a batch of {NOISE_BATCH}; p: probability of a largest deviation "
        "between the mean gradients of two estimators, over all weights, as large as seen."
    )
    columns = ("theory", "steps", "ESS", "gradient²", "type", "RE", "RT", "path", *names)
    return Table("Noise of the gradient, 4 × 4", columns, tuple(rows), note)


def failure_table(failures: Sequence[Failure]) -> Table:
    """Tabulate single precision near zero modes."""
    rows = tuple(
        (
            one.where,
            f"{one.sigma:.0e}",
            one.method,
            f"{one.size:.3g}",
            f"{one.relative_error:.0e}",
            f"{one.typical_error:.0e}",
            f"{one.non_finite:.3f}",
            f"{one.wrong:.3f}",
            f"{one.wrong_typical:.3f}",
        )
        for one in failures
    )
    sizes = ("fields", "σ_min", "method", "size/typical", "error/size", "error/typical")
    columns = (*sizes, "not finite", "error > 10 % of size", "error > 10 % of typical")
    note = "Medians over fields, then fractions of them; a field's weight R − b for RE, its force for RT."
    return Table("Single precision near zero modes, 8 × 8", columns, rows, note)


def tail_table(found: Sequence[Tail]) -> Table:
    """Tabulate tails."""
    rows = tuple(
        (
            f"{one.kappa:g}",
            str(one.n_fields),
            f"{one.negative:.3f}",
            f"{one.weight:.2g} ± {one.weight / one.n_largest**0.5:.1g}",
            f"{one.force:.2g} ± {one.force / one.n_largest**0.5:.1g}",
            f"{one.largest_weight:.3g}",
            f"{one.largest_force:.3g}",
        )
        for one in found
    )
    exponents = ("κ", "fields", "det D < 0", "exponent, weight (RE)", "exponent, force (RT)")
    columns = (*exponents, "largest weight/median", "largest force/median")
    return Table("Tails over quenched fields, 8 × 8, β = 2, double precision", columns, rows)


def draw_time(times: dict[Key, list[Seconds]], path: Path) -> None:
    """Draw the time of a step against L, and its parts on the largest lattice that has all cases."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    single = {extent: measured for (extent, dtype), measured in times.items() if dtype == "float32"}
    styles = {"reinforce": "o-", "reverse_kl": "s-", "reverse_kl_autograd": "s--", "path_gradient": "^-"}
    colors = {"even_odd": "tab:blue", "full": "tab:orange", "site_by_site": "tab:red"}
    for case in cases(min(single)):
        points = [(extent, one.total) for extent, measured in single.items() for one in measured if one.case == case]
        extents, middle = [extent for extent, _ in points], [median(total) for _, total in points]
        low = [m - min(total) for m, (_, total) in zip(middle, points, strict=True)]
        high = [max(total) - m for m, (_, total) in zip(middle, points, strict=True)]
        color = "tab:green" if case.objective in ("reverse_kl", "path_gradient") else colors[case.assembly]
        style = styles[case.objective]
        left.errorbar(extents, middle, [low, high], fmt=style, color=color, capsize=2, ms=4, label=case.label)
    left.set(xscale="log", yscale="log", xlabel="L", ylabel="seconds of a step, batch 8, float32")
    left.set_xticks(list(single), [str(extent) for extent in single])
    left.minorticks_off()
    left.legend(fontsize=8)
    extent = max(extent for extent in single if len(cases(extent)) == len(cases(min(single))))
    for row, one in enumerate(reversed(single[extent])):
        start = 0.0
        for part, color in zip(PARTS, ("#9ecae1", "#6baed6", "#2171b5", "#fdae6b", "#d94801"), strict=True):
            width = median(one.parts[part]) if part in one.parts else 0.0
            right.barh(row, width, left=start, color=color, label=part if row == 0 else None)
            start += width
    right.set_yticks(range(len(single[extent])), [one.case.label for one in reversed(single[extent])], fontsize=8)
    right.set(xlabel=f"seconds, L = {extent}")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_memory(memories: Memories, path: Path) -> None:
    """Draw the memory of a step against L."""
    figure, axes = plt.subplots(figsize=(5.5, 4.2), layout="constrained")
    extents = sorted({extent for extent, dtype, _ in memories if dtype == "float32"})
    styles = {"even_odd": "-", "full": "--", "site_by_site": ":"}
    colors = {
        "reinforce": "tab:blue",
        "reverse_kl": "tab:green",
        "reverse_kl_autograd": "tab:red",
        "path_gradient": "tab:purple",
    }
    for case in cases(min(extents)):
        mine = [(extent, memories[extent, "float32", case].resident) for extent in extents if case in cases(extent)]
        style, color = styles[case.assembly], colors[case.objective]
        axes.plot(*zip(*mine, strict=True), f"o{style}", color=color, ms=4, label=case.label)
    axes.set(xscale="log", yscale="log", xlabel="L", ylabel="largest memory of a step, MB, batch 8, float32")
    axes.set_xticks(extents, [str(extent) for extent in extents])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _reinforce(case: Case) -> Case:
    """Return REINFORCE with the same assembly."""
    return Case("reinforce", case.assembly)


def _claim(name: str, value: float, spread: str, bound: str, limit: float, unit: str, extent: int) -> Claim:
    """Compare with a target "<=" or ">=", which is one at the judged extent only."""
    judged = extent == JUDGED
    holds = not judged or (value <= limit if bound == "<=" else value >= limit)
    target = f"{bound} {limit:g}" if judged else "informative"
    return Claim(f"{name}, L = {extent}", value, spread, target, unit, holds)


def cost_claims(times: dict[Key, list[Seconds]], memories: Memories) -> list[Claim]:
    """Compare time and memory with their targets, on the largest lattice up to that of the targets."""
    extent = max(extent for extent, _ in times if extent <= JUDGED)
    known = {one.case: one for one in times[extent, "float32"]}
    step, fermions = known[RE], known[RE].parts["action"]
    wall = f"{interval(step.total)}; {median(step.wall):.2f} s by the clock of a busy machine"
    claims = [
        _claim("RE, seconds of a step", median(step.total), wall, "<=", 0.9, "s", extent),
        _claim("RE, seconds of the action", median(fermions), interval(fermions), "<=", 0.1, "s", extent),
    ]
    slow = Case("reverse_kl_autograd", "site_by_site")
    for case in (slow, Case("reverse_kl_autograd", "full"), Case("reverse_kl_autograd", "even_odd"), RT, PATH):
        ratios = [a / b for a, b in zip(known[case].total, known[_reinforce(case)].total, strict=True)]
        name = f"time, {case.label} over {_reinforce(case).label}"
        if case == slow:
            # The public code's ratio on such a core.
            claims.append(_claim(name, median(ratios), interval(ratios), ">=", 3.0, "", extent))
        else:
            claims.append(Claim(f"{name}, L = {extent}", median(ratios), interval(ratios), "informative", "", True))
    for case in (slow, Case("reverse_kl_autograd", "full"), Case("reverse_kl_autograd", "even_odd"), RT):
        mine, other = memories[extent, "float32", _reinforce(case)], memories[extent, "float32", case]
        name = f"memory, {_reinforce(case).label} over {case.label}"
        spread = f"{mine.resident:.0f} and {other.resident:.0f} MB"
        claims.append(_claim(name, mine.resident / other.resident, spread, "<=", 0.7, "", extent))
    return claims


def noise_claims(noises: Sequence[Noise], *, quick: bool) -> list[Claim]:
    """State the agreement of means, judged together, and ratios of variances; too few batches are not judged."""
    p_values = {
        f"{name}, {one.subject.theory} after {one.subject.steps} steps": p
        for one in noises
        for name, p in one.p_values.items()
    }
    worst = min(p_values, key=lambda name: p_values[name])
    limit = 1e-3 / len(p_values)
    smallest = p_values[worst]
    detail = f"{worst}, of {len(p_values)}"
    name = "smallest p of equal mean gradients"
    target = "informative" if quick else f">= {limit:.1e}"
    claims = [Claim(name, smallest, detail, target, "", quick or smallest >= limit)]
    for one in noises:
        for other in ("reinforce", "path_gradient"):
            keys = f"{other} float64", "reverse_kl float64"
            value = one.variance[keys[0]] / one.variance[keys[1]]
            relative = sum((one.variance_error[key] / one.variance[key]) ** 2 for key in keys) ** 0.5
            short = {"reinforce": "RE", "path_gradient": "path"}[other]
            name = f"variance, {short} over RT, {one.subject.theory} after {one.subject.steps} steps"
            claims.append(Claim(name, value, f"± {relative * value:.1g}", "informative", "", holds=True))
    return claims


def stability_claims(failures: Sequence[Failure], found: Sequence[Tail]) -> list[Claim]:
    """State where single precision fails."""
    claims = []
    for method in METHODS:
        mine = [one for one in failures if one.method == method and "κ*" in one.where]
        # From far to near, up to the first distance that fails; 1 if the farthest does.
        pairs = takewhile(lambda pair: pair[1].wrong_typical <= 0.01, zip(DISTANCES, mine, strict=True))
        good = [1.0, *(away for away, _ in pairs)]
        name = f"nearest zero mode with errors below 10 % of a typical contribution, float32, {method}"
        claims.append(Claim(name, good[-1], "1 − κ/κ*, powers of ten", "informative", "", holds=True))
        for what, rates in (("not finite", [one.non_finite for one in mine]), ("wrong", [one.wrong for one in mine])):
            name = f"largest fraction of gradients {what}, float32, {method}"
            detail = f"{mine[0].n_fields} fields, 1 − κ/κ* from 0.1 to 1e-7"
            claims.append(Claim(name, max(rates), detail, "informative", "", holds=True))
    for one in found:
        error = one.force / one.n_largest**0.5
        name = f"exponent of the force's tail, quenched, κ = {one.kappa:g}"
        claims.append(
            Claim(
                name,
                one.force,
                f"± {error:.1g}",
                "1, within 3 errors",
                "",
                abs(one.force - 1) < 3 * error,
            )
        )
    return claims


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__ or "")
    options.add_argument(
        "--work", type=Path, help="where measurements are kept; runs/reinforce, or runs/reinforce_quick"
    )
    options.add_argument("--figures", type=Path, help="where the two figures are drawn; the folder by default")
    options.add_argument("--larger", action="store_true", help="also L = 20 and 24, and float64 up to L = 16")
    arguments = options.parse_args()
    quick = arguments.quick
    folder = arguments.work or Path("runs/reinforce_quick" if quick else "runs/reinforce")
    figures = arguments.figures or folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    extents = {"float32": (8,)} if quick else LARGER if arguments.larger else EXTENTS
    wanted = [(extent, dtype) for dtype, known in extents.items() for extent in known]

    times: dict[Key, list[Seconds]] = {}
    for extent, dtype in wanted:
        times[extent, dtype] = measure_seconds(extent, dtype, 2 if quick else 7, folder)
        print(f"L = {extent}, {dtype}: timed", flush=True)
    memories = {
        (extent, dtype, one.case): one for extent, dtype in wanted for one in measure_memory(extent, dtype, folder)
    }
    micro = {extent: measure_micro(extent, "float32", folder) for extent in ((8, 16) if arguments.larger else (8,))}
    for dtype in extents:
        show(time_table(times, dtype))
    show(memory_table(memories))
    show(micro_table(micro))

    noises = [measure_noise(one, folder, repeats=repeats_of(quick=quick)) for one in subjects(quick=quick)]
    show(noise_table(noises))

    n = 8 if quick else 200
    kept = remembered(folder / f"near_{n}.json", lambda: [*quenched(KAPPAS[0], 10 * n), *near_zero_modes(n)])
    failures = [Failure(**one) for one in kept]
    show(failure_table(failures))
    n = 1024 if quick else 65536
    found = [Tail(**one) for one in remembered(folder / f"tails_{n}.json", lambda: [tails(k, n) for k in KAPPAS])]
    show(tail_table(found))

    figures.mkdir(parents=True, exist_ok=True)
    draw_time(times, figures / "reinforce_time.png")
    draw_memory(memories, figures / "reinforce_memory.png")
    print(f"\nfigures: {figures / 'reinforce_time.png'}, {figures / 'reinforce_memory.png'}\n")
    claims = cost_claims(times, memories) + noise_claims(noises, quick=quick) + stability_claims(failures, found)
    write_claims(claims, arguments.json)
    raise SystemExit(0 if all(claim.holds for claim in claims) else 1)


if __name__ == "__main__":
    main()
