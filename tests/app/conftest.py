"""A folder of runs, a dashboard over it on a free port, and a browser that fails on console errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_kit import Site, Tab, make_run, make_scores, serving
from flask.testing import FlaskClient
from playwright.sync_api import BrowserContext, ConsoleMessage, Request, sync_playwright

from app import create_app
from interp.runs import Run

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for all browser tests: every test makes runs of its own in its folder."""
    folder = tmp_path_factory.mktemp("dashboard") / "runs"
    folder.mkdir()
    with serving(folder) as site:
        yield site


@pytest.fixture
def run(site: Site, request: pytest.FixtureRequest) -> Run:
    """A run of this test alone, with scores by two methods, and by one method for three factors."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")
    run = make_run(site.folder / name[:60])
    run.save_scores(make_scores())
    run.save_scores(make_scores(seed=1, higher=True, method="ablation", label="Zero ablation", units="share"))
    for seed, factor in enumerate(("visual", "linguistic", "physical")):
        named = {"method": "mediation", "label": "Mediation", "units": "NIE/TE", "factor": factor}
        run.save_scores(make_scores(seed=seed, higher=True, **named), f"mediation.{factor}")
    return run


@pytest.fixture
def client(run: Run) -> Iterator[FlaskClient]:
    """The dashboard over the run's folder, asked without a browser."""
    with create_app(run.path.parent).server.test_client() as client:
        yield client


@pytest.fixture(scope="session")
def context(site: Site) -> Iterator[BrowserContext]:
    """One browser profile for all tests, so that the libraries are loaded once."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
        context.set_default_timeout(60_000)  # CI may be busy; nothing waits for this when all is well
        yield context
        browser.close()


@pytest.fixture
def tab(context: BrowserContext, site: Site) -> Iterator[Tab]:
    """A fresh tab; console errors and warnings, uncaught errors and requests to elsewhere fail the test."""
    page = context.new_page()
    wrong: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            wrong.append(f"{message.type}: {message.text}")

    def asked(request: Request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            wrong.append(f"request to {request.url}")

    page.on("console", heard)
    page.on("pageerror", lambda error: wrong.append(f"uncaught: {error}"))
    page.on("request", asked)
    yield Tab(page, site.address)
    page.evaluate("localStorage.clear()")  # light or dark is remembered
    page.close()
    assert not wrong, wrong
