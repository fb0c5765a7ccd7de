"""Promises of films: every state of the very episode, playable files, whole or not at all."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from interp.errors import UsageError
from interp.policies import Policy
from steering import video
from steering.episode import Episode, rollout
from steering.video import BACKGROUND, EMPTY, LABELS, NEGATIVE, POSITIVE, Film, check_format
from testbed.tabletop import Tabletop

NAMES = ("dx", "dy", "gripper")
DONE = Episode(7, False, 4, "dropped")


class Studio:
    """Renders the number of the frame as a grey level, 64 x 128 like two cameras side by side."""

    metadata: dict[str, Any] = {"render_fps": 10}  # noqa: RUF012

    def __init__(self) -> None:
        self.shot = -1
        self.unwrapped = SimpleNamespace(instruction="pick up the red cube")

    def render(self) -> np.ndarray:
        self.shot += 1
        return np.full((64, 128, 3), 60 + 40 * self.shot, np.uint8)


@pytest.fixture
def film() -> Film:
    film = Film(Studio(), NAMES)  # type: ignore[arg-type]
    film(None, False)
    for step in range(4):
        film(np.array([0.01 * (step + 1), -0.02, 0.0]), step % 2 == 0)
    return film


def test_a_gif_shows_every_state_at_the_robots_pace(film: Film, tmp_path: Path) -> None:
    film.save(tmp_path / "a.gif", "aligned", DONE)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 5
        durations, greys = [], []
        for frame in range(5):
            gif.seek(frame)
            durations.append(gif.info["duration"])
            greys.append(gif.convert("RGB").getpixel((160, video.HEADER + 10))[0])
    assert durations == [100, 100, 100, 100, 1000]
    assert greys == pytest.approx([60, 100, 140, 180, 220], abs=6)  # a palette of 128 colours


def test_an_mp4_plays(film: Film, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    film.save(tmp_path / "a.mp4", "aligned", DONE)
    with av.open(tmp_path / "a.mp4") as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.average_rate, stream.codec_context.name) == (10, "h264")
    assert len(frames) == 5 + 10, "the last one stays for a second"
    greys = [int(frame[video.HEADER + 20, 160, 0]) for frame in frames[:5]]
    assert greys == pytest.approx([60, 100, 140, 180, 220], abs=4)  # lossy


def test_the_actions_are_shown_up_to_now_each_on_its_scale(film: Film) -> None:
    *_, third, _, last = film.frames("aligned", DONE)
    top, width = video.HEADER + 64 + 8 + 5, video.NARROWEST - LABELS - 8

    def cell(image: Image.Image, action: int, step: int) -> Any:
        return image.getpixel((LABELS + round(width * (step + 0.5) / 4), top + action * video.ROW))

    assert cell(last, 0, 3) == POSITIVE
    assert cell(last, 1, 0) == NEGATIVE
    assert cell(last, 2, 1) == EMPTY, "an action that never moves has no colour"
    half = np.array(EMPTY) + (np.array(POSITIVE) - np.array(EMPTY)) / 2
    assert cell(last, 0, 1) == pytest.approx(half, abs=1)
    assert cell(third, 0, 1) != EMPTY
    assert cell(third, 0, 3) == EMPTY, "still to come"
    assert last.getpixel((1, 1)) == BACKGROUND


def test_a_film_that_fails_leaves_nothing(
    film: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, *_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    (tmp_path / "a.gif").write_bytes(b"the one before")
    monkeypatch.setattr(video, "_write_gif", full)
    with pytest.raises(OSError, match="No space"):
        film.save(tmp_path / "a.gif", "aligned", DONE)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.gif": b"the one before"}


def test_what_cannot_be_filmed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"unknown video format 'avi': known are gif, mp4"):
        check_format("avi")
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    assert check_format("gif") == "gif"
    with pytest.raises(UsageError, match="mp4 needs PyAV: pip install av, or ask for gif"):
        check_format("mp4")
    blind = SimpleNamespace(render=lambda: None, unwrapped=None)
    with pytest.raises(UsageError, match="cannot be filmed"):
        Film(blind, NAMES)(None, False)  # type: ignore[arg-type]


def test_filming_does_not_change_the_episode(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy sees the same pixels, bit for bit, whether somebody films or not."""
    seen: list[bytes] = []
    batch = policy.batch

    def look(observations: Any) -> Any:
        seen.extend(o.images[c].tobytes() for o in observations for c in sorted(o.images))
        return batch(observations)

    monkeypatch.setattr(policy, "batch", look)
    found = []
    for render_mode in (None, "rgb_array"):
        env = Tabletop("pick", image_size=policy.spec.image_size, render_mode=render_mode)
        film = Film(env, policy.spec.action_names) if render_mode else None
        seen.clear()
        episode = rollout(policy, env, 2, execute=5, watch=film)
        found.append((episode, list(seen)))
        if film:
            assert len(film.images) == episode.steps + 1
            assert film.images[0].shape == (256, 512, 3)
        env.close()
    assert found[0] == found[1]
