"""Reasons to stop a run before its end: a wall-time limit, Ctrl-C, SIGTERM; always at a committed state."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

from flowmc.errors import ParameterError

__all__ = ["Stopper"]


class Stopper:
    """Asked at every place where a run can stop cleanly; returns the reason, or an empty text to go on.

    As a context manager it takes over SIGINT and SIGTERM: the first signal asks for a clean stop, a second SIGINT
    interrupts at once (what was committed stays).

    Parameters
    ----------
    max_minutes
        Wall-time limit, counted from construction; None for none. A stretch of work that would, judged by the last
        one, end after the limit is not begun.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        if max_minutes is not None and not max_minutes > 0:
            raise ParameterError(
                got=f"max_minutes = {max_minutes}", expected="a positive number of minutes", fix="correct --max-minutes"
            )
        self._max_minutes = max_minutes
        self._start = self._last = time.monotonic()
        self._signal = ""
        self._limit = ""
        self._number = 0
        self._handlers: dict[int, Any] = {}

    @property
    def exit_status(self) -> int:
        """Exit status of a stopped command: 0 at a wall-time limit, 128 + number after a signal, as shells have it."""
        return 128 + self._number if self._signal else 0

    def __call__(self) -> str:
        """Return why to stop now, or an empty text."""
        now = time.monotonic()
        stretch, self._last = now - self._last, now
        if self._max_minutes is not None and now + stretch - self._start > 60 * self._max_minutes:
            # Once given, a reason stays: whoever asks next must not start again.
            self._limit = f"wall-time limit of {self._max_minutes:g} min"
        return self._signal or self._limit

    def __enter__(self) -> Stopper:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of handlers
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = f"received {signal.Signals(number).name}"
        self._number = number
