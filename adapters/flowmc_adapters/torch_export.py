"""Flows in a file, without their source: TorchScript archives and programs of `torch.export`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from torch.distributions import Distribution

from flowmc.errors import FlowFileError, ParameterError
from flowmc.flows import DTYPES
from flowmc.proposals import Proposal
from flowmc_adapters.base import Options, checked_event, checked_options
from flowmc_adapters.torch_host import check_known_device, host_proposal
from flowmc_adapters.torch_module import WhiteNoise, pushforward

__all__ = ["proposal"]


def proposal(
    flow: str | Path,
    *,
    event_shape: Any,
    inverse: str | Path | None = None,
    base: Distribution | None = None,
    **options: Unpack[Options],
) -> Proposal:
    """Return a flow that was saved with ``torch.jit.save`` or ``torch.export.save`` as a proposal.

    Such files hold code: load only those that you trust.

    Parameters
    ----------
    flow
        The file, whose ``forward`` maps base points (n, *own_event) to fields and returns log|det|, (n,), with them. A
        program of ``torch.export`` must have been exported with a dynamic first dimension.
    event_shape
        Shape of one configuration.
    inverse
        The file of the inverse map, with its own log|det|; not needed for TorchScript with an exported method
        ``inverse``.
    base
        Density of the base points, one event each; by default standard normal in the type of the flow's weights.
    options
        See `flowmc_adapters.base.Options`; the type and the device of an exported program are those of the export.

    Raises
    ------
    FlowFileError
        If a file is missing or is neither of the two.
    ParameterError
        If there is no inverse, or an exported program is asked for another type or device.
    """
    checked_options(options)
    if not isinstance(flow, str | Path):
        raise ParameterError(
            got=f"a {type(flow).__name__}",
            expected="the path of a saved flow",
            fix="for a module in memory use flowmc_adapters.torch_module",
        )
    path = Path(flow)
    to_field: Callable[..., Any]
    to_base: Callable[..., Any]
    to_field, module = _read(path, options)
    if inverse is not None:
        to_base, _ = _read(Path(inverse), options)
    elif callable(getattr(module, "inverse", None)):
        to_base = cast(Callable[..., Any], module.inverse)
    else:
        raise ParameterError(
            got=f"{path}, without an inverse",
            expected="the file of the inverse map, or TorchScript with an exported method `inverse`",
            fix="export the inverse as well and name it with `inverse`: log q of a field needs it",
        )
    density = base or WhiteNoise.like(checked_event(event_shape), module, options.get("dtype"))
    contents = [hashlib.sha256(Path(part).read_bytes()).hexdigest() for part in (path, inverse) if part is not None]
    return host_proposal(
        pushforward(density, to_field, to_base),
        adapter="torch_export",
        identity=(contents, base),
        event_shape=event_shape,
        options=options,
    )


def _read(path: Path, options: Options) -> tuple[Callable[..., Any], torch.nn.Module]:
    if not path.is_file():
        raise FlowFileError(got=f"{path}, which is no file", expected="a saved flow", fix="check the path")
    dtype, device = options.get("dtype"), options.get("device")
    if device:
        check_known_device(device)
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated, but the files of years are there.
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
            scripted = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError):
        scripted = None
    if scripted is not None:
        if dtype is not None:
            scripted = scripted.to(DTYPES[dtype])
        return scripted, scripted.eval()
    if dtype or device:
        raise ParameterError(
            got=f"dtype = {dtype}, device = {device} for {path}",
            expected="neither: a program of torch.export keeps those that it was exported with",
            fix="export it again in that type, on that device",
        )
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise FlowFileError(
            got=f"{path}, which reads neither as TorchScript nor as a program of torch.export ({error})",
            expected="a file written by torch.jit.save or torch.export.save",
            fix="save the flow again; weights alone (a state dictionary) need their module, see torch_module",
        ) from error
    module = program.module()
    return module, module
