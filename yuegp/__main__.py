"""`python -m yuegp` is the command line."""

import sys

from yuegp.cli import main

if __name__ == "__main__":
    sys.exit(main())
