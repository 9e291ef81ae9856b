"""Flow files: weights, configuration, theory and fingerprint in one safetensors file, with no code and no pickle in it.

The header's ``flowmc`` entry is a JSON object ``{"format", "flow", "theory", "training", "fingerprint"}``; the tensors
are the state dictionary of the flow. The fingerprint is checked on reading.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flowmc.errors import FlowFileError, TheoryMismatchError
from flowmc.flows.base import Flow
from flowmc.theories import Theory, from_description

__all__ = ["SavedFlow", "describe_flow", "fingerprint", "read_tensors", "save_flow", "write_tensors"]

FORMAT = 3
HEADER = "flowmc"


def describe_flow(flow: Flow) -> dict[str, Any]:
    """Return a flow's kind and hyper-parameters as plain data; `flowmc.flows.build_flow` inverts it."""
    return {"kind": flow.kind, **asdict(flow.config)}


def fingerprint(flow: Flow) -> str:
    """Return the SHA-256 over a flow's code id (kind, configuration, theory) and its weights, in hexadecimal.

    Weights are hashed in double precision, which float32 enters exactly: a flow that is only run in a wider type keeps
    its fingerprint.
    """
    code_id = {"format": FORMAT, "flow": describe_flow(flow), "theory": flow.theory.describe()}
    digest = hashlib.sha256(json.dumps(code_id, sort_keys=True).encode())
    for name, tensor in sorted(flow.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().to(torch.float64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header, atomically: a reader sees the old file or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Through bytes: the library's own file writer makes files that only their owner can read.
    with partial.open("wb") as written:
        written.write(save(plain, metadata={HEADER: json.dumps(header)}))
        written.flush()
        os.fsync(written.fileno())
    partial.replace(path)


def read_tensors(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and the JSON header of a file of ours.

    Parameters
    ----------
    path
        The file.
    expected
        What the file should be, for the message.

    Raises
    ------
    FlowFileError
        If the file is missing, truncated, not safetensors, or not written by flowmc.
    """
    if not path.is_file():
        found = "which is a folder" if path.is_dir() else "which does not exist"
        raise FlowFileError(got=f"{path}, {found}", expected=expected, fix="check the path, or train a flow first")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise FlowFileError(
            got=f"{path}, {path.stat().st_size} bytes, which does not read as safetensors ({error})",
            expected=expected,
            fix="the file is truncated or of another kind: copy it again, or train again",
        ) from error
    try:
        header = json.loads(metadata[HEADER])
    except (KeyError, json.JSONDecodeError) as error:
        raise FlowFileError(
            got=f"{path}, a safetensors file without a readable {HEADER!r} header",
            expected=expected,
            fix="weights of a foreign model need an adapter; flowmc reads the files that it wrote",
        ) from error
    if header.get("format") != FORMAT:
        raise FlowFileError(
            got=f"{path} in format {header.get('format')!r}",
            expected=f"format {FORMAT} of this version of flowmc",
            fix="train again, or use the version of flowmc that wrote the file",
        )
    return tensors, header


@dataclass(frozen=True)
class SavedFlow:
    """The contents of a flow file."""

    flow: dict[str, Any]
    """Kind and hyper-parameters."""
    theory: Theory
    """The theory that the flow was trained for."""
    tensors: dict[str, Tensor]
    fingerprint: str
    training: dict[str, Any] = field(default_factory=dict)
    """How it was trained: configuration, steps, seconds, ESS at the end."""

    @classmethod
    def read(cls, path: Path, theory: Theory | None = None) -> SavedFlow:
        """Read a flow file; the weights must be finite.

        Parameters
        ----------
        path
            The file.
        theory
            The theory that the flow was trained for, where it cannot be built from its description (`CallableTheory`).

        Raises
        ------
        FlowFileError
            If it cannot be read, or its weights are not finite.
        TheoryMismatchError
            If the theory is not the one in the file.
        """
        tensors, header = read_tensors(path, "a flow file written by `flowmc train`")
        bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise FlowFileError(
                got=f"{path} with NaN or infinite weights in {', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}",
                expected="finite weights",
                fix="the training diverged: train again with a smaller learning rate",
            )
        if missing := {"flow", "theory", "fingerprint"} - header.keys():
            raise FlowFileError(
                got=f"{path} without {sorted(missing)}",
                expected="a flow file written by `flowmc train`",
                fix="a training checkpoint is not a flow: finish the training first",
            )
        if theory is None:
            theory = from_description(header["theory"])
        elif (found := json.loads(json.dumps(theory.describe()))) != header["theory"]:
            raise TheoryMismatchError(
                got=f"{path}, trained for {header['theory']}", expected=f"a flow for {found}", fix="pass its theory"
            )
        return cls(header["flow"], theory, tensors, header["fingerprint"], header.get("training", {}))


def save_flow(path: Path, flow: Flow, training: Mapping[str, Any]) -> str:
    """Write a flow file, with the theory that the flow was built for, atomically; return the fingerprint."""
    mark = fingerprint(flow)
    header = {
        "format": FORMAT,
        "flow": describe_flow(flow),
        "theory": flow.theory.describe(),
        "training": dict(training),
        "fingerprint": mark,
    }
    write_tensors(path, flow.state_dict(), header)
    return mark
