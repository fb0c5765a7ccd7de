"""Files of a run over GET: thumbnails, attention, heads files, for what the browser draws or fetches by itself.

    /raw/<run>/frames/<episode>/<camera>/<frame>.jpg
    /raw/<run>/selections/<name>.json

Pages add routes of their own with `route`. A name in an address is looked up (`Library.open`) or checked
(`check_name`), never joined to a path as it came. The answer to an address that carries `?v=` (`version` of the file)
never changes, so the browser keeps it for a year and asks no more; without it the browser asks again each time, and an
unchanged file is one short 304.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dash import Dash
from flask import Response, abort, request, send_file

from app.library import Library
from interp.errors import UsageError
from interp.runs import check_name

KEPT = "private, max-age=31536000, immutable"
ASKED = "private, no-cache"


@dataclass(frozen=True)
class Raw:
    """Bytes made on request, in place of a file."""

    content: bytes
    type: str = "application/octet-stream"


def route(app: Dash, rule: str, find: Callable[..., Path | Raw]) -> None:
    """Answer GET `rule` with what `find(**parts of the rule)` names or makes; a UsageError or a missing file is 404.

    `rule` starts with /raw/ and takes its parts with Flask's converters, such as `<int:frame>`.
    """
    if not rule.startswith("/raw/"):
        raise ValueError(f"{rule}: routes of the dashboard start with /raw/")

    @wraps(find)
    def answer(**parts: Any) -> Response:
        try:
            found = find(**parts)
            if isinstance(found, Path):
                response = send_file(found.absolute(), conditional=True)
            else:
                response = Response(found.content, mimetype=found.type)
                response.set_etag(blake2b(found.content, digest_size=12).hexdigest())
                response.make_conditional(request)
        except (UsageError, FileNotFoundError, IsADirectoryError) as error:
            abort(404, str(error))
        response.headers["Cache-Control"] = KEPT if "v" in request.args else ASKED
        return response

    app.server.add_url_rule(rule, endpoint=rule, view_func=answer, methods=["GET"])


def version(path: Path) -> str:
    """Changes whenever the file is replaced; for `?v=`. Of a missing file "0"."""
    try:
        status = path.stat()
    except OSError:
        return "0"
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def connect(app: Dash, library: Library) -> None:
    """The routes that all pages use."""

    def frame(run: str, episode: int, camera: str, frame: int) -> Path:
        return library.open(run).frame_path(episode, camera, frame)

    def selection(run: str, name: str) -> Path:
        return library.open(run).path / "selections" / f"{check_name(name, 'set')}.json"

    route(app, "/raw/<run>/frames/<int:episode>/<camera>/<int:frame>.jpg", frame)
    route(app, "/raw/<run>/selections/<name>.json", selection)


def frame_url(run: str, episode: int, camera: str, frame: int, v: str) -> str:
    return f"/raw/{run}/frames/{episode}/{camera}/{frame:05d}.jpg?v={v}"
