"""Promises about LeRobot: it opens what we write, and we read what it writes: the same frames, actions and statistics.

Both sides are the real LeRobot, in its own environment (`make test-lerobot`).
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import UInt8

# The folder of this file is a package `lerobot` for Python, too: only the real one has data sets.
pytest.importorskip(
    "lerobot.datasets.lerobot_dataset", reason="needs LeRobot, in its own environment: make test-lerobot"
)

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot_kit import video_codec
from lerobot_writer import random_episodes
from lerobot_writer import write_dataset as write_films

from interp.data.check import problems
from interp.data.copying import source_of
from interp.data.recordings import Recording, Source, write_dataset
from interp.demos import Demonstrations

pytestmark = pytest.mark.lerobot

LENGTHS = (12, 7, 9)
FPS = 15
TASKS = ("press the button", "pick the red cube", "press the button")
SIZES = {"front": (48, 64), "wrist": (32, 32)}


def _pictures(rng: np.random.Generator, n: int, height: int, width: int) -> UInt8[np.ndarray, "frame h w 3"]:
    """Blocks of colour: what a video encoder keeps recognisable."""
    blocks = rng.integers(0, 256, (n, height // 8, width // 8, 3), np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def episodes() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "task": task,
            "state": rng.normal(size=(n, 8)).astype(np.float32),
            "action": rng.normal(size=(n, 7)).astype(np.float32),
            "effort": rng.normal(size=(n, 3)).astype(np.float32),
            "images": {camera: _pictures(rng, n, *size) for camera, size in SIZES.items()},
        }
        for n, task in zip(LENGTHS, TASKS, strict=True)
    ]


@pytest.fixture(scope="module", params=[None, "h264", "av1"])
def ours(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, episodes: list[dict]
) -> Path:
    """Written by us: images, or videos of either codec."""
    path = tmp_path_factory.mktemp("ours") / "demos"
    recordings = [
        Recording(f"episode {i}", e["task"], e["images"], e["state"], e["action"])
        for i, e in enumerate(episodes)
    ]
    names = ([f"s{i}" for i in range(8)], [f"a{i}" for i in range(7)])
    write_dataset(
        Source(recordings, len(recordings), FPS, "panda", *names), path, codec=request.param, progress=False
    )
    return path


@pytest.fixture(scope="module", params=[None, "libsvtav1", "h264"])
def theirs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, episodes: list[dict]
) -> Path:
    """Written by LeRobot: images, or videos in its default encoding and in h264."""
    path = tmp_path_factory.mktemp("theirs") / "demos"
    kind = "video" if request.param else "image"
    features: dict[str, Any] = {
        f"observation.images.{camera}": {
            "dtype": kind, "shape": (*size, 3), "names": ["height", "width", "channels"]
        }
        for camera, size in SIZES.items()
    }  # fmt: skip
    for name, width in (("observation.state", 8), ("action", 7), ("observation.effort", 3)):
        names = [f"{name}_{i}" for i in range(width)]
        features[name] = {"dtype": "float32", "shape": (width,), "names": names}
    dataset = LeRobotDataset.create(
        "local/theirs", FPS, features, root=path, use_videos=bool(request.param),
        **(video_codec(request.param) if request.param else {}),
    )  # fmt: skip
    _record(dataset, episodes)
    return path


def _record(dataset: Any, episodes: list[dict]) -> None:
    """With LeRobot's own calls."""
    for episode in episodes:
        for f in range(len(episode["action"])):
            images = {f"observation.images.{c}": v[f] for c, v in episode["images"].items()}
            numbers = {"observation.state": episode["state"][f], "action": episode["action"][f]}
            dataset.add_frame(
                {**images, **numbers, "observation.effort": episode["effort"][f], "task": episode["task"]}
            )
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


def lerobot(path: Path, **options: Any) -> Any:
    return LeRobotDataset(f"local/{path.name}", root=path, video_backend="pyav", **options)


def pixels(item: Mapping[str, Any], camera: str) -> UInt8[np.ndarray, "height width 3"]:
    """A LeRobot image [channel, height, width] in [0, 1] as bytes."""
    image = item[f"observation.images.{camera}"]
    return np.asarray((image * 255).round().byte().permute(1, 2, 0))


def same(demos: Demonstrations, dataset: Any) -> None:
    """Every frame: pictures to the byte, numbers to the bit."""
    assert len(demos) == len(dataset)
    assert list(demos.cameras) == [
        name.removeprefix("observation.images.") for name in dataset.meta.camera_keys
    ]
    assert demos.fps == dataset.fps
    for frame, observation in enumerate(demos.observations()):
        item = dataset[frame]
        assert observation.instruction == item["task"]
        assert demos.episodes[demos.episode_of[frame]].index == int(item["episode_index"])
        assert demos.frame_of[frame] == int(item["frame_index"])
        assert np.array_equal(observation.state, item["observation.state"].numpy())
        assert np.array_equal(demos.action[frame], item["action"].numpy())
        for camera in demos.cameras:
            assert np.array_equal(observation.images[camera], pixels(item, camera)), (frame, camera)


def test_lerobot_reads_what_we_write(ours: Path) -> None:
    same(Demonstrations.open(ours), lerobot(ours))


def test_we_read_what_lerobot_writes(theirs: Path) -> None:
    same(Demonstrations.open(theirs), lerobot(theirs))


@pytest.mark.parametrize(("film_fps", "fps"), [(30, 10), (60, 15), (50, 25), (30, 20), (24, 16)])
def test_films_of_another_rate_show_what_lerobots_decoder_shows(
    film_fps: int, fps: int, tmp_path: Path
) -> None:
    """The nearest picture; of two equally near (30 for 20, 24 for 16) the one that LeRobot chooses."""
    rng = np.random.default_rng(2)
    films = random_episodes((6, 8, 40), ("front",), size=64)
    for episode in films:
        shown = len(episode["action"]) * film_fps // fps
        episode["images"]["front"] = rng.integers(0, 256, (shown, 64, 64, 3), np.uint8)
    path = write_films(tmp_path / "films", films, fps, 3, "libx264", 10, film_fps)
    dataset = lerobot(
        path, tolerance_s=1.0
    )  # of its own accord it refuses a picture that misses its time by 1e-4 s
    for frame, observation in enumerate(Demonstrations.open(path).observations()):
        assert np.array_equal(observation.images["front"], pixels(dataset[frame], "front")), frame


def test_images_come_through_unchanged_and_videos_recognisable(ours: Path, episodes: list[dict]) -> None:
    dataset, frame = lerobot(ours), 0
    exact = not dataset.meta.video_keys
    for episode in episodes:
        for f in range(len(episode["action"])):
            for camera in SIZES:
                shown, truth = (
                    pixels(dataset[frame], camera).astype(int),
                    episode["images"][camera][f].astype(int),
                )
                # 4:2:0 colour and quantisation; another frame of these pictures is about 85 levels away
                assert np.array_equal(shown, truth) if exact else np.abs(shown - truth).mean() < 12
            frame += 1


def test_what_lerobot_writes_has_no_problems(theirs: Path) -> None:
    assert list(problems(theirs)) == []


def test_what_we_write_has_no_problems(ours: Path) -> None:
    assert list(problems(ours)) == []


def test_action_chunks_and_their_padding_are_lerobots(theirs: Path) -> None:
    horizon = 5
    dataset = lerobot(theirs, delta_timestamps={"action": [i / FPS for i in range(horizon)]})
    demos = Demonstrations.open(theirs)
    chunks, padding = demos.chunks(horizon)
    for frame in range(len(demos)):
        item = dataset[frame]
        assert np.array_equal(chunks[frame], item["action"].numpy())
        assert np.array_equal(padding[frame], item["action_is_pad"].numpy())


def test_statistics_are_lerobots(ours: Path, theirs: Path) -> None:
    """Of the same episodes. LeRobot estimates quantiles and samples pixels; of numbers the rest is exact.

    The standard deviation of pixels is not compared: LeRobot 0.4.4 squares them as uint8, which overflows.
    """
    mine, reference = lerobot(ours).meta.stats, lerobot(theirs).meta.stats
    for name in ("observation.state", "action"):
        for statistic in ("min", "max", "mean", "std"):
            assert np.allclose(mine[name][statistic], reference[name][statistic], atol=1e-5), (
                name,
                statistic,
            )
        assert int(mine[name]["count"][0]) == int(reference[name]["count"][0]) == sum(LENGTHS)
    for camera in SIZES:
        name = f"observation.images.{camera}"
        assert mine[name]["mean"].shape == reference[name]["mean"].shape == (3, 1, 1)
        for statistic in ("min", "max", "mean"):
            assert np.allclose(mine[name][statistic], reference[name][statistic], atol=0.02), (
                name,
                statistic,
            )


def test_there_and_back_changes_nothing(theirs: Path, tmp_path: Path) -> None:
    """LeRobot -> ours -> LeRobot: the same frames (images are copied as files), actions, and other features."""
    original = Demonstrations.open(theirs)
    write_dataset(source_of(original), tmp_path / "copy", progress=False)
    again, before = lerobot(tmp_path / "copy"), lerobot(theirs)
    same(Demonstrations.open(tmp_path / "copy"), again)
    for frame in range(len(original)):
        for name in ("observation.state", "observation.effort", "action", "timestamp", "index"):
            assert np.array_equal(again[frame][name].numpy(), before[frame][name].numpy()), name
        for camera in SIZES:
            assert np.array_equal(pixels(again[frame], camera), pixels(before[frame], camera))


def test_several_files_of_each_kind_are_read(
    tmp_path: Path, episodes: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are full after one episode: LeRobot finds every episode in its own data file and film."""
    monkeypatch.setattr("testbed.dataset.DATA_FILE_MB", 1e-6)  # LeRobot 0.6 refuses to read of 0
    monkeypatch.setattr("testbed.dataset.VIDEO_FILE_MB", 1e-6)
    recordings = [
        Recording(f"episode {i}", e["task"], e["images"], e["state"], e["action"])
        for i, e in enumerate(episodes)
    ]
    source = Source(recordings, 3, FPS, "panda", [f"s{i}" for i in range(8)], [f"a{i}" for i in range(7)])
    path = tmp_path / "demos"
    write_dataset(source, path, codec="h264", progress=False)
    assert len(list(path.glob("data/*/*.parquet"))) == 3
    assert len(list(path.glob("videos/observation.images.wrist/*/*.mp4"))) == 3
    same(Demonstrations.open(path), lerobot(path))
    assert list(problems(path)) == []


@pytest.mark.parametrize("theirs", ["h264"], indirect=True)
def test_episodes_that_lerobot_spread_over_files_are_read(
    theirs: Path, tmp_path: Path, episodes: list[dict]
) -> None:
    """LeRobot's own limits, set so low that every episode starts a new file."""
    path = tmp_path / "small-files"
    features = {
        name: {**feature, "shape": tuple(feature["shape"])}
        for name, feature in lerobot(theirs).meta.features.items()
        if name.startswith(("observation", "action"))
    }
    dataset = LeRobotDataset.create(
        "local/small", FPS, features, root=path, use_videos=True, **video_codec("h264")
    )
    dataset.meta.update_chunk_settings(chunks_size=2, data_files_size_in_mb=1e-6, video_files_size_in_mb=1e-6)
    _record(dataset, episodes)
    assert len(list(path.glob("videos/observation.images.front/*/*.mp4"))) == 3
    assert (path / "videos/observation.images.front/chunk-001").is_dir()
    same(Demonstrations.open(path), lerobot(path))


@pytest.mark.parametrize("theirs", ["libsvtav1", "h264"], indirect=True)
def test_torchcodec_shows_the_same_pictures(theirs: Path) -> None:
    """LeRobot's other decoder converts colours by itself: within two levels of ours."""
    dataset = lerobot(theirs)
    try:
        import torchcodec  # noqa: F401  (whether it loads)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchcodec does not load here: {str(error).splitlines()[0]}")
    dataset.video_backend = "torchcodec"
    for frame, observation in enumerate(Demonstrations.open(theirs).observations()):
        for camera, image in observation.images.items():
            assert np.abs(image.astype(int) - pixels(dataset[frame], camera)).max() <= 2


@pytest.mark.parametrize("theirs", ["h264"], indirect=True)
def test_a_data_set_without_an_episodes_film_has_that_problem(theirs: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(theirs, tmp_path / "copy"))
    sorted(path.glob("videos/*/*/*.mp4"))[0].unlink()
    (found,) = problems(path)
    assert found.endswith("front/chunk-000/file-000.mp4 is missing (episodes 0-2)")
