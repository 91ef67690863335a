"""The process that generates songs, beside the one that shows the page.

It is a process of its own because loading torch holds Python's lock for longer than a page may make its user wait,
because a model that is loading can only be stopped by ending its process, and because a failing graphics driver takes
its process along. It ends when its standard input does, so it never outlives the page. Songs go to disk section by
section and progress goes to the queue; only sentences about trouble come back on standard output.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from yuegp.errors import YueGPError
from yuegp.jobs.queue import Queue
from yuegp.jobs.worker import Worker

PATIENCE_SECONDS = 1.0
"""Time that the process has to stop at its next event before it is killed. Nothing finished is lost either way."""

RETRY_SECONDS = 2.0
"""How often a worker that does not get the queue tries again: the one that holds it may have ended."""


class GeneratorProcess:
    """Keep one generator process running for as long as the page runs."""

    def __init__(self, queue: Queue) -> None:
        self.home = queue.folder.parent
        self.trouble = ""
        """Why no song is being made, in a sentence; empty when all is well."""
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: threading.Thread | None = None

    def start(self) -> None:
        """Start the process, and restart it whenever it ends. Returns at once."""
        self._watch = threading.Thread(target=self._keep, name="yuegp generator", daemon=True)
        self._watch.start()

    def let_go(self) -> None:
        """Ask the process to end. Returns at once."""
        self._over.set()
        if self._process:
            hang_up(self._process)

    def stop(self) -> None:
        """End the process within about `PATIENCE_SECONDS`. The running job becomes interrupted."""
        self.let_go()
        if self._process:
            _end(self._process)
        if self._watch:
            self._watch.join()

    def _keep(self) -> None:
        while not self._over.is_set():
            self._process = process = spawn("ui.processes.generator", str(self.home))
            if self._over.is_set():  # stopped between the question and the answer
                _end(process)
            assert process.stdout
            for line in process.stdout:
                self._hear(line.decode("utf-8", "replace").strip())
            process.wait()
            self._over.wait(RETRY_SECONDS)

    def _hear(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            print(trouble, file=sys.stderr, flush=True)
        self.trouble = trouble


def spawn(module: str, argument: str, without: str = "") -> subprocess.Popen[bytes]:
    """Run a module of the program with pipes for standard input and output, without the environment variable
    `without`."""
    ours = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    environment = {name: value for name, value in os.environ.items() if name != without}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
    )


def hang_up(process: subprocess.Popen[bytes]) -> None:
    """Close a process's standard input, which asks it to end."""
    assert process.stdin
    with contextlib.suppress(OSError):
        process.stdin.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    hang_up(process)
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(home: str) -> None:
    """The process: make the waiting jobs until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the page's process decides
    over, queue = threading.Event(), Queue(Path(home))
    threading.Thread(target=_listen, args=(over,), daemon=True).start()
    while not over.is_set():
        try:
            _work(Worker(queue), over)
        except YueGPError as exc:
            _say(exc.what)
        over.wait(RETRY_SECONDS)


def _work(worker: Worker, over: threading.Event) -> None:
    """Make jobs until `over` is set. LibraryError when another worker holds the queue, or it cannot be read."""
    feed = worker.subscribe()
    worker.start()
    _say("")
    threading.Thread(target=_stop, args=(worker, over), daemon=True).start()
    for _ in feed:  # ends with the worker
        continue
    if worker.failure:
        raise worker.failure


def _listen(over: threading.Event) -> None:
    sys.stdin.buffer.read()
    over.set()


def _stop(worker: Worker, over: threading.Event) -> None:
    over.wait()
    worker.stop()


def _say(trouble: str) -> None:
    with contextlib.suppress(OSError):  # the page's process has ended
        print(" ".join(trouble.split()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
