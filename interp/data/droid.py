"""DROID's raw episodes, read as openpi reads them for finetuning.

    <episode>/trajectory.h5                     observation/robot_state/{joint_positions, gripper_position}
                                                action/{joint_velocity, gripper_position}
                                                observation/camera_type/<serial>: 0 is the wrist's
    <episode>/recordings/MP4/<serial>.mp4       one view of each stereo camera, a picture a frame
    <episode>/metadata_*.json                   serials of the cameras, current_task
    aggregated-annotations-*.json               (above the episodes) language by the episode's id

State: 7 joint positions [rad] and the gripper. Action: 7 joint velocities and the gripper's position. Cameras are
called wrist_image_left, exterior_image_1_left and exterior_image_2_left, and made 180 x 320 as in DROID's RLDS release.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from interp.data.hdf5 import hdf5, matrix
from interp.data.recordings import Recording, Source
from interp.errors import UsageError
from interp.runs import read_json

FPS = 15.0
SIZE = (180, 320)
"""Height and width in DROID's RLDS release."""
WRIST, EXTERIOR = "wrist_image_left", ("exterior_image_1_left", "exterior_image_2_left")
_STATE = ("joint_positions", "gripper_position")


def read(
    path: str | Path,
    *,
    cameras: Mapping[str, str] | None = None,
    size: tuple[int, int] | None = SIZE,
    action: str = "joint_velocity",
    instruction: str | None = None,
    fps: float | None = None,
) -> Source:
    """All episodes under a directory. `size` None keeps the recordings' own."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.rglob("trajectory.h5"))
    if not files:
        raise UsageError(f"{path} holds no trajectory.h5")
    chosen = {name: name for name in (WRIST, *EXTERIOR)} if cameras is None else cameras
    for name in chosen:
        if name not in (WRIST, *EXTERIOR):
            raise UsageError(f"camera {name!r}: DROID has {', '.join((WRIST, *EXTERIOR))}")
    with hdf5(files[0]) as file:
        width = matrix(file, [f"action/{action}"], files[0]).shape[1]
    annotations = _annotations(path if path.is_dir() else path.parent)
    reader = _Reader(chosen, size, action, instruction, annotations, optional=cameras is None)
    joints = [f"joint_{i}" for i in range(7)]
    names = [f"{action}_{i}" for i in range(width)]
    return Source(
        map(reader.read, files), len(files), fps or FPS, "panda", [*joints, "gripper"], [*names, "gripper"]
    )


@dataclass(frozen=True)
class _Reader:
    cameras: Mapping[str, str]
    size: tuple[int, int] | None
    action: str
    instruction: str | None
    annotations: Mapping[str, Any]
    optional: bool
    """A camera that an episode lacks is left out; unless it was asked for."""

    def read(self, path: Path) -> Recording:
        with hdf5(path) as file:
            state = matrix(file, [f"observation/robot_state/{key}" for key in _STATE], path)
            action = matrix(file, [f"action/{self.action}", "action/gripper_position"], path)
            kinds = {
                serial: int(np.ravel(kind[()])[0])
                for serial, kind in file.get("observation/camera_type", {}).items()
            }
        found = sorted(path.parent.glob("metadata_*.json"))
        metadata = read_json(found[0]) if found else {}
        films = self._films(path, kinds, metadata)
        images = {self.cameras[name]: self._images(film, len(action)) for name, film in films.items()}
        stop = min([len(action), *map(len, images.values())])
        return Recording(
            source=str(path),
            instruction=self.instruction or self._told(found, metadata),
            images={camera: pictures[:stop] for camera, pictures in images.items()},
            state=state[:stop],
            action=action[:stop],
        )

    def _films(self, path: Path, kinds: Mapping[str, int], metadata: Mapping[str, Any]) -> dict[str, Path]:
        """The film of every camera that is wanted, by DROID's name of it."""
        folder = path.parent / "recordings" / "MP4"
        there = {f.stem: f for f in sorted(folder.glob("*.mp4")) if not f.stem.endswith("stereo")}

        def told(camera: str) -> str | None:
            serial = str(metadata.get(f"{camera}_cam_serial", ""))
            return serial if serial in there else None

        wrist = told("wrist") or next((serial for serial in there if kinds.get(serial) == 0), None)
        others = [serial for serial in there if serial != wrist]
        first = told("ext1") or next(iter(others), None)
        second = told("ext2") or next((serial for serial in others if serial != first), None)
        serials = {
            name: serial
            for name, serial in zip((WRIST, *EXTERIOR), (wrist, first, second), strict=True)
            if serial is not None
        }
        missing = [name for name in self.cameras if name not in serials]
        if missing and (not self.optional or not serials):
            has = ", ".join(there) or "none"
            raise UsageError(f"{path.parent}: no film of {missing[0]} in recordings/MP4; films there: {has}")
        return {name: there[serials[name]] for name in self.cameras if name in serials}

    def _images(self, film: Path, frames: int) -> UInt8[np.ndarray, "frame height width 3"]:
        pictures = list(_pictures(film, self.size, frames))
        if len(pictures) < frames - FPS:  # recordings often stop a few pictures early, never more than that
            raise UsageError(f"{film} has {len(pictures)} pictures, its trajectory {frames} frames")
        return np.stack(pictures)

    def _told(self, found: Sequence[Path], metadata: Mapping[str, Any]) -> str:
        key = found[0].stem.removeprefix("metadata_") if found else ""
        entry = self.annotations.get(key) or self.annotations.get(key.split("_")[-1]) or {}
        return str(entry.get("language_instruction1") or metadata.get("current_task") or "")


def _pictures(
    film: Path, size: tuple[int, int] | None, frames: int
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    try:
        with av.open(str(film)) as container:
            for _, frame in zip(range(frames), container.decode(video=0), strict=False):
                picture = frame.to_image()
                if size is not None:
                    picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
                yield np.asarray(picture)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UsageError(f"{film} is broken: {getattr(error, 'strerror', None) or error}") from error


def _annotations(path: Path) -> dict[str, Any]:
    """The language file in this directory or one above."""
    for folder in (path, *path.resolve().parents[:3]):
        for file in sorted(folder.glob("aggregated-annotations*.json")):
            return read_json(file)
    return {}
