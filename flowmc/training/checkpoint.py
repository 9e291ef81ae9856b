"""Training checkpoints: weights, optimiser and the step number; random numbers need none, their seeds are counters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flowmc.errors import FlowFileError
from flowmc.flows import Flow
from flowmc.flows.file import FORMAT, read_tensors, write_tensors

__all__ = ["TrainingFiles", "TrainingRecord"]


@dataclass(frozen=True)
class TrainingRecord:
    """One line of the training log."""

    step: int
    loss: float
    """E_q[log q + S] on the batch, nats."""
    ess: float
    """Reverse effective sample size of the batch, as a fraction."""
    acceptance: float
    """Acceptance of independence Metropolis, estimated from the batch's weights."""
    gradient_norm: float
    learning_rate: float
    seconds: float
    """Wall time of the training so far."""


@dataclass(frozen=True)
class TrainingFiles:
    """Where a training keeps its checkpoint and its log: beside the flow file that it will become.

    Parameters
    ----------
    flow
        Path of the flow file.
    """

    flow: Path

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint."""
        return self.flow.with_name(f"{self.flow.stem}.checkpoint.safetensors")

    @property
    def log(self) -> Path:
        """Path of the log, one JSON object a line."""
        return self.flow.with_name(f"{self.flow.stem}.training.jsonl")

    def save(
        self,
        flow: Flow,
        optimiser: torch.optim.Optimizer,
        step: int,
        seconds: float,
        identity: Mapping[str, Any],
        records: Sequence[TrainingRecord],
    ) -> None:
        """Write the checkpoint atomically, after the log: a log may be ahead of its checkpoint, never behind."""
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
        partial = self.log.with_name(f"{self.log.name}.partial")
        partial.write_text(lines)
        partial.replace(self.log)
        tensors = {f"flow.{name}": tensor for name, tensor in flow.state_dict().items()}
        for index, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        header = {"format": FORMAT, "step": step, "seconds": seconds, "identity": identity}
        write_tensors(self.checkpoint, tensors, header)

    def restore(
        self, flow: Flow, optimiser: torch.optim.Optimizer, identity: Mapping[str, Any]
    ) -> tuple[int, float, list[TrainingRecord]]:
        """Load the checkpoint into a flow and its optimiser; return step, seconds and the log up to there.

        Raises
        ------
        FlowFileError
            If it cannot be read, or belongs to another training.
        """
        tensors, header = read_tensors(self.checkpoint, "a training checkpoint written by flowmc")
        if header["identity"] != json.loads(json.dumps(identity)):
            different = sorted(key for key in identity if header["identity"].get(key) != identity[key])
            raise FlowFileError(
                got=f"a checkpoint of another training: {different} differ",
                expected="the theory, flow and training sections of this run",
                fix=f"restore the sections, or remove {self.checkpoint.name} to train anew",
            )
        flow.load_state_dict({k.removeprefix("flow."): t for k, t in tensors.items() if k.startswith("flow.")})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        records = [TrainingRecord(**json.loads(line)) for line in lines]
        step = int(header["step"])
        return step, float(header["seconds"]), [record for record in records if record.step <= step]
