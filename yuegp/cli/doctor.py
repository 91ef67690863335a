"""The command `doctor`: what is found on this machine, on the screen, as text to paste or as JSON."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from yuegp import __version__

from .arguments import Commands, add_command, print_json


def add_commands(commands: Commands) -> None:
    """Add the command `doctor`."""
    p = add_command(commands, "doctor", doctor, "look at this machine and say what is missing")
    p.add_argument("--port", type=int, metavar="N", help="where the page should be")


def doctor(arguments: argparse.Namespace) -> int:
    """Ends with 4 when something does not work, with 0 otherwise."""
    from yuegp.system.doctor import FAIL, examine, report
    from yuegp.system.environment import PORT

    findings = examine(arguments.port or PORT)
    if arguments.json:
        print_json({"version": __version__, "findings": [asdict(finding) for finding in findings]})
    else:
        print(report(findings, __version__))
    return 4 if any(finding.state == FAIL for finding in findings) else 0
