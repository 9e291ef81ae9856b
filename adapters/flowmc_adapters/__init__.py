"""Adapters to foreign libraries: one library per file, imported inside that file's functions.

A trained flow of any library in `ADAPTERS` becomes a proposal with `proposal`, or with the function of that name in the
adapter's own module, which documents its arguments::

    from flowmc.proposals import certify
    from flowmc_adapters import proposal

    flow_proposal = proposal(flow, event_shape=(8, 8))
    certify(flow_proposal, seed=1).require()

`flowmc_adapters.blackjax` and `flowmc_adapters.emcee` go both ways: kernels of theirs move our chains, and our kernels
and proposals serve their samplers.
"""

from __future__ import annotations

import importlib
from typing import Any

from flowmc.errors import ParameterError
from flowmc.proposals import Proposal

__all__ = ["ADAPTERS", "proposal"]

ADAPTERS: dict[str, tuple[str, ...]] = {
    "autoregressive": (),
    "bijx": ("bijx",),
    "distrax": ("distrax",),
    "flow_matching": ("flow_matching",),
    "flowjax": ("flowjax",),
    "flowmc_nfmodel": ("flowMC",),
    "jax_callables": (),
    "nflows": ("nflows",),
    "normflows": ("normflows",),
    "torch_callables": (),
    "torch_distributions": ("torch.distributions", "pyro"),
    "torch_export": (),
    "torch_module": (),
    "zuko": ("zuko",),
}
"""The adapters, and the packages by which `proposal` knows that a flow is theirs; those without are named."""


def proposal(flow: Any, *, event_shape: Any, adapter: str | None = None, **arguments: Any) -> Proposal:
    """Return a trained flow as a proposal, by the adapter of its library.

    Parameters
    ----------
    flow
        The flow.
    event_shape
        Shape of one configuration, a theory's `field_shape`.
    adapter
        Name of the adapter in `ADAPTERS`; by default that of the library that the flow's class is from.
    arguments
        Arguments of that adapter; see its module.

    Raises
    ------
    ParameterError
        If there is no such adapter, or none for the flow's library.
    """
    name = adapter or _adapter_for(flow)
    if name not in ADAPTERS:
        raise ParameterError(
            got=f"adapter = {adapter!r}" if adapter else f"a flow of class {_class_name(flow)}",
            expected=f"an adapter, one of {sorted(ADAPTERS)}",
            fix="name it with `adapter`: torch_module for a map with its log-determinant, torch_callables or "
            "jax_callables for a sampler and its log q",
        )
    module = importlib.import_module(f"flowmc_adapters.{name}")
    made: Proposal = module.proposal(flow, event_shape=event_shape, **arguments)
    return made


def _adapter_for(flow: Any) -> str:
    # Subclasses of a user's own belong to the library that they derive from; torch and Pyro are told apart by module.
    modules = [f"{kind.__module__}." for kind in type(flow).__mro__]
    for module in modules:
        for name, packages in ADAPTERS.items():
            if any(module.startswith(f"{package}.") for package in packages):
                return name
    return ""


def _class_name(flow: Any) -> str:
    return f"{type(flow).__module__}.{type(flow).__qualname__}"
