"""The queue: which takes are to be made, in which order. The one that makes them is in `worker.py`.

    YUEGP_HOME/queue/
      queue.json           format number, the jobs in order
      progress.json        how far the running job is, twice a second; not flushed: it may be lost
      queue.lock           held while queue.json is changed      worker.lock   held by the worker, its process inside

A job is only a pointer to a take that exists: what is made lies in the song's folder, so removing a job, or losing the
whole queue, loses no music. Any number of processes may look at the queue and change it; a wish to stop or to pause a
running job is written there, and the worker reads it at every event. A job that is marked as running while no worker
lives was interrupted: it says so, and waits to be resumed by somebody.
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
"""Bytes of queue.json: thousands of jobs that failed, each with a trace."""

PATIENCE_SECONDS = 30.0
"""How long the queue may be held by another process, which needs some milliseconds."""


class State(StrEnum):
    """What a job is doing."""

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
"""Jobs that have a place in the order; the others run or are over."""

OVER = (State.DONE, State.FAILED, State.STOPPED)


@dataclass(frozen=True)
class JobProgress:
    """How far a job is, as of its last event."""

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
    """Seconds since the job was taken up."""
    eta: Seconds | None = None
    """Seconds until the whole song is done, counted from this event; None while nobody can say."""
    ready: tuple[Count, ...] = field(default=(), metadata=NEEDED)
    """Sections that are written, counted from 0."""
    note: str = ""
    """The newest thing the user should know, such as that memory ran out and how it goes on."""


@dataclass(frozen=True)
class Job:
    """One take to be made. Times are ISO 8601, UTC."""

    number: Count
    song: Plain
    """The song's folder."""
    take: TakeNumber
    device: str = "auto"
    wishes: ModelOptions = ANY
    batch_takes: tuple[TakeNumber, ...] = ()
    """Takes, this one included, that were begun together and want the same section, each with a seed of its own:
    whichever is made first writes that section for all of them, in one batch."""
    state: State = field(default=State.WAITING, metadata=NEEDED)
    created: str = ""
    started: str = ""
    finished: str = ""
    what: str = ""
    """Why it failed, and ..."""
    hint: str = ""
    """... what to do about it."""
    trace: str = ""
    """Where the program failed, for a bug report; empty when the failure is one that we know."""
    wish: Wish = ""
    last: JobProgress | None = field(default=None, metadata=NEEDED)


@dataclass(frozen=True)
class Damaged(Job):
    """An entry of queue.json that is no job: it stands among those that failed, with the reason, until they are taken
    off the list, and meanwhile is written back as it was. It has no number of its own."""

    entry: Any = field(default=None, hash=False)


def to_row(job: Job) -> dict[str, Any]:
    """A job as JSON-ready values."""
    row = asdict(job)
    row.pop("entry", None)
    return row


# The queue


@dataclass(frozen=True)
class _Content:
    """What queue.json holds besides its format."""

    last: Count
    jobs: tuple[Any, ...]


class Queue:
    """The jobs of one home. Every call reads what is on disk; any number of these may be used at once."""

    def __init__(self, home: Path | None = None) -> None:
        self.folder = (home or paths.home()).absolute() / "queue"
        self.path = self.folder / "queue.json"
        self._last = 0  # highest number given so far, as of the latest reading: numbers are not used again

    def jobs(self) -> list[Job]:
        """All jobs, in order."""
        if not self.path.exists():
            return []
        with self._held("queue.lock"):
            jobs = self._settled(self._read())
        return [replace(job, last=self._progress(job)) if job.state is State.RUNNING else job for job in jobs]

    def job(self, number: int) -> Job:
        """One job. RequestError when there is none of that number."""
        return _find(self.jobs(), number)

    def add(
        self,
        song: Path | str,
        take: int,
        device: str = "auto",
        wishes: ModelOptions = ANY,
        batch_takes: tuple[int, ...] = (),
    ) -> Job:
        """Put a take at the end of the queue. One that waits, runs or is paused already is not added twice."""
        folder = Path(song).absolute()
        store.open_song(folder).take(take)
        with self._open() as jobs:
            for job in jobs:
                if (job.song, job.take) == (str(folder), take) and job.state not in (*OVER, State.INTERRUPTED):
                    return job
            jobs.append(Job(self._last + 1, str(folder), take, device, wishes, batch_takes, created=store.now()))
            return jobs[-1]

    def move(self, number: int, position: int) -> Job:
        """Give a job that is still to come another place among those: 1 is the first."""
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
        """Take a job that is still to come off the queue, or ask a running one to stop. What it made stays."""
        with self._open() as jobs:
            job = _find(jobs, number)
            if job.state is State.RUNNING:
                return _put(jobs, replace(job, wish="stop"))
            if job.state not in TO_COME:
                raise _cannot("cancelled", job)
            jobs.remove(job)
            return replace(job, state=State.STOPPED)

    def pause(self, number: int) -> Job:
        """Leave a waiting job out until it is resumed; a running one stops and gives the memory back."""
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
        """Let a job go on that was paused, interrupted or stopped, or has failed."""
        with self._open() as jobs:
            job = _find(jobs, number)
            if job.state is State.DONE:
                raise _cannot("resumed", job)
            return _put(jobs, _resumed(job))

    def resume_all(self) -> list[Job]:
        """Let every job go on that was paused or interrupted."""
        with self._open() as jobs:
            chosen = [job for job in jobs if job.state in (State.PAUSED, State.INTERRUPTED) or job.wish == "pause"]
            return [_put(jobs, _resumed(job)) for job in chosen]

    def clear(self) -> list[Job]:
        """Take all jobs off the list that are over; returns them."""
        with self._open() as jobs:
            over = [job for job in jobs if job.state in OVER]
            jobs[:] = [job for job in jobs if job.state not in OVER]
            return over

    # For the worker

    def claim(self) -> Job | None:
        """The next waiting job, marked as running. What is over of those it was begun with needs nothing any more."""
        with self._open() as jobs:
            job = next((job for job in jobs if job.state is State.WAITING), None)
            if job is None:
                return None
            wanted = {other.take for other in jobs if other.song == job.song and other.state not in OVER}
            takes = tuple(take for take in job.batch_takes if take in wanted)
            job = replace(_resumed(job), batch_takes=takes, state=State.RUNNING, started=store.now(), finished="")
            return _put(jobs, job)

    def finish(self, job: Job) -> None:
        """Write down how a running job ended."""
        with self._open() as jobs:
            if any(other.number == job.number for other in jobs):
                _put(jobs, replace(job, wish="", finished=store.now()))

    def wish(self, number: int) -> Wish:
        """What the running job has been asked to do. A job that is gone is to stop."""
        return next((job.wish for job in self.jobs() if job.number == number), "stop")

    def changed(self) -> object:
        """A value that is another one once the queue has been written again."""
        try:
            state = self.path.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_ino, state.st_size

    def save_progress(self, progress: JobProgress) -> None:
        """For other processes to see. Left undone when the disk does not want to: no song depends on it."""
        temporary = self.folder / f".progress.{secrets.token_hex(4)}.tmp"
        with contextlib.suppress(OSError, LibraryError):
            try:
                temporary.write_text(json.dumps(asdict(progress)), encoding="utf-8")
                files.replace(temporary, self.folder / "progress.json")
            finally:
                files.discard(temporary)

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Be the one worker of this queue until the block ends. LibraryError when another process is, or this one."""
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
        """The jobs, to be looked at and changed; written back if they were. Nobody else writes meanwhile."""
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
        """The jobs as they are: what no worker works on is not running, whatever is written."""
        if all(job.state is not State.RUNNING for job in jobs) or self._worker_lives():
            return list(jobs)
        return [self._interrupted(job) for job in jobs]

    def _interrupted(self, job: Job) -> Job:
        """A job left by a worker that died; any other as it is."""
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
        """An entry that is no job, in the place of one. What it says of its song is shown where it says that."""
        song = entry.get("song") if isinstance(entry, dict) else None
        what = f"Entry {place} of {self.path} is damaged and was left as it is: {why.rstrip('.')}."
        hint = "Put the song into the queue again; `queue clear` takes this entry off the list."
        shown = song if isinstance(song, str) and "\0" not in song else ""
        return Damaged(0, shown, 0, state=State.FAILED, what=what, hint=hint, entry=entry)

    def _progress(self, job: Job) -> JobProgress | None:
        """The last progress of a running job; None when there is none yet or it cannot be read."""
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
        """Wait for a lock and hold it; it is never held for longer than a file is written."""
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
    """The file, open and locked until it is closed; None while another has it. On disks that know no locks everybody
    gets it: keep the queue on a disk of your own."""
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
    """The job in the place of the one of its number."""
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
