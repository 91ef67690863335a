"""The queue: which takes to make, in which order. `worker.py` makes them.

    YUEGP_HOME/queue/
      queue.json           format number, the jobs in order
      progress.json        the running job's progress, twice a second; not flushed: it may be lost
      queue.lock           held while queue.json is changed      worker.lock   held by the worker, its process inside

A job only points to an existing take: the music lies in the song's folder, so removing a job, or losing the whole
queue, loses no music. Any number of processes may read and change the queue; a request to stop or pause the running job
is written there, and the worker reads it at every event. A job marked as running while no worker lives was interrupted:
it is shown so, and waits until a user resumes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from yuegp import files, paths
from yuegp.checked import NEEDED, Fault, Newer, Plain, build, version
from yuegp.errors import LibraryError, RequestError
from yuegp.generation.options import ANY, ModelOptions
from yuegp.library import store
from yuegp.locks import lock_handle
from yuegp.song.schema import Count, Seconds, TakeNumber

FORMAT = 3
"""Format number of queue.json. In 1, jobs had no `wishes` and no `together`; in 2, `batch_takes` was `together`."""

LARGEST_QUEUE = 64 << 20
"""Most bytes of queue.json: thousands of failed jobs, each with a trace."""

PATIENCE_SECONDS = 30.0
"""Seconds to wait for another process that holds the queue, which should take milliseconds."""


class State(StrEnum):
    """State of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"


Wish = Literal["", "stop", "pause"]
"""What a running job has been asked to do."""

TO_COME = (State.WAITING, State.PAUSED, State.INTERRUPTED)
"""States of jobs with a position in the queue; the others run or are over."""

OVER = (State.DONE, State.FAILED, State.STOPPED)


@dataclass(frozen=True)
class JobProgress:
    """A job's progress at its last event."""

    job: Count
    state: State
    stage: str = ""
    what: str = ""
    done: Count = 0
    total: Count = 0
    unit: str = ""
    rate: float | None = None
    """Units per second, smoothed."""
    elapsed: Seconds = 0.0
    """Seconds since the worker began the job."""
    eta: Seconds | None = None
    """Seconds from this event until the song is done; None while unknown."""
    ready: tuple[Count, ...] = field(default=(), metadata=NEEDED)
    """Indices of written sections, from 0."""
    note: str = ""
    """Newest message for the user, such as that memory ran out and how the song continues."""


@dataclass(frozen=True)
class Job:
    """One take to make. Times are ISO 8601, UTC."""

    number: Count
    song: Plain
    """The song's folder."""
    take: TakeNumber
    device: str = "auto"
    wishes: ModelOptions = ANY
    batch_takes: tuple[TakeNumber, ...] = ()
    """Takes, this one included, of the same section, each with its own seed: the first one made writes the section for
    all of them, in one batch."""
    state: State = field(default=State.WAITING, metadata=NEEDED)
    created: str = ""
    started: str = ""
    finished: str = ""
    what: str = ""
    """Why it failed, a sentence."""
    hint: str = ""
    """What to do about it."""
    trace: str = ""
    """Traceback for a bug report; empty for a known kind of failure."""
    wish: Wish = ""
    """`stop` or `pause` once the user has asked a running job for it."""
    last: JobProgress | None = field(default=None, metadata=NEEDED)


@dataclass(frozen=True)
class Damaged(Job):
    """An invalid entry of queue.json: listed among the failed jobs with the reason until these are cleared, and written
    back unchanged until then. It has no number of its own."""

    entry: Any = field(default=None, hash=False)


def to_row(job: Job) -> dict[str, Any]:
    """A job as JSON values."""
    row = asdict(job)
    row.pop("entry", None)
    return row


# The queue


@dataclass(frozen=True)
class _Content:
    """Contents of queue.json besides its format."""

    last: Count
    jobs: tuple[Any, ...]


class Queue:
    """The jobs of one home. Every call reads the disk; any number of instances may be used at once."""

    def __init__(self, home: Path | None = None) -> None:
        self.folder = (home or paths.home()).absolute() / "queue"
        self.path = self.folder / "queue.json"
        self._last = 0  # highest number given, at the latest reading: numbers are not reused

    def jobs(self) -> list[Job]:
        """All jobs, in order."""
        if not self.path.exists():
            return []
        with self._held("queue.lock"):
            jobs = self._settled(self._read())
        return [replace(job, last=self._progress(job)) if job.state is State.RUNNING else job for job in jobs]

    def job(self, number: int) -> Job:
        """The job with this number. Raises RequestError when there is none."""
        return _find(self.jobs(), number)

    def add(
        self,
        song: Path | str,
        take: int,
        device: str = "auto",
        wishes: ModelOptions = ANY,
        batch_takes: tuple[int, ...] = (),
    ) -> Job:
        """Append a take to the queue, unless it is already waiting, running or paused. Returns its job."""
        folder = Path(song).absolute()
        store.open_song(folder).take(take)
        with self._open() as jobs:
            for job in jobs:
                if (job.song, job.take) == (str(folder), take) and job.state not in (*OVER, State.INTERRUPTED):
                    return job
            jobs.append(Job(self._last + 1, str(folder), take, device, wishes, batch_takes, created=store.now()))
            return jobs[-1]

    def move(self, number: int, position: int) -> Job:
        """Move a job that has not begun to `position` among those; 1 is the first."""
        with self._open() as jobs:
            job = _find(jobs, number)
            if job.state not in TO_COME:
                raise _cannot("moved", job)
            jobs.remove(job)
            others = [i for i, other in enumerate(jobs) if other.state in TO_COME]
            after = others[max(0, position - 1) :]
            jobs.insert(after[0] if after else len(jobs), job)
            return job

    def cancel(self, number: int) -> Job:
        """Remove a job that has not begun, or ask a running one to stop. Finished parts stay."""
        with self._open() as jobs:
            job = _find(jobs, number)
            if job.state is State.RUNNING:
                return _put(jobs, replace(job, wish="stop"))
            if job.state not in TO_COME:
                raise _cannot("cancelled", job)
            jobs.remove(job)
            return replace(job, state=State.STOPPED)

    def pause(self, number: int) -> Job:
        """Pause a waiting job until it is resumed; a running one stops and frees its memory."""
        with self._open() as jobs:
            job = _find(jobs, number)
            if job.state not in (State.WAITING, State.RUNNING, State.PAUSED):
                raise _cannot("paused", job)
            return _put(jobs, _paused(job))

    def pause_all(self) -> list[Job]:
        """Pause every job that waits or runs."""
        with self._open() as jobs:
            return [_put(jobs, _paused(job)) for job in jobs if job.state in (State.WAITING, State.RUNNING)]

    def resume(self, number: int) -> Job:
        """Queue a paused, interrupted, stopped or failed job again."""
        with self._open() as jobs:
            job = _find(jobs, number)
            if job.state is State.DONE:
                raise _cannot("resumed", job)
            return _put(jobs, _resumed(job))

    def resume_all(self) -> list[Job]:
        """Queue every paused or interrupted job again."""
        with self._open() as jobs:
            chosen = [job for job in jobs if job.state in (State.PAUSED, State.INTERRUPTED) or job.wish == "pause"]
            return [_put(jobs, _resumed(job)) for job in chosen]

    def clear(self) -> list[Job]:
        """Remove all jobs that are over. Returns them."""
        with self._open() as jobs:
            over = [job for job in jobs if job.state in OVER]
            jobs[:] = [job for job in jobs if job.state not in OVER]
            return over

    # For the worker

    def claim(self) -> Job | None:
        """Mark the next waiting job as running and return it, without finished takes in its batch; None if none
        waits."""
        with self._open() as jobs:
            job = next((job for job in jobs if job.state is State.WAITING), None)
            if job is None:
                return None
            wanted = {other.take for other in jobs if other.song == job.song and other.state not in OVER}
            takes = tuple(take for take in job.batch_takes if take in wanted)
            job = replace(_resumed(job), batch_takes=takes, state=State.RUNNING, started=store.now(), finished="")
            return _put(jobs, job)

    def finish(self, job: Job) -> None:
        """Save a job that has ended."""
        with self._open() as jobs:
            if any(other.number == job.number for other in jobs):
                _put(jobs, replace(job, wish="", finished=store.now()))

    def wish(self, number: int) -> Wish:
        """Request for the running job: ``, `stop` or `pause`; `stop` for a removed job."""
        return next((job.wish for job in self.jobs() if job.number == number), "stop")

    def changed(self) -> object:
        """A value that changes whenever the queue is written."""
        try:
            state = self.path.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_ino, state.st_size

    def save_progress(self, progress: JobProgress) -> None:
        """Write progress.json for other processes. Ignores errors of the disk: no song depends on it."""
        temporary = self.folder / f".progress.{secrets.token_hex(4)}.tmp"
        with contextlib.suppress(OSError, LibraryError):
            try:
                temporary.write_text(json.dumps(asdict(progress)), encoding="utf-8")
                files.replace(temporary, self.folder / "progress.json")
            finally:
                files.discard(temporary)

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Hold the worker's lock until the block ends. Raises LibraryError when any process holds it already."""
        with self._held("queue.lock"):
            held = _try_lock(self._lock_file("worker.lock"))
            if held is None:
                raise _occupied(self.folder)
        try:
            os.ftruncate(held, 0)
            os.write(held, str(os.getpid()).encode())
            with self._open() as jobs:
                jobs[:] = map(self._interrupted, jobs)
            yield
        finally:
            os.close(held)

    @contextlib.contextmanager
    def _open(self) -> Iterator[list[Job]]:
        """Yield the jobs to read or change under the queue's lock; writes them back if changed."""
        with self._held("queue.lock"):
            before = self._read()
            jobs = self._settled(before)
            yield jobs
            if jobs != before:
                last = max(self._last, *(job.number for job in jobs)) if jobs else self._last
                rows = [job.entry if isinstance(job, Damaged) else to_row(job) for job in jobs]
                content = {"format": FORMAT, "last": last, "jobs": rows}
                text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
                files.write_atomic(self.path, text.encode("utf-8", "surrogatepass"))

    def _settled(self, jobs: list[Job]) -> list[Job]:
        """The jobs with running ones marked interrupted if no worker lives."""
        if all(job.state is not State.RUNNING for job in jobs) or self._worker_lives():
            return list(jobs)
        return [self._interrupted(job) for job in jobs]

    def _interrupted(self, job: Job) -> Job:
        """The job, marked interrupted if it was running."""
        if job.state is not State.RUNNING:
            return job
        last = self._progress(job)
        return replace(job, state=State.INTERRUPTED, wish="", last=last and replace(last, state=State.INTERRUPTED))

    def _read(self) -> list[Job]:
        try:
            data = files.read_json(self.path, LARGEST_QUEUE)
            number = version(data, FORMAT)
            content = build(_Content, {name: value for name, value in data.items() if name in ("last", "jobs")})
            self._last = content.last
            jobs = [self._job(entry, place, number) for place, entry in enumerate(content.jobs, 1)]
            numbers = [job.number for job in jobs]
            return [
                self._damaged(content.jobs[i], i + 1, f"it has the number {job.number}, as another one does")
                if job.number and job.number in numbers[:i]
                else job
                for i, job in enumerate(jobs)
            ]
        except FileNotFoundError:
            self._last = 0
            return []
        except OSError as exc:
            raise LibraryError(
                f"{self.path} cannot be read: {exc.strerror or exc}.", "Check its permissions, and the disk."
            ) from exc
        except Newer as exc:
            raise LibraryError(
                f"{self.path} was written by a newer yuegp (format {exc}; this one reads {FORMAT}).",
                "Update yuegp to use this queue.",
            ) from exc
        except Fault as exc:
            raise LibraryError(
                f"{self.path} is damaged: {exc}.",
                "Move it away to begin an empty queue; the songs themselves are not in it.",
            ) from exc

    def _job(self, entry: Any, place: int, number: int) -> Job:
        try:
            job = build(Job, _migrated(entry, number))
            if not job.number:
                raise Fault("its number is 0, and jobs are counted from 1")
            return job
        except (Fault, RequestError) as exc:
            return self._damaged(entry, place, exc.what if isinstance(exc, RequestError) else str(exc))

    def _damaged(self, entry: Any, place: int, why: str) -> Damaged:
        """A `Damaged` job for an invalid entry, with its song if it names one."""
        song = entry.get("song") if isinstance(entry, dict) else None
        what = f"Entry {place} of {self.path} is damaged and was left as it is: {why.rstrip('.')}."
        hint = "Put the song into the queue again; `queue clear` takes this entry off the list."
        shown = song if isinstance(song, str) and "\0" not in song else ""
        return Damaged(0, shown, 0, state=State.FAILED, what=what, hint=hint, entry=entry)

    def _progress(self, job: Job) -> JobProgress | None:
        """Newest progress of a running job; `job.last` when there is none yet or it cannot be read."""
        try:
            progress = build(JobProgress, files.read_json(self.folder / "progress.json"))
        except (OSError, Fault):
            return job.last
        return progress if progress.job == job.number else job.last

    def _worker_lives(self) -> bool:
        held = _try_lock(self._lock_file("worker.lock"))
        if held is not None:
            os.close(held)
        return held is None

    @contextlib.contextmanager
    def _held(self, name: str) -> Iterator[None]:
        """Wait for a lock and hold it, only as long as writing a file takes. Raises LibraryError after
        `PATIENCE_SECONDS`."""
        path = self._lock_file(name)
        began = time.monotonic()
        while (held := _try_lock(path)) is None:
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise LibraryError(
                    f"Another process has been holding {path} for {PATIENCE_SECONDS:.0f} s.",
                    "End the process that hangs, then try again.",
                )
            time.sleep(0.002)
        try:
            yield
        finally:
            os.close(held)

    def _lock_file(self, name: str) -> Path:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise LibraryError(
                f"{self.folder} cannot be created: {exc.strerror or exc}.", "Set YUEGP_HOME to a folder of yours."
            ) from exc
        return self.folder / name


def _migrated(entry: Any, number: int) -> Any:
    """An entry of format `number` in the newest one."""
    if number < 3 and isinstance(entry, dict) and "together" in entry:
        entry = {("batch_takes" if name == "together" else name): value for name, value in entry.items()}
    return entry


def _try_lock(path: Path) -> int | None:
    """Open and lock a file; closing it releases the lock. None while another process holds it. On disks without locks
    every process gets it: keep the queue on a local disk."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as exc:
        raise LibraryError(
            f"{path} cannot be written: {exc.strerror or exc}.", "Check the permissions of its folder, and the disk."
        ) from exc
    try:
        lock_handle(handle)
        os.lseek(handle, 0, os.SEEK_SET)
        return handle
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise


def _occupied(folder: Path) -> LibraryError:
    try:
        who = f"Process {int(files.read_bytes(folder / 'worker.lock', 20))}"
    except (OSError, ValueError):
        who = "Another process"
    return LibraryError(
        f"{who} is already making music here ({folder}).",
        "One at a time has the memory: add --queue to line yours up, and it is made next.",
    )


def _find(jobs: list[Job], number: int) -> Job:
    for job in jobs:
        if job.number == number and not isinstance(job, Damaged):
            return job
    known = ", ".join(str(job.number) for job in jobs if not isinstance(job, Damaged)) or "none"
    raise RequestError(f"There is no job {number} in the queue.", f"Jobs in the queue: {known}.")


def _put(jobs: list[Job], job: Job) -> Job:
    """Replace the job of the same number by `job`. Returns it."""
    jobs[[other.number for other in jobs].index(job.number)] = job
    return job


def _paused(job: Job) -> Job:
    return replace(job, wish=job.wish or "pause") if job.state is State.RUNNING else replace(job, state=State.PAUSED)


def _resumed(job: Job) -> Job:
    if job.state is State.RUNNING:
        return replace(job, wish="")
    return replace(job, state=State.WAITING, what="", hint="", trace="", wish="")


def _cannot(done: str, job: Job) -> RequestError:
    hint = "`queue clear` takes finished jobs off the list." if job.state in OVER else "`queue list` shows all jobs."
    return RequestError(f"Job {job.number} is {job.state} and cannot be {done}.", hint)
