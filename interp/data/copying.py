"""Some episodes and cameras of a data set as one of its own. Images that are files are copied, not encoded again."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from interp.data.layout import Layout, read_columns, rows_of
from interp.data.recordings import Recording, Source
from interp.demos import Demonstrations
from interp.errors import UsageError
from testbed.dataset import Vector


def renamed(demos: Demonstrations, cameras: Mapping[str, str] | None) -> Mapping[str, str]:
    """The cameras to take, with what they are to be called (all, as they are, by default)."""
    for name in cameras or ():
        if name not in demos.cameras:
            raise UsageError(f"camera {name!r}: demonstrations {demos.path} have {', '.join(demos.cameras)}")
    return cameras or {name: name for name in demos.cameras}


def source_of(demos: Demonstrations, cameras: Mapping[str, str] | None = None) -> Source:
    """Recordings of the episodes that `demos` holds: states, actions, images, and other vectors of numbers."""
    layout = demos.layout
    extras = {name: _vector(layout, name) for name in layout.extras}
    return Source(
        recordings=_recordings(demos, layout, renamed(demos, cameras), list(extras)),
        length=len(demos.episodes),
        fps=demos.fps,
        robot=str(layout.info.get("robot_type") or "unknown"),
        state_names=layout.names(layout.states),
        action_names=layout.names(layout.actions),
        extras=extras,
    )


def _vector(layout: Layout, name: str) -> Vector:
    feature = layout.features[name]
    width = int(feature["shape"][0])
    return Vector(width, layout.names([name]) if width > 1 else None, feature["dtype"])


def _recordings(
    demos: Demonstrations, layout: Layout, cameras: Mapping[str, str], extras: Sequence[str]
) -> Iterator[Recording]:
    tables = [read_columns(file, extras) for file in layout.tables] if extras else []
    others = {name: rows_of(tables, name, layout.path) for name in extras}
    for episode in demos.episodes:
        frames = range(episode.start, episode.stop)
        here = slice(episode.start, episode.stop)
        tasks = {demos.instruction(frame) for frame in frames}
        if len(tasks) > 1:
            raise UsageError(
                f"episode {episode.index} changes its task ({', '.join(sorted(tasks))}): an export holds one an episode"
            )
        seen = list(demos.observations(frames))
        files = {called: _files(demos, frames, camera) for camera, called in cameras.items()}
        yield Recording(
            source=f"episode {episode.index}",
            instruction=episode.instruction,
            images={called: np.stack([o.images[camera] for o in seen]) for camera, called in cameras.items()},
            state=demos.state[here],
            action=demos.action[here],
            encoded={called: encoded for called, encoded in files.items() if encoded},
            extras={name: values[demos.rows[here]] for name, values in others.items()},
        )


def _files(demos: Demonstrations, frames: range, camera: str) -> list[bytes]:
    """The images as they are stored; none if they are in a film."""
    found = [demos.encoded(frame, camera) for frame in frames]
    return [file for file in found if file is not None]
