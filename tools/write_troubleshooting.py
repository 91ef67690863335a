"""Write docs/troubleshooting.md from what the doctor says of machines with one fault each (`tools/faults.py`).

    python tools/write_troubleshooting.py

A test holds the page to the doctor, so that it cannot go stale.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.faults import FAULTS  # noqa: E402
from yuegp.system.doctor import judge  # noqa: E402

PAGE = ROOT / "docs" / "troubleshooting.md"

HEAD = """# Troubleshooting

    python launch.py doctor

looks at this computer and says what is well and what is not, each with a next step; the Set-up page shows the same. Its
text holds no names, folders or tokens of yours: paste it into a bug report. Below is all that it can find, on made-up
machines. This page is written by `python tools/write_troubleshooting.py`.

| what is wrong | what doctor says | what to do |
| --- | --- | --- |
"""


def page() -> str:
    """The whole page."""
    rows = []
    for fault in FAULTS:
        found = next(f for f in judge(fault.facts) if (f.name, f.state) == (fault.name, fault.state))
        rows.append(f"| {fault.story} | {found.what} | {found.hint} |".replace(str(fault.facts.home), "(its folder)"))
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
