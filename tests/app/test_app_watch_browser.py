"""Watching heads at work in Chromium: what is painted is the frame that is wished, and its attention."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from app_kit import Site, Tab, make_run
from watch_kit import FRAMES, PEAK, WORDS, looked_at, make_footage, spoil, word_of

from interp.runs import Run

pytestmark = pytest.mark.browser

PAINTED = "window.robosteer.watch.shownFrame === %s && robosteer.watch.tiles.every((tile) => tile.series)"


@pytest.fixture
def watched(run: Run) -> Run:
    make_footage(run)
    make_footage(run, edit="no-words")
    return run


def painted(tab: Tab, frame: int) -> None:
    tab.page.wait_for_function(PAINTED % frame)


def open_at(tab: Tab, run: Run, more: str = "", frame: int = 0) -> None:
    tab.open(f"/watch?run={run.name}{more}", ready=".rs-tile canvas")
    painted(tab, frame)
    tab.page.wait_for_selector("#watch-timeline .scatterlayer path")


def brightest(tab: Tab, tile: int, picture: int) -> tuple[int, int]:
    """(row, column) of the patch of the whole square under the lightest pixel of a canvas."""
    row, column = tab.page.evaluate(
        """([tile, picture]) => {
            const { canvas, camera } = robosteer.watch.tiles[tile].pictures[picture], { letterbox: box } = camera;
            const { width, height } = canvas, copy = Object.assign(document.createElement('canvas'), { width, height });
            const over = copy.getContext('2d', { willReadFrequently: true });
            over.drawImage(canvas, 0, 0);
            const { data } = over.getImageData(0, 0, canvas.width, canvas.height);
            let top = 0, at = 0;
            for (let i = 0; i < data.length; i += 4) if (data[i] + data[i + 1] + data[i + 2] > top) {
                top = data[i] + data[i + 1] + data[i + 2];
                at = i / 4;
            }
            const x = box.left + ((at % canvas.width) + 0.5) / canvas.width * box.width;
            const y = box.top + (Math.floor(at / canvas.width) + 0.5) / canvas.height * box.height;
            return [Math.floor(y / box.size * camera.grid[0]), Math.floor(x / box.size * camera.grid[1])];
        }""",
        [tile, picture],
    )
    return row, column


def test_scrubbing_paints_the_frame_and_the_heads_attention(tab: Tab, watched: Run) -> None:
    open_at(tab, watched, "&heads=expert.L3H2,vlm.L1H1&frame=4", frame=4)
    for key, frame in (("ArrowRight", 5), ("ArrowLeft", 4), ("Shift+ArrowRight", 14), ("Home", 0)):
        tab.page.keyboard.press(key)
        painted(tab, frame)
        for tile, (layer, head) in enumerate(((3, 2), (1, 1))):
            for picture, camera in enumerate(("front", "wrist")):
                # a patch is stretched smoothly over its neighbours, but its middle stays the lightest
                assert brightest(tab, tile, picture) == looked_at(layer, head, frame, camera), (
                    tile,
                    camera,
                    frame,
                )
        words = tab.page.query_selector_all(".rs-tile:first-child .rs-words span")
        assert [word.inner_text() for word in words] == list(WORDS)
        hot = tab.page.evaluate(
            "[...document.querySelectorAll('.rs-tile:first-child .rs-words span')]"
            ".map((word) => +word.style.getPropertyValue('--rs-heat'))"
        )
        assert hot.index(max(hot)) == word_of(3, 2, frame)
    text = tab.page.inner_text(".rs-tile:first-child")
    assert f"peak patch {100 * PEAK:.0f} %" in text
    assert "its padding 10 %" in text
    assert "gets 30 %" in text

    tab.page.evaluate("document.getElementById('watch-frame').focus()")
    tab.page.keyboard.press("End")
    painted(tab, FRAMES - 1)
    assert tab.page.get_attribute("#watch-frame", "aria-valuetext") == f"frame {FRAMES - 1} of {FRAMES - 1}"
    box = tab.page.locator("#watch-time").bounding_box()
    assert box is not None
    left, width = box["x"] + 58, box["width"] - 58 - 168
    tab.page.mouse.click(left + width * 3.5 / FRAMES, box["y"] + 60)  # the middle of frame 3
    painted(tab, 3)
    tab.page.wait_for_function("location.search.includes('frame=3')")  # and a link shows a colleague the same
    tab.page.reload()
    painted(tab, 3)


def test_pictures_fill_their_tile(tab: Tab, watched: Run) -> None:
    """Style sheets of other pages are loaded too: a class of theirs once made the pictures half as large."""
    open_at(tab, watched, "&heads=expert.L3H2")
    used = tab.page.evaluate(
        """() => {
            const cameras = document.querySelector('.rs-cameras');
            const wide = [...cameras.querySelectorAll('canvas')].map((canvas) => canvas.getBoundingClientRect().width);
            return wide.reduce((a, b) => a + b) / cameras.getBoundingClientRect().width;
        }"""
    )
    assert used > 0.95


def test_it_plays_without_the_server_and_stops(tab: Tab, watched: Run) -> None:
    open_at(tab, watched, "&heads=expert.L3H2")
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.page.select_option(".rs-speed", "30")
    asked.clear()
    before = tab.page.evaluate("robosteer.watch.painted")
    tab.page.evaluate("document.activeElement.blur()")
    tab.page.keyboard.press("Space")
    tab.page.wait_for_function(f"robosteer.watch.painted > {before} + {FRAMES + 3}")  # once around, and on
    assert tab.page.get_attribute(".rs-transport button", "aria-label") == "Pause"
    tab.page.keyboard.press("Space")
    assert not tab.page.evaluate("robosteer.watch.playing")
    here = tab.page.evaluate("robosteer.watch.frame")
    tab.page.wait_for_timeout(150)
    assert tab.page.evaluate("robosteer.watch.frame") == here
    assert not asked, asked  # every frame came from memory


def test_up_to_four_heads_side_by_side_and_a_leading_one(tab: Tab, watched: Run) -> None:
    heads = [f"expert.L{layer}H{head}" for layer in (0, 1) for head in (0, 1, 2)]
    open_at(tab, watched, f"&heads={','.join(heads)},vision.L0H0")

    def shown() -> list[str]:
        return [name.inner_text() for name in tab.page.query_selector_all(".rs-tile-name")]

    assert shown() == heads[:4]
    assert "1–4 of 6 selected" in tab.page.inner_text("#watch-heads")
    assert "1 of vision cannot be watched" in tab.page.inner_text("#watch-heads")
    tab.page.click("#watch-heads button[aria-label='Heads after']")
    tab.page.wait_for_function("document.querySelectorAll('.rs-tile').length === 2")
    assert shown() == heads[4:]
    tab.page.click(f".rs-tile-name:has-text('{heads[5]}')")
    tab.page.wait_for_selector(f".rs-tile-name[aria-pressed=true]:has-text('{heads[5]}')")
    leads = f"where {heads[5]} attends"
    tab.page.wait_for_function(
        "t => document.querySelector('#watch-timeline .js-plotly-plot')"
        ".layout.annotations.some((note) => note.text.includes(t))",
        arg=leads,
    )
    tab.page.click("#clear")  # nothing chosen: the head that was looked at stays
    tab.page.wait_for_function("document.querySelectorAll('.rs-tile').length === 1")
    assert shown() == [heads[5]]


def test_a_twin_is_shown_beside_what_was_recorded(tab: Tab, watched: Run) -> None:
    open_at(tab, watched, "&heads=expert.L3H2,expert.L1H1")
    tab.page.click("#watch-compare label:has-text('with empty instruction')")
    tab.page.wait_for_function("location.search.includes('edit=no-words')")
    tab.page.wait_for_selector(".rs-tile-take:has-text('linguistic twin')")
    takes = [take.inner_text() for take in tab.page.query_selector_all(".rs-tile-take")]
    assert takes == ["as recorded", "empty instruction (linguistic twin)"]
    assert {name.inner_text() for name in tab.page.query_selector_all(".rs-tile-name")} == {"expert.L1H1"}
    tab.page.click("#watch-frames-export")
    with tab.page.expect_download() as waiting:
        tab.page.click("text=Numbers, JSON >> visible=true")
    rows = json.loads(Path(waiting.value.path()).read_text())["rows"]
    assert {row["take"] for row in rows} == {"clean", "no-words"}
    assert rows[3]["peak front"] == pytest.approx(PEAK / 4, rel=1e-4)
    tab.page.click("#watch-frames-export")
    with tab.page.expect_download() as waiting:
        tab.page.click("text=Figure, PNG")
    assert Path(waiting.value.path()).read_bytes().startswith(b"\x89PNG")


def test_it_can_be_used_by_everybody(tab: Tab, watched: Run) -> None:
    open_at(tab, watched, "&heads=expert.L3H2,expert.L1H1")
    tab.axe()
    tab.page.click("#scheme-toggle")
    tab.page.wait_for_function(
        "document.querySelector('#watch-timeline .js-plotly-plot')._fullLayout.paper_bgcolor === '#161e27'"
    )
    tab.page.wait_for_timeout(250)  # colours fade over
    tab.axe()
    for width in (1024, 400):
        tab.page.set_viewport_size({"width": width, "height": 800})
        tab.page.wait_for_function(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth", timeout=20_000
        )


def test_what_is_missing_or_broken_is_said(tab: Tab, run: Run, site: Site) -> None:
    tab.open(f"/watch?run={run.name}", ready="text=No footage in this run yet")
    assert "--footage" in tab.page.inner_text("#page")
    broken = make_run(site.folder / "broken-footage")
    spoil(make_footage(broken))
    tab.open(f"/watch?run={broken.name}", ready="text=This episode's footage cannot be read")
    assert "footage.json" in tab.page.inner_text("#page")


def test_pictures_that_were_lost_on_the_line_come_later(tab: Tab, watched: Run) -> None:
    open_at(tab, watched, "&heads=expert.L3H2")
    tab.page.reload()
    tab.page.wait_for_function("window.robosteer && robosteer.watchRetry")
    tab.page.evaluate(  # before anything is fetched for the stage
        """() => {
            window.whole = window.fetch;
            window.fetch = (url, ...more) => (
                String(url).includes('/footage/')
                    ? Promise.reject(new TypeError('line down')) : window.whole(url, ...more)
            );
        }"""
    )
    tab.page.wait_for_selector(
        ".rs-transport [role=status]:has-text('pictures cannot be loaded (line down)')"
    )
    tab.page.wait_for_selector(".rs-tile-note:has-text('cannot be loaded (line down), asking again')")
    tab.page.evaluate("() => { window.fetch = window.whole; }")
    tab.page.wait_for_selector(".rs-transport [role=status]", state="hidden")
    painted(tab, 0)
    assert tab.page.inner_text(".rs-tile-note") == ""
    assert brightest(tab, 0, 0) == looked_at(3, 2, 0, "front")
    seen = tab.page.evaluate(
        """() => {
            const tile = robosteer.watch.tiles[0];
            return robosteer.watch.scene.cameras.map((c) => Boolean(robosteer.watch.frames(tile.info, c).get(0)));
        }"""
    )
    assert seen == [True, True]


def test_space_belongs_to_the_control_that_has_the_focus(tab: Tab, watched: Run) -> None:
    open_at(tab, watched, "&heads=expert.L3H2")
    tab.page.focus("#watch-frames-export")
    tab.page.keyboard.press("Space")
    tab.page.wait_for_selector("text=Numbers, JSON >> visible=true")
    assert not tab.page.evaluate("robosteer.watch.playing")
