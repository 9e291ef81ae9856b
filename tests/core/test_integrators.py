"""Integrators of continuous flows: inverses, log-determinants of the discrete map, orders, gradients and refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, log2

import pytest
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.integrators import ADAPTIVE, INTEGRATORS, Integrator, choose_integrator
from flowmc.flows.integrators.base import attach, newton, relax
from flowmc.flows.velocities import FieldNetworkConfig, Velocity, WindowedVelocity
from flowmc.seeds import torch_generator

Shake = Callable[[torch.nn.Module], None]
SITES = 4
ORDERS = {"midpoint": 2, "midpoint_trace": 2, "rk4": 4, "rk4_trace": 4, "splitting": 2}


class Linear(Velocity):
    """V(t, φ) = (1 + t) A φ, whose flow over [0, 1] is exp(3A/2), if A commutes with itself as it does."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    @property
    def colour_classes(self) -> Sequence[Sequence[int]]:
        return [[site] for site in range(len(self.matrix))]

    def __call__(self, time: Tensor, field: Tensor) -> Tensor:
        return (1 + time) * field @ self.matrix.T

    def with_divergence(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        return self(time, field), ((1 + time) * self.matrix.trace()).expand(len(field))

    def with_jacobian(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        return self(time, field), ((1 + time) * self.matrix).expand(len(field), -1, -1)

    def at_sites(self, time: Tensor, field: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
        slopes = (1 + time) * self.matrix.diagonal()[sites]
        return self(time, field)[:, sites], slopes.expand(len(field), -1)


@pytest.fixture(params=INTEGRATORS)
def integrator(request: pytest.FixtureRequest) -> Integrator:
    return INTEGRATORS[request.param]


@pytest.fixture
def networks(shake: Shake) -> WindowedVelocity:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = WindowedVelocity(FieldNetworkConfig(hidden=(5, 4), windows=2), (SITES,), odd=False).double()
    shake(made)
    return made


@pytest.fixture
def field() -> Tensor:
    return torch.randn((6, SITES), generator=torch_generator(2), dtype=torch.float64)


def through(integrator: Integrator, velocity: Velocity, steps: int, field: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.zeros(len(field), dtype=torch.float64)
    for number in range(steps):
        field, log_det = integrator.step(velocity, number / steps, 1 / steps, field)
        total = total + log_det
    return field, total


def full_log_det(integrator: Integrator, velocity: Velocity, steps: int, field: Tensor) -> Tensor:
    """Return log|det| of the discrete map, by automatic differentiation, (n,)."""
    leaf = field.clone().requires_grad_()
    new, _ = through(integrator, velocity, steps, leaf)
    # Row by row of the Jacobian: fields of a batch are independent.
    rows = [torch.autograd.grad(new[:, site].sum(), leaf, retain_graph=True)[0] for site in range(field.shape[1])]
    value: Tensor = torch.linalg.slogdet(torch.stack(rows, dim=1))[1]
    return value


def test_inverse_step_undoes_the_step(integrator: Integrator, networks: WindowedVelocity, field: Tensor) -> None:
    velocity = networks.prepare()
    with torch.no_grad():
        new, log_det = integrator.step(velocity, 0.3, 0.2, field)
        back, log_det_back = integrator.inverse_step(velocity, 0.3, 0.2, new)
    assert (new - field).abs().max() > 0.01
    torch.testing.assert_close(back, field, rtol=0, atol=1e-13)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-13)


def test_log_det_is_that_of_the_discrete_map_where_it_says_so(
    integrator: Integrator, networks: WindowedVelocity, field: Tensor
) -> None:
    # Two steps: so coarse that a divergence in place of the determinant cannot pass.
    velocity = networks.prepare()
    _, log_det = through(integrator, velocity, 2, field)
    error = (log_det - full_log_det(integrator, velocity, 2, field)).abs().max()
    assert (error < 1e-13) if integrator.exact else (error > 1e-7)


@pytest.mark.parametrize("name", [name for name in INTEGRATORS if not INTEGRATORS[name].exact])
def test_error_of_the_trace_falls_with_the_order(name: str, networks: WindowedVelocity, field: Tensor) -> None:
    velocity = networks.prepare()
    errors = []
    for steps in (2, 16):
        _, log_det = through(INTEGRATORS[name], velocity, steps, field[:3])
        exact = full_log_det(INTEGRATORS[name], velocity, steps, field[:3])
        errors.append(float((log_det - exact).detach().abs().mean()))
    # Over a factor of eight in the step; where the leading term changes sign, the error falls faster for a while.
    assert ORDERS[name] - 0.3 < log2(errors[0] / errors[1]) / 3 < ORDERS[name] + 1.5


def test_map_converges_to_the_flow_with_its_order(integrator: Integrator) -> None:
    matrix = torch.randn((SITES, SITES), generator=torch_generator(5), dtype=torch.float64) / 2
    start = torch.randn((3, SITES), generator=torch_generator(6), dtype=torch.float64)
    expected = start @ torch.linalg.matrix_exp(1.5 * matrix).T
    found = [through(integrator, Linear(matrix), steps, start) for steps in (16, 32)]
    coarse, fine = (float((field - expected).abs().max()) for field, _ in found)
    assert log2(coarse / fine) == pytest.approx(ORDERS[integrator.name], abs=0.3)
    torch.testing.assert_close(found[1][1], (1.5 * matrix.trace()).expand(3), rtol=0, atol=0.02)


def test_a_stretch_has_the_determinant_of_its_own_factor() -> None:
    # V = a φ: the classical Runge-Kutta method multiplies by 1 + a h + ... + (a h)⁴/24, not by e^(a h).
    a, sites = 1.7, 3
    stretch = Linear(a * torch.eye(sites, dtype=torch.float64))
    _, log_det = INTEGRATORS["rk4"].step(stretch, -0.5, 1.0, torch.ones((1, sites), dtype=torch.float64))
    # From t = −1/2 on: 1 + t is 1/2, 1, 1, 3/2 at the stages.
    first = a / 2
    second = a * (1 + first / 2)
    third = a * (1 + second / 2)
    fourth = 1.5 * a * (1 + third)
    assert float(log_det) == pytest.approx(sites * log(1 + (first + 2 * second + 2 * third + fourth) / 6), abs=1e-13)


def test_steps_can_be_differentiated(integrator: Integrator, networks: WindowedVelocity, field: Tensor) -> None:
    weight = networks.layers.second
    assert isinstance(weight, torch.nn.Parameter)

    def moved(backwards: bool) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        def call(at: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
            prepared = torch.func.functional_call(_Prepared(networks), {"networks.layers.second": changed}, ())
            move = integrator.inverse_step if backwards else integrator.step
            result: tuple[Tensor, Tensor] = move(prepared, 0.3, 0.2, at)
            return result

        return call

    for backwards in (False, True):
        inputs = (field[:2].clone().requires_grad_(), weight.detach().clone().requires_grad_())
        assert torch.autograd.gradcheck(moved(backwards), inputs, atol=1e-7)


class _Prepared(torch.nn.Module):
    def __init__(self, networks: WindowedVelocity) -> None:
        super().__init__()
        self.networks = networks

    def forward(self) -> Velocity:
        return self.networks.prepare()


@pytest.mark.parametrize("name", ["midpoint", "splitting"])
def test_a_step_too_long_is_not_a_number_and_not_wrong(name: str) -> None:
    # One site is braked by more than implicit steps of this size can follow: they would turn it around.
    brake = Linear(torch.diag(torch.tensor([-40.0, 0.0, 0.0, 0.0], dtype=torch.float64)))
    field = torch.ones((2, SITES), dtype=torch.float64)
    with torch.no_grad():
        new, log_det = INTEGRATORS[name].step(brake, 0.0, 1.0, field)
    assert torch.isnan(new.sum(1) + log_det).all()


@pytest.mark.parametrize("factor", [2.0, 2.0 + 1e-7])
@pytest.mark.parametrize("name", ["rk4", "rk4_trace"])
def test_a_long_step_is_undone(name: str, factor: float) -> None:
    # Twice the field at the middle of the step, where the inverse of an implicit midpoint step would be singular.
    stretch = Linear(factor * torch.eye(SITES, dtype=torch.float64))
    field = torch.ones((2, SITES), dtype=torch.float64)
    with torch.no_grad():
        new, log_det = INTEGRATORS[name].step(stretch, -0.5, 1.0, field)
        again, log_det_back = INTEGRATORS[name].inverse_step(stretch, -0.5, 1.0, new)
    torch.testing.assert_close(again, field, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-12)


def test_a_row_that_fails_leaves_the_others_alone() -> None:
    def residual(at: Tensor, rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        # x² = c, of which the second row has no solution.
        return at**2 - torch.tensor([[2.0], [-1.0]], dtype=torch.float64)[rows], lambda value: value / (2 * at)

    found = newton(residual, torch.tensor([[1.0], [0.7]], dtype=torch.float64))
    assert float(found[0, 0]) == pytest.approx(2**0.5, abs=1e-14)
    assert torch.isnan(found[1, 0])


@pytest.mark.parametrize("rate", [0.5, 0.95, -3.0])
def test_what_relaxation_does_not_solve_goes_to_newton(rate: float) -> None:
    # x = r x + c, row by row: quick, slow, and no contraction at all.
    constant = torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64, requires_grad=True)

    def update(at: Tensor, rows: Tensor) -> Tensor:
        return rate * at + constant[rows]

    def residual(at: Tensor, rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return at - update(at, rows), lambda value: value / (1 - rate)

    found, updates = relax(update, residual, torch.zeros_like(constant))
    torch.testing.assert_close(found, constant.detach() / (1 - rate), rtol=0, atol=1e-12)
    attached = attach(update, residual, found, updates)
    torch.testing.assert_close(attached, found)
    (slope,) = torch.autograd.grad(attached.sum(), constant)
    torch.testing.assert_close(slope, torch.full_like(slope, 1 / (1 - rate)))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_steps_are_refused(name: str) -> None:
    with pytest.raises(ParameterError, match="the other fields of its batch"):
        choose_integrator(name, 4)


def test_unknown_names_and_large_lattices_are_refused() -> None:
    with pytest.raises(ParameterError, match="one of"):
        choose_integrator("euler", 4)
    for name in ("rk4", "midpoint"):
        assert choose_integrator(name, 32).exact
        with pytest.raises(ParameterError, match="33 x 33"):
            choose_integrator(name, 33)
    for name in ("splitting", "rk4_trace", "midpoint_trace"):
        assert choose_integrator(name, 10**6).name == name
