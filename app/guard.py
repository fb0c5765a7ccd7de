"""The door: which HTTP requests the dashboard answers.

The server reads and writes a person's files and listens on the loopback interface, where every web page open in
the same browser can reach it.  Three rules keep it private, all applied before any view function runs:

- the Host header must name this machine (else a foreign name that resolves to 127.0.0.1 could read: DNS rebinding;
  where the server listens on every interface any bare address will do, because only names resolve);
- a POST must come from our own page (Sec-Fetch-Site and Origin: no cross-site request forgery);
- a path is a page, a file of ours, or 404 (Dash itself answers 200 to everything).

Answers carry a content policy under which the page can reach this server only: no font, script or picture from
elsewhere, in every version to come.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Flask, Response, abort, request

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

HEADERS = {
    # Dash needs inline scripts, AG Grid's column expressions need eval, Plotly's export draws from blob: and data:
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

NOT_FOUND = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Not found · robosteer</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{css}</style>
<link rel="stylesheet" href="/assets/robosteer.css"></head>
<body class="rs-plain"><main><p class="rs-plain-code">404</p><h1>There is no page “{path}”</h1>
<p><a href="/">Back to the overview</a></p></main></body></html>"""


def host_name(host: str) -> str | None:
    """The name in a Host header, without port and brackets; None when it is not a host at all."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def is_address(host: str) -> bool:
    """Whether this is an IP address, which nobody's name server can give another meaning."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def install(
    server: Flask,
    pages: Iterable[str],
    hosts: Iterable[str] = (),
    css: str = "",
    *,
    any_address: bool = False,
) -> None:
    """Apply the rules to `server`. `pages`: the paths that exist; `hosts`: further names for this machine;
    `any_address`: whether it may be asked for by any IP address."""
    allowed = LOOPBACK | {host.lower() for host in hosts}
    named = ", ".join([*sorted(allowed), *(["any address"] if any_address else [])])
    known = frozenset(pages)

    @server.before_request
    def check() -> Response | None:
        host = host_name(request.host)
        if host not in allowed and not (any_address and host and is_address(host)):
            abort(400, f"this dashboard answers only to {named}; robosteer app --allow-host NAME adds a name")
        if request.method not in ("GET", "HEAD", "OPTIONS") and not _ours():
            abort(403, "a request from another site was refused")
        rule = request.url_rule.rule if request.url_rule else None
        if rule in ("/", "/<path:path>") and request.path not in known:
            page = NOT_FOUND.format(css=css, path=escape(request.path))
            return Response(page, status=404, mimetype="text/html")
        return None

    @server.after_request
    def label(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if request.path.startswith("/assets/") and "m" in request.args and response.status_code == 200:
            # Dash puts the time of change into the address, so a changed file has another one
            response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
        return response


def _ours() -> bool:
    """Whether a browser says that the request comes from this very page; other clients send neither header."""
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin")
    return site in ("same-origin", "none") and (origin is None or urlsplit(origin).netloc == request.host)
