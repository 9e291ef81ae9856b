"""What the certificate refuses, each shown with a real flow of a real library, used as its users do by mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution, Uniform

from benchmarks.adapter_flows import AffineCoupling, Setting, Velocity, sampler_of, trained_coupling, white_noise
from flowmc.errors import CertificateError, LatticeMismatchError, ParameterError
from flowmc.kernels import HMC, Cycle, FlowProposals, Independence, Trajectories
from flowmc.proposals import Certificate, Proposal, certify
from flowmc.proposals.requirement import require_certificate
from flowmc.sampling import MemoryStore, SamplingPlan, sample
from flowmc_adapters import proposal

FEW = 400
SHAPE, SIZE, THEORY = Setting().shape, Setting().size, Setting().theory


def certificate_of(found: Proposal) -> Certificate:
    return certify(found, 1, n_finite=FEW, n_compare=100)


def failed(found: Proposal) -> set[str]:
    """Return the names of the checks that a proposal fails; a good one fails none."""
    certificate = certificate_of(found)
    names = {check.name for check in certificate.checks if not check.passed}
    if names:
        with pytest.raises(CertificateError, match="may not propose"):
            certificate.require()
    return names


def pair(module: torch.nn.Module) -> tuple[Callable[[int], Any], Callable[[torch.Tensor], torch.Tensor]]:
    """Return sampler and log q of a coupling, as a user writes them."""

    def log_prob(field: torch.Tensor) -> torch.Tensor:
        latent, log_det = module.inverse(field)  # type: ignore[operator]
        return white_noise(latent) + log_det  # type: ignore[no-any-return]

    return sampler_of(module, (SIZE,)), log_prob


@pytest.fixture(scope="module")
def coupling() -> AffineCoupling:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return trained_coupling(Setting())


@pytest.fixture(scope="module")
def velocity() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return Velocity().double().requires_grad_(False)


def test_good_flow_passes(coupling: AffineCoupling) -> None:
    found = proposal(pair(coupling), event_shape=SHAPE, adapter="torch_callables", weights=coupling)
    assert failed(found) == set()


class TestRandomLogQ:
    def test_hutchinson_of_zuko(self) -> None:
        import zuko

        flow = zuko.flows.CNF(features=4, hidden_features=(8,), exact=False).double()
        found = proposal(flow, event_shape=(2, 2), log_q_bound=1e-3)
        certificate = certify(found, 1, n_finite=100, n_compare=20, n_jacobian=1)
        assert "log_prob repeated" in {check.name for check in certificate.checks if not check.passed}

    def test_hutchinson_of_flow_matching(self, velocity: torch.nn.Module) -> None:
        from flow_matching.solver import ODESolver

        # The library's random vectors are float32, whatever the velocity is.
        single = copy.deepcopy(velocity).float()
        solver = ODESolver(velocity_model=single)
        time = torch.tensor([1.0, 0.0])

        def sampler(n: int) -> torch.Tensor:
            return solver.sample(torch.randn(n, SIZE), step_size=0.1, method="midpoint")  # type: ignore[no-any-return]

        def log_prob(field: torch.Tensor) -> torch.Tensor:
            # The library's default estimates the divergence with one random vector.
            _, log_q = solver.compute_likelihood(field, white_noise, step_size=0.1, method="midpoint", time_grid=time)
            return log_q  # type: ignore[no-any-return]

        found = proposal((sampler, log_prob), event_shape=SHAPE, adapter="torch_callables", weights=single)
        assert "log_prob repeated" in failed(found)

    def test_dropout_that_evaluation_mode_leaves_on(self) -> None:
        class Dropped(AffineCoupling):
            def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return super().forward(torch.nn.functional.dropout(latent, 0.1))

            def inverse(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return super().inverse(torch.nn.functional.dropout(field, 0.1))

        found = proposal(Dropped().double(), event_shape=SHAPE, adapter="torch_module")
        assert "log_prob repeated" in failed(found)

    def test_training_mode(self) -> None:
        class WithDropout(AffineCoupling):
            def __init__(self) -> None:
                super().__init__()
                self.first = torch.nn.Sequential(*self.first, torch.nn.Dropout(0.2))

        module = WithDropout().double()
        found = proposal(pair(module), event_shape=SHAPE, adapter="torch_callables", weights=module)
        assert {"log_prob repeated", "forward log q against log_prob"} <= failed(found)
        # The adapter of modules puts its copy into evaluation mode, and leaves the user's as it is.
        assert failed(proposal(module, event_shape=SHAPE, adapter="torch_module")) == set()
        assert module.training


class TestWrongLogQ:
    def test_batch_statistics(self) -> None:
        class Normalised(AffineCoupling):
            def __init__(self) -> None:
                super().__init__()
                normalised = torch.nn.BatchNorm1d(4, track_running_stats=False)
                self.first = torch.nn.Sequential(
                    self.first[0], torch.nn.Unflatten(1, (4, 4)), normalised, torch.nn.Flatten(), *list(self.first)[1:]
                )

        found = proposal(Normalised().double(), event_shape=SHAPE, adapter="torch_module")
        assert "log_prob in halves" in failed(found)

    def test_sign_of_the_log_determinant_in_both_directions(self) -> None:
        class Flipped(AffineCoupling):
            def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                field, log_det = super().forward(latent)
                return field, -log_det

            def inverse(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                latent, log_det = super().inverse(field)
                return latent, -log_det

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            module = Flipped().double()
        names = failed(proposal(module, event_shape=SHAPE, adapter="torch_module"))
        # Both directions are wrong by the same, so that they agree.
        assert "log-determinant against the full Jacobian" in names
        assert "forward log q against log_prob" not in names

    def test_sign_of_the_log_determinant_of_a_layer_of_normflows(self) -> None:
        import normflows

        class Flipped(normflows.flows.AffineCouplingBlock):  # type: ignore[misc]
            def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                field, log_det = super().forward(z)
                return field, -log_det

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            layer = Flipped(normflows.nets.MLP([SIZE // 2, 16, SIZE]))
            flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(SIZE), [layer]).double()
        names = failed(proposal(flow, event_shape=SHAPE))
        assert {"forward log q against log_prob", "log-determinant against the full Jacobian"} <= names

    def test_log_prob_of_another_flow(self, coupling: AffineCoupling) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(9)
            other = AffineCoupling().double()
        flow = (pair(coupling)[0], pair(other)[1])
        names = failed(proposal(flow, event_shape=SHAPE, adapter="torch_callables", weights=(coupling, other)))
        assert "forward log q against log_prob" in names
        # Nor does it help to compute both by that one: then the draws are not of the density.
        consistent = (lambda n: flow[0](n)[0], flow[1])
        names = failed(proposal(consistent, event_shape=SHAPE, adapter="torch_callables", weights=(coupling, other)))
        assert names == {"draws against their density"}

    def test_euler_steps_backwards_are_not_the_inverse(self, velocity: torch.nn.Module) -> None:
        from flow_matching.solver import ODESolver

        solver = ODESolver(velocity_model=velocity)
        time = torch.tensor([1.0, 0.0], dtype=torch.float64)

        def sampler(n: int) -> tuple[torch.Tensor, torch.Tensor]:
            latent, size = torch.randn(n, SIZE, dtype=torch.float64), 0.1
            field, log_det = latent, torch.zeros(n, dtype=torch.float64)
            one = torch.eye(SIZE, dtype=torch.float64)
            for step in range(10):
                now = torch.full((n,), step * size, dtype=torch.float64)

                def at(point: torch.Tensor, now: torch.Tensor = now) -> torch.Tensor:
                    return velocity(point[None], now[:1])[0]  # type: ignore[no-any-return]

                slope = torch.func.vmap(torch.func.jacrev(at))(field)
                # The exact log-determinant of the forward map: what is wrong is the density, which goes backwards.
                log_det = log_det + torch.linalg.slogdet(one + size * slope)[1]
                field = field + size * velocity(field, now)
            return field, white_noise(latent) - log_det

        def log_prob(field: torch.Tensor) -> torch.Tensor:
            _, log_q = solver.compute_likelihood(
                field, white_noise, step_size=0.1, method="euler", time_grid=time, exact_divergence=True
            )
            return log_q  # type: ignore[no-any-return]

        found = proposal((sampler, log_prob), event_shape=SHAPE, adapter="torch_callables", weights=velocity)
        assert "forward log q against log_prob" in failed(found)

    def test_bound_that_does_not_hold(self, velocity: torch.nn.Module) -> None:
        wide = Velocity().double()
        with torch.no_grad():
            for weight in wide.parameters():
                weight.mul_(4)
        found = proposal(wide, event_shape=SHAPE, adapter="flow_matching", flat=True, steps=1, log_q_bound=1e-6)
        assert "log-determinant against the full Jacobian" in failed(found)
        # Small steps keep it, of the velocity as it was.
        good = proposal(velocity, event_shape=SHAPE, adapter="flow_matching", flat=True, steps=8, log_q_bound=1e-3)
        assert failed(good) == set()

    def test_inverse_in_single_precision(self) -> None:
        class Deep(torch.nn.Module):
            """Layers that stretch, turn and shrink: what float32 loses on the way, its inverse does not find again."""

            def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                field, log_det = latent, torch.zeros_like(latent[:, 0])
                for _ in range(12):
                    log_det = log_det + torch.log(2 * torch.cosh(2 * field)).sum(1)
                    field = self.turned(torch.sinh(2 * field), 0.7)
                    log_det = log_det - torch.log(3 * torch.sqrt(1 + field**2)).sum(1)
                    field = torch.asinh(field) / 3
                return field, log_det

            def inverse(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                log_det = torch.zeros_like(field[:, 0])
                for _ in range(12):
                    log_det = log_det + torch.log(3 * torch.cosh(3 * field)).sum(1)
                    field = self.turned(torch.sinh(3 * field), -0.7)
                    log_det = log_det - torch.log(2 * torch.sqrt(1 + field**2)).sum(1)
                    field = torch.asinh(field) / 2
                return field, log_det

            @staticmethod
            def turned(field: torch.Tensor, angle: float) -> torch.Tensor:
                one, other = field.chunk(2, dim=1)
                cos, sin = float(np.cos(angle)), float(np.sin(angle))
                return torch.cat([cos * one + sin * other, cos * other - sin * one], dim=1)

        module = Deep()
        limit = 1e-5
        single = certify(
            proposal(module, event_shape=(SIZE,), adapter="torch_module"), 1, n_finite=FEW, tolerance=limit
        )
        assert not single.passed
        worst = {check.name: check.value for check in single.checks}["forward log q against log_prob"]
        assert worst > limit
        double = proposal(module, event_shape=(SIZE,), adapter="torch_module", dtype="float64")
        assert certify(double, 1, n_finite=FEW, tolerance=limit).passed


class TestDraws:
    def test_draws_that_are_not_finite(self) -> None:
        class Logarithm(AffineCoupling):
            def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                # The domain is half the line: NaN for the other half.
                field = latent.log()
                return field, -field.sum((1, 2))

            def inverse(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return field.exp(), field.sum((1, 2))

        assert "finite draws" in failed(proposal(Logarithm().double(), event_shape=SHAPE, adapter="torch_module"))

    def test_pair_where_a_field_is_expected(self) -> None:
        import normflows

        layer = normflows.flows.AffineCouplingBlock(normflows.nets.MLP([SIZE // 2, 16, SIZE]))
        flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(SIZE), [layer]).double()
        # `sample` of normflows returns log q too; with log q of one's own beside it there are three.
        sampler = lambda n: (flow.sample(n), flow.log_prob(flow.sample(n)[0]))  # noqa: E731
        with pytest.raises(ParameterError, match="pair of tensors"):
            proposal((sampler, flow.log_prob), event_shape=SHAPE, adapter="torch_callables", weights=flow)
        # What it returns is what is asked for.
        good = proposal((flow.sample, flow.log_prob), event_shape=SHAPE, adapter="torch_callables", weights=flow)
        field, log_q = good.sample(1, 5)
        np.testing.assert_allclose(good.log_prob(field), log_q, atol=1e-5)

    def test_log_q_of_every_site(self) -> None:
        base = Normal(torch.zeros(SIZE, dtype=torch.float64), 1.0)
        with pytest.raises(LatticeMismatchError, match="Independent"):
            proposal(base, event_shape=SHAPE, adapter="torch_distributions")

    def test_stochastic_layers(self) -> None:
        import normflows

        target = normflows.distributions.DiagGaussian(SIZE)
        layer = normflows.flows.MetropolisHastings(
            target, normflows.distributions.DiagGaussianProposal((SIZE,), 0.1), 2
        )
        flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(SIZE), [layer])
        with pytest.raises(ParameterError, match="MetropolisHastings"):
            proposal(flow, event_shape=SHAPE)

    def test_buffered_draws_of_bijx(self) -> None:
        import bijx
        from flax import nnx

        buffered = bijx.BufferedSampler(bijx.IndependentNormal(event_shape=SHAPE, rngs=nnx.Rngs(0)), buffer_size=8)
        with pytest.raises(ParameterError, match="BufferedSampler"):
            proposal(buffered, event_shape=SHAPE)


class TestSeeds:
    """A sampler must draw from the generator of the call, whatever else it could draw from."""

    def test_generator_of_its_own(self, coupling: AffineCoupling) -> None:
        generator = torch.Generator()

        def sampler(n: int) -> tuple[torch.Tensor, torch.Tensor]:
            latent = torch.randn(n, SIZE, dtype=torch.float64, generator=generator.manual_seed(7))
            field, log_det = coupling(latent)
            return field, white_noise(latent) - log_det

        found = proposal((sampler, pair(coupling)[1]), event_shape=SHAPE, adapter="torch_callables", weights=coupling)
        assert failed(found) == {"other seeds, other draws"}

    def test_numpy_baked_into_compiled_code(self) -> None:
        import jax.numpy as jnp
        from jax.scipy.stats import norm

        def sampler(key: Any, n: int) -> Any:  # noqa: ARG001 - the mistake
            return jnp.asarray(np.random.default_rng().standard_normal((n, SIZE)))

        def log_prob(field: Any) -> Any:
            return norm.logpdf(field).sum(1)

        found = proposal((sampler, log_prob), event_shape=SHAPE, adapter="jax_callables")
        assert "other seeds, other draws" in failed(found)

    def test_rows_that_are_drawn_twice(self, coupling: AffineCoupling) -> None:
        sampler, log_prob = pair(coupling)

        def twice(n: int) -> tuple[torch.Tensor, torch.Tensor]:
            field, log_q = sampler(-(-n // 2))
            return field.repeat(2, 1)[:n], log_q.repeat(2)[:n]

        found = proposal((twice, log_prob), event_shape=SHAPE, adapter="torch_callables", weights=coupling)
        assert failed(found) == {"other seeds, other draws"}


class TestCertificates:
    def test_of_less_support_is_no_other(self, coupling: AffineCoupling) -> None:
        build = partial(proposal, coupling, event_shape=SHAPE, adapter="torch_module")
        certificate = certificate_of(build(full_support=False))
        require_certificate(certificate, build(full_support=False))
        with pytest.raises(CertificateError, match="full_support"):
            require_certificate(certificate, build())
        with pytest.raises(CertificateError, match="without checks"):
            Certificate("0", "float64", ()).require()

    def test_numbers_of_draws(self, coupling: AffineCoupling) -> None:
        found = proposal(coupling, event_shape=SHAPE, adapter="torch_module")
        for name in ("n_finite", "n_compare", "n_jacobian"):
            with pytest.raises(ParameterError, match=name):
                certify(found, 1, **{name: 0})


class TestSmallSupport:
    """A spline on a box: the identity outside it, over a base that never draws there."""

    @staticmethod
    def flow(**options: Any) -> Proposal:
        from pyro.distributions.transforms import Spline

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(12)
            spline = Spline(SIZE, count_bins=4, bound=0.9).double()
        with torch.no_grad():
            for weight in spline.parameters():
                weight.mul_(0.1)
        side = torch.full((SIZE,), 0.9, dtype=torch.float64)
        base = Independent(Uniform(-side, side), 1)
        return proposal(TransformedDistribution(base, [spline]), event_shape=SHAPE, **options)

    def test_is_refused_unless_it_is_said(self) -> None:
        assert "own word: q > 0 everywhere" in failed(self.flow())
        assert failed(self.flow(full_support=False)) == set()

    def test_not_a_number_outside_is_no_support_either(self) -> None:
        class Box(torch.nn.Module):
            def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                field = 0.6 * torch.tanh(0.8 * latent)
                return field, torch.log(0.48 * (1 - torch.tanh(0.8 * latent) ** 2)).sum((1, 2))

            def inverse(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                latent = torch.atanh(field / 0.6) / 0.8
                return latent, -torch.log(0.48 * (1 - (field / 0.6) ** 2)).sum((1, 2))

        found = proposal(Box(), event_shape=SHAPE, adapter="torch_module", dtype="float64")
        assert failed(found) == {"own word: q > 0 everywhere"}

    def test_alone_is_refused_and_in_a_hybrid_counted(self, test_seed: int) -> None:
        found = self.flow(full_support=False)
        proposals = FlowProposals(Independence(THEORY), found, test_seed, 2)
        with pytest.raises(ParameterError, match="propose alone"):
            Cycle(THEORY, (proposals,))
        hmc = Trajectories.build(
            HMC(THEORY), test_seed, 1, trajectory_length=1.0, step_size=0.25, target_acceptance=None
        )
        with pytest.warns(UserWarning, match="support is smaller"):
            cycle = Cycle(THEORY, (hmc, proposals))
        store = MemoryStore()
        plan = SamplingPlan(chains=8, cycles=40, thermalisation=0, tuning=0, cycles_per_block=20)
        sample(cycle, plan, store, lambda: np.zeros((8, *SHAPE)))
        current = store.table("history", "log_weight_current")
        n_offsupport = int(np.isposinf(current).sum())
        assert 0 < n_offsupport < current.size / 2
        accepted = store.table("history", "accepted")
        assert not accepted[np.isposinf(current)].any()
        assert accepted[np.isfinite(current)].mean() > 0.01
