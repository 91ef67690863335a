"""A stand-in for the model hub on 127.0.0.1, as huggingface_hub 2.4 calls it, with faults on demand.

Serves `root/<owner>/<name>/**` at revision `main`, and `root/<owner>/<name>@<branch>/**` at a branch. Large files
(LARGE and up) are answered like the real ones: a redirect to another origin, which must not be shown the token, and,
with `xet`, the way to the chunked storage. Without a token a repository that does not exist is answered with 401, as
the hub does. Sources: the hub's API description, and what huggingface_hub reads from its answers.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cas_server

LARGE = 20_000
"""Bytes from which a file is kept as the hub keeps large ones: known by its SHA-256, and served from elsewhere."""


def commit_of(folder: Path) -> str:
    """Forty digits that change with the content, as a commit does."""
    digest = hashlib.sha1()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


class Hub:
    """Two servers: the hub and where it keeps large files. Faults are set as attributes, per file name or for all."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[tuple[str, str, str | None]] = []
        """Method, path and Range of every request."""
        self.tokens: dict[str, set[str]] = {"hub": set(), "store": set()}
        """Authorization headers seen at either origin."""
        self.cuts: dict[str, list[int]] = {}
        """Bytes after which the next answers with a file break off, one entry each."""
        self.refuse: dict[str, tuple[int, str]] = {}
        """Status and X-Error-Code by repository."""
        self.status: list[int] = []
        """Statuses of the next answers with a file: 503, 429 …"""
        self.damage: dict[str, int] = {}
        """Position of a byte that arrives wrong, by file name."""
        self.token: str | None = None
        """What a client must show."""
        self.expired: str | None = None
        """A token that the hub refuses, whatever is asked for."""
        self.silent = False
        """Accept connections and answer nothing."""
        self.commits: dict[str, str] = {}
        """What the main branch of a repository is called, in the place of a commit of its content."""
        self.listed: Callable[[dict[str, Any]], Any] = lambda body: body
        """Changes what is said about a repository."""
        self.answers: dict[str, Callable[[Handler, bytes], None]] = {}
        """What answers in the place of the server where the file of that name is kept."""
        self.more: dict[str, str] = {}
        """Headers of answers with a `status`."""
        self.xet: str | None = None
        """The host that the key to the chunked storage is to be had from; None keeps no file there."""
        self.no_ranges = False
        self.not_json = False
        self.slow: threading.Event | None = None
        """Held back after the first block of a large file until this is set."""
        self.released = threading.Event()
        self.hub, self.store = Server(self, "hub"), Server(self, "store")

    @property
    def url(self) -> str:
        return self.hub.url

    def __enter__(self) -> Hub:
        for server in (self.hub, self.store):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.released.set()
        for server in (self.hub, self.store):
            server.shutdown()
            server.server_close()

    def gets(self, name: str) -> list[str | None]:
        """The ranges in which a file was fetched."""
        return [span for method, path, span in self.log if method == "GET" and path.endswith("/" + name)]

    def folder(self, repo: str, revision: str) -> Path | None:
        """The files of a repository at a branch or commit."""
        for path in (self.root / repo, *self.root.glob(f"{repo}@*")):
            branch = path.name.partition("@")[2] or "main"
            if path.is_dir() and revision in (branch, self.commit(path)):
                return path
        return None

    def commit(self, folder: Path) -> str:
        return self.commits.get(folder.relative_to(self.root).as_posix()) or commit_of(folder)

    def kept(self, name: str) -> bytes:
        """The file that the chunked storage knows by this hash."""
        return next(p.read_bytes() for p in self.root.rglob("*") if p.is_file() and cas_server.hash_of(p) == name)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, kind: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.owner, self.kind = hub, kind
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args: Any) -> None:
        """A client that goes away is no error here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refused(self, code: int, error: str) -> None:
        self.answer(code, b"{}", X_Error_Code=error, X_Error_Message=error)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.server.owner, urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        hub.log.append((self.command, path, self.headers.get("Range")))
        shown = self.headers.get("Authorization")
        hub.tokens[self.server.kind].add(shown or "")
        if hub.silent:
            hub.released.wait()
            self.close_connection = True
            return
        if self.server.kind == "store":
            return self.keep(path)
        if key := re.fullmatch(r"/api/models/[^/]+/[^/]+/xet-read-token/\w+", path):
            end = int(time.time()) + 900
            body = {"accessToken": f"key to {key[0]}", "exp": end, "casUrl": hub.store.url}
            return self.answer(200, json.dumps(body).encode(), X_Xet_Cas_Url=hub.store.url,
                               X_Xet_Access_Token=body["accessToken"], X_Xet_Token_Expiration=end)  # fmt: skip
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or resolve
        repo, revision = (found[1], found[3] or "main" if api else found[2]) if found else ("", "")
        if repo in hub.refuse:
            return self.refused(*hub.refuse[repo])
        if hub.expired and shown == f"Bearer {hub.expired}":
            return self.answer(401, b'{"error":"Invalid credentials"}',
                               X_Error_Message="Invalid credentials in Authorization header")  # fmt: skip
        if hub.token and shown != f"Bearer {hub.token}":
            return self.refused(401, "RepoNotFound")
        if not (hub.root / repo).is_dir() and not any(hub.root.glob(f"{repo}@*")):
            return self.refused(404 if shown else 401, "RepoNotFound")
        folder = hub.folder(repo, revision)
        if folder is None:
            return self.refused(404, "RevisionNotFound")
        if hub.not_json:
            return self.answer(200, b"<html>Please sign in to this network</html>", Content_Type="text/html")
        if api:
            return self.describe(repo, folder, api[2] or "revision", "blobs" in url.query)
        return self.resolve(folder, resolve[3] if resolve else "")

    def describe(self, repo: str, folder: Path, what: str, blobs: bool) -> None:
        hub, files = self.server.owner, []
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            data, name = path.read_bytes(), path.relative_to(folder).as_posix()
            entry: dict[str, Any] = {"rfilename": name} if what == "revision" else {"type": "file", "path": name}
            if blobs or what == "tree":
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                entry |= {"size": len(data), "blobId" if what == "revision" else "oid": blob}
                if len(data) >= LARGE:
                    key = "sha256" if what == "revision" else "oid"
                    sha = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {key: sha, "size": len(data), "pointerSize": 134}
            files.append(entry)
        body: Any = files
        if what != "tree":
            body = {
                "_id": "679000000000000000000000", "id": repo, "private": False, "pipeline_tag": "text-generation",
                "library_name": "transformers", "tags": ["safetensors", "license:apache-2.0"], "downloads": 1,
                "likes": 1, "modelId": repo, "author": repo.partition("/")[0], "sha": hub.commit(folder),
                "lastModified": "2025-03-12T11:41:01.000Z", "gated": False, "disabled": False,
                "cardData": {"license": "apache-2.0", "language": ["en"]}, "siblings": files, "spaces": [],
                "createdAt": "2025-01-26T07:33:45.000Z", "usedStorage": sum(file.get("size", 0) for file in files),
            }  # fmt: skip
            body = hub.listed(body)
        self.answer(200, json.dumps(body).encode(), Content_Type="application/json; charset=utf-8")

    def resolve(self, folder: Path, name: str) -> None:
        hub, path = self.server.owner, folder / name
        if not path.is_file():
            return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=hub.commit(folder))
        if hub.status:
            return self.answer(hub.status.pop(0), **hub.more)
        data = path.read_bytes()
        if len(data) < LARGE:
            if path.name in hub.answers:
                return hub.answers[path.name](self, data)
            return self.send_file(path, X_Repo_Commit=hub.commit(folder))
        there = f"{hub.store.url}/{urllib.parse.quote(path.relative_to(hub.root).as_posix())}?signed=1"
        sha = hashlib.sha256(data).hexdigest()
        more: dict[str, object] = {"X_Repo_Commit": hub.commit(folder), "X_Linked_Size": len(data)}
        if hub.xet is not None:
            repo, kept = folder.relative_to(hub.root).as_posix().partition("@")[0], cas_server.hash_of(path)
            key = f"{hub.xet}/api/models/{repo}/xet-read-token/{hub.commit(folder)}"
            info = f"{hub.store.url}/v1/reconstructions/{kept}"
            more |= {"X_Xet_Hash": kept, "Link": f'<{key}>; rel="xet-auth", <{info}>; rel="xet-reconstruction-info"'}
        self.answer(302, b"", Location=there, X_Linked_Etag=f'"{sha}"', Accept_Ranges="bytes", **more)

    def keep(self, path: str) -> None:
        """What the store does: whole files, and the chunks of the other kind of storage."""
        hub = self.server.owner
        if asked := re.fullmatch(r"/v[12]/reconstructions/(\w+)", path):
            if path.startswith("/v2"):
                return self.answer(404, b"{}")
            there = f"{hub.store.url}/xorb/{asked[1]}"
            code, body = cas_server.reconstruction(hub.kept(asked[1]), asked[1], self.headers.get("Range"), there)
            return self.answer(code, body, Content_Type="application/json")
        if asked := re.fullmatch(r"/xorb/(\w+)", path):
            if "xorb" in hub.answers:
                return hub.answers["xorb"](self, hub.kept(asked[1]))
            body, span = cas_server.container(hub.kept(asked[1]), self.headers.get("Range"))
            return self.answer(206, body, Content_Range=span)
        file = hub.root / path.lstrip("/")
        if file.name in hub.answers:
            return hub.answers[file.name](self, file.read_bytes())
        self.send_file(file)

    def send_file(self, path: Path, **headers: str) -> None:
        hub, data = self.server.owner, bytearray(path.read_bytes())
        etag = hashlib.sha1(b"blob %d\0" % len(data) + data) if len(data) < LARGE else hashlib.sha256(data)
        if path.name in hub.damage:
            data[hub.damage[path.name]] ^= 1
        asked = None if hub.no_ranges else re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        fields = {"Content-Length": str(len(data) - start), "ETag": f'"{etag.hexdigest()}"', **headers}
        if asked:
            fields["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        for key, value in fields.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = hub.cuts.get(path.name)
        stop = min(len(data), start + cuts.pop(0)) if cuts else len(data)
        if hub.slow and len(data) >= LARGE:
            self.wfile.write(data[start : start + 1000])
            self.wfile.flush()
            hub.slow.wait()
            start += 1000
        self.wfile.write(data[start:stop])
        if stop < len(data):
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
