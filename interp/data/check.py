"""What is wrong with a LeRobotDataset v3, a line a problem: files, frames, times, numbers, images, statistics.

Opening a data set stops at the first thing that it cannot do without; this looks at everything, LeRobot's own
conditions too: time stamps within 0.1 ms of frame / fps, and statistics that normalisation can rely on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from interp.data.frames import FrameStore
from interp.data.layout import EpisodeEntry, Layout, Numbers
from interp.errors import UsageError
from interp.policies.spec import PolicySpec

TOLERANCE = 1e-4
"""Seconds by which LeRobot lets a time stamp be off."""
_STATS = 0.01
"""Standard deviations by which a statistic may differ from the data."""


def problems(
    path: str | Path, spec: PolicySpec | None = None, *, every_image: bool = True, progress: bool = False
) -> Iterator[str]:
    """Lines, none if all is well. Without `every_image`, the first, middle and last of every episode are decoded."""
    try:
        layout = Layout.open(path)
        features = (*layout.states, *layout.actions)
    except UsageError as error:
        yield str(error)
        return
    yield from _totals(layout)
    missing = list(layout.missing())
    yield from missing
    yield from _clips(layout)
    for feature in features:
        if len(layout.features[feature].get("shape", ())) != 1:
            yield f"{feature} is of shape {layout.features[feature].get('shape')}: it must be a vector"
    readable: list[Numbers] = []
    for file in layout.tables:
        if not file.is_file():
            continue
        try:
            numbers = layout.read_numbers(file)
        except UsageError as error:
            yield str(error)
            continue
        here = [episode for episode in layout.episodes if episode.data == file]
        yield from _episodes(layout, here, numbers)
        yield from _dimensions(layout, file, numbers)
        readable.append(numbers)
    yield from _statistics(layout, readable, complete=len(readable) == len(layout.tables))
    if spec is not None:
        yield from unfit(layout, spec)
    if not missing and len(readable) == len(layout.tables):
        yield from _images(layout, every_image, progress)


def unfit(layout: Layout, spec: PolicySpec) -> Iterator[str]:
    """Why a policy of this spec could not use the data."""
    for camera in spec.cameras:
        if camera not in layout.cameras:
            has = ", ".join(layout.cameras) or "none"
            yield f"the policy needs camera {camera!r}, the data have {has}"
    for kind, needed, names in (
        ("state", spec.state_dim, layout.names(layout.states)),
        ("action", spec.action_dim, layout.names(layout.actions)),
    ):
        if needed != len(names):
            yield f"the policy's {kind} has {needed} dimensions, the data's {len(names)}"


def _totals(layout: Layout) -> Iterator[str]:
    found = {
        "total_episodes": len(layout.episodes),
        "total_frames": sum(episode.length for episode in layout.episodes),
        "total_tasks": len(layout.instructions),
    }
    for name, value in found.items():
        told = layout.info.get(name)
        if told is not None and told != value:
            yield f"meta/info.json: {name} is {told}, meta has {value}"
    numbers = [episode.index for episode in layout.episodes]
    if numbers != list(range(len(numbers))):
        yield f"meta/episodes: episodes are not numbered 0-{len(numbers) - 1}, each once"


def _clips(layout: Layout) -> Iterator[str]:
    for episode in layout.episodes:
        for feature, clip in episode.clips.items():
            frames = (clip.stop - clip.start) * layout.fps
            if abs(frames - episode.length) > 0.5:
                yield (
                    f"episode {episode.index}: its film of {feature} lasts {clip.stop - clip.start:.3f} s, "
                    f"{frames:.1f} frames; the episode has {episode.length}"
                )


def _episodes(layout: Layout, here: Sequence[EpisodeEntry], numbers: Numbers) -> Iterator[str]:
    known = {episode.index for episode in here}
    for index in np.unique(numbers.episode).tolist():
        if index not in known:
            yield f"episode {index} is in data and not where meta/episodes says"
    for episode in here:
        at = np.flatnonzero(numbers.episode == episode.index)
        name = f"episode {episode.index}"
        if len(at) != episode.length:
            yield f"{name} has {episode.length} frames in meta/episodes and {len(at)} in data"
        if not np.array_equal(numbers.frame[at], np.arange(len(at))):
            yield f"{name}: frame_index does not count 0-{len(at) - 1}"
            continue
        late = np.abs(numbers.timestamp[at] - np.arange(len(at)) / layout.fps)
        if len(at) and late.max() > TOLERANCE:
            frame = int(late.argmax())
            yield (
                f"{name}: frame {frame} is at {numbers.timestamp[at][frame]:.4f} s; "
                f"at {layout.fps:g} fps it must be at {frame / layout.fps:.4f} s"
            )
        for kind, values in (("state", numbers.state), ("action", numbers.action)):
            wrong = ~np.isfinite(values[at]).all(axis=1)
            if wrong.any():
                yield f"{name}: {kind} is not finite in {wrong.sum()} frames, first in frame {wrong.argmax()}"
        yield from _tasks(layout, episode, numbers, at)


def _tasks(layout: Layout, episode: EpisodeEntry, numbers: Numbers, at: np.ndarray) -> Iterator[str]:
    if numbers.task is None:
        return
    for task in np.unique(numbers.task[at]).tolist():
        if task not in layout.instructions:
            yield f"episode {episode.index}: task {task} is not in meta/tasks.parquet"
        elif episode.tasks and layout.instructions[task] not in episode.tasks:
            yield f"episode {episode.index}: task {layout.instructions[task]!r} is not among its tasks in meta/episodes"


def _dimensions(layout: Layout, file: Path, numbers: Numbers) -> Iterator[str]:
    for kind, values, names in (
        ("state", numbers.state, layout.names(layout.states)),
        ("action", numbers.action, layout.names(layout.actions)),
    ):
        if values.shape[1] != len(names):
            where = file.relative_to(layout.path)
            yield f"{where}: {kind} has {values.shape[1]} dimensions, meta/info.json says {len(names)}"


def _statistics(layout: Layout, numbers: Sequence[Numbers], complete: bool) -> Iterator[str]:
    file = layout.path / "meta" / "stats.json"
    if not file.is_file():
        yield "meta/stats.json is missing: LeRobot normalises by it"
        return
    try:
        stats = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        yield f"meta/stats.json is broken: {error}"
        return
    for kind, features in (("state", layout.states), ("action", layout.actions)):
        if len(features) != 1:
            continue
        if features[0] not in stats:
            yield f"meta/stats.json lacks {features[0]}"
            continue
        values = [getattr(part, kind) for part in numbers]
        if complete and len({part.shape[1] for part in values}) == 1:
            yield from _compare(features[0], stats[features[0]], np.concatenate(values).astype(np.float64))


def _compare(feature: str, told: Mapping[str, Any], values: Float[np.ndarray, "frame dim"]) -> Iterator[str]:
    if not np.isfinite(values).all():
        return
    spread = np.maximum(values.std(0), 1e-6 * np.maximum(1, np.abs(values).max(0)))
    true = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    for name, right in true.items():
        found = np.asarray(told.get(name, []), float).ravel()
        if found.shape != right.shape:
            yield f"meta/stats.json: {name} of {feature} has {len(found)} dimensions, the data {len(right)}"
            continue
        off = np.abs(found - right) / spread
        if not off.max() <= _STATS:
            at = int(np.nan_to_num(off, nan=np.inf).argmax())
            yield f"meta/stats.json: {name} of {feature}[{at}] is {found[at]:.6g}, of the data {right[at]:.6g}"


def _images(layout: Layout, every: bool, progress: bool) -> Iterator[str]:
    """At most one problem a camera and episode: what breaks one frame breaks many."""
    try:
        numbers = layout.read_numbers()
    except UsageError:
        return  # said already
    known = [episode.index for episode in layout.episodes]
    if not np.isin(numbers.episode, known).all():
        return  # said, too: whose film a frame is in is not known
    store = FrameStore(layout, numbers)
    bar = tqdm(total=len(layout.episodes), desc="images", unit="episode", disable=not progress)
    with bar:
        for index, members in groupby(range(len(numbers)), key=lambda at: int(numbers.episode[at])):
            at = list(members)
            chosen = at if every else sorted({at[0], at[len(at) // 2], at[-1]})
            for camera in layout.cameras:
                yield from _episode_images(layout, store, numbers, camera, index, chosen)
            bar.update()


def _episode_images(
    layout: Layout, store: FrameStore, numbers: Numbers, camera: str, episode: int, frames: Sequence[int]
) -> Iterator[str]:
    size = layout.image_size(camera)
    for at in frames:
        place = f"episode {episode}, frame {numbers.frame[at]}, camera {camera}"
        try:
            image = store.read(int(numbers.row[at]), [camera])[camera]
        except UsageError as error:
            yield f"{place}: {error}"
            return
        if image.shape[:2] != size:
            found = " x ".join(map(str, image.shape[:2]))
            yield f"{place}: the image is {found}, meta/info.json says {size[0]} x {size[1]}"
            return
