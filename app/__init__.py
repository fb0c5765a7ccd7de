"""Look and choose: the dashboard over runs on disk.

    guard      which HTTP requests are answered
    library    the runs under a folder, readable or not
    views      what of a run's scores is shown: panels, ranks, ranges, rows (pure)
    reading    the scores in plain words (pure)
    outcomes   results of rollouts as rows to compare; films, of single episodes (pure)
    selections, selection_bar, selecting   sets of heads on disk; the bar on every page; what it does
    maps       figures of heads: layer x head maps, ranked scores (pure)
    markup     components as plain HTML; firstpaint, the page before any script has run; compression, on the line
    rates      figures of rollouts: success and paired differences; costs, against what they cost (pure)
    watch_data, watch_timeline   an episode's footage as bytes, and what happened in it as a figure (pure)
    jobs       finetunings as processes of their own; training, counting: their form, words and parameters
    theme      colours, fonts, light and dark
    widgets    the few components that pages share
    pages/     one file a page; `pages.PAGES` lists them
    shell      the frame around the pages: header, stores, what is common to all
    server     create_app, listen, serve
    assets/    style sheet, font, and the client side: the selection never asks the server

The app reads files of a run and writes two kinds: heads files under selections/ and, where jobs may be started,
jobs/<id>/.
"""

from app.server import create_app, listen, serve

__all__ = ["create_app", "listen", "serve"]
