"""Making and checking flow files: train, read for a theory, certify."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flowmc.config import RunConfig
from flowmc.display import Display
from flowmc.errors import (
    ConfigError,
    FlowFileError,
    LatticeMismatchError,
    OutputError,
    ParameterError,
    RunExistsError,
    TheoryMismatchError,
)
from flowmc.flows import DTYPES, Flow, SavedFlow, build_flow, describe_flow, load_flow, save_flow
from flowmc.proposals import Certificate, FlowProposal, as_proposal, certify
from flowmc.theories import Theory
from flowmc.training import TrainingConfig, TrainingFiles, train
from flowmc.training.compilation import check_compilable
from flowmc.workflows.foreign import is_reference, read_reference
from flowmc.workflows.samples import SampleSet, read_samples

__all__ = [
    "certify_flow",
    "check_device",
    "check_theory",
    "check_writable",
    "exists_already",
    "for_production",
    "to_device",
    "train_flow",
]


def check_writable(path: Path) -> None:
    """Check that a file can be written at a path, before the work that it is to hold.

    Raises
    ------
    OutputError
        If the path is a folder, lies below a file, or its folder does not permit it.
    """
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir():
        found = f"{path}, which is a folder"
    elif not parent.is_dir():
        found = f"{path}, below the file {parent}"
    elif not os.access(parent, os.W_OK | os.X_OK):
        found = f"{path}, in a folder without permission to write"
    elif path.exists() and not os.access(path, os.W_OK):
        found = f"{path}, a file without permission to write"
    else:
        return
    raise OutputError(got=found, expected="a path where a file can be written", fix="choose another output")


def exists_already(path: Path) -> RunExistsError:
    """Return the error for a target that exists."""
    return RunExistsError(
        got=f"{path}, which exists",
        expected="a path where nothing is yet",
        fix="add --resume to go on with it, or choose another output",
    )


def train_flow(
    config: RunConfig,
    output: Path,
    *,
    resume: bool,
    should_stop: Callable[[], str],
    display: Display,
    base: Path = Path(),
) -> SavedFlow | None:
    """Train the flow of a run description and write its file.

    Parameters
    ----------
    config
        The run description.
    output
        Path of the flow file; checkpoint and log are kept beside it.
    resume
        Whether to go on from a checkpoint; a finished flow of the same run is then kept as it is.
    should_stop
        Asked at every step.
    display
        Where progress is shown.
    base
        Folder that a relative ``start_from`` or ``samples`` refers to.

    Returns
    -------
    The flow file's contents, or None if the training stopped early (it can be resumed).

    Raises
    ------
    ConfigError
        If the run has no flow, or the file to start from does not fit it.
    ParameterError, TheoryMismatchError, LatticeMismatchError
        If flow, theory, objective and samples do not go together.
    EnsembleError
        If the samples cannot be read.
    RunExistsError
        If the file or its checkpoint exists and ``resume`` is off.
    FlowFileError
        If an existing flow or checkpoint belongs to another run.
    """
    if config.flow is None:
        raise ConfigError(got="no [flow] section", expected="[flow] with its kind", fix="add it, or sample with HMC")
    check_writable(output)
    if not resume:
        for existing in (output, TrainingFiles(output).checkpoint):
            if existing.exists():
                raise exists_already(existing)
    flow = to_device(build_flow(config.flow, config.theory, seed=config.training.seed), config.training.device)
    config.training.require_samples(given=bool(config.training.samples))
    config.training.reverse_objective(flow, config.theory)
    if config.training.compile:
        check_compilable(flow)
    # Through JSON, as the file will hold it: tuples become lists.
    identity: dict[str, Any] = json.loads(
        json.dumps({"flow": describe_flow(flow), "training": config.training.identity()})
    )
    if resume and output.exists():
        return _kept(output, config.theory, identity)
    taken_over: dict[str, Any] = {}
    if config.training.start_from:
        taken_over = _start_from(base / config.training.start_from, flow, whole=config.training.steps == 0)
    if taken_over:
        display.say(f"training starts from {config.training.start_from}: {taken_over['weights']}")
    samples = _samples(config, base, display)
    output.parent.mkdir(parents=True, exist_ok=True)
    with display.training("training", config.training.steps) as on_record:
        result = train(
            flow,
            config.theory,
            config.training,
            output,
            samples=samples.fields if samples else None,
            resume=resume,
            should_stop=should_stop,
            on_record=on_record,
        )
    if not result.finished:
        return None
    if result.ended_by != "steps":
        display.say(
            f"training ended after {result.step} of {config.training.steps} steps: {result.ended_by} is reached"
        )
    # What a flow has learned from has its price too, or else its cost could not be compared with that of HMC.
    before = taken_over.get("seconds", 0.0) + (samples.seconds if samples else 0.0)
    facts = {
        "config": asdict(config.training),
        "steps": result.step,
        "ended_by": result.ended_by,
        "seconds": result.seconds + before,
        "start_from": taken_over,
        "samples": {**result.samples, "seconds": samples.seconds} if samples else {},
    }
    # The log may have been removed by hand since the training ended.
    ess = result.records[-1].ess if result.records else None
    save_flow(output, flow, {**facts, "ess_batch": ess})
    return SavedFlow.read(output)


def _samples(config: RunConfig, base: Path, display: Display) -> SampleSet | None:
    if not config.training.samples:
        return None
    samples = read_samples(base / config.training.samples, config.theory)
    display.say(f"training on {len(samples.fields)} configurations of {config.training.samples}")
    return samples


def _start_from(path: Path, flow: Flow, *, whole: bool) -> dict[str, Any]:
    """Copy the weights of a flow file that fit a flow; return what was taken over, and what it had cost to train.

    If it is to be the ``whole`` flow, all weights must fit.
    """
    found, saved = load_flow(path)
    if found.kind != flow.kind:
        raise ConfigError(
            got=f"start_from = {path}, a {found.kind!r} flow",
            expected=f"a {flow.kind!r} flow, as in [flow]",
            fix="choose another file, or leave start_from out",
        )
    own = flow.state_dict()
    taken = flow.start_from(found)
    if not taken:
        raise ConfigError(
            got=f"start_from = {path}, of whose weights none fits: {_shapes(saved.tensors)}",
            expected=f"some that this flow has too: {_shapes(own)}",
            fix="take the same layers, widths, ranges and units; a fully connected network belongs to one lattice; a "
            "hierarchical flow on another lattice shares the networks of blocks of one side, of which an 8 x 8 lattice "
            "has none if exact_cross = true; or leave start_from out",
        )
    missing = [name for name, _ in flow.density_parameters() if name not in taken]
    if whole and missing:
        raise ConfigError(
            got=f"steps = 0 with start_from = {path}, which does not have {missing}",
            expected="a flow all of whose weights fit: nothing is trained",
            fix="take the same networks as there, or raise `steps`",
        )
    return {
        "fingerprint": saved.fingerprint,
        "theory": saved.theory.describe(),
        "weights": f"{len(taken)} of {len(own)} arrays of weights fit"
        + (f"; afresh: {', '.join(name for name in own if name not in taken)}" if len(taken) < len(own) else ""),
        "seconds": float(saved.training.get("seconds", 0.0)),
    }


def _shapes(tensors: Mapping[str, torch.Tensor]) -> str:
    shown = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if tensor.ndim > 1]
    return ", ".join(shown[:8]) + (" ..." if len(shown) > 8 else "")


def _kept(output: Path, theory: Theory, identity: dict[str, Any]) -> SavedFlow:
    """Return an existing flow, if it is the one that this run would train."""
    saved = SavedFlow.read(output)
    check_theory(saved, theory, output)
    # A file from before there was a setting was trained with what is now its default.
    recorded = saved.training.get("config", {})
    config = {**asdict(TrainingConfig()), **recorded} if recorded else {}
    found = {"flow": saved.flow, "training": {key: config.get(key) for key in identity["training"]}}
    different = [
        (f"[{section}] {key} = ", found[section].get(key), wanted.get(key))
        for section, wanted in identity.items()
        for key in sorted({*wanted, *found[section]})
        if wanted.get(key) != found[section].get(key)
    ]
    if different:
        raise FlowFileError(
            got=f"{output}, trained with {', '.join(f'{key}{old!r}' for key, old, _ in different)}",
            expected=f"{', '.join(f'{key}{new!r}' for key, _, new in different)}, as in this run",
            fix="restore the sections, or choose another output",
        )
    return saved


def check_theory(saved: SavedFlow, theory: Theory, path: Path) -> None:
    """Check that a flow belongs to a theory.

    Raises
    ------
    LatticeMismatchError
        If it was trained on another lattice.
    TheoryMismatchError
        If it was trained for another action.
    """
    if saved.theory.shape != theory.shape:
        raise LatticeMismatchError(
            got=f"{path}, trained on a lattice of {saved.theory.shape}",
            expected=f"a flow for the lattice {theory.shape} of this run",
            fix="train a flow on this lattice, or correct `shape` in [theory]",
        )
    if saved.theory != theory:
        raise TheoryMismatchError(
            got=f"{path}, trained for {saved.theory}",
            expected=f"a flow for {theory}",
            fix="train a flow with this run's [theory], or correct the section",
        )


def to_device(flow: Flow, device: str) -> Flow:
    """Return a flow, moved to a device.

    Raises
    ------
    ParameterError
        If torch does not know the device, or the machine does not have it.
    """
    check_device(device)
    return flow.to(torch.device(device))


def check_device(device: str) -> None:
    """Check that torch can compute and draw on a device.

    Raises
    ------
    ParameterError
        If torch does not know the device, or the machine does not have it.
    """
    try:
        torch.randn(1, generator=torch.Generator(device=device), device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ParameterError(
            got=f"device = {device!r}: {str(error).splitlines()[0]}",
            expected='a device of this machine and this build of torch, for example "cpu"',
            fix="correct `device`",
        ) from error


def for_production(flow: Flow, precision: str, device: str) -> FlowProposal:
    """Return a flow as a proposal whose networks run in "float32" or "float64" on a device.

    Raises
    ------
    ParameterError
        If precision or device is unknown.
    """
    if precision not in DTYPES:
        raise ParameterError(
            got=f"precision = {precision!r}", expected=f"one of {list(DTYPES)}", fix="correct the precision"
        )
    return as_proposal(to_device(flow, device).to(DTYPES[precision]))


def certify_flow(path: Path, *, precision: str, device: str, seed: int) -> Certificate:
    """Read a flow and measure its certificate in the precision of production.

    Parameters
    ----------
    path
        Flow file, or a reference to a proposal of another library (`flowmc.workflows.foreign`), which has its own type
        and device.
    precision, device
        Type and device of a flow file's networks.
    seed
        Seed of the draws.

    Raises
    ------
    FlowFileError
        If the file cannot be read.
    ParameterError
        If precision or device is unknown, or said of a reference.
    """
    if is_reference(path):
        if (precision, device) != ("float64", "cpu"):
            raise ParameterError(
                got=f"precision = {precision!r}, device = {device!r} for {path}",
                expected="neither: a proposal of another library has its own",
                fix="say `dtype` and `device` where it is made",
            )
        return certify(read_reference(path).proposal, seed)
    flow, _ = load_flow(path)
    return certify(for_production(flow, precision, device), seed)
