"""Promises about other formats: LIBERO, robomimic and DROID files come in as they are, or one line says why not.

The files are made here with h5py and PyAV, as those projects lay them out.
"""

import errno
import io
import json
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_writer import random_episodes, write_dataset
from PIL import Image

import robosteer
from interp.data.check import problems
from interp.data.hdf5 import hdf5
from interp.demos import Demonstrations
from interp.errors import UsageError

LENGTHS = (11, 8, 14)
TASK = "put the bowl on the plate"


def libero(path: Path, **attributes: Any) -> Path:
    """Demonstrations out of order by name (demo_10 before demo_2), images 16 x 24."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        problem = {"language_instruction": TASK, "problem_name": "libero_tabletop"}
        told = {
            "problem_info": json.dumps(problem),
            "env_args": json.dumps({"env_kwargs": {"control_freq": 20}}),
        }
        for name, value in {**told, **attributes}.items():
            data.attrs[name] = value
        for number, n in zip((0, 2, 10), LENGTHS, strict=True):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = n
            for camera in ("agentview", "eye_in_hand"):
                demo[f"obs/{camera}_rgb"] = rng.integers(0, 256, (n, 16, 24, 3), np.uint8)
            pose = np.cumsum(rng.choice([0.01, 0.2], (n, 1)) * rng.normal(size=(n, 6)), axis=0)
            demo["obs/ee_states"] = pose
            demo["obs/gripper_states"] = rng.normal(size=(n, 2))
            demo["obs/joint_states"] = rng.normal(size=(n, 7))
            demo["actions"] = np.c_[rng.normal(size=(n, 6)), rng.choice([-1.0, 1.0], n)]
            demo["dones"] = np.zeros(n, np.int64)
    return path


def run(*words: object) -> int:
    return robosteer.main(["demos", *map(str, words)])


# ---- LIBERO and robomimic


def test_libero_comes_in_turned_as_policies_for_it_are_trained(tmp_path: Path) -> None:
    file = libero(tmp_path / "libero" / "put_bowl_demo.hdf5")
    assert run("import", file.parent, tmp_path / "out", "--format", "libero") == 0
    demos = Demonstrations.open(tmp_path / "out")
    assert [len(episode) for episode in demos.episodes] == list(LENGTHS)
    assert (demos.cameras, demos.fps) == (("agentview", "eye_in_hand"), 20)
    with h5py.File(file) as opened:
        for episode, number in zip(demos.episodes, (0, 2, 10), strict=True):
            demo = opened[f"data/demo_{number}"]
            here = slice(episode.start, episode.stop)
            state = np.c_[demo["obs/ee_states"][()], demo["obs/gripper_states"][()]]
            assert np.array_equal(demos.state[here], state.astype(np.float32))
            assert np.array_equal(demos.action[here], demo["actions"][()].astype(np.float32))
            assert episode.instruction == TASK
            for at, observation in enumerate(demos.observations(range(episode.start, episode.stop))):
                for camera, image in observation.images.items():
                    assert np.array_equal(image, np.rot90(demo[f"obs/{camera}_rgb"][at], 2))
    assert list(problems(tmp_path / "out")) == []


@pytest.mark.parametrize(("orientation", "turn"), [("flip", np.flipud), ("keep", np.asarray)])
def test_images_can_be_turned_otherwise(tmp_path: Path, orientation: str, turn: Any) -> None:
    file = libero(tmp_path / "a.hdf5")
    words = ("--orientation", orientation, "--cameras", "agentview=front")
    assert run("import", file, tmp_path / "out", "--format", "libero", *words) == 0
    observation = Demonstrations.open(tmp_path / "out").observation(3)
    with h5py.File(file) as opened:
        assert np.array_equal(observation.images["front"], turn(opened["data/demo_0/obs/agentview_rgb"][3]))
    assert list(observation.images) == ["front"]


def test_libero_key_frames_are_the_published_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = libero(tmp_path / "a.hdf5")
    assert run("import", file, tmp_path / "out", "--format", "libero", "--keyframes") == 0
    kept = []
    with h5py.File(file) as opened:
        for number in (0, 2, 10):
            demo = opened[f"data/demo_{number}"]
            actions, pose = demo["actions"][()], demo["obs/ee_states"][()]
            for t in range(len(actions)):
                first_or_last = t in (0, len(actions) - 1)
                still = t > 0 and sum((pose[t] - pose[t - 1]) ** 2) ** 0.5 < 0.05
                flipped = t > 0 and actions[t, -1] * actions[t - 1, -1] < 0
                if first_or_last or still or flipped:
                    kept.append(actions[t])
    demos = Demonstrations.open(tmp_path / "out")
    assert 3 < len(kept) < sum(LENGTHS)
    assert np.array_equal(demos.action, np.array(kept, np.float32))
    assert f"3 episodes, {len(kept)} key frames of {sum(LENGTHS)}" in capsys.readouterr().out


def test_robomimic_needs_to_be_told_what_it_does_not_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lift.hdf5"
    with h5py.File(file, "w") as opened:
        demo = opened.create_group("data/demo_0")
        demo["actions"] = np.ones((4, 7))
        demo["obs/agentview_image"] = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
        demo["obs/robot0_eef_pos"] = np.ones((4, 3))
        demo["obs/object"] = np.ones((4, 10))
    words = ("import", file, tmp_path / "out", "--format", "robomimic")
    assert run(*words) == 2
    assert "Name them with --state, out of object, robot0_eef_pos" in capsys.readouterr().err
    assert run(*words, "--state", "robot0_eef_pos", "object") == 2
    assert "data/demo_0 has no instruction: give one with --instruction" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (
        run(*words, "--state", "robot0_eef_pos", "object", "--instruction", "lift the cube", "--fps", 10) == 0
    )
    demos = Demonstrations.open(tmp_path / "out")
    assert demos.state.shape == (4, 13)
    assert (demos.fps, demos.instruction(0), demos.cameras) == (10, "lift the cube", ("agentview",))
    with h5py.File(file) as opened:
        assert np.array_equal(
            demos.observation(2).images["agentview"], opened["data/demo_0/obs/agentview_image"][2]
        )


def test_what_goes_out_to_robomimic_comes_back(tmp_path: Path) -> None:
    written = random_episodes([5, 3, 4])
    path = write_dataset(tmp_path / "demos", written)
    words = ("--format", "robomimic", "--episodes", "0", "2", "--cameras", "wrist=hand")
    assert run("export", path, tmp_path / "out.hdf5", *words) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert sorted(file["data"]) == ["demo_0", "demo_1"]
        assert file["data"].attrs["total"] == 9
        assert file["data/demo_1/dones"][()].tolist() == [0, 0, 0, 1]
        assert np.array_equal(file["data/demo_1/obs/hand_image"], written[2]["images"]["wrist"])
    assert run("import", tmp_path / "out.hdf5", tmp_path / "again", "--format", "robomimic") == 0
    again = Demonstrations.open(tmp_path / "again")
    assert again.fps == 10
    for episode, source in zip(again.episodes, (written[0], written[2]), strict=True):
        assert episode.instruction == source["task"]
        assert np.array_equal(again.state[episode.start : episode.stop], source["state"])
        assert np.array_equal(again.action[episode.start : episode.stop], source["action"])


# ---- DROID


def droid(root: Path, cut: int = 0) -> list[Path]:
    """Two episodes with a wrist and two exterior cameras, whose pictures are of one colour a frame."""
    rng = np.random.default_rng(1)
    paths = []
    for e, n in enumerate((9, 12)):
        folder = root / f"lab{e}" / "success"
        films = folder / "recordings" / "MP4"
        films.mkdir(parents=True)
        with h5py.File(folder / "trajectory.h5", "w") as file:
            steps = rng.choice([0.0001, 0.05], (n, 1)) * rng.normal(size=(n, 7))
            file["observation/robot_state/joint_positions"] = np.cumsum(steps, axis=0)
            file["observation/robot_state/gripper_position"] = rng.uniform(size=n)
            file["observation/robot_state/cartesian_position"] = rng.normal(size=(n, 6))
            file["action/joint_velocity"] = rng.normal(size=(n, 7))
            file["action/joint_position"] = rng.normal(size=(n, 7))
            file["action/gripper_position"] = rng.choice([0.0, 1.0], n)
            for serial, kind in (("111", 1), ("222", 0), ("333", 1)):
                file[f"observation/camera_type/{serial}"] = np.full(n, kind)
        for shift, serial in enumerate(("111", "222", "333")):
            with av.open(str(films / f"{serial}.mp4"), "w") as container:
                stream = container.add_stream("libx264", rate=60)
                stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
                for t in range(n - cut):
                    grey = np.full((36, 64, 3), 20 * shift + 10 * t + 30, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
                container.mux(stream.encode())
        (films / "111-stereo.mp4").write_bytes((films / "111.mp4").read_bytes())
        (folder / f"metadata_LAB+1+{e}.json").write_text(json.dumps({"current_task": "from the metadata"}))
        paths.append(folder)
    (root / "aggregated-annotations-1.json").write_text(
        json.dumps({"LAB+1+1": {"language_instruction1": "close the drawer"}})
    )
    return paths


def test_droid_comes_in_as_openpi_reads_it(tmp_path: Path) -> None:
    folders = droid(tmp_path / "droid")
    assert run("import", tmp_path / "droid", tmp_path / "out", "--format", "droid") == 0
    demos = Demonstrations.open(tmp_path / "out")
    assert demos.cameras == ("wrist_image_left", "exterior_image_1_left", "exterior_image_2_left")
    assert [e.instruction for e in demos.episodes] == ["from the metadata", "close the drawer"]
    assert demos.fps == 15
    for episode, folder in zip(demos.episodes, folders, strict=True):
        here = slice(episode.start, episode.stop)
        with h5py.File(folder / "trajectory.h5") as file:
            state, action = file["observation/robot_state"], file["action"]
            expected = np.c_[state["joint_positions"][()], state["gripper_position"][()]]
            assert np.array_equal(demos.state[here], expected.astype(np.float32))
            expected = np.c_[action["joint_velocity"][()], action["gripper_position"][()]]
            assert np.array_equal(demos.action[here], expected.astype(np.float32))
        for at, observation in enumerate(demos.observations(range(episode.start, episode.stop))):
            for shift, camera in (
                (0, "exterior_image_1_left"),
                (1, "wrist_image_left"),
                (2, "exterior_image_2_left"),
            ):
                image = observation.images[camera]
                assert image.shape == (180, 320, 3)
                assert abs(image.mean() - (20 * shift + 10 * at + 30)) < 3
    assert list(problems(tmp_path / "out")) == []


def test_droid_key_frames_are_the_published_ones(tmp_path: Path) -> None:
    folders = droid(tmp_path / "droid")
    assert run("import", tmp_path / "droid", tmp_path / "out", "--format", "droid", "--keyframes") == 0
    kept = []
    for folder in folders:
        with h5py.File(folder / "trajectory.h5") as file:
            joints = file["observation/robot_state/joint_positions"][()]
            gripper = file["action/gripper_position"][()]
            velocity = file["action/joint_velocity"][()]
        for t in range(len(joints)):
            ends = t in (0, len(joints) - 1)
            slow = t > 0 and sum((joints[t] - joints[t - 1]) ** 2) ** 0.5 * 15 < 0.03
            if ends or slow or gripper[t] != gripper[t - 1]:
                kept.append(velocity[t])
    assert 4 < len(kept) < 21
    assert np.array_equal(Demonstrations.open(tmp_path / "out").action[:, :7], np.array(kept, np.float32))


def test_droids_options(tmp_path: Path) -> None:
    droid(tmp_path / "droid")
    words = ("--action", "joint_position", "--size", "keep", "--instruction", "do it", "--video")
    names = ("--cameras", "exterior_image_1_left=front", "wrist_image_left=wrist")
    assert run("import", tmp_path / "droid", tmp_path / "out", "--format", "droid", *words, *names) == 0
    demos = Demonstrations.open(tmp_path / "out")
    assert demos.cameras == ("front", "wrist")
    assert demos.observation(0).images["front"].shape == (36, 64, 3)
    assert {e.instruction for e in demos.episodes} == {"do it"}
    assert demos.layout.names(["action"])[0] == "joint_position_0"


def test_droid_recordings_that_end_early_end_the_episode(tmp_path: Path) -> None:
    droid(tmp_path / "droid", cut=2)
    assert run("import", tmp_path / "droid", tmp_path / "out", "--format", "droid") == 0
    assert [len(e) for e in Demonstrations.open(tmp_path / "out").episodes] == [7, 10]


# ---- faults


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.unlink(), "holds no trajectory.h5"),
        (lambda f: f.write_bytes(f.read_bytes()[:3000]), r"trajectory.h5 is broken"),
        (lambda f: (f.parent / "recordings/MP4/222.mp4").write_bytes(b"no film"), "222.mp4 is broken"),
        (
            lambda f: [film.unlink() for film in f.parent.glob("recordings/MP4/*")],
            "no film of wrist_image_left",
        ),
        (lambda f: next(f.parent.glob("metadata_*")).write_text("{"), "metadata_LAB+1+0.json is not JSON"),
        (
            lambda f: (f.parents[2] / "aggregated-annotations-1.json").write_text("{"),
            "aggregated-annotations-1.json is not JSON",
        ),
    ],
)
def test_a_broken_droid_episode_is_one_line_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    first, second = droid(tmp_path / "droid")
    (second / "trajectory.h5").unlink()
    damage(first / "trajectory.h5")
    assert run("import", tmp_path / "droid", tmp_path / "out", "--format", "droid") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("robosteer demos: ")
    assert message in last
    assert [path.name for path in tmp_path.iterdir()] == ["droid"]


def test_a_disk_that_is_full_is_not_a_broken_file(tmp_path: Path) -> None:
    full_disk = Path("/dev/full")
    with pytest.raises(UsageError, match="/dev/full cannot be opened: No space left"), hdf5(full_disk, "w"):
        pass
    file = libero(tmp_path / "a.hdf5")
    with pytest.raises(OSError, match="No space left on device") as full, hdf5(file):
        full_disk.write_bytes(b"what is read goes there")
    assert full.value.errno == errno.ENOSPC


def _without(name: str) -> Any:
    def damage(file: Path) -> None:
        with h5py.File(file, "a") as opened:
            del opened[name]

    return damage


def _with(name: str, value: np.ndarray) -> Any:
    def damage(file: Path) -> None:
        _without(name)(file)
        with h5py.File(file, "a") as opened:
            opened[name] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:5000]), "a.hdf5 is broken"),
        (_without("data"), "no data/demo_*, so it is no robomimic file"),
        (_without("data/demo_2/actions"), "no data/demo_2/actions; there is dones, obs"),
        (_without("data/demo_2/obs/agentview_rgb"), "no data/demo_2/obs/agentview_rgb"),
        (
            _with("data/demo_2/actions", np.ones((5, 7))),
            "demo_2: frames of its parts do not agree: state 8, action 5",
        ),
        (_with("data/demo_2/actions", np.ones((8, 6))), "action has 6 dimensions, 7 before"),
        (_with("data/demo_2/actions", np.full((8, 7), np.nan)), "demo_2: action of frame 0 is not finite"),
        (
            _with("data/demo_2/obs/eye_in_hand_rgb", np.zeros((8, 8, 8, 3), np.uint8)),
            "cameras are agentview 16 x 24, eye_in_hand 8 x 8, those before are agentview 16 x 24",
        ),
    ],
)
def test_a_broken_libero_file_is_one_line_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    file = libero(tmp_path / "a.hdf5")
    damage(file)
    assert run("import", file, tmp_path / "out", "--format", "libero") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("robosteer demos: ")
    assert message in last
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "robomimic", "--keyframes"), "rules are published for droid and libero"),
        (("--format", "droid"), "holds no trajectory.h5"),
        (("--format", "libero", "--size", "180x320"), "--size means nothing for libero"),
        (("--format", "libero", "--cameras", "top"), "camera 'top': "),
        (("--format", "libero", "--cameras", "agentview=a", "eye_in_hand=a"), "name every camera once"),
        (("--format", "libero", "--cameras", "agentview=../a"), "use letters, digits, _ and -"),
        (("--format", "rlds"), "invalid choice: 'rlds'"),
    ],
)
def test_bad_usage_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    libero(tmp_path / "in" / "a.hdf5")
    try:
        status = run("import", tmp_path / "in", tmp_path / "out", *words)
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = libero(tmp_path / "a.hdf5")
    (tmp_path / "out").mkdir()
    assert run("import", file, tmp_path / "out", "--format", "libero") == 2
    assert "already exists" in capsys.readouterr().err


def test_images_are_copied_as_the_files_that_they_were(tmp_path: Path) -> None:
    """JPEG in, the same JPEG out: no export loses quality."""
    path = write_dataset(tmp_path / "demos", random_episodes([3], cameras=["front"]))
    data = path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    name = "observation.images.front"
    cells = table[name].to_pylist()
    for cell in cells:
        picture = Image.open(io.BytesIO(cell["bytes"]))
        picture.save(tmp_path / "a.jpg", quality=50)
        cell["bytes"] = (tmp_path / "a.jpg").read_bytes()
    at = table.column_names.index(name)

    pq.write_table(table.set_column(at, name, pa.array(cells, table.schema.field(at).type)), data)
    assert run("export", path, tmp_path / "out") == 0
    copied = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")[name].to_pylist()
    assert [cell["bytes"] for cell in copied] == [cell["bytes"] for cell in cells]
