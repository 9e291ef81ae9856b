"""The contract of a built-in flow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flowmc.flows import Flow, TransportFlow, fingerprint, load_flow, save_flow
from flowmc.proposals import as_proposal, certify
from flowmc.seeds import torch_generator
from flowmc.theories import ContinuousSpace

__all__ = ["FlowContract"]


class FlowContract:
    """Tests of a `Flow`; provide the fixture ``flow``, in float64 and away from its initial weights."""

    @pytest.fixture
    def flow(self) -> Flow:
        """Return the flow under test."""
        raise NotImplementedError

    def test_draws_are_fields_of_the_theory(self, flow: Flow) -> None:
        field, log_q = flow.sample(6, torch_generator(1))
        assert flow.dtype == torch.float64
        assert field.shape == (6, *flow.theory.field_shape)
        assert field.dtype == flow.field_dtype
        assert flow.space.name == flow.theory.space.name
        assert flow.theory.space.contains(field.detach().reshape(6, -1)).all()
        assert log_q.shape == (6,)
        assert log_q.dtype == torch.float64

    def test_log_prob_agrees_with_the_draw(self, flow: Flow) -> None:
        field, log_q = flow.sample(50, torch_generator(2))
        log_prob = flow.log_prob(field)
        assert log_prob.dtype == torch.float64
        torch.testing.assert_close(log_prob, log_q, rtol=1e-9, atol=1e-9)

    def test_certificate_passes(self, flow: Flow) -> None:
        certify(as_proposal(flow), 3, n_finite=500, n_compare=64).require()

    def test_inverse_undoes_forward(self, flow: Flow) -> None:
        if not isinstance(flow, TransportFlow):
            return
        latent = flow.base.draw(20, torch_generator(4))
        field, log_det = flow.forward(latent)
        back, log_det_back = flow.inverse(field)
        assert isinstance(flow.space, ContinuousSpace)
        nowhere = torch.zeros_like(latent)
        # As a path in the space of the field: angles are the same modulo 2π.
        torch.testing.assert_close(flow.space.drift(nowhere, back - latent, 1.0), nowhere, rtol=0, atol=1e-9)
        torch.testing.assert_close(log_det_back, -log_det, rtol=1e-9, atol=1e-9)

    def test_draws_do_not_depend_on_the_batch(self, flow: Flow) -> None:
        field, _ = flow.sample(9, torch_generator(5))
        alone = torch.cat([flow.log_prob(field[i : i + 1]) for i in range(9)])
        torch.testing.assert_close(flow.log_prob(field), alone, rtol=1e-10, atol=1e-10)

    def test_every_weight_has_a_finite_gradient(self, flow: Flow) -> None:
        field, log_q = flow.sample(16, torch_generator(6))
        if flow.reparametrised:
            # Periodic functions where the same point of a bounded space has several coordinates.
            square, quartic = (torch.sin(field), torch.cos(2 * field)) if flow.space.bounded else (field**2, field**4)
            objective = log_q + square.flatten(1).sum(1) + quartic[:, 1:].flatten(1).sum(1)
        else:
            # Draws are not differentiated, given fields are: each with a weight of its own, so that nothing cancels.
            objective = flow.log_prob(field) * torch.linspace(0.5, 2, 16)
        objective.mean().backward()  # type: ignore[no-untyped-call]
        for name, parameter in flow.density_parameters():
            assert parameter.grad is not None, f"{name} takes no part in the draw"
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), f"{name} changes nothing"
        flow.zero_grad()

    def test_only_the_generator_is_drawn_from(self, flow: Flow) -> None:
        before = torch.get_rng_state()
        first, _ = flow.sample(5, torch_generator(7))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(flow.sample(5, torch_generator(7))[0], first)
        assert not torch.equal(flow.sample(5, torch_generator(8))[0], first)

    def test_draws_without_their_density_are_the_same(self, flow: Flow) -> None:
        assert torch.equal(flow.draw(5, torch_generator(7)), flow.sample(5, torch_generator(7))[0])

    def test_file_gives_the_flow_back(self, flow: Flow, tmp_path: Path) -> None:
        path = tmp_path / "flow.safetensors"
        mark = save_flow(path, flow, {"seconds": 1.0})
        loaded, saved = load_flow(path)
        assert loaded.theory == saved.theory == flow.theory
        assert saved.fingerprint == mark == fingerprint(loaded)
        field, _ = flow.sample(5, torch_generator(8))
        np.testing.assert_array_equal(loaded.to(flow.dtype).log_prob(field).detach(), flow.log_prob(field).detach())
