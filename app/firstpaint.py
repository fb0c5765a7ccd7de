"""What the browser shows at once: the page as the server knows it, before any script has run.

Dash draws nothing before its libraries (nine megabytes of JavaScript) are loaded and three requests are answered. But
which maps an address asks for is known when the address is: they come with the first answer, as HTML, where Dash will
draw them again, and go in the frame in which it has (assets/first.js). The frame around a page is drawn so for every
page; the content for those that are quick to make.

It lies over the page in a closed shadow root: no script, no test and no style of the page can take it for the page.
A browser without declarative shadow roots (before 2023) shows nothing of it and loses nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from app import markup, shell
from app.library import Library
from app.pages import Page, Screen
from interp.errors import UsageError
from interp.heads import Head
from interp.runs import Run

HERE = Path(__file__).parent / "assets"
# what Dash asks for only when it meets an upload, a figure or a table, one after the other
LATE = (
    "/_dash-component-suites/dash/dcc/async-upload.js",
    "/_dash-component-suites/dash/dcc/async-graph.js",
    "/_dash-component-suites/plotly/package_data/plotly.min.js",
    "/_dash-component-suites/dash_ag_grid/async-community.js",
)
HINTS = "".join(f'<link rel="prefetch" as="script" href="{address}">' for address in LATE)
"""Fetched beside everything else, and run when they are needed: Plotly alone keeps the browser busy for a second."""


def first_paint(library: Library, pages: Sequence[Page], path: str, query: Mapping[str, str]) -> str:
    """The HTML of the page at `path`; nothing where a page cannot be shown, which Dash then says."""
    try:
        entries = library.entries()
        runs = {entry.name: entry.run for entry in entries}
        asked = query.get("run")
        run = runs[asked] if asked in runs else next(filter(None, runs.values()), None)
        page = next((page for page in pages if page.path == path), None)
        if run is None or page is None:
            return ""
        drawn = markup.Markup(path, run.name, _chosen(run, query.get("heads", "")))
        frame = drawn.of(shell.frame(entries, pages))
        content = drawn.of(page.body(Screen(run, query, "light"))) if page.early else ""
    except UsageError:  # Dash will say it on the page
        return ""
    except Exception:  # a broken run, or a mistake of ours: no picture, but the page must still open
        logging.getLogger(__name__).exception("the first picture of %s", path)
        return ""
    inside = f'<div id="app">{frame}<main class="rs-main">{content}</main></div>'
    return f'<div id="first" aria-busy="true"><template shadowrootmode="closed">{_style()}{inside}</template></div>'


def _chosen(run: Run, written: str) -> list[Head]:
    """The heads that the address asks for, as far as they exist."""
    heads = []
    for text in filter(None, written.split(",")):
        try:
            head = Head.parse(text)
            run.spec.towers[head.tower].heads_per_layer[head.layer]
        except (UsageError, KeyError, IndexError):
            continue
        heads.append(head)
    return heads


@lru_cache(maxsize=1)
def _style() -> str:
    sheets = (HERE / "robosteer.css").read_text() + (HERE / "first.css").read_text()
    return f"<style>{sheets}{markup.style()}</style>"
