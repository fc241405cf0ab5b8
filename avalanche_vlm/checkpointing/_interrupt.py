"""Ctrl-C that waits until the run can be resumed."""

from __future__ import annotations

import inspect
import logging
import signal
import threading
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)


class Interrupt:
    """Remembers a first Ctrl-C; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._strategy: Any = None

    def listen(self, strategy: Any) -> None:
        """Take over the signal, in the main thread; the one who had it gets it back later."""
        if threading.current_thread() is not threading.main_thread() or self._before is not None:
            return
        before = signal.getsignal(signal.SIGINT)
        other = getattr(before, "__self__", None)
        if isinstance(other, Interrupt) and not _is_inside(inspect.currentframe(), other._strategy):
            other.stop_listening()  # its run failed, and could not give the signal back
            before = signal.getsignal(signal.SIGINT)
        if before is None or before == signal.SIG_IGN:
            return
        self._before, self._strategy = before, strategy
        signal.signal(signal.SIGINT, self._on_signal)

    def stop_listening(self) -> None:
        """Give the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        self._before = self._strategy = None

    def raise_if_asked(self, message: str) -> None:
        """Raise `KeyboardInterrupt` if Ctrl-C was pressed."""
        if self.asked:
            self.asked = False
            self.stop_listening()
            raise KeyboardInterrupt(message)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        before = self._before
        if self.asked or not _is_inside(frame, self._strategy):
            self.asked = False
            self.stop_listening()
            if callable(before):
                before(number, frame)
            else:
                raise KeyboardInterrupt
            return
        self.asked = True
        _log.warning("Ctrl-C: stopping at the next checkpoint. Press it again to stop at once.")


def _is_inside(frame: FrameType | None, strategy: Any) -> bool:
    """Return whether a method of the strategy is being run; a run that has failed leaves none."""
    while frame is not None:
        if frame.f_locals.get("self") is strategy:
            return True
        frame = frame.f_back
    return False
