"""Training checkpoints: weights, optimiser and the step number; random numbers need none, their seeds are counters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowmc.errors import FlowFileError
from flowmc.flows import Flow
from flowmc.flows.file import FORMAT, read_tensors, write_tensors
from flowmc.training.log import TrainingLog, TrainingRecord, parse_log

__all__ = ["LOG_SUFFIX", "TrainingFiles"]

LOG_SUFFIX = ".training.jsonl"
"""How the names of logs end."""


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
        return self.flow.with_name(f"{self.flow.stem}{LOG_SUFFIX}")

    def save(
        self,
        flow: Flow,
        optimiser: torch.optim.Optimizer,
        step: int,
        seconds: float,
        identity: Mapping[str, Any],
        log: TrainingLog,
    ) -> None:
        """Write the checkpoint atomically, after the log: a log may be ahead of its checkpoint, never behind."""
        log.write()
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
            If it or its log cannot be read, or it belongs to another training.
        """
        tensors, header = read_tensors(self.checkpoint, "a training checkpoint written by flowmc")
        # Through JSON, as the header was: tuples become lists.
        found, wanted = header["identity"], json.loads(json.dumps(identity))
        if found != wanted:
            different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            raise FlowFileError(
                got=f"a checkpoint of another training: {different} differ",
                expected="the theory, flow and training sections of this run, and the same samples and starting weights",
                fix=f"restore them, or remove {self.checkpoint.name} to train anew",
            )
        flow.load_state_dict({k.removeprefix("flow."): t for k, t in tensors.items() if k.startswith("flow.")})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        # A log may have been removed by hand.
        text = self.log.read_text(encoding="utf-8") if self.log.is_file() else ""
        step = int(header["step"])
        records = [record for record in parse_log(text, str(self.log)) if record.step <= step]
        return step, float(header["seconds"]), records
