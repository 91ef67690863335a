"""Kill a process that makes songs, or fill its disk, again and again, and check that nothing finished is lost.

    python tools/kill_test.py --every                   at every step of writing a song, by kill and by full disk
    python tools/kill_test.py --kills 1000 --seed 0     at random moments

A small random model set makes songs of three sections in child processes that end by SIGKILL. Then no finished section
may be missing, half-written files must not count as a song or a take, and resuming, in a child that is killed as well,
must end in the same codes of both stages and the same mix as an undisturbed song. Data in the system's memory survive a
kill, so this cannot show what a power cut would lose; instead it checks that every file is flushed to disk before it
gets its name. Needs a POSIX system.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # threads do not survive a fork
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from tools.make_set import make_set
from yuegp.errors import LibraryError
from yuegp.generation import pipeline
from yuegp.library import catalog, store
from yuegp.library.store import Take
from yuegp.song.schema import Section, SongRequest, TakeInfo

SECTIONS = (Section("verse", "one two"), Section("chorus", "three"), Section("outro", "four"))

PATIENCE = 60.0
"""Seconds after which a child counts as hung; a song takes less than one."""

Tell = Callable[[dict[str, Any]], None]


class Lost(Exception):
    """Something finished is missing or changed."""


# In the child


def go_on(root: Path, request: SongRequest, begin: Callable[[Take], None] = lambda take: None) -> None:
    """Act as a user: make the song, or resume it where it was left, until it is done."""
    listed = catalog.entries(root)
    song = store.open_song(listed[0].folder) if listed else store.create(pipeline.plan(request).request, root)
    numbers = song.take_numbers()
    take = song.take(numbers[-1]) if numbers else song.new_take(TakeInfo(number=0, request=song.request))
    begin(take)
    # A thread of their own writes previews at unpredictable moments, which would mix up the steps.
    pipeline.run(pipeline.plan(take.info.request), take, device="cpu", previews=False)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Intercepts this process's writes, and acts at the first step that is not in `spared`.

    Steps are `folder` (one was made, or cannot be), `write` (half of the bytes are in the file), `replace` (before a
    file gets its name) and `placed` (after it). A step also says which file, and how far the take had come."""

    def __init__(self, spared: Collection[str], act: Callable[[], None], tell: Tell) -> None:
        self.spared, self.act, self.tell = spared, act, tell
        self.progress = "begun"
        self.struck = False
        self.flushed: set[int] = set()

    def step(self, name: str, path: Any) -> None:
        step = f"{name} {_kind(Path(path).name, name)}, {self.progress}"
        if self.struck or step not in self.spared:
            if not self.struck:
                self.tell({"step": step})
            self.struck = True
            self.act()

    def intercept(self) -> None:
        """Wrap the functions that write, for the rest of this process's life."""
        import soundfile

        mkdir, fsync, place = os.mkdir, os.fsync, os.replace
        open_path, write_sound = Path.open, soundfile.SoundFile.write

        def watched_mkdir(path: Any, *args: Any, **more: Any) -> None:
            if self.act is no_space:
                self.step("folder", path)
            mkdir(path, *args, **more)
            if self.act is kill:
                self.step("folder", path)

        def watched_fsync(handle: int) -> None:
            fsync(handle)
            self.flushed.add(os.fstat(handle).st_ino)

        def watched_replace(source: Any, target: Any) -> None:
            if os.stat(source).st_ino not in self.flushed:
                self.tell({"fault": f"{target} got its name before it was flushed to the disk"})
            self.step("replace", target)
            place(source, target)
            if self.act is kill:  # a full disk has no say in what is done
                self.step("placed", target)

        def watched_open(path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
            file = open_path(path, mode, *args, **more)
            return Halves(file, self) if "x" in mode else file

        def watched_sound(file: Any, wave: np.ndarray) -> None:
            write_sound(file, wave[: len(wave) // 2])
            self.step("write", file.name)
            write_sound(file, wave[len(wave) // 2 :])

        watched: list[tuple[Any, str, Any]] = [
            (os, "mkdir", watched_mkdir),
            (os, "fsync", watched_fsync),
            (os, "replace", watched_replace),
            (Path, "open", watched_open),
            (soundfile.SoundFile, "write", watched_sound),
        ]
        for owner, name, function in watched:
            setattr(owner, name, function)


def _kind(name: str, step: str) -> str:
    """Kind of a path, without the parts that vary: ids of songs, numbers of takes, temporary names."""
    if step == "folder":
        return name if name == "takes" else "of a take" if name.isdecimal() else "of a song"
    return ".".join(name.split(".")[1:3]) if name.startswith(".") else name


class Halves:
    """An open file that writes in two halves, with a step between them."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Halves:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._disk.step("write", self._file.name)
        self._file.write(data[len(data) // 2 :])


def child(root: Path, request: SongRequest, disk: Disk | None, tell: Tell) -> int:
    """One run. Reports every finished part as soon as it is saved. Returns an exit code."""
    if disk:
        disk.intercept()
    save1, save2, save_info = Take.save_stage1, Take.save_stage2, Take.save_info

    def begun(take: Take) -> None:
        if disk:
            refined = int(take.load_stage2()[1].sum())
            disk.progress = f"{take.info.stage}, {len(take.info.spans)} sections, {refined} frames refined"

    def saved1(take: Take, *args: Any) -> None:
        save1(take, *args)
        tell({"sections": len(take.info.spans)})

    def saved2(take: Take, codes: np.ndarray, mask: np.ndarray, *args: Any) -> None:
        save2(take, codes, mask, *args)
        tell({"refined": int(mask.sum())})

    def saved_info(take: Take, *args: Any) -> None:
        save_info(take, *args)
        begun(take)

    for name, function in (("save_stage1", saved1), ("save_stage2", saved2), ("save_info", saved_info)):
        setattr(Take, name, function)
    try:
        go_on(root, request, begun)
    except LibraryError as exc:
        tell({"what": exc.what, "hint": exc.hint})
        return exc.exit_code
    return 0


# In the parent


class Bench:
    """Makes one song undisturbed; then has children make it under disturbances, and compares."""

    def __init__(self, place: Path) -> None:
        import torch

        torch.set_num_threads(1)
        self.place = place
        self.tally: Counter[str] = Counter()
        model = make_set(place / "set", "tiny")
        tags = "pop piano happy female airy vocal"
        self.request = SongRequest(SECTIONS, tags, title="Killed", seed=5, model=str(model), section_seconds=1)
        go_on(place / "whole", self.request)
        self.whole = self.take(place / "whole")
        self.codes1, (self.codes2, _) = self.whole.load_stage1(), self.whole.load_stage2()

    def take(self, root: Path) -> Take:
        song = store.open_song(catalog.entries(root)[0].folder)
        return song.take(song.take_numbers()[-1])

    def run(
        self, root: Path, delay: float = PATIENCE, spared: Collection[str] = (), act: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Run a child until it ends or is killed after `delay` seconds. Returns what it reported; `exit` is its exit
        code, or minus the signal. `act` runs at the first step of writing that is not spared."""
        root.mkdir(exist_ok=True)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(reader)

                def tell(facts: dict[str, Any]) -> None:
                    os.write(writer, json.dumps(facts).encode() + b"\n")

                code = child(root, self.request, Disk(spared, act, tell) if act else None, tell)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writer)
        end, text, told = time.monotonic() + delay, b"", dict[str, Any]()
        while True:
            if not select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
                os.kill(pid, signal.SIGKILL)  # it may just have ended: it keeps its number until we collect it
                select.select([reader], [], [])
            if not (piece := os.read(reader, 65536)):
                break
            text += piece
        os.close(reader)
        for line in text.splitlines():
            told |= json.loads(line)
        told["exit"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if "fault" in told or told["exit"] == 1:
            raise Lost(told.get("fault", "the child failed, see above"))
        if delay == PATIENCE and told["exit"] < 0 and "step" not in told:
            raise Lost(f"the child hung after {told}")
        return told

    def check(self, root: Path, told: dict[str, Any]) -> None:
        """Raise Lost unless everything reported as finished exists."""
        listed = catalog.entries(root)
        if len(listed) > 1 or any(entry.broken for entry in listed):
            raise Lost(f"listed are {[(entry.folder.name, entry.broken) for entry in listed]}")
        if not listed or not listed[0].takes:
            if "sections" in told:
                raise Lost("there is no song, or none with a take")
            return
        take = self.take(root)
        codes1, (codes2, mask) = take.load_stage1(), take.load_stage2()
        if len(take.info.spans) < told.get("sections", 0):
            raise Lost(f"{told['sections']} sections were finished and {len(take.info.spans)} are there")
        if mask.sum() < told.get("refined", 0):
            raise Lost(f"{told['refined']} frames were refined and {mask.sum()} are there")
        frames = codes1.shape[2]
        if not np.array_equal(codes1, self.codes1[:, :, :frames]):
            raise Lost("the codes of Stage 1 differ")
        if not np.array_equal(codes2, np.where(mask[:, None], self.codes2[:, :, :frames], 0)):
            raise Lost("the codes of Stage 2 differ")

    def equal(self, root: Path) -> None:
        """Raise Lost unless the finished song equals the undisturbed one; remove it then."""
        self.check(root, {"sections": len(SECTIONS), "refined": 2 * self.whole.frames})
        take = self.take(root)
        for name in ("mix", "vocal", "instrumental"):
            if getattr(take, name).read_bytes() != getattr(self.whole, name).read_bytes():
                raise Lost(f"the {name} differs")
        if _lasting(take.info) != _lasting(self.whole.info):
            raise Lost(f"the take's page differs: {take.info}")
        self.tally["songs"] += 1
        left = [path for path in root.rglob(".*") if path.suffix in (".tmp", ".part")]
        self.tally["temporary files left lying"] += len(left)
        shutil.rmtree(root)

    def at_every_step(self, act: Callable[[], None]) -> int:
        """Make one song, disturbed once at each step of writing and resumed each time. Returns the number of steps."""
        root, spared, known = self.place / act.__name__, set[str](), dict[str, Any]()
        while True:
            told = self.run(root, spared=spared, act=act)
            known |= told
            if "step" not in told:
                break
            expected = -signal.SIGKILL if act is kill else LibraryError.exit_code
            if told["exit"] != expected:
                raise Lost(f"the child should have ended with {expected}: {told}")
            said = (told["what"], told["hint"]) if act is no_space else ()
            if any("\n" in sentence or not sentence.endswith(".") for sentence in said):
                raise Lost(f"a full disk is not said in a sentence and a next step: {told}")
            if told["step"] in spared or len(spared) > 500:
                raise Lost(f"no end after {len(spared)} steps: {told}")
            spared.add(told["step"])
            self.tally["kills" if act is kill else "full disks"] += 1
            self.check(root, known)
        self.equal(root)
        return len(spared)

    def at_random(self, kills: int, chance: random.Random) -> None:
        """Make songs, killed at random moments and resumed until done, until there were `kills` kills."""
        began = time.monotonic()
        self.run(self.place / "timed")
        length = time.monotonic() - began
        self.equal(self.place / "timed")
        while kills > 0:
            root, known = self.place / "random", dict[str, Any]()
            while True:
                told = self.run(root, delay=chance.uniform(0, length) if kills > 0 else PATIENCE)
                known |= told
                if told["exit"] == 0:
                    break
                if told["exit"] != -signal.SIGKILL:
                    raise Lost(f"going on ended with {told}")
                kills -= 1
                self.tally["kills"] += 1
                self.check(root, known)
                if kills and kills % 100 == 0:
                    print(f"{kills} kills to go", file=sys.stderr, flush=True)
            self.equal(root)


def _lasting(info: TakeInfo) -> TakeInfo:
    """A take's info without what may differ: times, and the number, since an abandoned take's is not reused."""
    spans = tuple(replace(span, take=1) for span in info.spans)
    return replace(info, number=1, spans=spans, created="", seconds={})


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill processes that make songs; check that nothing finished is lost.")
    parser.add_argument("--every", action="store_true", help="disturb at every step of writing a song")
    parser.add_argument("--kills", type=int, default=0, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    arguments = parser.parse_args()
    if not hasattr(os, "fork"):
        print("This needs a system with fork and SIGKILL.", file=sys.stderr)
        return 2
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="kill test "))
    bench = Bench(place)
    try:
        if arguments.every:
            bench.at_every_step(kill)
            bench.at_every_step(no_space)
        if arguments.kills:
            bench.at_random(arguments.kills, random.Random(arguments.seed))
    except Lost as exc:
        print(f"LOST: {exc}\nThe folder as it was found: {place}", file=sys.stderr)
        return 1
    finally:
        print(", ".join(f"{count} {name}" for name, count in bench.tally.items()), end="")
        print(f"; {time.monotonic() - began:.0f} s")
    print("Nothing was lost: all songs ended in the same codes and the same sound as one that nobody disturbed.")
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
