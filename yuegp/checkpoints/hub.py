"""The model hub: lists repositories and streams their files. Every failure becomes a sentence.

Uses huggingface_hub's public calls, so that its settings count: `HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE`, `HF_TOKEN`
or its stored token, proxies. Sends nothing but the requests themselves. `transfer` writes the bytes.

Three things the library lacks (measured with version 2.4): a time limit for name lookups and silent servers, resuming a
broken download in a later call, and checking that the answer is the requested file.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from yuegp import __version__
from yuegp.errors import ModelError

from . import filenames

T = TypeVar("T")

PATIENCE = 8.0
"""Seconds to wait for the hub's answer, including name lookup."""

CONNECT, READ = 6.0, 20.0
"""Timeouts in seconds: to connect, and between two blocks of a download."""

PUBLIC = "https://huggingface.co"

PORTAL = "A network that wants a sign-in page first answers like that. Or HF_ENDPOINT names a poor mirror."


class HubUnreachable(ModelError):
    """The hub cannot be reached now. Models on disk can still be used."""

    def __init__(self, what: str, hint: str, after: float = 0.0) -> None:
        super().__init__(what, hint)
        self.after = after
        """Seconds the hub asks to wait."""


class NotOffered(ModelError):
    """The hub does not have the checkpoint, or does not give it to this user. Another copy may be available."""


class RevisionGone(NotOffered):
    """The repository exists, but not the branch or commit."""


UNKNOWN = -1


@dataclass(frozen=True)
class HubFile:
    """A file as the hub describes it. Large ones have a SHA-256, small ones git's SHA-1 (`blob`)."""

    name: str
    """Path in the checkpoint's folder."""
    size: int
    """Bytes; `UNKNOWN` when a mirror's listing lacks it (`measured` finds it)."""
    sha256: str | None = None
    """64 hexadecimal digits, or the first ones if only those are known."""
    blob: str | None = None
    path: str = ""
    """Path in the repository, if different."""

    @property
    def source(self) -> str:
        return self.path or self.name


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    repo: str
    commit: str
    files: dict[str, HubFile]
    odd: dict[str, str] = field(default_factory=dict)
    """Files that cannot be downloaded as listed, and why."""


def endpoint() -> str:
    """Address of the hub or of the mirror in `HF_ENDPOINT`."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")


def page(repo: str) -> str:
    """Address of a repository's web page."""
    return f"{endpoint()}/{repo}"


def offline() -> bool:
    """Whether the user has forbidden the network (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


# Listing


def listing(repo: str, revision: str | None = None) -> Listing:
    """List the files of a repository. Raises HubUnreachable after `PATIENCE` seconds (twice that if the token is
    rejected), NotOffered when the repository or revision does not exist or is not public, ModelError for an invalid
    answer."""

    def ask() -> Any:
        from huggingface_hub import HfApi

        session()
        api = HfApi(endpoint=endpoint(), headers=agent())
        return api.model_info(
            repo, revision=revision or "main", files_metadata=True, timeout=PATIENCE * 0.9, token=_token()
        )

    with hub_errors(repo, revision):
        try:
            info = with_timeout(PATIENCE, ask)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            if _is_refusal(exc):
                raise
            raise _strange(repo, repr(exc)) from exc
        except Exception as exc:
            if not _discard_token(exc):
                raise
            try:
                info = with_timeout(PATIENCE, ask)
            except Exception:
                _REJECTED.clear()  # the token was not the cause
                raise
    if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
        raise _strange(repo, f"commit {info.sha!r}")
    if not isinstance(info.siblings, list):
        raise _strange(repo, "it lists no files")
    files, odd = dict[str, HubFile](), dict[str, str]()
    for entry in info.siblings:
        try:
            file = _file({"rfilename": entry.rfilename, "size": entry.size, "lfs": entry.lfs, "blobId": entry.blob_id})
        except ValueError as exc:
            odd[str(entry.rfilename)] = str(exc)
            continue
        if files.get(file.name, file) != file:
            odd[file.name] = f"a file called {file.name!r} is listed twice, and differently"
        files[file.name] = file
    return Listing(repo, info.sha, {name: file for name, file in files.items() if name not in odd}, odd)


def _is_refusal(exc: Exception) -> bool:
    """Whether an error of the library, possibly a ValueError, is an answer of the hub."""
    from httpx2 import InvalidURL
    from huggingface_hub.errors import HFValidationError

    return isinstance(exc, InvalidURL | HFValidationError)


def _strange(repo: str, what: str) -> ModelError:
    return ModelError(f"{endpoint()} answers about {repo} in a way yuegp does not understand: {what[:200]}.", PORTAL)


def _file(entry: dict[str, Any]) -> HubFile:
    """A listed file from the hub's fields. Raises ValueError that says why it cannot be downloaded."""
    name, size, lfs, blob = entry["rfilename"], entry["size"], entry.get("lfs") or {}, entry.get("blobId")
    if fault := filenames.fault(name):  # it could be written outside the model's folder, or not at all
        raise ValueError(f"a file called {name!r}: {fault}")
    sha256 = lfs.get("sha256")
    size = lfs.get("size", UNKNOWN) if size is None else size
    if type(size) is not int or size < UNKNOWN:
        raise ValueError(f"{name} with the size {str(size)[:80]!r}")
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)):
        raise ValueError(f"{name} with the checksum {str(sha256)[:80]!r}")
    git = blob if isinstance(blob, str) and re.fullmatch(r"[0-9a-f]{40}", blob) else None
    return HubFile(str(name), size, sha256, git)


def measured(repo: str, commit: str, file: HubFile) -> HubFile:
    """A file that was listed without its size, completed from the headers of its address. Raises as `listing`."""

    def ask() -> Any:
        session()
        return metadata(repo, commit, file)

    with hub_errors(repo, commit):
        found = with_timeout(PATIENCE, ask)
    if type(found.size) is not int:
        raise _strange(repo, f"it has no size for {file.source}")
    said = (found.etag or "").lower()
    sha256, blob = re.fullmatch(r"[0-9a-f]{64}", said), re.fullmatch(r"[0-9a-f]{40}", said)
    return replace(file, size=found.size, sha256=file.sha256 or (sha256 and said), blob=file.blob or (blob and said))


def metadata(repo: str, commit: str, file: HubFile) -> Any:
    """`HfFileMetadata` from the headers of a file's address. Raises the library's exceptions."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, file.source, revision=commit, endpoint=endpoint())
    return get_hf_file_metadata(url, token=_token(), timeout=PATIENCE * 0.9, endpoint=endpoint(), headers=agent())


# Files


@contextlib.contextmanager
def stream(repo: str, commit: str, file: HubFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Stream a file from byte `start` on: yields the real first byte (0 if the server does not support ranges), and the
    blocks. Raises HubUnreachable or ModelError when the answer is not this file, and the library's exceptions: use
    inside `hub_errors`."""
    from httpx2 import Timeout
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import hf_raise_for_status

    url = hf_hub_url(repo, file.source, revision=commit, endpoint=endpoint())
    headers = headers_for() | {"accept-encoding": "identity"}
    if start:
        headers["range"] = f"bytes={start}-"
    timeout = Timeout(READ, connect=CONNECT)
    with session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as answer:
        packed = answer.headers.get("content-encoding", "identity").lower() not in ("", "identity")
        useless = answer.status_code == 416 or (answer.status_code == 206 and packed)
        if not (start and useless):
            hf_raise_for_status(answer)
            # blocks as they arrive: gathering larger ones would lose the gathered part when the connection breaks
            yield _begin(answer, file, start, packed), answer.iter_bytes()
            return
    with stream(repo, commit, file, 0) as whole:  # the server cannot resume there, or not with these bytes
        yield whole


def _begin(answer: Any, file: HubFile, start: int, packed: bool) -> int:
    """Offset in the file at which an answer's bytes begin, after checking that they are this file's: otherwise only the
    final checksum, gigabytes later, would reveal a sign-in page, another file on a mirror, or a wrong range."""
    host, headers = answer.url.host, answer.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise HubUnreachable(f"{host} sends a web page in the place of {file.source}.", PORTAL)
    for said in announced(answer):
        for known in (file.sha256, file.blob):
            if known and len(said) == (64 if known is file.sha256 else 40) and not said.startswith(known):
                raise ModelError(
                    f"{host} has another {file.source} than was listed: checksum {said[:12]}…, not {known[:12]}….",
                    "If HF_ENDPOINT names a mirror, unset it or choose another. Or try again later.",
                )
    length = headers.get("content-length", "")
    if answer.status_code != 206:
        if not packed and length.isdigit() and int(length) > file.size:
            raise _another_length(host, file, int(length))
        return 0
    span = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", headers.get("content-range", ""))
    if not span or int(span[1]) != start:
        raise HubUnreachable(f"{host} answers with another part of {file.source} than was asked for.", PORTAL)
    if span[2] != "*" and int(span[2]) != file.size:
        raise _another_length(host, file, int(span[2]))
    return start


def _another_length(host: str, file: HubFile, size: int) -> HubUnreachable:
    return HubUnreachable(f"{host} sends {size:,} bytes as {file.source}, which has {file.size:,}.", PORTAL)


def announced(answer: Any) -> list[str]:
    """Checksums in the hub's headers before its redirect to the storage of large files: the file's SHA-256 or git's
    SHA-1. Source: huggingface_hub's documentation of `get_hf_file_metadata`."""
    first = answer.history[0] if answer.history else answer
    said = (first.headers.get("x-linked-etag"), None if answer.history else answer.headers.get("etag"))
    plain = (value.removeprefix("W/").strip('"').lower() for value in said if value)
    return [value for value in plain if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value)]


# Connecting


def session() -> Any:
    """The library's HTTP client. Raises HubUnreachable when the configured proxy cannot be used."""
    from httpx2 import InvalidURL
    from huggingface_hub import constants, get_session

    constants.HF_HUB_DISABLE_TELEMETRY = True  # else it asks the public hub once a day which programs it knows
    try:
        return get_session()
    except (ImportError, ValueError, InvalidURL) as exc:
        if isinstance(exc, ImportError):
            reason = "the package socksio, which speaks SOCKS, is not installed"
            hint = "Start yuegp with python launch.py, which installs it, or name an http:// proxy."
        else:
            reason, hint = "that is no proxy's address", "Correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or unset it."
        raise HubUnreachable(f"The network settings name the proxy {_proxies()}, and {reason}.", hint) from exc


def _proxies() -> str:
    """The configured proxies, without user names and passwords."""
    shown = (re.sub(r"//[^/@]*@", "//", address) for kind, address in sorted(getproxies().items()) if kind != "no")
    return " and ".join(dict.fromkeys(shown)) or "(none)"


_REJECTED: set[str] = set()
"""Tokens that the hub rejected. Public repositories need none."""


def _token() -> str | bool | None:
    """Token argument for the library: None for its own choice, False to send none."""
    from huggingface_hub import get_token

    return False if get_token() in _REJECTED else None


def _discard_token(exc: Exception) -> bool:
    """True if the hub rejected the token itself, as it does for every repository once a token has expired. The token is
    then not sent again."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    token = get_token()
    if not isinstance(exc, HfHubHTTPError) or exc.response.status_code != 401 or not token or token in _REJECTED:
        return False
    _REJECTED.add(token)
    return True


def agent() -> dict[str, str]:
    return {"user-agent": f"yuegp/{__version__}"}


def headers_for() -> dict[str, str]:
    """Headers of a request to the hub: user agent and the user's token."""
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(token=_token(), headers=agent())


def with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """Run `call` in a thread and return or raise its result. Raises TimeoutError after `seconds`; the thread then runs
    on unobserved, because the system's name lookup cannot be interrupted."""
    answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except Exception as exc:  # re-raised in the waiting thread
            answers.put((None, exc))

    threading.Thread(target=work, daemon=True, name="hub").start()
    try:
        value, error = answers.get(timeout=seconds)
    except queue.Empty as exc:
        raise TimeoutError(f"no answer within {seconds:g} s") from exc
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


# Failures


@contextlib.contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the hub and the network into ModelErrors."""
    from httpx2 import HTTPError, InvalidURL, StreamError, TimeoutException
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
    except (HTTPError, StreamError, TimeoutError) as exc:
        silent = isinstance(exc, TimeoutError | TimeoutException)
        reason = "it does not answer" if silent else f"no connection ({str(exc).rstrip('.') or type(exc).__name__})"
        raise HubUnreachable(
            f"The model hub {endpoint()} cannot be reached: {reason}.",
            "Check the connection and try again; what has arrived is kept. "
            "A mirror can be named in HF_ENDPOINT. The built-in model works without any network.",
        ) from exc
    except (InvalidURL, HFValidationError) as exc:
        raise ModelError(
            f"{endpoint()} and {repo} do not make an address: {' '.join(str(exc).split())}.",
            "A repository is written owner/name; HF_ENDPOINT begins with https://.",
        ) from exc


def _refused(exc: Any, repo: str, revision: str | None) -> ModelError:
    """The ModelError for an HTTP error status."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    status, where, host = exc.response.status_code, page(repo), urlsplit(str(exc.response.url)).netloc
    if status == 429 or (status == 503 and "retry-after" in exc.response.headers):
        after = _asked_to_wait(exc.response.headers)
        wait = f"Wait {after:.0f} seconds" if after else "Wait some minutes"
        return HubUnreachable(
            f"The hub asks us to slow down ({status}).", f"{wait}, then try again; what has arrived is kept.", after
        )
    if status < 500 and host != urlsplit(endpoint()).netloc:  # the file's temporary address has expired
        return HubUnreachable(
            f"{host}, where the hub keeps the files of {repo}, refuses (HTTP {status}).",
            "Check this computer's clock and try again later; what has arrived is kept.",
        )
    if isinstance(exc, RevisionNotFoundError):
        return RevisionGone(
            f"The hub has {repo}, but no revision {revision or 'main'} of it.",
            f"See which there are: {where}/tree/main.",
        )
    if isinstance(exc, EntryNotFoundError):
        return ModelError(f"A file that {repo} lists is not there (404).", "Try again later, or look at " + where + ".")
    if isinstance(exc, GatedRepoError) or status == 403:
        return NotOffered(
            f"The hub does not let you have {repo} (403): its owner wants to be asked.",
            f"Accept the conditions at {where}, make a token in your account's settings, and set HF_TOKEN to it.",
        )
    if status == 401:
        return NotOffered(
            f"The hub shows {repo} to nobody without a valid token (401), if it exists at all.",
            f"Look at {where}; if it is there for you, set HF_TOKEN to a token of your account.",
        )
    if status in (404, 410, 451):
        return NotOffered(f"The hub has no repository {repo} ({status}).", "Check how it is written: owner/name.")
    return HubUnreachable(
        f"The hub is in trouble itself (HTTP {status}).", "Try again later; what has arrived is kept."
    )


def _asked_to_wait(headers: Any) -> float:
    """Seconds to wait, from `Retry-After` (number or date) or the hub's `RateLimit` ("api";r=0;t=55); else 0."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    if limit := re.search(r"\bt=(\d{1,9})\b", headers.get("ratelimit", "")):
        return float(limit[1])
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
