"""How quick the dashboard is, in a real browser: `python benchmarks/dashboard.py` -> benchmarks/results/dashboard.json.

The run is made for this: 1024 heads x 1000 frames x 2 cameras, k-NN and patching scores, three factors. Measured in
headless Chromium without a GPU, on this machine, server and browser sharing its cores:

server          from typing `robosteer app` until it answers, seconds
first_paint     from the request for a page, with an empty cache, milliseconds, one number a fresh browser profile:
                `first` until anything is painted (First Contentful Paint), `content` until the maps are seen, `drawn`
                until they are the live ones, in which heads can be chosen
first_paint_tunnel   the same over a line of 20 Mbit/s with 80 ms added to every request
select          from letting go of the button on a cell until counter, list, every map, ranked scores and table show it,
                and the browser has painted: p50 and p95 over `--clicks` clicks; the table then scrolls to the row
select_round_trip   the same with 80 ms added to every request: the selection must not ask the server

`PARTS` holds further measurements by name; each gets the open page's context and returns numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from browser import browsing, serving, slow
from playwright.sync_api import Browser, BrowserContext, Page

from interp.policies.spec import PolicySpec, TokenSpan, TowerSpec
from interp.runs import Run, write_json
from interp.scores import HeadScores, Null, TowerScores, now

OUT = Path(__file__).parent / "results" / "dashboard.json"
LAYERS, HEADS, FRAMES, CAMERAS = 32, 32, 1000, ("front", "wrist")
EPISODES = 20
ROUND_TRIP_MS, LINE = 80, 20e6 / 8  # bytes a second

# Resolves, after the click, once everything shows `n` heads and a frame has been painted since.
SHOWN = """([x, y, n]) => new Promise((done) => {
    const shown = () => {
        const dots = (e) => ((e.getAttribute('d') || '').match(/M/g) || []).length;
        let api; try { api = dash_ag_grid.getApi('heads'); } catch { return false; }
        return document.getElementById('count').innerText.startsWith(n + ' ')
            && document.getElementById('chosen').innerText.split(/\\s+/).filter(Boolean).length === n
            && [...document.querySelectorAll('.rs-map .rs-outline')].every((e) => dots(e) === n)
            && dots(document.querySelector('#ranked-plot .rs-outline')) === n
            && api.getSelectedNodes().length === n;
    };
    window.addEventListener('pointerup', () => {
        const started = performance.now();
        const look = () => {
            if (!shown()) return requestAnimationFrame(look);
            // the next frame's callback runs after this one's paint
            requestAnimationFrame(() => setTimeout(() => { window.rsTook = performance.now() - started; }, 0));
        };
        requestAnimationFrame(look);
    }, { once: true, capture: true });
    done();
})"""

Part = Callable[[BrowserContext, str], Mapping[str, float]]
PARTS: dict[str, Part] = {}


def make_run(path: Path, seed: int = 0) -> Run:
    """A run of a policy that does not exist, with everything that the overview reads."""
    rng = np.random.default_rng(seed)
    spec = PolicySpec(
        family="pi0",
        towers={"expert": TowerSpec((HEADS,) * LAYERS, kv_heads=1, d_head=64)},
        spans={
            "image/front": TokenSpan(0, 64, (8, 8)),
            "image/wrist": TokenSpan(64, 128, (8, 8)),
            "language": TokenSpan(128, 144),
            "action": TokenSpan(144, 152),
        },
        cameras=CAMERAS,
        image_size=64,
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
    data = {"fingerprint": "demos-benchmark", "task": "benchmark", "episodes": EPISODES, "frames": FRAMES}
    run = Run.create(path, policy="pi0-benchmark", source="benchmark", spec=spec, data=data)
    asked: Sequence[tuple[str, str | None]] = (
        ("knn", None), ("patching-denoising", None), ("patching-denoising", "visual"),
        ("patching-denoising", "linguistic"), ("patching-denoising", "physical"),
    )  # fmt: skip
    for method, factor in asked:
        value = rng.gamma(1.0, 0.1, (LAYERS, HEADS))
        width = 0.02 + 0.02 * rng.random((LAYERS, HEADS))
        scores = HeadScores(
            method=method,
            label=method,
            units="NIE / TE",
            higher_is_better=True,
            towers={"expert": TowerScores(value, value - width, value + width, Null(0.0, -0.05, 0.05))},
            policy=run.policy,
            data=run.data,
            n={"episodes": EPISODES, "frames": FRAMES},
            factor=factor,
        )
        run.save_scores(scores, "-".join(filter(None, (method.split("-")[0], factor))))
    return run


def server_start(folder: Path) -> float:
    """Seconds of a process of its own until its first answer."""
    began = time.perf_counter()
    words = [sys.executable, "-m", "robosteer", "app", "--runs", str(folder), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
        urllib.request.urlopen(address).read()
        took = time.perf_counter() - began
        process.terminate()
    return round(took, 2)


def first_paint(browser: Browser, address: str, times: int, tunnel: bool = False) -> dict[str, Any]:
    """Milliseconds, each in a fresh profile."""
    first, painted, drawn = [], [], []
    for _ in range(times):
        page = new_page(browser)
        if tunnel:
            slow(page.context.new_cdp_session(page), ROUND_TRIP_MS, LINE)
        page.goto(address)
        page.wait_for_function(
            "[...document.querySelectorAll('.rs-map')].length && "
            "[...document.querySelectorAll('.rs-map')].every((map) => map.querySelector('.hm image'))"
        )
        drawn.append(page.evaluate("performance.now()"))
        for marks, name in ((first, "first-contentful-paint"), (painted, "rs-content")):
            marks.append(page.evaluate(f"performance.getEntriesByName('{name}')[0]?.startTime ?? null"))
        page.context.close()
    return {"first_ms": first, "content_ms": painted, "drawn_ms": drawn}


def new_page(browser: Browser) -> Page:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.add_init_script(CONTENT)
    return page


# Marks the first frame in which the maps are on the screen: those of the first answer, in a closed shadow root
# of #first and make it as high as the page, or Dash's own.
CONTENT = """(() => {
    const there = () => document.querySelector('#page .rs-map')
        || (document.getElementById('first')?.offsetHeight ?? 0) > innerHeight;
    const look = () => {
        if (!there()) return requestAnimationFrame(look);
        requestAnimationFrame(() => setTimeout(() => performance.mark('rs-content'), 0));
    };
    requestAnimationFrame(look);
})()"""


def select(page: Page, clicks: int, seed: int = 0) -> dict[str, float]:
    """Clicks on cells of the first map, all different; milliseconds from release to painted."""
    heads = np.random.default_rng(seed).permutation(LAYERS * HEADS)[:clicks].tolist()
    took = []
    for n, at in enumerate(heads, start=1):
        x, y = page.evaluate(
            """([layer, head]) => {
                const plot = document.querySelector('.rs-map .js-plotly-plot');
                plot.scrollIntoView({block: 'center'});
                const l = plot._fullLayout, b = plot.getBoundingClientRect();
                return [b.left + l._size.l + l.xaxis.d2p(head), b.top + l._size.t + l.yaxis.d2p(layer)];
            }""",
            list(divmod(at, HEADS)),
        )
        page.mouse.move(x, y)
        page.evaluate("delete window.rsTook")
        page.evaluate(SHOWN, [x, y, n])
        page.mouse.click(x, y)
        page.wait_for_function("window.rsTook !== undefined")
        took.append(page.evaluate("window.rsTook"))
    page.click("#clear")
    page.wait_for_function("document.getElementById('count').innerText.startsWith('0 ')")
    return quantiles(took)


def quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return {"n": len(milliseconds), "p50_ms": round(float(p50), 1), "p95_ms": round(float(p95), 1)}


def measure(folder: Path, clicks: int, loads: int, parts: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"server_s": server_start(folder)}
    with serving(folder) as root, browsing() as browser:
        address = f"{root}/?run=benchmark"
        out["chromium"] = browser.version
        first_paint(browser, address, 1)  # the server's first answers compile and read what later ones do not
        out["first_paint"] = first_paint(browser, address, loads)
        out["first_paint_tunnel"] = first_paint(browser, address, loads, tunnel=True)
        page = new_page(browser)
        page.goto(address)
        page.wait_for_selector("#ranked-plot .rs-outline", state="attached")
        page.wait_for_selector("#heads .ag-row")
        page.wait_for_timeout(500)
        out["select"] = select(page, clicks)
        slow(page.context.new_cdp_session(page), ROUND_TRIP_MS)
        out["select_round_trip"] = select(page, clicks, seed=1)
        for name in parts:
            out[name] = dict(PARTS[name](page.context, root))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clicks", type=int, default=40)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder) / "benchmark")
        measured = measure(Path(folder), asked.clicks, asked.loads, list(PARTS))
    machine = {
        "cores": os.cpu_count(),
        "system": platform.system(),
        "load": [round(x, 1) for x in os.getloadavg()],
    }
    size = {"heads": LAYERS * HEADS, "frames": FRAMES, "cameras": len(CAMERAS)}
    write_json(asked.out, {"schema": 1, "created": now(), "run": size, "machine": machine, **measured})
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
