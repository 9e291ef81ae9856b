"""A NumPy function as the action: the theory's contract, training without a gradient, and exact sampling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowmc.errors import (
    ConfigError,
    FlowmcError,
    LatticeMismatchError,
    NonFiniteError,
    ParameterError,
    PrecisionError,
    TheoryMismatchError,
)
from flowmc.flows import build_flow, load_flow, save_flow
from flowmc.kernels import HMC, Cycle, CycleMember, FlowProposals, Independence
from flowmc.seeds import torch_generator
from flowmc.testing import ExactStart, GaussianProposal, KernelContract, TheoryContract
from flowmc.theories import FreeScalar, Ising, Phi4, RealSpace, SpinSpace, Theory, U1Gauge2D, from_description
from flowmc.theories.callable import CallableTheory
from flowmc.training import TrainingConfig, choose_objective, reinforce, train
from flowmc_analysis.weights import ess_reverse

PHI4, FREE = Phi4((4, 4), m2=-4.0, lam=8.0), FreeScalar((4, 2), 0.8)
Action = Callable[[NDArray[Any]], NDArray[Any]]


def as_callable(theory: Theory) -> CallableTheory:
    """Return a theory as the function of NumPy arrays that its action is."""
    internal = theory.field_shape[len(theory.shape) :]
    return CallableTheory(theory.shape, theory.action, theory.space, f"{theory.name} by NumPy", internal)


def squares(field: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = (field**2).sum(axis=(1, 2))
    return result


class TestContract(TheoryContract):
    @pytest.fixture
    def theory(self) -> Theory:
        return as_callable(PHI4)

    def test_identities_are_the_same_in_every_library(self, theory: Theory, field: NDArray[Any]) -> None:
        # They are derivatives, and there are none of a function.
        assert theory.identities() == {}
        assert theory.action(field).shape == (5,)

    def test_description_rebuilds_the_theory(self, theory: Theory) -> None:
        # It names the function, which plain data cannot hold.
        assert theory.describe()["name"] == "callable"
        assert theory.describe()["label"] == "phi4 by NumPy"
        with pytest.raises(ConfigError):
            from_description(theory.describe())
        assert as_callable(PHI4) == theory
        assert hash(as_callable(PHI4)) == hash(theory)


@pytest.mark.parametrize("theory", [PHI4, U1Gauge2D((4, 6), 2.0), Ising((4, 4), 0.44)], ids=lambda theory: theory.name)
def test_values_are_those_of_the_function_everywhere(theory: Theory) -> None:
    wrapped, field = as_callable(theory), theory.start(np.random.default_rng(1), 6, "hot")
    assert wrapped.field_shape == theory.field_shape
    expected = theory.action(field.astype(np.float64))
    np.testing.assert_array_equal(wrapped.action(field), expected)
    np.testing.assert_array_equal(wrapped.action(torch.tensor(field)).numpy(), expected)
    for action in (wrapped.action, jax.jit(wrapped.action)):
        np.testing.assert_array_equal(action(jnp.asarray(field)), expected)
    batches = jnp.asarray(field).reshape(2, 3, *theory.field_shape)
    np.testing.assert_array_equal(jax.jit(jax.vmap(wrapped.action))(batches).reshape(-1), expected)


def test_function_may_change_its_argument() -> None:
    def careless(field: NDArray[Any]) -> NDArray[Any]:
        field *= field
        return squares(field)

    theory, field = CallableTheory((4, 4), careless, RealSpace(), "careless"), np.full((2, 4, 4), 2.0)
    field.setflags(write=False)
    for given in (field, torch.full((2, 4, 4), 2.0), jnp.asarray(field)):
        assert theory.action(given).tolist() == [256.0, 256.0]
        assert float(given.sum()) == 64


def test_no_graph_comes_out() -> None:
    leaf = torch.ones(2, 4, 4, requires_grad=True)
    assert not as_callable(PHI4).action(leaf).requires_grad


class TestRefusals:
    @pytest.mark.parametrize(
        ("function", "error"),
        [
            (lambda field: (field**2).sum(), LatticeMismatchError),
            (lambda field: field**2, LatticeMismatchError),
            (lambda field: squares(field)[:1], LatticeMismatchError),
            (lambda field: squares(field).astype(np.float32), PrecisionError),
            (lambda field: squares(field) + 0j, PrecisionError),
            (lambda field: squares(field).astype(str), PrecisionError),
            (lambda field: squares(field - field.mean(axis=0)), ParameterError),
            (lambda field: np.random.default_rng().random(len(field)), ParameterError),
        ],
        ids=["number", "density", "first", "single", "complex", "text", "batch_mean", "random"],
    )
    def test_what_is_no_action_is_refused_when_built(self, function: Action, error: type[FlowmcError]) -> None:
        with pytest.raises(error, match="own action"):
            CallableTheory((4, 4), function, RealSpace(), "own action")

    def test_integers_are_numbers(self) -> None:
        theory = CallableTheory((4, 4), lambda field: (field > 0).sum(axis=(1, 2)), SpinSpace(), "spins up")
        assert theory.action(np.ones((2, 4, 4), np.int8)).dtype == np.float64

    @pytest.mark.parametrize("change", [{"label": ""}, {"internal": (0,)}, {"shape": (4, 1)}])
    def test_meaningless_arguments(self, change: dict[str, Any]) -> None:
        with pytest.raises(ParameterError):
            CallableTheory(**{"shape": (4, 4), "function": squares, "space": RealSpace(), "label": "own", **change})

    def test_function_must_be_hashable(self) -> None:
        class Own:
            __hash__ = None  # type: ignore[assignment]

            def __call__(self, field: NDArray[Any]) -> NDArray[Any]:
                return squares(field)

        with pytest.raises(ParameterError, match="lambda"):
            CallableTheory((4, 4), Own(), RealSpace(), "own")

    def test_error_of_the_function_keeps_its_text_under_jit(self) -> None:
        def fragile(field: NDArray[Any]) -> NDArray[Any]:
            if len(field) > 2:
                raise ValueError("out of licences")
            return squares(field)

        theory = CallableTheory((4, 4), fragile, RealSpace(), "fragile")
        with pytest.raises(ValueError, match="licences"):
            theory.action(np.zeros((3, 4, 4)))
        with pytest.raises(jax.errors.JaxRuntimeError, match="licences"):
            jax.jit(theory.action)(jnp.zeros((3, 4, 4))).block_until_ready()

    def test_there_is_no_force(self) -> None:
        theory: Any = as_callable(PHI4)
        with pytest.raises(ParameterError, match="callable"):
            HMC(theory)
        flow = build_flow({"kind": "coupling"}, theory)
        assert choose_objective("auto", flow, theory, 8) is reinforce
        with pytest.raises(ParameterError, match='"reinforce"'):
            choose_objective("reverse_kl", flow, theory, 8)

    def test_flows_of_another_space(self) -> None:
        with pytest.raises(TheoryMismatchError, match="Ising"):
            build_flow({"kind": "autoregressive"}, as_callable(Ising((4, 4), 0.44)))


# A base that is far too wide for what it is trained for.
LAYERS = [{"kind": "affine", "hidden": [4], "radius": 1}, {"kind": "sinh_arcsinh"}]
FLOW = {"kind": "coupling", "layers": LAYERS, "repeat": 1, "base_mass": 0.3, "dtype": "float64"}
CONFIG = TrainingConfig(
    objective="reinforce", steps=200, batch_size=128, learning_rate=2e-2, warmup_steps=5, seed=3, checkpoint_every=200
)


class TestTraining:
    def trained_ess(self, theory: Theory, path: Path) -> tuple[float, float]:
        """Return the ESS before and after training with REINFORCE, from the same draws."""
        flow = build_flow(FLOW, theory, seed=1)

        def ess() -> float:
            (piece,) = reinforce(flow, theory, 2000, torch_generator(9))
            return ess_reverse(piece.log_w.numpy())

        before = ess()
        assert train(flow, theory, CONFIG, path).finished
        return before, ess()

    def test_reaches_what_it_reaches_with_the_theory(self, tmp_path: Path) -> None:
        # The same draws and the same numbers up to rounding, which a short training does not blow up.
        before, own = self.trained_ess(as_callable(PHI4), tmp_path / "own.safetensors")
        _, built_in = self.trained_ess(PHI4, tmp_path / "built_in.safetensors")
        assert own > 2 * before
        assert own == pytest.approx(built_in, rel=1e-3)

    def test_action_that_is_not_finite_stops_it(self, tmp_path: Path) -> None:
        theory = CallableTheory(
            (4, 4), lambda field: np.where(field[:, 0, 0] > 0, np.nan, squares(field)), RealSpace(), "half of it"
        )
        with pytest.raises(NonFiniteError, match="of 128 draws"):
            train(build_flow(FLOW, theory), theory, CONFIG, tmp_path / "flow.safetensors")

    def test_flow_file_names_the_function_and_is_not_read_without_it(self, tmp_path: Path) -> None:
        path = tmp_path / "flow.safetensors"
        save_flow(path, build_flow(FLOW, as_callable(PHI4)), {})
        with pytest.raises(ConfigError, match="CallableTheory"):
            load_flow(path)
        assert load_flow(path, as_callable(PHI4))[1].theory == as_callable(PHI4)
        with pytest.raises(TheoryMismatchError, match="callable"):
            load_flow(path, PHI4)


def proposals(theory: Theory) -> FlowProposals:
    return FlowProposals(Independence(theory), GaussianProposal(theory.shape, 0.5), 12, 3)


class TestIndependenceSampling(KernelContract):
    """Exact draws of a free field stay so under proposals that are weighed by the function."""

    @pytest.fixture
    def theory(self) -> Theory:
        return as_callable(FREE)

    @pytest.fixture
    def member(self, theory: Theory) -> CycleMember:
        return proposals(theory)

    @pytest.fixture
    def target(self, theory: Theory) -> ExactStart:
        return ExactStart(
            FREE.draw,
            {
                "action": theory.action,
                "magnetisation": lambda field: field.mean(axis=(1, 2)),
                "neighbours": lambda field: (field * np.roll(field, 1, axis=1)).mean(axis=(1, 2)),
            },
        )


def test_what_is_not_finite_is_rejected() -> None:
    theory = CallableTheory(
        (4, 2), lambda field: np.where(field[:, 0, 0] > 0, squares(field), np.nan), RealSpace(), "half"
    )
    cycle = Cycle(theory, (proposals(theory),))
    state = cycle.init(np.ones((50, 4, 2)))
    prepared, _ = cycle.prepare(1, 4, 50)
    for index in range(4):
        state, happened = cycle.run(index, index, state, prepared)
        assert not happened.updates[0].accepted[np.isneginf(happened.updates[0].log_weight)].any()
    assert (np.asarray(state.field)[:, 0, 0] > 0).all()
    assert (np.asarray(state.field) != 1).all(axis=(1, 2)).any()
    with pytest.raises(NonFiniteError, match="starting field"):
        cycle.init(-np.ones((50, 4, 2)))
