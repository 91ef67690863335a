"""Where a request comes from: this page, a program, an address that the user typed, or another web site.

Browsers say so in three ways. `Sec-Fetch-Site` is exact, but old browsers do not send it, and no browser sends it over
plain HTTP to another machine. `Origin` comes with everything but plain GET. `Referer` is what is left: our own pages
always send it to us (`Referrer-Policy: same-origin`), so a request without it does not come from them.
"""

from __future__ import annotations

from starlette.datastructures import Headers

from .hosts import DEFAULT_PORTS, Host, read_origin

PREFETCH = ("sec-purpose", "purpose", "x-moz")
"""Headers of a browser that loads something in advance."""


def foreign(headers: Headers, host: Host, secure: bool) -> bool:
    """Whether another web site sends this request to `host`, or may do so for all we know. `secure`: a proxy says that
    it came over https."""
    if any(len(headers.getlist(name)) > 1 for name in ("origin", "referer", "sec-fetch-site")):
        return True
    if (origin := headers.get("origin")) is not None and not _same(origin, host, secure):
        return True
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    if (referer := headers.get("referer")) is not None:
        return not _same(referer, host, secure)
    return origin is None and headers.get("user-agent", "").startswith("Mozilla/")


def is_link(headers: Headers) -> bool:
    """Whether a GET follows a link in a tab of its own: no frame, no script, nothing loaded in advance. A browser
    without `Sec-Fetch-*` counts when it accepts HTML."""
    if any(name in headers for name in PREFETCH):
        return False
    if "sec-fetch-site" in headers:
        return headers.get("sec-fetch-mode", "navigate") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return "origin" not in headers and "text/html" in headers.get("accept", "")


def _same(address: str, host: Host, secure: bool) -> bool:
    found = read_origin(address)
    if found is None or (secure and found[0] != "https"):
        return False
    usual = DEFAULT_PORTS[found[0]]
    return (found[1].name, found[1].port or usual) == (host.name, host.port or usual)
