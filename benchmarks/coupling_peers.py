"""One affine coupling flow three times: flowmc's, and the same in normflows and in nflows, with the same weights.

All are N(0, 1) at every site, followed by couplings φ_a → φ_a e^{s(φ_f)} + t(φ_f) of the even and the odd sites of a
checkerboard in turn, with one hidden layer (tanh) between the frozen sites and (t, s). Each peer is used as its
documentation does, in the fastest way that its public classes allow:

- "normflows": ``AffineCouplingBlock`` with one network for t and s. Fully connected, a field is a row with the even
  sites first, so that ``split_mode="channel"`` and "channel_inv" are the two sublattices: slices, no gather. The
  convolutional one is ``AffineCoupling`` between the two masked copies of the lattice.
- "normflows, checkerboard": the same with ``split_mode="checkerboard"``, with which no one has to sort sites. It finds
  the sites of the whole batch anew in every call.
- "normflows, masked": ``MaskedAffineFlow``, the class that the library has for masks. It asks for t and s as two
  networks, so that the hidden layer, which both share here as in the others, is evaluated twice.
- "nflows": ``AffineCouplingTransform`` with the mask over the flattened lattice. Its scale is sigmoid(s + 2) + 1e-3, and
  version 0.14 has no argument for another one: a subclass gives e^s through the hook ``_scale_and_shift``, as the
  library's own ``AdditiveCouplingTransform`` does. `InverseTransform` around all makes drawing its forward direction.

Weights of masked layers that multiply zeros, or whose output is masked, are zero and stay so. Convolutions of the peers
are ``Conv2d(padding_mode="circular")`` of the whole lattice, whose input is zero on the active
sites. flowmc's convolution has weights only for displacements that join the right sublattices. The others are zero in
the peers' and stay so: with z2 (no biases before the last layer) the features of frozen sites vanish, and with them the
gradients.

The peers differentiate the action with torch, flowmc takes the force of the theory; the action is the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowmc.flows import DTYPES, CouplingFlow
from flowmc.flows.coupling import CouplingConfig
from flowmc.flows.layers import CouplingLayer, SiteOrder
from flowmc.flows.networks import ChannelMix, Conditioner
from flowmc.seeds import torch_generator
from flowmc.theories import Phi4
from flowmc.training import OBJECTIVES

try:
    import nflows.distributions
    import nflows.flows
    import nflows.transforms
    import normflows
except ImportError as missing:
    raise SystemExit(
        f"{missing.name} is not installed: pip install -c constraints.txt -e '.[benchmarks]'  (normflows and nflows)"
    ) from missing

__all__ = ["CASES", "Case", "Contender", "build_flow", "conditioners", "contenders", "reverse_kl_loss"]

Drawn = tuple[Tensor, Tensor]
Pairs = list[tuple[Conditioner, bool]]


@dataclass(frozen=True)
class Case:
    """An architecture: the layer as in a run description, and whether it is odd under φ → −φ."""

    name: str
    layer: dict[str, Any]
    z2: bool

    @property
    def radius(self) -> int:
        """Range of the convolutions; 0 for a fully connected network."""
        return int(self.layer.get("radius", 0))


def _convolutional(name: str, radius: int, output_radius: int) -> Case:
    layer = {"kind": "affine", "network": "convolutional", "hidden": (CHANNELS,), "symmetric": False}
    return Case(name, {**layer, "radius": radius, "output_radius": output_radius}, z2=True)


CHANNELS = 8
CASES = (
    # 64 features as in the peers' documentation; kernels of 3 × 3 as in arXiv:2101.08176; flowmc's default.
    Case("fully connected, 64", {"kind": "affine", "network": "fully_connected", "hidden": (64,)}, z2=False),
    _convolutional("3 × 3 and 3 × 3, 8 channels", 1, 1),
    _convolutional("9 × 9 and 1 × 1, 8 channels", 4, 0),
)


@dataclass(frozen=True)
class Contender:
    """A flow of some library.

    Parameters
    ----------
    name
        Library, and variant.
    module
        The flow.
    loss
        The mean of log q + S over draws, to be differentiated: ``loss(n)``.
    sample
        Draws with log q: ``sample(n)``.
    sites
        Flat lattice index of each of its base draws.
    """

    name: str
    module: nn.Module
    loss: Callable[[int], Tensor]
    sample: Callable[[int], Drawn]
    sites: Tensor

    @property
    def weights(self) -> list[nn.Parameter]:
        """What is trained."""
        return [weight for weight in self.module.parameters() if weight.requires_grad]


def build_flow(case: Case, theory: Phi4, repeat: int, dtype: str) -> CouplingFlow:
    """Return flowmc's flow, with a base of width one and weights shaken out of their initial values, the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = CouplingConfig(base="gaussian", layers=(case.layer,), repeat=repeat, z2=case.z2, dtype=dtype)
        flow = CouplingFlow(theory, config)
    generator = torch_generator(1, "shaken")
    with torch.no_grad():
        for weight in flow.layers.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_(noise.to(weight.dtype), alpha=0.02)
    flow.base.requires_grad_(False)
    return flow


def conditioners(flow: CouplingFlow) -> Pairs:
    """Return the networks of the couplings in their order, and whether they move the even sites."""
    pairs: Pairs = []
    for layer in flow.layers:
        assert isinstance(layer, CouplingLayer)
        for net, even in zip(layer.conditioners, (True, False), strict=True):
            assert isinstance(net, Conditioner)
            pairs.append((net, even))
    return pairs


def reverse_kl_loss(
    flow: CouplingFlow, theory: Phi4, generator: torch.Generator, objective: str = "reverse_kl"
) -> Callable[[int], Tensor]:
    """Return the loss of a batch as flowmc's training differentiates it."""
    return lambda n: next(OBJECTIVES[objective](flow, theory, n, generator, 0)).value


class _Net(nn.Module):
    """A network that the peers get: one hidden layer, then t and s side by side along an axis."""

    def __init__(self, hidden: nn.Module, shift: nn.Module, scale: nn.Module, *, squared: bool) -> None:
        super().__init__()
        self.hidden, self.shift, self.scale, self._squared = hidden, shift, scale, squared

    def forward(self, frozen: Tensor) -> Tensor:
        features = torch.tanh(self.hidden(frozen))
        return torch.cat([self.shift(features), self.scale(features * features if self._squared else features)], 1)


class _Half(nn.Module):
    """A network with one output, t or s, for `MaskedAffineFlow`."""

    def __init__(self, hidden: nn.Module, head: nn.Module, *, squared: bool) -> None:
        super().__init__()
        self.hidden, self.head, self._squared = hidden, head, squared

    def forward(self, frozen: Tensor) -> Tensor:
        features = torch.tanh(self.hidden(frozen))
        mapped: Tensor = self.head(features * features if self._squared else features)
        return mapped


class _WithContext(nn.Module):
    """The form in which nflows calls networks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, frozen: Tensor, context: None = None) -> Tensor:  # noqa: ARG002
        mapped: Tensor = self.net(frozen)
        return mapped


class _OnLattice(nn.Module):
    """A network of the whole lattice between the two halves that nflows takes apart."""

    def __init__(self, net: nn.Module, extent: int, frozen: Tensor, active: Tensor) -> None:
        super().__init__()
        self.net, self._extent = net, extent
        self.register_buffer("frozen", frozen)
        self.register_buffer("active", active)

    frozen: Tensor
    active: Tensor

    def forward(self, frozen: Tensor, context: None = None) -> Tensor:  # noqa: ARG002
        sites = frozen.new_zeros(len(frozen), self._extent**2).index_copy(1, self.frozen, frozen)
        image = sites.reshape(-1, 1, self._extent, self._extent)
        mapped: Tensor = self.net(image)
        return mapped.flatten(2).index_select(2, self.active).flatten(1)


class _OfActive(nn.Module):
    """A network of the whole lattice with its output on the active sites alone."""

    def __init__(self, frozen: Tensor, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("active", 1 - frozen)
        self.net = net

    active: Tensor

    def forward(self, frozen: Tensor) -> Tensor:
        mapped: Tensor = self.active * self.net(frozen)
        return mapped


class _Masked(normflows.flows.Flow):  # type: ignore[misc]
    """An `AffineCoupling` between the masked copies of a lattice: one network for t and s."""

    def __init__(self, frozen: Tensor, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("frozen", frozen)
        self.register_buffer("active", 1 - frozen)
        self.coupling = normflows.flows.AffineCoupling(_OfActive(frozen, net))

    frozen: Tensor
    active: Tensor

    def forward(self, field: Tensor) -> Drawn:
        (kept, moved), log_det = self.coupling([self.frozen * field, self.active * field])
        return kept + moved, log_det


class _ExpCoupling(nflows.transforms.AffineCouplingTransform):  # type: ignore[misc]
    """The affine coupling with scale e^s."""

    def _scale_and_shift(self, transform_params: Tensor) -> Drawn:
        shift, log_scale = transform_params.chunk(2, 1)
        return torch.exp(log_scale), shift


class _Target:
    """What normflows asks of a target: its log density, here of one that is not normalised."""

    def __init__(self, log_prob: Callable[[Tensor], Tensor]) -> None:
        self.log_prob = log_prob


def contenders(case: Case, extent: int, repeat: int, dtype: str) -> list[Contender]:
    """Build all flows of an architecture with the weights of flowmc's, which comes first."""
    theory = Phi4((extent, extent), m2=-4.0, lam=8.0)
    flow = build_flow(case, theory, repeat, dtype)
    generator = torch_generator(1, "draws")
    lattice = torch.arange(extent**2)
    loss = reverse_kl_loss(flow, theory, generator)
    made = [Contender("flowmc", flow, loss, lambda n: flow.sample(n, generator), lattice)]
    pairs = conditioners(flow)
    if case.radius:
        made.append(_normflows_masked(case, theory, pairs, "normflows"))
    else:
        made += [_normflows_rows(theory, pairs), _normflows_split(theory, pairs)]
    made.append(_normflows_masked(case, theory, pairs, "normflows, masked"))
    made.append(_nflows(case, theory, pairs))
    for contender in made:
        contender.module.to(DTYPES[dtype])
    return made


def _normflows(
    name: str, base: Any, flows: list[nn.Module], theory: Phi4, field: Callable[[Tensor], Tensor], sites: Tensor
) -> Contender:
    target = _Target(lambda drawn: -theory.action(field(drawn)))
    model = normflows.NormalizingFlow(base, flows, target)

    def sample(n: int) -> Drawn:
        drawn, log_q = model.sample(n)
        return field(drawn), log_q

    return Contender(name, model, model.reverse_kld, sample, sites)


def _normflows_rows(theory: Phi4, pairs: Pairs) -> Contender:
    """Couplings of the halves of rows, as normflows splits channels."""
    flows = []
    for net, even in pairs:
        head = _joined(net)
        with torch.no_grad():
            # normflows takes t and s from every second output.
            for weight in head.parameters():
                weight.copy_(torch.stack(weight.chunk(2), 1).flatten(0, 1))
        parameters = nn.Sequential(_linear(net.hidden[0]), nn.Tanh(), head)
        split = "channel_inv" if even else "channel"
        flows.append(normflows.flows.AffineCouplingBlock(parameters, split_mode=split))
    sites = torch.tensor(SiteOrder(theory.shape).sites)
    places = torch.argsort(sites)
    base = normflows.distributions.DiagGaussian(theory.volume, trainable=False)
    return _normflows(
        "normflows",
        base,
        flows,
        theory,
        lambda rows: rows.index_select(1, places).reshape(-1, *theory.shape),
        sites,
    )


def _normflows_split(theory: Phi4, pairs: Pairs) -> Contender:
    """Couplings of the two colours of a checkerboard, as normflows splits them."""
    n_time, n_space = theory.shape
    flows = []
    for net, even in pairs:
        head = _joined(net)
        with torch.no_grad():
            for weight in head.parameters():
                # t and s from every second output along the first axis of a colour, which is that of time.
                halves = weight.reshape(2, n_time, n_space // 2, *weight.shape[1:])
                weight.copy_(halves.transpose(0, 1).flatten(0, 2))
        shaped = nn.Unflatten(1, (2 * n_time, n_space // 2))
        parameters = nn.Sequential(nn.Flatten(), _linear(net.hidden[0]), nn.Tanh(), head, shaped)
        split = "checkerboard" if even else "checkerboard_inv"
        flows.append(normflows.flows.AffineCouplingBlock(parameters, split_mode=split))
    base = normflows.distributions.DiagGaussian(theory.shape, trainable=False)
    return _normflows("normflows, checkerboard", base, flows, theory, lambda field: field, torch.arange(theory.volume))


def _normflows_masked(case: Case, theory: Phi4, pairs: Pairs, name: str) -> Contender:
    """Couplings of a lattice with a mask, by one network or by the two of `MaskedAffineFlow`."""
    flows: list[nn.Module] = []
    for conditioner, even in pairs:
        frozen = torch.tensor(_is_active(theory, even=not even)).reshape(1, *theory.shape).float()
        net = _lattice_net(case, conditioner) if case.radius else _masked_net(theory, conditioner, even=even)
        if name == "normflows":
            flows.append(_Masked(frozen, net))
        else:
            shift, scale = (
                _Half(net.hidden, head, squared=case.z2 and head is net.scale) for head in (net.shift, net.scale)
            )
            flows.append(normflows.flows.MaskedAffineFlow(frozen, shift, scale))
    base = normflows.distributions.DiagGaussian((1, *theory.shape), trainable=False)
    return _normflows(name, base, flows, theory, lambda images: images[:, 0], torch.arange(theory.volume))


def _nflows(case: Case, theory: Phi4, pairs: Pairs) -> Contender:
    couplings = []
    for conditioner, even in pairs:
        active = _is_active(theory, even=even)
        if case.radius:
            places = [torch.tensor(np.flatnonzero(part)) for part in (~active, active)]
            net: nn.Module = _OnLattice(_lattice_net(case, conditioner), theory.shape[0], *places)
        else:
            order = SiteOrder(theory.shape).sites
            hidden, head = _linear(conditioner.hidden[0]), _joined(conditioner)
            # Both orders number the sites of a sublattice in the same way, so that weights need no permutation.
            assert np.array_equal(order[active[order]], np.flatnonzero(active))
            net = _WithContext(nn.Sequential(hidden, nn.Tanh(), head))
        couplings.append(_ExpCoupling(torch.tensor(active).int(), lambda _in, _out, net=net: net))
    transform = nflows.transforms.InverseTransform(nflows.transforms.CompositeTransform(couplings))
    model = nflows.flows.Flow(transform, nflows.distributions.StandardNormal([theory.volume]))

    def sample(n: int) -> Drawn:
        drawn, log_q = model.sample_and_log_prob(n)
        return drawn.reshape(-1, *theory.shape), log_q

    def loss(n: int) -> Tensor:
        field, log_q = sample(n)
        return torch.mean(log_q + theory.action(field))

    return Contender("nflows", model, loss, sample, torch.arange(theory.volume))


def _is_active(theory: Phi4, *, even: bool) -> np.ndarray:
    mask: np.ndarray = np.indices(theory.shape).sum(0).reshape(-1) % 2 == (0 if even else 1)
    return mask


def _linear(given: nn.Module) -> nn.Linear:
    """Return a copy of a linear layer."""
    assert isinstance(given, nn.Linear)
    made = nn.Linear(given.in_features, given.out_features, dtype=given.weight.dtype)
    made.load_state_dict(given.state_dict())
    return made


def _joined(net: Conditioner) -> nn.Linear:
    """Return one linear layer for the shifts and the log-scales."""
    assert net.even is not None
    odd, even = _linear(net.odd), _linear(net.even)
    made = nn.Linear(odd.in_features, odd.out_features + even.out_features, dtype=odd.weight.dtype)
    with torch.no_grad():
        made.weight.copy_(torch.cat([odd.weight, even.weight]))
        made.bias.copy_(torch.cat([odd.bias, even.bias]))
    return made


def _lattice_net(case: Case, net: Conditioner) -> _Net:
    """Return the network of the whole lattice whose weights between the wrong sublattices are zero."""
    assert net.even is not None
    hidden = _circular(net.hidden[0], case.radius, 1, CHANNELS, parity=1)
    reach = int(case.layer["output_radius"])
    heads = [_circular(head, reach, CHANNELS, 1, parity=0) for head in (net.odd, net.even)]
    return _Net(hidden, *heads, squared=case.z2)


def _masked_net(theory: Phi4, net: Conditioner, *, even: bool) -> _Net:
    """Return the fully connected network of the whole lattice whose weights of masked sites are zero."""
    assert net.even is not None
    active = torch.tensor(_is_active(theory, even=even))
    small = _linear(net.hidden[0])
    hidden = nn.Linear(theory.volume, small.out_features, dtype=small.weight.dtype)
    with torch.no_grad():
        hidden.weight.zero_()[:, ~active] = small.weight
        hidden.bias.copy_(small.bias)
    heads = []
    for given in (_linear(net.odd), _linear(net.even)):
        head = nn.Linear(given.in_features, theory.volume, dtype=given.weight.dtype)
        with torch.no_grad():
            head.weight.zero_()[active] = given.weight
            head.bias.zero_()[active] = given.bias
        heads.append(nn.Sequential(head, nn.Unflatten(1, (1, *theory.shape))))
    return _Net(nn.Sequential(nn.Flatten(), hidden), *heads, squared=False)


def _circular(given: Any, radius: int, channels_in: int, channels_out: int, *, parity: int) -> nn.Conv2d:
    """Return the convolution of the whole lattice with the weights of one between sublattices."""
    made = nn.Conv2d(
        channels_in,
        channels_out,
        2 * radius + 1,
        padding=radius,
        padding_mode="circular",
        bias=given.bias is not None,
        dtype=given.weight.dtype,
    )
    nn.init.zeros_(made.weight)
    reach = range(-radius, radius + 1)
    # The weights of a `SiteConvolution` are numbered by displacement from input to output, in lexicographic order.
    displacements = [(t, x) for t, x in product(reach, reach) if (t + x) % 2 == parity]
    rows = given.weight.T[None] if isinstance(given, ChannelMix) else given.weight
    with torch.no_grad():
        for (t, x), row in zip(displacements, rows, strict=True):
            made.weight[:, :, radius - t, radius - x] = row.reshape(channels_in, channels_out).T
        if made.bias is not None:
            made.bias.copy_(given.bias)
    return made
