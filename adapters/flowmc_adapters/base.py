"""What all adapters share: the options that describe a flow, its fingerprint, and errors before anything runs.

An adapter turns a trained flow of one library into a `flowmc.proposals.Proposal`. It keeps a frozen copy of the flow, and
takes care of the shape of an event, of types, devices and seeds, so that what a batch holds depends on its seed and size
alone. It does not vouch for log q: the certificate measures it.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from math import inf, prod
from operator import index
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.flows import DTYPES
from flowmc.proposals import ProposalMetadata
from flowmc.theories import SPACES
from flowmc_adapters.fingerprints import digest

__all__ = [
    "Options",
    "check_drawn",
    "check_number",
    "checked_event",
    "checked_options",
    "checked_pair",
    "coarser",
    "frozen_copy",
    "joined",
    "require_library",
    "stated_metadata",
]

PACKAGES = {"flow_matching": "flow_matching", "pyro": "pyro-ppl", "torch": "torch"}
"""Names on the package index, where they differ from the import's or could be mistaken."""


EXPECTED = {
    "dtype": f"one of {list(DTYPES)}",
    "space": f"one of {sorted(SPACES)}",
    "full_support": "True or False",
    "log_q_bound": "a finite number of nats, zero for an exact log q",
    "largest_batch": "a number of fields, at least one",
}


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


def frozen_copy(flow: Any, parts: Iterable[Any] = ()) -> Any:
    """Return a copy of a flow, or of a part, which training the original further does not change.

    Parameters
    ----------
    flow
        What is copied.
    parts
        Objects inside, whose attributes may be results of a computation with gradients (parameters that were made of
        others, evaluations that were kept): torch copies no such tensors; here their values are.

    Raises
    ------
    ParameterError
        If it cannot be copied.
    """
    values: dict[int, Any] = {}
    for part in (flow, *parts):
        for attribute in getattr(part, "__dict__", {}).values():
            for one in attribute if isinstance(attribute, tuple | list) else (attribute,):
                if isinstance(one, torch.Tensor) and not one.is_leaf:
                    values[id(one)] = one.detach().clone()
    try:
        return copy.deepcopy(flow, values)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ParameterError(
            got=f"a {type(flow).__name__} that cannot be copied: {str(error).splitlines()[0]}",
            expected="a flow that can: a proposal keeps a copy, which training further does not change",
            fix="detach parameters that are results of a computation (`tensor.detach()`), or build the module anew and "
            "load its state dictionary",
        ) from error


def checked_options(options: Options) -> Options:
    """Return the options, each of which has a meaning.

    Raises
    ------
    ParameterError
        If a name or a value has none.
    """
    known = tuple(Options.__annotations__)
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            raise ParameterError(
                got=f"{name} = {options[name]!r}",  # type: ignore[literal-required]
                expected=f"one of the options {', '.join(known)}",
                fix=f"did you mean {near[0]!r}?" if near else "leave it out",
            )
    bound, batch = options.get("log_q_bound", 0.0), options.get("largest_batch", 1)
    checks = {
        "dtype": options.get("dtype") in (None, *DTYPES),
        "space": options.get("space", "real") in SPACES,
        "full_support": isinstance(options.get("full_support", True), bool),
        "log_q_bound": isinstance(bound, int | float) and 0 <= bound < inf,
        "largest_batch": isinstance(batch, int) and batch >= 1,
    }
    for name, meaningful in checks.items():
        if not meaningful:
            raise ParameterError(
                got=f"{name} = {options[name]!r}",  # type: ignore[literal-required]
                expected=EXPECTED[name],
                fix=f"correct `{name}`",
            )
    return options


def checked_event(event_shape: Any) -> tuple[int, ...]:
    """Return the shape of one configuration as a tuple.

    Raises
    ------
    ParameterError
        If it is no tuple of positive integers.
    """
    try:
        shape = () if isinstance(event_shape, str) else tuple(index(extent) for extent in event_shape)
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
    """Check that a batch of one draw of this shape holds one event: of the same shape, or with all sites in one row.

    Raises
    ------
    LatticeMismatchError
        If it does not.
    """
    own, wanted = ([extent for extent in one if extent > 1] for one in (shape[1:], event_shape))
    # Sites in one row are put onto the lattice; another lattice with as many sites is a mistake.
    if not shape or shape[0] != 1 or prod(own) != prod(wanted) or (len(own) > 1 and own != wanted):
        raise LatticeMismatchError(
            got=f"draws of shape {shape} when one is asked for",
            expected=f"one event with the {prod(event_shape)} numbers of event_shape = {event_shape}",
            fix="give the shape of the flow's own events, or build the flow for this lattice",
        )


def checked_pair(flow: Any) -> tuple[Any, Any]:
    """Return the two functions of a flow that is given as a pair.

    Raises
    ------
    ParameterError
        If it is none.
    """
    if isinstance(flow, tuple | list) and len(flow) == 2 and all(callable(one) for one in flow):
        return flow[0], flow[1]
    raise ParameterError(
        got=f"a {type(flow).__name__}",
        expected="a pair of functions, (sample, log_prob)",
        fix="pass both as one argument: proposal((sample, log_prob), event_shape=...)",
    )


def coarser(kinds: set[str]) -> str:
    """Return the coarser of the types in which a flow computes its fields and log q.

    Raises
    ------
    ParameterError
        If one is neither float32 nor float64.
    """
    if not kinds <= DTYPES.keys():
        raise ParameterError(
            got=f"a flow that computes in {', '.join(sorted(kinds))}",
            expected=f"one of {list(DTYPES)}",
            fix="convert it, for example with dtype = 'float64'",
        )
    return "float32" if "float32" in kinds else "float64"


def joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Return the chunks of a batch as one array."""
    # Usually there is one, which need not be copied; of no fields there is none.
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0)


def check_number(n: Any) -> None:
    """Check that a number of draws is a positive integer.

    Raises
    ------
    ParameterError
        If it is not.
    """
    if not isinstance(n, int | np.integer) or n < 1:
        raise ParameterError(got=f"n = {n!r} draws", expected="a positive integer", fix="ask for at least one")


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
    bound = float(options.get("log_q_bound", 0.0))
    space = options.get("space", "real")
    full_support = options.get("full_support", True)
    stated = {
        "adapter": adapter,
        "event": event_shape,
        "space": space,
        "bound": bound,
        "full_support": full_support,
        # Chunks of another size hold other draws.
        "largest_batch": options.get("largest_batch"),
    }
    return ProposalMetadata(
        event_shape=event_shape,
        dtype=dtype,
        deterministic=deterministic,
        exact=bound == 0,
        fingerprint=digest(stated, identity),
        full_support=full_support,
        space=space,
        log_q_bound=bound,
    )
