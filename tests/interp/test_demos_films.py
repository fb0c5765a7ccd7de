"""Promises about videos: a frame is the film's own picture at that time, in whatever order frames are asked for.

The films are written by lerobot_writer.py with PyAV; what is in them is found by decoding them from start to end.
"""

import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot_writer import random_episodes, write_dataset

from interp.data import films
from interp.demos import Demonstrations
from interp.errors import UsageError

LENGTHS = (5, 9, 7, 4, 40)
FPS = 10


def _episodes() -> list[dict]:
    """Smooth pictures that differ from frame to frame, as cameras see them."""
    episodes = random_episodes(LENGTHS, size=64)
    rng = np.random.default_rng(1)
    for episode in episodes:
        for camera, images in episode["images"].items():
            blocks = rng.integers(0, 256, (len(images), 8, 8, 3), np.uint8)
            episode["images"][camera] = blocks.repeat(8, axis=1).repeat(8, axis=2)
    return episodes


@pytest.fixture(scope="module", params=[("libx264", 2), ("libx264", 250), ("libsvtav1", 2)])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several episodes a film; one with its only key frame at the start, with pictures out of order in the file."""
    codec, group = request.param
    path = tmp_path_factory.mktemp("data") / "demos"
    return write_dataset(path, _episodes(), FPS, episodes_per_file=3, codec=codec, group=group)


def _decoded(dataset: Path, camera: str) -> np.ndarray:
    """All pictures of the camera, film by film."""
    found = []
    for film in sorted((dataset / f"videos/observation.images.{camera}").rglob("*.mp4")):
        with av.open(str(film)) as container:
            found += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(found)


@pytest.mark.parametrize("order", ["forwards", "backwards", "anyhow"])
def test_frames_are_the_films_pictures_in_any_order(dataset: Path, order: str) -> None:
    demos = Demonstrations.open(dataset)
    assert demos.cameras == ("front", "wrist")
    frames = np.arange(len(demos))
    frames = {"backwards": frames[::-1], "anyhow": np.random.default_rng(0).permutation(frames)}.get(
        order, frames
    )
    truth = {camera: _decoded(dataset, camera) for camera in demos.cameras}
    for frame in frames.tolist():
        for camera, image in demos.observation(frame).images.items():
            assert np.array_equal(image, truth[camera][frame])


def test_little_memory_gives_the_same_frames(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "_CACHE_BYTES", 1)
    monkeypatch.setattr(films, "_OPEN", 1)
    demos = Demonstrations.open(dataset)
    truth = _decoded(dataset, "front")
    for frame in (3, 60, 3, 30, 4, 4):
        assert np.array_equal(demos.observation(frame).images["front"], truth[frame])


def test_a_choice_of_episodes_shows_their_own_frames(dataset: Path) -> None:
    demos = Demonstrations.open(dataset).take([4, 1])
    truth = _decoded(dataset, "wrist")
    assert np.array_equal(demos.observation(0).images["wrist"], truth[25])
    assert np.array_equal(demos.observation(40).images["wrist"], truth[5])


@pytest.mark.parametrize("group", [2, 250])
@pytest.mark.parametrize(("film_fps", "fps"), [(30, 10), (60, 15), (50, 25)])
def test_of_a_film_with_more_pictures_than_data_the_nearest_are_shown(
    film_fps: int, fps: int, group: int, tmp_path: Path
) -> None:
    """Also at the start of a later episode, where the picture before is another episode's."""
    episodes = random_episodes((6, 8, 4), ("front",), size=64)
    rng = np.random.default_rng(2)
    for episode in episodes:
        shown = len(episode["action"]) * film_fps // fps
        blocks = rng.integers(0, 256, (shown, 8, 8, 3), np.uint8)
        episode["images"]["front"] = blocks.repeat(8, axis=1).repeat(8, axis=2)
    write_dataset(
        tmp_path / "demos",
        episodes,
        fps,
        episodes_per_file=3,
        codec="libx264",
        group=group,
        film_fps=film_fps,
    )
    demos, truth = Demonstrations.open(tmp_path / "demos"), _decoded(tmp_path / "demos", "front")
    rows = np.arange(len(demos))
    for order in (rows, rows[::-1], rng.permutation(rows)):
        demos = Demonstrations.open(tmp_path / "demos")
        shown = [demos.observation(row).images["front"] for row in order.tolist()]
        found = [int(np.abs(truth - image.astype(int)).sum((1, 2, 3)).argmin()) for image in shown]
        assert found == (order * film_fps // fps).tolist()


# ---- faults


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = write_dataset(tmp_path / "demos", _episodes(), FPS, episodes_per_file=3, codec="libx264")
    return Path(shutil.copytree(path, tmp_path / "copy"))


FILM = "videos/observation.images.front/chunk-000/file-001.mp4"


def test_a_missing_film_is_an_error_when_the_data_set_is_opened(copy: Path) -> None:
    (copy / FILM).unlink()
    with pytest.raises(UsageError, match=r"front/chunk-000/file-001\.mp4 is missing \(episodes 3-4\)"):
        Demonstrations.open(copy)


def test_a_truncated_film_is_an_error_that_names_the_file(copy: Path) -> None:
    film = copy / FILM
    film.write_bytes(film.read_bytes()[:-200])
    demos = Demonstrations.open(copy)
    demos.observation(0)
    with pytest.raises(UsageError, match=r"file-001\.mp4 is broken") as caught:
        demos.observation(30)
    assert "\n" not in str(caught.value)


def test_a_truncated_film_whose_index_comes_first_is_an_error_too(copy: Path) -> None:
    """As LeRobot writes them when it joins episodes: the file opens, and its last pictures are gone."""
    film = copy / FILM
    with (
        av.open(str(film)) as old,
        av.open(str(copy / "new.mp4"), "w", options={"movflags": "faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    whole = (copy / "new.mp4").read_bytes()
    film.write_bytes(whole)
    demos = Demonstrations.open(copy)
    last = demos.observation(len(demos) - 1).images["front"]
    assert np.array_equal(last, _decoded(copy, "front")[-1])
    film.write_bytes(whole[: len(whole) * 7 // 10])
    demos = Demonstrations.open(copy)
    demos.observation(21)
    with pytest.raises(UsageError, match=r"file-001\.mp4 (is broken|has no frame at 4\.300 s)") as caught:
        demos.observation(len(demos) - 1)
    assert "\n" not in str(caught.value)


def test_a_film_that_is_too_short_is_an_error_that_names_the_time(copy: Path) -> None:
    shutil.copy(copy / "videos/observation.images.front/chunk-000/file-000.mp4", copy / FILM)
    demos = Demonstrations.open(copy)
    with pytest.raises(UsageError, match=r"file-001\.mp4 has no frame at 4\.300 s: it ends at 2\.000 s"):
        demos.observation(len(demos) - 1)


def test_a_film_at_another_time_is_an_error(copy: Path) -> None:
    meta = copy / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(meta)
    name = "videos/observation.images.front/from_timestamp"
    at = table.column_names.index(name)
    moved = [time + 500 for time in table[name].to_pylist()]
    pq.write_table(table.set_column(at, name, [moved]), meta)
    with pytest.raises(UsageError, match="has no frame at 500"):
        Demonstrations.open(copy).observation(0)
