"""A small flow of every library, trained in seconds: on exact draws of a free field, or on its action for spins.

Each comes with the bare call of its library that draws fields with log q, which is what the adapter must not cost more
than. The tests of the adapters and `benchmarks.adapters` use them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log, pi, prod
from pathlib import Path
from typing import Any

import torch

from benchmarks.adapter_flows_jax import bijx_flow, distrax_flow, flowjax_flow, nfmodel_flow, numpyro_flow
from benchmarks.adapter_setting import RATE, Setting, Trained
from flowmc_adapters import proposal

__all__ = [
    "AffineCoupling",
    "Setting",
    "Trained",
    "Velocity",
    "sampler_of",
    "trained",
    "trained_coupling",
    "white_noise",
]


class AffineCoupling(torch.nn.Module):
    """Two affine couplings of a user's own, base to field.

    Parameters
    ----------
    size
        Number of sites.
    hidden
        Width of the networks.
    """

    def __init__(self, size: int = 8, hidden: int = 16) -> None:
        super().__init__()
        half = size // 2
        self.first = torch.nn.Sequential(torch.nn.Linear(half, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, size))
        self.second = torch.nn.Sequential(torch.nn.Linear(half, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, size))

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map base points to fields."""
        flat = latent.reshape(latent.shape[0], -1)
        one, other = flat.chunk(2, dim=1)
        scale, shift = self.first(one).chunk(2, dim=1)
        other = other * scale.tanh().exp() + shift
        log_det = scale.tanh().sum(1)
        scale, shift = self.second(other).chunk(2, dim=1)
        one = one * scale.tanh().exp() + shift
        return torch.cat([one, other], dim=1).reshape(latent.shape), log_det + scale.tanh().sum(1)

    @torch.jit.export
    def inverse(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map fields to base points."""
        flat = field.reshape(field.shape[0], -1)
        one, other = flat.chunk(2, dim=1)
        scale, shift = self.second(other).chunk(2, dim=1)
        one = (one - shift) * (-scale.tanh()).exp()
        log_det = -scale.tanh().sum(1)
        scale, shift = self.first(one).chunk(2, dim=1)
        other = (other - shift) * (-scale.tanh()).exp()
        return torch.cat([one, other], dim=1).reshape(field.shape), log_det - scale.tanh().sum(1)


def white_noise(latent: torch.Tensor) -> torch.Tensor:
    """Return the log density of white noise, (n, ...) to (n,)."""
    flat = latent.flatten(1)
    return -0.5 * (flat**2).sum(1) - 0.5 * flat.shape[1] * log(2 * pi)


def trained_coupling(setting: Setting) -> AffineCoupling:
    """Return a module of two couplings, trained."""
    module = AffineCoupling(setting.size, setting.hidden).double()

    def log_prob(field: torch.Tensor) -> torch.Tensor:
        latent, log_det = module.inverse(field)
        return log_det + white_noise(latent)

    setting.fit_torch(log_prob, module.parameters())
    return module


def sampler_of(module: torch.nn.Module, shape: tuple[int, ...]) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """Return what draws fields of a module and their log q, as its author would write it."""

    def sample(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        latent = torch.randn(n, *shape, dtype=torch.float64)
        field, log_det = module(latent)
        return field, white_noise(latent) - log_det

    return sample


def zuko_flow(setting: Setting) -> Trained:
    """Return a spline flow of zuko."""
    import zuko

    flow = zuko.flows.NSF(features=setting.size, transforms=2, passes=2, hidden_features=(setting.hidden,)).double()
    setting.fit_torch(lambda field: flow().log_prob(field), flow.parameters())
    return Trained(proposal(flow, event_shape=setting.shape), lambda n: flow().rsample_and_log_prob((n,)))


def normflows_flow(setting: Setting) -> Trained:
    """Return an affine flow of normflows."""
    import normflows

    layers, half = [], setting.size // 2
    for _ in range(2):
        network = normflows.nets.MLP([half, setting.hidden, setting.size], init_zeros=True)
        layers += [normflows.flows.AffineCouplingBlock(network), normflows.flows.Permute(setting.size, mode="swap")]
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(setting.size), layers).double()
    setting.fit_torch(flow.log_prob, flow.parameters())
    return Trained(proposal(flow, event_shape=setting.shape), flow.sample)


def nflows_flow(setting: Setting) -> Trained:
    """Return an affine coupling flow of nflows."""
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.nn.nets import MLP
    from nflows.transforms.base import CompositeTransform
    from nflows.transforms.coupling import AffineCouplingTransform
    from nflows.transforms.normalization import ActNorm

    mask = torch.arange(setting.size) % 2

    def network(inputs: int, outputs: int) -> torch.nn.Module:
        made = MLP([inputs], [outputs], [setting.hidden], activation=torch.tanh)
        # Couplings pass a context, of which there is none.
        made.forward = lambda x, context=None, plain=made.forward: plain(x)  # noqa: ARG005
        return made  # type: ignore[no-any-return]

    # The scales of its couplings let fields grow only; the first layer brings them to width one.
    couplings = [AffineCouplingTransform(mask if i else 1 - mask, network) for i in range(2)]
    flow = Flow(CompositeTransform([ActNorm(setting.size), *couplings]), StandardNormal([setting.size]))
    flow.double()
    setting.fit_torch(flow.log_prob, flow.parameters())

    def bare(n: int) -> object:
        # The base of `sample_and_log_prob` draws float32, which weights in float64 refuse.
        latent = torch.randn(n, setting.size, dtype=torch.float64)
        field, log_det = flow._transform.inverse(latent)
        return field, flow._distribution.log_prob(latent) - log_det

    return Trained(proposal(flow, event_shape=setting.shape), bare)


def torch_distribution(setting: Setting) -> Trained:
    """Return a flow of Pyro."""
    from pyro.distributions import Normal, TransformedDistribution
    from pyro.distributions.transforms import affine_coupling, permute

    size = setting.size
    first, second = (affine_coupling(size, [setting.hidden]).double() for _ in range(2))
    base = Normal(torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)).to_event(1)
    flow = TransformedDistribution(base, [first, permute(size, torch.arange(size - 1, -1, -1)), second])

    def log_prob(field: torch.Tensor) -> torch.Tensor:
        # Pyro keeps the last evaluation, which has been differentiated already.
        flow.clear_cache()
        log_q: torch.Tensor = flow.log_prob(field)
        return log_q

    setting.fit_torch(log_prob, [*first.parameters(), *second.parameters()])

    def bare(n: int) -> object:
        field = flow.sample((n,))
        return field, flow.log_prob(field)

    return Trained(proposal(flow, event_shape=setting.shape), bare)


def module_flow(setting: Setting) -> Trained:
    """Return a module of a user's own."""
    module = trained_coupling(setting)
    found = proposal(module, event_shape=setting.shape, adapter="torch_module")
    return Trained(found, sampler_of(module, setting.shape))


def exported_flow(folder: Path, setting: Setting) -> Trained:
    """Return a flow from files of torch.export."""
    module = trained_coupling(setting)

    class Inverse(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.module.inverse(field)

    example = (torch.zeros(3, *setting.shape, dtype=torch.float64),)
    batch = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    for name, part in (("forward", module), ("inverse", Inverse())):
        torch.export.save(torch.export.export(part, example, dynamic_shapes=batch), folder / f"{name}.pt2")
    found = proposal(
        folder / "forward.pt2", event_shape=setting.shape, adapter="torch_export", inverse=folder / "inverse.pt2"
    )
    return Trained(found, sampler_of(torch.export.load(folder / "forward.pt2").module(), setting.shape))


def callable_flow(setting: Setting) -> Trained:
    """Return a flow that is two functions on tensors."""
    module = trained_coupling(setting)
    sample = sampler_of(module, setting.shape)

    def log_prob(field: torch.Tensor) -> torch.Tensor:
        latent, log_det = module.inverse(field)
        return log_det + white_noise(latent)

    found = proposal((sample, log_prob), event_shape=setting.shape, adapter="torch_callables", weights=module)
    return Trained(found, sample)


class SpinNetwork(torch.nn.Module):
    """A masked linear network, the simplest of arXiv:1809.10606, with an interface like that of its authors' code.

    Parameters
    ----------
    shape
        Extents of the lattice.
    """

    mask: torch.Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        size = prod(shape)
        self.weight = torch.nn.Parameter(torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("mask", torch.tril(torch.ones(size, size, dtype=torch.float64), diagonal=-1))

    def logits(self, spins: torch.Tensor) -> torch.Tensor:
        """Return the logits of up at every site, given the sites before."""
        return 2 * spins.reshape(len(spins), -1) @ (self.weight * self.mask).T

    def sample(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw spins, and probabilities of the last pass."""
        size = prod(self.shape)
        spins = torch.zeros(n, size, dtype=torch.float64)
        for site in range(size):
            up = torch.sigmoid(self.logits(spins)[:, site])
            spins[:, site] = 2 * torch.bernoulli(up) - 1
        return spins.reshape(n, 1, *self.shape), torch.sigmoid(self.logits(spins))

    def log_prob(self, spins: torch.Tensor) -> torch.Tensor:
        """Return log q of spins."""
        signs = spins.reshape(len(spins), -1)
        return torch.nn.functional.logsigmoid(signs * self.logits(spins)).sum(1)


def spin_flow(setting: Setting) -> Trained:
    """Return an autoregressive network of spins."""
    network, theory = SpinNetwork(setting.spins), setting.ising
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    for _ in range(setting.steps):
        optimizer.zero_grad()
        with torch.no_grad():
            spins, _ = network.sample(128)
        log_q = network.log_prob(spins)
        cost = log_q.detach() + theory.action(spins[:, 0])
        ((cost - cost.mean()) * log_q).mean().backward()
        optimizer.step()

    def bare(n: int) -> object:
        spins, _ = network.sample(n)
        return spins, network.log_prob(spins)

    return Trained(proposal(network, event_shape=setting.spins, adapter="autoregressive"), bare)


class Velocity(torch.nn.Module):
    """A network of field and time.

    Parameters
    ----------
    size
        Number of sites.
    hidden
        Width of the network.
    """

    def __init__(self, size: int = 8, hidden: int = 32) -> None:
        super().__init__()
        layers = torch.nn.Linear(size + 1, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, size)
        self.network = torch.nn.Sequential(*layers)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return dx/dt at points x (n, sites) and times t."""
        time = t.reshape(-1, 1).expand(x.shape[0], 1)
        moved: torch.Tensor = self.network(torch.cat([x, time], dim=1))
        return moved


def velocity_flow(setting: Setting) -> Trained:
    """Return a velocity field, trained by flow matching."""
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import CondOTScheduler
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    model = ModelWrapper(Velocity(setting.size, 2 * setting.hidden).double())
    path = AffineProbPath(scheduler=CondOTScheduler())
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    target = torch.tensor(setting.draws())
    for _ in range(3 * setting.steps):
        source, time = torch.randn_like(target), torch.rand(len(target), dtype=torch.float64)
        point = path.sample(t=time, x_0=source, x_1=target)
        optimizer.zero_grad()
        ((model(x=point.x_t, t=point.t) - point.dx_t) ** 2).mean().backward()
        optimizer.step()
    steps = 8
    found = proposal(
        model, event_shape=setting.shape, adapter="flow_matching", flat=True, steps=steps, log_q_bound=1e-2
    )
    solver = ODESolver(velocity_model=model)
    forwards, backwards = (torch.tensor(ends, dtype=torch.float64) for ends in ((0.0, 1.0), (1.0, 0.0)))

    def bare(n: int) -> object:
        # The library's way to an exact divergence: there, and back again.
        given: dict[str, Any] = {"step_size": 1 / steps, "method": "rk4"}
        field = solver.sample(torch.randn(n, setting.size, dtype=torch.float64), time_grid=forwards, **given)
        return solver.compute_likelihood(field, white_noise, time_grid=backwards, exact_divergence=True, **given)

    return Trained(found, bare)


def trained(folder: Path, setting: Setting | None = None) -> dict[str, Callable[[], Trained]]:
    """Return what trains a flow for each adapter of the public list.

    Parameters
    ----------
    folder
        Where exported flows go.
    setting
        What they are trained for; by default the smallest.
    """
    setting = setting or Setting()
    builders: dict[str, Callable[[Setting], Trained]] = {
        "autoregressive": spin_flow,
        "bijx": bijx_flow,
        "distrax": distrax_flow,
        "flow_matching": velocity_flow,
        "flowjax": flowjax_flow,
        "flowmc_nfmodel": nfmodel_flow,
        "jax_callables": numpyro_flow,
        "nflows": nflows_flow,
        "normflows": normflows_flow,
        "torch_callables": callable_flow,
        "torch_distributions": torch_distribution,
        "torch_export": partial(exported_flow, folder),
        "torch_module": module_flow,
        "zuko": zuko_flow,
    }
    return {name: partial(build, setting) for name, build in builders.items()}
