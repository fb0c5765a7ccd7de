"""Promises of `robosteer demos`: info says what is there, validate everything that is wrong, export writes a part."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_writer import random_episodes, write_dataset

import robosteer
from interp.data.check import problems
from interp.data.copying import source_of
from interp.data.recordings import write_dataset as write_ours
from interp.demos import Demonstrations

DATA = "data/chunk-000/file-000.parquet"
META = "meta/episodes/chunk-000/file-000.parquet"
LENGTHS = (5, 9, 7)


@pytest.fixture(scope="module", params=[None, "h264"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With images, and with videos; statistics and all."""
    folder = tmp_path_factory.mktemp("data")
    plain = Demonstrations.open(write_dataset(folder / "plain", random_episodes(LENGTHS)))
    write_ours(source_of(plain), folder / "demos", codec=request.param, progress=False)
    return folder / "demos"


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def edit(file: Path, column: str, change: Callable[[list[Any]], Any]) -> None:
    """Changes one column's list of cells in place."""
    table = pq.read_table(file)
    cells = table[column].to_pylist()
    change(cells)
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, pa.array(cells, table.schema.field(at).type)), file)


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))


def put(at: int, value: Any) -> Callable[[list[Any]], None]:
    def change(cells: list[Any]) -> None:
        cells[at] = value

    return change


def test_a_whole_data_set_has_no_problems(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(problems(dataset)) == []
    assert robosteer.main(["demos", "validate", str(dataset)]) == 0
    assert capsys.readouterr().out == f"{dataset}: no problems found\n"


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing data": (lambda d: (d / DATA).unlink(), r"data/chunk-000/file-000\.parquet is missing \(episodes 0-2\)"),
    "truncated data": (lambda d: (d / DATA).write_bytes((d / DATA).read_bytes()[:-50]), r"file-000\.parquet is broken"),
    "truncated episodes": (lambda d: (d / META).write_bytes((d / META).read_bytes()[:-50]), "is broken"),
    "missing tasks": (lambda d: (d / "meta/tasks.parquet").unlink(), r"meta/tasks\.parquet is missing"),
    "broken info": (lambda d: (d / "meta/info.json").write_text("{"), r"info\.json is broken"),
    "length": (lambda d: edit(d / META, "length", put(1, 8)), "episode 1 has 8 frames in meta/episodes and 9 in data"),
    "time stamp": (
        lambda d: edit(d / DATA, "timestamp", put(3, 0.35)),
        r"episode 0: frame 3 is at 0\.3500 s; at 10 fps it must be at 0\.3000 s",
    ),
    "frame index": (lambda d: edit(d / DATA, "frame_index", put(4, 9)), "episode 0: frame_index does not count 0-4"),
    "episode index": (
        lambda d: edit(d / DATA, "episode_index", put(20, 77)),
        "episode 77 is in data and not where meta/episodes says",
    ),
    "action": (
        lambda d: edit(d / DATA, "action", put(6, [float("inf")] * 7)),
        "episode 1: action is not finite in 1 frames, first in frame 1",
    ),
    "task": (lambda d: edit(d / DATA, "task_index", put(0, 5)), r"episode 0: task 5 is not in meta/tasks\.parquet"),
    "another task": (lambda d: edit(d / DATA, "task_index", put(0, 1)), "is not among its tasks in meta/episodes"),
    "totals": (
        lambda d: edit_json(d / "meta/info.json", lambda i: i.update(total_frames=99)),
        r"meta/info\.json: total_frames is 99, meta has 21",
    ),
    "dimension": (
        lambda d: edit_json(d / "meta/info.json", lambda i: i["features"]["action"].update(shape=[6])),
        r"file-000\.parquet: action has 7 dimensions, meta/info\.json says 6",
    ),
    "image size": (
        lambda d: edit_json(
            d / "meta/info.json", lambda i: i["features"]["observation.images.wrist"].update(shape=[32, 48, 3])
        ),
        r"episode 0, frame 0, camera wrist: the image is 32 x 32, meta/info\.json says 32 x 48",
    ),
    "no stats": (lambda d: (d / "meta/stats.json").unlink(), r"meta/stats\.json is missing"),
    "old stats": (
        lambda d: edit_json(d / "meta/stats.json", lambda s: s["action"]["mean"].__setitem__(2, 4.5)),
        r"meta/stats\.json: mean of action\[2\] is 4\.5, of the data ",
    ),
    "stats of less": (
        lambda d: edit_json(d / "meta/stats.json", lambda s: s["action"].update(std=[1.0] * 6)),
        "std of action has 6 dimensions, the data 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_is_one_line(copy: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = FAULTS[fault]
    damage(copy)
    assert robosteer.main(["demos", "validate", str(copy)]) == 1
    lines = capsys.readouterr().out.splitlines()

    assert any(re.search(message, line) for line in lines), lines
    assert len(lines) <= 4  # a fault may have consequences, but is not said for every frame


def test_all_faults_are_found_at_once(copy: Path) -> None:
    for fault in ("time stamp", "action", "totals", "no stats"):
        FAULTS[fault][0](copy)
    assert len(list(problems(copy))) == 4


@pytest.mark.parametrize("dataset", ["h264"], indirect=True)
@pytest.mark.parametrize("bytes_left", [0.0, 0.5, 0.98])
def test_a_truncated_film_is_found(copy: Path, bytes_left: float) -> None:
    film = copy / "videos/observation.images.front/chunk-000/file-000.mp4"
    film.write_bytes(film.read_bytes()[: int(bytes_left * film.stat().st_size)])
    found = list(problems(copy))
    assert len(found) == len(LENGTHS)  # once an episode
    assert "episode 0, frame 0, camera front:" in found[0]
    assert "is broken" in found[0]


@pytest.mark.parametrize("dataset", ["h264"], indirect=True)
def test_a_film_of_another_length_is_found(copy: Path) -> None:
    edit(copy / META, "videos/observation.images.front/to_timestamp", put(2, 9.9))
    (found,) = problems(copy)
    assert found.startswith("episode 2: its film of observation.images.front lasts 8.500 s, 85.0 frames")


@pytest.mark.parametrize("dataset", [None], indirect=True)
def test_an_image_that_does_not_decode_is_found_unless_only_some_are_looked_at(copy: Path) -> None:
    name = "observation.images.front"

    def cut(cells: list[Any]) -> None:
        cells[7]["bytes"] = cells[7]["bytes"][:100]

    edit(copy / DATA, name, cut)
    (found,) = problems(copy)
    assert found.startswith("episode 1, frame 2, camera front: ")
    assert list(problems(copy, every_image=False)) == []


@pytest.mark.parametrize("dataset", [None], indirect=True)
def test_what_a_policy_lacks_is_said(
    dataset: Path, tmp_path: Path, tiny_policy_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert robosteer.main(["demos", "validate", str(dataset), "--policy", str(tiny_policy_dir)]) == 0
    episodes = random_episodes([3], cameras=["top"], state_dim=6)
    write_ours(
        source_of(Demonstrations.open(write_dataset(tmp_path / "a", episodes))),
        tmp_path / "b",
        progress=False,
    )
    capsys.readouterr()
    assert robosteer.main(["demos", "validate", str(tmp_path / "b"), "--policy", str(tiny_policy_dir)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "the policy needs camera 'front', the data have top",
        "the policy needs camera 'wrist', the data have top",
        "the policy's state has 8 dimensions, the data's 6",
    ]


def test_bad_usage_has_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert robosteer.main(["demos", "validate", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"robosteer demos: {tmp_path / 'none'} is no directory\n"


def test_info_says_what_is_there(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert robosteer.main(["demos", "info", str(dataset), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    episodes = random_episodes(LENGTHS)
    stored = "video (h264)" if (dataset / "videos").is_dir() else "images"
    assert told["episodes"] == 3
    assert told["frames"] == sum(LENGTHS)
    assert told["lengths"] == {"min": 5, "median": 7.0, "max": 9}
    assert told["tasks"] == {episodes[0]["task"]: 2, episodes[1]["task"]: 1}
    assert told["cameras"] == [
        {"name": name, "height": 32, "width": 32, "stored": stored} for name in ("front", "wrist")
    ]
    assert (told["state"]["dim"], told["action"]["dim"]) == (8, 7)
    assert told["fingerprint"] == Demonstrations.open(dataset).fingerprint
    assert robosteer.main(["demos", "info", str(dataset)]) == 0
    shown = capsys.readouterr().out
    for word in ("episodes  3, of 5 to 9 frames, median 7", "2.1 s at 10 fps", f"wrist: 32 x 32, {stored}"):
        assert word in shown


def test_a_part_with_other_names_is_written(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--episodes", "1-2", "--cameras", "wrist=hand")
    assert robosteer.main(["demos", "export", str(dataset), str(tmp_path / "part"), *words]) == 0
    assert "2 episodes, 16 frames, cameras hand" in capsys.readouterr().out
    whole, part = Demonstrations.open(dataset), Demonstrations.open(tmp_path / "part")
    assert np.array_equal(part.action, whole.action[5:])
    for frame in range(len(part)):
        ours, theirs = part.observation(frame), whole.observation(frame + 5)
        assert ours.instruction == theirs.instruction
        assert np.array_equal(ours.images["hand"], theirs.images["wrist"])
    assert list(problems(tmp_path / "part")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--episodes", "3"), "episode 3: demonstrations .* have 0-2"),
        (("--episodes", "2-x"), "write 3 or 5-9"),
        (("--episodes", "²"), "write 3 or 5-9"),
        (("--episodes", "2-1"), "--episodes 2-1: write the lower number first"),
        (("--episodes", "1", "1"), "each once"),
        (("--cameras", "top"), "camera 'top': demonstrations .* have front, wrist"),
        (("--format", "robomimic", "--video"), "--video means nothing for robomimic"),
    ],
)
def test_an_export_that_cannot_be_is_refused(
    dataset: Path, tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert robosteer.main(["demos", "export", str(dataset), str(tmp_path / "part"), *words]) == 2

    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("testbed.dataset.DatasetWriter._finish", stop)
    with pytest.raises(KeyboardInterrupt):
        write_ours(source_of(Demonstrations.open(dataset)), tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []
