"""The pages Heads and Methods in Chromium, and what every page owes: both schemes, no serious axe violation."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_kit import DEAD, POLICY, TINY, Site, Tab, make_result, make_run, make_scores

from interp.runs import Run
from interp.scores import TowerScores

pytestmark = pytest.mark.browser


@pytest.fixture
def rich(run: Run) -> Run:
    """The run with all that the pages can show: exact and approximate scores, stability, results."""
    run.save_scores(
        make_scores(seed=5, higher=True, method="patching-denoising", label="Patching", units="NIE/TE"),
        "patching",
    )
    run.save_scores(
        make_scores(seed=6, higher=True, method="atp-denoising", label="AtP", units="NIE/TE"), "atp"
    )
    often = make_scores(
        seed=7, higher=True, method="knn-stability", label="k-NN, stability", units="share of resamples"
    )
    towers = {
        name: TowerScores(np.clip(tower.value, 0, 1), dead=DEAD.get(name, ()))
        for name, tower in often.towers.items()
    }
    run.save_scores(
        replace(
            often, towers=towers, settings={"n": dict.fromkeys(towers, 12), "k": dict.fromkeys(towers, 10)}
        ),
        "knn-stability",
    )
    base = make_result("base", [True] * 30 + [False] * 70)
    run.save_result("base", base.to_json())
    run.save_result("aligned", make_result("aligned", [True] * 70 + [False] * 30, base).to_json())
    return run


def grid_selects(tab: Tab, grid: str, heads: list[str]) -> None:
    tab.page.wait_for_function(
        """([grid, heads]) => {
            let api; try { api = dash_ag_grid.getApi(grid); } catch { return false; }
            return JSON.stringify(api.getSelectedNodes().map((n) => n.id).sort()) === JSON.stringify(heads);
        }""",
        arg=[grid, sorted(heads)],
    )


def test_heads_are_listed_chosen_found_and_looked_at(tab: Tab, rich: Run, site: Site) -> None:
    other = make_run(site.folder / f"{rich.name}-again")
    other.save_scores(make_scores(seed=9))
    tab.open(f"/heads?run={rich.name}&heads=expert.L1H1", ready="#drawer h2")
    grid_selects(tab, "heads-table", ["expert.L1H1"])
    live = sum(layers * heads for layers, heads in TINY.values()) - len(DEAD["vlm"])
    assert f"{live} heads" in tab.page.inner_text(".rs-heads .rs-bar")

    row = '.ag-row[row-id="expert.L3H2"]'
    tab.page.fill("#heads-search", "expert L3H2")
    tab.page.wait_for_function("dash_ag_grid.getApi('heads-table').getDisplayedRowCount() === 1")
    tab.page.click(f'{row} .ag-cell[col-id="layer"]')
    tab.page.wait_for_function("document.querySelector('#drawer h2')?.innerText === 'expert.L3H2'")
    tab.page.wait_for_function("location.search.includes('head=expert.L3H2')")
    # L3H2's 1.0, -0.03 and +0.04, also to who cannot see the drawing
    glyph = tab.page.locator(f"{row} svg[aria-label='95 %: 0.970 to 1.04']").first
    glyph.hover()
    tab.page.wait_for_selector(".ag-tooltip:has-text('95 %: 0.970 to 1.04')")
    drawer = tab.page.inner_text("#drawer")
    assert "best rank: 1 of 20" in drawer
    assert other.name in drawer  # the same head in another run
    tab.page.wait_for_selector("#head-standing .js-plotly-plot")
    tab.page.click("#drawer-toggle")
    grid_selects(tab, "heads-table", ["expert.L1H1", "expert.L3H2"])
    tab.page.wait_for_function("document.getElementById('drawer-toggle').innerText === 'Deselect'")

    tab.page.fill("#heads-search", "")
    tab.page.click("label:has-text('only selected')")
    tab.page.wait_for_function("dash_ag_grid.getApi('heads-table').getDisplayedRowCount() === 2")
    tab.page.click(f"{row} .ag-checkbox-input")
    tab.page.wait_for_function("dash_ag_grid.getApi('heads-table').getDisplayedRowCount() === 1")
    assert tab.page.inner_text("#count") == "1 head selected"

    tab.page.reload()  # a fresh tab shows the same head and the same selection
    tab.page.wait_for_function("document.querySelector('#drawer h2')?.innerText === 'expert.L3H2'")
    grid_selects(tab, "heads-table", ["expert.L1H1"])
    with tab.page.expect_download() as waiting:
        tab.page.click("#heads-table-export")
        tab.page.click("text=Numbers, CSV >> visible=true")
    lines = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))
    assert len(lines) == live
    knn = rich.read_scores("knn").towers["expert"].value
    mine = next(line for line in lines if line["head"] == "expert.L3H2")
    assert float(mine["knn score"]) == pytest.approx(knn[3, 2], rel=1e-5)
    assert mine["knn rank"] == "1"


def test_methods_compare_choose_and_export(tab: Tab, rich: Run) -> None:
    tab.open(f"/methods?run={rich.name}&tower=expert&k=4", ready="#upset .bars")
    value = {name: rich.read_scores(name).towers["expert"].value.ravel() for name in ("patching", "atp")}
    tops = [set(np.argsort(-v)[:4].tolist()) for v in value.values()]
    text = tab.page.inner_text("#methods-cards")
    assert "Overlap of the best 4 against chance" in text
    assert "of the best 12 found" in text
    rows = tab.page.evaluate("document.querySelector('#overlap .js-plotly-plot').layout.meta.rows")
    shared = next(row["shared"] for row in rows if {row["a"], row["b"]} == {"patching", "atp"})
    assert shared == len(tops[0] & tops[1])

    heads = tab.page.evaluate("document.querySelector('#upset .js-plotly-plot').data[0].customdata[0].heads")
    bar = tab.page.query_selector("#upset .bars .point path")
    assert bar is not None
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    assert box is not None
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.page.wait_for_function(
        "heads => new URLSearchParams(location.search).get('heads') === heads.join(',')", arg=sorted(heads)
    )
    # outlined in the scatter too: one dot a head
    tab.page.wait_for_function(
        "n => document.querySelector('#check .rs-outline').getAttribute('d').split('M').length - 1 === n",
        arg=len(heads),
    )
    for what, label in (("json", "Numbers, JSON"), ("svg", "Figure, SVG")):
        tab.page.click("#matrix-export")
        with tab.page.expect_download() as waiting:
            tab.page.click(f"text={label} >> visible=true")
        assert waiting.value.suggested_filename == f"{rich.name}-matrix.{what}"
        content = Path(waiting.value.path()).read_text()
        assert "spearman" in content.lower()
        if what == "json":
            assert {row["heads"] for row in json.loads(content)["rows"]} == {20}
    tab.page.click("#methods-factor label:has-text('visual')")
    tab.page.wait_for_function(
        "document.getElementById('methods-reading').innerText.includes('mediation.visual')"
    )
    tab.page.wait_for_function("location.search.includes('factor=visual')")


@pytest.mark.parametrize("path", ["/", "/heads", "/methods", "/compare"])
def test_every_page_passes_axe_in_light_and_dark(tab: Tab, rich: Run, path: str) -> None:
    tab.open(f"{path}?run={rich.name}&heads=expert.L3H2", ready=".js-plotly-plot .main-svg")
    tab.page.wait_for_timeout(300)
    for scheme in ("light", "dark"):
        if scheme == "dark":
            tab.page.click("#scheme-toggle")
            tab.page.wait_for_function(
                "[...document.querySelectorAll('.js-plotly-plot')]"
                ".every(g => g._fullLayout.paper_bgcolor === '#161e27')"
            )
            tab.page.wait_for_timeout(250)  # colours fade over
        tab.axe()


def test_a_run_with_broken_files_says_which_and_shows_the_rest(tab: Tab, rich: Run) -> None:
    (rich.path / "scores" / "half.json").write_text('{"schema": 1, "method"')
    (rich.path / "selections").mkdir(exist_ok=True)
    (rich.path / "selections" / "bad.json").write_text("[]")
    record = json.loads((rich.path / "scores" / "knn.json").read_text())
    rich.save_selection(
        "theirs", {"schema": 1, "policy": "pi0-ffffffff", "heads": [{"tower": "vlm", "layer": 0, "head": 0}]}
    )
    assert record["policy"] == POLICY
    for path, ready in (("/", ".rs-map .hm image"), ("/heads", ".ag-row"), ("/methods", "#upset .bars")):
        tab.open(f"{path}?run={rich.name}", ready=ready)
        assert "half.json" in tab.page.inner_text("#page .rs-notices")
    tab.open(f"/?run={rich.name}&set=theirs", ready="#notice-list .rs-notice")
    assert "pi0-ffffffff" in tab.page.inner_text("#notice-list")


# addresses of libraries that came over the line more than once; one from the cache has no size, or a header's
TWICE = """() => {
    const sent = performance.getEntriesByType('resource')
        .filter((entry) => entry.name.includes('_dash-component-suites') && entry.transferSize > 500)
        .map((entry) => entry.name);
    return sent.filter((name, i) => sent.indexOf(name) !== i);
}"""


@pytest.mark.parametrize("path", ["/", "/heads", "/watch", "/methods", "/finetune", "/compare"])
def test_libraries_are_sent_once_and_the_first_picture_goes(tab: Tab, run: Run, path: str) -> None:
    tab.open(f"{path}?run={run.name}", ready="#page > *")
    tab.page.wait_for_function("!document.getElementById('first')")
    assert tab.page.evaluate(TWICE) == []


def test_maps_are_seen_before_any_script_has_run(tab: Tab, run: Run) -> None:
    tab.page.route("**/*.js*", lambda route: None)  # never answered
    tab.page.goto(f"{tab.address}/?run={run.name}&method=knn&tower=expert", wait_until="commit")
    tab.page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    colour = tab.page.evaluate("getComputedStyle(document.getElementById('first')).backgroundColor")
    assert colour == "rgb(244, 246, 248)"
