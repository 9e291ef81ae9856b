"""Built-in flows (torch). To add one: one file, one line in `FLOWS`, which also parametrises the contract tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from flowmc.errors import ConfigError, FlowFileError
from flowmc.flows.autoregressive import AutoregressiveFlow
from flowmc.flows.base import DTYPES, BaseDensity, Flow, TransportFlow
from flowmc.flows.continuous import ContinuousFlow
from flowmc.flows.coupling import CouplingFlow
from flowmc.flows.file import SavedFlow, describe_flow, fingerprint, save_flow
from flowmc.flows.gauge import GaugeFlow
from flowmc.flows.hierarchical import HierarchicalFlow
from flowmc.flows.interpolating import InterpolatingFlow
from flowmc.flows.mirrored import MirroredFlow
from flowmc.flows.operator import OperatorFlow
from flowmc.flows.path import PathFlow
from flowmc.flows.spins import SpinFlow
from flowmc.seeds import fold
from flowmc.theories import Theory

__all__ = [
    "DTYPES",
    "FLOWS",
    "AutoregressiveFlow",
    "BaseDensity",
    "ContinuousFlow",
    "CouplingFlow",
    "Flow",
    "GaugeFlow",
    "HierarchicalFlow",
    "InterpolatingFlow",
    "MirroredFlow",
    "OperatorFlow",
    "PathFlow",
    "SavedFlow",
    "SpinFlow",
    "TransportFlow",
    "build_flow",
    "describe_flow",
    "fingerprint",
    "load_flow",
    "save_flow",
]

FLOWS: dict[str, type[Flow]] = {
    flow.kind: flow
    for flow in (
        AutoregressiveFlow,
        CouplingFlow,
        GaugeFlow,
        HierarchicalFlow,
        InterpolatingFlow,
        MirroredFlow,
        OperatorFlow,
    )
}
"""Every built-in flow by its kind in run descriptions and files."""


def build_flow(description: Mapping[str, Any], theory: Theory, seed: int = 0) -> Flow:
    """Build an untrained flow from its kind and hyper-parameters.

    Parameters
    ----------
    description
        ``{"kind": ..., **hyper_parameters}``, as `describe_flow` returns it.
    theory
        The theory whose fields it is to draw.
    seed
        Seed of the initial weights.

    Raises
    ------
    ConfigError
        If the kind is unknown or a hyper-parameter is superfluous.
    TheoryMismatchError
        If flows of this kind do not draw the theory's fields.
    """
    hyper = dict(description)
    kind = hyper.pop("kind", None)
    if kind not in FLOWS:
        raise ConfigError(got=f"flow kind {kind!r}", expected=f"one of {sorted(FLOWS)}", fix="correct `kind`")
    try:
        config = FLOWS[kind].Config(**hyper)
    except TypeError as error:
        raise ConfigError(
            got=f"hyper-parameters {sorted(hyper)} for a {kind!r} flow ({error})",
            expected=f"a subset of {sorted(item.name for item in fields(FLOWS[kind].Config))}",
            fix="correct the flow's description",
        ) from error
    # Initialisers of torch.nn draw from the global generator: borrow it, and give it back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "weights"))
        return FLOWS[kind](theory, config)


def load_flow(path: Path, theory: Theory | None = None) -> tuple[Flow, SavedFlow]:
    """Read a flow file and build its flow; parameters as in `SavedFlow.read`.

    Raises
    ------
    FlowFileError
        If the file cannot be read, or its weights do not fit its configuration or its fingerprint.
    TheoryMismatchError
        If the theory is not the one in the file.
    """
    saved = SavedFlow.read(path, theory)
    flow = build_flow(saved.flow, saved.theory)
    # Weights may have been saved in a wider type than they were trained in; loading must not narrow them.
    flow.to(next(tensor.dtype for tensor in saved.tensors.values() if tensor.is_floating_point()))
    try:
        flow.load_state_dict(saved.tensors)
    except RuntimeError as error:
        raise FlowFileError(
            got=f"{path}, whose weights do not fit its own configuration ({error})",
            expected=f"the weights of {saved.flow}",
            fix="the file was altered: train again",
        ) from error
    if (found := fingerprint(flow)) != saved.fingerprint:
        raise FlowFileError(
            got=f"{path} with fingerprint {found[:16]}...",
            expected=f"{saved.fingerprint[:16]}..., as its header says",
            fix="the weights were altered after training: restore the file, or train again",
        )
    return flow, saved
