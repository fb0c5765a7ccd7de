"""The dashboard's server: `create_app` puts the pages together, `serve` runs them on this machine.

The server is Werkzeug's, threaded, on a socket that we open ourselves: a taken port is then one clear line before
anything starts, and port 0 asks the system for a free one.
"""

from __future__ import annotations

import errno
import logging
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dash import Dash
from flask import request
from werkzeug.serving import BaseWSGIServer, make_server

from app import compression, firstpaint, guard, raw, shell, theme
from app.library import Library
from app.pages import PAGES
from interp.errors import UsageError

EVERYWHERE = {
    "0.0.0.0": (socket.AF_INET, "192.0.2.1"),
    "::": (socket.AF_INET6, "2001:db8::1"),
}
"""Hosts that mean every interface, with an address that is never used (RFC 5737, RFC 3849) to find the way out."""

PAGE = """<!DOCTYPE html>
<html lang="en">
  <head>
    {%metas%}
    <meta name="color-scheme" content="light dark">
    <title>{%title%}</title>
    {%favicon%}
    <link rel="preload" as="font" type="font/woff2" href="/assets/inter-latin.woff2" crossorigin>
    <style>VARIABLES</style>
    {%css%}HINTS
    <script>
      // the scheme before the first paint: no white flash in the dark
      const asked = localStorage.getItem("mantine-color-scheme-value");
      const dark = asked === "dark" || (asked !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
      document.documentElement.dataset.mantineColorScheme = dark ? "dark" : "light";
    </script>
  </head>
  <body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


class Dashboard(Dash):
    """Dash, with the page as the server knows it in its first answer."""

    def __init__(self, library: Library, *named: Any, **more: Any) -> None:
        super().__init__(*named, **more)
        self._library = library

    def interpolate_index(self, *args: Any, **parts: Any) -> str:
        first = firstpaint.first_paint(self._library, PAGES, request.path, request.args)
        parts["app_entry"] = first + parts["app_entry"]
        return str(super().interpolate_index(*args, **parts))


def create_app(
    runs_dir: str | Path,
    *,
    hosts: Iterable[str] = (),
    any_address: bool = False,
    allow_launch: bool = False,
) -> Dash:
    """The dashboard over the runs in `runs_dir`, or over the one run that it is.

    `hosts`: names under which this machine may be asked for, besides the loopback ones; `any_address`: and under any IP
    address. A WSGI server can run `create_app(...).server`. `allow_launch`: whether its pages may start and stop jobs.
    """
    hosts = [_host(host) for host in hosts]
    library = Library(runs_dir)
    css = theme.css_variables()
    app = Dashboard(
        library,
        "app",
        title="robosteer",
        update_title="",
        suppress_callback_exceptions=True,  # pages come and go
        index_string=PAGE.replace("VARIABLES", css).replace("HINTS", firstpaint.HINTS),
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.server.config["ALLOW_LAUNCH"] = allow_launch
    app.layout = lambda: shell.layout(library, PAGES)
    shell.connect(app, library, PAGES)
    raw.connect(app, library)
    for page in PAGES:
        page.connect(app, library)
    guard.install(app.server, (page.path for page in PAGES), hosts, css, any_address=any_address)
    compression.install(app.server)
    return app


def listen(app: Dash, host: str = "127.0.0.1", port: int = 8050) -> BaseWSGIServer:
    """A server bound to its port, not yet serving; `port` 0 takes a free one (read it from `port`)."""
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port}: use a port from 1 to 65535")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} on {host} is taken: stop what listens there, or choose another port"
            ) from None
        if error.errno == errno.EACCES:
            raise UsageError(
                f"port {port} needs more rights than this user has: choose one above 1023"
            ) from None
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    with bound:  # the server duplicates the file descriptor
        return make_server(host, bound.getsockname()[1], app.server, threaded=True, fd=bound.fileno())


def serve(
    runs_dir: str | Path,
    host: str = "127.0.0.1",
    port: int = 8050,
    allow_launch: bool = False,
    allow_hosts: Iterable[str] = (),
) -> None:
    """Serve until interrupted; prints the address once the port is ours.

    On `host` 0.0.0.0 or :: other machines are let in: by any address, this machine's own name, and `allow_hosts`.
    """
    everywhere = host in EVERYWHERE
    hosts = [*allow_hosts, *(_own_names() if everywhere else [host])]
    app = create_app(runs_dir, hosts=hosts, any_address=everywhere, allow_launch=allow_launch)
    server = listen(app, host, port)
    compression.warm(app)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line a request hides what matters
    shown = _own_address(host) if everywhere else host
    print(f"robosteer app: http://{_bracketed(shown)}:{server.port}/  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


# ---- what this machine is called


def _host(name: str) -> str:
    if not guard.is_address(name) and not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(
            f"host {name!r}: give a name or an address, such as robot.example, without scheme and port"
        )
    return name


def _own_names() -> list[str]:
    """Its host name, and the one that mDNS gives it on a local network."""
    name = socket.gethostname()
    return [name, name.partition(".")[0], f"{name.partition('.')[0]}.local"]


def _own_address(host: str) -> str:
    """The address by which other machines reach it; its name, where there is no network. Nothing is sent."""
    family, anywhere = EVERYWHERE[host]
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((anywhere, 9))
        except OSError:
            return socket.gethostname()
        return str(asking.getsockname()[0])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
