"""The contract of a layer of coupling flows."""

from __future__ import annotations

import pytest
import torch

from flowmc.flows.layers import Layer
from flowmc.seeds import torch_generator

__all__ = ["LayerContract"]


class LayerContract:
    """Tests of a `Layer`; provide the fixtures ``layer``, in float64 and away from its initial weights, and ``fresh``."""

    @pytest.fixture
    def layer(self) -> Layer:
        """Return the layer under test."""
        raise NotImplementedError

    @pytest.fixture
    def fresh(self) -> Layer:
        """Return the same layer as it is constructed, in float64."""
        raise NotImplementedError

    @pytest.fixture
    def field(self, layer: Layer) -> torch.Tensor:
        """Return fields (12, V), wide enough to leave the interval of a spline here and there."""
        sites = len(layer.order.sites)
        return 1.2 * torch.randn((12, sites), generator=torch_generator(1), dtype=torch.float64)

    def test_starts_as_the_identity(self, fresh: Layer, field: torch.Tensor) -> None:
        moved, log_det = fresh(field)
        torch.testing.assert_close(moved, field, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=1e-11)

    def test_moves_the_field(self, layer: Layer, field: torch.Tensor) -> None:
        moved, log_det = layer(field)
        assert moved.shape == field.shape
        assert moved.dtype == field.dtype
        assert log_det.shape == (len(field),)
        assert log_det.dtype == torch.float64
        # Every part of every partition has its turn.
        assert ((moved - field).abs() > 0).any(0).all()

    def test_inverse_undoes_forward(self, layer: Layer, field: torch.Tensor) -> None:
        moved, log_det = layer(field)
        back, log_det_back = layer.inverse(moved)
        torch.testing.assert_close(back, field, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(log_det_back, -log_det, rtol=1e-9, atol=1e-9)

    def test_log_determinant_is_that_of_the_jacobian(self, layer: Layer, field: torch.Tensor) -> None:
        for apply in (layer.forward, layer.inverse):
            point = field[0]
            jacobian = torch.autograd.functional.jacobian(lambda x, f=apply: f(x[None])[0][0], point)  # type: ignore[no-untyped-call]
            expected = torch.linalg.slogdet(jacobian)[1]
            torch.testing.assert_close(apply(point[None])[1][0], expected, rtol=1e-9, atol=1e-9)

    def test_equivariant_under_reflection_of_the_field(self, layer: Layer, field: torch.Tensor) -> None:
        moved, log_det = layer(field)
        mirrored, log_det_mirrored = layer(-field)
        if layer.z2:
            # Splines sum their mirrored rows in another order: equal up to rounding.
            torch.testing.assert_close(mirrored, -moved, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(log_det_mirrored, log_det, rtol=1e-10, atol=1e-10)
        else:
            assert not torch.allclose(mirrored, -moved)

    def test_draws_do_not_depend_on_the_batch(self, layer: Layer, field: torch.Tensor) -> None:
        moved, log_det = layer(field)
        for number in range(len(field)):
            alone, log_det_alone = layer(field[number : number + 1])
            torch.testing.assert_close(alone[0], moved[number], rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(log_det_alone[0], log_det[number], rtol=1e-11, atol=1e-11)

    def test_every_weight_has_a_finite_gradient(self, layer: Layer, field: torch.Tensor) -> None:
        for apply in (layer.forward, layer.inverse):
            layer.zero_grad()
            moved, log_det = apply(field)
            # Each draw with a weight of its own, so that nothing cancels.
            weight = torch.linspace(0.5, 2.0, len(field), dtype=torch.float64)
            (weight * (log_det + (moved**3).sum(1) + (moved**4).sum(1))).sum().backward()  # type: ignore[no-untyped-call]
            for name, parameter in layer.named_parameters():
                assert parameter.grad is not None, name
                assert torch.isfinite(parameter.grad).all(), name
                assert parameter.grad.any(), f"{name} changes nothing"
        layer.zero_grad()

    def test_weights_are_all_there_is_to_save(self, layer: Layer, fresh: Layer, field: torch.Tensor) -> None:
        fresh.load_state_dict(layer.state_dict())
        for apply in ("forward", "inverse"):
            for one, other in zip(getattr(fresh, apply)(field), getattr(layer, apply)(field), strict=True):
                assert torch.equal(one, other)
