"""Downloads checkpoints from the hub into our models folder: plan, fetch, resume after interruptions, verify.

`transfer` downloads single files. `locate.Pin` records what was verified, so that a resumed download keeps its commit.
`verify` and `codec.check_codec` check the structure afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from yuegp import files
from yuegp.checkpoints.safetensors import is_pointer
from yuegp.errors import LibraryError, ModelError
from yuegp.files import replace as replace_file
from yuegp.locks import song_lock
from yuegp.progress import Progress
from yuegp.units import file_size

from . import filenames, hub, pins
from .hub import HubFile, HubUnreachable, Listing, NotOffered, RevisionGone
from .locate import Pin, files_named, own_folder, read_pin, unfinished, write_pin
from .registry import Checkpoint
from .transfer import Digest, Transfer, cannot, part_of, set_aside, writing
from .xet import Ways

PARALLEL = 4
"""Files downloaded at the same time."""

RESERVE = 200_000_000
"""Bytes that a download leaves free on the disk."""

LINGER = 2.0
"""Seconds a stopped download waits for its threads."""

STALLED = 60.0
"""Seconds without a byte after which a download fails."""


@dataclass(frozen=True)
class Plan:
    """The files to download for one checkpoint, before anything is done."""

    checkpoint: Checkpoint
    folder: Path
    commit: str
    files: tuple[HubFile, ...]
    missing: int
    """Bytes still to download; files linked from other programs reduce it."""

    @property
    def total(self) -> int:
        return sum(file.size for file in self.files)


def plan(checkpoint: Checkpoint, newest: bool | None = None) -> Plan:
    """Ask the hub which files to download: at the commit of an unfinished download, else the pinned one, else the
    newest.

    `newest` (None: YUEGP_NEWEST=1) skips the first two. Raises HubUnreachable without an answer, NotOffered when the
    hub does not have this checkpoint, and another ModelError when it has something else in its place."""
    if not checkpoint.repo:
        raise ModelError(f"{checkpoint.id} is a folder of yours, not a repository.", "Put the folder back.")
    pin, folder = read_pin(checkpoint), own_folder(checkpoint)
    commit = pin.commit if pin and (pin.repo, pin.revision) == (checkpoint.repo, checkpoint.revision) else None
    if newest:
        commit = None
    elif newest is None:
        newest = os.environ.get("YUEGP_NEWEST", "") not in ("", "0")
    if not newest:
        commit = commit or checkpoint.commit
    listing = _listing(checkpoint, commit)
    held = not newest and checkpoint.commit in (None, listing.commit)
    files = tuple(_wanted(checkpoint, listing, path, held) for path in _paths(checkpoint, listing))
    return Plan(checkpoint, folder, listing.commit, files, sum(f.size - _present(folder / f.name, f) for f in files))


def _listing(checkpoint: Checkpoint, commit: str | None) -> Listing:
    """The hub's listing at `commit`, or with None at the checkpoint's branch."""
    try:
        listing = hub.listing(checkpoint.repo, commit or checkpoint.revision)
    except RevisionGone as exc:
        if not commit or commit == checkpoint.revision:
            raise
        why = "this yuegp is made for" if commit == checkpoint.commit else "a download was begun with"
        raise ModelError(
            f"The hub has {checkpoint.repo}, but no revision {commit[:12]} of it any more, which {why}.",
            f"Take the newest instead: {_again(checkpoint)} --newest",
        ) from exc
    if commit and listing.commit != commit:
        raise ModelError(
            f"{hub.endpoint()} has revision {listing.commit[:12]} of {checkpoint.repo} in the place of {commit[:12]}.",
            f"If HF_ENDPOINT names a mirror, unset it. Or take what it has: {_again(checkpoint)} --newest",
        )
    return listing


def _paths(checkpoint: Checkpoint, listing: Listing) -> list[str]:
    """The files needed of a repository. Raises NotOffered when some are missing, ModelError for names that cannot be
    written here."""
    try:
        paths = checkpoint.wanted(sorted(listing.files.keys() | listing.odd.keys()))
    except ModelError as exc:
        raise NotOffered(exc.what, exc.hint) from exc
    faults = [listing.odd[path] for path in paths if path in listing.odd]
    if same := filenames.collisions(paths):
        faults.append(f"{' and '.join(same[:3])}, which are one file on Windows and macOS")
    if faults:
        raise ModelError(
            f"The repository {checkpoint.repo} lists {faults[0]}.",
            "Nothing was downloaded. Tell its owner, or choose another copy: python launch.py models list --all.",
        )
    return paths


def _wanted(checkpoint: Checkpoint, listing: Listing, path: str, held: bool) -> HubFile:
    """One file to download. With `held`, raises ModelError unless the hub announces the published checksum."""
    file = listing.files[path]
    if file.size == hub.UNKNOWN:
        file = hub.measured(listing.repo, listing.commit, file)
    known = pins.FILES.get(checkpoint.repo, {}).get(path) if held else None
    if known:
        said = file.sha256 or known.sha256
        if not said.startswith(known.sha256) or known.size not in (None, file.size):
            raise ModelError(
                f"{hub.endpoint()} has another {path} of {checkpoint.repo} than was published: {file.size:,} bytes, "
                f"checksum {said[:12]}… instead of {known.sha256[:12]}….",
                "If HF_ENDPOINT names a mirror, unset it. "
                f"If its owner has changed it and you trust that: {_again(checkpoint)} --newest",
            )
        file = replace(file, sha256=said)
    return replace(file, name=checkpoint.local(path), path=path)


def _present(path: Path, file: HubFile) -> int:
    for place in (path, part_of(path)):
        with contextlib.suppress(OSError):
            return min(place.stat().st_size, file.size)
    return 0


def check_space(plans: list[Plan]) -> int:
    """Free bytes where models are kept. Raises ModelError when they are too few for the plans."""
    missing, folder = sum(plan.missing for plan in plans), plans[0].folder.parent
    free = free_bytes(folder)
    if free < missing + RESERVE:
        raise ModelError(
            f"{file_size(missing)} are to be downloaded, and the disk of {folder} has {file_size(free)} free.",
            "Free some space, or set YUEGP_MODELS to a folder on another disk.",
        )
    return free


def free_bytes(folder: Path) -> int:
    """`files.free_bytes`, for a folder of models. ModelError where there is no disk."""
    free = files.free_bytes(folder.absolute())
    if free is None:
        raise ModelError(f"There is no disk for {folder}.", "Set YUEGP_MODELS to a folder that can exist.")
    return free


def get(checkpoint: Checkpoint, progress: Progress | None = None) -> Path:
    """Plan and fetch one checkpoint; its folder. For `progress` see `fetch`."""
    planned = plan(checkpoint)
    check_space([planned])
    return fetch(planned, progress)


def fetch(planned: Plan, progress: Progress | None = None, others: list[Path] | None = None) -> Path:
    """Download the plan's missing files, verify every checksum, and return the folder.

    Files that other programs already have (below `others`, or in the usual places) are linked instead of downloaded.
    ModelError: another process is at it, the disk is full or not writable, the hub refuses, a checksum is wrong (the
    file is kept aside under the name in the message). May be called again after any of them, and after `Cancelled`:
    what has arrived stays. `progress` counts bytes, some ten times a second, in the calling thread."""
    with writing(planned.folder):
        planned.folder.mkdir(parents=True, exist_ok=True)
    with locked(planned.folder):
        return _Fetch(planned, progress).run(others)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a model's folder. Raises ModelError that names the process holding it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(song_lock(folder, "downloaded"))
        except LibraryError as exc:
            raise ModelError(exc.what, exc.hint) from exc
        yield


@dataclass
class _Fetch:
    """State of one call of `fetch`: the missing files, and the bytes that have arrived."""

    plan: Plan
    progress: Progress | None
    stop: threading.Event = field(default_factory=threading.Event)
    counts: dict[str, int] = field(default_factory=dict)
    """Bytes on disk by file. One thread at a time writes each."""
    ends: queue.SimpleQueue[Exception | None] = field(default_factory=queue.SimpleQueue)
    """Each finished thread's exception, or None."""
    guard: threading.Lock = field(default_factory=threading.Lock)
    ways: Ways = field(default_factory=Ways)

    def run(self, others: list[Path] | None) -> Path:
        plan = self.plan
        pin = read_pin(plan.checkpoint)
        if pin is None or (pin.repo, pin.commit) != (plan.checkpoint.repo, plan.commit):
            pin = Pin(plan.checkpoint.repo, plan.checkpoint.revision, plan.commit)
        self.pin = pin
        self.counts = {file.name: 0 for file in plan.files}
        waiting = [file for file in plan.files if not self._is_there(file)]
        if waiting:
            pin.complete = False
            self._note()
            waiting = self._link(waiting, others)
        self._download(waiting)
        pin.files = {file.name: pin.files[file.name] for file in plan.files}
        pin.complete = True
        self._note()
        self._tell()
        return plan.folder

    def _note(self, file: HubFile | None = None, sha256: str = "") -> None:
        """Write the pin, with `file` added as verified."""
        with self.guard, writing(self.plan.folder):
            if file:
                self.pin.files[file.name] = (file.size, sha256)
            write_pin(self.plan.checkpoint, self.pin)

    def _is_there(self, file: HubFile) -> bool:
        """Whether a file is complete and verified; verifies a file of other origin now."""
        path = self.plan.folder / file.name
        try:
            if path.stat().st_size == file.size:
                if self.pin.files.get(file.name, (0, ""))[0] == file.size:
                    self.counts[file.name] = file.size
                    return True
                if self._matches(path, file):
                    return True
            if path.stat().st_size < file.size and not part_of(path).exists() and not is_pointer(path):
                replace_file(path, part_of(path))  # cut short: the final checksum tells whether its beginning is right
            else:
                set_aside(path, "replaced")
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise cannot(path, exc) from exc
        return False

    def _matches(self, path: Path, file: HubFile) -> bool:
        """Whether an existing file has the hub's checksum. Counts the bytes it reads, and can be stopped."""
        digest = Digest(file)
        with path.open("rb") as data:
            while block := data.read(1 << 22):
                digest.update(block)
                self.counts[file.name] += len(block)
                self._tell()
        if digest.wrong():
            self.counts[file.name] = 0
            return False
        self.pin.files[file.name] = (file.size, digest.sha256.hexdigest())
        return True

    def _link(self, waiting: list[HubFile], others: list[Path] | None) -> list[HubFile]:
        """Link files of the same name, size and checksum from other programs' folders. Returns those still missing."""
        large = {Path(file.name).name for file in waiting if file.sha256}
        found = files_named(large, others) if large else {}
        still = []
        for file in waiting:
            target = self.plan.folder / file.name
            for source in found.get(target.name, []) if file.sha256 else []:
                with contextlib.suppress(OSError):  # another program's file: if unreadable, it is downloaded
                    source = source.resolve()
                    if source.stat().st_size == file.size and self._matches(source, file):
                        self._place(source, target)
                        break
            else:
                still.append(file)
        return still

    def _place(self, source: Path, target: Path) -> None:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)  # stays when the other program removes its own
            except OSError:  # another disk, or one without hard links
                try:
                    target.symlink_to(source)
                except OSError:
                    shutil.copyfile(source, target)
        self._note()

    def _download(self, waiting: list[HubFile]) -> None:
        """Download files in a few threads while this one reports progress. The first failure stops all."""
        todo: queue.SimpleQueue[HubFile] = queue.SimpleQueue()
        for file in sorted(waiting, key=lambda file: file.size):  # configurations first: a wrong one shows at once
            todo.put(file)

        def work() -> None:
            try:
                while not self.stop.is_set():
                    self._one(todo.get_nowait())
            except queue.Empty:
                self.ends.put(None)
            except Exception as exc:  # raised in the calling thread
                self.ends.put(exc)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(PARALLEL, len(waiting)))]
        for thread in threads:
            thread.start()
        try:
            self._watch(len(threads))
        finally:
            self.stop.set()
            until = time.monotonic() + LINGER  # one that waits for the network writes nothing after `stop`
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))

    def _watch(self, running: int) -> None:
        seen, since = -1, time.monotonic()
        while running:
            with contextlib.suppress(queue.Empty):
                if failure := self.ends.get(timeout=0.1):
                    raise failure
                running -= 1
            self._tell()
            arrived = sum(self.counts.values())
            if arrived != seen:
                seen, since = arrived, time.monotonic()
            elif time.monotonic() - since > STALLED:
                raise HubUnreachable(
                    f"Nothing of {self.plan.checkpoint.repo} has arrived for {STALLED:.0f} seconds.",
                    "Check the connection and start again; what has arrived is kept.",
                )

    def _tell(self) -> None:
        if self.progress:
            self.progress(self.plan.checkpoint.id, sum(self.counts.values()), self.plan.total)

    def _one(self, file: HubFile) -> None:
        """Download one file and record it in the pin."""
        plan = self.plan

        def count(size: int) -> None:
            self.counts[file.name] = size

        target = plan.folder / file.name
        sha256 = Transfer(plan.checkpoint.repo, plan.commit, file, target, self.stop, count, self.ways).run()
        if sha256:
            self._note(file, sha256)


def check_pin(checkpoint: Checkpoint, folder: Path, progress: Progress | None = None) -> bool:
    """Compare a folder with the pin of its download; False without a pin. Raises ModelError for the first file that
    differs, and for a revision other than the wanted one."""
    pin = read_pin(checkpoint)
    if pin is None or folder != own_folder(checkpoint):
        return False
    if unfinished(checkpoint):
        raise ModelError(f"The download of {checkpoint.id} was not finished.", _again(checkpoint))
    if (pin.repo, pin.revision) != (checkpoint.repo, checkpoint.revision):
        raise ModelError(
            f"{folder} holds revision {pin.revision or 'main'} of {pin.repo}, not "
            f"{checkpoint.revision or 'main'} of {checkpoint.repo}.",
            f"Remove it (python launch.py models remove {checkpoint.id}) and get it again.",
        )
    total, done = sum(size for size, _ in pin.files.values()), 0
    for name, (size, wanted) in pin.files.items():
        digest = hashlib.sha256()
        try:
            with (folder / name).open("rb") as data:
                while block := data.read(1 << 22):
                    digest.update(block)
                    done += len(block)
                    if progress:
                        progress(checkpoint.id, done, total)
        except FileNotFoundError as exc:
            raise ModelError(f"{folder / name} is missing.", _again(checkpoint)) from exc
        except OSError as exc:
            raise cannot(folder / name, exc) from exc
        if digest.hexdigest() != wanted:
            raise ModelError(
                f"{folder / name} is not the file that was downloaded: its checksum is {digest.hexdigest()[:12]}… "
                f"instead of {wanted[:12]}… ({size:,} bytes).",
                f"Delete this file, then: {_again(checkpoint)}",
            )
    return True


def _again(checkpoint: Checkpoint) -> str:
    return f"python launch.py models get {checkpoint.id}"


@dataclass
class RateEstimator:
    """Estimates a download's speed and remaining time from progress reports; the caller passes the time."""

    window: float = 10.0
    samples: list[tuple[float, int]] = field(default_factory=list)

    def update(self, now: float, done: int) -> None:
        """Record `done` bytes at time `now`, in seconds of any clock."""
        self.samples.append((now, done))
        while len(self.samples) > 2 and now - self.samples[1][0] >= self.window:
            self.samples.pop(0)

    def rate(self) -> float | None:
        """Bytes per second over the last seconds; None while unknown."""
        if len(self.samples) < 2:
            return None
        (start, first), (end, last) = self.samples[0], self.samples[-1]
        return (last - first) / (end - start) if end > start and last > first else None

    def left(self, total: int) -> float | None:
        """Seconds until `total` bytes have arrived; None while unknown."""
        rate = self.rate()
        return (total - self.samples[-1][1]) / rate if rate else None
