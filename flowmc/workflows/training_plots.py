"""Figures of trainings that are finished, stopped or going on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from flowmc.errors import OutputError, ParameterError
from flowmc.training import LOG_SUFFIX, TrainingFiles, read_log
from flowmc.workflows.flows import check_writable
from flowmc_analysis.training_plots import plot_training_history

__all__ = ["plot_training"]

RESOLUTION = 150  # dots per inch


def plot_training(sources: Sequence[Path], output: Path | None = None) -> Path:
    """Draw the logs of trainings in one figure.

    Parameters
    ----------
    sources
        Flow files, which need not be there yet, with their logs beside them, or logs.
    output
        The figure, of a type that matplotlib can write; by default a PNG beside the log or, for several logs,
        ``training.png`` in the current folder. What is there is replaced.

    Returns
    -------
    Path of the figure.

    Raises
    ------
    ParameterError
        If there are no sources, or one is given twice.
    FlowFileError
        If a log is missing, empty or not a training log.
    OutputError
        If the figure cannot be written.
    """
    logs = [source if source.name.endswith(".jsonl") else TrainingFiles(source).log for source in sources]
    if not logs or len({log.resolve() for log in logs}) < len(logs):
        raise ParameterError(
            got=f"logs {', '.join(map(str, logs)) or 'of no training'}",
            expected="one or more different ones",
            fix="name each flow once",
        )
    target = output or (logs[0].with_suffix(".png") if len(logs) == 1 else Path("training.png"))
    check_writable(target)
    histories = {
        label: [asdict(record) for record in read_log(log)] for label, log in zip(_labels(logs), logs, strict=True)
    }
    figure = plot_training_history(histories, wall_time=True)
    known = figure.canvas.get_supported_filetypes()
    kind = target.suffix.removeprefix(".").lower()
    if kind not in known:
        raise OutputError(
            got=f"{target}, of the type {kind!r}",
            expected=f"a figure: {', '.join(sorted(known))}",
            fix="choose another name, for example one that ends in .png",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # In one step: a viewer that follows a training sees whole figures.
    partial = target.with_name(f"{target.name}.partial")
    figure.savefig(partial, format=kind, dpi=RESOLUTION)
    partial.replace(target)
    return target


def _labels(logs: Sequence[Path]) -> list[str]:
    """Name each training by its file or, where several have one name, by its folder too."""
    short = [log.name.removesuffix(LOG_SUFFIX).removesuffix(".jsonl") for log in logs]
    if len(set(short)) == len(short):
        return short
    return [str(log.parent / name) for log, name in zip(logs, short, strict=True)]
