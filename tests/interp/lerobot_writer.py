"""An independent writer of the LeRobotDataset v3 layout, for the tests: pyarrow, PIL and PyAV, no format of ours."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from testbed.processes import scheduling_kept

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_dataset(
    path: Path,
    episodes: Sequence[Mapping[str, Any]],
    fps: float = 10,
    episodes_per_file: int = 2,
    codec: str | None = None,
    group: int = 2,
    film_fps: float | None = None,
) -> Path:
    """Each episode: {"task": str, "state": [T, d], "action": [T, a], "images": {camera: u8 [T, h, w, 3]}}.

    With a `codec` images go to films, `group` pictures to a key frame, all episodes of a data file in one; of
    `film_fps` instead of `fps` pictures a second, if the images of an episode are that many.
    """
    all_cameras = list(episodes[0]["images"])
    cameras = [] if codec else all_cameras
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
            place = {}
            for camera in all_cameras if codec else []:
                start = sum(len(episodes[i]["action"]) for i in range(first, e))
                video = f"videos/observation.images.{camera}"
                place[f"{video}/chunk_index"], place[f"{video}/file_index"] = 0, number
                place[f"{video}/from_timestamp"] = start / fps
                place[f"{video}/to_timestamp"] = (start + length) / fps
            metas.append(
                {
                    **place,
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
        for camera in all_cameras if codec else []:
            film = path / f"videos/observation.images.{camera}/chunk-000/file-{number:03d}.mp4"
            shown = [e["images"][camera] for e in episodes[first : first + episodes_per_file]]
            _film(film, np.concatenate(shown), film_fps or fps, str(codec), group)
    (path / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(metas), path / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    pq.write_table(
        pa.table({"task_index": list(range(len(tasks))), "__index_level_0__": tasks}),
        path / "meta" / "tasks.parquet",
    )
    features: dict[str, Any] = {
        f"observation.images.{camera}": {
            "dtype": "video" if codec else "image",
            "shape": list(episodes[0]["images"][camera].shape[1:]),
            "names": ["height", "width", "channels"],
        }
        for camera in all_cameras
    }
    for name, key in (("observation.state", "state"), ("action", "action")):
        features[name] = {"dtype": "float32", "shape": [episodes[0][key].shape[1]], "names": None}
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        dtype = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    info = {
        "codebase_version": "v3.0",
        "fps": fps,
        "total_episodes": len(episodes),
        "total_frames": index,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if codec
        else None,
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


def _film(file: Path, images: np.ndarray, fps: float, codec: str, group: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with scheduling_kept(), av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=int(fps), options={"g": str(group)})
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


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
