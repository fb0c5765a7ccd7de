"""What the benchmarks of the dashboard share: a server over a folder of runs, a browser, and a slow line."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, CDPSession, sync_playwright

from app import create_app, listen

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def serving(runs: Path) -> Iterator[str]:
    """The address of a dashboard over `runs`, in a thread of this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = listen(create_app(runs), port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def browsing(flags: Sequence[str] = ()) -> Iterator[Browser]:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=[*FLAGS, *flags])
        yield browser
        browser.close()


def slow(session: CDPSession, milliseconds: int, bytes_a_second: float = -1) -> None:
    """Add a round trip's time to every request, and let no more than so many bytes through; -1: any number."""
    session.send("Network.enable")
    line = {"downloadThroughput": bytes_a_second, "uploadThroughput": bytes_a_second}
    session.send("Network.emulateNetworkConditions", {"offline": False, "latency": milliseconds, **line})
