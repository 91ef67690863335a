"""The progress line of the command line, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

from .errors import Cancelled
from .pipeline import Event


class Screen:
    """One progress line on a terminal; a line per part elsewhere. Turns Ctrl-C into `Cancelled` at the next event."""

    WIDTH = 24

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty()
        self._part = ("", "")
        self._began = 0.0
        self._stage_began = 0.0
        self._last = 0.0
        self._stop = False

    def __enter__(self) -> Screen:
        self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._previous)
        self._clear()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._stop:  # a second time: the next event may be long in coming
            raise KeyboardInterrupt
        self._stop = True

    def show(self, event: Event) -> None:
        if self._stop:
            raise Cancelled
        if self.quiet:
            return
        now = time.monotonic()
        part = (event.stage, event.what)
        if part != self._part:
            if event.stage != self._part[0]:
                self._stage_began, self._made_before = now, event.made
            self._part = part
            if not self.live:
                print(f"{event.stage}: {event.what}", file=sys.stderr, flush=True)
        elif now - self._last < 0.1:
            return
        self._last = now
        if self.live:
            sys.stderr.write("\r\x1b[K" + self.line(event, now))
            sys.stderr.flush()

    def line(self, event: Event, now: float) -> str:
        """One line: stage, part, bar, percent, rate, and the longest this stage can still take."""
        done = event.done / max(1, event.total)
        bar = "█" * round(self.WIDTH * done) + "·" * (self.WIDTH - round(self.WIDTH * done))
        text = f"{event.stage:<9} {event.what:<18} {bar} {done:>4.0%}"
        spent, made = now - self._stage_began, event.made - self._made_before
        if spent > 0.5 and made:
            rate = made / spent
            left = (event.total - event.done) / rate
            text += f"  {rate:,.0f} {event.unit}/s  at most {left // 60:.0f}:{left % 60:02.0f} left"
        return text

    def _clear(self) -> None:
        if self.live and not self.quiet:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
