"""How progress is shown: bars in a terminal, or silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from flowmc.sampling import BlockReport
from flowmc.training import TrainingRecord

__all__ = ["Display", "SilentDisplay", "TerminalDisplay"]


class Display(Protocol):
    """Where a workflow shows what it does."""

    def say(self, text: str) -> None:
        """Show a line."""

    def training(self, title: str, total: int) -> AbstractContextManager[Callable[[TrainingRecord], None]]:
        """Show the progress of a training of ``total`` steps."""

    def sampling(self, title: str, total: int) -> AbstractContextManager[Callable[[BlockReport], None]]:
        """Show the progress of a production of ``total`` cycles."""


class SilentDisplay:
    """Shows nothing; for tests and libraries."""

    def say(self, text: str) -> None:
        """Show nothing."""

    @contextmanager
    def training(self, title: str, total: int) -> Iterator[Callable[[TrainingRecord], None]]:  # noqa: ARG002
        """Show nothing."""
        yield lambda _: None

    @contextmanager
    def sampling(self, title: str, total: int) -> Iterator[Callable[[BlockReport], None]]:  # noqa: ARG002
        """Show nothing."""
        yield lambda _: None


class TerminalDisplay:
    """Progress bars with the figures that matter, on standard error so that standard output stays clean.

    Where standard error is not a terminal (a batch job's log), a line is printed about every tenth of the work instead.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    def say(self, text: str) -> None:
        """Show a line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def training(self, title: str, total: int) -> Iterator[Callable[[TrainingRecord], None]]:
        """Show step, loss, ESS and estimated acceptance."""
        with self._bar(title, total) as advance:
            yield lambda record: advance(
                record.step, f"loss {record.loss:.3f}  ESS {record.ess:.2f}  accepts ~{record.acceptance:.2f}"
            )

    @contextmanager
    def sampling(self, title: str, total: int) -> Iterator[Callable[[BlockReport], None]]:
        """Show cycles, acceptance by kind and the step size."""

        def figures(report: BlockReport) -> str:
            shown = [f"{kind} accepts {value:.2f}" for kind, value in report.acceptance.items()]
            if "hmc.step_size" in report.adaptation:
                shown.append(f"step {report.adaptation['hmc.step_size']:.3f}")
            return "  ".join(shown)

        with self._bar(title, total) as advance:
            yield lambda report: advance(report.cycles_done, figures(report))

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        if not self._console.is_terminal:
            yield self._lines(title, total)
            return
        # The figures come last and may be cut off in a narrow terminal; what is left to do must not be.
        columns: list[ProgressColumn] = [
            TextColumn(f"{title:<8}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        ]
        with Progress(*columns, console=self._console, expand=True) as progress:
            task = progress.add_task(title, total=total, figures="")
            yield lambda done, figures: progress.update(task, completed=done, figures=figures)

    def _lines(self, title: str, total: int) -> Callable[[int, str], None]:
        shown = -1

        def advance(done: int, figures: str) -> None:
            nonlocal shown
            if done * 10 // total > shown or done == total:
                shown = done * 10 // total
                self.say(f"{title}: {done}/{total}  {figures}")

        return advance
