#!/usr/bin/env python3
"""The installer: from whatever Python there is to a running yuegp.

    python launch.py                   start the page in the browser; the first time, set everything up
    python launch.py make --lyrics ... any command of yuegp
    python launch.py test              the tests
    python launch.py --help            the rest

The first start makes `.venv` beside this file and installs into it; later starts only check that it is in order.
Everything said on the way goes to stderr: stdout belongs to the command. Problems of the set-up end with exit code 4.

The work is in the folder `installer`. This file is kept so plain that even Python 2 reads it, and says what is missing.
"""

import os
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))

if sys.version_info < (3, 8):
    sys.stderr.write(
        "yuegp is set up by Python 3.8 or newer; this is Python %d.%d.\n"
        "Install Python 3.12, then start again with it: python3.12 launch.py\n" % sys.version_info[:2]
    )
    sys.exit(4)

if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

if __name__ == "__main__":
    from pathlib import Path

    from installer.main import main

    sys.exit(main(Path(ROOT).resolve(), sys.argv[1:]))
