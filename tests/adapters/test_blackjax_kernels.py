"""BlackJAX's kernels in our cycles: each is exact, what is not is refused, and a pilot's results survive resumption."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowmc.arrays import Array, namespace
from flowmc.config import SamplingConfig, parse_run
from flowmc.display import SilentDisplay
from flowmc.errors import ConfigError, ParameterError, RunExistsError
from flowmc.kernels import Cycle, CycleMember, FlowProposals, Independence
from flowmc.sampling import MemoryStore, SamplingPlan, SamplingResult, sample
from flowmc.testing import ExactStart, GaussianProposal, KernelContract, exact_start_scores, gauge_start
from flowmc.theories import (
    CallableTheory,
    ContinuousSpace,
    FreeScalar,
    Ising,
    RealSpace,
    SmoothTheory,
    Theory,
    U1Gauge2D,
)
from flowmc.workflows.ensembles import sample_ensemble
from flowmc_adapters.blackjax import ALGORITHMS, REFUSED, BlackJAXUpdates, FlowSMC, Pilot, hmc
from flowmc_adapters.blackjax.kernels import _ALIASES
from flowmc_adapters.blackjax.multinomial import multinomial_proposal
from flowmc_analysis.zscores import family_p_value
from flowmc_ensembles import Ensemble

FREE = FreeScalar((4, 2), 0.8)
FALSE_ALARM = 1e-5
CHAINS = 1000
# Large steps, at which a kernel that is not exact shows it.
CASES: dict[str, dict[str, float]] = {
    "hmc": {"step_size": 0.35, "num_integration_steps": 3, "inverse_mass_matrix": 0.7},
    "mhmc": {"step_size": 0.45, "num_integration_steps": 3},
    "dhmc": {"step_size": 0.35, "num_integration_steps": 5},
    "dmhmc": {"step_size": 0.45, "num_integration_steps": 5},
    "nuts": {"step_size": 0.4, "max_num_doublings": 3},
    "ghmc": {"step_size": 0.6, "inverse_mass_matrix": 0.25, "alpha": 0.4, "delta": 0.3},
    "gist_step_size": {"step_size": 0.4, "num_integration_steps": 2},
    "gist_trajectory_length": {"step_size": 0.4, "max_num_steps": 12},
    "mala": {"step_size": 0.06},
    "barker": {"step_size": 0.4},
    "adjusted_mclmc": {"step_size": 1.4, "num_integration_steps": 3, "inverse_mass_matrix": 0.5},
    "adjusted_mclmc_dynamic": {"step_size": 1.2, "num_integration_steps": 5},
    "random_walk": {"step_size": 0.2},
    "slice_sampling": {"width": 0.7},
    "elliptical_slice": {"mean": 0.1, "cov": 0.3},
}


@pytest.fixture(autouse=True)
def _quick_compilation() -> Iterator[None]:
    """Compilation takes nearly all the time of these tests, and what it is optimised for is no matter of exactness."""
    jax.config.update("jax_disable_most_optimizations", True)  # type: ignore[no-untyped-call]
    yield
    jax.config.update("jax_disable_most_optimizations", False)  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def _chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of chains in all tests of the contract: a kernel is compiled for each, which is what takes the time."""
    for name in ("CHAINS", "FEW"):
        monkeypatch.setattr(f"flowmc.testing.kernels.{name}", CHAINS)


def test_every_algorithm_is_tested() -> None:
    assert list(CASES) == list(ALGORITHMS)


def test_every_public_sampler_of_blackjax_is_listed_or_refused() -> None:
    samplers = {name for name in blackjax.__all__ if isinstance(getattr(blackjax, name), blackjax.GenerateSamplingAPI)}
    others = {name for name in samplers if name.endswith("_smc")} | {"inner_kernel_tuning", "pretuning", "nss"}
    # BlackJAX calls its random walk, and only that, by the way it is made.
    assert samplers - others == (set(ALGORITHMS) - {"random_walk"} | set(REFUSED) | set(_ALIASES)) & samplers
    assert set(REFUSED) <= set(blackjax.__all__)


@pytest.mark.parametrize("name", CASES)
class TestContract(KernelContract):
    @pytest.fixture
    def member(self, theory: Theory, name: str) -> CycleMember:
        return BlackJAXUpdates.build(theory, name, 5, 2, CASES[name])


class TestAngles(KernelContract):
    @pytest.fixture
    def theory(self) -> Theory:
        return U1Gauge2D((2, 4), 1.5)

    @pytest.fixture
    def target(self, theory: Any) -> ExactStart:
        return gauge_start(theory)

    @pytest.fixture
    def member(self, theory: Theory) -> CycleMember:
        return BlackJAXUpdates.build(theory, "hmc", 5, 2, CASES["hmc"])


def _white_noise(field: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (field**2).sum(axis=(1, 2)))


@dataclass(frozen=True)
class Box(SmoothTheory):
    """A Gaussian whose action is no number outside of |φ| < 1.2, so that a careless kernel takes NaN into the chain."""

    shape: tuple[int, ...] = (2,)

    name: ClassVar[str] = "box"
    convention: ClassVar[str] = "S = sum phi^2 / 2 inside, NaN outside"
    space: ClassVar[ContinuousSpace] = RealSpace()

    def action(self, field: Array) -> Array:
        xp = namespace(field)
        inside = xp.all(xp.abs(field) < 1.2, axis=-1)
        return xp.where(inside, 0.5 * xp.sum(field * field, axis=-1), xp.asarray(np.nan))

    def force(self, field: Array) -> Array:
        return -field

    def identities(self) -> Mapping[str, Callable[[Array], Array]]:
        return {}

    def draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        found = generator.standard_normal((8 * n, 2))
        return np.asarray(found[(abs(found) < 1.2).all(axis=1)][:n])


def test_action_that_is_a_numpy_function_is_called_back(rng: np.random.Generator) -> None:
    theory = CallableTheory((2, 2), _white_noise, RealSpace(), "white noise")
    member = BlackJAXUpdates.build(theory, "random_walk", int(rng.integers(2**31)), 3, {"step_size": 0.8})
    target = ExactStart(
        lambda generator, n: generator.standard_normal((n, 2, 2)),
        {"action": theory.action, "first": lambda f: f[:, 0, 0]},
    )
    scores = scores_of(theory, member, rng, target, cycles=1, n=300)
    assert family_p_value(np.array(list(scores.values()))) > FALSE_ALARM, scores


@pytest.mark.parametrize("name", ["hmc", "mhmc", "ghmc", "elliptical_slice"])
def test_what_is_no_number_is_rejected_exactly(name: str, rng: np.random.Generator) -> None:
    theory = Box()
    parameters = {"ghmc": {"step_size": 1.0, "alpha": 0.3, "delta": 0.3}, "elliptical_slice": {}}
    given = parameters.get(name, {"step_size": 1.0, "num_integration_steps": 2})
    member = BlackJAXUpdates.build(theory, name, int(rng.integers(2**31)), 8, given)
    target = ExactStart(theory.draw, {"action": theory.action, "first": lambda field: field[:, 0]})
    scores = scores_of(theory, member, rng, target, cycles=1)
    assert family_p_value(np.array(list(scores.values()))) > FALSE_ALARM, scores


def scores_of(
    theory: Theory, member: CycleMember, rng: np.random.Generator, target: ExactStart, *, cycles: int, n: int = 4000
) -> dict[str, float]:
    """Return the scores of exact draws after cycles of a member; see `flowmc.testing.exact_start_scores`."""

    def kernel(field: np.ndarray) -> np.ndarray:
        state = Cycle(theory, (member,)).init(field)
        for number in range(cycles):
            state, _ = member.run(number, number, state, None)
        return np.asarray(state.field)

    return exact_start_scores(target, kernel, rng, n)


class TestWrongWays:
    """What BlackJAX does by itself and this adapter does not; the same check must find that it is wrong."""

    @staticmethod
    def worst(algorithm: Any, n_steps: int, rng: np.random.Generator) -> float:
        def chain(key: jax.Array, position: jax.Array) -> jax.Array:
            init_key, run_key = jax.random.split(key)
            state = algorithm.init(position, init_key)
            keys = jax.random.split(run_key, n_steps)
            last, _ = jax.lax.scan(lambda now, step_key: (algorithm.step(step_key, now)[0], None), state, keys)
            return jnp.asarray(last.position)

        def kernel(field: np.ndarray) -> np.ndarray:
            keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), len(field))
            return np.asarray(jax.jit(jax.vmap(chain))(keys, jnp.asarray(field)))

        target = ExactStart(lambda generator, n: generator.standard_normal((n, 2)), {"square": lambda f: (f**2).sum(1)})
        scores = exact_start_scores(target, kernel, rng, 100_000)
        return max(abs(score) for score in scores.values())

    @staticmethod
    def logdensity(position: jax.Array) -> jax.Array:
        return -0.5 * jnp.sum(position**2)

    def test_trajectory_that_starts_at_the_current_state_is_biased(self, rng: np.random.Generator) -> None:
        assert self.worst(blackjax.mhmc(self.logdensity, 1.2, jnp.ones(2), 5), 5, rng) > 8
        ours = blackjax.hmc(self.logdensity, 1.2, jnp.ones(2), 5, build_proposal=multinomial_proposal)
        assert self.worst(ours, 5, rng) < 5

    def test_momenta_of_the_wrong_variance_are_biased(self, rng: np.random.Generator) -> None:
        assert self.worst(blackjax.ghmc(self.logdensity, 0.5, jnp.full(2, 0.4), 0.1, 0.1), 2, rng) > 8

    def test_unadjusted_kernel_is_biased(self, rng: np.random.Generator) -> None:
        assert self.worst(blackjax.mclmc(self.logdensity, 1.0, 1.8), 20, rng) > 5.5


class TestRefusals:
    @pytest.mark.parametrize("name", REFUSED)
    def test_by_name_with_the_reason(self, name: str) -> None:
        with pytest.raises(ParameterError, match="keeps exp") as caught:
            BlackJAXUpdates.build(FREE, name, 1, 1)
        assert REFUSED[name] in caught.value.got

    def test_unknown_names_and_parameters_name_the_nearest(self) -> None:
        with pytest.raises(ParameterError, match="did you mean 'nuts'"):
            BlackJAXUpdates.build(FREE, "nust", 1, 1)
        with pytest.raises(ParameterError, match="did you mean 'step_size'"):
            BlackJAXUpdates.build(FREE, "hmc", 1, 1, {"stepsize": 0.1})

    @pytest.mark.parametrize(
        ("name", "parameters"),
        [
            ("hmc", {"step_size": 0.0}),
            ("hmc", {"step_size": float("nan")}),
            ("hmc", {"num_integration_steps": 0.4}),
            ("hmc", {"inverse_mass_matrix": -1.0}),
            ("ghmc", {"alpha": 1.5}),
            ("hmc", {"step_size": [0.1, 0.2]}),
            ("hmc", {"inverse_mass_matrix": [1.0, 2.0]}),
        ],
    )
    def test_parameters_without_meaning(self, name: str, parameters: dict[str, Any]) -> None:
        with pytest.raises(ParameterError, match=next(iter(parameters))):
            BlackJAXUpdates.build(FREE, name, 1, 1, parameters)

    def test_missing_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "blackjax", None)
        for build in (
            lambda: BlackJAXUpdates.build(FREE, "hmc", 1, 1),
            lambda: FlowSMC(FREE, GaussianProposal(FREE.shape, 0.5)),
            lambda: hmc(lambda position: -(position**2).sum(), 0.1, 3),
        ):
            with pytest.raises(ParameterError, match="pip install blackjax"):
                build()

    def test_theories_that_it_cannot_move(self) -> None:
        with pytest.raises(ParameterError, match="continuous"):
            BlackJAXUpdates.build(Ising((4, 4), 0.3), "hmc", 1, 1)
        with pytest.raises(ParameterError, match="periodic"):
            BlackJAXUpdates.build(U1Gauge2D((2, 4), 1.0), "elliptical_slice", 1, 1)
        with pytest.raises(ParameterError, match="force"):
            BlackJAXUpdates.build(CallableTheory((2, 2), _white_noise, RealSpace(), "noise"), "nuts", 1, 1)
        with pytest.raises(ParameterError, match="updates"):
            BlackJAXUpdates.build(FREE, "hmc", 1, 0)

    def test_pilots_that_do_not_fit(self, rng: np.random.Generator) -> None:
        for method, name in (("chees", "hmc"), ("meads", "nuts"), ("window", "elliptical_slice")):
            with pytest.raises(ParameterError, match="adaptation"):
                BlackJAXUpdates.build(FREE, name, 1, 1, pilot=Pilot(method))
        with pytest.raises(ParameterError, match="adaptation"):
            Pilot("windows")
        meads = BlackJAXUpdates.build(FREE, "ghmc", 1, 1, pilot=Pilot("meads", 10))
        with pytest.raises(ParameterError, match="3 chains"):
            meads.piloted(FREE.draw(rng, 3))
        with pytest.raises(ParameterError, match="equal in all chains"):
            meads.piloted(np.zeros((16, *FREE.shape)))


@pytest.mark.parametrize(
    ("method", "name", "target"),
    [("window", "hmc", 0.8), ("window", "random_walk", 0.4), ("chees", "dhmc", 0.8), ("meads", "ghmc", None)],
)
def test_pilot_finds_parameters_that_work(
    method: str, name: str, target: float | None, rng: np.random.Generator
) -> None:
    pilot = Pilot(method, 200, target or 0.8)
    member = BlackJAXUpdates.build(FREE, name, int(rng.integers(2**31)), 20, pilot=pilot)
    start = FREE.start(rng, 32, "hot")
    tuned, fields = member.piloted(start)
    assert fields.shape == start.shape
    assert np.isfinite(fields).all()
    assert not np.array_equal(fields, start)
    assert tuned.adaptation()
    assert tuned.describe() == member.describe()
    state = Cycle(FREE, (tuned,)).init(fields)
    _, updates = tuned.run(0, 0, state, None)
    if target is None:
        assert updates.acceptance.mean() > 0.7
    else:
        assert abs(updates.acceptance.mean() - target) < 0.15


def hybrid(seed: int, theory: FreeScalar = FREE) -> Cycle:
    local = BlackJAXUpdates.build(
        theory, "hmc", seed, 2, {"step_size": 0.2, "num_integration_steps": 4}, pilot=Pilot("window", 60)
    )
    return Cycle(theory, (local, FlowProposals(Independence(theory), GaussianProposal(theory.shape, 0.5), seed, 3)))


class TestRuns:
    # One number of chains and cycles for all: the same compiled code.
    PLAN = SamplingPlan(chains=200, cycles=16, thermalisation=8, tuning=0, cycles_per_block=8)

    def run(self, store: MemoryStore, seed: int, should_stop: Callable[[], str] = lambda: "") -> SamplingResult:
        start = lambda: FREE.start(np.random.default_rng(seed), 200, "hot")  # noqa: E731
        return sample(hybrid(seed), self.PLAN, store, start, should_stop=should_stop)

    def test_resumed_hybrid_is_bit_identical_and_pilots_once(
        self, monkeypatch: pytest.MonkeyPatch, test_seed: int
    ) -> None:
        whole, parts = MemoryStore(), MemoryStore()
        self.run(whole, test_seed)
        assert not self.run(parts, test_seed, lambda: "test").finished

        def again(*_: Any) -> Any:
            raise AssertionError

        monkeypatch.setattr(Pilot, "run", again)
        while not (result := self.run(parts, test_seed, lambda: "test")).finished:
            pass
        for name in ("phi", "action"):
            np.testing.assert_array_equal(whole.table("configurations", name), parts.table("configurations", name))
        for name in ("accepted", "delta_H", "log_weight", "step_size"):
            np.testing.assert_array_equal(whole.table("history", name), parts.table("history", name))
        saved = parts.blocks[0]["checkpoint"]
        assert saved["adaptation.blackjax.inverse_mass_matrix"].shape == (FREE.volume,)
        # Displays, attributes and reports get numbers only.
        assert list(result.adaptation) == ["blackjax.step_size"]

    def test_hybrid_samples_the_free_field(self, rng: np.random.Generator) -> None:
        store = MemoryStore()
        self.run(store, int(rng.integers(2**31)))
        for values, exact in (
            (store.table("configurations", "action").mean(axis=0), FREE.volume / 2),
            (store.table("configurations", "phi").mean(axis=(0, 2, 3)), 0.0),
        ):
            assert abs(values.mean() - exact) < 4.5 * values.std(ddof=1) / len(values) ** 0.5


TABLES: dict[str, Any] = {
    "theory": {"name": "free_scalar", "shape": [4, 2], "mass": 0.8},
    "sampling": {
        "kernel": "blackjax",
        "chains": 8,
        "cycles": 4,
        "thermalisation": 4,
        "cycles_per_block": 4,
        "blackjax": {
            "algorithm": "mala",
            "updates": 2,
            "adaptation_steps": 30,
            "parameters": {"step_size": 0.03},
        },
    },
}


def test_counts_are_whole() -> None:
    for name, wrong in (("hmc", {"num_integration_steps": 2.7}), ("nuts", {"max_num_doublings": 2.5})):
        with pytest.raises(ParameterError, match="whole"):
            BlackJAXUpdates.build(FREE, name, 1, 1, wrong)
    with pytest.raises(ParameterError, match="step_size = 'x'"):
        BlackJAXUpdates.build(FREE, "hmc", 1, 1, {"step_size": "x"})


def test_first_guess_of_the_mass_matrix_is_used() -> None:
    field = FREE.draw(np.random.default_rng(1), 4)
    guesses = (1.0, np.linspace(0.1, 5.0, 8))
    found = [
        BlackJAXUpdates.build(FREE, "hmc", 1, 1, {"inverse_mass_matrix": guess}, pilot=Pilot("window", 20))
        .piloted(field)[0]
        .used["inverse_mass_matrix"]
        for guess in guesses
    ]
    assert not np.array_equal(found[0], found[1])


class TestDescription:
    @staticmethod
    def tables(**changed: Any) -> dict[str, Any]:
        sampling = {**TABLES["sampling"], "blackjax": {**TABLES["sampling"]["blackjax"], **changed}}
        return {**TABLES, "sampling": sampling}

    def test_unknown_keys_and_values_are_refused_with_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'algorithm'"):
            parse_run(self.tables(algoritm="hmc"))
        with pytest.raises(ConfigError, match="did you mean 'window'"):
            parse_run(self.tables(adaptation="windows"))
        with pytest.raises(ConfigError, match="updates"):
            parse_run(self.tables(updates=0))
        assert parse_run(self.tables()).sampling.blackjax.parameters == {"step_size": 0.03}
        assert SamplingConfig().blackjax.adaptation == "window"

    def test_ensemble_is_made_and_extended(self, tmp_path: Path) -> None:
        def make(path: Path, cycles: int, **changed: Any) -> SamplingResult:
            tables = self.tables(**changed)
            run = parse_run({**tables, "sampling": {**tables["sampling"], "cycles": cycles}})
            return sample_ensemble(
                run,
                run.sampling,
                path,
                flow_path=None,
                resume=True,
                should_stop=lambda: "",
                display=SilentDisplay(),
                base=tmp_path,
            )

        assert make(tmp_path / "whole.h5", 8).finished
        make(tmp_path / "parts.h5", 4)
        make(tmp_path / "parts.h5", 8)
        whole, parts = (Ensemble(tmp_path / name).streams[0] for name in ("whole.h5", "parts.h5"))
        np.testing.assert_array_equal(whole.configurations("phi"), parts.configurations("phi"))
        parameters: Any = whole.description.algorithm_parameters
        assert parameters["blackjax"]["algorithm"] == "mala"
        with pytest.raises(RunExistsError, match="adaptation_steps"):
            make(tmp_path / "parts.h5", 8, adaptation_steps=31)
