"""An independent writer of the LeRobotDataset v3 layout, for the tests: pyarrow and PIL, nothing of ours."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_dataset(
    path: Path,
    episodes: Sequence[Mapping[str, Any]],
    fps: float = 10,
    episodes_per_file: int = 2,
) -> Path:
    """Each episode: {"task": str, "state": [T, d], "action": [T, a], "images": {camera: u8 [T, h, w, 3]}}."""
    cameras = list(episodes[0]["images"])
    tasks = sorted({episode["task"] for episode in episodes})
    metas = []
    index = 0
    for first in range(0, len(episodes), episodes_per_file):
        number = first // episodes_per_file
        file = path / "data" / "chunk-000" / f"file-{number:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        writer = None
        for e in range(first, min(first + episodes_per_file, len(episodes))):
            episode = episodes[e]
            length = len(episode["action"])
            columns: dict[str, pa.Array] = {
                f"observation.images.{camera}": pa.array(
                    [{"bytes": _png(image), "path": None} for image in episode["images"][camera]], IMAGE
                )
                for camera in cameras
            }
            columns["observation.state"] = _rows(episode["state"])
            columns["action"] = _rows(episode["action"])
            columns["timestamp"] = pa.array(np.arange(length, dtype=np.float32) / fps)
            columns["frame_index"] = pa.array(np.arange(length))
            columns["episode_index"] = pa.array(np.full(length, e))
            columns["index"] = pa.array(np.arange(index, index + length))
            columns["task_index"] = pa.array(np.full(length, tasks.index(episode["task"])))
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
            metas.append(
                {
                    "episode_index": e,
                    "tasks": [episode["task"]],
                    "length": length,
                    "data/chunk_index": 0,
                    "data/file_index": number,
                    "dataset_from_index": index,
                    "dataset_to_index": index + length,
                }
            )
            index += length
        assert writer is not None
        writer.close()
    (path / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(metas), path / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    pq.write_table(
        pa.table({"task_index": list(range(len(tasks))), "__index_level_0__": tasks}),
        path / "meta" / "tasks.parquet",
    )
    height, width = episodes[0]["images"][cameras[0]].shape[1:3] if cameras else (0, 0)
    features: dict[str, Any] = {
        f"observation.images.{camera}": {"dtype": "image", "shape": [height, width, 3]} for camera in cameras
    }
    for name, key in (("observation.state", "state"), ("action", "action")):
        features[name] = {"dtype": "float32", "shape": [episodes[0][key].shape[1]]}
    info = {
        "codebase_version": "v3.0",
        "fps": fps,
        "total_episodes": len(episodes),
        "total_frames": index,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": features,
    }
    (path / "meta" / "info.json").write_text(json.dumps(info))
    return path


def _rows(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.float32).tolist(), pa.list_(pa.float32()))


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def random_episodes(
    lengths: Sequence[int],
    cameras: Sequence[str] = ("front", "wrist"),
    size: int = 32,
    state_dim: int = 8,
    action_dim: int = 7,
    seed: int = 0,
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    tasks = ["pick up the red cube", "press the button"]
    return [
        {
            "task": tasks[i % len(tasks)],
            "state": rng.normal(size=(length, state_dim)).astype(np.float32),
            "action": rng.normal(size=(length, action_dim)).astype(np.float32),
            "images": {camera: rng.integers(0, 256, (length, size, size, 3), np.uint8) for camera in cameras},
        }
        for i, length in enumerate(lengths)
    ]
