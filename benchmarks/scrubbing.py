"""Does scrubbing feel immediate over a slow line? The Watch page on a run of 1024 heads x 1000 frames x 2 cameras.

    python benchmarks/scrubbing.py [--runs DIR] [--frames 1000] [--out benchmarks/results/scrubbing.json]

Chromium is driven over its own debugging protocol with 80 ms added to every answer and a line of 20 Mbit/s. Measured:

scrub    60 values of the slider, one every 1/60 s, as a hand moves it: how many frames are painted, and how late
play     a second at 30 frames/s
memory   the page's JavaScript heap and all of its process, before and after every frame was painted once
select   another head in place of the one that is shown: until it is painted

The run is made once, of random numbers: half a gigabyte of attention, of which the server reads what is shown.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from browser import browsing, serving, slow
from PIL import Image, ImageDraw
from playwright.sync_api import CDPSession, Page
from tqdm import tqdm

from interp.filming import Writer
from interp.footage import Camera, place
from interp.policies.spec import PolicySpec, TokenSpan, TowerSpec
from interp.runs import Run, Signals, write_json
from interp.watching import Seen

LAYERS, HEADS, GRID, CAMERAS, SIZE = 32, 32, 16, ("front", "wrist"), 224
LATENCY, LINE = 80, 20e6 / 8  # milliseconds, bytes a second
FLAGS = ("--enable-precise-memory-info", "--js-flags=--expose-gc")
SPEC = PolicySpec(
    family="pi0",
    towers={"expert": TowerSpec((HEADS,) * LAYERS, kv_heads=1, d_head=64)},
    spans={"language": TokenSpan(0, 8), "action": TokenSpan(8, 16)},
    cameras=CAMERAS,
    image_size=SIZE,
    state_dim=8,
    action_dim=7,
    max_action_dim=32,
    horizon=8,
    flow_steps=10,
    fps=30.0,
    execute=4,
    state_names=tuple(f"state_{i}" for i in range(8)),
    action_names=("dx", "dy", "dz", "drotation_x", "drotation_y", "drotation_z", "gripper"),
)


def make_run(path: Path, frames: int) -> Run:
    """The run at `path`, made if it is not there."""
    data = {
        "fingerprint": "demos-random",
        "frames": frames,
        "episodes": [{"index": 0, "instruction": "put it in"}],
    }
    run = Run.create(path, policy="pi0-random", source="random", spec=SPEC, data=data)
    target = place(run, 0)
    if target.is_dir():
        return run
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".0-", dir=target.parent))
    rng = np.random.default_rng(0)
    writer: Writer | None = None
    block = 20
    for start in tqdm(range(0, frames, block), desc="making the run", unit="block"):
        seen = _block(rng, start, min(block, frames - start))
        writer = writer or Writer(fresh, frames, seen)
        writer.put(start, seen)
    assert writer is not None
    writer.finish(episode=0, edit=None, settings={})
    for frame in range(frames):
        for camera in CAMERAS:
            _picture(frame).save(_made(run.frame_path(0, camera, frame)), "JPEG", quality=85)
    numbers = np.arange(frames)
    action = np.sin(numbers[:, None] / (10 + np.arange(7))).astype(np.float32)
    signals = Signals(numbers * 0, numbers, ["put it in"] * frames, np.zeros((frames, 8), np.float32), action,
                      np.repeat(action[:, None], SPEC.horizon, axis=1))  # fmt: skip
    pq.write_table(signals.to_table(), run.path / "signals.parquet")
    fresh.rename(target)
    return run


def _block(rng: np.random.Generator, start: int, count: int) -> Seen:
    shape = (LAYERS, HEADS, count)
    parts = ("image/front", "image/wrist", "language", "action")
    return Seen(
        images={("expert", name): rng.random((*shape, GRID, GRID), np.float32) ** 4 for name in CAMERAS},
        mass={"expert": rng.dirichlet(np.ones(len(parts)), shape).astype(np.float32)},
        words={"expert": rng.random((*shape, 3), np.float32)},
        contribution={"expert": rng.standard_normal((*shape, 7), np.float32)},
        prediction=np.sin((start + np.arange(count))[:, None] / (10 + np.arange(7))).astype(np.float32),
        parts=parts,
        vocabulary=("put", "it", "in"),
        cameras={name: Camera((GRID, GRID), vars(SPEC.letterbox(SIZE, SIZE))) for name in CAMERAS},
    )


def _picture(frame: int) -> Image.Image:
    image = Image.new("RGB", (SIZE, SIZE), (90, 110, 120))
    draw = ImageDraw.Draw(image)
    x, y = 112 + 70 * np.cos(frame / 30), 112 + 70 * np.sin(frame / 40)
    draw.rectangle((0, 150, SIZE, SIZE), fill=(150, 120, 90))
    draw.ellipse((x - 14, y - 14, x + 14, y + 14), fill=(200, 40, 40))
    return image


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# 60 positions of the slider, one a display frame; resolves to when each was painted, if it was
SCRUB = """async (from) => {
    const watch = robosteer.watch, range = document.getElementById('watch-frame'), late = [];
    let seen = new Set();
    const began = new Map();
    let on = true;
    const look = () => {
        const f = watch.shownFrame;
        if (!seen.has(f) && began.has(f)) { seen.add(f); late.push(performance.now() - began.get(f)); }
        if (on) requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
    const start = performance.now();
    for (let i = 0; i < 60; i++) {
        while (performance.now() - start < i * 1000 / 60) await new Promise((r) => setTimeout(r, 1));
        began.set(from + i, performance.now());
        range.value = from + i;
        range.dispatchEvent(new Event('input', { bubbles: true }));
    }
    await new Promise((r) => setTimeout(r, 500));
    on = false;
    return { painted: seen.size, late };
}"""

PLAY = """async () => {
    const watch = robosteer.watch, before = watch.painted, start = performance.now();
    watch.speed = 30;
    watch.play(true);
    await new Promise((r) => setTimeout(r, 2000));
    watch.play(false);
    return (watch.painted - before) / ((performance.now() - start) / 1000);
}"""

EVERY = """async (frames) => {
    const watch = robosteer.watch;
    for (let f = 0; f < frames; f++) {
        watch.seek(f, false);
        for (let i = 0; i < 400 && watch.shownFrame !== f; i++) await new Promise((r) => setTimeout(r, 5));
        if (watch.shownFrame !== f) throw new Error(`frame ${f} was never painted`);
    }
}"""

SELECT = """async (head) => {
    const start = performance.now();
    robosteer.dispatch({ type: 'set', heads: [head] });
    const there = () => robosteer.watch.tiles.length === 1 && robosteer.watch.tiles[0].head === head
        && robosteer.watch.tiles[0].series && document.querySelector('.rs-tile figcaption span').innerText;
    while (!there()) await new Promise((r) => requestAnimationFrame(r));
    return performance.now() - start;
}"""


def heap(page: Page, cdp: CDPSession) -> float:
    """Megabytes of JavaScript heap and of array buffers after a collection."""
    page.evaluate("window.gc && (gc(), gc())")
    used = cdp.send("Runtime.getHeapUsage")
    return (used["usedSize"] + used.get("backingStorageSize", 0)) / 2**20


def measure(page: Page, cdp: CDPSession, frames: int) -> dict[str, Any]:
    page.wait_for_function(
        "window.robosteer?.watch?.painted > 0 && robosteer.watch.tiles.every((t) => t.series)"
    )
    page.wait_for_timeout(1500)
    cold = page.evaluate(SCRUB, 1)
    fresh = page.evaluate(SCRUB, frames // 2)  # a place where nothing has been fetched yet
    warm = page.evaluate(SCRUB, frames // 2 + 5)
    played = page.evaluate(PLAY)
    page.evaluate(EVERY, min(150, frames))
    before = heap(page, cdp)
    page.evaluate(EVERY, frames)
    after = heap(page, cdp)
    chosen = [page.evaluate(SELECT, f"expert.L{layer}H{layer + 1}") for layer in range(10)]
    return {
        "scrub_from_start": _scrub(cold),
        "scrub_after_a_jump": _scrub(fresh),
        "scrub_again": _scrub(warm),
        "played_frames_a_second": round(played, 1),
        "page_memory_mb": {"after_150_frames": round(before, 1), f"after_{frames}_frames": round(after, 1)},
        "select_a_head_ms": {"median": round(float(np.median(chosen)), 1), "worst": round(max(chosen), 1)},
    }


def _scrub(found: dict[str, Any]) -> dict[str, Any]:
    late = found["late"] or [0.0]
    median, worst = round(float(np.median(late)), 1), round(max(late), 1)
    return {"painted_of_60": found["painted"], "median_ms": median, "worst_ms": worst}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/benchmark"), help="where the run is made and kept"
    )
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scrubbing.json"))
    arguments = parser.parse_args()
    run = make_run(arguments.runs / f"random-{LAYERS * HEADS}x{arguments.frames}", arguments.frames)
    with serving(arguments.runs) as root, browsing(FLAGS) as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        cdp = page.context.new_cdp_session(page)
        slow(cdp, LATENCY, LINE)
        page.goto(f"{root}/watch?run={run.name}&heads=expert.L3H2")
        found = measure(page, cdp, arguments.frames)
    record = {
        "run": {
            "heads": LAYERS * HEADS,
            "frames": arguments.frames,
            "cameras": len(CAMERAS),
            "grid": [GRID, GRID],
        },
        "network": {"added_latency_ms": LATENCY, "bytes_a_second": LINE},
        **found,
        "machine": f"{platform.machine()}, {platform.system()}",
    }
    write_json(arguments.out, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
