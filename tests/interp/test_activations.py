"""Promises about published activations files: what is in them is ranked as published, and runs become such files.

The files are made with h5py here, in the published form; the reference is the naive ranking of knn_kit.py.
"""

from pathlib import Path

import h5py
import numpy as np
import pytest
from knn_kit import naive_errors, planted_run

import robosteer
from interp.capture import capture
from interp.data.activations import read, write
from interp.data.recordings import appearing
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.knn import KnnSettings, rank
from interp.policies import Policy
from interp.runs import Run, write_json

from lerobot_writer import random_episodes, write_dataset  # isort: skip

SHAPE = (2, 4, 6)
LENGTHS = (9, 12, 7, 10)


def make(path: Path, shape: tuple[int, ...] = SHAPE, state: bool = True, task: str = "task") -> Path:
    """Frames skip, as key frames do; one head knows the action."""
    rng = np.random.default_rng(3)
    with h5py.File(path, "w") as file:
        for episode, length in enumerate(LENGTHS):
            for frame in range(length):
                group = file.create_group(f"{task}/episode_{episode:03d}/frame_{2 * frame:04d}")
                action = rng.normal(size=5).astype(np.float32)
                z = rng.normal(size=shape).astype(np.float32)
                z[1, 2, :5] = 4 * action
                group["first_action_token_attn"] = z
                group["last_token_attn"] = rng.normal(size=shape).astype(np.float32)
                if state:
                    group["state_token_attn"] = rng.normal(size=shape).astype(np.float32)
                group["action_label"] = action
                group["predicted_action_label"] = action + 0.1
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make(tmp_path / "activations.hdf5")


def contents(file: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """z, action, episode and frame, straight from the file."""
    z, action, episode, frame = [], [], [], []
    with h5py.File(file) as opened:
        for i, e in enumerate(sorted(opened["task"])):
            for f in sorted(opened["task"][e]):
                group = opened["task"][e][f]
                z.append(group[name][()])
                action.append(group["action_label"][()])
                episode.append(i)
                frame.append(int(f[-4:]))
    return np.array(z, float), np.array(action, float), np.array(episode), np.array(frame)


@pytest.mark.parametrize(
    ("tower", "token", "name"),
    [
        ("expert", "first_action", "first_action_token_attn"),
        ("expert", "state", "state_token_attn"),
        ("vlm", "last_prefix", "last_token_attn"),
    ],
)
def test_scores_are_those_of_the_published_procedure(
    file: Path, tmp_path: Path, tower: str, token: str, name: str
) -> None:
    run = read(file, tmp_path / "run", progress=False)
    settings = KnnSettings(tokens={tower: token}, ks=(5, 10))
    scores = rank(run, settings, towers=[tower], n=3, permutations=0)
    z, action, episode, frame = contents(file, name)
    live = [(layer, head) for layer in range(2) for head in range(4) if tower == "expert" or layer == 0]
    naive = {
        k: {at: naive_errors(z[:, *at], action, episode, frame, k).mean() for at in live} for k in (5, 10)
    }

    def joint(k: int) -> float:
        best = sorted(naive[k], key=lambda at: naive[k][at])[:3]
        flat = np.concatenate([z[:, *at] for at in best], axis=1)
        return float(naive_errors(flat, action, episode, frame, k).mean())

    k = min((5, 10), key=joint)
    assert scores.settings["chosen"][tower]["k"] == k
    for layer, head in live:
        assert scores.tower(tower).value[layer, head] == pytest.approx(naive[k][layer, head], abs=1e-6)
    if token == "first_action":
        assert str(scores.best(1, "expert")[0]) == "expert.L1H2"


def test_the_run_is_what_the_file_holds(file: Path, tmp_path: Path) -> None:
    run = read(file, tmp_path / "run", progress=False)
    z, action, episode, frame = contents(file, "state_token_attn")
    signals = run.signals()
    assert np.array_equal(run.activations("expert", "state")[:], z)
    assert np.array_equal(signals.action, action.astype(np.float32))
    assert np.allclose(signals.prediction[:, 0], action + 0.1, atol=1e-6)
    assert (signals.episode.tolist(), signals.frame.tolist()) == (episode.tolist(), frame.tolist())
    assert signals.state.shape == (len(frame), 0)
    assert run.spec.towers["vlm"].dead == ((1, 0), (1, 1), (1, 2), (1, 3))


def test_pi05_has_no_state_token(tmp_path: Path) -> None:
    run = read(make(tmp_path / "a.hdf5", state=False), tmp_path / "run", progress=False)
    assert run.tokens("expert") == ("first_action",)


def test_a_file_of_the_published_size_is_read(tmp_path: Path) -> None:
    run = read(make(tmp_path / "a.hdf5", shape=(18, 8, 256), state=False), tmp_path / "run", progress=False)
    assert run.activations("expert").shape == (sum(LENGTHS), 18, 8, 256)


def test_a_run_becomes_a_file_and_the_file_the_same_run(policy: Policy, tmp_path: Path) -> None:
    demos = Demonstrations.open(write_dataset(tmp_path / "demos", random_episodes([4, 3])))
    run = capture(policy, demos, tmp_path / "run", progress=False)
    write(run, tmp_path / "out.hdf5", progress=False)
    with h5py.File(tmp_path / "out.hdf5") as file:
        group = file["task/episode_001/frame_0002"]
        assert sorted(group) == [
            "action_label", "first_action_token_attn", "last_token_attn", "predicted_action_label", "state_token_attn",
        ]  # fmt: skip
        assert np.array_equal(group["action_label"], demos.action[6])
        assert np.array_equal(group["first_action_token_attn"], run.activations("expert", "first_action")[6])
        assert np.array_equal(group["predicted_action_label"], run.signals().prediction[6, 0])
    again = read(tmp_path / "out.hdf5", tmp_path / "again", policy=policy, progress=False)
    assert again.policy == run.policy
    for tower, token in (("expert", "first_action"), ("expert", "state"), ("vlm", "last_prefix")):
        assert np.array_equal(again.activations(tower, token)[:], run.activations(tower, token)[:])
    assert again.signals().instruction == run.signals().instruction
    ours, theirs = (rank(r, KnnSettings(ks=(2,)), permutations=0).tower("expert").value for r in (run, again))
    assert np.array_equal(ours, theirs)


def test_what_lies_beside_the_run_is_left_alone(file: Path, tmp_path: Path) -> None:
    """Whatever it is called: this one somebody else was to finish."""
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial/mine.txt").write_text("weeks of work")
    read(file, tmp_path / "run", progress=False)
    with h5py.File(tmp_path / "broken.hdf5", "w") as broken:
        broken["task/episode_000/frame_0000/action_label"] = np.zeros(5)
    with pytest.raises(UsageError):
        read(tmp_path / "broken.hdf5", tmp_path / "other", progress=False)
    assert (tmp_path / "run.partial/mine.txt").read_text() == "weeks of work"
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"activations.hdf5", "broken.hdf5", "run", "run.partial"}


def test_two_at_once_do_not_write_into_each_other_and_the_first_that_ends_stays(tmp_path: Path) -> None:
    path = tmp_path / "run"

    def both() -> None:
        with appearing(path) as slow:
            slow.mkdir()
            (slow / "half").touch()
            with appearing(path) as fast:
                assert not fast.exists()
                fast.mkdir()
                (fast / "whole").touch()
            assert [each.name for each in slow.iterdir()] == ["half"]

    with pytest.raises(UsageError, match="run already exists"):
        both()
    assert [each.name for each in path.iterdir()] == ["whole"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_commands_do_it(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert robosteer.main(["activations", "import", str(file), "--run", run]) == 0
    assert "38 frames of 4 episodes" in capsys.readouterr().out
    assert robosteer.main(["rank", "--run", run, "--k", "5", "--top", "3"]) == 0
    assert "expert: best expert.L1H2" in capsys.readouterr().out
    assert robosteer.main(["select", "--run", run, "--top", "2"]) == 0
    assert robosteer.main(["activations", "export", str(tmp_path / "b.hdf5"), "--run", run]) == 0
    for name in ("first_action_token_attn", "last_token_attn"):
        for ours, theirs in zip(contents(file, name), contents(tmp_path / "b.hdf5", name), strict=True):
            assert np.array_equal(ours, theirs)


def test_a_file_of_another_policy_is_refused(file: Path, tmp_path: Path, policy: Policy) -> None:
    with pytest.raises(UsageError, match="its expert has 2 layers x 4 heads x 6, this policy's 3 x 4 x"):
        read(file, tmp_path / "run", policy=policy, progress=False)
    assert not list(tmp_path.glob("run*"))


# ---- faults


def test_what_is_no_activations_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read(tmp_path / "none.hdf5", tmp_path / "run")
    (tmp_path / "text.hdf5").write_text("no")
    with pytest.raises(UsageError, match=r"text\.hdf5 is broken"):
        read(tmp_path / "text.hdf5", tmp_path / "run")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data/demo_0"] = [1]
    with pytest.raises(UsageError, match="no activations file"):
        read(tmp_path / "other.hdf5", tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("first_action_token_attn", None, r"frame_0004/first_action_token_attn is missing"),
        ("first_action_token_attn", np.zeros((2, 4, 5)), r"of shape \(2, 4, 5\); it must be .*\(2, 4, 6\)"),
        ("last_token_attn", np.full(SHAPE, np.nan), r"frame_0004/last_token_attn is not finite"),
        ("action_label", None, "no task/episode_002/frame_0004/action_label"),
        ("action_label", np.zeros(4), "not all of one shape"),
        ("action_label", np.full(5, np.inf), "action_label is not finite"),
    ],
)
def test_a_wrong_frame_is_named_and_nothing_is_left(
    file: Path, tmp_path: Path, name: str, value: np.ndarray | None, message: str
) -> None:
    with h5py.File(file, "a") as opened:
        group = opened["task/episode_002/frame_0004"]
        del group[name]
        if value is not None:
            group[name] = value
    with pytest.raises(UsageError, match=message) as caught:
        read(file, tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*run*"))


def test_a_cut_file_is_refused(file: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UsageError, match=r"activations\.hdf5 is broken"):
        read(file, tmp_path / "run", progress=False)
    assert not list(tmp_path.glob("*run*"))


def test_a_run_without_expert_activations_has_nothing_to_write(policy: Policy, tmp_path: Path) -> None:
    run = planted_run(policy, tmp_path / "run")
    write_json(run.path / "run.json", {**run.info, "captured": {"vlm": ["last_prefix"]}})
    with pytest.raises(UsageError, match="capture tower expert first"):
        write(Run.open(run.path), tmp_path / "out.hdf5", progress=False)
    assert not (tmp_path / "out.hdf5").exists()
