"""The LeRobotDataset v3 layout, written without LeRobot, an episode at a time.

    meta/{info.json, stats.json, tasks.parquet}, meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet               one row a frame; images as PNG or JPEG inside
    videos/<feature>/chunk-000/file-000.mp4       or as video: videos.py

Names and types are LeRobot's (codebase version v3.0). A `Form` says what all episodes share, a `Take` is one episode.
What costs time, PNGs and statistics, is an episode's own business (`Take.of`), so that workers can do it; memory holds
the episode that is being written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped, UInt8
from PIL import Image

from testbed.episodes import Episode
from testbed.tabletop import ACTION_NAMES, CAMERAS, RATE_HZ, STATE_NAMES
from testbed.videos import VideoWriter

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_A_CHUNK = 1000
DATA_FILE_MB, VIDEO_FILE_MB = 100, 200
"""A file that has grown past this gets no further episode."""
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATE, ACTION = "observation.state", "action"
COUNTERS = ("frame_index", "episode_index", "index", "task_index")
_SCALARS = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}

Stats = Mapping[str, np.ndarray]
"""min, max, mean, std, count and the quantiles of one feature."""


@dataclass(frozen=True)
class Vector:
    """A feature of numbers: `width` of them a frame, one of which may be alone."""

    width: int
    names: Sequence[str] | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class Form:
    """What all episodes of a data set share."""

    fps: float
    robot_type: str
    cameras: Mapping[str, tuple[int, int]]
    """(height, width) in pixels, by camera."""
    vectors: Mapping[str, Vector]
    """By feature, the state and the action among them."""
    codec: str | None = None
    """`h264` or `av1` for videos; None for images inside the data files."""

    def features(self) -> dict[str, dict[str, Any]]:
        """As meta/info.json lists them."""
        fps = int(self.fps) if self.fps == int(self.fps) else self.fps
        axes = ["height", "width", "channels"]
        counters = {"timestamp": "float32"} | dict.fromkeys(COUNTERS, "int64")
        vectors = {**self.vectors, **{name: Vector(1, None, dtype) for name, dtype in counters.items()}}
        kind = "video" if self.codec else "image"
        images = {
            image_feature(camera): {"dtype": kind, "shape": [*size, 3], "names": axes, "fps": fps}
            for camera, size in self.cameras.items()
        }
        numbers = {
            name: {
                "dtype": vector.dtype,
                "shape": [vector.width],
                "names": None if vector.names is None else list(vector.names),
                "fps": fps,
            }
            for name, vector in vectors.items()
        }
        return images | numbers


@dataclass(frozen=True)
class Take:
    """An episode as the dataset keeps it."""

    instruction: str
    images: Mapping[str, Sequence[bytes]]
    """PNG or JPEG of every frame, by camera."""
    pixels: Mapping[str, Stats]
    """Statistics of the images [3, 1, 1] in [0, 1], by camera."""
    vectors: Mapping[str, Shaped[np.ndarray, "frame dim"]]
    """By feature, the state and the action among them."""

    def __len__(self) -> int:
        return len(self.vectors[ACTION])

    @classmethod
    def of(cls, episode: Episode) -> Take:
        return cls.from_arrays(
            episode.instruction, episode.images, {STATE: episode.state, ACTION: episode.action}
        )

    @classmethod
    def from_arrays(
        cls,
        instruction: str,
        images: Mapping[str, UInt8[np.ndarray, "frame height width 3"]],
        vectors: Mapping[str, Shaped[np.ndarray, "frame dim"]],
        encoded: Mapping[str, Sequence[bytes]] | None = None,
    ) -> Take:
        """`encoded` holds images that are already files, so that they are not encoded again."""
        files = encoded or {}
        return cls(
            instruction,
            {c: files.get(c) or [_png(image) for image in frames] for c, frames in images.items()},
            {c: _describe_pixels(frames) for c, frames in images.items()},
            vectors,
        )


def write_dataset(takes: Sequence[Take], directory: Path, image_size: int) -> None:
    """Write episodes of the tabletop in LeRobot's layout into a new directory."""
    vectors = {STATE: Vector(len(STATE_NAMES), STATE_NAMES), ACTION: Vector(len(ACTION_NAMES), ACTION_NAMES)}
    form = Form(RATE_HZ, "panda_sim", dict.fromkeys(CAMERAS, (image_size, image_size)), vectors)
    with DatasetWriter(directory, form) as writer:
        for take in takes:
            writer.add(take)


@dataclass
class DatasetWriter:
    """Writes into a new directory; its metadata appear when the `with` block ends without an error."""

    directory: Path
    form: Form
    tasks: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    _stats: list[dict[str, Stats]] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _file: int = -1
    _parquet: pq.ParquetWriter | None = None

    def __enter__(self) -> DatasetWriter:
        (self.directory / "meta/episodes/chunk-000").mkdir(parents=True)
        self.features = self.form.features()
        self.schema = _data_schema(self.features)
        self.videos = {
            camera: VideoWriter(
                self.directory, VIDEO_PATH, image_feature(camera), self.form.codec, self.form.fps, size,
                files_a_chunk=FILES_A_CHUNK, file_mb=VIDEO_FILE_MB,
            )
            for camera, size in self.form.cameras.items()
            if self.form.codec
        }  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._parquet is not None:
            self._parquet.close()
        for video in self.videos.values():
            video.close()
        if kind is None:
            self._finish()

    def add(self, take: Take) -> None:
        self._make_room()
        assert self._parquet is not None
        if take.instruction not in self.tasks:
            self.tasks.append(take.instruction)
        index, start = len(self.lengths), sum(self.lengths)
        columns = self._columns(take, index, start)
        cells = {
            k: _array(v, self.schema.field(k).type) for k, v in columns.items() if k in self.schema.names
        }
        self._parquet.write_table(pa.table(cells, self.schema))
        self.lengths.append(len(take))
        self._stats.append(_episode_stats(take, columns))
        row = {
            "episode_index": index,
            "tasks": [take.instruction],
            "length": len(take),
            "data/chunk_index": self._file // FILES_A_CHUNK,
            "data/file_index": self._file % FILES_A_CHUNK,
            "dataset_from_index": start,
            "dataset_to_index": start + len(take),
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for camera, video in self.videos.items():
            row |= video.add(take.images[camera])
        self._rows.append(row)

    def _make_room(self) -> None:
        """A data file that may take an episode."""
        if self._parquet is not None and self._path.stat().st_size < DATA_FILE_MB * 2**20:
            return
        if self._parquet is not None:
            self._parquet.close()
        self._file += 1
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._parquet = pq.ParquetWriter(self._path, self.schema)

    @property
    def _path(self) -> Path:
        chunk, file = divmod(self._file, FILES_A_CHUNK)
        return self.directory / DATA_PATH.format(chunk_index=chunk, file_index=file)

    def _columns(self, take: Take, index: int, start: int) -> dict[str, Any]:
        n = len(take)
        images = {
            image_feature(c): [
                {"bytes": file, "path": f"frame-{f:06d}.png"} for f, file in enumerate(take.images[c])
            ]
            for c in self.form.cameras
        }
        return {
            **images,
            **{name: take.vectors[name] for name in self.form.vectors},
            "timestamp": (np.arange(n) / self.form.fps).astype(np.float32),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, index),
            "index": np.arange(start, start + n),
            "task_index": np.full(n, self.tasks.index(take.instruction)),
        }

    def _finish(self) -> None:
        columns: dict[str, Any] = {name: [row[name] for row in self._rows] for name in self._rows[0]}
        for feature, values in self._stats[0].items():
            for name in values:
                columns[f"stats/{feature}/{name}"] = [s[feature][name].tolist() for s in self._stats]
        pq.write_table(pa.table(columns), self.directory / EPISODES_PATH.format(chunk_index=0, file_index=0))
        names = {"task_index": list(range(len(self.tasks))), "__index_level_0__": self.tasks}
        table = pa.table(names).replace_schema_metadata({"pandas": json.dumps(_pandas_metadata())})
        pq.write_table(table, self.directory / "meta/tasks.parquet")
        _write_json(self.directory / "meta/stats.json", _listed(_aggregate(self._stats)))
        for camera, video in self.videos.items():
            self.features[image_feature(camera)]["info"] = video.info()
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.form.robot_type,
            "total_episodes": len(self.lengths),
            "total_frames": sum(self.lengths),
            "total_tasks": len(self.tasks),
            "chunks_size": FILES_A_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": self.features["timestamp"]["fps"],
            "splits": {"train": f"0:{len(self.lengths)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.videos else None,
            "features": self.features,
        }
        _write_json(self.directory / "meta/info.json", info)


def image_feature(camera: str) -> str:
    return f"observation.images.{camera}"


def _data_schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Arrow schema with the `huggingface` metadata that `datasets` reads column types from."""
    fields: list[pa.Field] = []
    described: dict[str, Any] = {}
    for name, feature in features.items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            described[name] = {"_type": "Image"}
        else:
            scalar = _SCALARS[feature["dtype"]]
            value = {"dtype": feature["dtype"], "_type": "Value"}
            width = feature["shape"][0]
            kind = pa.list_(scalar, width) if width > 1 else scalar
            described[name] = {"feature": value, "length": width, "_type": "List"} if width > 1 else value
        fields.append(pa.field(name, kind))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), type=kind)
    return pa.array(values.ravel() if isinstance(values, np.ndarray) else values, kind)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _episode_stats(take: Take, columns: Mapping[str, Any]) -> dict[str, Stats]:
    """Per-feature statistics as LeRobot stores them."""
    images = {image_feature(camera): stats for camera, stats in take.pixels.items()}
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
