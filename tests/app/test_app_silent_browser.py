"""The first picture goes whatever happens beneath it: a factor without a score, a server that no longer answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from app_kit import Site, Tab
from playwright.sync_api import BrowserContext

from interp.runs import Run
from interp.scores import TowerScores

pytestmark = pytest.mark.browser

GONE = "!document.getElementById('first')"


def silence(run: Run, factor: str) -> None:
    """The scores of a prompt-blind policy: no number for this factor."""
    scores = run.read_scores(f"mediation.{factor}")
    towers = {}
    for name, tower in scores.towers.items():
        none = np.full_like(tower.value, np.nan)
        towers[name] = TowerScores(none, none, none, None, tower.dead)
    run.save_scores(replace(scores, towers=towers), f"mediation.{factor}")


def test_a_silent_factor_leaves_the_page_usable(tab: Tab, run: Run) -> None:
    silence(run, "linguistic")
    tab.open(f"/?run={run.name}&method=mediation&tower=expert")
    tab.page.wait_for_function(GONE, timeout=8_000)
    tab.click("visual", 3, 2)
    tab.expect("expert.L3H2")
    tab.page.click("#factor label:has-text('linguistic')")  # nothing to list, and nothing breaks
    tab.page.wait_for_function("dash_ag_grid.getApi('heads').getDisplayedRowCount() === 0")


def test_a_server_that_stops_answering_locks_nothing(context: BrowserContext, run: Run, site: Site) -> None:
    browser = context.browser
    assert browser is not None
    # of its own: a clock is every page's, and a console that complains is part of it
    page = browser.new_page()
    page.clock.install()
    page.route("**/_dash-update-component*", lambda route: route.abort())
    page.goto(f"{site.address}/?run={run.name}")
    page.wait_for_selector(".rs-header #run")
    assert not page.evaluate(GONE)
    page.clock.fast_forward(11_000)
    page.wait_for_function(GONE, timeout=8_000)
    page.close()
