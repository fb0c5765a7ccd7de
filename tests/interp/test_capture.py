"""Promises of capture: the numbers are the policy's own, and a kill at any moment costs nothing but time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_writer import random_episodes, write_dataset
from PIL import Image
from random_policy import build_policy

import interp.capture
from interp.capture import BLOCK, capture
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import Policy, load_policy
from interp.runs import Run

LENGTHS = (30, 25, 20)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "demos", random_episodes(LENGTHS))


@pytest.fixture(scope="module")
def demos(dataset: Path) -> Demonstrations:
    return Demonstrations.open(dataset)


@pytest.fixture(scope="module")
def run(policy: Policy, demos: Demonstrations, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return capture(policy, demos, tmp_path_factory.mktemp("runs") / "run", progress=False)


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a run that holds a result."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name != "run.json"]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_z_is_what_plain_hooks_see_at_the_papers_tokens(
    policy: Policy, demos: Demonstrations, run: Run
) -> None:
    model = policy.module.model
    noise = interp.capture.frame_noise(policy, demos, range(len(demos)), seed=0)
    for frame in (0, 40, 74):
        batch = policy.batch([demos.observation(frame)])
        actions = policy.module.sample_actions(noise=noise[frame : frame + 1], **batch)
        seen: dict[str, list[torch.Tensor]] = {"expert": [], "vlm": [], "vision": []}
        projections = {
            "expert": [layer.self_attn.o_proj for layer in model.dit.layers],
            "vlm": [layer.self_attn.o_proj for layer in model.vlm.language_model.layers],
            "vision": [layer.self_attn.out_proj for layer in model.vlm.vision_tower.encoder.layers],
        }
        handles = [
            module.register_forward_pre_hook(lambda _, args, into=seen[tower]: into.append(args[0]))
            for tower, modules in projections.items()
            for module in modules
        ]
        with torch.no_grad():  # the extra pass at flow time 0, with nothing cached
            policy.module(noise=actions, timestep=torch.zeros(1), **batch)
        for handle in handles:
            handle.remove()
        last = int(batch["attention_mask"].sum()) - 1
        expected = {
            ("expert", "first_action"): [z[0, 1].reshape(4, 8) for z in seen["expert"]],
            ("expert", "state"): [z[0, 0].reshape(4, 8) for z in seen["expert"]],
            ("vlm", "last_prefix"): [z[0, last].reshape(4, 8) for z in seen["vlm"]],
            ("vision", "mean"): [z.mean(dim=(0, 1)).reshape(2, 12) for z in seen["vision"]],
        }
        for (tower, token), layers in expected.items():
            stored = torch.tensor(run.activations(tower, token)[frame])
            # 1e-4: batches of 32 and of 1 round differently, over four denoising steps.
            torch.testing.assert_close(stored, torch.stack(layers), atol=1e-4, rtol=1e-4)
        predicted = policy.unnormalise_actions(actions[..., :7])[0].numpy()
        np.testing.assert_allclose(run.signals().prediction[frame], predicted, atol=1e-4)


def test_signals_are_the_demonstrations(demos: Demonstrations, run: Run) -> None:
    signals = run.signals()
    assert np.array_equal(signals.episode, np.repeat([0, 1, 2], LENGTHS))
    assert np.array_equal(signals.frame, np.concatenate([np.arange(n) for n in LENGTHS]))
    assert np.array_equal(signals.state, demos.state)
    assert np.array_equal(signals.action, demos.action)
    assert signals.instruction[0] == demos.episodes[0].instruction
    assert signals.prediction.shape == (75, 6, 7)


def test_every_frame_has_a_thumbnail_of_every_camera(demos: Demonstrations, run: Run) -> None:
    for episode, length in enumerate(LENGTHS):
        for camera in demos.cameras:
            assert len(list(run.frame_path(episode, camera, 0).parent.glob("*.jpg"))) == length
    shown = np.asarray(Image.open(run.frame_path(1, "wrist", 3)), dtype=float)
    truth = demos.observation(30 + 3).images["wrist"].astype(float)
    others = demos.observation(30 + 4).images["wrist"].astype(float)
    # Noise is the worst that JPEG can be asked for; still the right frame is by far the nearest.
    assert np.abs(shown - truth).mean() < 0.7 * np.abs(shown - others).mean()


def test_a_frame_does_not_depend_on_which_others_are_captured(
    policy: Policy, demos: Demonstrations, run: Run, tmp_path: Path
) -> None:
    alone = capture(policy, demos.take([1]), tmp_path / "alone", progress=False, thumbnails=False)
    for tower, token in (("expert", "first_action"), ("vlm", "last_prefix")):
        np.testing.assert_allclose(
            alone.activations(tower, token)[:], run.activations(tower, token)[30:55], atol=1e-4
        )
    assert not (alone.path / "frames").exists()


def test_towers_can_be_added_later(policy: Policy, demos: Demonstrations, run: Run, tmp_path: Path) -> None:
    part = capture(policy, demos, tmp_path / "run", towers=["expert"], progress=False)
    assert part.tokens("vlm") == ()
    with pytest.raises(UsageError, match="no activations of tower 'vlm'"):
        part.activations("vlm")
    whole = capture(policy, demos, tmp_path / "run", progress=False)
    assert contents(whole.path) == contents(run.path)


def test_a_token_that_a_run_lacks_is_added_without_touching_the_others(
    policy: Policy, demos: Demonstrations, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    monkeypatch.setattr(interp.capture, "TOKENS", {"expert": ("state",), "vlm": (), "vision": ()})
    older = capture(policy, demos, path, progress=False)
    assert older.tokens("expert") == ("state",)
    before = {file: file.stat().st_mtime_ns for file in (older.store("expert") / "state").rglob("*")}
    monkeypatch.undo()
    newer = capture(policy, demos, path, progress=False)
    assert newer.tokens("expert") == ("first_action", "state")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert contents(path) == contents(run.path)


def test_a_finished_capture_is_not_repeated(
    policy: Policy, demos: Demonstrations, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interp.capture, "capture_block", None)
    assert capture(policy, demos, run.path, progress=False).captured


KILLED = """
import os, signal, sys
import interp.capture
from interp.demos import Demonstrations
from interp.policies import load_policy
original, blocks = interp.capture.{function}, []
def dying(*args, **kwargs):
    blocks.append(1)
    if len(blocks) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
interp.capture.{function} = dying
interp.capture.capture(load_policy(sys.argv[1]), Demonstrations.open(sys.argv[2]), sys.argv[3], progress=False)
"""


@pytest.mark.parametrize(
    ("function", "at"),
    [("thumbnail", 2 * BLOCK + 5), ("_parquet", 3), ("_parquet", 4)],
    ids=["amid a block", "before its commit", "before the end"],
)
def test_killed_with_sigkill_it_resumes_to_the_same_bytes(
    policy: Policy,
    demos: Demonstrations,
    tiny_policy_dir: Path,
    run: Run,
    tmp_path: Path,
    function: str,
    at: int,
) -> None:
    script = KILLED.format(function=function, at=at)
    arguments = [str(tiny_policy_dir), str(demos.path), str(tmp_path / "run")]
    root = Path(interp.capture.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    died = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    torn = Run.open(tmp_path / "run")
    assert not torn.captured
    with pytest.raises(UsageError, match="no finished capture"):
        torn.signals()
    resumed = capture(policy, demos, tmp_path / "run", progress=False)
    assert contents(resumed.path) == contents(run.path)


@pytest.mark.parametrize("towers", [None, ["vlm"]], ids=["the same towers", "another tower"])
def test_a_second_capture_into_the_run_is_refused_and_spoils_nothing(
    policy: Policy,
    demos: Demonstrations,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    towers: list[str] | None,
) -> None:
    """It starts while the first is in its second block."""
    original, blocks = interp.capture.capture_block, []

    def meanwhile(*args, **kwargs):
        blocks.append(1)
        if len(blocks) == 2:
            with pytest.raises(UsageError, match="is being captured by another process") as refused:
                capture(policy, demos, tmp_path / "run", towers=towers, progress=False)
            assert "\n" not in str(refused.value)
        return original(*args, **kwargs)

    monkeypatch.setattr(interp.capture, "capture_block", meanwhile)
    first = capture(policy, demos, tmp_path / "run", progress=False)
    assert len(blocks) == 3
    assert contents(first.path) == contents(run.path)


def test_what_another_process_captured_meanwhile_is_not_captured_again(
    policy: Policy, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends between the moment when this one opens the run and the moment when it gets the lock."""
    original = interp.capture.alone

    def late(*args):
        monkeypatch.setattr(interp.capture, "alone", original)
        capture(policy, demos, tmp_path / "run", towers=["vlm"], progress=False)
        monkeypatch.setattr(interp.capture, "capture_block", None)
        return original(*args)

    monkeypatch.setattr(interp.capture, "alone", late)
    assert capture(policy, demos, tmp_path / "run", towers=["vlm"], progress=False).tokens("vlm")


def test_an_interrupted_pass_for_other_towers_is_given_up(
    policy: Policy, demos: Demonstrations, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, blocks = interp.capture.capture_block, []

    def dying(*args, **kwargs):
        blocks.append(1)
        if len(blocks) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(interp.capture, "capture_block", dying)
    with pytest.raises(KeyboardInterrupt):
        capture(policy, demos, tmp_path / "run", towers=["vlm"], progress=False)
    capture(policy, demos, tmp_path / "run", towers=["expert"], progress=False)
    whole = capture(policy, demos, tmp_path / "run", progress=False)
    assert contents(whole.path) == contents(run.path)


def test_another_policy_other_data_or_another_seed_is_refused(
    policy: Policy, demos: Demonstrations, other_policy_dir: Path, run: Run
) -> None:
    other = load_policy(other_policy_dir)
    with pytest.raises(UsageError, match=f"policy {policy.fingerprint}, not {other.fingerprint}"):
        capture(other, demos, run.path, progress=False)
    with pytest.raises(UsageError, match=f"data {demos.fingerprint}, not"):
        capture(policy, demos.take([0]), run.path, progress=False)
    with pytest.raises(UsageError, match="seed 0, not 1"):
        capture(policy, demos, run.path, seed=1, progress=False)


def test_bad_input_leaves_nothing_behind(policy: Policy, demos: Demonstrations, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown tower 'experts'"):
        capture(policy, demos, tmp_path / "a", towers=["experts"], progress=False)
    blind = Demonstrations.open(write_dataset(tmp_path / "d", random_episodes([3], cameras=["front"])))
    with pytest.raises(UsageError, match="lack camera 'wrist'"):
        capture(policy, blind, tmp_path / "b", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_activations_that_are_not_numbers_stop_the_capture(demos: Demonstrations, tmp_path: Path) -> None:
    policy = load_policy(build_policy(tmp_path / "policy"))
    bias = policy.query_projection("vision", 1).bias
    bias.data[0] = torch.inf
    with pytest.raises(UsageError, match=r"z of .* is not finite in frame 0"):
        capture(policy, demos, tmp_path / "run", progress=False)
