"""Operator flows: what the configuration decides, and one set of weights on many lattices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowmc.errors import FlowmcError, ParameterError, TheoryMismatchError
from flowmc.flows import Flow, OperatorFlow, build_flow, describe_flow, load_flow, save_flow
from flowmc.proposals import as_proposal, certify
from flowmc.seeds import torch_generator
from flowmc.theories import DoubleWell, FreeScalar, GaussianMixture, Phi4, Theory, U1Gauge2D
from flowmc.training import choose_objective, continuity, residual, reverse_kl, summed_gradient

Shaken = Callable[[Mapping[str, object], Theory], Flow]
SQUARE = Phi4((4, 4), m2=-4.0, lam=8.0)
SMALL: dict[str, Any] = {
    "kind": "operator",
    "networks": {"features": 3, "gates": 1, "moments": 2, "kernel": {"functions": 3, "reach": 1.7}},
    "dtype": "float64",
}


def operator(shaken: Shaken, theory: Theory = SQUARE, **more: Any) -> OperatorFlow:
    flow = shaken({**SMALL, **more}, theory)
    assert isinstance(flow, OperatorFlow)
    return flow


class TestOtherLattices:
    @pytest.mark.parametrize("shape", [(6, 6), (2, 8), (5,), (2, 3, 2)], ids=str)
    def test_weights_are_shared(self, shape: tuple[int, ...], shaken: Shaken) -> None:
        flow = operator(shaken)
        other = flow.on(Phi4(shape, m2=-4.0, lam=8.0))
        assert [*other.parameters()] == [*flow.parameters()]
        field, log_q = other.sample(20, torch_generator(1))
        assert field.shape == (20, *shape)
        torch.testing.assert_close(other.log_prob(field), log_q, rtol=1e-9, atol=1e-9)

    def test_another_lattice_passes_the_certificate(self, shaken: Shaken) -> None:
        other = operator(shaken, steps=6).on(Phi4((2, 6), m2=-4.0, lam=8.0))
        certify(as_proposal(other), 3, n_finite=200, n_compare=16).require()

    def test_the_base_is_that_of_the_other_theory(self, shaken: Shaken) -> None:
        other = Phi4((6, 6), m2=-4.0, lam=6.008)
        found = float(torch.exp(operator(shaken).on(other).base.log_mass))  # type: ignore[arg-type]
        assert found == pytest.approx(other.gaussian_mass(), rel=1e-12)

    def test_an_extensive_density(self, shaken: Shaken) -> None:
        """Far beyond the reach of kernels and the correlation length, log q of a repeated field is repeated."""
        theory = Phi4((12,), m2=4.0, lam=1.0)
        flow = operator(shaken, theory, steps=20)
        field = 0.4 * torch.randn((5, 12), generator=torch_generator(1), dtype=torch.float64)
        with torch.no_grad():
            once = flow.inverse(field)[1]
            twice = flow.on(Phi4((24,), m2=4.0, lam=1.0)).inverse(field.repeat(1, 2))[1]
        torch.testing.assert_close(twice, 2 * once, rtol=1e-9, atol=1e-9)

    def test_files(self, shaken: Shaken, tmp_path: Path) -> None:
        flow = operator(shaken, conditioning={"lam": [4.0, 9.0]}, spacing="mass")
        save_flow(tmp_path / "flow.safetensors", flow, {})
        loaded, _ = load_flow(tmp_path / "flow.safetensors")
        assert isinstance(loaded, OperatorFlow)
        assert describe_flow(loaded) == describe_flow(flow)
        other = Phi4((6, 6), m2=-4.0, lam=5.0)
        draws = [one.on(other).sample(5, torch_generator(1))[1] for one in (flow, loaded)]
        assert torch.equal(draws[0], draws[1])

    @pytest.mark.parametrize(
        ("change", "taken"),
        [
            ({}, 3),
            ({"steps": 30, "integrator": "splitting"}, 3),
            ({"networks": {**SMALL["networks"], "sums": "fourier", "frequency": 2.0}}, 3),
            ({"networks": {**SMALL["networks"], "kernel": {"functions": 3, "reach": 1.7, "cutoff": 1.0}}}, 3),
            ({"networks": {**SMALL["networks"], "gates": 2}}, 0),
            ({"networks": {**SMALL["networks"], "kernel": {"functions": 3, "reach": 2.5}}}, 0),
            ({"spacing": 0.5}, 0),
            ({"base_mass": 0.7}, 3),
            ({"conditioning": {"lam": [4.0, 9.0]}}, 0),
        ],
    )
    def test_start_from(self, change: dict[str, Any], taken: int, shaken: Shaken) -> None:
        other = build_flow({**SMALL, **change}, Phi4((6, 4), m2=-4.0, lam=6.008))
        assert len(other.start_from(operator(shaken))) == taken

    @pytest.mark.parametrize("shape", [(6, 6), (9,), (4, 8)], ids=str)
    def test_short_kernels_are_exact_on_any_lattice(self, shape: tuple[int, ...], shaken: Shaken) -> None:
        """Several sites move at once where kernels are shorter than the lattice, and log q is that of the map."""
        flow = operator(shaken, Phi4(shape, m2=-4.0, lam=8.0), integrator="splitting", steps=2)
        assert flow.exact
        assert len(flow.velocity.colour_classes) < flow.theory.volume / 2
        latent = flow.base.draw(2, torch_generator(1))
        field, log_det = flow.forward(latent)
        for one, found in zip(latent, log_det, strict=True):
            jacobian = torch.func.jacrev(lambda at: flow.forward(at[None])[0][0])(one)
            expected = torch.linalg.slogdet(jacobian.reshape(flow.theory.volume, -1)).logabsdet
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(flow.inverse(field)[0], latent, rtol=0, atol=1e-10)

    def test_kernels_in_units_of_the_mass_belong_to_how_it_is_chosen(self, shaken: Shaken) -> None:
        given = operator(shaken, spacing="mass")
        taken = {
            mass: build_flow({**SMALL, "spacing": "mass", "base_mass": mass}, SQUARE).start_from(given)
            for mass in ("matched", 0.7)
        }
        assert [len(names) for names in taken.values()] == [3, 0]


class TestUnits:
    def test_spacings(self, shaken: Shaken) -> None:
        """In other units the same numbers are other kernels; in the same ones they are the same."""
        mass = SQUARE.gaussian_mass()
        draws = {}
        for spacing in (1.0, 0.25, "extent", mass, "mass"):
            networks = {**SMALL["networks"], "kernel": {"functions": 3, "reach": 0.8}}
            draws[spacing] = operator(shaken, spacing=spacing, networks=networks).sample(5, torch_generator(1))[1]
        assert torch.equal(draws["extent"], draws[0.25])
        torch.testing.assert_close(draws["mass"], draws[mass], rtol=1e-12, atol=1e-12)
        assert (draws[1.0] - draws[0.25]).abs().max() > 1e-3

    def test_conditioning(self, shaken: Shaken) -> None:
        """The base alone makes log q of different couplings different: the map itself must be."""
        ranges = {"lam": [4.0, 9.0]}
        latent = torch.randn((5, 4, 4), generator=torch_generator(1), dtype=torch.float64)
        fields = []
        for conditioning in ({}, ranges):
            flow = operator(shaken, conditioning=conditioning)
            fields.append([flow.on(Phi4((4, 4), -4.0, lam)).forward(latent)[0] for lam in (5.0, 8.0)])
        assert torch.equal(*fields[0])
        assert (fields[1][0] - fields[1][1]).abs().max() > 1e-3


class TestRefusals:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"spacing": 0.0},
            {"spacing": "size"},
            {"spacing": "mass", "base": "generalised_gaussian"},
            {"interpolation": {"kind": "learned"}},
            {"conditioning": {"lam": [9.0, 4.0]}},
            {"conditioning": {"lam": [9.0]}},
            {"conditioning": {"lam": [4.0, float("inf")]}},
            {"spacing": "extent"},
        ],
        ids=str,
    )
    def test_bad_configurations(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ParameterError, match="expected"):
            build_flow({**SMALL, **wrong}, SQUARE)

    def test_a_coupling_that_the_theory_lacks(self) -> None:
        with pytest.raises(TheoryMismatchError, match=r"'m2', 'lam'"):
            build_flow({**SMALL, "conditioning": {"mass": [0.1, 9.0]}}, SQUARE)

    def test_a_coupling_out_of_range(self, shaken: Shaken) -> None:
        flow = operator(shaken, conditioning={"lam": [4.0, 9.0]})
        with pytest.raises(ParameterError, match=r"lam = 3.9, outside of the range \[4.0, 9.0\]"):
            flow.on(Phi4((4, 4), -4.0, 3.9))

    @pytest.mark.parametrize(
        "theory", [GaussianMixture(((1.0, 0.0),), (1.0,), (1.0,)), U1Gauge2D((4, 4), 1.0)], ids=lambda at: at.name
    )
    def test_theories_without_the_symmetries(self, theory: Theory) -> None:
        with pytest.raises(FlowmcError):
            build_flow({**SMALL, "base": "generalised_gaussian"}, theory)

    def test_other_real_fields_are_served(self, shaken: Shaken) -> None:
        flow = operator(shaken, DoubleWell(6, 4.0, 1.5), base="generalised_gaussian", base_power=4.0, steps=6)
        certify(as_proposal(flow), 3, n_finite=200, n_compare=16).require()


class TestObjectives:
    @pytest.mark.parametrize("large", [False, True])
    def test_path_gradient_is_that_of_reverse_kl(self, large: bool, shaken: Shaken) -> None:
        """On average they are the same: compared at some hundred draws, by their scatter."""
        theory = Phi4((6, 6) if large else (4, 4), m2=-4.0, lam=8.0)
        flow = operator(shaken, theory, steps=4)
        batches = {}
        for name in ("reverse_kl", "path_gradient"):
            objective = choose_objective(name, flow, theory, 50)
            batches[name] = np.stack(
                [summed_gradient(flow, objective(flow, theory, 50, torch_generator(seed), 0)) for seed in range(12)]
            )
        # The same draws for both: what differs is the part without a mean.
        difference = batches["reverse_kl"] - batches["path_gradient"]
        error = difference.std(0, ddof=1) / np.sqrt(len(difference))
        # Of some hundred components: with twelve batches 6.5 errors are as likely as four of a Gaussian.
        assert (np.abs(difference.mean(0)) < 6.5 * error + 1e-9).all()
        assert np.abs(batches["reverse_kl"].mean(0)).max() > 0.1

    def test_continuity_vanishes_for_the_exact_flow(self) -> None:
        # Base and target are one: at rest nothing is left but C(t), the same for all fields.
        theory = FreeScalar((4, 4), 0.8)
        flow = build_flow({**SMALL, "base_mass": 0.8}, theory)
        assert isinstance(flow, OperatorFlow)
        (piece,) = continuity(flow, theory, 20, torch_generator(1))
        assert abs(float(piece.value.detach())) < 1e-10

    def test_continuity_is_blind_to_the_rate_of_log_z(self, shaken: Shaken) -> None:
        flow = operator(shaken, trajectory_steps=3)
        (piece,) = continuity(flow, SQUARE, 8, torch_generator(1))
        with torch.no_grad():
            points = list(flow.trajectory(flow.base.draw(8, torch_generator(1)), 3))
        found = []
        for time, field in points:
            when = torch.full((8,), time, dtype=torch.float64)
            at = residual(flow, SQUARE, when, field.flatten(1))
            found.append((at - at.mean()) * np.sqrt(8 / 7))
        expected = torch.stack([each.abs() + each**2 for each in found]).mean()
        torch.testing.assert_close(piece.value, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("name", ["reverse_kl", "continuity"])
    def test_every_weight_is_trained(self, name: str, shaken: Shaken) -> None:
        flow = operator(shaken)
        objective = choose_objective(name, flow, SQUARE, 12)
        for piece in objective(flow, SQUARE, 12, torch_generator(1), 6):
            piece.value.backward()  # type: ignore[no-untyped-call]
        for weight_name, weight in flow.named_parameters():
            assert weight.grad is not None, weight_name
            assert weight.grad.any(), weight_name

    def test_checkpointing_changes_nothing(self, shaken: Shaken) -> None:
        gradients = [
            summed_gradient(flow, reverse_kl(flow, SQUARE, 16, torch_generator(1)))
            for flow in (operator(shaken, checkpointed=flag) for flag in (False, True))
        ]
        np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)
