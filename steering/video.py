"""A film of one episode for people: the cameras, what was said, how it ended, and the actions as they were taken.

The policy goes on seeing its own small images: the film renders the same simulator state a second time, larger, and
touches nothing, so a filmed episode is the scored one bit for bit. Under the picture runs one row an action dimension,
one column a step: orange is positive, blue negative, each row on its own scale, grey what is still to come; a dot
marks the steps at which the policy looked and sampled a new chunk.

Axis names: frame (state after 0, 1, 2, ... actions), step, action, height, width. A film plays at the robot's speed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from interp.errors import UsageError, unknown
from steering.episode import Episode

FORMATS = ("gif", "mp4")
HOLD = 1.0  # seconds that the last frame stays

BACKGROUND, TEXT, MUTED, EMPTY = (16, 22, 29), (232, 237, 242), (154, 168, 183), (34, 44, 55)
POSITIVE, NEGATIVE = (230, 159, 0), (86, 180, 233)  # Okabe and Ito's orange and sky blue
GOOD, BAD = (79, 199, 154), (240, 138, 112)
HEADER, LABELS, ROW, FOOTER, NARROWEST = 54, 92, 11, 22, 320  # pixels


class Film:
    """Records as `steering.episode.Watch`, then `save`s. The environment must render RGB arrays."""

    def __init__(self, env: gymnasium.Env[Any, Any], action_names: Sequence[str]) -> None:
        self._env, self._names = env, tuple(action_names)
        self.images: list[UInt8[np.ndarray, "height width 3"]] = []
        self.actions: list[Float[np.ndarray, " action"]] = []
        self.looked: list[int] = []
        self._instruction = ""

    def __call__(self, action: Float[np.ndarray, " action"] | None, looked: bool) -> None:
        if action is None:  # a new episode
            self.images, self.actions, self.looked = [], [], []
        else:
            if looked:
                self.looked.append(len(self.actions))
            self.actions.append(np.asarray(action, float))
        image = self._env.render()
        if not isinstance(image, np.ndarray):
            raise UsageError("the environment renders no RGB arrays: it cannot be filmed")
        self.images.append(image)
        self._instruction = str(getattr(self._env.unwrapped, "instruction", ""))

    def save(self, path: Path, title: str, episode: Episode) -> None:
        """Write a gif or mp4 (by the path's ending), whole or not at all."""
        frames = list(self.frames(title, episode))
        fps = int(self._env.metadata.get("render_fps", 10))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        try:
            _write_gif(temporary, frames, fps) if path.suffix == ".gif" else _write_mp4(
                temporary, frames, fps
            )
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def frames(self, title: str, episode: Episode) -> Iterator[Image.Image]:
        """The drawn frames, one a simulator state."""
        height, picture = self.images[0].shape[:2]
        width = max(picture, NARROWEST)  # small pictures still need their captions
        strip = self._strip(width - LABELS - 8)
        bottom = strip.height + FOOTER
        size = (width + width % 2, HEADER + height + bottom + (HEADER + height + bottom) % 2)
        outcome = f"success in {episode.steps} steps" if episode.success else f"failed: {episode.failure}"
        for frame, image in enumerate(self.images):
            canvas = Image.new("RGB", size, BACKGROUND)
            draw = ImageDraw.Draw(canvas)
            draw.text((8, 6), _fit(f"{title} · seed {episode.seed}", 15, width - 190), TEXT, _font(15))
            draw.text(
                (width - 8, 6), outcome, GOOD if episode.success else BAD, _font(15), anchor="ra"
            )  # known from the first frame on: a film of a failure is watched for its reason
            draw.text((8, 29), _fit(f'"{self._instruction}"', 14, width - 110), MUTED, _font(14))
            draw.text((width - 8, 29), f"step {frame}/{episode.steps}", MUTED, _font(14), anchor="ra")
            canvas.paste(Image.fromarray(image), ((width - picture) // 2, HEADER))
            self._draw_actions(canvas, strip, HEADER + height + 8, frame)
            yield canvas

    def _strip(self, width: int) -> Image.Image:
        """All actions, one row a dimension, in full colour."""
        actions = np.stack(self.actions, axis=1)  # action, step
        scale = np.abs(actions).max(axis=1, keepdims=True)
        share = np.clip(actions / np.where(scale > 0, scale, 1), -1, 1)[..., None]
        colour = np.where(share >= 0, POSITIVE, NEGATIVE)
        cells = np.asarray(EMPTY) + (colour - np.asarray(EMPTY)) * np.abs(share)
        image = Image.fromarray(cells.round().astype(np.uint8))
        return image.resize((width, ROW * len(actions)), Image.Resampling.NEAREST)

    def _draw_actions(self, canvas: Image.Image, strip: Image.Image, top: int, frame: int) -> None:
        draw, steps = ImageDraw.Draw(canvas), len(self.actions)
        for i, name in enumerate(self._names):
            draw.text((8, top + i * ROW - 1), name, MUTED, _font(10))
        at = LABELS + round(strip.width * frame / steps)
        canvas.paste(strip, (LABELS, top))
        if frame < steps:
            draw.rectangle((at, top, LABELS + strip.width, top + strip.height - 1), EMPTY)
        below = top + strip.height
        for step in self.looked:
            x = LABELS + strip.width * step / steps
            draw.ellipse((x, below + 4, x + 2, below + 6), MUTED if step < frame else EMPTY)
        draw.line((at, top - 3, at, below + 2), TEXT, 1)


def check_format(name: str) -> str:
    """A format that can be written here: mp4 needs PyAV."""
    if name not in FORMATS:
        raise unknown("video format", name, FORMATS)
    if name == "mp4" and find_spec("av") is None:
        raise UsageError("video format mp4 needs PyAV: pip install av, or ask for gif")
    return name


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _fit(text: str, size: int, width: int) -> str:
    """The text, cut where it would leave its place."""
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _write_gif(path: str, frames: Sequence[Image.Image], fps: int) -> None:
    # no dithering: it flickers, and the film is twice as large
    drawn = [f.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for f in frames]
    durations = [round(1000 / fps)] * (len(drawn) - 1) + [round(1000 * HOLD)]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=durations, loop=0)


def _write_mp4(path: str, frames: Sequence[Image.Image], fps: int) -> None:
    import av

    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"  # what browsers and phones play
        for frame in [*frames, *[frames[-1]] * round(fps * HOLD)]:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
