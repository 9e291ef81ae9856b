"""Distributions of torch and Pyro: `TransformedDistribution`, or any distribution with an event of many numbers."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch.distributions import Distribution, TransformedDistribution

from flowmc.errors import ParameterError
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, frozen_copy
from flowmc_adapters.torch_host import TorchDensity, TorchPushforward, host_proposal

__all__ = ["proposal"]


def proposal(flow: Distribution, *, event_shape: Any, **options: Unpack[Options]) -> Proposal:
    """Return a distribution of torch or Pyro as a proposal.

    Parameters
    ----------
    flow
        A ``TransformedDistribution`` of either library, or another distribution without batch dimensions; a copy is
        used. Its transforms need an inverse (Pyro's planar ones, for example, have none).
    event_shape
        Shape of one configuration, for example (8, 8) for an event of 64 numbers.
    options
        See `flowmc_adapters.base.Options`; a distribution keeps the type and the device that it was built with.

    Raises
    ------
    ParameterError
        If the flow is no distribution, or a type or device is asked for.
    LatticeMismatchError
        If it has a batch shape: log q would not be one number for each event.
    """
    if not isinstance(flow, Distribution):
        raise ParameterError(
            got=f"a {type(flow).__name__}",
            expected="a torch.distributions.Distribution, for example a TransformedDistribution",
            fix="choose the adapter of the flow's library",
        )
    if options.get("dtype") or options.get("device"):
        raise ParameterError(
            got=f"dtype = {options.get('dtype')}, device = {options.get('device')} for a distribution of torch",
            expected="neither: the parameters of a distribution cannot be moved together",
            fix="build the distribution in that type, on that device",
        )
    frozen = frozen_copy(flow, _parts(flow))
    for part in _parts(frozen):
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
        if isinstance(part, Distribution):
            # A field outside of the support is an event of probability zero here, not a mistake.
            part._validate_args = False
    common: dict[str, Any] = {
        "adapter": "torch_distributions",
        "identity": frozen,
        "event_shape": event_shape,
        "options": options,
    }
    if not isinstance(frozen, TransformedDistribution):
        return host_proposal(TorchDensity(lambda n: _drawn(frozen, n), frozen.log_prob), **common)

    def forward(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        field, total = latent, torch.zeros(len(latent), dtype=torch.float64, device=latent.device)
        for transform in frozen.transforms:
            before, field = field, transform(field)
            log_det = transform.log_abs_det_jacobian(before, field)  # type: ignore[no-untyped-call]
            # Of a transform of single numbers it comes site by site.
            total = total + (log_det.flatten(1).sum(1) if log_det.ndim > 1 else log_det).double()
        return field, total

    base = frozen.base_dist
    pushforward = TorchPushforward(lambda n: base.sample((n,)), base.log_prob, forward, frozen.log_prob)
    return host_proposal(pushforward, **common)


def _drawn(distribution: Distribution, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    field = distribution.sample((n,))
    return field, distribution.log_prob(field)


def _parts(flow: Distribution) -> list[Any]:
    """Return a distribution and all distributions and transforms inside; a transform and its inverse hold each other."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [flow]
    while waiting:
        part = waiting.pop()
        if id(part) not in found and isinstance(part, Distribution | torch.distributions.Transform):
            found[id(part)] = part
            waiting += [getattr(part, name, None) for name in ("base_dist", "_inv", "base_transform")]
            waiting += [*getattr(part, "transforms", ()), *(getattr(part, "parts", None) or ())]
    return list(found.values())
