"""Runs, scores and results for the dashboard's tests, written with the public API; and a tab with a person's moves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from app import create_app, listen
from interp.policies.spec import PolicySpec, TokenSpan, TowerSpec
from interp.runs import Run
from interp.scores import HeadScores, Null, TowerScores
from steering.results import Result
from steering.rollouts import Episode

POLICY, DATA = "pi0-0123abcd", "demos-4567ef01"
Shape = dict[str, tuple[int, int]]
TINY: Shape = {"vision": (2, 3), "vlm": (4, 4), "expert": (5, 4)}
DEAD = {"vlm": ((3, 0), (3, 1), (3, 2), (3, 3))}


def make_spec(shape: Shape) -> PolicySpec:
    towers = {
        name: TowerSpec(
            (heads,) * layers, kv_heads=1, d_head=16, dead=DEAD.get(name, ()) if shape is TINY else ()
        )
        for name, (layers, heads) in shape.items()
    }
    return PolicySpec(
        family="pi0",
        towers=towers,
        spans={
            "image/front": TokenSpan(0, 4, (2, 2)),
            "language": TokenSpan(4, 8),
            "action": TokenSpan(8, 16),
        },
        cameras=("front",),
        image_size=32,
        state_dim=8,
        action_dim=7,
        max_action_dim=8,
        horizon=8,
        flow_steps=5,
        fps=10.0,
        execute=4,
        state_names=tuple(f"s{i}" for i in range(8)),
        action_names=tuple(f"a{i}" for i in range(7)),
    )


def make_run(path: Path, shape: Shape = TINY, policy: str = POLICY) -> Run:
    data = {"fingerprint": DATA, "task": "marker-in-mug", "episodes": 20, "frames": 540}
    return Run.create(path, policy=policy, source="tiny-pi0", spec=make_spec(shape), data=data)


def make_scores(
    shape: Shape = TINY, *, seed: int = 0, higher: bool = False, **named: str | None
) -> HeadScores:
    """Scores without ties; the best head of the expert is L3H2, whatever the direction."""
    rng = np.random.default_rng(seed)
    towers = {}
    for name, (layers, heads) in shape.items():
        value = rng.permutation(np.linspace(0.5, 1.0, layers * heads)).reshape(layers, heads)
        if name == "expert":
            value[3, 2] = 0.2
        if higher:
            value = 1.2 - value
        low, high = value - 0.03, value + 0.04
        dead = DEAD.get(name, ()) if shape is TINY else ()
        for at in dead:
            value[at] = low[at] = high[at] = np.nan
        null = Null(0.1, 0.0, 0.2) if higher else Null(1.0, 0.9, 1.1)
        towers[name] = TowerScores(value, low, high, null, dead)
    text = {"method": "knn", "label": "k-NN regression", "units": "normalised action units squared", **named}
    return HeadScores(
        higher_is_better=higher, towers=towers, policy=POLICY, data=DATA, n={"episodes": 20, "frames": 540}, **text
    )  # fmt: skip


def make_result(arm: str, successes: Sequence[bool], base: Result | None = None, **more: object) -> Result:
    episodes = tuple(Episode(seed, bool(ok), 30) for seed, ok in enumerate(successes))
    result = Result(name=arm, arm=arm, task="marker-in-mug", policy=POLICY, episodes=episodes, **more)
    return result if base is None else result.against(base)


@dataclass(frozen=True)
class Site:
    """A dashboard that is being served, and the folder that it reads."""

    folder: Path
    address: str


@contextmanager
def serving(folder: Path) -> Iterator[Site]:
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line a request buries the failure
    server = listen(create_app(folder), port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Site(folder, f"http://127.0.0.1:{server.port}")
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Tab:
    """A page of the dashboard with the moves of a person."""

    page: Page
    address: str

    def open(self, path: str = "/", ready: str = "") -> None:
        """Load a page and wait for a selector, or else for every map to be drawn."""
        self.page.goto(self.address + path)
        if ready:
            self.page.wait_for_selector(ready, state="attached")
        else:
            self.drawn()

    def drawn(self) -> None:
        self.page.wait_for_function(
            """() => {
                const maps = [...document.querySelectorAll('.rs-map')];
                const drawn = (map) => map.querySelector(map.dataset.scored === '0' ? '.main-svg' : '.hm image');
                return maps.length > 0 && maps.every(drawn);
            }"""
        )

    def choose(self, select: str, label: str) -> None:
        """Pick an option of a Mantine select."""
        self.page.click(select)
        self.page.click(f"[role=option]:has-text('{label}'):visible")

    def at(self, panel: str, layer: float, head: float) -> tuple[float, float]:
        """Where on the window a place of a map is, in pixels."""
        x, y = self.page.evaluate(
            """([panel, layer, head]) => {
                const gd = document.querySelector(`.rs-map[data-panel="${panel}"] .js-plotly-plot`);
                gd.scrollIntoView({block: 'center'});
                const l = gd._fullLayout, b = gd.getBoundingClientRect();
                return [b.left + l._size.l + l.xaxis.d2p(head), b.top + l._size.t + l.yaxis.d2p(layer)];
            }""",
            [panel, layer, head],
        )
        return x, y

    def click(self, panel: str, layer: int, head: int) -> None:
        self.page.mouse.move(*self.at(panel, layer, head))
        self.page.mouse.click(*self.at(panel, layer, head))

    def drag(self, panel: str, *corners: tuple[float, float]) -> None:
        """Press at the first (layer, head), move to the others, release."""
        self.page.mouse.move(*self.at(panel, *corners[0]))
        self.page.mouse.down()
        for corner in corners[1:]:
            self.page.mouse.move(*self.at(panel, *corner), steps=6)
        self.page.mouse.up()

    def take_best(
        self, k: int, *, by: str | None = None, tower: str | None = None, add: bool = False
    ) -> None:
        """The best k heads, through the selection bar."""
        self.page.click("#best-open")
        self.page.wait_for_function("document.getElementById('best-tower').value !== ''")
        self.page.fill("#best-k", str(k))
        if by:
            with self.page.expect_response("**/_dash-update-component*"):  # the towers of these scores
                self.choose("#best-by", by)
        if tower:
            self.choose("#best-tower", tower)
        self.page.click("#best-add" if add else "#best")
        self.page.keyboard.press("Escape")

    def sets(self) -> None:
        """Open the panel of sets, and wait until it knows those that are saved."""
        with self.page.expect_response("**/_dash-update-component*"):
            self.page.click("#sets-open")
        self.page.wait_for_selector("#set-a:visible")
        self.page.wait_for_timeout(150)

    def axe(self) -> None:
        """Fail on anything that axe-core calls serious or critical."""
        found = Axe().run(self.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]}).response
        wrong = [
            f"{rule['id']} ({rule['impact']}): {node['html'][:160]} {node['failureSummary']}"
            for rule in found["violations"]
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]
        assert not wrong, "\n".join(wrong)

    def expect(self, *heads: str) -> None:
        """Every place that shows the selection shows these heads: URL, counter, list, maps, table."""
        self.page.wait_for_function(SHOWN, arg=list(heads))


# true when URL, counter, list, maps and table all show exactly these heads; false while anything is still loading
SHOWN = r"""heads => {
    const text = (id) => document.getElementById(id)?.innerText;
    const same = (a, b) => JSON.stringify([...a].sort()) === JSON.stringify([...b].sort());
    if ((new URLSearchParams(location.search).get('heads') || '') !== heads.join(',')) return false;
    if (text('count') !== (heads.length === 1 ? '1 head selected' : `${heads.length} heads selected`)) return false;
    if (heads.length && !same(text('chosen').split(/\s+/), heads)) return false;

    const maps = [...document.querySelectorAll('.rs-map')];
    for (const map of maps) {
        const { tower, layers, heads: wide } = map.dataset;
        const path = map.querySelector('.rs-outline')?.getAttribute('d') ?? null;
        if (path === null) return false;
        // an outline starts at a cell's upper left corner, in fractions of the plot
        const drawn = [...path.matchAll(/M([\d.]+) ([\d.]+)/g)]
            .map(([, x, y]) => `${tower}.L${Math.floor(y * layers)}H${Math.floor(x * wide)}`);
        if (!same(drawn, heads.filter((id) => id.startsWith(tower + '.')))) return false;
    }

    let api;
    try { api = window.dash_ag_grid && dash_ag_grid.getApi('heads'); } catch { /* not there yet */ }
    const rows = [];
    if (api) api.forEachNode((node) => rows.push(node.id));
    return maps.length > 0 && rows.length > 0
        && same(api.getSelectedNodes().map((node) => node.id), heads.filter((id) => rows.includes(id)));
}"""
