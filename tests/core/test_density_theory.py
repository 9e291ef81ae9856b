"""A JAX log density as a theory: its contract, what is refused, and sampling it in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import torch
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray
from numpyro.infer.util import initialize_model

import flowmc
from flowmc.arrays import LARGEST_PIECE, in_pieces
from flowmc.errors import (
    CertificateError,
    ConfigError,
    LatticeMismatchError,
    NonFiniteError,
    ParameterError,
    PrecisionError,
    TheoryMismatchError,
)
from flowmc.flows import build_flow
from flowmc.kernels import HMC, Cycle, Trajectories
from flowmc.logdensity import sample_logdensity
from flowmc.proposals import certify
from flowmc.testing import ExactStart, GaussianProposal, SmoothTheoryContract, exact_start_scores
from flowmc.theories import AngleSpace, DensityTheory, FreeScalar, Phi4, SpinSpace, Theory, from_description
from flowmc.training import TrainingConfig, train

Array = NDArray[np.float64]
PHI4 = Phi4((4, 4), m2=-4.0, lam=8.0)
MATRIX = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
CENTRE = np.array([1.0, -2.0, 0.5])


def phi4_one(position: jax.Array) -> jax.Array:
    """Log density of one configuration of φ⁴ theory, as BlackJAX would take it."""
    log_density: jax.Array = -PHI4.action(position[None])[0]
    return log_density


def phi4_batch(positions: jax.Array) -> jax.Array:
    log_density: jax.Array = -jnp.asarray(PHI4.action(positions))
    return log_density


def gaussian(position: jax.Array) -> jax.Array:
    """N(CENTRE, MATRIX⁻¹)."""
    away = position - CENTRE
    return -0.5 * away @ MATRIX @ away


def negative(position: jax.Array) -> jax.Array:
    return -gaussian(position)


def power(i: int, exponent: int) -> Callable[[Array], Array]:
    """Return what measures a component about its centre."""

    def measured(x: Array) -> Array:
        values: Array = (x[:, i] - CENTRE[i]) ** exponent
        return values

    return measured


def gumbel(position: jax.Array) -> jax.Array:
    """A density on which JAX 0.10.2 goes wrong in batches of more than 16384: a small matrix times each position."""
    along = jnp.asarray(MATRIX) @ position
    return -jnp.sum(along + jnp.exp(-along))


def test_large_batches_are_right() -> None:
    field = np.random.default_rng(1).standard_normal((20_000, 3))
    along = field @ MATRIX.T
    theory = DensityTheory((3,), gumbel)
    np.testing.assert_allclose(theory.action(field), (along + np.exp(-along)).sum(1), rtol=1e-12)
    np.testing.assert_allclose(theory.force(field), (np.exp(-along) - 1) @ MATRIX, rtol=1e-10, atol=1e-12)


def test_pieces_are_the_whole() -> None:
    field = jnp.asarray(np.random.default_rng(2).standard_normal((2 * LARGEST_PIECE + 5, 2)))
    whole, part = jax.jit(lambda x: in_pieces(lambda one: (2 * one, one.sum(1)), x))(field)
    np.testing.assert_array_equal(whole, 2 * field)
    np.testing.assert_array_equal(part, field.sum(1))


class DensityContract(SmoothTheoryContract):
    def test_action_is_translation_invariant_as_the_theory_says(self, theory: Theory, field: NDArray[Any]) -> None:
        # It says nothing, since a function does not tell.
        assert not theory.homogeneous
        assert theory.action(field).shape == (5,)

    def test_description_rebuilds_the_theory(self, theory: Theory) -> None:
        assert theory.describe() == {"name": "density", "label": "phi4", "space": "real", "shape": [4, 4]}
        with pytest.raises(ConfigError, match="DensityTheory"):
            from_description(theory.describe())

    def test_values_are_those_of_the_action(self, theory: DensityTheory, field: NDArray[Any]) -> None:
        np.testing.assert_allclose(theory.action(field), PHI4.action(field), rtol=1e-12)
        np.testing.assert_allclose(theory.force(field), PHI4.force(field), rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(theory.virial(field), PHI4.virial(field), rtol=1e-11)


class TestContract(DensityContract):
    @pytest.fixture
    def theory(self) -> DensityTheory:
        return DensityTheory((4, 4), phi4_one, "phi4")


class TestContractOfBatches(DensityContract):
    @pytest.fixture
    def theory(self) -> DensityTheory:
        return DensityTheory((4, 4), phi4_batch, "phi4", batched=True)


class TestContractOfPotential(DensityContract):
    @pytest.fixture
    def theory(self) -> DensityTheory:
        return DensityTheory.from_potential(lambda position: -phi4_one(position), (4, 4), "phi4")


def test_equal_functions_are_one_theory() -> None:
    assert DensityTheory((3,), gaussian) == DensityTheory((3,), gaussian)
    one, other = (DensityTheory.from_potential(negative, (3,)) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)


def test_torch_is_told_the_gradient_once(rng: np.random.Generator) -> None:
    theory = DensityTheory((4, 4), phi4_one)
    field = torch.tensor(rng.standard_normal((3, 4, 4)), dtype=torch.float32, requires_grad=True)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (slope,) = torch.autograd.grad((weights * theory.action(field)).sum(), field)
    expected = -weights[:, None, None] * PHI4.force(field.detach().double())
    assert slope.dtype == torch.float32
    np.testing.assert_allclose(slope.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    assert theory.action(field.detach()).requires_grad is False


def losses_of_a_training(theory: Theory, path: Path) -> list[float]:
    flow = build_flow({"kind": "coupling", "repeat": 1, "layers": [{"kind": "sinh_arcsinh"}]}, PHI4, seed=1)
    settings = TrainingConfig(steps=20, batch_size=32, seed=1, threads=1)
    losses: list[float] = []
    train(flow, theory, settings, path, on_record=lambda record: losses.append(record.loss))
    return losses


def test_a_flow_is_trained_for_it_as_for_the_theory(tmp_path: Path) -> None:
    own = losses_of_a_training(DensityTheory((4, 4), phi4_one, "phi4"), tmp_path / "own")
    assert len(own) > 1
    np.testing.assert_allclose(own, losses_of_a_training(PHI4, tmp_path / "built_in"), rtol=1e-6)


class TestRefusals:
    def test_numpy_functions(self) -> None:
        with pytest.raises(ParameterError, match="CallableTheory"):
            DensityTheory((3,), lambda position: np.asarray(position).sum())

    def test_branches_on_values(self) -> None:
        with pytest.raises(ParameterError, match="cannot trace"):
            DensityTheory((3,), lambda position: position.sum() if position[0] > 0 else position[0])

    def test_more_than_one_number(self) -> None:
        with pytest.raises(LatticeMismatchError, match="one number for each"):
            DensityTheory((3,), lambda position: -(position**2))
        with pytest.raises(LatticeMismatchError, match="one number for each"):
            DensityTheory((3,), lambda positions: -(positions**2).sum(), batched=True)

    def test_single_precision(self) -> None:
        with pytest.raises(PrecisionError, match="float32"):
            DensityTheory((3,), lambda position: -jnp.sum(position.astype(jnp.float32) ** 2))

    def test_no_gradient(self) -> None:
        def called_back(position: jax.Array) -> jax.Array:
            shape = jax.ShapeDtypeStruct((), np.float64)  # type: ignore[no-untyped-call]
            found: jax.Array = jax.pure_callback(lambda x: -np.sum(x**2), shape, position, vmap_method="sequential")
            return found

        with pytest.raises(ParameterError, match="gradient"):
            DensityTheory((3,), called_back)

    def test_mixed_batches(self) -> None:
        with pytest.raises(ParameterError, match="each alone"):
            DensityTheory((3,), lambda x: -((x - x.mean(axis=0)) ** 2).sum(axis=1), batched=True)

    @pytest.mark.parametrize("shape", [(0,), (2, -1), (2.5,), (True,)])
    def test_shapes(self, shape: Any) -> None:
        with pytest.raises(ParameterError, match="positive integers"):
            DensityTheory(shape, gaussian)

    def test_spins_labels_and_hashes(self) -> None:
        with pytest.raises(ParameterError, match="continuous"):
            DensityTheory((3,), gaussian, space=SpinSpace())  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="label"):
            DensityTheory((3,), gaussian, "")

        class Unhashable:
            __hash__ = None  # type: ignore[assignment]

            def __call__(self, position: jax.Array) -> jax.Array:
                return gaussian(position)

        with pytest.raises(ParameterError, match="hashed"):
            DensityTheory((3,), Unhashable())


class TestExactness:
    def test_hmc_leaves_a_gaussian_invariant(self, rng: np.random.Generator, test_seed: int) -> None:
        theory = DensityTheory((3,), gaussian)
        root = np.linalg.cholesky(np.linalg.inv(MATRIX))
        target = ExactStart(
            lambda generator, n: CENTRE + generator.standard_normal((n, 3)) @ root.T,
            {"x": lambda x: x[:, 0], "yz": lambda x: x[:, 1] * x[:, 2], "virial": theory.virial},
        )
        member = Trajectories.build(
            HMC(theory), test_seed, 3, trajectory_length=1.0, step_size=0.5, target_acceptance=None
        )
        cycle = Cycle(theory, (member,))

        def kernel(field: Array) -> Array:
            state, _ = cycle.run(0, 0, cycle.init(field), cycle.prepare(0, 1, len(field))[0])
            return np.asarray(state.field)

        scores = exact_start_scores(target, kernel, rng, 20_000)
        assert max(map(abs, scores.values())) < 5, scores


class TestSampling:
    def test_hmc_reproduces_a_gaussian(self, test_seed: int) -> None:
        samples = flowmc.sample_logdensity(gaussian, (3,), chains=20, cycles=600, thermalisation=200, seed=test_seed)
        assert samples.fields.shape == (600, 20, 3)
        np.testing.assert_allclose(samples.log_density[-1], [gaussian(x) for x in samples.fields[-1]], rtol=1e-12)
        covariance = np.linalg.inv(MATRIX)
        for i in range(3):
            mean, square = samples.estimate(power(i, 1)), samples.estimate(power(i, 2))
            assert abs(mean.value) < 5 * mean.error
            assert abs(square.value - covariance[i, i]) < 5 * square.error
        virial = samples.virial()
        assert virial is not None
        assert virial.expected == 3
        assert abs(virial.z) < 5
        assert set(samples.acceptance) == {"hmc"}
        assert 0.6 < samples.acceptance["hmc"] <= 1
        assert samples.adaptation["hmc.step_size"] != 0.1

    def test_hybrid_reproduces_a_free_field(self, test_seed: int) -> None:
        free = FreeScalar((4, 2), 1.2)
        theory = DensityTheory.from_potential(lambda x: free.action(x[None])[0], (4, 2), "free field")
        samples = sample_logdensity(
            theory, proposal=GaussianProposal((4, 2), 0.4), chains=20, cycles=600, thermalisation=200, seed=test_seed
        )
        # S = ½ φ·K·φ, and ⟨φ²⟩ is the mean of 1/K's diagonal.
        basis = np.eye(8).reshape(8, 4, 2)
        kernel = np.array([[free.action((a + b)[None])[0] - free.action(a[None])[0] - free.action(b[None])[0]
                            for a in basis] for b in basis])  # fmt: skip
        square = samples.estimate(lambda x: (x**2).mean(axis=(1, 2)))
        assert abs(square.value - np.trace(np.linalg.inv(kernel)) / 8) < 5 * square.error
        assert samples.certificate is not None
        assert samples.certificate.passed
        assert 0.02 < samples.acceptance["flow"] < 1
        weight = samples.store.table("history", "log_weight")
        assert np.isfinite(weight[samples.store.table("history", "proposal_kind") == 1]).all()

    def test_flow_alone_with_its_certificate(self, test_seed: int) -> None:
        proposal = GaussianProposal((2,), 2.0)
        certificate = certify(proposal, 1, n_finite=1000, n_compare=100)
        samples = sample_logdensity(
            lambda x: -0.5 * jnp.sum((x - 1.0) ** 2), (2,), proposal=proposal, certificate=certificate,
            hmc_trajectories=0, cycles=1500, thermalisation=100, seed=test_seed,
        )  # fmt: skip
        assert samples.certificate is certificate
        mean = samples.estimate(lambda x: x[:, 0])
        assert abs(mean.value - 1.0) < 5 * mean.error
        assert set(samples.acceptance) == {"flow"}

    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_a_single_number(self, shape: tuple[int, ...], test_seed: int) -> None:
        samples = sample_logdensity(
            lambda x: -0.5 * jnp.sum((x - 1.0) ** 2), shape, cycles=500, thermalisation=100, seed=test_seed
        )
        assert samples.fields.shape == (500, 16, *shape)
        mean = samples.estimate(lambda x: x.reshape(len(x)))
        assert abs(mean.value - 1.0) < 5 * mean.error

    def test_angles(self, test_seed: int) -> None:
        theory = DensityTheory((3,), lambda angle: jnp.sum(jnp.cos(angle)), "three rotors", AngleSpace())
        samples = sample_logdensity(theory, cycles=500, thermalisation=100, seed=test_seed)
        assert np.abs(samples.fields).max() <= np.pi
        mean = samples.estimate(lambda x: np.cos(x).mean(axis=1))
        # I₁(1) / I₀(1)
        assert abs(mean.value - 0.44639) < 5 * mean.error
        assert samples.virial() is None

    def test_same_seed_same_samples(self) -> None:
        runs = [sample_logdensity(gaussian, (3,), cycles=20, thermalisation=20, chains=3, seed=s) for s in (1, 1, 2)]
        np.testing.assert_array_equal(runs[0].fields, runs[1].fields)
        assert not np.array_equal(runs[0].fields, runs[2].fields)

    def test_start_plan_and_stop(self) -> None:
        start = np.full((3, 3), 40.0)
        reports: list[int] = []
        samples = sample_logdensity(
            gaussian, (3,), cycles=40, thermalisation=0, chains=3, start=start, target_acceptance=None, save_every=2,
            cycles_per_block=10, should_stop=lambda: "enough" if len(reports) == 2 else "",
            on_block=lambda report: reports.append(report.cycles_done),
        )  # fmt: skip
        assert reports == [10, 20]
        assert samples.fields.shape == (10, 3, 3)
        assert samples.fields[0].max() > 20
        assert samples.adaptation["hmc.step_size"] == 0.1

    def test_a_model_of_numpyro(self, test_seed: int) -> None:
        data = np.array([1.0, 2.5, 4.0, 2.5])

        def model() -> None:
            mean = numpyro.sample("mean", numpyro.distributions.Normal(0.0, 3.0))
            numpyro.sample("scale", numpyro.distributions.HalfNormal(1.0))
            numpyro.sample("data", numpyro.distributions.Normal(mean, 2.0), obs=jnp.asarray(data))

        # Its parameters are a dictionary of unconstrained numbers, which JAX makes one vector of and back.
        info = initialize_model(jax.random.key(0), model)
        flat, unravel = ravel_pytree(info.param_info.z)
        theory = DensityTheory.from_potential(lambda x: info.potential_fn(unravel(x)), flat.shape, "normal model")
        samples = sample_logdensity(theory, cycles=500, thermalisation=200, seed=test_seed)
        mean = samples.estimate(lambda x: np.asarray(jax.vmap(unravel)(jnp.asarray(x))["mean"]))
        precision = 4 / 2.0**2 + 1 / 3.0**2
        assert abs(mean.value - data.sum() / 2.0**2 / precision) < 5 * mean.error
        scale = samples.estimate(lambda x: np.exp(np.asarray(jax.vmap(unravel)(jnp.asarray(x))["scale"])))
        assert abs(scale.value - np.sqrt(2 / np.pi)) < 5 * scale.error

    def test_chains_start_where_the_density_is(self) -> None:
        # A wall, and a slope so steep that standard normal positions lie a thousand e-folds up.
        theory = DensityTheory((2,), lambda x: jnp.where(x[0] > 0.5, -500 * jnp.sum((x - 1.0) ** 2), -jnp.inf))
        samples = sample_logdensity(theory, cycles=1, thermalisation=0, seed=1, step_size=1e-3, trajectory_length=1e-3)
        assert samples.fields[..., 0].min() > 0.5
        assert np.median(samples.log_density) > -50
        flow = GaussianProposal((2,), 0.01)
        with pytest.raises(NonFiniteError, match="another configuration"):
            sample_logdensity(theory, proposal=flow, certificate=certify(flow, 1, n_finite=1000, n_compare=100))

    def test_what_is_refused(self) -> None:
        theory = DensityTheory((3,), gaussian)
        proposal = GaussianProposal((3,), 1.0)
        certificate = certify(proposal, 1, n_finite=1000, n_compare=100)
        for error, arguments in (
            (ParameterError, {"event_shape": None}),
            (ParameterError, {"hmc_trajectories": 0}),
            (ParameterError, {"certificate": certificate}),
            (ParameterError, {"cycles": 0}),
            (ParameterError, {"start": np.zeros((2, 3))}),
            (NonFiniteError, {"start": np.full((16, 3), np.nan)}),
            (LatticeMismatchError, {"proposal": GaussianProposal((2,), 1.0)}),
            (CertificateError, {"proposal": GaussianProposal((3,), 2.0), "certificate": certificate}),
        ):
            with pytest.raises(error):
                sample_logdensity(gaussian, **{"event_shape": (3,), **arguments})  # type: ignore[arg-type]
        with pytest.raises(LatticeMismatchError, match="leave"):
            sample_logdensity(theory, (4,))
        angles = DensityTheory((3,), lambda angle: jnp.sum(jnp.cos(angle)), "rotors", AngleSpace())
        with pytest.raises(TheoryMismatchError):
            sample_logdensity(angles, proposal=proposal)
        with pytest.raises(LatticeMismatchError, match="observable"):
            sample_logdensity(theory, cycles=10, thermalisation=0).estimate(lambda x: x)

    def test_a_wrong_flow_fails_its_certificate(self) -> None:
        class Wrong(GaussianProposal):
            def sample(self, seed: int, n: int) -> tuple[Array, Array]:
                field, log_q = super().sample(seed, n)
                return field, log_q + 0.1 * field[:, 0]

        with pytest.raises(CertificateError):
            sample_logdensity(gaussian, (3,), proposal=Wrong((3,), 1.0))

    def test_an_unknown_name_of_the_package(self) -> None:
        with pytest.raises(AttributeError, match="no attribute"):
            flowmc.sample_density  # noqa: B018
