"""Footage whose every number is known: each head looks at one patch, and the patch moves on by one a frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from interp.filming import Writer
from interp.footage import Camera, place
from interp.runs import Run, Signals
from interp.watching import Seen

FRAMES = 20  # more than the browser asks for at once
WORDS = ("pick", "the", "red", "cube")
PARTS = (
    "image/front", "image/front/padding", "image/wrist", "image/wrist/padding",
    "language", "language/padding", "state", "action",
)  # fmt: skip
SQUARE = {"top": 0, "left": 0, "height": 32, "width": 32, "size": 32}
WIDE = {"top": 8, "left": 0, "height": 16, "width": 32, "size": 32}
CAMERAS = {"front": Camera((4, 4), SQUARE), "wrist": Camera((4, 4), WIDE)}
SHAPES = {"vlm": (4, 4), "expert": (5, 4)}
PEAK = 0.4


def looked_at(layer: int, head: int, frame: int, camera: str) -> tuple[int, int]:
    """(row, column) of the patch that gets the most attention; of the wide picture only rows 1 and 2 show anything."""
    at = layer + head + frame
    return (at // 4 % 4, at % 4) if camera == "front" else (1 + at // 4 % 2, at % 4)


def word_of(layer: int, head: int, frame: int) -> int:
    return (layer + head + frame) % len(WORDS)


def seen(frames: int) -> Seen:
    images, mass, words = {}, {}, {}
    for tower, (layers, heads) in SHAPES.items():
        mass[tower] = np.zeros((layers, heads, frames, len(PARTS)), np.float32)
        mass[tower][..., :] = (0.3, 0, 0.2, 0.1, 0.2, 0, 0.1, 0.1)
        words[tower] = np.full((layers, heads, frames, len(WORDS)), 0.01, np.float32)
        for camera in CAMERAS:
            attention = np.zeros((layers, heads, frames, 4, 4), np.float32)
            for layer, head, frame in np.ndindex(layers, heads, frames):
                row, column = looked_at(layer, head, frame, camera)
                attention[layer, head, frame, row, column] = PEAK / (1 + frame)
                words[tower][layer, head, frame, word_of(layer, head, frame)] = 0.1
            images[tower, camera] = attention
    wrote = np.zeros((*SHAPES["expert"], frames, 7), np.float32)
    wrote[..., 2] = np.arange(frames)
    prediction = np.tile(np.linspace(0, 1, frames, dtype=np.float32)[:, None], (1, 7))
    return Seen(images, mass, words, {"expert": wrote}, prediction, PARTS, WORDS, CAMERAS)


def make_footage(run: Run, episode: int = 0, edit: str | None = None, frames: int = FRAMES) -> Path:
    """Footage, grey pictures (a little lighter every frame) and signals of one episode."""
    path = place(run, episode, edit)
    path.mkdir(parents=True)
    writer = Writer(path, frames, seen(frames))
    writer.put(0, seen(frames))
    writer.finish(episode=episode, edit=edit, settings={})
    if edit is None:
        for camera, size in (("front", (64, 64)), ("wrist", (64, 32))):
            for frame in range(frames):
                file = run.frame_path(episode, camera, frame)
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", size, (60 + 2 * frame,) * 3).save(file, "JPEG")
        action = np.tile(np.arange(frames, dtype=np.float32)[:, None], (1, 7))
        signals = Signals(
            np.full(frames, episode), np.arange(frames), [" ".join(WORDS)] * frames,
            np.zeros((frames, 8), np.float32), action, np.zeros((frames, 8, 7), np.float32),
        )  # fmt: skip
        pq.write_table(signals.to_table(), run.path / "signals.parquet")
    return path


def spoil(path: Path) -> None:
    """A footage.json as a full disk leaves it."""
    (path / "footage.json").write_text(json.dumps({"schema": 1, "frames": 3})[:-4])
