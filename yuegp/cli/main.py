"""The command line: runs one command, and says how it failed. Every file beside this one adds its own commands.

Exit codes: 0 done, 2 request, 3 model, 4 device, 5 library, 1 our own fault, 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from yuegp import __version__
from yuegp.errors import Cancelled, YueGPError
from yuegp.shortage import named

from . import bench, doctor, make, models, plan, songs
from .arguments import Commands

AddCommands = Callable[[Commands], None]

SONG_COMMANDS: tuple[AddCommands, ...] = (make.add_commands, songs.add_commands)
MACHINE_COMMANDS: tuple[AddCommands, ...] = (
    doctor.add_commands,
    models.add_commands,
    plan.add_commands,
    bench.add_commands,
)

STOPPED = 130
"""What a shell reports for a program ended by Ctrl-C."""


def main(
    argv: Sequence[str] | None = None, commands: Sequence[AddCommands] = (*SONG_COMMANDS, *MACHINE_COMMANDS)
) -> int:
    """Run one of `commands`; returns the exit code. Every failure is two sentences on standard error."""
    # libgomp reads this once, when torch is first imported: without it two threads on a busy machine wait on each
    # other for longer than they compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA counts cards as nvidia-smi does; read at its start
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    arguments = build_parser(commands).parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except (Cancelled, KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away; nothing is left to say to it
        return 0
    except Exception as problem:
        exc = named(problem)
        if not isinstance(exc, YueGPError):
            raise
        if getattr(arguments, "json", False):
            print(json.dumps({"error": exc.what, "hint": exc.hint, "exit": exc.exit_code}, ensure_ascii=False))
        print(f"{exc.what}\n{exc.hint}".strip(), file=sys.stderr)
        return exc.exit_code


def build_parser(commands: Sequence[AddCommands]) -> argparse.ArgumentParser:
    """A parser of these commands."""
    parser = argparse.ArgumentParser(prog="yuegp", description="Whole songs from lyrics and tags, with YuE.")
    parser.add_argument("--version", action="version", version=f"yuegp {__version__}")
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_commands in commands:
        add_commands(group)
    return parser
