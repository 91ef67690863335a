"""The process that gets models, beside the one that shows the page: what there is to download, and the download.

A process of its own because converting the sound model loads torch, because a server that does not answer keeps a
thread for as long as it likes, and because the page itself never asks another machine for anything. First it says how
much is to be downloaded; then it waits for `go` on its standard input. When that ends, it ends too. What has arrived
stays, and the next one goes on from there.
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
"""Least time between two reports of how far it is."""

State = Literal["", "asking", "offered", "getting", "done", "stopped", "failed"]
"""Empty before the first download is asked for; `asking` the hub what there is; the last three are ends."""

BUSY: tuple[State, ...] = ("asking", "getting")


@dataclass(frozen=True)
class Getting:
    """Where getting a model is. Sizes in bytes."""

    name: str = ""
    """The set."""
    state: State = ""
    parts: Sequence[str] = ()
    """The checkpoints to be downloaded."""
    notes: Sequence[str] = ()
    """What is taken in another's place, and why folders of other programs are not used."""
    missing: int = 0
    free: int = 0
    doing: str = ""
    """`download` or `convert`."""
    what: str = ""
    done: int = 0
    total: int = 0
    rate: float | None = None
    left: float | None = None
    """Seconds until this part is there; None while nobody can say."""
    message: str = ""
    """Why it failed, and what to do."""


class DownloadProcess:
    """At most one such process, and how far it is. Everybody who looks at the page sees the same one."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._now = Getting()
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> Getting:
        """How far it is."""
        return self._now

    def ask(self, name: str) -> None:
        """Find out what getting the set called `name` means. RequestError for one that cannot be got, or when another
        one is being got."""
        if name not in sets.RELEASED:
            raise RequestError(f"The model {name!r} cannot be downloaded.", f"There are: {', '.join(sets.RELEASED)}.")
        with self._guard:
            if self._now.state in BUSY:
                raise RequestError(f"{self._now.name} is being got already.", "Wait for it, or cancel it.")
            if self._process:
                hang_up(self._process)
            self._now = Getting(name, "asking")
            self._process = spawn("ui.processes.downloader", name, without="HF_HUB_OFFLINE")
            threading.Thread(target=self._hear, args=(self._process,), name="yuegp getter", daemon=True).start()

    def go(self, name: str) -> None:
        """Download what was offered. Anything else is left as it is."""
        with self._guard:
            if self._process and (self._now.name, self._now.state) == (name, "offered"):
                self._now = replace(self._now, state="getting")
                assert self._process.stdin
                with contextlib.suppress(OSError):  # it has ended, and `_hear` says so
                    self._process.stdin.write(b"go\n")
                    self._process.stdin.flush()

    def stop(self) -> None:
        """End it, soon. Returns at once."""
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
    """`supply.Progress`: says how far it is, now and then, and stops when nobody wants it any more."""

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
        self.pace.see(now, done)
        if now - self.told >= TELL_SECONDS or done >= total:
            self.told = now
            rate, left = self.pace.rate(), self.pace.left(total)
            _say(doing=doing, what=what, done=done, total=total, rate=rate, left=left)


def main(name: str) -> None:
    """Say what there is to get, wait for `go`, get it, and note that the set's name stands for it."""
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
    os._exit(0)  # it waits for somebody who does not answer; what has arrived is on disk


def _say(**news: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        print(json.dumps(news), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
