"""The training log: one JSON object a line, beside the flow file.

Lines are appended at every checkpoint and reach the disk before it does, so that a log may be ahead of its checkpoint but
never behind: whoever resumes cuts back what is ahead. A last line without an end is one that was being written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from flowmc.errors import FlowFileError

__all__ = ["TrainingLog", "TrainingRecord", "read_log"]


@dataclass(frozen=True)
class TrainingRecord:
    """One line of the training log."""

    step: int
    loss: float
    """What is minimised, nats: E_q[log q + S], or −E_p[log q] for the forward objective, or their weighted sum; the mean
    of |E| + E² for the continuity equation. The mean over the theories that take part in the step."""
    ess: float
    """Reverse effective sample size of a batch of draws for the flow's own theory, as a fraction; 0 if no weight is
    finite."""
    acceptance: float
    """Acceptance of independence Metropolis, estimated from the same weights."""
    gradient_norm: float
    learning_rate: float
    seconds: float
    """Wall time of the training so far."""
    forward_loss: float | None = None
    """−E_p[log q] on the step's samples, nats; None where the objective has no samples."""


_RECORD = TypeAdapter(TrainingRecord)


def parse_log(text: str, name: str) -> list[TrainingRecord]:
    """Return the records of a log's complete lines.

    Parameters
    ----------
    text
        The log.
    name
        What it is called in messages.

    Raises
    ------
    FlowFileError
        If a line that is complete is no record.
    """
    # Text after the last end of a line is being written, or was when its writer was killed.
    lines = text[: text.rfind("\n") + 1].splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_RECORD.validate_python(json.loads(line)))
        except (json.JSONDecodeError, ValidationError) as error:
            what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise FlowFileError(
                got=f"{name}, line {number}: {line[:60]!r} ({what})",
                expected="a training log written by flowmc: one JSON object a line, with step, loss, ess, ...",
                fix="restore the log from a copy, or remove it: a flow or checkpoint does not need it",
            ) from error
    return records


def read_log(path: Path) -> list[TrainingRecord]:
    """Read a training log, also while a training writes it.

    Returns
    -------
    Its records, at least one.

    Raises
    ------
    FlowFileError
        If there is none, it has no complete line yet, or it is not a training log.
    """
    expected = "a training log, or a flow file with its log beside it"
    if not path.is_file():
        raise FlowFileError(
            got=f"{path}, {'which is a folder' if path.is_dir() else 'which does not exist'}",
            expected=expected,
            fix="check the path; a training writes its log with its first checkpoint",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FlowFileError(
            got=f"{path}, which is not text ({error})", expected=expected, fix="check the path"
        ) from error
    records = parse_log(text, str(path))
    if not records:
        raise FlowFileError(
            got=f"{path}, which holds no complete line",
            expected=expected,
            fix="wait for the first checkpoint of the training",
        )
    return records


class TrainingLog:
    """The log of a training that is going on.

    Parameters
    ----------
    path
        Where it is written; what lies there stays until the first `write`.
    records
        The records up to the checkpoint that the training goes on from.
    """

    def __init__(self, path: Path, records: Sequence[TrainingRecord] = ()) -> None:
        self._path = path
        self._records = list(records)
        # None until this process has written the file: it may hold lines of a process that was killed.
        self._written: int | None = None

    @property
    def records(self) -> tuple[TrainingRecord, ...]:
        """All records so far."""
        return tuple(self._records)

    def latest(self, n: int) -> list[TrainingRecord]:
        """Return the last ``n`` records, or as many as there are."""
        return self._records[-n:]

    def append(self, record: TrainingRecord) -> None:
        """Add a record; `write` brings it to the disk."""
        self._records.append(record)

    def write(self) -> None:
        """Bring all records to the disk: the first time in place of what is there, atomically, then by appending."""
        new = self._records[self._written or 0 :]
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in new)
        fresh = self._written is None
        target = self._path.with_name(f"{self._path.name}.partial") if fresh else self._path
        with target.open("w" if fresh else "a", encoding="utf-8") as written:
            written.write(lines)
            written.flush()
            os.fsync(written.fileno())
        if fresh:
            target.replace(self._path)
        self._written = len(self._records)
