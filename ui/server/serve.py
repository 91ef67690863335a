"""The server of the page: what is mounted where, on which port, and how it starts and stops.

    /                     leads to the page in its language      /sound/<song>/<take>/<file>   sound of songs
    /en /zh /ja /ko       the page, one per language             /api                          for programs

Loads no torch: another process (`processes/generator`) makes the songs. Pages of all languages are built before the
first request, since Gradio cannot build one while another answers. `guard` decides whose requests are answered.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import logging
import os
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ui import settings
from yuegp import files, paths
from yuegp.errors import DeviceError, RequestError
from yuegp.jobs.queue import Queue
from yuegp.system.environment import PORT

from . import offline, uploads

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp

    from ui.context import AppContext
    from ui.processes.generator import GeneratorProcess

TRIES = 50
"""How many ports are tried, one after the other, while they are taken."""

KEPT_SECONDS = 2 * 86400
"""How long uploads are kept that no song has copied."""

HERE, ANYWHERE = "127.0.0.1", "0.0.0.0"


def serve(root: Path, port: int | None = None, listen: bool = False, password: str = "", browse: bool = True) -> None:
    """Serve the page of the songs in `root` until Ctrl-C. Prints its address, and nothing else, on standard output once
    it answers. With `listen` other computers may use it, which takes a password: RequestError without one."""
    if listen and not password:
        raise RequestError(
            "With --listen everybody on the network can use this page, so it needs a password, and there is none.",
            "Set YUEGP_PASSWORD, or add --password; or leave --listen out.",
        )
    names = settings.hosts()
    if names and not password:
        print(f"Whoever can open {', '.join(names)} can use this page: there is no password.", file=sys.stderr)
    files.check_writable(root)
    place = bind(ANYWHERE if listen else HERE, port or PORT)
    port = place.getsockname()[1]
    prepare()
    from ui.context import AppContext
    from ui.processes.generator import GeneratorProcess

    queue = Queue()
    generator = GeneratorProcess(queue)
    app = guarded(application(AppContext(root, queue, generator)), port, listen, password, names)
    offline.close()
    _run(app, generator, place, f"http://{HERE}:{port}", browse)


def prepare() -> None:
    """Set what Gradio and huggingface_hub read from the environment on import: no contact with other machines, and the
    folder for uploads."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.begin(paths.home().absolute(), time.time() - KEPT_SECONDS))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on `port`, or on the next free one. DeviceError when none of `TRIES` ports is free."""
    for number in range(port, min(port + TRIES, 65536)):
        place = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if sys.platform != "win32":  # there it would share a port that is in use
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((host, number))
            place.listen(128)
            return place
        except OSError as exc:
            place.close()
            if exc.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise DeviceError(f"Port {number} cannot be used: {exc.strerror or exc}.", "Name another.") from exc
    raise DeviceError(
        f"None of the ports {port} to {min(port + TRIES, 65536) - 1} is free.", "Name another one with --port."
    )


def application(context: AppContext) -> FastAPI:
    """The application without its security middleware: the pages, the interface for programs, sound. `context.worker`,
    if any, runs as long as the server does."""
    try:
        with offline.without_proxies():
            import gradio as gr
    except ModuleNotFoundError as exc:
        raise DeviceError(
            f"The page needs {exc.name}, which is not installed.", "Run `python launch.py --repair`."
        ) from exc
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import RedirectResponse, Response
    from starlette.routing import Match, Route
    from starlette.types import Scope

    from ui import assets
    from ui.app import build, page_options
    from ui.pages.song import export
    from ui.texts import LANGUAGES, Texts, preferred

    from . import api, sound, uploaded
    from .guard import UPLOAD_BYTES

    @contextlib.asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        if context.worker:
            context.worker.start()
        try:
            yield
        finally:
            if context.worker:
                context.worker.stop()

    def home(request: Request) -> Response:
        language = settings.load().language or preferred(request.headers.get("accept-language", ""))
        asked = f"?{request.url.query}" if request.url.query else ""
        prefix = request.scope.get("root_path", "")
        return RedirectResponse(f"{prefix}/{language}/{asked}", 307, {"Cache-Control": "no-store"})

    class Elsewhere(Route):
        """Redirect a page in another language to the chosen one, so that a reload after the choice shows it."""

        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            match, found = super().matches(scope)
            if match is Match.FULL and settings.load().language in ("", self.path.strip("/")):
                return Match.NONE, {}
            return match, found

    def icon(request: Request) -> Response:
        return Response(assets.icon(), media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})

    app = FastAPI(lifespan=working, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.context = context
    app.router.routes.append(Route("/", home))
    for before in ("", "/{language}"):  # pages name sounds from where they are
        app.router.routes.append(Route(f"{before}/favicon.ico", icon))
        app.router.routes.append(Route(f"{before}/sound/{{song}}/{{take}}/{{file:path}}", sound.sound_response))
        app.router.routes.append(Route(f"{before}/export/{{song}}/{{file}}", export.export_response))
    app.router.routes.append(
        Route("/{language}/gradio_api/file={path:path}", uploaded.upload_response)
    )  # instead of Gradio's

    def mount(blocks: gr.Blocks, path: str, **shown: Any) -> None:
        # Gradio 6 serves any file of this computer to a visitor who names it, unless the page was launched; a mounted
        # page never is.
        blocks.has_launched = True
        shown |= {"footer_links": [], "run_history": False, "max_file_size": UPLOAD_BYTES, "ssr_mode": False}
        gr.mount_gradio_app(app, blocks, path, **shown)

    mount(api.build(context), "/api")
    for language in LANGUAGES:
        app.router.routes.append(Elsewhere(f"/{language}/", home, methods=["GET"]))
        shown = page_options()
        shown["head"] += f"<script>document.documentElement.lang = '{language}';</script>"
        mount(build(context, Texts(language)), f"/{language}", **shown)
    return app


def guarded(
    app: FastAPI, port: int, listening: bool = False, password: str = "", names: tuple[str, ...] = ()
) -> ASGIApp:
    """The application behind its security middleware. It also answers to `names`, which the user has allowed."""
    from ui.texts import ENGLISH, Texts

    from . import login
    from .guard import PasswordGate, SecurityMiddleware

    t = Texts(settings.load().language or ENGLISH)
    gate = PasswordGate(password, login.page(t)) if password else None
    return SecurityMiddleware(app, port, listening, gate, names, functools.partial(login.stranger, t))


def _run(app: ASGIApp, generator: GeneratorProcess, place: socket.socket, address: str, browse: bool) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(address, flush=True)
                if browse and _has_screen():
                    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            logging.getLogger("uvicorn.error").disabled = True  # it would report that open pages are cut off
            generator.let_go()
            await super().shutdown(sockets)

    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, server_header=False)
    try:
        Server(config).run(sockets=[place])
    finally:
        gc.freeze()  # else Python looks through all of it once more before it ends, for most of a second


def _has_screen() -> bool:
    """Whether a browser can be opened. Without a screen, Python would start one in the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
