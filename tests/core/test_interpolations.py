"""Paths of densities and the residual of the continuity equation: derivatives, ends, and known solutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, pi

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows import InterpolatingFlow, build_flow
from flowmc.flows.interpolations import INTERPOLATIONS, InterpolationConfig
from flowmc.flows.velocities import Velocity, VelocityField
from flowmc.seeds import torch_generator
from flowmc.theories import DoubleWell, FreeScalar, GaussianMixture, Phi4, SmoothTheory
from flowmc.training import residual

Shake = Callable[[torch.nn.Module], None]
MIXTURE = GaussianMixture(((1.5, -1.0), (-2.0, 0.5)), (1.0, 0.6), (0.3, 0.7))
NETWORKS = {"hidden": [4, 3], "windows": 2}


def made(kind: str, theory: SmoothTheory, shake: Shake, **more: object) -> InterpolatingFlow:
    path = {"kind": kind, "networks": NETWORKS}
    description = {"kind": "interpolating", "networks": NETWORKS, "interpolation": path, "dtype": "float64"}
    flow = build_flow({**description, **more}, theory)
    shake(flow)
    assert isinstance(flow, InterpolatingFlow)
    return flow


CASES = [
    *((kind, MIXTURE, False) for kind in INTERPOLATIONS),
    ("learned", DoubleWell(3, 4.0, 1.5), True),
    ("learned", Phi4((2, 3), m2=-4.0, lam=8.0), True),
    ("linear", Phi4((2, 3), m2=-4.0, lam=8.0), False),
]


@pytest.mark.parametrize(("kind", "theory", "z2"), CASES, ids=str)
class TestPath:
    @pytest.fixture
    def flow(self, kind: str, theory: SmoothTheory, z2: bool, shake: Shake) -> InterpolatingFlow:
        return made(kind, theory, shake, z2=z2, base_width=1.7)

    @pytest.fixture
    def field(self, theory: SmoothTheory) -> Tensor:
        return torch.randn((5, theory.volume), generator=torch_generator(1), dtype=torch.float64)

    @pytest.fixture
    def time(self) -> Tensor:
        return torch.linspace(0.1, 0.8, 5, dtype=torch.float64)

    def test_derivatives(self, flow: InterpolatingFlow, theory: SmoothTheory, field: Tensor, time: Tensor) -> None:
        path, step = flow.interpolation, 1e-5

        def energy(when: Tensor, where: Tensor) -> Tensor:
            return path.energy(when, where, flow.base, theory).detach()

        point = path.at(time, field, flow.base, theory)
        rate = (energy(time + step, field) - energy(time - step, field)) / (2 * step)
        torch.testing.assert_close(point.rate.detach(), rate, rtol=1e-7, atol=1e-7)
        for site in range(field.shape[1]):
            shift = step * torch.eye(field.shape[1], dtype=torch.float64)[site]
            slope = (energy(time, field + shift) - energy(time, field - shift)) / (2 * step)
            torch.testing.assert_close(point.gradient[:, site].detach(), slope, rtol=1e-7, atol=1e-7)

    def test_ends(self, flow: InterpolatingFlow, theory: SmoothTheory, field: Tensor) -> None:
        shaped = field.reshape(5, *theory.shape)
        start = flow.interpolation.energy(torch.zeros(5, dtype=torch.float64), field, flow.base, theory)
        end = flow.interpolation.energy(torch.ones(5, dtype=torch.float64), field, flow.base, theory)
        torch.testing.assert_close(start, -flow.base.log_prob(shaped), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(end, theory.action(shaped), rtol=1e-10, atol=1e-10)

    def test_symmetry(self, flow: InterpolatingFlow, theory: SmoothTheory, z2: bool, field: Tensor) -> None:
        if not z2:
            return
        time = torch.full((5,), 0.4, dtype=torch.float64)
        one, other = (flow.interpolation.at(time, sign * field, flow.base, theory) for sign in (1, -1))
        torch.testing.assert_close(other.rate, one.rate, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.gradient, -one.gradient, rtol=1e-12, atol=1e-12)


class Spreading(VelocityField):
    """V = r(t) φ: what carries Gaussian densities of a changing width."""

    def __init__(self, rate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._rate = rate

    def prepare(self) -> Velocity:
        return _Spread(self._rate)


class _Spread(Velocity):
    def __init__(self, rate: Callable[[Tensor], Tensor]) -> None:
        self._rate = rate

    @property
    def colour_classes(self) -> Sequence[Sequence[int]]:
        return [[0, 1]]

    def __call__(self, time: Tensor, field: Tensor) -> Tensor:
        return self._rate(time).reshape(-1, 1) * field

    def with_divergence(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        return self(time, field), self._rate(time) * field.shape[1]

    def with_jacobian(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def at_sites(self, time: Tensor, field: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Rate(torch.nn.Module):
    """A known C(t) in place of the learned one."""

    def __init__(self, rate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._rate = rate

    def forward(self, time: Tensor) -> Tensor:
        return self._rate(time)


# A single Gaussian of width s over the base e^−|x/σ|², of precision 2/σ²: f_t stays a Gaussian on every path.
WIDTH, SCALE = 1.3, 0.4
GAUSSIAN = GaussianMixture(((0.0, 0.0),), (SCALE,), (1.0,))


@pytest.mark.parametrize("kind", ["linear", "trigonometric", "diffusion"])
def test_residual_vanishes_for_the_exact_velocity(kind: str, shake: Shake) -> None:
    flow = made(kind, GAUSSIAN, shake, base_width=WIDTH)
    ends = (2 / WIDTH**2, 1 / SCALE**2)

    def precision(time: Tensor) -> Tensor:
        cosine, sine = torch.cos(0.5 * pi * time), torch.sin(0.5 * pi * time)
        if kind == "diffusion":
            return 1 / (sine**2 / ends[1] + cosine**2 / ends[0])
        a, b = (1 - time, time) if kind == "linear" else (cosine, sine)
        return a * ends[0] + b * ends[1]

    def log_z(time: Tensor) -> Tensor:
        # f_t = ½ P_t φ² + c_t, with the constants of both ends carried along the path; the diffusion is normalised.
        if kind == "diffusion":
            return 0 * time
        a, b = (1 - time, time) if kind == "linear" else (torch.cos(0.5 * pi * time), torch.sin(0.5 * pi * time))
        constant = -a * log(ends[0] / (2 * pi)) - b * log(ends[1] / (2 * pi))
        return torch.log(2 * pi / precision(time)) - constant

    def derivative(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def slope(time: Tensor) -> Tensor:
            leaf = time.clone().requires_grad_()
            found: Tensor = torch.autograd.grad(function(leaf).sum(), leaf)[0]
            return found

        return slope

    # Width s_t = P_t^(−½), carried by V = (ṡ/s) φ.
    flow.velocity = Spreading(lambda time: -0.5 * derivative(precision)(time) / precision(time))
    flow.interpolation.log_z_rate = Rate(derivative(log_z))
    field = torch.randn((50, 2), generator=torch_generator(2), dtype=torch.float64)
    time = torch.rand(50, generator=torch_generator(3), dtype=torch.float64)
    found = residual(flow, GAUSSIAN, time, field)
    torch.testing.assert_close(found.detach(), torch.zeros_like(found), rtol=0, atol=1e-10)
    # And it notices a velocity that is a little off.
    flow.velocity = Spreading(lambda time: -0.51 * derivative(precision)(time) / precision(time))
    assert residual(flow, GAUSSIAN, time, field).detach().abs().max() > 1e-3


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_transport_has_no_mean(kind: str, shake: Shake, test_seed: int) -> None:
    # E_p_t[∇f_t · V − div V] = 0 for every velocity, by partial integration; at t = 0 the base itself is p_t.
    flow = made(kind, MIXTURE, shake, base_width=1.7)
    field = flow.base.draw(40_000, torch_generator(test_seed))
    time = torch.zeros(len(field), dtype=torch.float64)
    with torch.no_grad():
        value, divergence = flow.velocity.prepare().with_divergence(time, field)
        sample = (flow.interpolation.at(time, field, flow.base, MIXTURE).gradient * value).sum(1) - divergence
    assert float(sample.mean().abs()) < 4.5 * float(sample.std()) / 200


def test_diffusion_is_that_of_samples(shake: Shake, test_seed: int) -> None:
    flow = made("diffusion", MIXTURE, shake, base_width=1.7)
    grid = torch.linspace(-9, 9, 361, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    time = torch.full((len(points),), 0.6, dtype=torch.float64)
    energy = flow.interpolation.energy(time, points, flow.base, MIXTURE)
    density = torch.exp(-energy) * float(grid[1] - grid[0]) ** 2
    assert float(density.sum()) == pytest.approx(1.0, abs=1e-6)
    generator = torch_generator(test_seed)
    component = torch.multinomial(torch.tensor(MIXTURE.weights), 40_000, replacement=True, generator=generator)
    noise = torch.randn((2, 40_000, 2), generator=generator, dtype=torch.float64)
    clean = torch.tensor(MIXTURE.means)[component] + torch.tensor(MIXTURE.scales)[component, None] * noise[0]
    signal = np.sin(0.3 * pi)
    drawn = signal * clean + np.sqrt(1 - signal**2) * 1.7 / np.sqrt(2) * noise[1]
    found = flow.interpolation.energy(time[:1].expand(40_000), drawn, flow.base, MIXTURE)
    assert abs(float(found.mean() - (density * energy).sum())) < 4.5 * float(found.std()) / 200


def test_diffusion_needs_a_mixture_over_a_gaussian() -> None:
    description = {"kind": "interpolating", "interpolation": {"kind": "diffusion"}}
    for theory, more in (
        (FreeScalar((4,), 0.8), {}),
        (MIXTURE, {"base_power": 4.0}),
        (MIXTURE, {"base": "free_field"}),
    ):
        with pytest.raises(ParameterError, match="closed form"):
            build_flow({**description, **more}, theory)


@pytest.mark.parametrize("wrong", [InterpolationConfig, {"kind": "geodesic"}, {"rate_hidden": 0}], ids=str)
def test_unknown_paths_are_refused(wrong: object) -> None:
    if isinstance(wrong, dict):
        with pytest.raises(ParameterError, match="expected"):
            InterpolationConfig(**wrong)
    else:
        assert InterpolationConfig().kind == "learned"
