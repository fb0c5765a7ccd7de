"""Promises of the demonstrations reader: what a LeRobotDataset v3 holds comes out unchanged, or one line says why not.

The data sets are written by lerobot_writer.py, which shares no code with the reader.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_writer import random_episodes, write_dataset

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import Policy

LENGTHS = (5, 9, 7, 4, 6)


@pytest.fixture(scope="module")
def episodes() -> list[dict]:
    return random_episodes(LENGTHS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, episodes: list[dict]) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "demos", episodes)


@pytest.fixture(scope="module")
def demos(dataset: Path) -> Demonstrations:
    return Demonstrations.open(dataset)


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def test_everything_that_was_written_comes_back(demos: Demonstrations, episodes: list[dict]) -> None:
    assert demos.cameras == ("front", "wrist")
    assert [len(episode) for episode in demos.episodes] == list(LENGTHS)
    for episode, written in zip(demos.episodes, episodes, strict=True):
        assert episode.instruction == written["task"]
        assert np.array_equal(demos.state[episode.start : episode.stop], written["state"])
        assert np.array_equal(demos.action[episode.start : episode.stop], written["action"])
        for at, observation in enumerate(demos.observations(range(episode.start, episode.stop))):
            assert observation.instruction == written["task"]
            assert np.array_equal(observation.state, written["state"][at])
            for camera in demos.cameras:
                assert np.array_equal(observation.images[camera], written["images"][camera][at])


def test_chunks_repeat_the_last_action_and_mark_it_as_padding(
    demos: Demonstrations, episodes: list[dict]
) -> None:
    chunks, padding = demos.chunks(4)
    at = 0
    for episode in episodes:
        length = len(episode["action"])
        for t in range(length):
            for step in range(4):
                inside = t + step < length
                assert padding[at, step] != inside
                assert np.array_equal(chunks[at, step], episode["action"][min(t + step, length - 1)])
            one, mask = demos.chunk(at, 4)
            assert np.array_equal(one, chunks[at])
            assert np.array_equal(mask, padding[at])
            at += 1


def test_a_choice_of_episodes_is_a_data_set_of_its_own(demos: Demonstrations, episodes: list[dict]) -> None:
    some = demos.take([3, 1])
    assert [episode.index for episode in some.episodes] == [3, 1]
    assert len(some) == 4 + 9
    assert np.array_equal(some.action[4:], episodes[1]["action"])
    assert np.array_equal(some.observation(5).images["wrist"], episodes[1]["images"]["wrist"][1])
    assert some.episode_of.tolist() == [0] * 4 + [1] * 9
    assert some.frame_of.tolist() == [*range(4), *range(9)]
    fingerprints = {
        demos.fingerprint,
        some.fingerprint,
        demos.take([1, 3]).fingerprint,
        demos.take([1]).fingerprint,
    }
    assert len(fingerprints) == 4
    assert demos.take([3, 1]).fingerprint == some.fingerprint


def test_episodes_that_are_not_there_cannot_be_chosen(demos: Demonstrations) -> None:
    with pytest.raises(UsageError, match=r"episode 5: .* episodes 0-4"):
        demos.take([0, 5])
    with pytest.raises(UsageError, match="each once"):
        demos.take([1, 1])


def test_frames_come_in_episode_order_whatever_the_order_in_the_file(
    copy: Path, demos: Demonstrations
) -> None:
    file = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), file)
    shuffled = Demonstrations.open(copy)
    assert np.array_equal(shuffled.action, demos.action)
    assert np.array_equal(shuffled.observation(6).images["front"], demos.observation(6).images["front"])


def test_the_fingerprint_is_of_the_content(copy: Path, demos: Demonstrations) -> None:
    assert Demonstrations.open(copy).fingerprint == demos.fingerprint
    file = copy / "data/chunk-000/file-001.parquet"
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    assert Demonstrations.open(copy).fingerprint != demos.fingerprint


def test_images_beside_the_table_are_read_too(tmp_path: Path) -> None:
    """LeRobot may leave `bytes` empty and name a file instead."""
    written = random_episodes([3], cameras=["front"])
    path = write_dataset(tmp_path / "d", written)
    file = path / "data/chunk-000/file-000.parquet"
    rows = pq.read_table(file)
    cells = rows["observation.images.front"].to_pylist()
    for at, cell in enumerate(cells):
        (path / f"image-{at}.png").write_bytes(cell["bytes"])
    replaced = [{"bytes": None, "path": f"image-{at}.png"} for at in range(3)]
    schema = rows.schema
    columns = {name: rows[name] for name in rows.column_names} | {"observation.images.front": replaced}
    pq.write_table(type(rows).from_pydict(columns, schema=schema), file)
    demos = Demonstrations.open(path)
    assert np.array_equal(demos.observation(1).images["front"], written[0]["images"]["front"][1])
    (path / "image-2.png").unlink()
    with pytest.raises(UsageError, match=r"image-2\.png is missing"):
        demos.observation(2)


def test_demonstrations_without_a_camera_that_the_policy_needs_are_refused(
    tmp_path: Path, policy: Policy, demos: Demonstrations
) -> None:
    assert demos.for_policy(policy.spec) is demos
    blind = Demonstrations.open(write_dataset(tmp_path / "a", random_episodes([3], cameras=["front"])))
    with pytest.raises(
        UsageError, match="lack camera 'wrist': the policy needs front, wrist, the data has front"
    ):
        blind.for_policy(policy.spec)
    wide = Demonstrations.open(write_dataset(tmp_path / "b", random_episodes([3], action_dim=6)))
    with pytest.raises(UsageError, match="action has 6 dimensions, the policy's has 7"):
        wide.for_policy(policy.spec)


# ---- faults


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no meta/info\.json"):
        Demonstrations.open(tmp_path)


def test_an_older_format_is_refused_clearly(copy: Path) -> None:
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v2.1"}))
    with pytest.raises(UsageError, match=r"v2\.1: convert them to v3"):
        Demonstrations.open(copy)


def test_a_missing_data_file_is_an_error(copy: Path) -> None:
    (copy / "data/chunk-000/file-001.parquet").unlink()
    with pytest.raises(UsageError, match=r"file-001\.parquet is missing"):
        Demonstrations.open(copy)


def test_a_truncated_data_file_is_an_error(copy: Path) -> None:
    file = copy / "data/chunk-000/file-000.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match="is broken"):
        Demonstrations.open(copy)


def test_missing_frames_are_an_error(copy: Path) -> None:
    file = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(0, len(table) - 1), file)
    with pytest.raises(UsageError, match="episode 1 has 9 frames in meta/episodes and 8 in data"):
        Demonstrations.open(copy)


@pytest.mark.parametrize("file", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_missing_metadata_is_an_error(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(UsageError, match="meta/"):
        Demonstrations.open(copy)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("action", [float("nan")] * 7, "action of episode 0, frame 2 is not finite"),
        ("action", [0.0] * 6, "action has 6 to 7 dimensions"),
        ("action", None, "action has empty cells"),
        ("task_index", 7, "task 7 of episode 0 has no instruction"),
        ("episode_index", 9, "episode 0 has 5 frames in meta/episodes and 4 in data"),
        ("frame_index", 3, "episode 0 lacks frames"),
    ],
)
def test_a_wrong_cell_is_named(copy: Path, column: str, value: object, message: str) -> None:
    file = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    cells = table[column].to_pylist()
    cells[2] = value
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, pa.array(cells, table.schema.field(at).type)), file)
    with pytest.raises(UsageError, match=message):
        Demonstrations.open(copy)


def test_a_broken_image_is_named(copy: Path) -> None:
    file = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    name = "observation.images.front"
    cells = table[name].to_pylist()
    cells[3]["bytes"] = cells[3]["bytes"][:60]
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, pa.array(cells, table.schema.field(at).type)), file)
    demos = Demonstrations.open(copy)
    demos.observation(2)
    with pytest.raises(UsageError, match=r"observation\.images\.front of row 3 is no image"):
        demos.observation(3)


def test_frames_out_of_range_are_an_error(demos: Demonstrations) -> None:
    with pytest.raises(UsageError, match="frames 0-30"):
        demos.observation(31)
