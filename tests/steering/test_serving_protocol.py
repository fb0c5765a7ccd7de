"""Promises of the frames and layouts: what openpi-client writes is read exactly, anything else is named in one line."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy

import robosteer
from interp.errors import UsageError
from interp.policies import Policy
from steering.serving.layouts import LONGEST_PROMPT, Reader, layout_of
from steering.serving.protocol import FrameError, pack, unpack


@pytest.mark.parametrize(
    "value",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        np.linspace(0, 1, 7, dtype=np.float32),
        np.array([[True, False]]),
        np.zeros((0, 3), np.float64),
        np.array(3.5),
        np.array(["pick", "up"]),
        np.float32(0.25),
        np.int64(-3),
        "pick up the cube",
        {"a": [1, 2.5, None, b"bytes"]},
        {"images": {"front": np.zeros((2, 2, 3), np.uint8)}, "words": ["pick", "up"] * 20, "empty": [[], {}]},
    ],
    ids=str,
)
def test_both_ends_read_what_the_other_wrote(value: object) -> None:
    """Against openpi-client's own packer."""
    theirs = msgpack_numpy.packb({"key": value})
    ours = pack({"key": value})
    assert ours == theirs
    for read in (unpack(theirs)["key"], msgpack_numpy.unpackb(ours)["key"]):
        np.testing.assert_equal(read, value)
        assert type(read) is type(value)


def array(data: bytes = b"\0" * 8, dtype: object = "<f4", shape: object = (2,)) -> bytes:
    packed = msgpack.packb({"k": {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}})
    assert isinstance(packed, bytes)
    return packed


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "0 bytes is not msgpack"),
        (b"\xc1garbage", "is not msgpack"),
        (b"\x81\xa3ab", "is not msgpack"),
        (b"\x92" * 100_000, "is not msgpack"),
        (msgpack.packb([1, 2]), "holds a list"),
        (msgpack.packb(5), "holds a int"),
        (array(dtype="|O"), "dtype |O is refused"),
        (array(dtype="|V4"), "dtype |V4 is refused"),
        (array(dtype="<c8", shape=(1,)), "dtype <c8 is refused"),
        (array(dtype="i4,f4", shape=(1,)), "is refused"),
        (array(dtype="<M8[s]", shape=(1,)), "is refused"),
        (array(dtype="nonsense"), "needs a dtype such as"),
        (array(dtype=7), "needs a dtype such as"),
        (array(shape=(3,)), "needs 12 bytes, the frame has 8"),
        (array(shape=(2**62, 2**62)), "the frame has 8"),
        (array(shape=(-1,)), "whole numbers from 0"),
        (array(shape=(2.0,)), "whole numbers from 0"),
        (array(shape="ab"), "whole numbers from 0"),
        (array(data=b"", shape=(0,) * 40), "the frame has 0"),
        (array(data=b"", dtype="|S0", shape=(2**40,)), "dtype |S0 is refused"),
        (array(data=b"", dtype="<U0", shape=(2**40,)), "dtype <U0 is refused"),
        (b"\x81\xa1k" + b"\xdd\x00\x10\x00\x00" + b"\x80" * 9, "exceeds max_array_len"),
        (b"\x81\xa1k" + b"\xdf\x00\x10\x00\x00" + b"\xc0" * 9, "exceeds max_map_len"),
        (msgpack.packb({"k": [[{}] * 4000] * 17}), "more than 65536 entries in maps and lists"),
        (msgpack.packb({"k": [{"a": 1}] * 4000, "l": [[0] * 4000] * 14}), "more than 65536 entries"),
        (msgpack.packb({"k": {b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}}), "is no float32"),
        (msgpack.packb({"k": {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}}), "is refused"),
    ],
)
def test_anything_else_is_refused_in_one_line(frame: bytes, message: str) -> None:
    with pytest.raises(FrameError) as error:
        unpack(frame)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_frame_costs_little_more_memory_than_its_bytes() -> None:
    """Empty maps take 64 bytes for each on the wire: a frame of 32 MB would take gigabytes, and every frame waits."""
    frame = msgpack.packb({"k": [[{}] * 4000] * 1000})
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            unpack(frame)
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < 2 * len(frame) + 10 * 2**20, "65536 entries take about 100 bytes each"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [np.array([object()]), np.array([1j]), np.zeros(1, "V4"), object()])
def test_what_has_no_place_in_a_frame_is_not_sent(value: object) -> None:
    with pytest.raises((FrameError, TypeError)):
        pack({"key": value})


# layouts


def droid() -> dict[str, object]:
    rng = np.random.default_rng(0)
    return {
        "observation/exterior_image_1_left": rng.integers(0, 256, (224, 224, 3), np.uint8),
        "observation/wrist_image_left": rng.integers(0, 256, (224, 224, 3), np.uint8),
        "observation/joint_position": rng.normal(size=7),
        "observation/gripper_position": np.array([0.5]),
        "prompt": "pick up the red cube",
        "observation/exterior_image_2_left": None,
    }


def libero() -> dict[str, object]:
    rng = np.random.default_rng(1)
    return {
        "observation/image": rng.integers(0, 256, (224, 224, 3), np.uint8),
        "observation/wrist_image": rng.integers(0, 256, (224, 224, 3), np.uint8),
        "observation/state": rng.normal(size=8),
        "prompt": "press the button",
    }


def test_droid_and_libero_robots_are_understood(policy: Policy) -> None:
    sent = droid()
    read = Reader("droid", replace(policy.spec, action_dim=8))(sent)
    assert np.array_equal(read.images["front"], sent["observation/exterior_image_1_left"])
    assert np.array_equal(read.images["wrist"], sent["observation/wrist_image_left"])
    joints = np.append(np.asarray(sent["observation/joint_position"]), 0.5)
    assert np.array_equal(read.state, joints.astype(np.float32))
    assert read.instruction == "pick up the red cube"

    sent = libero()
    read = Reader("libero", policy.spec)(sent)
    assert np.array_equal(read.images["front"], sent["observation/image"])
    assert np.array_equal(read.images["wrist"], sent["observation/wrist_image"])
    assert np.allclose(read.state, np.asarray(sent["observation/state"]))


def test_images_may_be_floats_or_channels_first_as_in_openpi(policy: Policy) -> None:
    read, sent = Reader("libero", policy.spec), libero()
    image = np.asarray(sent["observation/image"])
    first = read({**sent, "observation/image": image.transpose(2, 0, 1)})
    assert np.array_equal(first.images["front"], image)
    floats = read({**sent, "observation/image": (image / 255).astype(np.float32)})
    assert np.abs(floats.images["front"].astype(int) - image).max() <= 1
    with pytest.raises(UsageError, match="floats outside 0 to 1"):
        read({**sent, "observation/image": image.astype(np.float32)})


def test_cameras_and_the_prompt_can_be_named(policy: Policy) -> None:
    swapped = {"front": "observation/wrist_image", "wrist": "observation/image"}
    sent = libero()
    del sent["prompt"]
    read = Reader("libero", policy.spec, cameras=swapped, prompt="press the button")(sent)
    assert np.array_equal(read.images["front"], sent["observation/wrist_image"])
    assert read.instruction == "press the button"
    with pytest.raises(UsageError, match="unknown camera of the policy 'side'"):
        Reader("libero", policy.spec, cameras={"side": "observation/image"})
    with pytest.raises(UsageError, match=r"gives observation/image to cameras front, wrist"):
        Reader("libero", policy.spec, cameras={"wrist": "observation/image"})
    with pytest.raises(UsageError, match="unknown layout 'aloha': known are droid, libero, testbed"):
        Reader("aloha", policy.spec)


def test_a_camera_that_the_robot_lacks_is_to_be_left_out(policy: Policy) -> None:
    """openpi masks a right wrist that is not there: the refusal says how to do the same, and that works."""
    openpi = replace(policy.spec, cameras=("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"))
    with pytest.raises(UsageError) as refused:
        Reader("libero", openpi)
    line = str(refused.value)
    assert line.startswith(
        "layout libero gives observation/wrist_image to cameras left_wrist_0_rgb, right_wrist_0_rgb: "
        "name the key of each that the robot has, CAMERA=KEY; if the robot has no other, write {"
    )
    said = json.loads(line[line.index("{") : line.index("}") + 1])
    assert said == {"cameras": ["base_0_rgb", "left_wrist_0_rgb"]}
    wanted = Reader("libero", replace(openpi, cameras=tuple(said["cameras"]))).cameras
    assert wanted == {"base_0_rgb": "observation/image", "left_wrist_0_rgb": "observation/wrist_image"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/state": None}, "observation/state is missing: layout libero needs it"),
        ({"observation/state": np.zeros(7)}, r"must be 8 finite numbers, not float64 \(7,\)"),
        ({"observation/state": np.full(8, np.nan)}, "must be 8 finite numbers"),
        ({"observation/state": "abc"}, "must be 8 finite numbers, not str"),
        ({"observation/state": {"a": 1}}, "must be 8 finite numbers, not dict"),
        ({"observation/image": np.zeros((8, 8), np.uint8)}, r"observation/image is uint8 \(8, 8\)"),
        ({"observation/image": np.zeros((8, 8, 3), np.int32)}, "is int32"),
        ({"observation/image": np.zeros((0, 8, 3), np.uint8)}, "send uint8"),
        ({"observation/image": "cat.jpg"}, "send uint8"),
        ({"observation/wrist_image": None}, "observation/wrist_image is missing"),
        ({"prompt": None}, "prompt is missing: send the instruction as text"),
        ({"prompt": 5}, "prompt is a int"),
        ({"prompt": "x" * (LONGEST_PROMPT + 1)}, "prompt has 4097 characters: at most 4096"),
    ],
)
def test_a_wrong_observation_is_named(policy: Policy, change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Reader("libero", policy.spec)({**libero(), **change})


def test_a_layout_of_ones_own_is_a_file(policy: Policy, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text()
    written = json.loads(page.split("```json\n")[1].split("```")[0])
    file = tmp_path / "so100.json"
    file.write_text(json.dumps(written))
    assert layout_of(str(file)).state == {"joints": 5, "gripper": 1}
    with pytest.raises(
        UsageError, match="layout so100 sends a state of 6"
    ):  # the test's policy has another robot
        Reader(str(file), policy.spec)
    seven = {**written, "state": {"joints": 7, "gripper": 1}}
    file.write_text(json.dumps(seven))
    with pytest.raises(UsageError, match="takes 6 actions: the policy gives 7"):
        Reader(str(file), policy.spec)
    del seven["actions"]  # any number will do
    file.write_text(json.dumps(seven))
    sent = {
        "images": {"front": np.zeros((64, 64, 3), np.uint8), "wrist": np.ones((64, 64, 3), np.uint8)},
        "joints": np.arange(7.0),
        "gripper": 1.0,
        "prompt": "press",
    }
    read = Reader(str(file), policy.spec)(sent)
    assert read.state.tolist() == [*range(7), 1]
    assert read.instruction == "press"


@pytest.mark.parametrize(
    ("layout", "fits", "refused"),
    [("droid", 8, 7), ("libero", 7, 8), ("testbed", 7, 8)],
)
def test_a_policy_with_another_robots_actions_is_refused(
    policy: Policy, layout: str, fits: int, refused: int
) -> None:
    """States of 8 numbers are joints and a gripper of one robot, a pose and two fingers of another: openpi's
    DroidOutputs hands on 8 actions, its LiberoOutputs 7."""
    assert Reader(layout, replace(policy.spec, action_dim=fits)).layout.name == layout
    line = f"layout {layout} is of a robot that takes {fits} actions: the policy gives {refused}; serve a policy of"
    with pytest.raises(UsageError, match=line):
        Reader(layout, replace(policy.spec, action_dim=refused))


def test_the_command_refuses_another_robots_policy_before_it_listens(
    tiny_policy_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steering.serving.serve", lambda *_: None)
    assert robosteer.main(["serve", "--policy", str(tiny_policy_dir), "--layout", "droid"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "takes 8 actions: the policy gives 7" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outside": None}, "outside is None; it must be a key"),
        ({"state": ["joints"]}, "state is .*; it must be a map"),
        ({"state": {"joints": "7"}}, "state joints is '7'; say how many numbers"),
        ({"actions": 0}, "actions is 0; say how many numbers the robot takes"),
        ({"actions": "7"}, "actions is '7'; say how many numbers the robot takes"),
        ({"wirst": "x"}, "unknown field of a layout 'wirst'.*did you mean wrist"),
    ],
)
def test_a_wrong_layout_file_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"outside": "a", "wrist": "b", "state": {"joints": 7}, **change}))
    with pytest.raises(UsageError, match=rf"mine\.json: {message}"):
        layout_of(str(file))
