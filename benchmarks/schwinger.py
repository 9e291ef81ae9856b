"""U(1) and the Schwinger model: flows, hybrids and HMC beside exact and reference values; estimators against time.

Run from the checkout: ``python -m benchmarks.schwinger [--quick] [--json PATH] [--folder DIR] [--figures DIR]``. Flows
and ensembles are kept in the folder (by default runs/schwinger), so that the command is interrupted and repeated at will;
all of it takes some three hours on two cores, one of them for 16 x 16.

Compared with: U(1) by its exact solution on the torus; the Schwinger model at the critical point of arXiv:2202.11712 and
2308.13294 (beta = 2, kappa = 0.276) by HMC here and by quenched sampling with reweighting (ln Z on 4 x 4 and 8 x 8).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from math import hypot
from pathlib import Path

import matplotlib
import numpy as np
import torch

from benchmarks.claims import Claim, parser, write_claims
from benchmarks.ising import show
from benchmarks.kept import KeptEnsemble, KeptFlow
from benchmarks.schwinger_flows import ESTIMATORS, folder_of, gauge_flows
from flowmc.flows import SavedFlow, load_flow
from flowmc.seeds import torch_generator
from flowmc_analysis.ensemble import EnsembleAnalysis
from flowmc_analysis.exact_u1 import u1_exact
from flowmc_analysis.gauge_observables import topological_charge
from flowmc_analysis.observables import Configurations
from flowmc_analysis.tables import Table, format_seconds
from flowmc_analysis.weights import ess_reverse
from flowmc_ensembles import Ensemble

matplotlib.use("Agg")

from matplotlib import pyplot as plt

# Exact quenched sampling, reweighted with the squared determinants: calculated for this project
# beforehand, independently of its code; with errors.
QUENCHED = {
    4: {"plaquette": (0.76287, 0.00024), "charge_squared": (0.0571, 0.0002), "condensate": (1.4683, 0.0002)},
    8: {"plaquette": (0.754, 0.002), "charge_squared": (0.249, 0.008), "condensate": (1.505, 0.004)},
}
QUENCHED_LN_RATIO = {4: (2.8948, 0.0023), 8: (8.00, 0.03)}
"""ln of the mean squared determinant: ln Z less that of U(1)."""
LARGEST_Z = 4.0
COMPARED = (
    "plaquette",
    "charge_squared",
    "wilson_loop_2x2",
    "polyakov_loop_squared",
    "condensate",
    "pion_correlator[1]",
)
MINUTES = 20.0
ACCEPTANCE = 0.4
SETTINGS = {
    "seed": 11,
    "chains": 32,
    "cycles_per_block": 50,
    "thermalisation": 50,
    "tuning": 50,
    "flow_proposals": 2,
    "hmc_trajectories": 1,
}


def ensembles_of(training: KeptFlow, *, quick: bool) -> list[KeptEnsemble]:
    """Return the ensembles of a flow's theory: its proposals alone, the hybrid and the baselines."""
    # A draw of a flow costs more than a trajectory of these small lattices, and is less correlated.
    if training.theory["name"] == "u1":
        cycles = {"flow": 400, "hybrid": 400, "hmc": 2000, "metropolis": 2000}
    elif training.theory["shape"][0] == 4:
        cycles = {"flow": 100, "hybrid": 100, "hmc": 600, "pseudofermion_hmc": 100}
    else:
        cycles = {"flow": 50, "hybrid": 50, "hmc": 300}
    found = []
    for kernel, count in cycles.items():
        sampling = {**SETTINGS, "cycles": 100 if quick else count}
        if training.theory["name"] == "u1" and kernel in ("hmc", "metropolis"):
            # Hundreds of cycles for the charge at beta = 5: a hot start is long remembered.
            sampling["thermalisation"] = 100 if quick else 5000
        found.append(KeptEnsemble(training, kernel, sampling))
    return found


def minutes(name: str, known: Mapping[str, KeptFlow], folder: Path) -> float:
    """Return the minutes of a training, those of the flows that it started from included."""
    return float(known[name].make(folder, known).training["seconds"]) / 60


def physics_table(
    title: str, analyses: Sequence[EnsembleAnalysis], reference: Mapping[str, tuple[float, float]]
) -> Table:
    """Tabulate observables with their z-scores against reference values."""
    rows = []
    for name in COMPARED:
        if name not in reference:
            continue
        cells = []
        for analysis in analyses:
            estimate = analysis.observables[name]
            cells.append(f"{estimate} ({score(estimate.value, estimate.error, reference[name]):+.2f})")
        value, error = reference[name]
        rows.append((name, *cells, f"{value:.6g}" + (f" ± {error:.1g}" if error else "")))
    for analysis in analyses:
        if analysis.weights is not None and "ln_z" in reference:
            estimate = analysis.weights.ln_z
            z = score(estimate.value, estimate.error, reference["ln_z"])
            value, error = reference["ln_z"]
            empty = ["" for _ in analyses]
            empty[list(analyses).index(analysis)] = f"{estimate} ({z:+.2f})"
            rows.append(("ln Z", *empty, f"{value:.6g}" + (f" ± {error:.1g}" if error else "")))
    columns = ("observable", *(analysis.label for analysis in analyses), "reference")
    return Table(title, columns, tuple(rows), "In brackets: z-scores.")


def score(value: float, error: float, reference: tuple[float, float]) -> float:
    """Return the z-score of a value against a reference with an error of its own; infinite where there is no error."""
    combined = hypot(error, reference[1])
    z = (value - reference[0]) / combined if combined > 0 else float("inf")
    return z if np.isfinite(z) and np.isfinite(combined) else float("inf")


def cost_table(title: str, analyses: Sequence[EnsembleAnalysis]) -> Table:
    """Tabulate acceptance, autocorrelation of the squared charge and of the plaquette, and cost."""
    rows = []
    for analysis in analyses:
        charge, plaquette = analysis.observables["charge_squared"], analysis.observables["plaquette"]
        per_update = analysis.updates_per_configuration
        cost = analysis.cost
        rows.append(
            (
                analysis.label,
                "; ".join(f"{kind} {rate.value:.3f}" for kind, rate in analysis.acceptance_by_kind.items()),
                f"{charge.tau_int:.2f} ± {charge.tau_int_error:.1g}",
                f"{plaquette.tau_int:.2f} ± {plaquette.tau_int_error:.1g}",
                f"{per_update:g}",
                format_seconds(cost.per_independent(charge).value),
                format_seconds(cost.per_independent(charge, with_training=True).value),
            )
        )
    columns = (
        "kernel",
        "acceptance",
        "tau_int(Q²), cycles",
        "tau_int(plaquette), cycles",
        "updates per cycle",
        "per independent Q²",
        "with training",
    )
    return Table(title, columns, tuple(rows), "tau_int: white noise = 0.5; cycles of the kernel's updates.")


def reference_of(
    analyses: Sequence[EnsembleAnalysis], extent: int, exact: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Return exact values where there are any, else those of HMC and, for ln Z, of quenched reweighting."""
    if exact:
        return {name: (value, 0.0) for name, value in exact.items()}
    hmc = next(analysis for analysis in analyses if analysis.label == "hmc")
    found = {
        name: (hmc.observables[name].value, hmc.observables[name].error) for name in COMPARED if name in hmc.observables
    }
    return found | {"ln_z": quenched_log_z(extent)}


def quenched_log_z(extent: int) -> tuple[float, float]:
    """Return ln Z of the Schwinger model by quenched reweighting, with its error."""
    ratio, error = QUENCHED_LN_RATIO[extent]
    return u1_exact((extent, extent), 2.0).log_z + ratio, error


def physics_claims(
    title: str, analyses: Sequence[EnsembleAnalysis], reference: Mapping[str, tuple[float, float]]
) -> list[Claim]:
    """Return the largest z-score of every ensemble that is not itself the reference."""
    claims = []
    for analysis in analyses:
        scores = {
            name: score(analysis.observables[name].value, analysis.observables[name].error, reference[name])
            for name in COMPARED
            # An ensemble that is the reference has nothing to be held against.
            if name in reference and analysis.observables[name].value != reference[name][0]
        }
        if analysis.weights is not None and "ln_z" in reference:
            scores["ln Z"] = score(analysis.weights.ln_z.value, analysis.weights.ln_z.error, reference["ln_z"])
        if scores:
            worst = max(scores, key=lambda name: abs(scores[name]))
            z = abs(scores[worst])
            detail = f"{worst}, of {len(scores)}"
            claims.append(
                Claim(f"largest |z|, {title}, {analysis.label}", z, detail, f"< {LARGEST_Z:g}", "", z < LARGEST_Z)
            )
    return claims


def training_curve(folder: Path, name: str, window: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return seconds, running median of the ESS and the loss of a training, from its log."""
    lines = (folder / f"{name}.training.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    seconds, ess, loss = (np.array([record[key] for record in records]) for key in ("seconds", "ess", "loss"))
    smooth = np.array([np.median(ess[max(0, i - window + 1) : i + 1]) for i in range(len(ess))])
    return seconds, smooth, loss


def draw_training(folder: Path, path: Path, bounds: Mapping[int, float]) -> None:
    """Draw ESS and the distance to ln Z against time, for each estimator."""
    figure, axes = plt.subplots(2, 2, figsize=(9.0, 6.0), layout="constrained", sharex="col")
    for column, extent in enumerate((4, 8)):
        for label in ESTIMATORS:
            seconds, ess, loss = training_curve(folder, f"schwinger_{extent}_{label}")
            axes[0, column].plot(seconds, ess, label=label)
            axes[1, column].plot(seconds, loss + bounds[extent], label=label)
        axes[0, column].set(title=f"Schwinger {extent} x {extent}", ylabel="ESS of a batch of 128", ylim=(0, None))
        axes[1, column].set(xlabel="seconds of training", ylabel="KL divergence, nats", yscale="log")
        axes[0, column].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_charges(folder: Path, name: str, path: Path, cycles: int = 400) -> None:
    """Draw the history of the topological charge of one chain for each kernel."""
    kernels = ("hmc", "metropolis", "hybrid", "flow")
    figure, axes = plt.subplots(len(kernels), 1, figsize=(8.0, 6.0), layout="constrained", sharex=True, sharey=True)
    for panel, kernel in zip(axes, kernels, strict=True):
        stream = Ensemble(folder / f"{name}_{kernel}.h5").streams[0]
        links = np.asarray(stream.configurations(), dtype=np.float64)[:cycles, 0]
        panel.plot(topological_charge(Configurations(links, dimension=2, internal=1)), lw=0.8)
        panel.set(ylabel=f"Q, {kernel}")
    axes[-1].set(xlabel="cycle")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def limits(folder: Path, training: KeptFlow, *, quick: bool) -> list[Claim]:
    """Measure what a flow of plaquettes cannot reach, and what this one leaves to be reached.

    Moving all links of one direction in one column turns a Wilson line and leaves every plaquette: with the weights of a
    grid of such moves of an HMC configuration follows the ESS of lines drawn uniformly, given the plaquettes.
    """
    flow, saved = load_flow(folder / f"{training.name}.safetensors")
    stream = Ensemble(folder / f"{training.name}_hmc.h5").streams[0]
    links = np.asarray(stream.configurations(), dtype=np.float64)[-1, : 4 if quick else 32]
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    log_w = []
    for time, space in product(angles, angles):
        moved = links.copy()
        moved[:, 0, :, 0] += time
        moved[:, :, 0, 1] += space
        log_w.append(-saved.theory.action(moved))
    ess = [ess_reverse(column) for column in np.array(log_w).T]
    where = f"Schwinger {saved.theory.shape[0]} x {saved.theory.shape[1]}"
    spread = f"{min(ess):.2f} to {max(ess):.2f} on {len(ess)} configurations"
    with torch.inference_mode():
        draws = flow.sample(256 if quick else 2048, torch_generator(5, training.name))[0].double().numpy()
    charge = topological_charge(Configurations(draws, dimension=2, internal=1)) ** 2
    error = float(charge.std() / len(charge) ** 0.5)
    return [
        Claim(f"ESS of uniform Wilson lines, {where}", float(np.mean(ess)), spread, "informative", "", holds=True),
        Claim(
            f"Q² of the flow's draws, {where}", float(charge.mean()), f"± {error:.1g}", "informative", "", holds=True
        ),
    ]


def drawn_ess(folder: Path, training: KeptFlow, spent: float, n: int) -> Claim:
    """Measure the ESS of a flow from its draws alone, in the type in which it was trained."""
    flow, saved = load_flow(folder / f"{training.name}.safetensors")
    log_w = []
    with torch.inference_mode():
        for number in range(n // 64):
            field, log_q = flow.sample(64, torch_generator(6, training.name, number))
            log_w.append((-saved.theory.action(field.double()) - log_q).numpy())
    name = f"reverse ESS of {n} draws, Schwinger {saved.theory.shape[0]} x {saved.theory.shape[1]}"
    detail = f"{saved.training['steps']} steps, {spent:.0f} min, those of 8 x 8 included"
    return Claim(name, ess_reverse(np.concatenate(log_w)), detail, "informative", "", holds=True)


def equal_time_claims(folder: Path) -> list[Claim]:
    """Return the ESS that each estimator had reached when the fastest training had ended, and at its own end.

    All have the same number of steps and anneal their learning rate over them, so that the slower ones are held back in
    the first comparison, and have more time in the second.
    """
    claims = []
    for extent in (4, 8):
        curves = {label: training_curve(folder, f"schwinger_{extent}_{label}") for label in ESTIMATORS}
        end = min(seconds[-1] for seconds, _, _ in curves.values())
        for label, (seconds, ess, _) in curves.items():
            where = f"Schwinger {extent} x {extent}, {label}"
            spread = "median of 5 batches of 128"
            for name, value in (
                (f"ESS after {end / 60:.1f} min, {where}", float(ess[seconds <= end][-1])),
                (f"ESS at the end, {seconds[-1] / 60:.1f} min, {where}", float(ess[-1])),
            ):
                claims.append(Claim(name, value, spread, "informative", "", holds=True))
    return claims


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__ or "")
    options.add_argument("--folder", type=Path, help="where flows and ensembles are kept")
    options.add_argument("--figures", type=Path, help="where the figures are drawn; the folder by default")
    arguments = options.parse_args()
    folder = folder_of(arguments.folder, quick=arguments.quick)
    figures = arguments.figures or folder
    known = gauge_flows(quick=arguments.quick)
    flows: dict[str, SavedFlow] = {name: training.make(folder, known) for name, training in known.items()}
    claims = []
    for name in ("u1_8_2", "u1_8_5", "schwinger_4_path", "schwinger_8"):
        training, extent = known[name], int(known[name].theory["shape"][0])
        analyses = [ensemble.make(folder) for ensemble in ensembles_of(training, quick=arguments.quick)]
        title = f"{training.theory['name']} {extent} x {extent}, beta = {training.theory['beta']:g}"
        reference = reference_of(analyses, extent, {one.name: one.expected for one in analyses[0].exact})
        show(physics_table(title, analyses, reference))
        show(cost_table(f"{title}: autocorrelation and cost", analyses))
        claims += physics_claims(title, analyses, reference)
        if training.theory["name"] == "schwinger":
            claims += physics_claims(f"{title}, quenched reweighting", analyses, QUENCHED[extent])
        alone = analyses[0]
        u1 = training.theory["name"] == "u1"
        strict = u1 and not arguments.quick
        accepted = alone.acceptance_by_kind["flow"]
        wanted = f">= {ACCEPTANCE:g}" if strict else "informative"
        holds = not strict or accepted.value >= ACCEPTANCE
        claims.append(Claim(f"acceptance, {title}", accepted.value, f"± {accepted.error:.1g}", wanted, "", holds))
        spent = minutes(name, known, folder)
        strict = name == "u1_8_2"
        wanted, holds = (f"<= {MINUTES:g}", spent <= MINUTES) if strict else ("informative", True)
        steps = f"{flows[name].training['steps']} steps, those before included"
        claims.append(Claim(f"training time, {title}", spent, steps, wanted, "min", holds))
        if not u1:
            claims += limits(folder, training, quick=arguments.quick)
        if alone.weights is not None:
            for what, value in (("reverse", alone.weights.ess_reverse), ("forward", alone.weights.ess_forward)):
                claims.append(Claim(f"{what} ESS, {title}", value, "", "informative", "", holds=True))
    claims += equal_time_claims(folder)
    spent = minutes("schwinger_16", known, folder)
    claims.append(drawn_ess(folder, known["schwinger_16"], spent, 64 if arguments.quick else 4096))
    figures.mkdir(parents=True, exist_ok=True)
    bounds = {extent: quenched_log_z(extent)[0] for extent in QUENCHED_LN_RATIO}
    draw_training(folder, figures / "schwinger_training.png", bounds)
    draw_charges(folder, "u1_8_5", figures / "u1_charge.png")
    print(f"\nfigures: {figures / 'schwinger_training.png'}, {figures / 'u1_charge.png'}\n")
    write_claims(claims, arguments.json)
    raise SystemExit(0 if all(claim.holds for claim in claims) else 1)


if __name__ == "__main__":
    main()
