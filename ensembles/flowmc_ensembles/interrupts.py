"""Signals wait until a transaction is over.

Python runs signal handlers between any two bytecodes of the main thread, so Ctrl-C could raise inside a callback of
HDF5, which may swallow the exception together with the bytes that it was about to write.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["defer_signals"]


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Call the Python handlers of signals that arrive inside the ``with`` block at its end.

    Handlers run in the main thread only; in another thread this does nothing and need not. May be nested.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []

    def remember(number: int, frame: FrameType | None) -> None:
        pending.append((number, frame))

    handlers = {}
    # The stack restores every handler even if one that is back already is called meanwhile and raises.
    with contextlib.ExitStack() as stack:
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                stack.callback(signal.signal, number, handler)
                signal.signal(number, remember)
        yield
    for signum, frame in pending:
        handlers[signal.Signals(signum)](signum, frame)
