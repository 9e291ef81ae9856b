"""Chains of the double well: HMC, which hardly tunnels at m = 3, flow proposals alone, and both in turn.

A trajectory of HMC costs next to nothing here, so that HMC is made twice: with every trajectory stored, as one would
begin, and long enough to measure how rarely it tunnels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.broken_phase import alarm_table
from benchmarks.claims import Claim
from benchmarks.interpolations_flows import EXTENT, SEEDS, recast, well_name
from benchmarks.kept import KeptEnsemble, KeptFlow
from benchmarks.measuring import INFORMATIVE
from benchmarks.signs import Sign, sign_of
from benchmarks.trivializing_reference import ReferenceLogZ
from flowmc_analysis.ensemble import EnsembleAnalysis
from flowmc_analysis.exact_double_well import double_well_exact
from flowmc_analysis.plot_style import MUTED, PALETTE, new_figure, set_title
from flowmc_analysis.tables import ABSENT, Table, format_number, format_seconds

__all__ = ["CHAIN_FLOWS", "FLOW", "HMC", "HYBRID", "WellChains", "chain_parts", "draw_traces", "make_chains"]

SITES = 16
MASSES = (1.5, 3.0)
CHAIN_FLOWS = (
    well_name(SITES, min(MASSES), "learned", 0),
    *(well_name(SITES, max(MASSES), "learned", seed) for seed in SEEDS),
)
"""All that the parts on chains need trained."""
LENGTHS = (1.0, 2.0, 3.0, 4.0)
LENGTH = 3.0
"""Of the trajectories in comparisons: about that at which HMC tunnels most cheaply."""
TRACE = ("rk4_trace", 40)
"""Integrator and steps of a flow that is not exact, beside the exact ones: with 20 its bound did not hold."""
SETTINGS: dict[str, Any] = {
    "seed": 11,
    "chains": 32,
    "thermalisation": 100,
    "tuning": 80,
    "cycles_per_block": 100,
    "target_acceptance": 0.9,
    "trajectory_length": LENGTH,
    "step_size": 0.15,
    "start": "hot",
}
# A draw with its exact log-determinant takes five to ten milliseconds.
OF_FLOWS: dict[str, Any] = {
    "thermalisation": 60,
    "tuning": 40,
    "cycles": 200,
    "cycles_per_block": 20,
    "flow_proposals": 1,
}
TOGETHER: Mapping[float, int] = {1.5: 1, 3.0: 100}
"""Trajectories of a stored configuration, where HMC is made long enough to tunnel."""
HMC, LONG, FLOW, HYBRID = "HMC", "HMC, long", "flow", "hybrid"
COMPARED = ("phi_squared", "phi_fourth", "magnetisation", *(f"effective_mass[{time}]" for time in (1, 2, 4, 8)))
SYMBOLS: Mapping[str, str] = {"phi_squared": "<x²>", "phi_fourth": "<x⁴>", "magnetisation": "<x̄>", "ln_z": "ln Z"}
LARGEST_Z = 4.0
SLOWEST_SIGN = 1000.0
FASTEST_SIGN = 10.0
SHOWN_CYCLES = 200


@dataclass(frozen=True)
class WellChains:
    """The ensembles of one double well.

    Parameters
    ----------
    mass
        Its mass.
    lengths
        HMC, long, by the length of its trajectories.
    runs
        The runs that are compared, by label.
    """

    mass: float
    lengths: Mapping[float, EnsembleAnalysis]
    runs: Mapping[str, EnsembleAnalysis]

    @property
    def with_flow(self) -> dict[str, EnsembleAnalysis]:
        """The runs that a flow proposes in."""
        return {label: run for label, run in self.runs.items() if run.weights is not None}

    def cycle(self, label: str) -> str:
        """Say what a cycle of a run is."""
        trajectories = TOGETHER[self.mass] if label == LONG else 1
        kinds = {"hmc": f"{trajectories} traj.", "flow": "1 proposal"}
        return " + ".join(kinds[kind] for kind in self.runs[label].streams[0].proposal_kinds.values())


def make_chains(known: Mapping[str, KeptFlow], folder: Path, mass: float, *, quick: bool) -> WellChains:
    """Make the ensembles of a double well, or read those that are there.

    Parameters
    ----------
    known
        The trainings by name; those that are not there are made.
    folder
        Where flows and ensembles are kept.
    mass
        Mass of the well, one of `MASSES`.
    quick
        Whether this is a smoke run.
    """
    first = known[well_name(SITES, mass, "learned", 0)]

    def hmc(name: str, length: float, trajectories: int, cycles: int) -> EnsembleAnalysis:
        # HMC knows of the flow's theory only; the name is that of its file.
        training = replace(first, name=f"well_{SITES}_{mass:g}_{name}_{length:g}")
        own = {"trajectory_length": length, "hmc_trajectories": trajectories, "cycles": 100 if quick else cycles}
        return KeptEnsemble(training, "hmc", {**SETTINGS, **own}).make(folder)

    together = TOGETHER[mass]
    lengths = {length: hmc("long", length, together, 4000 if together == 1 else 1000) for length in LENGTHS}
    runs = {HMC: hmc("alone", LENGTH, 1, 4000)} if together > 1 else {}
    runs[LONG] = lengths[LENGTH]
    own = {**SETTINGS, **OF_FLOWS, "cycles": 40 if quick else OF_FLOWS["cycles"]}
    first.make(folder, known)
    runs[f"{FLOW}, seed 0"] = KeptEnsemble(first, "flow", {**own, "start": "auto"}).make(folder)
    runs[f"{HYBRID}, seed 0"] = KeptEnsemble(first, "hmc+flow", own).make(folder)
    # The well in which HMC tunnels has enough with that.
    if mass == max(MASSES) and not quick:
        trace = recast(first, folder, known, *TRACE)
        runs[f"{HYBRID}, seed 0, {TRACE[0]}"] = KeptEnsemble(trace, "hmc+flow", own).make(folder)
        for seed in SEEDS[1:]:
            again = known[well_name(SITES, mass, "learned", seed)]
            again.make(folder, known)
            runs[f"{HYBRID}, seed {seed}"] = KeptEnsemble(again, "hmc+flow", own).make(folder)
    return WellChains(mass, lengths, {label: replace(run, label=label) for label, run in runs.items()})


def seconds_of_sign(run: EnsembleAnalysis, *, with_training: bool = False) -> float:
    """Return the seconds that an independent sign of x̄ costs; infinite where it changes too rarely to tell."""
    sign = sign_of(run)
    return float(run.cost.per_independent(sign.estimate, with_training=with_training).value) if sign.known else inf


def in_trajectories(chains: WellChains, run: EnsembleAnalysis) -> Sign:
    """Return the sign of x̄ of a long run of HMC, in trajectories."""
    return sign_of(run).in_units(TOGETHER[chains.mass])


def tunnelling_table(wells: Mapping[float, WellChains]) -> Table:
    """Tabulate how often HMC tunnels, by the length of its trajectories."""
    rows = []
    for mass, chains in wells.items():
        for length, run in chains.lengths.items():
            sign = in_trajectories(chains, run)
            rows.append(
                (
                    f"{mass:g}",
                    f"{length:g}",
                    f"{run.acceptance:.3f}",
                    f"{sign.changes} in {sign.trajectories}",
                    sign.tau_text,
                    format_seconds(seconds_of_sign(run)),
                )
            )
    columns = ("m", "length", "acceptance", "tunnellings in trajectories", "tau_int(sign x̄), trajectories", "per sign")
    note = (
        "tau_int: white noise = 0.5; of all chains. At m = 3 every hundredth trajectory is stored, and changes are those "
        "between stored ones. Per sign: wall clock of an independent sign of x̄."
    )
    return Table(f"HMC in the double well, N = {SITES}: tunnelling", columns, tuple(rows), note)


def cost_table(chains: WellChains) -> Table:
    """Tabulate acceptance, autocorrelation and cost."""
    rows = []
    for label, run in chains.runs.items():
        sign, square = sign_of(run), run.observables["phi_squared"]
        costs = [format_seconds(seconds_of_sign(run, with_training=given)) for given in (False, True)]
        rows.append(
            (
                label,
                chains.cycle(label),
                "; ".join(f"{kind} {rate.value:.3f}" for kind, rate in run.acceptance_by_kind.items()),
                f"{sign.changes} in {sign.trajectories}",
                sign.tau_text,
                f"{square.tau_int:.3g} ± {square.tau_int_error:.1g}",
                *costs,
                won_back(chains, label),
            )
        )
    columns = (
        "run",
        "a cycle",
        "acceptance",
        "changes of sign in cycles",
        "tau_int(sign x̄), cycles",
        "tau_int(x²), cycles",
        "per independent sign",
        "with training",
        "training won back after",
    )
    note = (
        "tau_int: white noise = 0.5. Seconds by the wall clock, on shared cores; –: too rarely to tell. Won back: "
        f'independent signs at which {LONG} would have cost as much; "never" where it is cheaper.'
    )
    return Table(f"Chains, N = {SITES}, m = {chains.mass:g}", columns, tuple(rows), note)


def won_back(chains: WellChains, label: str) -> str:
    """Return after how many independent signs a flow has saved what its training cost."""
    run = chains.runs[label]
    mine, others = seconds_of_sign(run), seconds_of_sign(chains.runs[LONG])
    if run.weights is None or not (isfinite(mine) and isfinite(others)):
        return ABSENT
    return f"{run.cost.training_seconds / (others - mine):.2g}" if mine < others else "never"


def exact_table(chains: WellChains) -> Table:
    """Tabulate what was measured beside exact values."""
    expected = {score.name: score.expected for run in chains.runs.values() for score in run.exact}
    names = [name for name in (*COMPARED, "ln_z") if name in expected]
    rows = [("exact", *(f"{expected[name]:.6g}" for name in names))]
    for label, run in chains.runs.items():
        scores = {score.name: score for score in run.exact}
        cells = []
        for name in names:
            score = scores.get(name)
            cells.append(
                ABSENT if score is None else f"{score.value:.5g} ± {score.error:.1g} ({format_number(score.z, '+.1f')})"
            )
        rows.append((label, *cells))
    columns = ("run", *(SYMBOLS.get(name, name) for name in names))
    note = (
        "In brackets: z-scores. Effective masses by time, of the same estimator of the exact correlator; lattice units."
    )
    return Table(f"Exact values, N = {SITES}, m = {chains.mass:g}", columns, tuple(rows), note)


def largest_z(run: EnsembleAnalysis) -> tuple[float, str, int]:
    """Return the largest modulus of the z-scores against exact values, its name, and how many there are."""
    scores = {score.name: abs(score.z) if isfinite(score.z) else inf for score in run.exact}
    worst = max(scores, key=lambda name: scores[name])
    return scores[worst], worst, len(scores)


def chain_claims(chains: WellChains, *, quick: bool) -> list[Claim]:
    """Return whether HMC freezes, the hybrid cures it, all agree with what is known, and the alarm is silent."""
    claims, where = [], f"N = {SITES}, m = {chains.mass:g}"
    sign = in_trajectories(chains, chains.runs[LONG])
    frozen = chains.mass == max(MASSES)
    wanted, holds = (f"> {SLOWEST_SIGN:g}", sign.estimate.tau_int > SLOWEST_SIGN) if frozen else (INFORMATIVE, True)
    spread = f"± {sign.estimate.tau_int_error:.1g}; {sign.changes} changes in {sign.trajectories}; length {LENGTH:g}"
    claims.append(
        Claim(f"tau_int(sign), HMC, {where}", sign.estimate.tau_int, spread, wanted, "trajectories", quick or holds)
    )
    for label, run in chains.runs.items():
        z, worst, number = largest_z(run)
        # A run that stays in its wells cannot know x̄: the alone one at the larger mass is there to show that.
        blind = label == HMC
        wanted = INFORMATIVE if blind else f"< {LARGEST_Z:g}"
        claims.append(
            Claim(
                f"largest |z|, {label}, {where}",
                z,
                f"{worst}, of {number}",
                wanted,
                "",
                quick or blind or z < LARGEST_Z,
            )
        )
        doubts = len(run.doubts)
        claims.append(Claim(f"doubts, {label}, {where}", doubts, "; ".join(run.doubts), INFORMATIVE, "", holds=True))
    for label, run in chains.with_flow.items():
        sign = sign_of(run)
        spread = f"± {sign.estimate.tau_int_error:.1g}; {sign.changes} changes"
        cured = sign.known and sign.estimate.tau_int < FASTEST_SIGN
        claims.append(
            Claim(
                f"tau_int(sign), {label}, {where}",
                sign.estimate.tau_int,
                spread,
                f"< {FASTEST_SIGN:g}",
                "cycles",
                quick or cured,
            )
        )
        mine, others = seconds_of_sign(run), seconds_of_sign(chains.runs[LONG])
        ratio = others / mine
        with_training = seconds_of_sign(run, with_training=True)
        spread = f"{format_seconds(others)} over {format_seconds(mine)}; with training {format_seconds(with_training)}"
        wanted, holds = ("> 1", ratio > 1) if frozen else (INFORMATIVE, True)
        claims.append(Claim(f"cost of a sign, {LONG} / {label}, {where}", ratio, spread, wanted, "", quick or holds))
        rate = run.acceptance_by_kind["flow"]
        claims.append(Claim(f"acceptance, {label}, {where}", rate.value, "of proposals", INFORMATIVE, "", holds=True))
        raised = int(run.mode_drop_alarm)
        claims.append(Claim(f"alarm, {label}, {where}", raised, "", "0", "", quick or raised == 0))
    return claims


def draw_traces(wells: Mapping[float, WellChains], path: Path) -> None:
    """Draw x̄ of two chains of each run against the cycle, HMC with every trajectory."""
    labels = (HMC, f"{FLOW}, seed 0", f"{HYBRID}, seed 0")
    titles = ("HMC, trajectories", "flow alone, proposals", "hybrid, a trajectory and a proposal each")
    figure, axes = new_figure(3, len(wells), width=11.0, height=5.4, share_x=True, share_y=True)
    for column, (mass, chains) in enumerate(wells.items()):
        for row, (label, title) in enumerate(zip(labels, titles, strict=True)):
            axis = axes[row * len(wells) + column]
            mean = chains.runs.get(label, chains.runs[LONG]).series["magnetisation"][:, :SHOWN_CYCLES]
            # Where chains stay in their wells: one of each.
            first, second = int(np.argmax(mean[:, 0])), int(np.argmin(mean[:, 0]))
            for well in (-1, 1):
                axis.axhline(well * mass**0.5, color=MUTED, lw=0.7, ls=":")
            for number, colour in ((first, PALETTE[0]), (second, PALETTE[1])):
                axis.plot(mean[number], color=colour, lw=0.9, alpha=0.9)
            axis.set(xlim=(0, SHOWN_CYCLES), ylim=(-2.4, 2.4))
            set_title(axis, f"m = {mass:g}: {title}")
            if column == 0:
                axis.set_ylabel("mean of x")
    for axis in axes[-len(wells) :]:
        axis.set_xlabel("cycle")
    figure.savefig(path, dpi=150)


def chain_parts(
    known: Mapping[str, KeptFlow], folder: Path, figures: Path, *, quick: bool
) -> tuple[list[Table], list[Claim]]:
    """Make the chains of both double wells, and hold them against each other and against exact values.

    Parameters
    ----------
    known
        The trainings by name.
    folder
        Where flows and ensembles are kept.
    figures
        Where interpolations_traces.png is drawn.
    quick
        Whether this is a smoke run.
    """
    wells = {mass: make_chains(known, folder, mass, quick=quick) for mass in MASSES}
    tables, claims = [tunnelling_table(wells)], []
    for mass, chains in wells.items():
        exact = double_well_exact(SITES, EXTENT, mass, 1.0).log_z
        alarm = alarm_table(chains.with_flow, ReferenceLogZ(exact, 0.0))
        alarm = replace(alarm, title=f"{alarm.title}, chains of the double well, N = {SITES}, m = {mass:g}")
        tables += [cost_table(chains), exact_table(chains), alarm]
        claims += chain_claims(chains, quick=quick)
    figures.mkdir(parents=True, exist_ok=True)
    draw_traces(wells, figures / "interpolations_traces.png")
    return tables, claims
