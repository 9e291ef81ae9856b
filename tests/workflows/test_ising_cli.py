"""The command line with the Ising model: every kernel, exact values, resumption, what is refused before a training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmc.flows import load_flow
from flowmc.testing import ExactIsing
from flowmc.theories import Ising
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.zscores import judge, z_score
from flowmc_ensembles import Ensemble

Command = Callable[..., Any]

THEORY = Ising((4, 4), 0.4)
KERNELS = ("hybrid", "heat_bath", "metropolis", "wolff", "swendsen_wang", "blocks+flow")


def edited(config: Path, *changes: tuple[str, str]) -> Path:
    text = config.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    return config


def spins(path: Path) -> np.ndarray:
    found: np.ndarray = Ensemble(path).streams[0].configurations()
    return found


class TestRun:
    def test_leaves_an_ensemble_of_every_kernel(self, finished_ising: Path) -> None:
        names = {item.name for item in (finished_ising / "out").iterdir()}
        assert {"flow.safetensors", "report.html", "analysis.json", *(f"{kernel}.h5" for kernel in KERNELS)} <= names
        analysis = json.loads((finished_ising / "out" / "analysis.json").read_text())
        assert analysis["consistent"]
        assert analysis["comparison"]["labels"] == list(KERNELS)

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_every_ensemble_has_the_exact_values(self, kernel: str, finished_ising: Path) -> None:
        exact = ExactIsing(THEORY)
        field = spins(finished_ising / "out" / f"{kernel}.h5")
        assert field.shape == (200, 8, 4, 4)

        def observables(configurations: np.ndarray) -> dict[str, np.ndarray]:
            mean = np.abs(configurations.mean(axis=(-2, -1)))
            action = THEORY.action(configurations.reshape(-1, 4, 4)).reshape(mean.shape)
            return {"action": action, "magnetisation_abs": mean, "susceptibility": 16 * mean**2}

        scores = []
        known = observables(exact.states)
        for name, series in observables(field).items():
            estimate = gamma_method(series.T).estimate
            scores.append(z_score(name, estimate.value, exact.expectation(known[name]), estimate.error))
        assert judge(scores, level=1e-4).passed, scores

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_ensembles_hold_spins_and_say_how_they_were_made(self, kernel: str, finished_ising: Path) -> None:
        ensemble = Ensemble(finished_ising / "out" / f"{kernel}.h5")
        stream = ensemble.streams[0]
        assert ensemble.description.theory == "ising"
        assert ensemble.description.action == THEORY.describe()
        assert stream.description.field_name == "spin"
        field = stream.configurations()
        assert field.dtype == np.int8
        assert set(np.unique(field)) == {-1, 1}
        kinds = "heat_bath+flow" if kernel == "hybrid" else kernel
        assert list(stream.description.proposal_kinds.values()) == kinds.split("+")
        assert {"acceptance", "action_proposed"} <= set(stream.history_names)
        np.testing.assert_allclose(
            np.asarray(stream.observable("local_field"), dtype=np.float64),
            THEORY.identities()["local_field"](field.reshape(-1, 4, 4)).reshape(200, 8),
            atol=1e-12,
        )
        assert (stream.description.flow_sha256 != "") == ("flow" in kinds)

    def test_resume_of_a_finished_run_repeats_the_report(
        self, finished_ising: Path, tmp_path: Path, flowmc: Command, ising_config: Path
    ) -> None:
        shutil.copytree(finished_ising / "out", tmp_path / "out")
        outcome = flowmc("run", ising_config, "--output", "out", "--resume", "--json")
        assert outcome.exit_code == 0, outcome.output
        assert json.loads(outcome.stdout)["consistent"]

    def test_other_commands(self, finished_ising: Path, flowmc: Command) -> None:
        out = finished_ising / "out"
        certificate = json.loads(flowmc("certify", out / "flow.safetensors", "--json").stdout)
        assert certificate["passed"]
        assert "total probability minus one" in {check["name"] for check in certificate["checks"]}
        summary = flowmc("inspect", out / "blocks+flow.h5", "--json", "--verify")
        assert summary.exit_code == 0
        assert json.loads(summary.stdout)["theory"] == "ising"
        compared = flowmc("compare", out / "wolff.h5", out / "heat_bath.h5", "--json")
        assert compared.exit_code == 0, compared.output
        analysed = flowmc("analyze", out / "hybrid.h5", "--json")
        assert analysed.exit_code == 0, analysed.output
        assert {"energy", "magnetisation_abs", "specific_heat"} <= set(json.loads(analysed.stdout)["observables"])


class TestSample:
    @pytest.mark.parametrize("kernel", ["heat_bath+blocks+flow", "wolff+flow", "swendsen_wang", "metropolis"])
    def test_extension_equals_the_longer_run(
        self, kernel: str, finished_ising: Path, tmp_path: Path, flowmc: Command, ising_config: Path
    ) -> None:
        flow = ("--flow", finished_ising / "out" / "flow.safetensors") if "flow" in kernel else ()
        config = edited(ising_config, ("[sampling]", f'[sampling]\nkernel = "{kernel}"'), ("= 40", "= 20"))
        for cycles, output in (("= 60", "whole.h5"), ("= 20", "parts.h5"), ("= 60", "parts.h5")):
            text = config.read_text()
            current = next(line for line in text.splitlines() if line.startswith("cycles "))
            edited(config, (f"{current}\n", f"cycles {cycles}\n"))
            outcome = flowmc("sample", config, *flow, "--output", output, "--resume")
            assert outcome.exit_code == 0, outcome.output
        one, other = (Ensemble(tmp_path / name).streams[0] for name in ("whole.h5", "parts.h5"))
        np.testing.assert_array_equal(one.configurations(), other.configurations())
        for name in set(one.history_names) - {"walltime"}:
            np.testing.assert_array_equal(one.history(name), other.history(name), err_msg=name)

    def test_killed_training_resumes_to_the_same_flow(
        self, finished_ising: Path, tmp_path: Path, flowmc: Command, ising_config: Path
    ) -> None:
        stopped = flowmc("train", ising_config, "--output", "f.safetensors", "--max-minutes", "0.0001")
        assert stopped.exit_code == 0
        assert flowmc("train", ising_config, "--output", "f.safetensors", "--resume").exit_code == 0
        _, saved = load_flow(tmp_path / "f.safetensors")
        _, whole = load_flow(finished_ising / "out" / "flow.safetensors")
        assert saved.fingerprint == whole.fingerprint

    def test_start_from_the_last_state_of_another_kernel(
        self, finished_ising: Path, tmp_path: Path, flowmc: Command, ising_config: Path
    ) -> None:
        parent = finished_ising / "out" / "heat_bath.h5"
        change = ("[sampling]", f'[sampling]\nkernel = "wolff"\nstart_from = "{parent}"')
        config = edited(ising_config, change, ("thermalisation = 40", "thermalisation = 0"))
        outcome = flowmc("sample", config, "--output", "next.h5")
        assert outcome.exit_code == 0, outcome.output
        changed = (spins(tmp_path / "next.h5")[0] != spins(parent)[-1]).reshape(8, -1).sum(axis=1)
        # One cluster was turned over in each chain.
        assert ((changed >= 1) & (changed <= 16)).all()


PHI4 = ('name = "ising"\nshape = [4, 4]\nbeta = 0.4', 'name = "phi4"\nshape = [4, 4]\nm2 = -4.0\nlam = 8.0')
COUPLING = ('kind = "hierarchical"', 'kind = "coupling"')
BASELINES = '["heat_bath", "metropolis", "wolff", "swendsen_wang", "blocks+flow"]'
WITHOUT_ANNEALING = ("annealing = 0.9", "annealing = 0.0")
START_FROM = ("[training]", '[training]\nstart_from = "nowhere.safetensors"')


def kernel(name: str) -> tuple[str, str]:
    return ("[sampling]", f'[sampling]\nkernel = "{name}"')


WRONG: dict[str, tuple[list[tuple[str, str]], str]] = {
    "hmc for spins": ([kernel("hmc")], "heat_bath"),
    "hmc for spins in a hybrid": ([kernel("hmc+flow")], "heat_bath"),
    "heat bath for real fields": ([PHI4, COUPLING, WITHOUT_ANNEALING, kernel("heat_bath+flow")], "phi4"),
    "clusters of real fields": ([PHI4, COUPLING, WITHOUT_ANNEALING, kernel("wolff+flow")], "phi4"),
    "a hierarchical flow of real fields": (
        [PHI4, kernel("hmc+flow"), (BASELINES, "[]")],
        "TheoryMismatchError",
    ),
    "a coupling flow of spins": ([COUPLING], "TheoryMismatchError"),
    "odd extents on the checkerboard": (
        [("[4, 4]", "[3, 5]"), ('kind = "hierarchical"', 'kind = "autoregressive"')],
        "even extents",
    ),
    "a hierarchy that does not fit": ([("[4, 4]", "[10, 10]")], "L = 4, 8, 16"),
    "blocks without a hierarchy": (
        [('kind = "hierarchical"', 'kind = "autoregressive"')],
        'hierarchical flow: kind = "hierarchical"',
    ),
    "blocks of a side that there is not": ([("[sampling]", "[sampling]\nblock_side = 3")], "[1]"),
    "differentiated draws of spins": ([('objective = "reinforce"', 'objective = "reverse_kl"')], "reinforce"),
    "one draw": ([("batch_size = 64", "batch_size = 1")], "batch_size = 1"),
    "flow proposals first": ([kernel("flow+heat_bath")], "last"),
    "spin flip in a field": ([("beta = 0.4", "beta = 0.4\nfield = 0.1")], "z2 = false"),
    "spins at another temperature": (
        [("annealing = 0.9", 'annealing = 0.9\nannealing_path = "temperature"')],
        "couplings",
    ),
    "annealing that ends before the target": ([("annealing = 0.9", "annealing = 0.95")], "target is not reached"),
    "annealing of weights that were taken over": ([START_FROM], "annealing begins far from the target"),
    "a flow to start from that is not there": ([START_FROM, WITHOUT_ANNEALING], "does not exist"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_before_the_training(case: str, tmp_path: Path, flowmc: Command, ising_config: Path) -> None:
    changes, word = WRONG[case]
    outcome = flowmc("run", edited(ising_config, *changes), "--output", "out")
    assert outcome.exit_code == 1
    assert word in outcome.stderr
    for part in ("got:", "expected:", "fix:"):
        assert part in outcome.stderr
    assert not list(tmp_path.glob("out/*"))
