"""Ensembles of U(1) gauge theory and of the Schwinger model from file to report, against what is known of them.

Proposals are exact draws of the pure gauge theory, so that their density is known; a chain of them has the weight of the
theory by Metropolis's rule. The fermions are a dense matrix of a few lines, independent of the project's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from flowmc_analysis.arviz_export import chain_diagnostics
from flowmc_analysis.comparison import Comparison, compare_many
from flowmc_analysis.ensemble import EnsembleAnalysis, analyze
from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.exact_u1 import u1_exact
from flowmc_analysis.gauge_observables import plaquette_angles, topological_charge
from flowmc_analysis.headlines import State, headlines
from flowmc_analysis.observables import Configurations
from flowmc_analysis.production import read_production
from flowmc_analysis.report import render_report
from flowmc_analysis.zscores import judge, z_score
from flowmc_ensembles.descriptions import EnsembleDescription, StreamDescription
from flowmc_ensembles.writer import EnsembleWriter

Array = npt.NDArray[np.float64]
DrawLinks = Callable[[np.random.Generator, int, tuple[int, int], float], Array]

SHAPE = (4, 4)


def plaquettes(links: Array) -> Array:
    return plaquette_angles(Configurations(links, 2, internal=1))


def gauge_action(links: Array, beta: float) -> Array:
    return np.asarray(-beta * np.cos(plaquettes(links)).sum(axis=(-2, -1)))


def link_slopes(links: Array, beta: float) -> Array:
    """Sum over links of the square of the action's slope minus its second derivative, in pure gauge theory."""
    sine = np.sin(plaquettes(links))
    in_time, in_space = sine - np.roll(sine, 1, axis=-1), np.roll(sine, 1, axis=-2) - sine
    squares = beta**2 * (in_time**2 + in_space**2).sum(axis=(-2, -1))
    return np.asarray(squares + 4.0 * gauge_action(links, beta))


def dirac_matrices(links: Array, kappa: float) -> npt.NDArray[np.complex128]:
    """``D = 1 - kappa H`` with ``(1 -+ gamma_mu)`` and antiperiodic time, dense: ``(n, 2V, 2V)``, spin last."""
    n, time, space, _ = links.shape
    gamma = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]]])
    matrix = np.zeros((n, time, space, 2, time, space, 2), dtype=complex)
    for t, x in np.ndindex(time, space):
        matrix[:, t, x, :, t, x, :] += np.eye(2)
        for direction, there in enumerate((((t + 1) % time, x), (t, (x + 1) % space))):
            edge = -1.0 if direction == 0 and t == time - 1 else 1.0
            hop = kappa * edge * np.exp(1j * links[:, t, x, direction])[:, None, None]
            matrix[:, t, x, :, *there, :] -= hop * (np.eye(2) - gamma[direction])
            matrix[:, *there, :, t, x, :] -= hop.conj() * (np.eye(2) + gamma[direction])
    return matrix.reshape(n, 2 * time * space, 2 * time * space)


def fermions(links: Array, kappa: float) -> dict[str, Array]:
    """What a run records of the fermions, arrays of the shape of the configurations."""
    batch, (time, space) = links.shape[:-3], links.shape[-3:-1]
    matrix = dirac_matrices(links.reshape(-1, time, space, 2), kappa)
    volume = time * space
    sign, log_determinant = np.linalg.slogdet(matrix)
    inverse = np.linalg.inv(matrix).reshape(-1, time, space, 2, time, space, 2)
    norms = np.sum(np.abs(inverse) ** 2, axis=(2, 3, 5, 6))  # sink time, source time
    loops = np.einsum("ntxatxa,a->nt", inverse, [1.0, -1.0]).real
    at = np.arange(time)
    tables = {
        "log_determinant": log_determinant,
        "sign_determinant": np.sign(sign.real),
        "condensate": np.einsum("ntxatxa->n", inverse).real / volume,
        "pion_correlator": np.stack([norms[:, (at + t) % time, at].sum(axis=1) for t in at], axis=1) / volume,
        "eta_disconnected": np.stack([(loops * np.roll(loops, -t, axis=1)).sum(axis=1) for t in at], axis=1) / volume,
    }
    return {name: values.reshape(*batch, *values.shape[1:]) for name, values in tables.items()}


@dataclass(frozen=True)
class GaugeRun:
    """Draws of another beta as proposals and Metropolis sweeps over links; one configuration is stored per cycle."""

    n_flow: int
    n_sweeps: int
    beta: float = 2.0
    flow_beta: float = 1.7
    kappa: float = 0.0
    n_flavours: int = 0
    sampled_beta: float | None = None
    width: float = 1.5
    n_chains: int = 8
    n_cycles: int = 400

    def write(
        self, path: Path, draw: DrawLinks, rng: np.random.Generator, extra: Mapping[str, Array] | None = None
    ) -> Path:
        """Run and write a new ensemble."""
        couplings: dict[str, object] = {"beta": self.beta}
        if self.n_flavours:
            couplings |= {"kappa": self.kappa, "n_flavours": self.n_flavours}
        theory = "schwinger" if self.n_flavours else "u1"
        description = EnsembleDescription(
            theory=theory,
            action={"name": theory, "shape": list(SHAPE), **couplings},
            lattice_size=SHAPE,
            convention="S = -beta sum_x cos P(x) - n_flavours log|det D|",
        )
        stream = StreamDescription(
            seed=3,
            algorithm="flow" if self.n_flow else "metropolis",
            algorithm_parameters={},
            n_chains=self.n_chains,
            field_name="angle",
            field_dtype=np.dtype(np.float64),
            internal_axes=("mu",),
            thermalisation_updates=20 * (self.n_flow + self.n_sweeps),
            freeze_update=0,
            flow_sha256="ef" * 32 if self.n_flow else "",
            proposal_kinds={0: "metropolis", 1: "flow"},
        )
        with EnsembleWriter.create(path, description, stream) as writer:
            self.fill(writer, draw, rng, extra or {})
        return path

    def log_determinant(self, links: Array) -> Array:
        if not self.n_flavours:
            return np.zeros(links.shape[:-3])
        return np.asarray(np.linalg.slogdet(dirac_matrices(links, self.kappa))[1])

    def fill(
        self, writer: EnsembleWriter, draw: DrawLinks, rng: np.random.Generator, extra: Mapping[str, Array]
    ) -> None:
        beta = self.beta if self.sampled_beta is None else self.sampled_beta
        log_z = u1_exact(SHAPE, self.flow_beta).log_z
        n_proposals = self.n_cycles * self.n_flow
        pool = draw(rng, max(1, n_proposals) * self.n_chains, SHAPE, self.flow_beta)
        pool = pool.reshape(-1, self.n_chains, *SHAPE, 2)
        determinants = np.stack([self.log_determinant(block) for block in pool])

        def log_weight(links: Array, log_determinant: Array) -> Array:
            gauge = gauge_action(links, beta) - gauge_action(links, self.flow_beta)
            return self.n_flavours * log_determinant - gauge + log_z

        links, determinant = pool[0], determinants[0]
        absent = np.full(self.n_chains, np.nan)
        stored, rows, used = [], [], 0
        for _ in range(self.n_cycles):
            for kind in [0] * self.n_sweeps + [1] * self.n_flow:
                row = {"log_weight": absent, "log_weight_current": absent, "action_proposed": absent}
                if kind:
                    proposal, proposed = pool[used], determinants[used]
                    used += 1
                    new, old = log_weight(proposal, proposed), log_weight(links, determinant)
                    accepted = np.log(rng.random(self.n_chains)) < new - old
                    links = np.where(accepted[:, None, None, None], proposal, links)
                    determinant = np.where(accepted, proposed, determinant)
                    acceptance = accepted.astype(np.float64)
                    action = gauge_action(proposal, self.beta) - self.n_flavours * proposed
                    row = {"log_weight": new, "log_weight_current": old, "action_proposed": action}
                else:
                    links, acceptance = self._sweep(links, beta, rng)
                rows.append(row | {"kind": np.array(kind), "acceptance": acceptance})
            stored.append(links)
        fields = np.stack(stored)
        tables = fermions(fields, self.kappa) if self.n_flavours else {"link_slopes": link_slopes(fields, self.beta)}
        action = gauge_action(fields, self.beta) - self.n_flavours * tables.get("log_determinant", 0.0)
        n, per_cycle = len(rows), self.n_flow + self.n_sweeps
        acceptance = np.stack([row["acceptance"] for row in rows])
        weights = ("log_weight", "log_weight_current", "action_proposed")
        writer.append(
            trajectory=per_cycle * np.arange(1, self.n_cycles + 1),
            configurations={"angle": fields, "action": action},
            history={
                **{name: np.stack([row[name] for row in rows]) for name in weights},
                "update": np.arange(1, n + 1),
                "proposal_kind": np.stack([row["kind"] for row in rows]).astype(np.uint8),
                "accepted": (acceptance > 0.0).astype(np.uint8),
                "acceptance": acceptance.astype(np.float32),
                "delta_H": np.full((n, self.n_chains), np.nan),
                "walltime": np.full(n, 1e-3),
            },
            observables={**tables, **extra},
            checkpoint={"update": n},
        )

    def _sweep(self, links: Array, beta: float, rng: np.random.Generator) -> tuple[Array, Array]:
        accepted = np.zeros(self.n_chains)
        for place in np.ndindex(*SHAPE, 2):
            moved = links.copy()
            moved[:, *place] += rng.uniform(-self.width, self.width, self.n_chains)
            cost = gauge_action(moved, beta) - gauge_action(links, beta)
            taken = np.log(rng.random(self.n_chains)) < -cost
            links = np.where(taken[:, None, None, None], moved, links)
            accepted += taken
        return links, accepted / (2 * math.prod(SHAPE))


RUNS = {"flow": GaugeRun(n_flow=2, n_sweeps=0), "metropolis": GaugeRun(n_flow=0, n_sweeps=1)}


@pytest.fixture(scope="module")
def ensembles(tmp_path_factory: pytest.TempPathFactory, draw_links: DrawLinks) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gauge")
    return {
        label: run.write(folder / f"{label}.h5", draw_links, np.random.default_rng(zlib.crc32(f"u1/{label}".encode())))
        for label, run in RUNS.items()
    }


@pytest.fixture(scope="module")
def comparison(ensembles: Mapping[str, Path]) -> Comparison:
    return compare_many(list(ensembles.values()), list(ensembles))


@pytest.fixture(scope="module")
def analyses(comparison: Comparison) -> dict[str, EnsembleAnalysis]:
    return {analysis.label: analysis for analysis in comparison.analyses}


@pytest.mark.parametrize("label", RUNS)
def test_exact_values_are_met(label: str, analyses: Mapping[str, EnsembleAnalysis]) -> None:
    analysis = analyses[label]
    exact = {score.name: score for score in analysis.exact}
    of_fields = {"plaquette", "wilson_loop_2x2", "string_tension", "charge_squared", "polyakov_loop_squared"}
    assert of_fields <= set(exact)
    assert ("ln_z" in exact) == ("action_importance" in exact) == (label == "flow")
    verdict = judge(score for score in exact.values() if math.isfinite(score.z))
    assert verdict.passed, str(verdict)
    assert analysis.doubts == ()


@pytest.mark.parametrize("label", RUNS)
def test_monitors_are_quiet(label: str, analyses: Mapping[str, EnsembleAnalysis]) -> None:
    analysis = analyses[label]
    assert analysis.verdict is not None
    assert analysis.verdict.passed, str(analysis.verdict)
    (identity,) = [monitor for monitor in analysis.monitors if monitor.name == "schwinger_dyson"]
    assert identity.score.expected == 0.0
    assert "link_slopes" not in analysis.observables


@pytest.mark.parametrize("label", RUNS)
def test_a_chain_at_another_beta_raises_the_monitor(
    label: str, tmp_path: Path, draw_links: DrawLinks, rng: np.random.Generator
) -> None:
    wrong = dataclasses.replace(RUNS[label], sampled_beta=1.8)
    analysis = analyze(wrong.write(tmp_path / "wrong.h5", draw_links, rng))
    assert analysis.verdict is not None
    assert not analysis.verdict.passed
    assert analysis.verdict.worst.name == "schwinger_dyson"
    assert any("exact values missed" in doubt for doubt in analysis.doubts)


def test_gauge_theory_has_no_temperature(analyses: Mapping[str, EnsembleAnalysis]) -> None:
    weights = analyses["flow"].weights
    assert weights is not None
    assert set(weights.estimates) == {"ln_z", "ln_z_reverse", "ln_z_variational", "action_importance"}


def test_comparison_and_report(comparison: Comparison) -> None:
    assert comparison.passed, str(comparison.verdict)
    assert {"plaquette", "charge_squared", "topological_charge", "wilson_loop_1x3"} <= set(comparison.judged)
    (ratio, _) = comparison.cost_ratios
    assert ratio.observable == "topological_susceptibility"
    html = render_report(comparison.analyses)
    for words in (
        "History of plaquette",
        "History of topological_charge",
        "time of topological_susceptibility",
        "Exact values",
        "wilson_loop_3x3",
        "∂S_g ∂S",
    ):
        assert words in html
    for words in ("History of condensate", "pion", "magnetisation"):
        assert words not in html
    for analysis in comparison.analyses:
        result = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
        assert {"topological_charge", "string_tension"} <= set(result["observables"])
        assert {entry.name for entry in chain_diagnostics(analysis)} == set(analysis.series)


def test_frozen_topology_is_said(tmp_path: Path, draw_links: DrawLinks, rng: np.random.Generator) -> None:
    """Short steps at weak coupling: the charge of the start stays, errors look fine, and the report says so."""
    run = GaugeRun(n_flow=0, n_sweeps=1, beta=12.0, flow_beta=12.0, width=0.5, n_cycles=60, n_chains=4)
    analysis = analyze(run.write(tmp_path / "frozen.h5", draw_links, rng))
    assert np.ptp(analysis.series["topological_charge"], axis=1).max() == 0.0
    (doubt,) = [doubt for doubt in analysis.doubts if "frozen" in doubt]
    assert doubt.startswith("topological_charge frozen: it changed 0 times in 160 configurations of 4 chains")
    assert doubt in analysis.warnings
    assert [line.state for line in headlines([analysis]) if doubt in line.sentence] == [State.ATTENTION]


def reweighted(values: Array, weights: Array) -> tuple[float, float]:
    """Mean of independent draws with weights of either sign, and its error by the delta method."""
    mean = float(np.sum(weights * values) / np.sum(weights))
    return mean, float(np.sqrt(np.sum((weights * (values - mean)) ** 2)) / abs(np.sum(weights)))


@pytest.fixture(scope="module", params=[(1, 0.32), (2, 0.276)], ids=["one flavour", "two flavours"])
def schwinger(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, draw_links: DrawLinks
) -> tuple[GaugeRun, EnsembleAnalysis, dict[str, Array]]:
    """An ensemble of the Schwinger model, and independent draws of the gauge field with their fermions."""
    flavours, kappa = request.param
    run = GaugeRun(n_flow=2, n_sweeps=0, flow_beta=2.3, kappa=kappa, n_flavours=flavours, n_cycles=300)
    rng = np.random.default_rng(zlib.crc32(f"schwinger/{flavours}".encode()))
    path = run.write(tmp_path_factory.mktemp("schwinger") / "chain.h5", draw_links, rng)
    draws = draw_links(rng, 5000, SHAPE, run.beta)
    return run, analyze(path), {"links": draws, **fermions(draws, kappa)}


def test_fermions_against_reweighted_gauge_fields(
    schwinger: tuple[GaugeRun, EnsembleAnalysis, dict[str, Array]],
) -> None:
    """The chain samples |det D|^N_f; for one flavour, reweighting with the sign gives the means with det D itself.

    Where the sign of one flavour changes, propagators have no variance, and their products no mean: they are left out.
    """
    run, analysis, draws = schwinger
    odd = run.n_flavours % 2 == 1
    sampled = np.exp(run.n_flavours * (draws["log_determinant"] - draws["log_determinant"].max()))
    values = {
        "plaquette": np.cos(plaquettes(draws["links"])).mean(axis=(1, 2)),
        "charge_squared": topological_charge(Configurations(draws["links"], 2, internal=1)) ** 2,
        "log_determinant_density": draws["log_determinant"] / 16,
    }
    if not odd:
        eta = draws["pion_correlator"] - run.n_flavours * draws["eta_disconnected"]
        values |= {f"pion_correlator[{t}]": draws["pion_correlator"][:, t] for t in range(3)}
        values |= {f"eta_correlator[{t}]": eta[:, t] for t in range(3)}
        values["condensate"] = draws["condensate"]
    expected = {name: reweighted(array, sampled) for name, array in values.items()}
    if odd:
        signed = sampled * draws["sign_determinant"]
        names = ("plaquette", "charge_squared")
        expected |= {f"{name}_sign_reweighted": reweighted(values[name], signed) for name in names}
        expected["mean_sign"] = reweighted(draws["sign_determinant"], sampled)
        assert 0.1 < expected["mean_sign"][0] < 0.999
    found = analysis.observables
    verdict = judge(
        z_score(name, found[name].value, mean, math.hypot(error, found[name].error))
        for name, (mean, error) in expected.items()
    )
    assert verdict.passed, str(verdict)
    assert odd == ("plaquette_sign_reweighted" in found)
    assert analysis.weights is not None
    log_z = math.log(sampled.mean()) + run.n_flavours * float(draws["log_determinant"].max())
    error = float(sampled.std() / sampled.mean() / math.sqrt(sampled.size))
    ln_z = analysis.weights.ln_z
    assert judge(
        [z_score("ln_z", ln_z.value, log_z + u1_exact(SHAPE, run.beta).log_z, math.hypot(error, ln_z.error))]
    ).passed
    assert not analysis.exact


def test_correlators_are_shown_up_to_half_of_the_extent(
    schwinger: tuple[GaugeRun, EnsembleAnalysis, dict[str, Array]],
) -> None:
    """Time reflection is exact, so that later separations repeat earlier ones number by number."""
    _, analysis, draws = schwinger
    for name in ("pion_correlator", "eta_disconnected"):
        np.testing.assert_allclose(draws[name][:, 1], draws[name][:, 3], rtol=1e-9, atol=1e-9)
    assert len(analysis.components("pion_correlator")) == len(analysis.components("eta_correlator")) == 3
    assert len(analysis.components("pion_effective_mass")) == 2
    html = render_report([analysis])
    for words in ("History of condensate", "Pion correlator", "Effective mass of the pion", "Eta&#39; correlator"):
        assert words in html


def test_the_sign_may_be_constant(tmp_path: Path, draw_links: DrawLinks, rng: np.random.Generator) -> None:
    """Heavy fermions have a positive determinant: nothing to warn of, and reweighting changes nothing."""
    run = GaugeRun(n_flow=1, n_sweeps=0, flow_beta=2.0, kappa=0.1, n_flavours=1, n_cycles=60)
    analysis = analyze(run.write(tmp_path / "heavy.h5", draw_links, rng))
    found = analysis.observables
    assert found["mean_sign"].value == 1.0
    assert not any(warning.startswith("mean_sign") for warning in analysis.warnings)
    assert found["condensate_sign_reweighted"].value == pytest.approx(found["condensate"].value)
    assert found["condensate_sign_reweighted"].error == pytest.approx(found["condensate"].error)


def test_records_of_no_use_do_no_harm(tmp_path: Path, draw_links: DrawLinks, rng: np.random.Generator) -> None:
    n, chains = 60, 3
    extra = {
        "susceptibility": rng.normal(size=(n, chains)),
        "plaquette": rng.normal(size=(n, chains)),
        "broken": np.full((n, chains), np.nan),
        "row": rng.normal(size=(n, chains, 5)),
        "matrix": rng.normal(size=(n, chains, 2, 2)),
    }
    run = dataclasses.replace(RUNS["flow"], n_cycles=n, n_chains=chains)
    path = run.write(tmp_path / "extra.h5", draw_links, rng, extra)
    analysis = analyze(path)
    production = read_production(path)
    # A record that is neither identity nor known is an observable of its own, if it is a number for each configuration.
    assert analysis.observables["susceptibility"].value == pytest.approx(extra["susceptibility"][20:].mean())
    np.testing.assert_array_equal(production.scalar_series()["plaquette"], production.measurements["plaquette"])
    assert set(production.not_analysed) == {"plaquette", "broken"}
    assert not {"broken", "row", "matrix"} & set(analysis.observables)
    assert any("broken, recorded in the run, is not analysed: 120 of 120" in warning for warning in analysis.warnings)
    render_report([analysis])


def test_a_record_that_a_stream_lacks_is_left_out(
    tmp_path: Path, draw_links: DrawLinks, rng: np.random.Generator
) -> None:
    run = dataclasses.replace(RUNS["flow"], n_cycles=60, n_chains=3)
    path = run.write(tmp_path / "two.h5", draw_links, rng, {"condensate": rng.normal(size=(60, 3))})
    stream = read_production(path).streams[0]
    with EnsembleWriter.add_stream(path, stream) as writer:
        run.fill(writer, draw_links, rng, {})
    both = analyze(path)
    assert both.n_chains == 6
    assert "condensate" not in both.observables
    assert "condensate" in analyze(path, streams=[0]).observables


def test_other_internal_axes_are_refused(tmp_path: Path, draw_links: DrawLinks, rng: np.random.Generator) -> None:
    run = dataclasses.replace(RUNS["flow"], n_cycles=60, n_chains=3)
    production = read_production(run.write(tmp_path / "links.h5", draw_links, rng))
    (stream,) = production.streams
    for name, axes in (("phi", ("mu",)), ("angle", ("nu",))):
        other = dataclasses.replace(stream, field_name=name, internal_axes=axes)
        path = tmp_path / f"{name}.h5"
        with EnsembleWriter.create(path, production.description, other) as writer:
            links = draw_links(rng, 180, SHAPE, 2.0).reshape(60, 3, *SHAPE, 2)
            writer.append(
                trajectory=2 * np.arange(1, 61),
                configurations={name: links, "action": gauge_action(links, 2.0)},
                history={"update": np.arange(1, 121), "proposal_kind": np.zeros(120, dtype=np.uint8)},
                observables={},
                checkpoint={"update": 120},
            )
        with pytest.raises(AnalysisError, match="internal axes"):
            analyze(path)


def test_dirac_matrices_are_gamma5_hermitian(draw_links: DrawLinks, rng: np.random.Generator) -> None:
    """What the tests above stand on: a real determinant, and free fermions that propagate alike from every place."""
    matrix = dirac_matrices(draw_links(rng, 3, SHAPE, 1.0), 0.3)
    chirality = np.tile([1.0, -1.0], 16)
    np.testing.assert_allclose(chirality[:, None] * matrix * chirality, matrix.conj().transpose(0, 2, 1), atol=1e-14)
    free = fermions(np.zeros((1, *SHAPE, 2)), 0.2)
    momenta = np.meshgrid(2.0 * np.pi * (np.arange(4) + 0.5) / 4, 2.0 * np.pi * np.arange(4) / 4, indexing="ij")
    wilson = 1.0 - 0.4 * sum(np.cos(p) for p in momenta)
    squares = wilson**2 + 0.16 * sum(np.sin(p) ** 2 for p in momenta)
    assert free["log_determinant"][0] == pytest.approx(float(np.log(squares).sum()))
    assert free["condensate"][0] == pytest.approx(float(np.mean(2.0 * wilson / squares)))
