"""What the selection remembers: what chose it, and what it was before another policy was looked at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_kit import Site, Tab, make_run, make_scores

from interp.runs import Run

pytestmark = pytest.mark.browser


def downloaded(tab: Tab) -> dict[str, Any]:
    tab.sets()
    with tab.page.expect_download() as waiting:
        tab.page.click("#take")
    tab.page.keyboard.press("Escape")
    record: dict[str, Any] = json.loads(Path(waiting.value.path()).read_text())
    return record


def test_a_heads_file_says_what_chose_the_heads(tab: Tab, run: Run) -> None:
    value = run.read_scores("ablation").towers["expert"].value
    order = [divmod(int(at), value.shape[1]) for at in np.argsort(-value, axis=None)[:3]]
    tab.open(f"/?run={run.name}&method=knn&tower=expert")  # what leads the overview chose nothing
    tab.take_best(3, by="Zero ablation", tower="expert")
    tab.page.wait_for_function("document.getElementById('count').innerText === '3 heads selected'")
    taken = downloaded(tab)
    assert (taken["method"], taken["factor"]) == ("ablation", None)
    assert taken["trainable_head_indices"] == [list(at) for at in order]
    assert [head["score"] for head in taken["heads"]] == [value[at] for at in order]
    tab.click("expert", *order[0])  # takes the best one out again
    tab.page.wait_for_function("document.getElementById('count').innerText === '2 heads selected'")
    assert downloaded(tab)["method"] == "chosen by hand"
    tab.page.click("#undo")
    tab.page.wait_for_function("document.getElementById('count').innerText === '3 heads selected'")
    assert downloaded(tab) == taken

    run.save_selection("theirs", taken | {"method": "by them"})  # a loaded set keeps its own
    tab.page.click("#clear")
    tab.sets()
    tab.choose("#set-a", "theirs")
    tab.page.click("#load")
    tab.page.wait_for_selector("#combine-said.good")
    tab.page.keyboard.press("Escape")
    assert downloaded(tab) == taken | {"method": "by them"}
    tab.page.reload()  # an address carries heads, and not what chose them
    tab.drawn()
    assert downloaded(tab)["method"] == "from a link"
    tab.open(f"/?run={run.name}&method=knn&tower=expert&set=theirs")
    assert downloaded(tab) == taken | {"method": "by them"}


def test_looking_at_another_policy_costs_no_selection(tab: Tab, run: Run, site: Site) -> None:
    other = make_run(site.folder / "a-third-policy", policy="pi0-eeeeeeee")
    other.save_scores(replace(make_scores(), policy="pi0-eeeeeeee"))
    (site.folder / "cut-off").mkdir()
    (site.folder / "cut-off" / "run.json").write_text("{")
    tab.open(f"/?run={run.name}&method=knn&heads=expert.L1H1")
    tab.click("expert", 2, 2)
    tab.expect("expert.L1H1", "expert.L2H2")

    def look_at(name: str) -> None:
        tab.choose("#run", name)
        tab.page.wait_for_function("name => location.search.includes(`run=${name}`)", arg=name)

    look_at("a-third-policy")
    tab.expect()
    tab.click("expert", 0, 0)
    tab.expect("expert.L0H0")
    look_at("cut-off")
    tab.page.wait_for_selector("text=Run cut-off cannot be shown")
    look_at(run.name)
    tab.expect("expert.L1H1", "expert.L2H2")
    tab.page.click("#undo")  # with its past
    tab.expect("expert.L1H1")
    look_at("a-third-policy")
    tab.expect("expert.L0H0")
