"""Cuts the page's process off from other machines by disabling the HTTP clients of Gradio and httpx.

Gradio fetches addresses from requests in several places, and later versions may add more. All of them use httpx, so it
is stopped there, before a name is resolved. Downloads run in processes of their own (`processes/downloader`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NoReturn

PROXY_FREE = ("NO_PROXY", "no_proxy")


def close() -> None:
    """Disable them for the life of the process."""
    import httpx
    import safehttpx  # type: ignore[import-untyped]

    httpx.HTTPTransport.handle_request = _refuse  # type: ignore[method-assign]
    httpx.AsyncHTTPTransport.handle_async_request = _refuse_later  # type: ignore[method-assign]
    safehttpx.async_validate_url = _refuse_later  # asks for the address of a name, even of other machines by HTTP


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise PermissionError("The page asks no other machine for anything.")


async def _refuse_later(*_: Any, **__: Any) -> NoReturn:
    _refuse()


@contextlib.contextmanager
def without_proxies() -> Iterator[None]:
    """For importing Gradio: it creates HTTP clients then, which read the system's proxies and fail on an unknown kind.
    They are never used. Afterwards the environment is restored for the processes that download."""
    before = {name: os.environ.get(name) for name in PROXY_FREE}
    os.environ.update(dict.fromkeys(PROXY_FREE, "*"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
