"""Host names: which ones the server answers to, and what the headers of a request say.

A web site can give its own name the address 127.0.0.1 (DNS rebinding), and a browser then takes our answers for that
site's. So the server answers only to names that no other site can point here: IP addresses, `localhost`, and names that
the user has allowed. Ports do not matter: containers, tunnels and proxies map them, and a browser that names
`127.0.0.1:9000` did connect to this machine.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from yuegp.errors import RequestError

VARIABLE = "YUEGP_ALLOW_HOST"
"""Environment variable with more names, separated by commas or spaces: for containers."""

DEFAULT_PORTS = {"http": 80, "https": 443}

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")


@dataclass(frozen=True)
class Host:
    """A name and its port, as in a Host header; port 0 where the header has none."""

    name: str
    port: int = 0

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{name}:{self.port}" if self.port else name


def read(text: str) -> Host | None:
    """Parse `name`, `name:port` or an address, in lower case; None unless it is a valid host."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+?)\.?(?::([0-9]{1,5}))?", text, re.ASCII)
    if not match:
        return None
    name, port = match[1].lower(), int(match[2] or 0)
    if port > 65535 or (match[2] and not port):
        return None
    if name.startswith("["):
        name = name[1:-1]
        return Host(name, port) if ":" in name and is_address(name) else None
    looks = name.isascii() and _NAME.fullmatch(name)
    return Host(name, port) if looks and (is_address(name) or not name.rpartition(".")[2].isdigit()) else None


def read_origin(text: str) -> tuple[str, Host] | None:
    """Scheme and host of an Origin or Referer; None for `null` and anything else that is no web address."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    host = read(parts.netloc)
    return (parts.scheme, host) if parts.scheme in DEFAULT_PORTS and host else None


@dataclass(frozen=True)
class Hosts:
    """The hosts we answer to: this machine's loopback names, its network names when `listening`, and those
    `allowed`."""

    listening: bool = False
    allowed: tuple[str, ...] = ()

    def ours(self, host: Host | None) -> bool:
        """Whether a Host header names us."""
        if host is None:
            return False
        if host.name in ("127.0.0.1", "localhost", "::1"):
            return True
        if self.listening and (is_address(host.name) or host.name in own_names()):
            return True
        return any(_covers(read(name), host) for name in self.allowed)


def _covers(allowed: Host | None, host: Host) -> bool:
    if allowed is None or allowed.name != host.name:
        return False
    return not allowed.port or allowed.port == host.port or (not host.port and allowed.port in DEFAULT_PORTS.values())


def checked(names: Iterable[str]) -> tuple[str, ...]:
    """Host names in one form, without duplicates. RequestError for an invalid one."""
    found = []
    for name in names:
        host = read(_as_sent(name.strip()))
        if host is None:
            raise RequestError(
                f"{name!r} is not the name of a host.",
                "Write the name as it stands in the address, without https:// and /: music.example.org, or nas:9000.",
            )
        found.append(str(host))
    return tuple(dict.fromkeys(found))


def _as_sent(name: str) -> str:
    """A name as browsers send it: letters of other scripts encoded by IDNA."""
    try:
        return name.encode("idna").decode("ascii") if not name.isascii() else name
    except UnicodeError:
        return name


def from_environment() -> tuple[str, ...]:
    """The names in `YUEGP_ALLOW_HOST`. RequestError as `checked`."""
    return checked(re.split(r"[,\s]+", given) if (given := os.environ.get(VARIABLE, "").strip(" ,\t\n")) else ())


def is_address(name: str) -> bool:
    """Whether a host is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_names() -> tuple[str, ...]:
    """Names that this machine may have on its network."""
    name = socket.gethostname().lower()
    return name, f"{name}.local", f"{name}.lan", f"{name}.home"
