"""`yuegp` and `python -m yuegp`: the command line, with the commands of `ui` and `quant` among its own."""

import sys
from collections.abc import Sequence

from quant.command import add_commands as add_quant_commands
from ui.command import add_commands as add_ui_commands
from yuegp.cli.main import MACHINE_COMMANDS, SONG_COMMANDS
from yuegp.cli.main import main as run

COMMANDS = (add_ui_commands, *SONG_COMMANDS, add_quant_commands, *MACHINE_COMMANDS)
"""All commands, in the order in which help and documentation list them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Without any arguments the page is shown."""
    return run((sys.argv[1:] if argv is None else argv) or ["ui"], COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
