"""The command `ui`: its options, and what it does with them."""

from __future__ import annotations

import argparse
import os

from yuegp.cli.arguments import Commands, add_out_option, songs_root


def add_commands(commands: Commands) -> None:
    """Add the command `ui`."""
    p = commands.add_parser("ui", help="show the web page", description="Show the web page, until Ctrl-C.")
    p.add_argument("--port", type=int, metavar="N", help="where, or the next free one (default 7860)")
    p.add_argument("--listen", action="store_true", help="let other computers on the network in; needs a password")
    p.add_argument("--password", metavar="WORD", help="what the page asks for (or set YUEGP_PASSWORD)")
    p.add_argument("--no-browser", action="store_true", help="do not open a browser")
    p.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which a tunnel or proxy shows the page; is kept; again for more",
    )
    p.add_argument("--forget-host", action="append", default=[], metavar="NAME", help="do not answer under it any more")
    p.add_argument("--hosts", action="store_true", help="list the names that are allowed, and do nothing else")
    add_out_option(p)
    p.set_defaults(run=show_page)


def show_page(arguments: argparse.Namespace) -> None:
    """Show the page, or only list the names under which it may be shown."""
    from . import settings  # loaded here: no other command needs the page
    from .server.serve import serve

    names = settings.hosts(arguments.allow_host, arguments.forget_host)
    if arguments.hosts:
        print("\n".join(names))
        return
    password = arguments.password or os.environ.get("YUEGP_PASSWORD", "")
    serve(songs_root(arguments), arguments.port, arguments.listen, password, browse=not arguments.no_browser)
