"""Flows of torch libraries as proposals on the host: batches in chunks, draws by seed, NumPy in and out.

Nearly all torch libraries draw from torch's global generator. Here it is forked, seeded for the call and put back, so
that nobody else's draws move and a run resumes without the generator's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.arrays import check_field
from flowmc.errors import FlowmcError, LatticeMismatchError, ParameterError
from flowmc.flows import DTYPES
from flowmc.proposals import ProposalMetadata
from flowmc.seeds import fold
from flowmc.theories import SPACES
from flowmc_adapters.base import (
    Options,
    check_drawn,
    check_number,
    checked_event,
    checked_options,
    coarser,
    frozen_copy,
    joined,
    stated_metadata,
)

__all__ = [
    "HostProposal",
    "TorchDensity",
    "TorchPushforward",
    "TransportHostProposal",
    "check_known_device",
    "frozen_module",
    "host_proposal",
]

LARGEST_BATCH = 1024


@dataclass(frozen=True)
class TorchDensity:
    """What a library gives: draws and their log q from torch's global generator, and log q of fields.

    Parameters
    ----------
    sample
        Draws n events, and returns them, (n, *own_event), with log q, (n,).
    log_prob
        Returns log q, (n,), of events (n, *own_event).
    """

    sample: Callable[[int], tuple[Tensor, Tensor]]
    log_prob: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TorchPushforward:
    """What a library gives that shows its map x = f(z) of a base density r: log q(x) = log r(z) − log|det ∂x/∂z|.

    Parameters
    ----------
    base_sample
        Draws n points of the base, (n, *own_event), from torch's global generator.
    base_log_prob
        Returns log r, (n,).
    forward
        Maps base points to events, and returns log|det ∂x/∂z|, (n,), with them.
    log_prob
        Returns log q, (n,), of events: by the inverse of the map.
    base_pair
        Draws n points of the base with log r, where a library makes both together.
    """

    base_sample: Callable[[int], Tensor]
    base_log_prob: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    log_prob: Callable[[Tensor], Tensor]
    base_pair: Callable[[int], tuple[Tensor, Tensor]] | None = None

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw n events with log q, in one pass of the map."""
        if self.base_pair is None:
            latent = self.base_sample(n)
            log_r = self.base_log_prob(latent)
        else:
            latent, log_r = self.base_pair(n)
        field, log_det = self.forward(latent)
        return field, log_r.double() - log_det.double()


Module = TypeVar("Module", bound=torch.nn.Module)


def frozen_module(module: Module, options: Options) -> Module:
    """Return a copy of a module for production: evaluation mode, no gradients, of the type and on the device wanted.

    Raises
    ------
    ParameterError
        If the type or device is none.
    """
    dtype, device = checked_options(options).get("dtype"), options.get("device")
    if not isinstance(module, torch.nn.Module):
        raise ParameterError(
            got=f"a {type(module).__name__}",
            expected="a torch.nn.Module",
            fix="for functions use flowmc_adapters.torch_callables",
        )
    frozen: Module = frozen_copy(module, module.modules()).eval().requires_grad_(False)
    if device is not None:
        check_known_device(device)
    return frozen.to(device=device, dtype=None if dtype is None else DTYPES[dtype])


def check_known_device(device: str) -> None:
    """Check that torch can compute on a device.

    Raises
    ------
    ParameterError
        If it does not know the device, or the machine does not have it.
    """
    try:
        torch.zeros(1).to(device)
    except (RuntimeError, AssertionError) as error:
        raise ParameterError(
            got=f"device = {device!r}: {str(error).splitlines()[0]}",
            expected='a device of this machine and this build of torch, for example "cpu"',
            fix="correct `device`",
        ) from error


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the processor and of a device, and put them back afterwards.

    Not with `torch.manual_seed`, which keeps a note of every call for devices that are not in use.
    """
    module = None if device.type == "cpu" else torch.get_device_module(device)
    state, device_state = torch.default_generator.get_state(), module and module.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        if module:
            module.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(state)
        if module:
            module.set_rng_state(device_state)


class HostProposal:
    """A torch flow as a `flowmc.proposals.Proposal`.

    Parameters
    ----------
    density
        What the library gives.
    adapter
        Name of the adapter.
    identity
        What the flow is made of, for the fingerprint.
    event_shape
        Shape of one configuration; the flow's own events may have another shape with as many numbers.
    options
        The options of the adapter.

    Raises
    ------
    LatticeMismatchError
        If the flow's events have another number of sites, or log q is not one number for each.
    ParameterError
        If what the flow draws is neither float32 nor float64.
    """

    def __init__(
        self,
        density: TorchDensity | TorchPushforward,
        *,
        adapter: str,
        identity: Any,
        event_shape: Any,
        options: Options,
    ) -> None:
        event = checked_event(event_shape)
        checked_options(options)
        self._density = density
        self._largest_batch = options.get("largest_batch", LARGEST_BATCH)
        self._spins = options.get("space", "real") == "spin"
        field, log_q = _tried(density)
        check_drawn(tuple(field.shape), event)
        _check_log_q(log_q, 1)
        self._own_event, self._device, self._dtype = tuple(field.shape[1:]), field.device, field.dtype
        kinds = {log_q.dtype} if self._spins else {field.dtype, log_q.dtype}
        computes = coarser({str(kind).removeprefix("torch.") for kind in kinds})
        self._metadata = stated_metadata(adapter, identity, event, computes, options)

    @property
    def metadata(self) -> ProposalMetadata:
        """What the flow says of itself."""
        return self._metadata

    def sample(self, seed: int, n: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Draw ``n`` fields and log q; see `flowmc.proposals.Proposal.sample`."""
        check_number(n)
        fields, log_qs = [], []
        with torch.no_grad(), _seeded(fold(seed), self._device):
            for start in range(0, n, self._largest_batch):
                size = min(self._largest_batch, n - start)
                field, log_q = _pair(self._density.sample(size))
                _check_log_q(log_q, size)
                if len(field) != size:
                    raise LatticeMismatchError(
                        got=f"{len(field)} events where {size} are asked for",
                        expected="as many events as asked for",
                        fix="draw n events in `sample(n)`",
                    )
                fields.append(self._field(field))
                log_qs.append(_numbers(log_q))
        return joined(fields), joined(log_qs)

    def log_prob(self, field: NDArray[Any]) -> NDArray[np.float64]:
        """Return log q of fields; see `flowmc.proposals.Proposal.log_prob`."""
        check_field(np.asarray(field), self._metadata.event_shape)
        parts = []
        with torch.no_grad():
            for start in range(0, len(field), self._largest_batch):
                part = field[start : start + self._largest_batch]
                log_q = self._density.log_prob(self._tensor(part))
                _check_log_q(log_q, len(part))
                parts.append(_numbers(log_q))
        return joined(parts)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # A copy: the array may be a read-only view of another library's buffer.
        flat = np.asarray(array).reshape(len(array), *self._own_event)
        return torch.tensor(flat, dtype=self._dtype, device=self._device)

    def _field(self, tensor: Tensor) -> NDArray[Any]:
        array = tensor.detach().cpu().numpy().reshape(len(tensor), *self._metadata.event_shape)
        return array.astype(SPACES["spin"].dtype) if self._spins else array


class TransportHostProposal(HostProposal):
    """A torch flow that shows its map, a `flowmc.proposals.TransportProposal`: its log-determinant can be checked."""

    _density: TorchPushforward

    def base_sample(self, seed: int, n: int) -> NDArray[np.floating[Any]]:
        """Draw ``n`` points of the base density, (n, *event_shape)."""
        with torch.no_grad(), _seeded(fold(seed), self._device):
            return self._field(self._density.base_sample(n))

    def forward(self, latent: NDArray[np.floating[Any]]) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64]]:
        """Map base points to fields, with log|det ∂φ/∂z|."""
        with torch.no_grad():
            field, log_det = self._density.forward(self._tensor(latent))
        return self._field(field), _numbers(log_det)

    def jacobian(self, latent: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Return ∂φ/∂z at one base point, (V, V)."""
        size = prod(self._own_event)

        def flat(point: Tensor) -> Tensor:
            return self._density.forward(point.reshape(1, *self._own_event))[0].reshape(size)

        with torch.enable_grad():
            point = self._tensor(latent[None]).reshape(size)
            # Row by row: not every operation of every library can be differentiated for a batch of directions.
            matrix = torch.autograd.functional.jacobian(flat, point)  # type: ignore[no-untyped-call]
        result: NDArray[np.floating[Any]] = matrix.detach().cpu().numpy()
        return result


def host_proposal(
    density: TorchDensity | TorchPushforward, *, adapter: str, identity: Any, event_shape: Any, options: Options
) -> HostProposal:
    """Wrap what a library gives as the proposal with all the capabilities that it has; see `HostProposal`."""
    kind = TransportHostProposal if isinstance(density, TorchPushforward) else HostProposal
    return kind(density, adapter=adapter, identity=identity, event_shape=event_shape, options=options)


def _tried(density: TorchDensity | TorchPushforward) -> tuple[Tensor, Tensor]:
    """Draw one event, and evaluate log q of it, before a run depends on that."""
    try:
        # Where the flow runs is not known yet: nobody's generators move.
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.default_generator.manual_seed(0)
            field, log_q = _pair(density.sample(1))
            # A copy: some libraries remember the inverse of what they have just drawn.
            _check_log_q(density.log_prob(field.clone()), 1)
    except FlowmcError:
        raise
    except Exception as error:
        raise ParameterError(
            got=f"a flow that fails on one event with {type(error).__name__}: {error}",
            expected="one that draws n events, for every n, and returns log q of given ones",
            fix="try it by itself: a batch of one, then log q of a copy of what it drew",
        ) from error
    return field, log_q


def _pair(drawn: Any) -> tuple[Tensor, Tensor]:
    if isinstance(drawn, tuple | list) and len(drawn) == 2 and all(isinstance(part, Tensor) for part in drawn):
        return drawn[0], drawn[1]
    found = f"{type(drawn).__name__} of {len(drawn)}" if isinstance(drawn, tuple | list) else type(drawn).__name__
    raise ParameterError(
        got=f"a sampler that returns a {found}",
        expected="a pair of tensors: draws (n, *event) and their log q (n,)",
        fix="return both, for example `lambda n: model.sample(n)` for a library whose `sample` does",
    )


def _check_log_q(log_q: Any, n: int) -> None:
    shape = tuple(getattr(log_q, "shape", ()))
    if not isinstance(log_q, Tensor) or shape != (n,):
        raise LatticeMismatchError(
            got=f"log q as {type(log_q).__name__} of shape {shape} for {n} events",
            expected=f"a tensor of shape ({n},): one number for each event",
            fix="sum log q over all sites of an event (torch.distributions.Independent does for a base)",
        )


def _numbers(log_q: Tensor) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = log_q.detach().double().cpu().numpy()
    return numbers
