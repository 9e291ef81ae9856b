"""The broken phase of phi^4: what flows do with two modes, whether the alarm is raised, and what helps.

Run from the checkout: ``python -m benchmarks.broken_phase [--quick] [--json PATH] [--folder DIR] [--figures DIR]``. Flows
and ensembles are kept in the folder (by default runs/broken_phase), so that the command is interrupted and repeated at
will; all of it takes about half an hour on one core. `benchmarks.broken_phase_flows` trains single flows beforehand.

The theory is phi^4 on 8 x 8 at m^2 = -4, lambda = 3.2 (arXiv:2105.12481: the phases meet near lambda = 4.25 there). HMC
does not tunnel between the modes m > 0 and m < 0, but one is the mirror image of the other, so that even observables are
right within either: HMC's configurations with their mirror images are samples of the target. ln Z is compared with
integration over the hopping parameter, which itself is compared with the exact transfer matrix on 3 x 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import hypot, inf, isfinite, log
from pathlib import Path
from typing import Any

from benchmarks.broken_phase_figures import draw_modes, draw_traces
from benchmarks.broken_phase_flows import FREE, LABELS, THEORY, broken_flows, folder_of, make_samples
from benchmarks.broken_phase_modes import BRIDGE, FlowQuality, measure_flow, target_samples
from benchmarks.claims import Claim, parser, write_claims
from benchmarks.ising import show
from benchmarks.kept import KeptEnsemble, KeptFlow
from benchmarks.signs import sign_of
from benchmarks.trivializing_reference import ReferenceLogZ, log_z_by_integration
from flowmc_analysis.ensemble import EnsembleAnalysis
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.exact import phi4_exact
from flowmc_analysis.tables import Table, format_seconds
from flowmc_analysis.unseen import TOLERATED_SHARE, unseen_states

LARGEST_Z = 4.0
EVEN = ("magnetisation_abs", "susceptibility", "binder_cumulant", "phi_squared", "action_density")
TUNNELLING = (4.0, 3.8, 3.5)
"""Further couplings at which HMC's tunnelling is counted."""
SETTINGS: dict[str, Any] = {
    "seed": 11,
    "chains": 32,
    "thermalisation": 100,
    "tuning": 80,
    "cycles_per_block": 100,
    "flow_proposals": 2,
    "target_acceptance": 0.9,
}
RUNS: Mapping[str, tuple[str, str, str]] = {
    "one mode, flow": ("reverse", "flow", "auto"),
    "one mode, hybrid from its draws": ("reverse", "hybrid", "flow"),
    "one mode, hybrid from hot starts": ("reverse", "hmc+flow", "hot"),
    "equivariant, flow": ("equivariant", "flow", "auto"),
    "equivariant, hybrid": ("equivariant", "hmc+flow", "hot"),
    "mirrored, flow": ("mirrored", "flow", "auto"),
    "mirrored, hybrid": ("mirrored", "hmc+flow", "hot"),
}
"""Ensembles with flows: the flow, the kernel and where the chains start ("hybrid" is "hmc+flow" by another name)."""


def theory_at(lam: float, extent: int = 8) -> dict[str, Any]:
    """Return the theory section at another coupling."""
    return {**THEORY, "shape": [extent, extent], "lam": lam}


def make_hmc(folder: Path, lam: float, *, quick: bool) -> EnsembleAnalysis:
    """Make the ensemble of HMC at a coupling."""
    sampling = {**SETTINGS, "cycles": 200 if quick else 4000, "start": "hot"}
    return KeptEnsemble(KeptFlow(f"alone_{lam:g}", theory_at(lam), FREE, {}), "hmc", sampling).make(folder)


def make_runs(known: Mapping[str, KeptFlow], folder: Path, *, quick: bool) -> dict[str, EnsembleAnalysis]:
    """Make the ensembles with flows."""
    found = {}
    for label, (name, kernel, start) in RUNS.items():
        sampling = {**SETTINGS, "cycles": 100 if quick else 1000, "start": start}
        found[label] = replace(KeptEnsemble(known[name], kernel, sampling).make(folder), label=label)
    return found


def score(estimate: Estimate, value: float, error: float) -> float:
    """Return the z-score of an estimate against a value with an error of its own; infinite where it is not known."""
    combined = hypot(estimate.error, error)
    z = float(estimate.value - value) / combined if combined > 0 else inf
    return z if isfinite(z) else inf


def tunnelling_table(ensembles: Mapping[float, EnsembleAnalysis]) -> Table:
    """Tabulate how often HMC changes the sign of the magnetisation."""
    rows = []
    for lam, analysis in ensembles.items():
        sign = sign_of(analysis)
        rows.append(
            (
                f"{lam:g}",
                str(analysis.observables["magnetisation_abs"]),
                str(analysis.observables["binder_cumulant"]),
                f"{sign.changes} in {sign.trajectories}",
                sign.tau_text,
            )
        )
    columns = ("lambda", "<|m|>", "Binder cumulant", "tunnellings in trajectories", "tau_int(sign m), trajectories")
    return Table("HMC on 8 x 8, m² = -4: tunnelling", columns, tuple(rows), "tau_int: white noise = 0.5.")


def quality_table(qualities: Mapping[str, FlowQuality], log_z: ReferenceLogZ) -> Table:
    """Tabulate which modes flows have, and what they are worth."""
    rows = []
    for name, one in qualities.items():
        rows.append(
            (
                LABELS[name],
                f"{one.seconds / 60:.1f}",
                f"{one.positive:.3f}",
                f"{one.bridge:.4f}",
                f"{one.acceptance:.3f}",
                f"{one.ess_reverse:.3f}",
                f"{one.ess_forward:.2g}",
                f"{one.unseen:.2g}",
                f"{one.log_z.value - log_z.value:+.3f} ± {hypot(one.log_z.error, log_z.error):.1g}",
                f"{log_z.value - one.bound.value:.3f} ± {hypot(one.bound.error, log_z.error):.1g}",
            )
        )
    columns = (
        "flow",
        "min",
        "draws with m > 0",
        f"draws with |m| < {BRIDGE:g}",
        "acceptance",
        "reverse ESS",
        "forward ESS",
        "unseen",
        "ln Z of the draws, less the reference",
        "KL(q|p), nats",
    )
    note = (
        f"ln Z by integration: {log_z.value:.4f} ± {log_z.error:.1g}; forward ESS on configurations of HMC and their "
        "mirror images; unseen: share of these whose weight exceeds e times that of every draw. A flow of one of two "
        "modes is ln 2 = 0.693 off."
    )
    return Table("Flows: which modes they draw", columns, tuple(rows), note)


def alarm_table(runs: Mapping[str, EnsembleAnalysis], log_z: ReferenceLogZ) -> Table:
    """Tabulate what the analysis of each run says of its flow."""
    rows = []
    for label, analysis in runs.items():
        monitor = next(monitor for monitor in analysis.monitors if monitor.name == "mode_drop")
        weights = analysis.weights
        unseen = None if weights is None else unseen_states(weights.log_weight, weights.log_weight_current)
        gap = f"{monitor.score.value:+.3f} ± {monitor.score.error:.1g}" + (" (void)" if monitor.void else "")
        rows.append(
            (
                label,
                gap,
                f"{monitor.score.z:+.1f}",
                "" if unseen is None else f"{unseen.share:.2g} (p = {unseen.p_value:.1g})",
                "**raised**" if analysis.mode_drop_alarm else "silent",
                "" if weights is None else f"{weights.ess_reverse:.3f}",
                "" if weights is None else f"{weights.ess_forward:.2g}",
                "" if weights is None else f"{score(weights.ln_z, log_z.value, log_z.error):+.1f}",
                "yes" if analysis.doubts else "no",
            )
        )
    columns = (
        "run",
        "gap",
        "z",
        "unseen",
        "alarm",
        "reverse ESS",
        "forward ESS",
        "z of ln Z against the reference",
        "doubts",
    )
    note = (
        "gap: ln Z of the states less that of the draws; void where tails of the weights are too heavy for its error. "
        "unseen: share of the states whose weight exceeds e times that of every draw, and the probability of as much if "
        f"no more than {TOLERATED_SHARE:g} were missed. The forward ESS is that of the run's own states: chains that "
        "visit one mode know of one only."
    )
    return Table("The mode-drop alarm", columns, tuple(rows), note)


def physics_table(analyses: Mapping[str, EnsembleAnalysis]) -> tuple[Table, dict[str, float]]:
    """Tabulate observables with z-scores of the even ones against HMC; return the largest score of each run, too."""
    reference = analyses["hmc"].observables
    rows, worst = [], {}
    for label, analysis in analyses.items():
        cells, scores = [str(analysis.observables["magnetisation"])], []
        for name in EVEN:
            estimate = analysis.observables[name]
            if label == "hmc":
                cells.append(str(estimate))
                continue
            scores.append(score(estimate, reference[name].value, reference[name].error))
            cells.append(f"{estimate} ({scores[-1]:+.2f})")
        rows.append((label, *cells))
        if scores:
            worst[label] = max(abs(z) for z in scores)
    columns = ("run", "<m>", *EVEN)
    return Table("Observables", columns, tuple(rows), "In brackets: z-scores against HMC."), worst


def cost_table(analyses: Mapping[str, EnsembleAnalysis]) -> Table:
    """Tabulate acceptance, autocorrelation of the sign and of |m|, and cost."""
    rows = []
    for label, analysis in analyses.items():
        sign, cost = sign_of(analysis), analysis.cost
        modulus = analysis.observables["magnetisation_abs"]
        with_training = [cost.per_independent(sign.estimate, with_training=given).value for given in (False, True)]
        rows.append(
            (
                label,
                "; ".join(f"{kind} {rate.value:.3f}" for kind, rate in analysis.acceptance_by_kind.items()),
                str(sign.changes),
                sign.tau_text,
                f"{modulus.tau_int:.2f} ± {modulus.tau_int_error:.1g}",
                *(format_seconds(value) if sign.known else "–" for value in with_training),
            )
        )
    columns = (
        "run",
        "acceptance",
        "changes of sign",
        "tau_int(sign m), cycles",
        "tau_int(|m|), cycles",
        "per independent sign",
        "with training",
    )
    note = "tau_int: white noise = 0.5; a cycle is a trajectory, two flow proposals, or both. –: too rarely to tell."
    return Table("Autocorrelation and cost", columns, tuple(rows), note)


def flow_claims(qualities: Mapping[str, FlowQuality], log_z: ReferenceLogZ, *, quick: bool) -> list[Claim]:
    """Return what the flows are worth, and how far their ln Z is off."""
    claims = []
    for name, one in qualities.items():
        label = LABELS[name]
        detail = f"{one.steps} steps, {one.seconds / 60:.1f} min"
        figures = {"acceptance": one.acceptance, "reverse ESS": one.ess_reverse, "forward ESS": one.ess_forward}
        claims += [
            Claim(f"{what}, {label}", value, detail, "informative", "", holds=True) for what, value in figures.items()
        ]
        claims.append(Claim(f"draws with m > 0, {label}", one.positive, detail, "informative", "", holds=True))
        deficit, error = log_z.value - one.log_z.value, hypot(one.log_z.error, log_z.error)
        covered = 0.01 < one.positive < 0.99
        # Of one mode the flow sees half of Z; where it has both, weights correct what is left.
        expected = 0.0 if covered else log(2)
        z = abs(deficit - expected) / error if error > 0 else inf
        wanted = f"{expected:.3f} within {LARGEST_Z:g} errors"
        claims.append(
            Claim(
                f"ln Z less that of the draws, {label}", deficit, f"± {error:.1g}", wanted, "", quick or z < LARGEST_Z
            )
        )
    return claims


def alarm_claims(runs: Mapping[str, EnsembleAnalysis], *, quick: bool) -> list[Claim]:
    """Return whether the alarm was raised where it should be, and only there."""
    wanted = dict.fromkeys(runs, 0)
    wanted["one mode, hybrid from hot starts"] = 1
    claims = []
    for label, analysis in runs.items():
        raised = int(analysis.mode_drop_alarm)
        monitor = next(monitor for monitor in analysis.monitors if monitor.name == "mode_drop")
        detail = f"gap {monitor.score.value:+.3f} ± {monitor.score.error:.1g}" + (", void" if monitor.void else "")
        # A chain that stays where the flow is cannot tell: silence is what the identity gives there, not a verdict.
        blind = label in ("one mode, flow", "one mode, hybrid from its draws")
        target = "0 (blind)" if blind else str(wanted[label])
        claims.append(Claim(f"alarm, {label}", raised, detail, target, "", quick or raised == wanted[label]))
    return claims


def cure_claims(analyses: Mapping[str, EnsembleAnalysis], worst: Mapping[str, float], *, quick: bool) -> list[Claim]:
    """Return autocorrelation of the sign, and agreement."""
    claims = []
    for label, analysis in analyses.items():
        sign = sign_of(analysis)
        if sign.known:
            name, value = f"tau_int(sign m), {label}", sign.estimate.tau_int
            spread = f"± {sign.estimate.tau_int_error:.1g}; {sign.changes} changes"
        else:
            name, value = f"changes of the sign of m, {label}", float(sign.changes)
            spread = f"in {sign.trajectories} cycles of all chains"
        claims.append(Claim(name, value, spread, "informative", "", holds=True))
        if label.endswith("hybrid"):
            z = abs(score(analysis.observables["magnetisation"], 0.0, 0.0))
            claims.append(Claim(f"|z| of <m> = 0, {label}", z, "", f"< {LARGEST_Z:g}", "", quick or z < LARGEST_Z))
        if label in worst:
            z = worst[label]
            wanted = f"< {LARGEST_Z:g}"
            claims.append(Claim(f"largest |z|, {label}", z, f"of {len(EVEN)}", wanted, "", quick or z < LARGEST_Z))
    return claims


def integrated(folder: Path, extent: int, *, quick: bool) -> ReferenceLogZ:
    """Return ln Z by integration over the hopping parameter; in that convention m² = −4 is lambda = 1/2."""
    kappa = (0.5 / float(THEORY["lam"])) ** 0.5
    found = log_z_by_integration((extent, extent), kappa, 0.5, folder / f"log_z_{extent}.json", quick=quick)
    return ReferenceLogZ(float(found.value), float(found.error))


def exact_claim(folder: Path, *, quick: bool) -> Claim:
    """Hold the integration over the hopping parameter against the exact transfer matrix on a tiny lattice."""
    exact = float(phi4_exact((3, 3), float(THEORY["m2"]), float(THEORY["lam"])).log_z)
    found = integrated(folder, 3, quick=quick)
    z = abs(found.value - exact) / found.error
    detail = f"{found.value:.4f} ± {found.error:.1g}, exact {exact:.4f}"
    return Claim("|z| of ln Z by integration, 3 x 3", z, detail, f"< {LARGEST_Z:g}", "", z < LARGEST_Z)


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__ or "")
    options.add_argument("--folder", type=Path, help="where flows and ensembles are kept")
    options.add_argument("--figures", type=Path, help="where the figures are drawn; the folder by default")
    arguments = options.parse_args()
    quick, folder = arguments.quick, folder_of(arguments.folder, quick=arguments.quick)
    figures = arguments.figures or folder
    known = broken_flows(quick=quick)
    make_samples(folder, quick=quick)
    for training in known.values():
        training.make(folder, known)
    lam = float(THEORY["lam"])
    alone = {one: make_hmc(folder, one, quick=quick) for one in (*TUNNELLING, lam)}
    show(tunnelling_table(alone))
    log_z = integrated(folder, 8, quick=quick)
    samples = target_samples(folder / f"alone_{lam:g}_hmc.h5")
    n = 512 if quick else 8192
    qualities = {name: measure_flow(folder / f"{name}.safetensors", samples, n) for name in known}
    show(quality_table(qualities, log_z))
    runs = make_runs(known, folder, quick=quick)
    show(alarm_table(runs, log_z))
    for label, analysis in runs.items():
        for doubt in analysis.doubts:
            print(f"\n{label}: {doubt}")
    analyses = {"hmc": alone[lam], **runs}
    table, worst = physics_table(analyses)
    show(table)
    show(cost_table(analyses))
    claims = [exact_claim(folder, quick=quick)]
    claims += flow_claims(qualities, log_z, quick=quick)
    claims += alarm_claims(runs, quick=quick)
    claims += cure_claims(analyses, worst, quick=quick)
    figures.mkdir(parents=True, exist_ok=True)
    chains = alone[lam].series["magnetisation"]
    draw_modes(qualities, samples, chains, figures / "broken_phase_modes.png")
    traced = ("hmc", "one mode, hybrid from hot starts", "equivariant, hybrid", "mirrored, hybrid")
    draw_traces({label: analyses[label] for label in traced}, figures / "broken_phase_traces.png")
    print(f"\nfigures: {figures / 'broken_phase_modes.png'}, {figures / 'broken_phase_traces.png'}\n")
    write_claims(claims, arguments.json)
    raise SystemExit(0 if all(claim.holds for claim in claims) else 1)


if __name__ == "__main__":
    main()
