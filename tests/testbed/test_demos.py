"""Demonstrations are LeRobotDataset v3 directories that say what the expert did."""

import io
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import testbed.demos
from testbed.dataset import write_dataset
from testbed.demos import record
from testbed.episodes import play
from testbed.tabletop import Tabletop
from testbed.variation import TestbedError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return record(
        "marker-in-mug", 3, tmp_path_factory.mktemp("demos") / "mug", seed=900, workers=1, progress=False
    )


def test_every_frame_is_what_the_simulator_showed(dataset):
    table = pq.read_table(dataset / "data/chunk-000/file-000.parquet")
    env = Tabletop()
    episode = play(env, "marker-in-mug", 900, noise=0.004)
    rows = table.slice(0, len(episode.state)).to_pydict()
    for f in range(len(episode.state)):
        png = rows["observation.images.wrist"][f]["bytes"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), episode.images["wrist"][f])
    assert np.allclose(rows["action"], episode.action)
    assert np.allclose(rows["observation.state"], episode.state)
    assert rows["timestamp"][1] == pytest.approx(0.1)
    env.close()


def test_the_index_columns_agree_with_the_episodes(dataset):
    data = pq.read_table(dataset / "data/chunk-000/file-000.parquet").to_pydict()
    episodes = pq.read_table(dataset / "meta/episodes/chunk-000/file-000.parquet").to_pydict()
    info = json.loads((dataset / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["total_frames"] == len(data["index"]) == sum(episodes["length"])
    assert data["index"] == list(range(len(data["index"])))
    for e, (start, stop) in enumerate(
        zip(episodes["dataset_from_index"], episodes["dataset_to_index"], strict=True)
    ):
        assert data["episode_index"][start:stop] == [e] * (stop - start)
        assert data["frame_index"][start:stop] == list(range(stop - start))
    tasks = pq.read_table(dataset / "meta/tasks.parquet").to_pandas()
    assert [tasks.index[i] for i in data["task_index"][:1]] == episodes["tasks"][0]


def test_the_stats_are_those_of_the_frames(dataset):
    stats = json.loads((dataset / "meta/stats.json").read_text())
    data = pq.read_table(dataset / "data/chunk-000/file-000.parquet").to_pydict()
    action = np.array(data["action"], np.float64)
    assert np.allclose(stats["action"]["mean"], action.mean(0))
    assert np.allclose(stats["action"]["std"], action.std(0), atol=1e-7)
    pixels = (
        np.stack([np.asarray(Image.open(io.BytesIO(c["bytes"]))) for c in data["observation.images.front"]])
        / 255
    )
    assert np.allclose(np.squeeze(stats["observation.images.front"]["mean"]), pixels.mean((0, 1, 2)))


def test_two_processes_write_what_one_writes(dataset, tmp_path):
    twice = record("marker-in-mug", 9, tmp_path / "two", seed=900, workers=2, progress=False)
    ours, theirs = (pq.read_table(d / "data/chunk-000/file-000.parquet") for d in (dataset, twice))
    assert theirs.slice(0, len(ours)).equals(ours)


def test_an_existing_directory_is_never_written_over(dataset):
    before = sorted(p.stat().st_mtime_ns for p in dataset.rglob("*"))
    with pytest.raises(TestbedError, match="already exists"):
        record("pick", 1, dataset)
    assert before == sorted(p.stat().st_mtime_ns for p in dataset.rglob("*"))


def test_a_second_recording_of_one_name_is_refused_and_harms_none(dataset, tmp_path):
    record_again = (
        "import sys; from testbed.demos import record\n"
        "try: record('marker-in-mug', 3, sys.argv[1], seed=900, workers=1, progress=False)\n"
        "except ValueError as error: print(error)"
    )
    refused = ""

    def meanwhile(*given):
        nonlocal refused
        write_dataset(*given)
        command = [sys.executable, "-c", record_again, str(tmp_path / "mug")]
        refused = subprocess.run(command, capture_output=True, text=True).stdout

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testbed.demos, "write_dataset", meanwhile)
        path = record("marker-in-mug", 3, tmp_path / "mug", seed=900, workers=1, progress=False)
    assert refused.strip() == f"{path}: another process records there; wait for it or name another directory"
    ours, theirs = (pq.read_table(d / "data/chunk-000/file-000.parquet") for d in (path, dataset))
    assert ours.equals(theirs)


def test_bad_requests(tmp_path):
    with pytest.raises(TestbedError, match="at least 1"):
        record("pick", 0, tmp_path / "x")
    with pytest.raises(TestbedError, match="seed -1: seeds start at 0"):
        record("pick", 1, tmp_path / "x", seed=-1)
    with pytest.raises(TestbedError, match="at most 63 bits"):
        record("pick", 1, tmp_path / "x", seed=2**63)
    with pytest.raises(TestbedError, match="task 'pik'"):
        record("pik", 1, tmp_path / "x")
    assert not (tmp_path / "x").exists()
