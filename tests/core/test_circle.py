"""Maps of the circle: one to one, smooth across the cut, their slopes, their gradients, and what float32 leaves."""

from __future__ import annotations

from math import pi

import pytest
import torch
from torch import Tensor

from flowmc.flows.circle import CIRCLE_MAPS, CircleMap, CircularSpline, Projection
from flowmc.theories.spaces import wrapped

MAPS = {
    "spline of 1 bin": CircularSpline(1),
    "spline of 2 bins": CircularSpline(2),
    "spline of 8 bins": CircularSpline(8),
    "projection": Projection(1),
    "3 projections": Projection(3),
}


@pytest.fixture(params=MAPS)
def circle_map(request: pytest.FixtureRequest) -> CircleMap:
    return MAPS[request.param]


@pytest.fixture
def generator(test_seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(test_seed)


def random_parameters(circle_map: CircleMap, generator: torch.Generator, n: int, sites: int = 1) -> Tensor:
    """Maps with slopes between about a hundredth and a hundred."""
    return torch.randn(n, circle_map.n_parameters, sites, generator=generator, dtype=torch.float64)


def random_angles(generator: torch.Generator, n: int, sites: int = 1) -> Tensor:
    return pi * (2 * torch.rand(n, sites, generator=generator, dtype=torch.float64) - 1)


def test_every_family_is_tested() -> None:
    assert {type(circle_map) for circle_map in MAPS.values()} == set(CIRCLE_MAPS.values())


def test_zero_parameters_are_the_identity(circle_map: CircleMap, generator: torch.Generator) -> None:
    angle = random_angles(generator, 10, 5)
    parameters = torch.zeros(10, circle_map.n_parameters, 5, dtype=torch.float64)
    for mapped, log_slope in (circle_map.forward(angle, parameters), circle_map.inverse(angle, parameters)):
        torch.testing.assert_close(mapped, angle, rtol=0, atol=1e-14)
        torch.testing.assert_close(log_slope, torch.zeros_like(log_slope), rtol=0, atol=1e-14)


def test_inverse_undoes_forward(circle_map: CircleMap, generator: torch.Generator) -> None:
    angle, parameters = random_angles(generator, 500, 4), random_parameters(circle_map, generator, 500, 4)
    mapped, log_slope = circle_map.forward(angle, parameters)
    back, log_slope_back = circle_map.inverse(mapped, parameters)
    for values in (mapped, back):
        assert ((values >= -pi) & (values <= pi)).all()
    torch.testing.assert_close(wrapped(back - angle), torch.zeros_like(angle), rtol=0, atol=1e-11)
    torch.testing.assert_close(log_slope_back, -log_slope, rtol=0, atol=1e-10)


def test_slopes_are_derivatives(circle_map: CircleMap, generator: torch.Generator) -> None:
    angle, parameters = random_angles(generator, 300, 2), random_parameters(circle_map, generator, 300, 2)
    for direction in (circle_map.forward, circle_map.inverse):
        given = angle.clone().requires_grad_()
        mapped, log_slope = direction(given, parameters)
        (slope,) = torch.autograd.grad(mapped.sum(), given)
        torch.testing.assert_close(log_slope.exp(), slope, rtol=1e-9, atol=0)


def test_angles_of_a_batch_have_maps_of_their_own(circle_map: CircleMap, generator: torch.Generator) -> None:
    angle, parameters = random_angles(generator, 6, 5), random_parameters(circle_map, generator, 6, 5)
    together = circle_map.forward(angle, parameters)
    for row, site in ((0, 0), (2, 3), (5, 4)):
        alone = circle_map.forward(angle[row : row + 1, site : site + 1], parameters[row : row + 1, :, site : site + 1])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[row, site], other[0, 0], rtol=1e-13, atol=1e-13)


def test_goes_once_around(circle_map: CircleMap, generator: torch.Generator) -> None:
    parameters = random_parameters(circle_map, generator, 10)
    angle = torch.linspace(-pi, pi, 20001, dtype=torch.float64)[:-1].expand(10, -1)
    mapped, log_slope = circle_map.forward(angle, parameters.expand(-1, -1, 20000))
    ahead = [torch.roll(values, -1, 1) for values in (mapped, log_slope)]
    steps = wrapped(ahead[0] - mapped)
    assert (steps > 0).all()
    whole = torch.full((10,), 2 * pi, dtype=torch.float64)
    torch.testing.assert_close(steps.sum(1), whole)
    # Without a jump of the slope no step is far from what the slopes at its ends say.
    torch.testing.assert_close(steps, pi / 20000 * (log_slope.exp() + ahead[1].exp()), rtol=0.2, atol=0)


def test_is_smooth_across_the_cut(circle_map: CircleMap, generator: torch.Generator) -> None:
    parameters = random_parameters(circle_map, generator, 200)
    left = torch.full((200, 1), -pi, dtype=torch.float64)
    right = torch.nextafter(-left, left)
    for direction in (circle_map.forward, circle_map.inverse):
        (mapped, log_slope), (mapped_right, log_slope_right) = direction(left, parameters), direction(right, parameters)
        torch.testing.assert_close(wrapped(mapped - mapped_right), torch.zeros_like(left), rtol=0, atol=1e-12)
        torch.testing.assert_close(log_slope, log_slope_right, rtol=0, atol=1e-10)


def test_rotation_is_the_last_parameter(circle_map: CircleMap, generator: torch.Generator) -> None:
    angle, parameters = random_angles(generator, 20, 3), random_parameters(circle_map, generator, 20, 3)
    rotated = parameters.clone()
    rotated[:, -1] += 20.0
    (one, log_slope), (other, log_slope_rotated) = (circle_map.forward(angle, each) for each in (parameters, rotated))
    torch.testing.assert_close(wrapped(other - one - 20.0), torch.zeros_like(one), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_slope_rotated, log_slope, rtol=0, atol=0)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_are_those_of_finite_differences(
    direction: str, circle_map: CircleMap, generator: torch.Generator
) -> None:
    # Among them the gradients of the inverse that is found by bisection, which no operation of it carries.
    angle, parameters = random_angles(generator, 6, 2), random_parameters(circle_map, generator, 6, 2)
    assert torch.autograd.gradcheck(
        getattr(circle_map, direction), (angle.requires_grad_(), parameters.requires_grad_()), eps=1e-7, rtol=1e-4
    )


def test_gradient_of_the_inverse_by_the_implicit_function_theorem(
    circle_map: CircleMap, generator: torch.Generator
) -> None:
    # From f(g(y; p); p) = y: ∂g/∂p = −(∂f/∂p) / f', at x = g(y; p).
    angle, parameters = random_angles(generator, 100), random_parameters(circle_map, generator, 100).requires_grad_()
    original, _ = circle_map.inverse(angle, parameters)
    (by_inverse,) = torch.autograd.grad(original.sum(), parameters)
    mapped, log_slope = circle_map.forward(original.detach(), parameters)
    (by_forward,) = torch.autograd.grad(mapped.sum(), parameters)
    torch.testing.assert_close(by_inverse, -by_forward * torch.exp(-log_slope)[:, None], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [10.0, 1e3])
def test_extreme_parameters_stay_finite(
    size: float, dtype: torch.dtype, circle_map: CircleMap, generator: torch.Generator
) -> None:
    angle, parameters = random_angles(generator, 20000), random_parameters(circle_map, generator, 20000)
    angle[:2] = torch.tensor([-pi, 0.0], dtype=torch.float64)[:, None]
    parameters[:, :-1] *= size
    parameters = parameters.to(dtype).requires_grad_()
    for direction in (circle_map.forward, circle_map.inverse):
        mapped, log_slope = direction(angle.to(dtype), parameters)
        assert (mapped.abs() <= pi + 1e-5).all()
        assert torch.isfinite(log_slope).all()
        (gradient,) = torch.autograd.grad(mapped.sum() + log_slope.sum(), parameters)
        assert torch.isfinite(gradient).all()


def test_single_precision_is_as_good_as_the_slope_allows(circle_map: CircleMap, generator: torch.Generator) -> None:
    angle, parameters = random_angles(generator, 2000), random_parameters(circle_map, generator, 2000)
    mapped, log_slope = circle_map.forward(angle, parameters)
    mapped_short, log_slope_short = circle_map.forward(angle.float(), parameters.float())
    back, log_slope_back = circle_map.inverse(mapped_short, parameters.float())
    rounding = 2 * pi * torch.finfo(torch.float32).eps
    # An error of the angle is stretched by the slope on the way there, and by its inverse on the way back.
    assert (wrapped(mapped_short - mapped).abs() < 8 * rounding * (1 + log_slope.exp())).all()
    assert (wrapped(back - angle).abs() < 8 * rounding * (1 + torch.exp(-log_slope))).all()
    # In nats; the certificate grants a whole flow 0.02.
    assert (log_slope_short - log_slope).abs().max() < 2e-4
    assert (log_slope_back + log_slope_short).abs().max() < 5e-3
