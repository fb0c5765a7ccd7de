"""Record demonstrations of the scripted expert as a LeRobotDataset v3 directory (images inside the parquet files).

Layout and column names are LeRobot's (codebase version v3.0): `meta/info.json`, `meta/stats.json`,
`meta/tasks.parquet`, `meta/episodes/chunk-000/file-000.parquet`, `data/chunk-000/file-000.parquet`.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from testbed.episodes import Episode, in_workers, play
from testbed.tabletop import ACTION_NAMES, CAMERAS, RATE_HZ, STATE_NAMES, Tabletop
from testbed.tasks import get_task
from testbed.variation import TestbedError, Variation

DEMO_NOISE = 0.004
"""Standard deviation [m] of the noise on executed actions; the recorded action is clean."""
FIRST_SEED = 500_000
"""Demonstrations' first seed by default: evaluation uses seeds from 0, pretraining from 1 000 000."""
CHUNK, FILE = 0, 0
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


@dataclass(frozen=True)
class _Job:
    task: str
    seed: int
    noise: float
    image_size: int
    variation: Variation


_env: Tabletop | None = None


def _play(job: _Job) -> Episode | None:
    """One episode in this process' own environment, which is kept for the next one."""
    global _env
    if _env is None or _env.image_size != job.image_size:
        _env = Tabletop(image_size=job.image_size)
    return play(_env, job.task, job.seed, job.noise, variation=job.variation)


def record(
    task: str | Sequence[str],
    episodes: int,
    directory: Path | str,
    seed: int = FIRST_SEED,
    workers: int = 2,
    noise: float = DEMO_NOISE,
    image_size: int = 64,
    variation: Variation | Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Write `episodes` successful episodes (of each task) from consecutive seeds; returns the directory.

    The directory appears by rename when everything is written; an existing one is an error.
    """
    names = [task] if isinstance(task, str) else list(task)
    for name in names:
        get_task(name)
    if episodes < 1:
        raise TestbedError(f"episodes {episodes}: record at least 1")
    directory = Path(directory)
    if directory.exists():
        raise TestbedError(f"{directory}: already exists; remove it or name another directory")
    look = Variation.of(variation)
    kept: list[Episode] = []
    with tqdm(total=episodes * len(names), desc="recording", unit="episode", disable=not progress) as bar:
        for name in names:
            kept += _collect(name, episodes, seed, workers, noise, image_size, look, bar)
    temporary = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    write_dataset(kept, temporary, image_size)
    temporary.rename(directory)
    return directory


def _collect(
    task: str,
    episodes: int,
    seed: int,
    workers: int,
    noise: float,
    size: int,
    look: Variation,
    bar: tqdm[Any],
) -> list[Episode]:
    """The first `episodes` successes from consecutive seeds; failures (rare, from the noise) are skipped."""
    kept: list[Episode] = []
    tried = 0
    while len(kept) < episodes:
        wanted = episodes - len(kept)
        jobs = [_Job(task, seed + tried + i, noise, size, look) for i in range(wanted)]
        tried += wanted
        for episode in in_workers(_play, jobs, workers if wanted > 8 else 1):
            if episode is not None:
                kept.append(episode)
                bar.update()
        if tried > 20 * episodes + 100:
            raise TestbedError(
                f"task {task}: the expert failed {tried - len(kept)} of {tried} times under {look}"
            )
    return kept


# -- LeRobotDataset v3 ----------------------------------------------------------------------------------------------


def write_dataset(episodes: Sequence[Episode], directory: Path, image_size: int) -> None:
    """Write episodes in LeRobot's layout into a new directory."""
    tasks = list(dict.fromkeys(e.instruction for e in episodes))
    lengths = [len(e.state) for e in episodes]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    features = _features(image_size)
    for part in ("meta/episodes/chunk-000", "data/chunk-000"):
        (directory / part).mkdir(parents=True)
    schema = _data_schema(features)
    stats: list[dict[str, dict[str, np.ndarray]]] = []
    with pq.ParquetWriter(directory / DATA_PATH.format(chunk_index=CHUNK, file_index=FILE), schema) as writer:
        for i, episode in enumerate(episodes):
            columns = _columns(episode, i, int(starts[i]), tasks.index(episode.instruction))
            writer.write_table(
                pa.table({k: _array(v, schema.field(k).type) for k, v in columns.items()}, schema)
            )
            stats.append(_episode_stats(episode, columns))
    _write_episodes(directory, episodes, lengths, starts, stats)
    names = {"task_index": list(range(len(tasks))), "__index_level_0__": tasks}
    table = pa.table(names).replace_schema_metadata({"pandas": json.dumps(_pandas_metadata())})
    pq.write_table(table, directory / "meta/tasks.parquet")
    _write_json(directory / "meta/stats.json", _listed(_aggregate(stats)))
    info = {
        "codebase_version": "v3.0",
        "robot_type": "panda_sim",
        "total_episodes": len(episodes),
        "total_frames": int(starts[-1]),
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": RATE_HZ,
        "splits": {"train": f"0:{len(episodes)}"},
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


def _columns(episode: Episode, index: int, start: int, task: int) -> dict[str, Any]:
    n = len(episode.state)
    images = {
        f"observation.images.{c}": [
            {"bytes": _png(image), "path": f"frame-{f:06d}.png"} for f, image in enumerate(episode.images[c])
        ]
        for c in CAMERAS
    }
    return {
        **images,
        "observation.state": episode.state,
        "action": episode.action,
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
    episodes: Sequence[Episode],
    lengths: Sequence[int],
    starts: np.ndarray,
    stats: Sequence[Mapping[str, Mapping[str, np.ndarray]]],
) -> None:
    zeros = [CHUNK] * len(episodes)
    columns: dict[str, Any] = {
        "episode_index": list(range(len(episodes))),
        "tasks": [[e.instruction] for e in episodes],
        "length": list(lengths),
        "data/chunk_index": zeros,
        "data/file_index": [FILE] * len(episodes),
        "dataset_from_index": starts[:-1].tolist(),
        "dataset_to_index": starts[1:].tolist(),
        "meta/episodes/chunk_index": zeros,
        "meta/episodes/file_index": [FILE] * len(episodes),
    }
    for feature, values in stats[0].items():
        for name in values:
            columns[f"stats/{feature}/{name}"] = [s[feature][name].tolist() for s in stats]
    pq.write_table(pa.table(columns), directory / EPISODES_PATH.format(chunk_index=CHUNK, file_index=FILE))


def _episode_stats(episode: Episode, columns: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Per-feature statistics as LeRobot stores them: images per channel [3, 1, 1] in [0, 1], others per dimension."""
    stats = {}
    for name, values in columns.items():
        if name.startswith("observation.images."):
            pixels = episode.images[name.removeprefix("observation.images.")] / 255.0
            described = _describe(pixels.reshape(-1, 3))
            stats[name] = {k: v if k == "count" else v.reshape(3, 1, 1) for k, v in described.items()}
            stats[name]["count"] = np.array([len(pixels)])
        else:
            stats[name] = _describe(np.asarray(values, np.float64).reshape(len(episode.state), -1))
    return stats


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


def _aggregate(stats: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
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
