"""Promises of footage: it shows the network's own attention, hides no padding, and is there whole or not at all."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_writer import random_episodes, write_dataset

import interp.filming
from interp.attribution import direct
from interp.capture import capture, frame_noise
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.filming import FRAMES, footage
from interp.footage import Footage, footage_of
from interp.heads import Head
from interp.policies import Policy, load_policy
from interp.runs import Run
from interp.watching import watch, words_of

LENGTHS = (FRAMES + 4, 5)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    return Demonstrations.open(
        write_dataset(tmp_path_factory.mktemp("data") / "demos", random_episodes(LENGTHS))
    )


@pytest.fixture(scope="module")
def run(policy: Policy, demos: Demonstrations, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "run"
    made = capture(policy, demos, path, towers=["expert"], progress=False)
    return footage(policy, demos, made, progress=False)


def eager_attention(
    directory: Path, demos: Demonstrations, frame: int
) -> tuple[dict[str, np.ndarray], Policy]:
    """[layer, head, key] by tower, from transformers' own eager attention, not from our taps."""
    policy = load_policy(directory)
    model = policy.module.model
    model.vlm.language_model.config._attn_implementation = "eager"
    model.dit.config._attn_implementation = "eager"
    batch = policy.batch([demos.observation(frame)])
    words = int(batch["attention_mask"][0, 32:].sum())  # 2 cameras of 4 x 4 patches come first
    seen: dict[str, dict[int, list[torch.Tensor]]] = {"vlm": {}, "expert": {}}
    queries = {"vlm": slice(32, 32 + words), "expert": slice(1, 7)}  # state, then six actions
    for tower, layers in (("vlm", model.vlm.language_model.layers), ("expert", model.dit.layers)):
        for i, layer in enumerate(layers):

            def keep(module: object, args: object, output: tuple, tower: str = tower, i: int = i) -> None:
                seen[tower].setdefault(i, []).append(output[1][0, :, queries[tower]].mean(dim=1))

            layer.self_attn.register_forward_hook(keep)
    noise = frame_noise(policy, demos, range(frame, frame + 1), seed=0)
    with torch.no_grad():
        policy.denoise(batch, noise)
    return {
        tower: torch.stack([torch.stack(steps).mean(dim=0) for steps in layers.values()]).numpy()
        for tower, layers in seen.items()
    }, policy


def test_the_attention_is_what_the_networks_own_eager_attention_gives(
    tiny_policy_dir: Path, demos: Demonstrations, run: Run
) -> None:
    frame = FRAMES + 1  # of the second block
    truth, _ = eager_attention(tiny_policy_dir, demos, frame)
    shown = Footage.open(run, 0)
    assert shown.frames == LENGTHS[0]
    assert shown.words == ("pick", "up", "the", "red", "cube")
    for tower in ("vlm", "expert"):
        for layer in range(3):
            for index in range(4):
                head, attended = Head(tower, layer, index), truth[tower][layer, index]
                for number, camera in enumerate(("front", "wrist")):
                    patches = attended[16 * number : 16 * (number + 1)].reshape(4, 4)
                    peak = shown.peak(head, camera)[frame]
                    assert peak == pytest.approx(patches.max(), abs=1e-5)
                    # a byte is the nearest of 255 steps up to the peak
                    np.testing.assert_allclose(
                        shown.attention(head, camera)[frame] / 255 * peak, patches, atol=peak / 509
                    )
                # <bos> is the first of the language tokens and no word
                np.testing.assert_allclose(shown.to_words(head)[frame], attended[33:38], atol=1e-5)
                mass = dict(zip(shown.parts, shown.mass(head)[frame], strict=True))
                assert sum(mass.values()) == pytest.approx(1, abs=1e-4)
                assert mass["image/wrist"] == pytest.approx(attended[16:32].sum(), abs=1e-5)
                assert mass["language"] == pytest.approx(attended[32:38].sum(), abs=1e-5)


def test_contributions_are_the_direct_attributions_to_the_first_action(
    policy: Policy, demos: Demonstrations, run: Run
) -> None:
    frames = range(LENGTHS[0], sum(LENGTHS))
    batch = policy.batch([demos.observation(frame) for frame in frames])
    found = direct(policy, batch, frame_noise(policy, demos, frames, seed=0))
    shown = Footage.open(run, 1)
    for layer in range(3):
        for index in range(4):
            wrote = shown.contribution(Head("expert", layer, index))
            np.testing.assert_allclose(wrote, found.heads[:, layer, index, 0].numpy(), atol=1e-5)
    assert shown.contribution(Head("vlm", 0, 0)) is None
    # the run's capture drew the same noise, so this is the action that the run's signals have
    signals = run.signals()
    np.testing.assert_allclose(shown.prediction(), signals.prediction[signals.episode == 1][:, 0], atol=1e-4)


def test_padding_of_a_wide_picture_is_dark_and_counted_apart(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    from interp.policies import Observation

    wide = {camera: rng.integers(0, 256, (16, 32, 3), np.uint8) for camera in ("front", "wrist")}
    seen = watch(policy, [Observation(wide, np.zeros(8, np.float32), "")], policy.noise(1, 0))
    picture = seen.images["expert", "front"]
    assert not picture[..., [0, 3], :].any()  # 16 x 32 in a square of 4 x 4 patches: rows 1 and 2 show it
    assert (picture[..., 1:3, :] > 0).all()
    parts = dict(zip(seen.parts, np.moveaxis(seen.mass["expert"], -1, 0), strict=True))
    np.testing.assert_allclose(parts["image/front"], picture.sum(axis=(-2, -1)), atol=1e-5)
    assert (parts["image/front/padding"] > 0).all()
    np.testing.assert_allclose(seen.mass["expert"].sum(axis=-1), 1, atol=1e-4)
    assert seen.cameras["front"].letterbox == {"top": 8, "left": 0, "height": 16, "width": 32, "size": 32}
    assert seen.vocabulary == ()


def test_a_word_that_the_tokenizer_cuts_is_one_word() -> None:
    class Pieces:
        is_fast = True

        def __call__(self, text: str, **options: object) -> dict[str, list[tuple[int, int]]]:
            return {"offset_mapping": [(0, 4), (4, 7), (7, 8), (8, 12), (12, 13)]}  # pick|ing| |cube|s

    class Speaker:
        tokenizer = Pieces()

    assert words_of(Speaker(), "picking cubes") == (("picking", "cubes"), [[1, 2], [4, 5]])  # type: ignore[arg-type]


def test_twins_differ_in_what_their_edit_names(policy: Policy, demos: Demonstrations, run: Run) -> None:
    for edit in ("no-words", "dark"):
        footage(policy, demos, run, episodes=[1], edit=edit, progress=False)
    assert footage_of(run) == {0: (), 1: ("no-words", "dark")}
    clean, silent, dark = (Footage.open(run, 1, edit) for edit in (None, "no-words", "dark"))
    assert silent.words == ()
    assert silent.picture("front", 0) is None
    assert dark.words == clean.words
    assert dark.picture("front", 4) is not None
    for twin in (silent, dark):
        assert np.abs(twin.prediction() - clean.prediction()).max() > 1e-3
    assert Footage.open(run, 1).prediction().tobytes() == clean.prediction().tobytes()


KILLED = """
import os, signal, sys
import interp.filming
from interp.demos import Demonstrations
from interp.policies import load_policy
from interp.runs import Run
original, blocks = interp.filming.watch, []
def dying(*args):
    blocks.append(1)
    if len(blocks) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
interp.filming.watch = dying
policy, demos, run = load_policy(sys.argv[1]), Demonstrations.open(sys.argv[2]), Run.open(sys.argv[3])
interp.filming.footage(policy, demos, run, progress=False)
"""


def test_killed_amid_an_episode_it_resumes_to_the_same_bytes(
    policy: Policy, demos: Demonstrations, tiny_policy_dir: Path, run: Run, tmp_path: Path
) -> None:
    again = capture(policy, demos, tmp_path / "run", towers=["expert"], progress=False)
    script = KILLED.format(at=3)  # two blocks are the first episode, the third is the second's
    words = [sys.executable, "-c", script, str(tiny_policy_dir), str(demos.path), str(again.path)]
    root = Path(interp.filming.__file__).parents[1]
    died = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert footage_of(again) == {0: ()}
    with pytest.raises(UsageError, match="no footage of episode 1"):
        Footage.open(again, 1)
    first = {f: f.stat().st_mtime_ns for f in (again.path / "attention" / "0").rglob("*.npy")}
    footage(policy, demos, again, progress=False)
    assert {f: f.stat().st_mtime_ns for f in first} == first
    assert contents(again, (0, 1)) == contents(run, (0, 1))
    assert not list((again.path / "attention").glob(".*"))


def amid_an_episode(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`act` happens before the second block of the first episode."""
    original, blocks = interp.filming.watch, []

    def watching(*args):
        blocks.append(1)
        if len(blocks) == 2:
            act()
        return original(*args)

    monkeypatch.setattr(interp.filming, "watch", watching)


def test_a_second_filming_of_the_run_is_refused_and_spoils_nothing(
    policy: Policy, demos: Demonstrations, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = capture(policy, demos, tmp_path / "run", towers=["expert"], progress=False)

    def second() -> None:
        with pytest.raises(UsageError, match="is being filmed by another process") as refused:
            footage(policy, demos, again, progress=False)
        assert "\n" not in str(refused.value)

    amid_an_episode(monkeypatch, second)
    footage(policy, demos, again, progress=False)
    assert contents(again, (0, 1)) == contents(run, (0, 1))


def test_an_episode_whose_folder_was_removed_does_not_count(
    policy: Policy, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = capture(policy, demos, tmp_path / "run", towers=["expert"], progress=False)
    shown = again.path / "attention"
    amid_an_episode(monkeypatch, lambda: [shutil.rmtree(folder) for folder in shown.glob(".*")])
    with pytest.raises(UsageError, match="was removed while it was written"):
        footage(policy, demos, again, progress=False)
    assert not list(shown.iterdir())


def contents(run: Run, episodes: tuple[int, ...]) -> dict[str, bytes]:
    folders = [run.path / "attention" / str(episode) for episode in episodes]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(run.path)): file.read_bytes() for file in files}


def test_what_cannot_be_shown_is_one_line(
    policy: Policy, demos: Demonstrations, run: Run, other_policy_dir: Path
) -> None:
    with pytest.raises(UsageError, match="is of policy"):
        footage(load_policy(other_policy_dir), demos, run, progress=False)
    with pytest.raises(UsageError, match=r"unknown episode .* '7'"):
        footage(policy, demos, run, episodes=[7], progress=False)
    with pytest.raises(UsageError, match="unknown edit 'darker'"):
        footage(policy, demos, run, edit="darker", progress=False)
    shown = Footage.open(run, 0)
    for head, says in ((Head("vision", 0, 0), "covers towers"), (Head("expert", 9, 0), "3 layers of 4")):
        with pytest.raises(UsageError, match=says):
            shown.mass(head)
    with pytest.raises(UsageError, match="unknown camera 'top'"):
        shown.attention(Head("expert", 0, 0), "top")


def test_a_cut_file_is_named(run: Run, policy: Policy, demos: Demonstrations, tmp_path: Path) -> None:
    alone = demos.take([1])
    made = capture(policy, alone, tmp_path / "run", towers=["expert"], progress=False)
    shown = Footage.open(footage(policy, alone, made, progress=False), 1)
    file = shown.path / "expert" / "mass.npy"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UsageError, match=r"mass\.npy is broken"):
        shown.mass(Head("expert", 0, 0))
