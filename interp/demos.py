"""Demonstrations: LeRobotDataset v3 directories, read without LeRobot (data/layout.py has the format).

A frame is one row, in the order of (episode, frame within the episode). States, actions and indices are read when the
directory is opened; images, embedded or in films, when they are asked for. `chunk` gives the actions that follow a
frame as a policy predicts them, with a mask over the steps past the end of the episode.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.data.frames import FrameStore
from interp.data.layout import Layout, Numbers
from interp.errors import UsageError
from interp.policies.protocol import Observation
from interp.policies.spec import PolicySpec


@dataclass(frozen=True)
class Episode:
    """Frames [start, stop) of the demonstrations. `index` is the episode's number in its data set."""

    index: int
    start: int
    stop: int
    instruction: str

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """All or some episodes of a data set. State and action are in the robot's units."""

    path: Path
    fps: float
    cameras: tuple[str, ...]
    episodes: tuple[Episode, ...]
    state: Float[np.ndarray, "frame state"]
    action: Float[np.ndarray, "frame action"]
    rows: Int[np.ndarray, " frame"]
    """Where each frame stands in the data set's files."""
    fingerprint: str
    instructions: tuple[str, ...]
    task: Int[np.ndarray, " frame"]
    """Every frame's place in `instructions`: within an episode the task may change."""
    layout: Layout
    _images: FrameStore

    # ---- opening

    @classmethod
    def open(cls, path: str | Path) -> "Demonstrations":
        layout = Layout.open(path)
        for missing in layout.missing():
            raise UsageError(f"demonstrations {path}: {missing}")
        numbers = layout.read_numbers()
        _check(layout, numbers)
        instructions, task = _tasks(layout, numbers)
        starts = np.flatnonzero(np.diff(numbers.episode, prepend=numbers.episode[0] - 1))
        episodes = tuple(
            Episode(int(numbers.episode[start]), int(start), int(stop), instructions[task[start]])
            for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True)
        )
        return cls(
            path=layout.path,
            fps=layout.fps,
            cameras=tuple(layout.cameras),
            episodes=episodes,
            state=numbers.state,
            action=numbers.action,
            rows=numbers.row,
            fingerprint=layout.fingerprint(),
            instructions=instructions,
            task=task,
            layout=layout,
            _images=FrameStore(layout, numbers),
        )

    def take(self, episodes: Sequence[int]) -> "Demonstrations":
        """Some of the episodes, by their place in `self.episodes`; a data set of its own, with its own fingerprint."""
        for at in episodes:
            if not 0 <= at < len(self.episodes):
                last = len(self.episodes) - 1
                raise UsageError(f"episode {at}: demonstrations {self.path} have episodes 0-{last}")
        if not episodes or len(set(episodes)) != len(episodes):
            raise UsageError(f"choose at least one episode, each once, not {list(episodes)}")
        chosen = [self.episodes[at] for at in episodes]
        frames = np.concatenate([np.arange(episode.start, episode.stop) for episode in chosen])
        stops = np.cumsum([len(episode) for episode in chosen]).tolist()
        moved = tuple(
            replace(episode, start=stop - len(episode), stop=stop)
            for episode, stop in zip(chosen, stops, strict=True)
        )
        named = json.dumps([self.fingerprint, [episode.index for episode in chosen]])
        return replace(
            self,
            episodes=moved,
            state=self.state[frames],
            action=self.action[frames],
            rows=self.rows[frames],
            task=self.task[frames],
            fingerprint=f"demos-{hashlib.sha256(named.encode()).hexdigest()[:16]}",
        )

    def for_policy(self, spec: PolicySpec) -> "Demonstrations":
        """The cameras that a policy of this spec looks at, in its order; an error if one is missing or a dimension
        does not fit. Other cameras are not decoded. The data are the same, and so is their fingerprint."""
        for camera in spec.cameras:
            if camera not in self.cameras:
                raise UsageError(
                    f"demonstrations {self.path} lack camera {camera!r}: the policy needs "
                    f"{', '.join(spec.cameras)}, the data has {', '.join(self.cameras) or 'none'}"
                    f"{spec.without_camera(self.cameras)}"
                )
        for kind, needed, found in (
            ("state", spec.state_dim, self.state.shape[1]),
            ("action", spec.action_dim, self.action.shape[1]),
        ):
            if needed != found:
                raise UsageError(
                    f"demonstrations {self.path}: {kind} has {found} dimensions, the policy's has {needed}"
                )
        return self if self.cameras == spec.cameras else replace(self, cameras=spec.cameras)

    # ---- reading

    def __len__(self) -> int:
        """Frames."""
        return len(self.state)

    @cached_property
    def episode_of(self) -> Int[np.ndarray, " frame"]:
        """The place in `episodes` of every frame's episode."""
        return np.repeat(np.arange(len(self.episodes)), [len(episode) for episode in self.episodes])

    @cached_property
    def frame_of(self) -> Int[np.ndarray, " frame"]:
        """Every frame's number within its episode."""
        return np.concatenate([np.arange(len(episode)) for episode in self.episodes])

    def instruction(self, frame: int) -> str:
        return self.instructions[self.task[frame]]

    def observation(self, frame: int) -> Observation:
        return next(self.observations([frame]))

    def observations(self, frames: Sequence[int] | None = None) -> Iterator[Observation]:
        """One after the other, so that memory stays bounded; all frames if none are named."""
        for frame in range(len(self)) if frames is None else frames:
            if not 0 <= frame < len(self):
                raise UsageError(f"frame {frame}: demonstrations {self.path} have frames 0-{len(self) - 1}")
            images = self._images.read(int(self.rows[frame]), self.cameras)
            yield Observation(images, self.state[frame], self.instruction(frame))

    def encoded(self, frame: int, camera: str) -> bytes | None:
        """The image as the PNG or JPEG file that it is stored as; None if it is in a film."""
        return self._images.encoded(int(self.rows[frame]), camera)

    def chunk(
        self, frame: int, horizon: int
    ) -> tuple[Float[np.ndarray, "horizon action"], Bool[np.ndarray, " horizon"]]:
        """The next `horizon` actions from this frame, and which of them are padding (True) because the episode had
        ended; padding repeats the last action."""
        episode = self.episodes[int(self.episode_of[frame])]
        steps = np.arange(frame, frame + horizon)
        return self.action[np.minimum(steps, episode.stop - 1)], steps >= episode.stop

    def chunks(
        self, horizon: int
    ) -> tuple[Float[np.ndarray, "frame horizon action"], Bool[np.ndarray, "frame horizon"]]:
        """`chunk` of every frame."""
        stops = np.array([episode.stop for episode in self.episodes])[self.episode_of][:, None]
        steps = np.arange(len(self))[:, None] + np.arange(horizon)
        return self.action[np.minimum(steps, stops - 1)], steps >= stops

    def describe(self) -> dict[str, Any]:
        """What a run remembers about its data."""
        return {
            "fingerprint": self.fingerprint,
            "path": str(self.path),
            "fps": self.fps,
            "cameras": list(self.cameras),
            "frames": len(self),
            "tasks": sorted({self.instructions[task] for task in np.unique(self.task)}),
            "episodes": [
                {"index": episode.index, "frames": len(episode), "instruction": episode.instruction}
                for episode in self.episodes
            ],
        }


def _check(layout: Layout, numbers: Numbers) -> None:
    """What reading relies on: every episode whole, all numbers finite. `data/check.py` finds everything else."""
    path = layout.path
    found = dict(
        zip(*(each.tolist() for each in np.unique(numbers.episode, return_counts=True)), strict=True)
    )
    for episode in layout.episodes:
        if found.pop(episode.index, 0) != episode.length:
            here = int((numbers.episode == episode.index).sum())
            raise UsageError(
                f"demonstrations {path}: episode {episode.index} has {episode.length} frames in meta/episodes "
                f"and {here} in data"
            )
    if found:
        raise UsageError(f"demonstrations {path}: episode {min(found)} is in data and not in meta/episodes")
    starts = np.flatnonzero(np.diff(numbers.episode, prepend=numbers.episode[0] - 1))
    lengths = np.diff(np.append(starts, len(numbers)))
    broken = numbers.frame != np.arange(len(numbers)) - np.repeat(starts, lengths)
    if broken.any():
        raise UsageError(f"demonstrations {path}: episode {numbers.episode[broken.argmax()]} lacks frames")
    for kind, values in (("state", numbers.state), ("action", numbers.action)):
        wrong = ~np.isfinite(values).all(axis=1)
        if wrong.any():
            at = int(wrong.argmax())
            raise UsageError(
                f"demonstrations {path}: {kind} of episode {numbers.episode[at]}, frame {numbers.frame[at]} "
                "is not finite"
            )


def _tasks(layout: Layout, numbers: Numbers) -> tuple[tuple[str, ...], Int[np.ndarray, " frame"]]:
    """The instructions, and every frame's place among them."""
    if numbers.task is not None:
        known, place = np.unique(numbers.task, return_inverse=True)
        for task in known.tolist():
            if task not in layout.instructions:
                index = numbers.episode[(numbers.task == task).argmax()]
                raise UsageError(
                    f"demonstrations {layout.path}: task {task} of episode {index} has no instruction"
                )
        return tuple(str(layout.instructions[task]) for task in known.tolist()), place
    of_episode = {episode.index: episode.tasks for episode in layout.episodes}
    for index, tasks in of_episode.items():
        if len(tasks) != 1:
            raise UsageError(
                f"demonstrations {layout.path}: episode {index} has {len(tasks)} tasks, and no column task_index "
                "says which frame has which"
            )
    names = tuple(dict.fromkeys(tasks[0] for tasks in of_episode.values()))
    place_of = {index: names.index(tasks[0]) for index, tasks in of_episode.items()}
    return names, np.array([place_of[index] for index in numbers.episode.tolist()])
