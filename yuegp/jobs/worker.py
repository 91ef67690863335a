"""The worker: makes the queue's jobs one after the other, reports progress, and stops on request.

It owns the machine's model memory while it works. `queue.py` keeps the jobs.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from yuegp.checkpoints import sets
from yuegp.errors import Cancelled, YueGPError, said
from yuegp.generation.edit import write_together
from yuegp.generation.pipeline import run
from yuegp.generation.plan import Event, Phase, ProgressCallback, plan_for
from yuegp.library import store
from yuegp.shortage import named
from yuegp.tokens.prompts import budget_ids

from . import eta
from .queue import Job, JobProgress, Queue, State

PUBLISH_SECONDS = 0.1
"""Least time between two events of one section for subscribers."""

SAVE_SECONDS = 0.5
"""Least time between two writes of progress.json for other processes."""

IDLE_SECONDS = 0.5
"""Interval at which an idle worker checks the queue."""

SMOOTH_SECONDS = 3.0
"""Time constant of the shown rate's average."""

Sing = Callable[[Job, ProgressCallback], None]
Forecast = Callable[[Job], tuple[eta.Costs, eta.Workload] | None]


def run_job(job: Job, watch: ProgressCallback) -> None:
    """Make what the job's take lacks; first the section it shares with the other takes of its batch, if any."""
    song = store.open_song(job.song)
    if len(job.batch_takes) > 1:
        write_together([song.take(number) for number in job.batch_takes], watch, job.device, job.wishes)
    take = song.take(job.take)
    run(plan_for(take), take, watch, job.device, wishes=job.wishes)


def forecast(job: Job) -> tuple[eta.Costs, eta.Workload] | None:
    """Costs of earlier takes of the same model on this device, and the job's workload. None on an error, which
    `run_job` then reports."""
    from yuegp.generation.memory import place

    try:
        folder = Path(job.song)
        take = store.open_song(folder).take(job.take)
        info = take.info
        device = place(0, job.device).device.split(":")[0]
        seconds = info.request.section_seconds or sets.find(info.request.model).section_seconds
    except YueGPError:
        return None
    costs = eta.learn(eta.earlier_takes(folder.parent, info.request.model, device), device)
    return costs, eta.facts_of(info, budget_ids(seconds), device, _refined(take))


def _refined(take: store.Take) -> int:
    """Frames of the sections written in this take that are refined already."""
    try:
        mask = take.load_stage2()[1]
    except YueGPError:  # `run_job` reports it
        return 0
    return sum(int(mask[:, s.start : s.stop].sum()) // 2 for s in take.info.spans if s.take == take.info.number)


@dataclass
class ProgressTracker:
    """Turns a job's events into its progress. `clock` gives seconds and only goes forward."""

    job: int
    clock: Callable[[], float]
    costs: eta.Costs | None = None
    facts: eta.Workload | None = None
    rate: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        self._began = self.clock()
        self._seen = eta.Observed(now=self._began)
        self._recent: deque[tuple[float, int]] = deque()

    def update(self, event: Event) -> None:
        """Record an event. Cheap: pass every event."""
        now = self.clock()
        self.note = event.note or self.note
        if self._seen.last is None or self._seen.last.stage != event.stage:
            self._recent.clear()
            self.rate = None
        self._seen = self._seen.after(event, now)
        self._recent.append((now, event.made))
        while now - self._recent[0][0] > SMOOTH_SECONDS and len(self._recent) > 2:
            self._recent.popleft()
        since, made = self._recent[0]
        if now > since:
            self.rate = (event.made - made) / (now - since)

    @classmethod
    def of(cls, job: Job) -> ProgressTracker:
        """A tracker for `job` that knows the cost of earlier takes."""
        costs, facts = forecast(job) or (None, None)
        return cls(job.number, time.monotonic, costs, facts)

    def progress(self, state: State = State.RUNNING) -> JobProgress:
        """The job's progress now."""
        elapsed = self.clock() - self._began
        left = eta.estimate(self.costs, self.facts, self._seen) if self.costs and self.facts else None
        event = self._seen.last
        if event is None:
            return JobProgress(self.job, state, elapsed=elapsed, eta=left)
        return JobProgress(
            job=self.job,
            state=state,
            stage=event.stage,
            what=event.what,
            done=event.done,
            total=event.total,
            unit=event.unit,
            rate=self.rate,
            elapsed=elapsed,
            eta=left if state is State.RUNNING else None,
            ready=self._ready(event),
            note=self.note,
        )

    def _ready(self, event: Event) -> tuple[int, ...]:
        if self.facts is None:
            return ()
        count = self.facts.written
        if event.stage == Phase.WRITING:
            count = event.done // self.facts.budget
        elif event.stage != Phase.REFERENCE:
            count += len(self._seen.lengths)
            if len(self._seen.lengths) >= self.facts.todo:  # then the kept sections that follow exist too
                count = len(self.facts.lengths) + self.facts.todo
        return tuple(range(count))


class Feed:
    """The worker's newest events for one subscriber; drops the oldest when the subscriber does not keep up. Iterating
    waits for the next event, and ends with the worker."""

    def __init__(self, size: int = 64) -> None:
        self._events: deque[JobProgress] = deque(maxlen=size)
        self._news = threading.Condition()
        self._closed = False

    def put(self, progress: JobProgress) -> None:
        with self._news:
            self._events.append(progress)
            self._news.notify_all()

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()

    def get(self, timeout: float | None = None) -> JobProgress | None:
        """The next event; None when the feed is closed or after `timeout` seconds without one."""
        with self._news:
            self._news.wait_for(lambda: self._events or self._closed, timeout)
            return self._events.popleft() if self._events else None

    def __iter__(self) -> Iterator[JobProgress]:
        while (progress := self.get()) is not None:
            yield progress


class Worker:
    """Makes a queue's waiting jobs, one after the other. One worker per home at a time."""

    def __init__(
        self,
        queue: Queue,
        sing: Sing = run_job,
        forecast: Forecast = forecast,
        clock: Callable[[], float] = time.monotonic,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self.queue, self.sing, self.forecast, self.clock, self.idle = queue, sing, forecast, clock, idle
        self.failure: YueGPError | None = None
        """The error that ended the thread, when the queue could not be read or written."""
        self._ending = threading.Event()
        self._feeds: weakref.WeakSet[Feed] = weakref.WeakSet()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def subscribe(self, size: int = 64) -> Feed:
        """A feed of events from now on. Dropping it ends the subscription."""
        feed = Feed(size)
        with self._guard:
            self._feeds.add(feed)
        return feed

    def run(self, watch: ProgressCallback = lambda event: None) -> None:
        """Make jobs until none waits. `watch` gets every event and may raise Cancelled, which interrupts the job and
        ends this call, as Ctrl-C does. Raises LibraryError when another worker has the queue."""
        with self.queue.work():
            self._loop(watch, stay=False)

    def start(self) -> None:
        """Make jobs in a thread, including later ones, until `stop`. Raises LibraryError when another worker has the
        queue."""
        desk = contextlib.ExitStack()
        desk.enter_context(self.queue.work())
        self._ending.clear()
        self._thread = threading.Thread(target=self._stay, args=(desk,), name="yuegp worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. A running job stops at its next event, marked as interrupted."""
        self._ending.set()
        if self._thread:
            self._thread.join()
            self._thread = None

    @property
    def ending(self) -> bool:
        return self._ending.is_set()

    def emit(self, progress: JobProgress) -> None:
        """Publish to all feeds."""
        with self._guard:
            for feed in self._feeds:
                feed.put(progress)

    def _stay(self, desk: contextlib.ExitStack) -> None:
        try:
            with desk:
                self._loop(lambda event: None, stay=True)
        except YueGPError as exc:
            self.failure = exc

    def _loop(self, watch: ProgressCallback, stay: bool) -> None:
        try:
            while not self.ending:
                if job := self.queue.claim():
                    self._make(job, watch)
                elif stay:
                    self._ending.wait(self.idle)
                else:
                    return
        finally:
            with self._guard:
                for feed in self._feeds:
                    feed.close()

    def _make(self, job: Job, watch: ProgressCallback) -> None:
        """Make one job, and save how it ended."""
        meter = ProgressTracker(job.number, self.clock)
        watcher = _Watcher(self, meter, watch)
        ended = replace(job, state=State.INTERRUPTED)
        try:
            watcher.emit(meter.progress())
            meter.costs, meter.facts = self.forecast(job) or (None, None)
            self.sing(job, watcher.update)
            ended = replace(job, state=State.DONE)
        except Cancelled:
            if watcher.wish:
                ended = replace(job, state=State.PAUSED if watcher.wish == "pause" else State.STOPPED)
            elif not self.ending:
                raise
        except Exception as exc:  # whatever it is, the later jobs still run
            if isinstance(known := named(exc, "while the song was made"), YueGPError):
                ended = replace(job, state=State.FAILED, what=known.what, hint=known.hint)
            else:
                what = f"The program failed: {type(exc).__name__}: {said(exc)}."
                hint = f"Resume the job; if it fails again, report this with the trace in {self.queue.path}."
                ended = replace(job, state=State.FAILED, what=what, hint=hint, trace=traceback.format_exc())
        finally:
            last = meter.progress(ended.state)
            self.queue.finish(replace(ended, last=last))
            self.emit(last)


class _Watcher:
    """Forwards the events of a running job, and stops it on request."""

    def __init__(self, worker: Worker, meter: ProgressTracker, watch: ProgressCallback) -> None:
        self.worker, self.meter, self.watch = worker, meter, watch
        self.wish = ""
        self._read: object = None
        self._part = ("", "")
        self._told = self._saved = -math.inf

    def update(self, event: Event) -> None:
        """The job's progress callback. Raises Cancelled when a stop or pause is requested."""
        self.meter.update(event)
        part = (event.stage, event.what)
        if part != self._part or self.worker.clock() - self._told >= PUBLISH_SECONDS:
            self._part = part
            self.emit(self.meter.progress())
        self.watch(event)
        if (changed := self.worker.queue.changed()) != self._read:
            self._read, self.wish = changed, self.worker.queue.wish(self.meter.job)
        if self.wish or self.worker.ending:
            raise Cancelled

    def emit(self, progress: JobProgress) -> None:
        """Publish, and save for other processes at most every `SAVE_SECONDS`."""
        self._told = self.worker.clock()
        self.worker.emit(progress)
        if self._told - self._saved >= SAVE_SECONDS:
            self._saved = self._told
            self.worker.queue.save_progress(progress)
