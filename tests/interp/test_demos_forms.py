"""Promises about the forms in which LeRobotDatasets v3 are found: other names, missing columns, several tasks, size."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_writer import random_episodes, write_dataset

from interp.data import layout as layouts
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import Policy

DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "demos", random_episodes([5, 4]))


def change(dataset: Path, **columns: pa.Array | None) -> None:
    """Replaces (or with None drops) columns of the only data file."""
    table = pq.read_table(dataset / DATA)
    for name, values in columns.items():
        table = table.drop_columns([name] if name in table.column_names else [])
        if values is not None:
            table = table.append_column(name, values)
    pq.write_table(table, dataset / DATA)


def describe(dataset: Path, **features: object) -> None:
    file = dataset / "meta/info.json"
    info = json.loads(file.read_text())
    info["features"] |= features
    info["features"] = {name: feature for name, feature in info["features"].items() if feature}
    file.write_text(json.dumps(info))


def test_columns_that_nothing_needs_may_be_missing(dataset: Path) -> None:
    whole = Demonstrations.open(dataset)
    change(dataset, timestamp=None, index=None, frame_index=None, task_index=None)
    less = Demonstrations.open(dataset)
    assert np.array_equal(less.action, whole.action)
    assert less.frame_of.tolist() == whole.frame_of.tolist()
    assert [less.instruction(f) for f in range(9)] == [whole.instruction(f) for f in range(9)]


def test_without_a_task_column_episodes_must_have_one_task(dataset: Path) -> None:
    change(dataset, task_index=None)
    meta = dataset / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(meta)
    at = table.column_names.index("tasks")
    pq.write_table(table.set_column(at, "tasks", pa.array([["a", "b"], ["a"]])), meta)
    with pytest.raises(UsageError, match="episode 0 has 2 tasks, and no column task_index"):
        Demonstrations.open(dataset)


def test_a_task_may_change_within_an_episode(dataset: Path) -> None:
    change(dataset, task_index=pa.array([0, 0, 0, 1, 1, 1, 1, 0, 0]))
    names = pq.read_table(dataset / "meta/tasks.parquet")["__index_level_0__"].to_pylist()
    demos = Demonstrations.open(dataset)
    assert [names.index(demos.instruction(f)) for f in range(9)] == [0, 0, 0, 1, 1, 1, 1, 0, 0]
    assert demos.observation(4).instruction == names[1]
    assert [demos.take([1]).instruction(f) for f in range(4)] == [names[i] for i in (1, 1, 0, 0)]


def test_openpis_names_are_known(dataset: Path) -> None:
    old = Demonstrations.open(dataset)
    gripper = pa.array(
        old.state[:, -1].astype(np.float64)
    )  # one number a frame, not a list, as LeRobot stores it
    change(
        dataset,
        **{"observation.state": None, "action": None},
        joint_position=pa.array(old.state[:, :-1].tolist()),
        gripper_position=gripper,
        actions=pa.FixedSizeListArray.from_arrays(pa.array(old.action.ravel()), 7),
    )
    describe(
        dataset,
        **{"observation.state": None, "action": None},
        joint_position={"dtype": "float32", "shape": [7]},
        gripper_position={"dtype": "float32", "shape": [1]},
        actions={"dtype": "float32", "shape": [7]},
    )
    demos = Demonstrations.open(dataset)
    assert np.array_equal(demos.state, old.state)
    assert np.array_equal(demos.action, old.action)


def test_what_has_no_action_is_refused_with_what_it_has(dataset: Path) -> None:
    describe(dataset, action=None, torque={"dtype": "float32", "shape": [7]})
    with pytest.raises(UsageError, match=r"no feature 'action' .* it has .*observation\.state, torque"):
        Demonstrations.open(dataset)


def test_depth_is_no_camera(dataset: Path) -> None:
    depth = {"dtype": "video", "shape": [32, 32, 1], "info": {"video.is_depth_map": True}}
    describe(dataset, **{"observation.images.depth": depth})
    assert Demonstrations.open(dataset).cameras == ("front", "wrist")


def test_a_policy_gets_its_cameras_and_no_others(tmp_path: Path, policy: Policy) -> None:
    path = write_dataset(tmp_path / "d", random_episodes([3], cameras=["top", "wrist", "front"]))
    demos = Demonstrations.open(path)
    fit = demos.for_policy(policy.spec)
    assert list(fit.observation(1).images) == ["front", "wrist"]
    assert fit.fingerprint == demos.fingerprint
    assert np.array_equal(fit.observation(1).images["front"], demos.observation(1).images["front"])


def test_a_large_data_sets_fingerprint_reads_little_and_sees_changed_sizes(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Demonstrations.open(dataset).fingerprint
    monkeypatch.setattr(layouts, "_WHOLE", 1000)
    monkeypatch.setattr(layouts, "_SAMPLE", 64)
    large = Demonstrations.open(dataset).fingerprint
    assert large == Demonstrations.open(dataset).fingerprint != small
    change(dataset, index=None)
    assert Demonstrations.open(dataset).fingerprint != large


def test_opening_reads_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are nearly all of a data set: those of one row group at most may be read, when one is looked at."""
    path = write_dataset(tmp_path / "d", random_episodes([40] * 6, size=128), episodes_per_file=3)
    monkeypatch.setattr(layouts, "_WHOLE", 1000)
    monkeypatch.setattr(layouts, "_SAMPLE", 64)
    total = sum(file.stat().st_size for file in path.rglob("*.parquet"))
    before = _bytes_read()
    demos = Demonstrations.open(path)
    opened = _bytes_read()
    assert opened - before < total / 20
    demos.observation(0)
    assert _bytes_read() - opened < total / 4


def _bytes_read() -> int:
    """By this process, from files, as the kernel counts."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])
