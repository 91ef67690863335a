"""The queue and its worker: order, stopping, pausing, failures, crashes, several processes; one real song at the end.

What a job does is played by small functions that give events and wait for permission; clocks are counted, not read."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from yuegp import files
from yuegp.errors import Cancelled, LibraryError, RequestError
from yuegp.generation.options import ANY, ModelOptions
from yuegp.generation.plan import Event, ProgressCallback
from yuegp.jobs import eta
from yuegp.jobs import worker as working
from yuegp.jobs.queue import FORMAT, Job, JobProgress, Queue, State, to_row
from yuegp.jobs.worker import Feed, Worker
from yuegp.library import store
from yuegp.song.schema import Section, SongRequest, Stage, TakeInfo

PATIENCE = 30.0
"""Seconds after which a test that waits for another thread has failed."""


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "a home")


@pytest.fixture
def song(tmp_path: Path) -> Callable[[], Path]:
    """A song folder with one take that is not begun."""

    def make() -> Path:
        request = SongRequest((Section("verse", "la"),) * 2, "pop", section_seconds=6)
        made = store.create(request, tmp_path / "my songs")
        made.new_take(TakeInfo(1, made.request))
        return made.folder

    return make


def event(done: int, section: int = 1, stage: str = "writing") -> Event:
    return Event(stage, f"section {section} of 2", done, 1200, "ids", done)


def quick(job: Job, watch: ProgressCallback) -> None:
    watch(event(100))
    watch(event(700, section=2))


def worker(queue: Queue, sing: working.Sing = quick, **changes: Any) -> Worker:
    return Worker(queue, sing, **{"forecast": lambda job: None, "idle": 0.01, **changes})


def states(queue: Queue) -> list[str]:
    return [str(job.state) for job in queue.jobs()]


class Stepwise:
    """A job that gives an event whenever it is allowed to, and says that it has begun."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, job: Job, watch: ProgressCallback) -> None:
        watch(event(2))
        self.begun.release()
        for done in itertools.count(4, 2):
            assert self.go.acquire(timeout=PATIENCE)
            watch(event(done))


# Order


def test_jobs_run_in_order_and_stay_on_the_list(queue: Queue, song: Callable[[], Path]) -> None:
    made: list[tuple[str, int]] = []
    folders = [song(), song(), song()]
    for folder in folders:
        queue.add(folder, 1)
    queue.move(3, 1)
    worker(queue, lambda job, watch: made.append((job.song, job.take))).run()
    assert made == [(str(folders[i]), 1) for i in (2, 0, 1)]
    assert states(queue) == ["done"] * 3
    done = queue.jobs()[0]
    assert done.number == 3 and done.started and done.finished >= done.started >= done.created
    json.dumps(to_row(done))


@pytest.mark.parametrize(("position", "order"), [(1, [3, 1, 2]), (2, [1, 3, 2]), (3, [1, 2, 3]), (99, [1, 2, 3])])
def test_a_job_can_be_moved(queue: Queue, song: Callable[[], Path], position: int, order: list[int]) -> None:
    for _ in range(3):
        queue.add(song(), 1)
    queue.move(3, position)
    assert [job.number for job in queue.jobs()] == order


def test_places_are_counted_among_jobs_that_are_to_come(queue: Queue, song: Callable[[], Path]) -> None:
    queue.add(song(), 1)
    worker(queue).run()
    for _ in range(2):
        queue.add(song(), 1)
    queue.move(3, 1)
    assert [job.number for job in queue.jobs()] == [1, 3, 2]
    with pytest.raises(RequestError, match="Job 1 is done and cannot be moved"):
        queue.move(1, 1)


def test_a_take_is_queued_once_and_numbers_are_never_used_again(queue: Queue, song: Callable[[], Path]) -> None:
    folder = song()
    assert queue.add(folder, 1) == queue.add(str(folder), 1)
    worker(queue).run()
    assert [job.number for job in queue.clear()] == [1]
    assert queue.jobs() == []
    assert queue.add(folder, 1).number == 2


def test_what_does_not_exist_is_refused(queue: Queue, song: Callable[[], Path], tmp_path: Path) -> None:
    assert queue.jobs() == [] and not queue.folder.exists()
    with pytest.raises(LibraryError, match="is not a song"):
        queue.add(tmp_path / "nothing", 1)
    with pytest.raises(LibraryError, match="has no take 2"):
        queue.add(song(), 2)
    queue.add(song(), 1)
    with pytest.raises(RequestError, match="There is no job 7 in the queue") as caught:
        queue.cancel(7)
    assert "1" in caught.value.hint


# Stop and pause


def test_a_waiting_job_is_cancelled_by_taking_it_off(queue: Queue, song: Callable[[], Path]) -> None:
    queue.add(song(), 1)
    queue.add(song(), 1)
    assert queue.cancel(1).state is State.STOPPED
    assert [job.number for job in queue.jobs()] == [2]
    worker(queue).run()
    with pytest.raises(RequestError, match="Job 2 is done and cannot be cancelled"):
        queue.cancel(2)


@pytest.mark.parametrize(("ask", "state"), [("cancel", "stopped"), ("pause", "paused")])
def test_a_running_job_ends_at_its_next_event_and_the_next_one_begins(
    queue: Queue, song: Callable[[], Path], ask: str, state: str
) -> None:
    """Asked through another Queue object, as another process would."""
    first, second = Stepwise(), Stepwise()
    for _ in range(2):
        queue.add(song(), 1)
    crew = worker(queue, lambda job, watch: (first, second)[job.number - 1](job, watch))
    crew.start()
    assert first.begun.acquire(timeout=PATIENCE)
    assert states(queue) == ["running", "waiting"]
    getattr(Queue(queue.folder.parent), ask)(1)
    first.go.release()
    assert second.begun.acquire(timeout=PATIENCE)
    assert states(queue) == [state, "running"]
    job = queue.job(1)
    assert job.last and (job.last.state, job.last.done, job.wish) == (state, 4, "")
    crew._ending.set()
    second.go.release()
    crew.stop()
    assert states(queue) == [state, "interrupted"]


def test_a_paused_job_waits_until_it_is_resumed(queue: Queue, song: Callable[[], Path]) -> None:
    for _ in range(3):
        queue.add(song(), 1)
    queue.pause(2)
    worker(queue).run()
    assert states(queue) == ["done", "paused", "done"]
    assert queue.resume(2).state is State.WAITING
    worker(queue).run()
    assert states(queue) == ["done"] * 3
    with pytest.raises(RequestError, match="Job 2 is done and cannot be resumed"):
        queue.resume(2)


def test_all_jobs_can_be_paused_and_resumed(queue: Queue, song: Callable[[], Path]) -> None:
    for _ in range(2):
        queue.add(song(), 1)

    def pause_all(job: Job, watch: ProgressCallback) -> None:
        queue.pause_all()
        watch(event(2))

    worker(queue, pause_all).run()
    assert states(queue) == ["paused", "paused"]
    assert [job.state for job in queue.resume_all()] == [State.WAITING] * 2
    worker(queue).run()
    assert states(queue) == ["done", "done"]


def test_a_wish_to_pause_can_be_taken_back(queue: Queue, song: Callable[[], Path]) -> None:
    queue.add(song(), 1)

    def undecided(job: Job, watch: ProgressCallback) -> None:
        queue.pause(1)
        queue.resume(1)
        watch(event(2))

    worker(queue, undecided).run()
    assert states(queue) == ["done"]


# Failures


def test_a_failing_job_is_written_down_and_the_next_one_runs(queue: Queue, song: Callable[[], Path]) -> None:
    def failing(job: Job, watch: ProgressCallback) -> None:
        if job.number == 1:
            raise RequestError("The tags are empty.", "Add tags.")
        if job.number == 2:
            raise ZeroDivisionError("a fault of ours")

    for _ in range(3):
        queue.add(song(), 1)
    worker(queue, failing).run()
    known, unknown, fine = queue.jobs()
    assert (known.state, known.what, known.hint, known.trace) == ("failed", "The tags are empty.", "Add tags.", "")
    assert unknown.state == "failed" and "ZeroDivisionError: a fault of ours" in unknown.what and unknown.hint
    assert 'raise ZeroDivisionError("a fault of ours")' in unknown.trace
    assert fine.state == "done"
    again = queue.resume(2)
    assert (again.state, again.what, again.trace) == ("waiting", "", "")


def test_a_song_that_was_removed_fails_with_a_sentence(queue: Queue, song: Callable[[], Path]) -> None:
    import shutil

    folder = song()
    queue.add(folder, 1)
    shutil.rmtree(folder)
    Worker(queue).run()
    job = queue.job(1)
    assert job.state == "failed" and str(folder) in job.what and job.hint and not job.trace


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cancelled])
def test_ctrl_c_interrupts_the_job_and_ends_the_worker(
    queue: Queue, song: Callable[[], Path], stop: type[BaseException]
) -> None:
    for _ in range(2):
        queue.add(song(), 1)

    def press(event: Event) -> None:
        raise stop

    with pytest.raises(stop):
        worker(queue).run(press)
    assert states(queue) == ["interrupted", "waiting"]
    worker(queue).run()
    assert states(queue) == ["interrupted", "done"], "an interrupted job is not restarted unasked"


def test_a_full_disk_leaves_the_queue_as_it_was(
    queue: Queue, song: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.add(song(), 1)
    other = song()

    def full(path: Path, data: bytes) -> None:
        raise LibraryError(f"{path} cannot be written: the disk is full.", "Free some space.")

    monkeypatch.setattr(files, "write_atomic", full)
    with pytest.raises(LibraryError, match="disk is full"):
        queue.add(other, 1)
    monkeypatch.undo()
    assert [job.number for job in queue.jobs()] == [1]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is damaged"), ('{"format": 1, "jobs": []}', "is damaged"), ('{"format": 9}', "a newer yuegp")],
)
def test_a_damaged_or_newer_queue_is_named_and_left_alone(queue: Queue, content: str, said: str) -> None:
    queue.folder.mkdir(parents=True)
    queue.path.write_text(content)
    for attempt in (queue.jobs, lambda: worker(queue).run()):
        with pytest.raises(LibraryError, match=said) as caught:
            attempt()
        assert str(queue.path) in caught.value.what and caught.value.hint
    assert queue.path.read_text() == content


# How the models are to be held, and takes that were begun together


def test_wishes_are_kept_with_the_job(queue: Queue, song: Callable[[], Path]) -> None:
    wishes = ModelOptions("torch", "nf4")
    folder = song()
    queue.add(folder, 1, "cpu", wishes, (1, 2))
    (job,) = Queue(queue.folder.parent).jobs()
    assert (job.device, job.wishes, job.batch_takes) == ("cpu", wishes, (1, 2))
    for file in folder.rglob("*.json"):
        assert "nf4" not in file.read_text(), "it belongs to the machine, not to the song"


def test_queues_of_older_formats_are_read(queue: Queue, song: Callable[[], Path]) -> None:
    queue.add(song(), 1, batch_takes=(1, 2))
    data = json.loads(queue.path.read_text())
    entry = data["jobs"][0]
    entry["together"] = entry.pop("batch_takes")
    queue.path.write_text(json.dumps(data | {"format": 2}))
    (job,) = queue.jobs()
    assert job.batch_takes == (1, 2)
    del entry["wishes"], entry["together"]
    queue.path.write_text(json.dumps(data | {"format": 1}))
    (job,) = queue.jobs()
    assert (job.wishes, job.batch_takes) == (ANY, ())
    queue.pause(1)
    assert json.loads(queue.path.read_text())["format"] == FORMAT == 3


@pytest.mark.parametrize(
    ("entry", "wrong", "said"),
    [
        ("wishes", {"engine": "auto", "weights": "auto", "kv": "q2"}, "kv is 'q2', not one of auto, fp16, q8, q6, q4"),
        ("wishes", {"engine": "exl2", "weights": "nf4", "kv": "auto"}, "cannot go together"),
        ("take", "1", "take is '1', not a whole number"),
        ("take", True, "take is True, not a whole number"),
        ("number", -1, "number is -1, and may be 0 to"),
        ("number", 0, "its number is 0"),
        ("number", 1, "it has the number 1, as another one does"),
        ("state", "lost", "state is 'lost', not one of waiting"),
        ("song", "a\0b", "song holds a NUL character"),
        ("song", ["a"], "song is a list, not a text"),
        ("batch_takes", [1, {}], r"batch_takes\[1\] is an object, not a whole number"),
        ("last", {"job": 2}, "last has no entry called 'state'"),
        ("eta", 1, "an entry that is not known: 'eta'"),
        (None, [1, 2], "is a list, not an object"),
    ],
)
def test_a_damaged_job_is_named_and_stops_no_other(
    queue: Queue, song: Callable[[], Path], entry: str | None, wrong: Any, said: str
) -> None:
    queue.add(song(), 1)
    queue.add(folder := song(), 1)
    data = json.loads(queue.path.read_text())
    damaged = wrong if entry is None else {**data["jobs"][1], entry: wrong}
    queue.path.write_text(json.dumps({**data, "jobs": [data["jobs"][0], damaged]}))
    whole, named = queue.jobs()
    assert (whole.number, whole.state, named.state) == (1, State.WAITING, State.FAILED)
    assert re.search(said, named.what) and str(queue.path) in named.what and named.hint
    with pytest.raises(RequestError, match="no job 0"):
        queue.resume(0)
    assert queue.add(folder, 1).number == 3 and (claimed := queue.claim()) and claimed.number == 1
    assert json.loads(queue.path.read_text())["jobs"][1] == damaged, "it is written back as it was"
    json.dumps([to_row(job) for job in queue.jobs()])
    assert [job.number for job in queue.clear()] == [0] and [job.number for job in queue.jobs()] == [1, 3]


def test_who_was_taken_off_the_queue_is_not_written_along(queue: Queue, song: Callable[[], Path]) -> None:
    folder = song()
    opened = store.open_song(folder)
    for _ in range(2):
        opened.new_take(TakeInfo(0, opened.request))
    for take in (1, 2, 3):
        queue.add(folder, take, batch_takes=(1, 2, 3))
    queue.cancel(2)
    queue.pause(3)
    seen: list[tuple[int, ...]] = []
    worker(queue, lambda job, watch: seen.append(job.batch_takes)).run()
    assert seen == [(1, 3)]


# Several processes


CHILD = """
import itertools
import sys
from pathlib import Path
from yuegp.jobs.queue import Queue
from yuegp.jobs.worker import Worker
from yuegp.generation.plan import Event

def sing(job, watch):
    watch(Event("writing", "section 2 of 2", 602, 1200, "ids", 602))
    print("begun", flush=True)
    sys.stdin.read()

seconds = itertools.count().__next__
Worker(Queue(Path(sys.argv[1])), sing, forecast=lambda job: None, clock=seconds).run()
"""


@pytest.fixture
def child(queue: Queue, song: Callable[[], Path]) -> Any:
    """A worker in another process, in the middle of job 1."""
    queue.add(song(), 1)
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(queue.folder.parent)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.communicate(timeout=PATIENCE)


def test_a_job_whose_process_died_is_interrupted_and_waits_to_be_resumed(queue: Queue, child: Any) -> None:
    running = queue.job(1)
    assert running.state is State.RUNNING
    assert running.last and (running.last.done, running.last.what) == (602, "section 2 of 2")
    child.kill()
    child.wait(timeout=PATIENCE)
    lost = queue.job(1)
    assert lost.state is State.INTERRUPTED and lost.last and lost.last.done == 602
    made: list[int] = []
    crew = worker(queue, lambda job, watch: made.append(job.number))
    crew.run()
    assert not made and states(queue) == ["interrupted"]
    queue.resume(1)
    crew.run()
    assert made == [1] and states(queue) == ["done"]


def test_there_is_one_worker_per_home(queue: Queue, child: Any) -> None:
    for attempt in (worker(queue).run, worker(queue).start):
        with pytest.raises(LibraryError, match=f"Process {child.pid} is already making music here"):
            attempt()
    assert states(queue) == ["running"], "the refused worker touched nothing"
    child.communicate("", timeout=PATIENCE)
    assert child.returncode == 0 and states(queue) == ["done"]
    worker(queue).run()


def test_a_second_worker_in_the_same_process_is_refused_too(queue: Queue) -> None:
    crew = worker(queue)
    crew.start()
    with pytest.raises(LibraryError, match=f"Process {os.getpid()} is already"):
        worker(queue).run()
    crew.stop()
    worker(queue).run()


def test_many_clients_at_once_lose_no_job(queue: Queue, song: Callable[[], Path]) -> None:
    """Inherited fault: two tabs share one request."""
    folders = [song() for _ in range(8)]
    clients = [
        threading.Thread(target=lambda folder=folder: Queue(queue.folder.parent).add(folder, 1)) for folder in folders
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(PATIENCE)
    found = queue.jobs()
    assert sorted(job.song for job in found) == sorted(map(str, folders))
    assert sorted(job.number for job in found) == list(range(1, 9))


def test_a_worker_that_stays_takes_up_what_others_add(queue: Queue, song: Callable[[], Path]) -> None:
    crew = worker(queue)
    feed = crew.subscribe()
    crew.start()
    Queue(queue.folder.parent).add(song(), 1)
    seen = list(itertools.takewhile(lambda progress: progress.state is State.RUNNING, feed))
    assert [progress.done for progress in seen] == [0, 100, 700]
    crew.stop()
    assert states(queue) == ["done"]


# Events


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_events_carry_rate_elapsed_time_and_what_is_left(queue: Queue, song: Callable[[], Path]) -> None:
    clock = Clock()
    lines = {"writing": eta.LinearCost(0, 0.05), "refining": eta.LinearCost(0, 0.0), "sound": eta.LinearCost(0, 0.02)}

    def steady(job: Job, watch: ProgressCallback) -> None:
        for done in range(20, 1201, 20):
            clock.now += 1
            watch(event(done, section=1 + (done > 600)))

    queue.add(song(), 1)
    crew = Worker(queue, steady, lambda job: (eta.Costs(lines), eta.Workload(600, 2)), clock)
    feed = crew.subscribe(size=1000)
    crew.run()
    half = next(progress for progress in feed if progress.done == 620)
    assert (half.rate, half.elapsed, half.ready) == (20.0, 31.0, (0,))
    assert half.eta == pytest.approx(29 + 12)
    assert (half.stage, half.what, half.total, half.unit) == ("writing", "section 2 of 2", 1200, "ids")
    last = list(feed)[-1]
    assert (last.state, last.eta, last.done) == ("done", None, 1200)
    assert queue.job(1).last == last


def test_progress_is_saved_at_most_twice_a_second(
    queue: Queue, song: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, saved, told = Clock(), [], 0

    def fast(job: Job, watch: ProgressCallback) -> None:
        for done in range(2, 602, 2):
            clock.now += 1 / 128
            watch(event(done))

    monkeypatch.setattr(queue, "save_progress", saved.append)
    queue.add(song(), 1)
    crew = worker(queue, fast, clock=clock)
    feed = crew.subscribe(size=1000)
    crew.run()
    told = len(list(feed))
    assert len(saved) == 5  # 300 / 128 seconds
    assert told == 2 + 24  # the beginning, the end, and at most ten a second


def test_a_listener_that_does_not_keep_up_hears_the_newest_and_holds_nobody_up() -> None:
    feed = Feed(size=3)
    for done in range(1000):
        feed.put(JobProgress(1, State.RUNNING, done=done))
    assert [feed.get(0).done for _ in range(3)] == [997, 998, 999]  # type: ignore[union-attr]
    assert feed.get(0) is None
    feed.close()
    assert list(feed) == []


def test_a_dropped_feed_is_forgotten(queue: Queue) -> None:
    import gc

    crew = worker(queue)
    feed = crew.subscribe()
    assert len(crew._feeds) == 1
    del feed
    gc.collect()
    assert len(crew._feeds) == 0


# The real thing


def test_two_songs_of_two_clients_are_made_stopped_and_resumed(tmp_path: Path) -> None:
    from tools.make_set import make_set

    model = str(make_set(tmp_path / "set", "tiny"))
    home = tmp_path / "home"
    folders = []
    for seed in (1, 2):
        request = SongRequest((Section("verse", "la"),) * 2, "pop", seed=seed, model=model, section_seconds=1)
        made = store.create(request, home / "songs")
        made.new_take(TakeInfo(1, made.request))
        folders.append(made.folder)
        Queue(home).add(made.folder, 1, "cpu")
    queue, crew = Queue(home), Worker(Queue(home))

    def stop_in_the_second_section(event: Event) -> None:
        if event.what.startswith("section 2") and queue.job(1).state is State.RUNNING:
            queue.cancel(1)

    feed = crew.subscribe(size=1000)
    crew.run(stop_in_the_second_section)
    assert states(queue) == ["stopped", "done"], [job.trace or job.what for job in queue.jobs()]
    first, second = (store.open_song(folder).take(1).info for folder in folders)
    assert len(first.spans) == 1 and first.stage is not Stage.RENDERED
    assert second.stage is Stage.RENDERED
    etas = [progress.eta for progress in feed if progress.job == 2 and progress.state is State.RUNNING]
    assert any(eta is not None for eta in etas)
    queue.resume(1)
    Worker(queue).run()
    resumed = store.open_song(folders[0]).take(1)
    assert resumed.info.stage is Stage.RENDERED and resumed.mix.exists()
    assert queue.job(1).last.ready == (0, 1)  # type: ignore[union-attr]
    assert (queue.job(1).last.stage, queue.job(1).last.done) == ("sound", queue.job(1).last.total)  # type: ignore
