"""The pages, one file each. A new page is a file with a `PAGE` and a line in `PAGES`.

A page builds its body from the run on the screen and connects its own callbacks once, when the app is made. It reads
the selection from the store `selection` and changes it through `robosteer.dispatch` in the browser
(assets/selection.js); it never keeps a selection of its own.
"""

from __future__ import annotations

from app.pages import compare, finetune, heads, methods, overview, watch
from app.pages.page import Page, Screen

PAGES: tuple[Page, ...] = (
    overview.PAGE,
    heads.PAGE,
    watch.PAGE,
    methods.PAGE,
    finetune.PAGE,
    compare.PAGE,
)

__all__ = ["PAGES", "Page", "Screen"]
