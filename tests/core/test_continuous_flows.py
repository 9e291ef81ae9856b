"""Continuous flows: what the configuration decides, gradients through the solver, trajectories, and their training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmc.errors import ParameterError
from flowmc.flows import InterpolatingFlow, build_flow, describe_flow, fingerprint
from flowmc.flows.densities import GeneralisedGaussianDensity
from flowmc.flows.integrators import INTEGRATORS
from flowmc.flows.interpolating import InterpolatingConfig
from flowmc.proposals import as_proposal, certify
from flowmc.seeds import torch_generator
from flowmc.theories import DoubleWell, FreeScalar, GaussianMixture, Phi4, U1Gauge2D
from flowmc.training import (
    Loss,
    TrainingConfig,
    TrainingFiles,
    choose_objective,
    continuity,
    residual,
    reverse_kl,
    summed_gradient,
    train,
)

SMALL: dict[str, object] = {
    "kind": "interpolating",
    "networks": {"hidden": [6, 5], "windows": 2},
    "residual_spread": 0.0,
    "dtype": "float64",
}
WELL = DoubleWell(4, 4.0, 1.5)
CONFIG = TrainingConfig(
    objective="continuity", steps=20, batch_size=16, checkpoint_every=10, log_every=5, warmup_steps=5, seed=2
)


def shaken(description: dict[str, object], theory: object = WELL, scale: float = 0.2) -> InterpolatingFlow:
    flow = build_flow(description, theory, seed=3)  # type: ignore[arg-type]
    assert isinstance(flow, InterpolatingFlow)
    generator = torch_generator(4)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return flow


class TestExactness:
    @pytest.mark.parametrize("name", INTEGRATORS)
    def test_the_integrator_decides(self, name: str) -> None:
        flow = shaken({**SMALL, "integrator": name, "log_q_bound": 2e-3})
        assert flow.exact == INTEGRATORS[name].exact
        assert flow.log_q_bound == (0.0 if flow.exact else 2e-3)

    def test_a_bound_that_holds_passes_and_one_that_does_not_is_refused(self) -> None:
        # Two coarse steps: the trace is off by far more than 1e-7 nats.
        coarse = {**SMALL, "integrator": "midpoint_trace", "steps": 2}
        passed = {
            bound: certify(as_proposal(shaken({**coarse, "log_q_bound": bound})), 1, n_finite=200, n_compare=16).passed
            for bound in (1e-7, 5e-2)
        }
        assert passed == {1e-7: False, 5e-2: True}

    def test_production_makes_matrices_of_few_fields_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        flow = shaken({**SMALL, "steps": 2}, DoubleWell(16, 4.0, 1.5))
        sizes, forward = [], flow.forward

        def seen(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            sizes.append(len(latent))
            return forward(latent)

        monkeypatch.setattr(flow, "forward", seen)
        fields, log_q = as_proposal(flow).sample(1, 600)
        assert sizes == [256, 256, 88]
        assert len(fields) == len(log_q) == 600

    def test_draws_converge_with_the_steps(self) -> None:
        # All of the same weights: the exact log q of finer and finer maps approaches one density.
        latent = shaken(SMALL).base.draw(50, torch_generator(1))
        found = {}
        for name, steps in (("rk4", 40), ("splitting", 40), ("splitting", 20), ("rk4_trace", 40)):
            flow = shaken({**SMALL, "integrator": name, "steps": steps})
            with torch.no_grad():
                found[name, steps] = flow.forward(latent)
        reference = found["rk4", 40]
        assert (found["rk4_trace", 40][1] - reference[1]).abs().max() < 1e-7
        errors = [float((found["splitting", steps][1] - reference[1]).abs().max()) for steps in (20, 40)]
        assert errors[1] < 1e-3
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


class TestGradients:
    @pytest.mark.parametrize("integrator", INTEGRATORS)
    def test_checkpointing_changes_nothing_but_memory(self, integrator: str) -> None:
        gradients, kept = [], []
        for checkpointed in (False, True):
            flow = shaken({**SMALL, "integrator": integrator, "steps": 6, "checkpointed": checkpointed})
            saved: list[int] = []

            def pack(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
                saved.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                pieces = list(reverse_kl(flow, WELL, 16, torch_generator(1)))
            gradients.append(summed_gradient(flow, pieces))
            kept.append(sum(saved))
        np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)
        assert kept[1] < kept[0] / 3

    def test_path_gradient_vanishes_for_the_exact_flow(self) -> None:
        # At rest over its own base the flow is the target.
        theory = FreeScalar((4,), 0.8)
        flow = build_flow({**SMALL, "base": "free_field", "base_mass": 0.8}, theory)
        objective = choose_objective("path_gradient", flow, theory, 20)
        gradient = summed_gradient(flow, objective(flow, theory, 20, torch_generator(1), 0))
        np.testing.assert_allclose(gradient, 0, atol=1e-12)
        with torch.no_grad():
            for weight in flow.velocity.parameters():  # type: ignore[union-attr]
                weight.add_(0.1)
        assert np.abs(summed_gradient(flow, objective(flow, theory, 20, torch_generator(1), 0))).max() > 1e-3

    @pytest.mark.parametrize("integrator", INTEGRATORS)
    @pytest.mark.parametrize("large", [False, True])
    def test_log_prob_has_the_same_gradient_in_both_precisions(
        self, integrator: str, large: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A first guess that is right to the rounding of float32 must not end the derivatives there.
        if large:
            for module in ("base", "runge_kutta"):
                monkeypatch.setattr(f"flowmc.flows.integrators.{module}.DIFFERENTIABLE_VOLUME", 1)
        gradients = []
        for dtype in (torch.float64, torch.float32):
            flow = shaken({**SMALL, "integrator": integrator, "steps": 10}).to(dtype)
            field = torch.randn((16, 4), generator=torch_generator(1), dtype=torch.float64).to(dtype).requires_grad_()
            weights = [weight for _, weight in flow.density_parameters()]
            found = torch.autograd.grad(flow.log_prob(field).sum(), [field, *weights])
            gradients.append(torch.cat([part.flatten().double() for part in found]))
        assert torch.linalg.norm(gradients[1] - gradients[0]) < 1e-4 * torch.linalg.norm(gradients[0])


class TestWeightsTakenOver:
    def test_convolutions_serve_all_lattices_and_others_their_own(self) -> None:
        networks = {"network": "convolutional", "hidden": [3, 2], "radius": 1, "windows": 2}
        found = {}
        for kind, given, own in (
            ("convolutional", WELL, DoubleWell(6, 4.0, 1.5)),
            ("fully_connected", WELL, DoubleWell(6, 4.0, 1.5)),
            ("fully_connected", WELL, DoubleWell(4, 4.0, 3.0)),
        ):
            description = {**SMALL, "networks": {**networks, "network": kind}}
            one, other = shaken(description, given), build_flow(description, own)
            found[kind, own.n_sites] = {name.split(".")[0] for name in other.start_from(one)}
        assert found == {
            ("convolutional", 6): {"velocity", "interpolation"},
            ("fully_connected", 6): {"interpolation"},
            ("fully_connected", 4): {"velocity", "interpolation"},
        }

    def test_another_path_or_reach_is_not_taken(self) -> None:
        networks = {"network": "convolutional", "hidden": [3, 2], "radius": 2, "windows": 2}
        one = shaken({**SMALL, "networks": networks})
        other = build_flow(
            {**SMALL, "networks": {**networks, "radius": 1}, "interpolation": {"kind": "linear"}},
            Phi4((2, 2), m2=-4.0, lam=8.0),
        )
        assert other.start_from(one) == []


class TestTrajectory:
    def test_ends_are_base_and_draw(self) -> None:
        flow = shaken({**SMALL, "steps": 8})
        latent = flow.base.draw(10, torch_generator(1))
        with torch.no_grad():
            points = list(flow.trajectory(latent, 8))
            field, _ = flow.forward(latent)
        assert [time for time, _ in points] == [number / 8 for number in range(9)]
        assert torch.equal(points[0][1], latent)
        torch.testing.assert_close(points[-1][1], field, rtol=0, atol=1e-12)


class TestContinuity:
    @pytest.mark.parametrize("times", [0, 3])
    def test_needs_no_gradient_of_action_or_trajectory(self, times: int) -> None:
        flow = shaken({**SMALL, "residual_times": times, "trajectory_steps": 5})
        pieces = list(continuity(flow, WELL, 12, torch_generator(1), 4))
        assert [piece.value.dtype for piece in pieces] == [torch.float64] * 3
        assert all(len(piece.log_w) == 0 for piece in pieces)
        sum(piece.value for piece in pieces).backward()  # type: ignore[union-attr]
        for name, weight in flow.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.any(), name

    @pytest.mark.parametrize("spread", [0.0, 0.3])
    def test_trajectories_are_not_differentiated(self, spread: float) -> None:
        flow = shaken({**SMALL, "trajectory_steps": 5, "residual_spread": spread})
        (piece,) = continuity(flow, WELL, 8, torch_generator(1))
        generator = torch_generator(1)
        with torch.no_grad():
            points = list(flow.trajectory(flow.base.draw(8, generator), 5))
        times = torch.tensor([time for time, _ in points], dtype=torch.float64).repeat_interleave(8)
        fields = torch.cat([field for _, field in points])
        if spread:
            # Each field is stretched or squeezed as a whole.
            fields = fields * (1 + spread * torch.randn(6, 8, generator=generator, dtype=torch.float64).reshape(48, 1))
        found = residual(flow, WELL, times, fields)
        fixed = Loss((found.abs() + found**2).mean(), piece.log_w)
        np.testing.assert_allclose(summed_gradient(flow, [piece]), summed_gradient(flow, [fixed]), rtol=1e-12)

    def test_pieces_add_up(self) -> None:
        flow = shaken({**SMALL, "trajectory_steps": 5})
        (whole,) = continuity(flow, WELL, 2000, torch_generator(1))
        halves = [float(piece.value.detach()) for piece in continuity(flow, WELL, 2000, torch_generator(2), 1000)]
        assert len(halves) == 2
        # Other draws: equal up to their scatter.
        assert sum(halves) == pytest.approx(float(whole.value.detach()), rel=0.2)

    def test_vanishes_for_the_exact_flow(self) -> None:
        # Base and target are one: at rest, with C = 0, nothing is left of the residual.
        theory = FreeScalar((4,), 0.8)
        flow = build_flow(
            {**SMALL, "base": "free_field", "base_mass": 0.8, "interpolation": {"kind": "linear"}}, theory
        )
        assert isinstance(flow, InterpolatingFlow)
        ((piece),) = continuity(flow, theory, 50, torch_generator(1))
        log_z = 0.5 * np.log(np.pi / (4 * np.sin(np.pi * np.arange(4) / 4) ** 2 + 0.64)).sum()
        with torch.no_grad():
            rate = flow.interpolation.rate_of_log_z(torch.linspace(0, 1, 21, dtype=torch.float64))
        # f_1 − f_0 = −ln Z is a constant: E = C(t) − ln Z at all fields.
        excess = rate - log_z
        assert float(piece.value.detach()) == pytest.approx(float((excess.abs() + excess**2).mean()), rel=1e-9)

    def test_learns_two_modes_and_ln_z(self, tmp_path: Path) -> None:
        theory = GaussianMixture(((2.5, 0.0), (-2.5, 0.0)), (0.7, 0.7), (0.4, 0.6))
        flow = build_flow(
            {
                "kind": "interpolating",
                "networks": {"hidden": [24, 24], "windows": 2},
                "base_width": 2.0,
                "trajectory_steps": 8,
                "residual_times": 4,
                "integrator": "rk4_trace",
            },
            theory,
            seed=1,
        )
        assert isinstance(flow, InterpolatingFlow)
        config = replace(CONFIG, steps=250, batch_size=128, learning_rate=1e-2, log_every=250)
        result = train(flow, theory, config, tmp_path / "flow.safetensors")
        assert result.records[-1].loss < 0.1 * result.records[0].loss
        with torch.no_grad():
            field, log_q = flow.sample(2000, torch_generator(5))
            weight = torch.exp(-theory.action(field) - log_q)
            rate = flow.interpolation.rate_of_log_z(torch.linspace(0, 1, 101))
        ess = float(weight.mean() ** 2 / (weight**2).mean())
        assert ess > 0.5
        error = float(weight.std()) / 2000**0.5
        assert float(weight.mean()) == pytest.approx(1, abs=5 * error)
        share = float((weight * (field[:, 0] > 0)).sum() / weight.sum())
        assert share == pytest.approx(0.4, abs=5 * error)
        # ∫ C(t) dt is ln Z as far as the residual is small.
        assert float(torch.trapezoid(rate, dx=0.01)) == pytest.approx(0, abs=0.2)

    def test_resumed_training_is_bit_identical(self, tmp_path: Path) -> None:
        description = {**SMALL, "residual_times": 3, "trajectory_steps": 5}
        flows = [build_flow(description, WELL, seed=1) for _ in range(3)]
        train(flows[0], WELL, CONFIG, tmp_path / "whole.safetensors")
        stops = iter([False] * 13 + [True])
        parts = tmp_path / "parts.safetensors"
        first = train(flows[1], WELL, CONFIG, parts, should_stop=lambda: "now" if next(stops) else "")
        assert (first.step, first.finished) == (14, False)
        train(flows[2], WELL, CONFIG, parts, resume=True)
        assert fingerprint(flows[2]) == fingerprint(flows[0])
        assert TrainingFiles(parts).log.read_text().count("\n") == 5

    def test_annealing_off_the_path_is_refused_before_the_first_step(self, tmp_path: Path) -> None:
        mixture = GaussianMixture(((2.5, 0.0), (-2.5, 0.0)), (0.7, 0.7), (0.4, 0.6))
        flow = build_flow({**SMALL, "interpolation": {"kind": "diffusion"}}, mixture)
        config = replace(CONFIG, annealing=0.5, annealing_path="temperature")
        with pytest.raises(ParameterError, match="leave out `annealing`"):
            train(flow, mixture, config, tmp_path / "flow.safetensors")
        assert not list(tmp_path.iterdir())

    def test_other_flows_are_refused(self) -> None:
        theory = Phi4((4, 4), m2=-4.0, lam=8.0)
        with pytest.raises(ParameterError, match="interpolating"):
            choose_objective("continuity", build_flow({"kind": "coupling"}, theory), theory, 8)
        assert choose_objective("continuity", build_flow(SMALL, WELL), WELL, 8) is continuity


class TestBase:
    @pytest.mark.parametrize("power", [1.0, 2.0, 4.0, 7.5])
    def test_moments_and_norm(self, power: float, test_seed: int) -> None:
        base = GeneralisedGaussianDensity((2, 3), torch.float64, 1.4, power)
        grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
        alone = GeneralisedGaussianDensity((1,), torch.float64, 1.4, power)
        density = torch.exp(alone.log_prob(grid[:, None])) * (grid[1] - grid[0])
        assert float(density.sum()) == pytest.approx(1, abs=1e-7)
        field = base.draw(20_000, torch_generator(test_seed))
        torch.testing.assert_close(base.log_prob(field), alone.log_prob(field.reshape(-1, 1)).reshape(-1, 6).sum(1))
        for moment in (1, 2, 4):
            sample = field.flatten() ** moment
            exact = float((density * grid**moment).sum())
            assert float(sample.mean()) == pytest.approx(exact, abs=4.5 * float(sample.std()) / len(sample) ** 0.5)

    @pytest.mark.parametrize(("width", "power"), [(0.0, 2.0), (1.0, 0.5), (float("nan"), 2.0), (1.0, float("inf"))])
    def test_bad_parameters_are_refused(self, width: float, power: float) -> None:
        with pytest.raises(ParameterError, match="base_width"):
            GeneralisedGaussianDensity((2,), torch.float64, width, power)


class TestConfig:
    def test_description_rebuilds_the_flow(self) -> None:
        flow = shaken({**SMALL, "interpolation": {"kind": "learned", "networks": {"hidden": [3, 4]}}})
        again = build_flow(describe_flow(flow), WELL)
        assert again.config == flow.config
        assert flow.config.interpolation.networks.hidden == (3, 4)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"base": "uniform"},
            {"base_width": 0.0},
            {"base_mass": "heavy"},
            {"integrator": "dopri5"},
            {"steps": 0},
            {"log_q_bound": 0.0},
            {"log_q_bound": 5.0},
            {"trajectory_steps": 0},
            {"residual_times": 30},
            {"residual_spread": -0.1},
            {"residual_spread": float("nan")},
            {"dtype": "float16"},
        ],
        ids=str,
    )
    def test_bad_values_are_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ParameterError, match="expected"):
            build_flow({**SMALL, **wrong}, WELL)

    def test_large_lattices_need_another_integrator(self) -> None:
        with pytest.raises(ParameterError, match="splitting"):
            build_flow({**SMALL, "integrator": "rk4"}, Phi4((6, 6), m2=-4.0, lam=8.0))

    def test_matched_mass_needs_a_theory_that_knows_it(self) -> None:
        with pytest.raises(ParameterError, match="base_mass"):
            build_flow({**SMALL, "base": "free_field", "base_mass": "matched"}, WELL)

    def test_defaults(self) -> None:
        config = InterpolatingConfig()
        assert INTEGRATORS[config.integrator].exact

    def test_translations_need_a_theory_that_is_invariant(self) -> None:
        mixture = GaussianMixture(((2.5, 0.0), (-2.5, 0.0)), (0.7, 0.7), (0.4, 0.6))
        with pytest.raises(ParameterError, match="invariant under translations"):
            build_flow({**SMALL, "networks": {"network": "convolutional"}}, mixture)

    def test_reflections_need_an_even_action(self) -> None:
        even, uneven = (GaussianMixture(((2.5, 0.0), (-2.5, 0.0)), (0.7, 0.7), w) for w in ((0.5, 0.5), (0.4, 0.6)))
        build_flow({**SMALL, "z2": True}, even)
        with pytest.raises(ParameterError, match="even action"):
            build_flow({**SMALL, "z2": True}, uneven)

    def test_angles_are_refused(self) -> None:
        with pytest.raises(Exception, match="angle"):
            build_flow(SMALL, U1Gauge2D((4, 4), 1.0))
