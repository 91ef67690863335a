"""What every page works with: the songs folder, the queue and the two processes beside the page.

A browser names a song by its folder's name. Anything but the plain name of a folder in the songs folder is refused
before a file is touched."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from yuegp.errors import LibraryError, YueGPError
from yuegp.generation import memory
from yuegp.generation.options import ANY, ModelOptions
from yuegp.jobs.queue import OVER, Job, Queue, State
from yuegp.library import catalog
from yuegp.library.store import Song, Take

from . import machine
from .processes.downloader import DownloadProcess
from .processes.generator import GeneratorProcess


@dataclass(frozen=True)
class AppContext:
    """`root` holds the song folders. `worker` makes the queue's jobs; None where this page only shows them."""

    root: Path
    queue: Queue
    worker: GeneratorProcess | None = None
    downloader: DownloadProcess = field(default_factory=DownloadProcess)
    """Downloads models when the Set-up page asks for one."""

    def folder(self, name: str) -> Path:
        """The folder of the song called `name`. LibraryError for anything but the name of a song that is there."""
        plain = bool(name) and name == Path(name).name and name[0] != "." and not any(c in name for c in "/\\:\0")
        if not plain or not os.path.isfile(self.root / name / "song.json"):  # unlike Path.is_file, takes any length
            shown = name if len(name) <= 80 else name[:79] + "…"
            raise LibraryError(f"There is no song {shown!r} in the library.", "Choose one from the library.")
        return self.root / name

    def song(self, name: str) -> Song:
        """The song called `name`, opened. LibraryError also when it is damaged."""
        return catalog.get(self.root, str(self.folder(name)))

    def take(self, name: str, number: int) -> Take:
        """One take of a song. LibraryError when there is none of that number."""
        return self.song(name).take(number)

    def jobs(self, name: str | None = None) -> list[Job]:
        """The queue's jobs in order: all, or those of the song called `name`. A running one carries its progress."""
        return [job for job in self.queue.jobs() if name is None or self.name_of(job) == name]

    def known_jobs(self, name: str | None = None) -> list[Job]:
        """As `jobs`, but none when the queue cannot be read, so that pages still show songs. The Queue page says
        why."""
        try:
            return self.jobs(name)
        except YueGPError:
            return []

    def live(self, name: str) -> Job | None:
        """The running job of a song, else its first that is still to come; None when there is neither."""
        jobs = [job for job in self.known_jobs(name) if job.state not in OVER]
        return next((job for job in jobs if job.state is State.RUNNING), jobs[0] if jobs else None)

    def running(self) -> Job | None:
        """The running job, of any song."""
        return next((job for job in self.known_jobs() if job.state is State.RUNNING), None)

    def make(self, song: Song, take: Take, device: str = "auto", wishes: ModelOptions = ANY) -> Job:
        """Put a take into the queue."""
        return self.queue.add(song.folder, take.info.number, device, wishes)

    def again(self, song: Song, *takes: Take) -> None:
        """Queue takes of a song with the device and model options of its newest job. Options that are no longer
        possible fall back to automatic. Several takes form a batch and share the section that all of them want."""
        jobs = self.jobs(song.folder.name)
        device, wishes = (jobs[-1].device, jobs[-1].wishes) if jobs else ("auto", ANY)
        try:
            memory.allow(song.request.model, wishes, machine.describe_machine(), device)
        except YueGPError:
            wishes = ANY
        batch_takes = tuple(take.info.number for take in takes) if len(takes) > 1 else ()
        for take in takes:
            self.queue.add(song.folder, take.info.number, device, wishes, batch_takes)

    def name_of(self, job: Job) -> str:
        """The folder name of a job's song, which is its name on the page."""
        return Path(job.song).name
