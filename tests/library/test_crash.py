"""Songs whose process is killed, or whose disk is full, at every step of writing and at random moments.

The work is done by `tools/kill_test.py`, in a Python of its own since it forks; the long run is there too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork and SIGKILL")


def kill_test(place: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A run of the tool, after `before` changed our code."""
    code = f"from tools import kill_test\n{before}\nraise SystemExit(kill_test.main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_nothing_finished_is_lost_by_kills_and_full_disks(tmp_path: Path) -> None:
    """Every step of writing, each by SIGKILL and by ENOSPC, and twenty random moments: the song opens, no finished
    section is missing, and resuming yields the codes and the sound of a song that nobody disturbed."""
    answer = kill_test(tmp_path, "--every", "--kills", "20", "--seed", "0")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    kills, full = (int(re.search(rf"(\d+) {what}", answer.stdout)[1]) for what in ("kills", "full disks"))  # type: ignore[index]
    assert kills >= 20 + 40 and full >= 30 and "Nothing was lost" in answer.stdout
    assert not list(tmp_path.glob("kill test*")), "the tool cleans up behind itself"


IN_PLACE = """
from yuegp import files
def in_place(path, data):
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(data)
files.write_atomic = in_place
"""

NOT_FLUSHED = """
import os
from pathlib import Path
from yuegp import files
def not_flushed(path, data):
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
files.write_atomic = not_flushed
"""


@pytest.mark.parametrize(
    ("fault", "found"), [(IN_PLACE, "song.json is damaged"), (NOT_FLUSHED, "before it was flushed")]
)
def test_the_tool_notices_carelessness(tmp_path: Path, fault: str, found: str) -> None:
    answer = kill_test(tmp_path, "--every", before=fault)
    assert answer.returncode == 1 and found in answer.stderr, answer.stdout + answer.stderr
