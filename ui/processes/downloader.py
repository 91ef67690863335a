"""The process that downloads models, beside the one that shows the page.

It is a process of its own because converting the codec loads torch, because a silent server can block a thread for as
long as it likes, and because the page's own process never contacts another machine. It reports how much there is to
download and waits for `go` on standard input. It ends when standard input does. What has arrived stays on disk, and the
next download resumes there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from yuegp.checkpoints import sets
from yuegp.checkpoints.download import RateEstimator
from yuegp.errors import Cancelled, RequestError, YueGPError
from yuegp.system import provision

from .generator import PATIENCE_SECONDS, hang_up, spawn

TELL_SECONDS = 0.25
"""Shortest time between two reports of progress."""

State = Literal["", "asking", "offered", "getting", "done", "stopped", "failed"]
"""Empty before the first download is asked for; `asking` the hub what there is; the last three are ends."""

BUSY: tuple[State, ...] = ("asking", "getting")


@dataclass(frozen=True)
class Getting:
    """State of a download. Sizes in bytes."""

    name: str = ""
    """The set."""
    state: State = ""
    parts: Sequence[str] = ()
    """Ids of the checkpoints to download."""
    notes: Sequence[str] = ()
    """Sentences: which copies on disk serve instead of a download, and which folders could not be used and why."""
    missing: int = 0
    free: int = 0
    doing: str = ""
    """`download` or `convert`."""
    what: str = ""
    done: int = 0
    total: int = 0
    rate: float | None = None
    left: float | None = None
    """Estimated seconds until this part is complete; None before an estimate exists."""
    message: str = ""
    """Why it failed, and what to do."""


class DownloadProcess:
    """At most one download process and its state, which every open page shows."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._now = Getting()
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> Getting:
        """The present state."""
        return self._now

    def ask(self, name: str) -> None:
        """Start a process that works out what downloading the set `name` means. RequestError when that set cannot be
        downloaded, or while another download runs."""
        if name not in sets.RELEASED:
            raise RequestError(f"The model {name!r} cannot be downloaded.", f"There are: {', '.join(sets.RELEASED)}.")
        with self._guard:
            if self._now.state in BUSY:
                raise RequestError(f"{self._now.name} is being got already.", "Wait for it, or cancel it.")
            if self._process:
                hang_up(self._process)
            self._now = Getting(name, "asking")
            self._process = spawn("ui.processes.downloader", name, without="HF_HUB_OFFLINE")
            threading.Thread(target=self._hear, args=(self._process,), name="yuegp downloader", daemon=True).start()

    def go(self, name: str) -> None:
        """Download `name` if that is what was offered; else do nothing."""
        with self._guard:
            if self._process and (self._now.name, self._now.state) == (name, "offered"):
                self._now = replace(self._now, state="getting")
                assert self._process.stdin
                with contextlib.suppress(OSError):  # it has ended, and `_hear` says so
                    self._process.stdin.write(b"go\n")
                    self._process.stdin.flush()

    def stop(self) -> None:
        """Ask the process to end. Returns at once."""
        with self._guard:
            if self._process:
                hang_up(self._process)

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout
        for line in process.stdout:
            self._set(process, **json.loads(line))
        process.wait()
        if self._now.state in (*BUSY, "offered"):  # it ended without a word
            self._set(process, state="stopped")

    def _set(self, process: subprocess.Popen[bytes], **news: Any) -> None:
        with self._guard:
            if process is self._process:  # not one that was given up for another
                self._now = replace(self._now, **news)


# The other process


@dataclass
class _Report:
    """A `provision.StepProgress` that reports every `TELL_SECONDS`, and raises Cancelled once `over` is set."""

    over: threading.Event
    part: tuple[str, str] = ("", "")
    pace: RateEstimator = field(default_factory=RateEstimator)
    told: float = 0.0

    def __call__(self, doing: str, what: str, done: int, total: int) -> None:
        if self.over.is_set():
            raise Cancelled
        now = time.monotonic()
        if (doing, what) != self.part:
            self.part, self.pace, self.told = (doing, what), RateEstimator(), 0.0
        self.pace.update(now, done)
        if now - self.told >= TELL_SECONDS or done >= total:
            self.told = now
            rate, left = self.pace.rate(), self.pace.left(total)
            _say(doing=doing, what=what, done=done, total=total, rate=rate, left=left)


def main(name: str) -> None:
    """The process: report what there is to download, wait for `go`, download it, remember the choice for the set."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the page's process decides
    go, over = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(go, over), daemon=True).start()
    try:
        choice = provision.choose(*sets.RELEASED[name], elsewhere=True)
        order = provision.order(choice.checkpoints)
        if order.plans:
            parts = [plan.checkpoint.id for plan in order.plans]
            notes = [*map(str, order.instead), *(why for _, why in order.passed)]
            _say(state="offered", parts=parts, notes=notes, missing=order.missing, free=order.free)
            go.wait()
        if over.is_set():
            raise Cancelled
        provision.execute(order, _Report(over))
        provision.remember_choice(choice, order)
        _say(state="done")
    except Cancelled:
        _say(state="stopped")
    except YueGPError as exc:
        _say(state="failed", message=f"{exc.what} {exc.hint}".strip())


def _listen(go: threading.Event, over: threading.Event) -> None:
    if sys.stdin.buffer.readline():
        go.set()
        sys.stdin.buffer.read()
    over.set()
    go.set()
    time.sleep(PATIENCE_SECONDS)
    os._exit(0)  # a server that does not answer blocks it; what has arrived is on disk


def _say(**news: Any) -> None:
    with contextlib.suppress(OSError):  # the page's process has ended
        print(json.dumps(news), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
