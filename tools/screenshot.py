"""Screenshots of the dashboard over a directory of runs: `python tools/screenshot.py RUNS QUERY OUT.png [--dark]`."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from app.server import create_app, listen

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
QUIET += ["--disable-component-update", "--disable-sync"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("query", help="path and query, e.g. '/?run=demo'")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--size", type=int, nargs=2, default=(1440, 900))
    arguments = parser.parse_args()
    server = listen(create_app(arguments.runs), port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
        width, height = arguments.size
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda m: print(m.type, m.text) if m.type in ("error", "warning") else None)
        page.emulate_media(color_scheme="dark" if arguments.dark else "light")
        page.goto(f"http://127.0.0.1:{server.port}{arguments.query}")
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(1500)
        page.screenshot(path=arguments.out)
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main()
