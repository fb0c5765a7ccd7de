"""Text leaves the server compressed: over a tunnel the libraries are two and a half megabytes instead of nine.

The libraries never change while the server runs: each is compressed once. `warm` does so before the first visitor asks.
"""

from __future__ import annotations

import gzip
import re
import threading

from dash import Dash
from flask import Flask, Response, request

KINDS = frozenset({"text/html", "text/css", "text/javascript", "application/javascript", "application/json"})
SUITES = "/_dash-component-suites/"
LIBRARY = re.compile(f'(?:src|href)="({SUITES}[^"]+)"')
LEAST = 1400  # bytes: what fits one packet is not faster for being smaller
ONCE, EACH = 6, 1  # levels, of what is kept and of what is made for one answer


def install(server: Flask) -> None:
    kept: dict[str, bytes] = {}

    @server.after_request
    def pack(response: Response) -> Response:
        if response.status_code != 200 or response.mimetype not in KINDS or response.content_encoding:
            return response
        response.vary.add("Accept-Encoding")
        if "gzip" not in request.accept_encodings or (response.content_length or LEAST) < LEAST:
            return response
        response.direct_passthrough = False  # a file that is sent as it is has to be read after all
        if request.path.startswith(SUITES):
            if request.path not in kept:
                kept[request.path] = gzip.compress(response.get_data(), ONCE, mtime=0)
            response.set_data(kept[request.path])
        else:
            response.set_data(gzip.compress(response.get_data(), EACH, mtime=0))
        response.content_encoding = "gzip"
        return response


def warm(app: Dash) -> threading.Thread:
    """Compress what a browser will ask for, before it does and beside whatever else the server does."""

    def ask() -> None:
        accepts = {"Accept-Encoding": "gzip"}
        with app.server.test_client() as client:
            for path in LIBRARY.findall(client.get("/").text):
                client.get(path, headers=accepts)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread
