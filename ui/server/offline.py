"""The page's process asks no other machine for anything: Gradio's and httpx's ways out are closed in it.

Gradio fetches what a request names in more than one place, and a later version may in others. All of them go through
httpx, so that is where it ends, before a name is looked up. What has to be fetched, other processes of ours fetch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NoReturn

PROXY_FREE = ("NO_PROXY", "no_proxy")


def close() -> None:
    """Close them, for as long as the process lives."""
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
    """While Gradio is imported: it makes HTTP clients then, which read the system's proxies, and fail on one of a kind
    that they do not know. They are never used, so they need none. Afterwards the environment is as it was, for the
    processes that do fetch."""
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
