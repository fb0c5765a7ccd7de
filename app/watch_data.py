"""What the Watch page shows of an episode, read from a run's footage (interp/footage.py). Pure: no Dash here.

A take is an episode's frames as they were recorded ("clean") or as an edit changed them (a twin). The browser gets

scene    what there is to show of an episode: frames, cameras, takes and where their bytes are; small, JSON
pack     JPEGs of some frames of one camera: uint32 count, uint32 length of each, then the files; 0 where one is missing
patches  uint8 [frame, row, column] of one head and camera
series   float32 [frame, column] of one head; the scene names the columns: peaks by camera, mass by part, words

and nothing else: of 1024 heads, the server reads those on the screen.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float

from app import raw
from interp.errors import UsageError
from interp.footage import EDITS, Footage, footage_of
from interp.heads import Head
from interp.runs import Run

CLEAN = "clean"
PACK = 16
"""Frames that the browser asks for at once: few, so that after a jump the first one is soon there over a slow line."""


@dataclass(frozen=True)
class Actions:
    """What the demonstrator did in an episode. Robot units."""

    names: tuple[str, ...]
    demonstrated: Float[np.ndarray, "frame action"]


def take(run: Run, episode: int, name: str = CLEAN) -> Footage:
    return Footage.open(run, episode, None if name == CLEAN else name)


def scene(run: Run, episode: int) -> dict[str, Any]:
    """What there is to show of an episode."""
    clean = take(run, episode)
    names = [CLEAN, *footage_of(run).get(episode, ())]
    return {
        "run": run.name,
        "episode": episode,
        "frames": clean.frames,
        "fps": run.info["data"].get("fps") or run.spec.fps,
        "pack": PACK,
        "instruction": _instruction(run, episode),
        "cameras": [
            {"name": name, "grid": list(camera.grid), "letterbox": dict(camera.letterbox)}
            for name, camera in clean.cameras.items()
        ],
        "towers": {name: list(shape) for name, shape in clean.towers.items()},
        "actions": list(run.spec.action_names),
        "takes": {name: _take_record(run, take(run, episode, name)) for name in names},
    }


def _take_record(run: Run, shown: Footage) -> dict[str, Any]:
    edit = EDITS[shown.edit] if shown.edit else None
    name = shown.edit or CLEAN
    base = f"/raw/{run.name}/footage/{shown.episode}"
    pixels = edit is not None and edit.pixels
    return {
        "label": edit.label if edit else "as recorded",
        "factor": edit.factor if edit else None,
        "base": f"{base}/{name}",
        "frames": f"{base}/{name if pixels else CLEAN}",
        "v": raw.version(shown.path / "footage.json"),
        "columns": {"peak": list(shown.cameras), "mass": list(shown.parts), "word": list(shown.words)},
    }


def patches(run: Run, episode: int, name: str, head: Head, camera: str) -> bytes:
    return take(run, episode, name).attention(head, camera).tobytes()


def series(run: Run, episode: int, name: str, head: Head) -> bytes:
    shown = take(run, episode, name)
    peaks = np.stack([shown.peak(head, camera) for camera in shown.cameras], axis=-1)
    columns = np.concatenate([peaks, shown.mass(head), shown.to_words(head)], axis=-1)
    return columns.astype("<f4").tobytes()


def pack(run: Run, episode: int, name: str, camera: str, start: int, stop: int) -> bytes:
    """JPEGs of frames [start, stop) of a camera."""
    shown = take(run, episode, name)
    if camera not in shown.cameras:
        raise UsageError(f"episode {episode} has cameras {', '.join(shown.cameras)}, not {camera!r}")
    if not 0 <= start < stop <= min(shown.frames, start + PACK):
        raise UsageError(f"frames {start}-{stop}: up to {PACK} of the episode's {shown.frames} at a time")
    files = []
    for frame in range(start, stop):
        path = shown.picture(camera, frame) or run.frame_path(episode, camera, frame)
        files.append(path.read_bytes() if path.is_file() else b"")
    return struct.pack(f"<{1 + len(files)}I", len(files), *map(len, files)) + b"".join(files)


def actions(run: Run, episode: int) -> Actions | None:
    """None for a run whose capture has not finished."""
    path = run.path / "signals.parquet"
    if not path.is_file():
        return None
    found = _demonstrated(path, raw.version(path), episode)
    return Actions(tuple(run.spec.action_names), found) if len(found) else None


@lru_cache(maxsize=16)
def _demonstrated(path: Path, version: str, episode: int) -> Float[np.ndarray, "frame action"]:
    table = pq.read_table(path, columns=["frame", "action"], filters=[("episode", "=", episode)])
    values = np.array(table["action"].to_pylist(), dtype=np.float32)
    return values[np.argsort(table["frame"].to_numpy())] if len(values) else values


def _instruction(run: Run, episode: int) -> str:
    listed = run.info["data"].get("episodes")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, Mapping) and entry.get("index") == episode:
            return str(entry.get("instruction", ""))
    return ""
