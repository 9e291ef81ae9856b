"""What all adapters share: the options that describe a flow, its fingerprint, and errors before anything runs.

An adapter turns a trained flow of one library into a `flowmc.proposals.Proposal`. It keeps a frozen copy of the flow, and
takes care of the shape of an event, of types, devices and seeds, so that what a batch holds depends on its seed and size
alone. It does not vouch for log q: the certificate measures it.
"""

from __future__ import annotations

import copy
import importlib
from math import prod
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.proposals import ProposalMetadata
from flowmc_adapters.fingerprints import digest

__all__ = ["Options", "check_drawn", "checked_event", "frozen_copy", "joined", "require_library", "stated_metadata"]

PACKAGES = {"flow_matching": "flow_matching", "pyro": "pyro-ppl", "torch": "torch"}
"""Names on the package index, where they differ from the import's or could be mistaken."""


class Options(TypedDict, total=False):
    """What every adapter takes beside the flow and the shape of an event.

    Parameters
    ----------
    dtype
        "float32" or "float64": the type in which the flow is to compute. By default torch flows stay as they are, and JAX
        flows compute in float64.
    device
        Device of torch on which the flow runs, for example "cuda"; by default where its weights are. JAX flows run where
        JAX runs.
    space
        Name of the space of the fields: "real" (the default), "angle" or "spin".
    full_support
        Whether q > 0 wherever the theory's density is. False for a density on a bounded box: such a flow may propose
        beside another kernel only.
    log_q_bound
        By how many nats log q is off at most, where it is not the exact log density of the map as run (integrators).
    largest_batch
        Fields per pass: enough to amortise the call, few enough that what it makes stays in memory.
    """

    dtype: str | None
    device: str | None
    space: str
    full_support: bool
    log_q_bound: float
    largest_batch: int


def require_library(name: str) -> Any:
    """Import a library.

    Raises
    ------
    ParameterError
        If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = PACKAGES.get(name.split(".")[0], name.split(".")[0])
        raise ParameterError(
            got=f"no module {error.name!r}",
            expected=f"the library {package!r}, whose flows or kernels this adapter takes",
            fix=f"pip install {package}, or all of them with: pip install 'flowmc-lattice[adapters]'",
        ) from error


def frozen_copy(flow: Any) -> Any:
    """Return a copy that training the original further does not change; itself where it cannot be copied.

    Distributions whose parameters are results of a computation with gradients do not permit copies.
    """
    try:
        return copy.deepcopy(flow)
    except (RuntimeError, TypeError, NotImplementedError):
        return flow


def checked_event(event_shape: Any) -> tuple[int, ...]:
    """Return the shape of one configuration as a tuple.

    Raises
    ------
    ParameterError
        If it is no tuple of positive integers.
    """
    try:
        shape = tuple(int(extent) for extent in event_shape)
    except TypeError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ParameterError(
            got=f"event_shape = {event_shape!r}",
            expected="the shape of one configuration, for example (8, 8)",
            fix="give the theory's `field_shape`",
        )
    return shape


def check_drawn(shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
    """Check that a batch of one draw of this shape holds one event, whose sites may be in one row.

    Raises
    ------
    LatticeMismatchError
        If it does not.
    """
    if not shape or shape[0] != 1 or prod(shape[1:]) != prod(event_shape):
        raise LatticeMismatchError(
            got=f"draws of shape {shape} when one is asked for",
            expected=f"one event with the {prod(event_shape)} numbers of event_shape = {event_shape}",
            fix="give the shape of the flow's own events, or build the flow for this lattice",
        )


def joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Return the chunks of a batch as one array."""
    # Usually there is one, which need not be copied.
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def stated_metadata(
    adapter: str,
    identity: Any,
    event_shape: tuple[int, ...],
    dtype: str,
    options: Options,
    *,
    deterministic: bool = True,
) -> ProposalMetadata:
    """Return what a proposal says of itself, its fingerprint included.

    Parameters
    ----------
    adapter
        Name of the adapter.
    identity
        What the flow is made of: weights, hyper-parameters, functions; hashed by `flowmc_adapters.fingerprints.digest`.
    event_shape
        Shape of one configuration.
    dtype
        Type in which the flow computes.
    options
        The options of the adapter.
    deterministic
        Whether log q is a function of the field alone.
    """
    bound = options.get("log_q_bound", 0.0)
    space = options.get("space", "real")
    full_support = options.get("full_support", True)
    return ProposalMetadata(
        event_shape=event_shape,
        dtype=dtype,
        deterministic=deterministic,
        exact=bound == 0,
        fingerprint=digest({"adapter": adapter, "event": event_shape, "space": space, "bound": bound}, identity),
        full_support=full_support,
        space=space,
        log_q_bound=bound,
    )
