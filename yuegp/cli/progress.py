"""The progress line of the command line, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from yuegp.errors import Cancelled

if TYPE_CHECKING:
    from yuegp.generation.plan import Event
    from yuegp.jobs.queue import JobProgress


class ProgressView(Protocol):
    """Says how fast it goes and how long it takes: a `worker.ProgressTracker`, or what behaves like one."""

    def update(self, event: Event) -> None: ...

    def progress(self) -> JobProgress | None: ...


class ProgressBar:
    """One progress line on a terminal; a line per part elsewhere. Turns Ctrl-C into `Cancelled` at the next event."""

    WIDTH = 24

    def __init__(self, quiet: bool, gauge: ProgressView | None = None) -> None:
        self.quiet, self.gauge = quiet, gauge
        self.live = sys.stderr.isatty()
        self._part = ("", "")
        self._last = 0.0
        self._stop = False

    def __enter__(self) -> ProgressBar:
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
        if self.gauge:
            self.gauge.update(event)
        if event.note:
            self._clear()
            print(event.note, file=sys.stderr, flush=True)
        now = time.monotonic()
        part = (event.stage, event.what)
        if part != self._part:
            self._part = part
            if not self.live:
                print(f"{event.stage}: {event.what}", file=sys.stderr, flush=True)
        elif now - self._last < 0.1:
            return
        self._last = now
        if self.live:
            sys.stderr.write("\r\x1b[K" + self.line(event))
            sys.stderr.flush()

    def line(self, event: Event) -> str:
        """One line: stage, part, bar, percent of the stage; its rate, and the time until the song is done."""
        done = event.done / max(1, event.total)
        bar = "█" * round(self.WIDTH * done) + "·" * (self.WIDTH - round(self.WIDTH * done))
        text = f"{event.stage:<9} {event.what:<18} {bar} {done:>4.0%}"
        known = self.gauge and self.gauge.progress()
        if known and known.rate:
            text += f"  {known.rate:,.0f} {event.unit}/s"
        if known and known.eta is not None:
            text += f"  about {known.eta // 60:.0f}:{known.eta % 60:02.0f} left"
        return text

    def _clear(self) -> None:
        if self.live and not self.quiet:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
