"""The model hub: what a repository holds, and its files as streams. Every failure becomes a sentence.

Through huggingface_hub's session, so that its settings count: `HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE`, `HF_TOKEN`
or the token it has stored, proxies. Nothing is sent but the requests themselves. What is done with the bytes is
`download`'s business.

Two things the library leaves to us: a name lookup or a server that never answers would hold it for ever, and it goes
on with a broken download only within one call (both measured with version 2.4).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from . import __version__
from .errors import ModelError

T = TypeVar("T")

PATIENCE = 8.0
"""Seconds until a hub that does not answer is given up, name lookup included."""

CONNECT, READ = 6.0, 20.0
"""Seconds for a connection, and between two pieces of a download."""

PUBLIC = "https://huggingface.co"


class HubUnreachable(ModelError):
    """There is no way to the hub just now. What is on disk can still be used."""


@dataclass(frozen=True)
class HubFile:
    """A file as the hub describes it. Large ones have a SHA-256, small ones git's SHA-1 (`blob`)."""

    name: str
    size: int
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    repo: str
    commit: str
    files: dict[str, HubFile]


def endpoint() -> str:
    """Address of the hub or of the mirror in `HF_ENDPOINT`."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")


def page(repo: str) -> str:
    """Address of a repository's page, for people."""
    return f"{endpoint()}/{repo}"


def offline() -> bool:
    """Whether the user has forbidden the network (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def listing(repo: str, revision: str | None = None) -> Listing:
    """What a repository holds. HubUnreachable within `PATIENCE` seconds; ModelError when there is no such repository
    or revision, or it is not for everybody."""
    url = f"{endpoint()}/api/models/{repo}/revision/{quote(revision or 'main', safe='')}"

    def ask() -> bytes:
        from huggingface_hub import get_session
        from huggingface_hub.utils import hf_raise_for_status

        answer = get_session().get(url, params={"blobs": True}, headers=_headers(), timeout=PATIENCE * 0.9)
        hf_raise_for_status(answer)
        return answer.content

    with translated(repo, revision):
        text = within(PATIENCE, ask)
    try:
        data = json.loads(text)
        files = [_file(entry) for entry in data["siblings"]]
        return Listing(repo, str(data["sha"]), {file.name: file for file in files})
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ModelError(
            f"{endpoint()} answers about {repo} in a way yuegp does not understand: {exc!r}.",
            "A network that wants a sign-in page first answers like that. Or HF_ENDPOINT names a poor mirror.",
        ) from exc


def _file(entry: dict[str, Any]) -> HubFile:
    name, large = str(entry["rfilename"]), entry.get("lfs") or {}
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name:
        raise ValueError(f"a file called {name!r}")  # it would be written outside the model's folder
    return HubFile(name, int(entry["size"]), large.get("sha256"), entry.get("blobId"))


@contextlib.contextmanager
def stream(repo: str, commit: str, name: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The bytes of a file from `start` on: where they really begin (0 when the server knows no ranges), and the
    blocks. Raises what the library raises; use inside `translated`."""
    from httpx2 import Timeout
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import hf_raise_for_status

    url = hf_hub_url(repo, name, revision=commit, endpoint=endpoint())
    headers = _headers() | {"accept-encoding": "identity"}
    if start:
        headers["range"] = f"bytes={start}-"
    timeout = Timeout(READ, connect=CONNECT)
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as answer:
        hf_raise_for_status(answer)
        # blocks as they come: to gather larger ones would lose what was gathered when the connection breaks
        yield start if answer.status_code == 206 else 0, answer.iter_bytes()


def _headers() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"user-agent": f"yuegp/{__version__}"} | ({"authorization": f"Bearer {token}"} if token else {})


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` gives or raises; TimeoutError when it takes longer. It then goes on in its thread, unheard: no
    other way leads out of the system's name lookup."""
    answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except Exception as exc:  # not kept here: raised where the answer is waited for
            answers.put((None, exc))

    threading.Thread(target=work, daemon=True, name="hub").start()
    try:
        value, error = answers.get(timeout=seconds)
    except queue.Empty as exc:
        raise TimeoutError(f"no answer within {seconds:g} s") from exc
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


@contextlib.contextmanager
def translated(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn what goes wrong on the way to the hub into ModelErrors."""
    from httpx2 import HTTPError, InvalidURL, TimeoutException
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as exc:
        raise HubUnreachable(
            f"{repo} is not on this computer, and HF_HUB_OFFLINE forbids asking the hub.",
            "Unset HF_HUB_OFFLINE to download it, or add a folder that holds it: python launch.py models add FOLDER.",
        ) from exc
    except HfHubHTTPError as exc:  # before HTTPError: it is one too
        raise _refused(exc, repo, revision) from exc
    except (HTTPError, TimeoutError) as exc:
        silent = isinstance(exc, TimeoutError | TimeoutException)
        reason = "it does not answer" if silent else f"no connection ({str(exc).rstrip('.') or type(exc).__name__})"
        raise HubUnreachable(
            f"The model hub {endpoint()} cannot be reached: {reason}.",
            "Check the connection and try again; what has arrived is kept. "
            "A mirror can be named in HF_ENDPOINT. The built-in model works without any network.",
        ) from exc
    except (InvalidURL, HFValidationError) as exc:
        raise ModelError(
            f"{endpoint()} and {repo} do not make an address: {exc}.",
            "A repository is written owner/name; HF_ENDPOINT begins with https://.",
        ) from exc


def _refused(exc: Any, repo: str, revision: str | None) -> ModelError:
    """What an HTTP status means here."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    status = exc.response.status_code if exc.response is not None else 0
    where = page(repo)
    if isinstance(exc, RevisionNotFoundError):
        return ModelError(
            f"The hub has {repo}, but no revision {revision or 'main'} of it.",
            f"See which there are: {where}/tree/main.",
        )
    if isinstance(exc, EntryNotFoundError):
        return ModelError(f"A file that {repo} lists is not there (404).", "Try again later, or look at " + where + ".")
    if isinstance(exc, GatedRepoError) or status == 403:
        return ModelError(
            f"The hub does not let you have {repo} (403): its owner wants to be asked.",
            f"Accept the conditions at {where}, make a token in your account's settings, and set HF_TOKEN to it.",
        )
    if status == 401:
        return ModelError(
            f"The hub shows {repo} to nobody without a valid token (401), if it exists at all.",
            f"Look at {where}; if it is there for you, set HF_TOKEN to a token of your account.",
        )
    if status == 404:
        return ModelError(f"The hub has no repository {repo} (404).", "Check how it is written: owner/name.")
    if status == 429:
        return HubUnreachable("The hub asks us to slow down (429).", "Wait some minutes, then try again.")
    return HubUnreachable(
        f"The hub is in trouble itself (HTTP {status}).", "Try again later; what has arrived is kept."
    )
