"""Chains of emcee as ensembles, and ensembles as chains of emcee: by function and from the command line."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emcee
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from flowmc.errors import (
    ConfigError,
    LatticeMismatchError,
    NonFiniteError,
    ParameterError,
    RunExistsError,
    TheoryMismatchError,
)
from flowmc.testing import GaussianProposal
from flowmc.theories import DensityTheory, FreeScalar, Ising, Theory
from flowmc.workflows import conversions
from flowmc.workflows.conversions import convert, ensemble_from_emcee, ensemble_to_emcee
from flowmc.workflows.samples import read_samples
from flowmc_adapters.emcee import FlowMove
from flowmc_adapters.emcee_backend import BackendError, write_backend
from flowmc_analysis.ensemble import analyze
from flowmc_analysis.gamma import gamma_method
from flowmc_ensembles import Ensemble, EnsembleError

Array = NDArray[np.float64]
Command = Callable[..., Any]

THEORY = FreeScalar((4, 2), 1.2)
WALKERS, STEPS = 10, 800
RUN = """
[theory]
name = "free_scalar"
shape = [4, 2]
mass = 1.2

[sampling]
kernel = "hmc"
seed = 5
chains = 10
cycles = 400
thermalisation = 100
tuning = 50
cycles_per_block = 50
"""


def log_prob(x: Array) -> Array:
    """The theory's, up to a constant and for flat walkers."""
    found: Array = 7.0 - THEORY.action(x.reshape(-1, 4, 2))
    return found


def run_emcee(path: Path, steps: int, seed: int, target: Callable[[Array], Array] = log_prob, **options: Any) -> None:
    moves = [(FlowMove(GaussianProposal((4, 2), 0.45)), 0.4), (emcee.moves.GaussianMove(0.02), 0.6)]
    backend = emcee.backends.HDFBackend(path, **options)
    sampler = emcee.EnsembleSampler(WALKERS, 8, target, moves=moves, vectorize=True, backend=backend)
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(np.zeros((WALKERS, 8)), steps, skip_initial_state_check=True)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of the free field by emcee; tests must not change it."""
    path = tmp_path_factory.mktemp("emcee") / "emcee.h5"
    run_emcee(path, STEPS, zlib.crc32(b"tests/workflows/test_conversions.py::chain"))
    return path


@pytest.fixture
def description(tmp_path: Path) -> Path:
    path = tmp_path / "free.toml"
    path.write_text(RUN)
    return path


@pytest.fixture
def hmc(tmp_path: Path, flowmc: Command, description: Path) -> Path:
    assert flowmc("sample", description, "--output", "hmc.h5").exit_code == 0
    return tmp_path / "hmc.h5"


class TestFromEmcee:
    @pytest.mark.parametrize(("discard", "thin"), [(0, 1), (100, 1), (37, 5)])
    def test_holds_what_emcee_stored(self, chain: Path, tmp_path: Path, discard: int, thin: int) -> None:
        done = ensemble_from_emcee(chain, THEORY, tmp_path / "ens.h5", discard=discard, thin=thin)
        theirs = emcee.backends.HDFBackend(chain, read_only=True)
        stream = Ensemble(tmp_path / "ens.h5").streams[0]
        expected = theirs.get_chain(discard=discard, thin=thin).reshape(-1, WALKERS, 4, 2)
        np.testing.assert_array_equal(stream.configurations(), expected)
        assert (done.n_configurations, done.n_chains) == expected.shape[:2]
        np.testing.assert_allclose(
            7.0 - stream.configurations("action").astype(float),
            theirs.get_log_prob(discard=discard, thin=thin),
            rtol=1e-12,
        )
        np.testing.assert_array_equal(stream.trajectory, np.arange(1, STEPS + 1)[discard + thin - 1 :: thin])
        np.testing.assert_array_equal(stream.history("update"), np.arange(discard + 1, STEPS + 1))
        virial = THEORY.virial(expected.reshape(-1, 4, 2)).reshape(expected.shape[:2])
        np.testing.assert_allclose(stream.observable("virial").astype(float), virial)
        if not discard:
            np.testing.assert_array_equal(stream.history("accepted").sum(axis=0), theirs.accepted)

    def test_says_what_it_is(self, chain: Path, tmp_path: Path) -> None:
        ensemble_from_emcee(chain, THEORY, tmp_path / "ens.h5", discard=100)
        ensemble = Ensemble(tmp_path / "ens.h5")
        stream = ensemble.streams[0].description
        assert ensemble.description.action == THEORY.describe()
        assert (stream.algorithm, stream.flow_sha256, dict(stream.proposal_kinds)) == ("emcee", "", {0: "emcee"})
        assert stream.thermalisation_updates == 100
        assert str(stream.algorithm_parameters["seed"]).startswith("unknown")
        source: Any = ensemble.description.run["converted_from"]
        assert source["log_prob_plus_action"] == pytest.approx(7.0)
        assert source["emcee_version"] == emcee.__version__
        assert ensemble.streams[0].attributes["finished"] is True
        assert np.isnan(ensemble.streams[0].history("walltime")).all()

    def test_autocorrelation_time_is_half_of_emcee_s(self, chain: Path, tmp_path: Path) -> None:
        ensemble_from_emcee(chain, THEORY, tmp_path / "ens.h5", discard=100)
        fields = Ensemble(tmp_path / "ens.h5").streams[0].configurations()
        theirs = emcee.backends.HDFBackend(chain, read_only=True).get_autocorr_time(discard=100, tol=0)
        for site in range(8):
            ours = gamma_method(fields.reshape(-1, WALKERS, 8)[..., site].T).estimate
            assert abs(theirs[site] - 2 * ours.tau_int) < 5 * 2 * ours.tau_int_error

    def test_is_analysed(self, chain: Path, tmp_path: Path) -> None:
        ensemble_from_emcee(chain, THEORY, tmp_path / "ens.h5", discard=100, seconds=12.0)
        analysis = analyze(tmp_path / "ens.h5")
        theirs = emcee.backends.HDFBackend(chain, read_only=True)
        assert analysis.acceptance == pytest.approx(float(theirs.accepted.mean()) / STEPS, abs=0.05)
        assert analysis.verdict is not None
        assert analysis.verdict.passed
        assert analysis.exact
        assert all(abs(score.z) < 5 for score in analysis.exact)
        assert analysis.cost.sampling_seconds == pytest.approx(12.0 * 700 / 800)

    def test_many_blocks_are_one(self, chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ensemble_from_emcee(chain, THEORY, tmp_path / "one.h5", discard=10, thin=7)
        monkeypatch.setattr(conversions, "BLOCK_NUMBERS", 300 * WALKERS * 8)
        ensemble_from_emcee(chain, THEORY, tmp_path / "many.h5", discard=10, thin=7)
        one, many = (Ensemble(tmp_path / name).streams[0] for name in ("one.h5", "many.h5"))
        np.testing.assert_array_equal(one.configurations(), many.configurations())
        np.testing.assert_array_equal(one.trajectory, many.trajectory)
        for name in ("update", "accepted", "action"):
            np.testing.assert_array_equal(one.history(name), many.history(name))
        last = emcee.backends.HDFBackend(chain, read_only=True).get_chain()[-1].reshape(WALKERS, 4, 2)
        for stream in (one, many):
            found = stream.checkpoint()
            assert found is not None
            np.testing.assert_array_equal(found["state.field"], last)

    def test_a_run_starts_from_it(self, chain: Path, tmp_path: Path, flowmc: Command, description: Path) -> None:
        ensemble_from_emcee(chain, THEORY, tmp_path / "ens.h5")
        description.write_text(description.read_text() + 'start_from = "ens.h5"\n')
        assert flowmc("sample", description, "--output", "hmc.h5").exit_code == 0
        assert Ensemble(tmp_path / "hmc.h5").streams[0].description.parent_stream.startswith("ens.h5#stream_0000")

    def test_samples_of_it_have_no_cost_that_is_known(self, chain: Path, tmp_path: Path) -> None:
        ensemble_from_emcee(chain, THEORY, tmp_path / "ens.h5", discard=600)
        samples = read_samples(tmp_path / "ens.h5", THEORY)
        assert samples.fields.shape == (200 * WALKERS, 4, 2)
        assert samples.seconds == 0.0

    def test_of_a_log_density(self, chain: Path, tmp_path: Path) -> None:
        theory = DensityTheory((4, 2), lambda x: -jnp.asarray(THEORY.action(x[None]))[0], "free field")
        ensemble_from_emcee(chain, theory, tmp_path / "ens.h5", discard=100)
        analysis = analyze(tmp_path / "ens.h5")
        assert analysis.description.action["label"] == "free field"
        assert analysis.verdict is not None
        assert analysis.verdict.passed


class TestRefusals:
    @pytest.mark.parametrize("theory", [FreeScalar((4, 2), 1.21), FreeScalar((2, 4), 1.2)], ids=str)
    def test_another_target(self, chain: Path, tmp_path: Path, theory: Theory) -> None:
        with pytest.raises(TheoryMismatchError, match="scatters"):
            ensemble_from_emcee(chain, theory, tmp_path / "ens.h5")
        assert not list(tmp_path.iterdir())

    def test_another_shape_or_space(self, chain: Path, tmp_path: Path) -> None:
        with pytest.raises(LatticeMismatchError):
            ensemble_from_emcee(chain, FreeScalar((4, 4), 1.2), tmp_path / "ens.h5")
        with pytest.raises(TheoryMismatchError, match="spin"):
            ensemble_from_emcee(chain, Ising((4, 2), 0.4), tmp_path / "ens.h5")

    @pytest.mark.parametrize(("discard", "thin"), [(-1, 1), (STEPS, 1), (0, 0), (0, STEPS + 1)])
    def test_nothing_left(self, chain: Path, tmp_path: Path, discard: int, thin: int) -> None:
        with pytest.raises(ParameterError):
            ensemble_from_emcee(chain, THEORY, tmp_path / "ens.h5", discard=discard, thin=thin)
        assert not list(tmp_path.iterdir())

    def test_existing_target(self, chain: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.h5").write_bytes(b"precious")
        with pytest.raises(RunExistsError):
            ensemble_from_emcee(chain, THEORY, tmp_path / "mine.h5")
        assert (tmp_path / "mine.h5").read_bytes() == b"precious"

    def test_single_precision_by_its_tolerance(self, tmp_path: Path, test_seed: int) -> None:
        def single(x: Array) -> Array:
            return log_prob(x).astype(np.float32).astype(np.float64)

        run_emcee(tmp_path / "target.h5", 20, test_seed % 2**32, single)
        with pytest.raises(TheoryMismatchError, match="tolerance"):
            ensemble_from_emcee(tmp_path / "target.h5", THEORY, tmp_path / "ens.h5")
        ensemble_from_emcee(tmp_path / "target.h5", THEORY, tmp_path / "ens.h5", tolerance=1e-5)
        # Stored in single precision, positions are rounded as well.
        run_emcee(tmp_path / "stored.h5", 20, test_seed % 2**32, dtype=np.float32)
        ensemble_from_emcee(tmp_path / "stored.h5", THEORY, tmp_path / "stored_ens.h5")
        with pytest.raises(TheoryMismatchError):
            ensemble_from_emcee(tmp_path / "stored.h5", FreeScalar((4, 2), 1.21), tmp_path / "other.h5")

    def test_single_precision_on_the_command_line(self, tmp_path: Path, test_seed: int, flowmc: Command) -> None:
        def single(x: Array) -> Array:
            return log_prob(x).astype(np.float32).astype(np.float64)

        run_emcee(tmp_path / "target.h5", 20, test_seed % 2**32, single)
        (tmp_path / "run.toml").write_text(RUN)
        arguments = ("convert", tmp_path / "target.h5", tmp_path / "ens.h5", "--theory", tmp_path / "run.toml")
        assert "--tolerance" in flowmc(*arguments).output
        assert flowmc(*arguments, "--tolerance", "1e-5").exit_code == 0

    def test_steps_that_were_left_out_are_told(self, tmp_path: Path, test_seed: int) -> None:
        for thin_by, told in ((1, False), (5, True)):
            path = tmp_path / f"by_{thin_by}.h5"
            backend = emcee.backends.HDFBackend(path)
            moves = emcee.moves.GaussianMove(0.02)
            sampler = emcee.EnsembleSampler(WALKERS, 8, log_prob, moves=moves, vectorize=True, backend=backend)
            sampler.random_state = np.random.RandomState(test_seed % 2**32).get_state()
            sampler.run_mcmc(np.zeros((WALKERS, 8)), 60, thin_by=thin_by, skip_initial_state_check=True)
            done = ensemble_from_emcee(path, THEORY, tmp_path / f"ens_{thin_by}.h5")
            assert done.steps_left_out == told
            parameters = Ensemble(done.target).streams[0].description.algorithm_parameters
            assert ("accepted" in parameters) == told

    def test_impossible_states(self, tmp_path: Path, rng: np.random.Generator) -> None:
        fields = rng.standard_normal((10, 3, 4, 2))
        density = log_prob(fields).reshape(10, 3)
        density[:2] = -np.inf
        write_backend(tmp_path / "emcee.h5", fields, density)
        with pytest.raises(NonFiniteError, match="discard"):
            ensemble_from_emcee(tmp_path / "emcee.h5", THEORY, tmp_path / "ens.h5")
        assert ensemble_from_emcee(tmp_path / "emcee.h5", THEORY, tmp_path / "ens.h5", discard=2).n_configurations == 8

    def test_theories_where_they_belong(self, chain: Path, hmc: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--theory"):
            convert(chain, tmp_path / "out.h5")
        with pytest.raises(ConfigError, match="leave --theory out"):
            convert(hmc, tmp_path / "out.h5", theory=THEORY)
        with pytest.raises(EnsembleError):
            convert(tmp_path / "none.h5", tmp_path / "out.h5")
        with pytest.raises(BackendError):
            ensemble_from_emcee(hmc, THEORY, tmp_path / "out.h5")


class TestToEmcee:
    def test_there_and_back(self, hmc: Path, tmp_path: Path) -> None:
        done = ensemble_to_emcee(hmc, tmp_path / "emcee.h5", discard=10, thin=3)
        ours = Ensemble(hmc).streams[0]
        kept = slice(10 + 2, None, 3)
        backend = emcee.backends.HDFBackend(tmp_path / "emcee.h5", read_only=True)
        np.testing.assert_array_equal(backend.get_chain(), ours.configurations()[kept].reshape(-1, 10, 8))
        np.testing.assert_array_equal(backend.get_log_prob(), -ours.configurations("action")[kept].astype(float))
        assert (done.n_configurations, done.n_chains) == (130, 10)
        back = convert(tmp_path / "emcee.h5", tmp_path / "back.h5", theory=THEORY)
        assert back.kind == "ensemble"
        np.testing.assert_array_equal(
            Ensemble(tmp_path / "back.h5").streams[0].configurations(), ours.configurations()[kept]
        )

    def test_emcee_continues(self, hmc: Path, tmp_path: Path) -> None:
        ensemble_to_emcee(hmc, tmp_path / "emcee.h5")
        backend = emcee.backends.HDFBackend(tmp_path / "emcee.h5")
        sampler = emcee.EnsembleSampler(
            10, 8, lambda x: log_prob(x) - 7.0, moves=emcee.moves.GaussianMove(0.02), vectorize=True, backend=backend
        )
        sampler.run_mcmc(None, 50, skip_initial_state_check=True)
        # One chain of one target, the constant included.
        done = convert(tmp_path / "emcee.h5", tmp_path / "longer.h5", theory=THEORY)
        assert done.n_configurations == 450
        assert not list(tmp_path.glob("*.tmp"))

    def test_what_is_refused(self, hmc: Path, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="stream"):
            ensemble_to_emcee(hmc, tmp_path / "emcee.h5", stream=1)
        for discard, thin in ((400, 1), (-1, 1), (0, 0)):
            with pytest.raises(ParameterError, match="left"):
                ensemble_to_emcee(hmc, tmp_path / "emcee.h5", discard=discard, thin=thin)
        assert not (tmp_path / "emcee.h5").exists()
        with pytest.raises(RunExistsError):
            ensemble_to_emcee(hmc, hmc)

    def test_spins_and_angles_are_refused(self, tmp_path: Path, flowmc: Command) -> None:
        for name, theory, kernel in (
            ("ising", 'name = "ising"\nshape = [4, 4]\nbeta = 0.4', "heat_bath"),
            ("u1", 'name = "u1"\nshape = [4, 4]\nbeta = 2.0', "hmc"),
        ):
            (tmp_path / f"{name}.toml").write_text(
                f'[theory]\n{theory}\n[sampling]\nkernel = "{kernel}"\nchains = 2\ncycles = 10\nthermalisation = 0\n'
                "tuning = 0\ncycles_per_block = 10\n"
            )
            assert flowmc("sample", f"{name}.toml", "--output", f"{name}.h5").exit_code == 0
            with pytest.raises(TheoryMismatchError, match="real field"):
                ensemble_to_emcee(tmp_path / f"{name}.h5", tmp_path / "emcee.h5")


class TestCommand:
    def test_convert_analyze_compare_inspect(self, chain: Path, hmc: Path, flowmc: Command, description: Path) -> None:
        outcome = flowmc("convert", chain, "ens.h5", "--theory", description, "--discard", "100", "--thin", "2")
        assert outcome.exit_code == 0, outcome.output
        assert "10 chains of 350 configurations" in outcome.stdout
        outcome = flowmc("analyze", "ens.h5", "--json")
        assert outcome.exit_code == 0, outcome.output
        found = json.loads(outcome.stdout)
        assert found["algorithm"] == "emcee"
        assert found["monitors_verdict"]["passed"]
        assert found["cost"]["sampling_seconds"] is None
        assert flowmc("analyze", "ens.h5").exit_code == 0
        for first, second in (("ens.h5", hmc), (hmc, "ens.h5")):
            outcome = flowmc("compare", first, second, "--json")
            assert outcome.exit_code == 0, outcome.output
            compared = json.loads(outcome.stdout)
            # Of a run whose wall time nobody knows no cost is claimed.
            assert compared["baseline"] == "hmc"
            assert flowmc("compare", first, second).exit_code == 0
        outcome = flowmc("inspect", "ens.h5", "--verify")
        assert outcome.exit_code == 0, outcome.output
        assert "emcee" in outcome.stdout

    def test_the_other_way(self, hmc: Path, tmp_path: Path, flowmc: Command) -> None:
        outcome = flowmc("convert", hmc, "new/emcee.h5", "--name", "run", "--stream", "0")
        assert outcome.exit_code == 0, outcome.output
        assert emcee.backends.HDFBackend(tmp_path / "new" / "emcee.h5", name="run").iteration == 400

    def test_errors_have_status_one(self, chain: Path, tmp_path: Path, flowmc: Command, description: Path) -> None:
        (tmp_path / "cut.h5").write_bytes(chain.read_bytes()[:5000])
        for said, arguments in (
            ("--theory", (chain, "out.h5")),
            ("exists", (chain, description, "--theory", description)),
            ("none.h5", ("none.h5", "out.h5")),
            ("no file none.h5", ("none.h5", "out.h5", "--theory", description)),
            ("shorter than its own header", ("cut.h5", "out.h5", "--theory", description)),
            ("HDF5", (description, "out.h5")),
            ("none.toml", (chain, "out.h5", "--theory", "none.toml")),
        ):
            outcome = flowmc("convert", *arguments)
            assert outcome.exit_code == 1, arguments
            assert said in outcome.stderr
            assert "fix" in outcome.stderr
        assert flowmc("convert", chain).exit_code == 2
        assert description.read_text() == RUN
        assert not (tmp_path / "out.h5").exists()
