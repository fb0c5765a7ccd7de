"""The LeRobotDataset v3 layout, written without LeRobot: images as PNG inside the parquet files.

`meta/info.json`, `meta/stats.json`, `meta/tasks.parquet`, `meta/episodes/chunk-000/file-000.parquet`,
`data/chunk-000/file-000.parquet`; names and types are LeRobot's (codebase version v3.0).

What costs time, PNGs and statistics, is an episode's own business (`Take.of`), so that workers can do it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, UInt8
from PIL import Image

from testbed.episodes import Episode
from testbed.tabletop import ACTION_NAMES, CAMERAS, RATE_HZ, STATE_NAMES

CHUNK, FILE = 0, 0
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Stats = Mapping[str, np.ndarray]
"""min, max, mean, std, count and the quantiles of one feature."""


@dataclass(frozen=True)
class Take:
    """An episode as the dataset keeps it."""

    instruction: str
    images: Mapping[str, Sequence[bytes]]
    """PNG of every frame, by camera."""
    pixels: Mapping[str, Stats]
    """Statistics of the images [3, 1, 1] in [0, 1], by camera."""
    state: Float[np.ndarray, "frame 8"]
    action: Float[np.ndarray, "frame 7"]

    def __len__(self) -> int:
        return len(self.state)

    @classmethod
    def of(cls, episode: Episode) -> Take:
        return cls(
            episode.instruction,
            {c: [_png(image) for image in images] for c, images in episode.images.items()},
            {c: _describe_pixels(images) for c, images in episode.images.items()},
            episode.state,
            episode.action,
        )


def write_dataset(takes: Sequence[Take], directory: Path, image_size: int) -> None:
    """Write episodes in LeRobot's layout into a new directory."""
    tasks = list(dict.fromkeys(take.instruction for take in takes))
    lengths = [len(take) for take in takes]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    features = _features(image_size)
    for part in ("meta/episodes/chunk-000", "data/chunk-000"):
        (directory / part).mkdir(parents=True)
    schema = _data_schema(features)
    stats: list[dict[str, Stats]] = []
    with pq.ParquetWriter(directory / DATA_PATH.format(chunk_index=CHUNK, file_index=FILE), schema) as writer:
        for i, take in enumerate(takes):
            columns = _columns(take, i, int(starts[i]), tasks.index(take.instruction))
            writer.write_table(
                pa.table({k: _array(v, schema.field(k).type) for k, v in columns.items()}, schema)
            )
            stats.append(_episode_stats(take, columns))
    _write_episodes(directory, takes, lengths, starts, stats)
    names = {"task_index": list(range(len(tasks))), "__index_level_0__": tasks}
    table = pa.table(names).replace_schema_metadata({"pandas": json.dumps(_pandas_metadata())})
    pq.write_table(table, directory / "meta/tasks.parquet")
    _write_json(directory / "meta/stats.json", _listed(_aggregate(stats)))
    info = {
        "codebase_version": "v3.0",
        "robot_type": "panda_sim",
        "total_episodes": len(takes),
        "total_frames": int(starts[-1]),
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": RATE_HZ,
        "splits": {"train": f"0:{len(takes)}"},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": features,
    }
    _write_json(directory / "meta/info.json", info)


def _features(image_size: int) -> dict[str, dict[str, Any]]:
    axes = ["height", "width", "channels"]
    image = {"dtype": "image", "shape": [image_size, image_size, 3], "names": axes, "fps": RATE_HZ}
    vectors = {"observation.state": STATE_NAMES, "action": ACTION_NAMES}
    counters = {
        "timestamp": "float32",
        "frame_index": "int64",
        "episode_index": "int64",
        "index": "int64",
        "task_index": "int64",
    }
    return {
        **{f"observation.images.{c}": image for c in CAMERAS},
        **{
            k: {"dtype": "float32", "shape": [len(v)], "names": list(v), "fps": RATE_HZ}
            for k, v in vectors.items()
        },
        **{k: {"dtype": v, "shape": [1], "names": None, "fps": RATE_HZ} for k, v in counters.items()},
    }


def _data_schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Arrow schema with the `huggingface` metadata that `datasets` reads column types from."""
    fields: list[pa.Field] = []
    described: dict[str, Any] = {}
    for name, feature in features.items():
        if feature["dtype"] == "image":
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            described[name] = {"_type": "Image"}
        else:
            scalar = {"float32": pa.float32(), "int64": pa.int64()}[feature["dtype"]]
            value = {"dtype": feature["dtype"], "_type": "Value"}
            width = feature["shape"][0]
            kind = pa.list_(scalar, width) if width > 1 else scalar
            described[name] = {"feature": value, "length": width, "_type": "List"} if width > 1 else value
        fields.append(pa.field(name, kind))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def _columns(take: Take, index: int, start: int, task: int) -> dict[str, Any]:
    n = len(take)
    images = {
        f"observation.images.{c}": [
            {"bytes": png, "path": f"frame-{f:06d}.png"} for f, png in enumerate(take.images[c])
        ]
        for c in CAMERAS
    }
    return {
        **images,
        "observation.state": take.state,
        "action": take.action,
        "timestamp": (np.arange(n) / RATE_HZ).astype(np.float32),
        "frame_index": np.arange(n),
        "episode_index": np.full(n, index),
        "index": np.arange(start, start + n),
        "task_index": np.full(n, task),
    }


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), type=kind)
    return pa.array(values, kind)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_episodes(
    directory: Path,
    takes: Sequence[Take],
    lengths: Sequence[int],
    starts: np.ndarray,
    stats: Sequence[Mapping[str, Stats]],
) -> None:
    zeros = [CHUNK] * len(takes)
    columns: dict[str, Any] = {
        "episode_index": list(range(len(takes))),
        "tasks": [[take.instruction] for take in takes],
        "length": list(lengths),
        "data/chunk_index": zeros,
        "data/file_index": [FILE] * len(takes),
        "dataset_from_index": starts[:-1].tolist(),
        "dataset_to_index": starts[1:].tolist(),
        "meta/episodes/chunk_index": zeros,
        "meta/episodes/file_index": [FILE] * len(takes),
    }
    for feature, values in stats[0].items():
        for name in values:
            columns[f"stats/{feature}/{name}"] = [s[feature][name].tolist() for s in stats]
    pq.write_table(pa.table(columns), directory / EPISODES_PATH.format(chunk_index=CHUNK, file_index=FILE))


def _episode_stats(take: Take, columns: Mapping[str, Any]) -> dict[str, Stats]:
    """Per-feature statistics as LeRobot stores them."""
    images = {f"observation.images.{camera}": stats for camera, stats in take.pixels.items()}
    others = (name for name in columns if name not in images)
    return images | {
        name: _describe(np.asarray(columns[name], np.float64).reshape(len(take), -1)) for name in others
    }


def _describe_pixels(images: UInt8[np.ndarray, "frame height width 3"]) -> dict[str, np.ndarray]:
    """Exact, from how often each of the 256 values occurs: sorting every pixel would cost more than the episode."""
    total = images[..., 0].size
    levels = np.arange(256) / 255.0
    columns: dict[str, list[float]] = {}
    for channel in range(3):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        reached, mean = np.cumsum(counts), float(counts @ levels) / total
        columns.setdefault("mean", []).append(mean)
        columns.setdefault("std", []).append(float(np.sqrt(counts @ (levels - mean) ** 2 / total)))
        places = {"min": 0.0, "max": 1.0, **QUANTILES}
        for name, share in places.items():
            rank = share * (total - 1)  # between two of the sorted pixels, as np.quantile interpolates
            low, high = np.searchsorted(reached, [np.floor(rank), np.ceil(rank)], side="right")
            value = levels[low] + (rank - np.floor(rank)) * (levels[high] - levels[low])
            columns.setdefault(name, []).append(float(value))
    described = {name: np.reshape(values, (3, 1, 1)) for name, values in columns.items()}
    return described | {"count": np.array([len(images)])}


def _describe(values: np.ndarray) -> dict[str, np.ndarray]:
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def _aggregate(stats: Sequence[Mapping[str, Stats]]) -> dict[str, dict[str, np.ndarray]]:
    """Pool episodes: exact for all but the quantiles, which are count-weighted means as in LeRobot."""
    pooled = {}
    for feature in stats[0]:
        parts = [s[feature] for s in stats]
        counts = np.array([p["count"][0] for p in parts], float)
        weights = (counts / counts.sum()).reshape(-1, *[1] * parts[0]["mean"].ndim)
        means, stds = np.stack([p["mean"] for p in parts]), np.stack([p["std"] for p in parts])
        mean = (weights * means).sum(0)
        pooled[feature] = {
            "min": np.min([p["min"] for p in parts], 0),
            "max": np.max([p["max"] for p in parts], 0),
            "mean": mean,
            "std": np.sqrt((weights * (stds**2 + (means - mean) ** 2)).sum(0)),
            "count": np.array([int(counts.sum())]),
            **{q: (weights * np.stack([p[q] for p in parts])).sum(0) for q in QUANTILES},
        }
    return pooled


def _listed(stats: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    return {f: {k: v.tolist() for k, v in parts.items()} for f, parts in stats.items()}


def _pandas_metadata() -> dict[str, Any]:
    """What pandas writes for a frame with `task_index` and the task text as its (unnamed) index."""

    def column(name: str | None, field: str | None, kind: str, numpy: str) -> dict[str, Any]:
        return {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}

    index = "__index_level_0__"
    return {
        "index_columns": [index],
        "column_indexes": [column(None, None, "unicode", "object")],
        "columns": [
            column("task_index", "task_index", "int64", "int64"),
            column(None, index, "unicode", "object"),
        ],
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
