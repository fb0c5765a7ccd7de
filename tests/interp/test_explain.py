"""Promises of an explanation: its numbers are those of hooks by hand, and it can be read without the policy.

The reference runs the policy once a head, with HookedVLA's hooks, and adds things up itself.
"""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from lerobot_writer import random_episodes, write_dataset
from torch import Tensor

from interp.attribution import direct
from interp.capture import capture, frame_noise
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.explain import ExplainSettings, Explanation, explain
from interp.explain_figure import DIM, figure, spotlight
from interp.footage import Camera
from interp.heads import Head
from interp.hooked import HookedVLA
from interp.mass import attention_mass
from interp.policies import Policy
from interp.runs import Run
from robosteer import main

# Stacked rows take other kernels than single ones; chunks are of order one.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
EPISODE, FRAME, ROW = 1, 2, 6
SETTINGS = ExplainSettings(towers=("expert", "vlm"), shown=30, examples=2, seed=3)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    path = write_dataset(tmp_path_factory.mktemp("data") / "demos", random_episodes((4, 5, 3)))
    return Demonstrations.open(path)


@pytest.fixture(scope="module")
def run(policy: Policy, demos: Demonstrations, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "explained"
    return capture(policy, demos, path, towers=["expert"], seed=3, progress=False)


@pytest.fixture(scope="module")
def found(policy: Policy, demos: Demonstrations) -> Explanation:
    return explain(policy, demos, EPISODE, FRAME, SETTINGS)


@pytest.fixture(scope="module")
def vla(policy: Policy) -> HookedVLA:
    return HookedVLA(policy)


def answer(vla: HookedVLA, demos: Demonstrations, hooks=(), row: int = ROW) -> np.ndarray:
    """The normalised chunk of one frame, with capture's noise."""
    noise = frame_noise(vla.policy, demos, range(row, row + 1), SETTINGS.seed)
    with torch.no_grad():
        out = vla.run_with_hooks(vla.policy.batch([demos.observation(row)]), noise, fwd_hooks=list(hooks))
    return vla.policy.normalise_actions(out)[0].double().numpy()


def test_the_action_is_the_one_that_the_run_recorded(
    found: Explanation, run: Run, demos: Demonstrations
) -> None:
    signals = run.signals()
    assert (signals.episode[ROW], signals.frame[ROW]) == (EPISODE, FRAME)
    np.testing.assert_allclose(found.predicted, signals.prediction[ROW], atol=1e-5)
    np.testing.assert_array_equal(found.demonstrated[:3], demos.action[ROW : ROW + 3])
    assert found.over.tolist() == [False] * 3 + [True] * 3
    assert found.instruction == signals.instruction[ROW]


@pytest.mark.parametrize("head", [Head("expert", 0, 1), Head("expert", 2, 3), Head("vlm", 1, 0)], ids=str)
def test_ablations_are_what_a_hook_on_that_head_changes(
    found: Explanation, vla: HookedVLA, demos: Demonstrations, head: Head
) -> None:
    """Mean over all twelve frames, per position and flow step; padded prompt tokens do not count."""
    name = f"{head.tower}.blocks.{head.layer}.attn.hook_z"
    total, count = 0.0, 0.0
    for row in range(len(demos)):
        batch = vla.policy.batch([demos.observation(row)])
        noise = frame_noise(vla.policy, demos, range(row, row + 1), SETTINGS.seed)
        with torch.no_grad():
            _, cache = vla.run_with_cache(batch, noise, names_filter=name)
        z = cache[name].double()
        weight = (
            batch["attention_mask"].double()[..., None, None] if head.tower == "vlm" else torch.tensor(1.0)
        )
        total, count = total + z * weight, count + weight

    mean = (total / torch.as_tensor(count).clamp(min=1)).float()

    def to(values: Tensor | float):
        def hook(z: Tensor, hook) -> Tensor:
            z = z.clone()
            here = values
            if isinstance(values, Tensor):
                here = (values[hook.ctx["step"]] if head.tower == "expert" else values)[:, :, head.index]
            z[:, :, head.index] = here
            return z

        return hook

    intact = answer(vla, demos)
    part = next(part for part in found.heads if part.head == head)
    for effect, values in ((part.zero, 0.0), (part.mean, mean)):
        change = intact - answer(vla, demos, [(name, to(values))])
        np.testing.assert_allclose(effect.change, change, **CLOSE)
        assert effect.rms == pytest.approx(np.sqrt((change**2).mean()), rel=1e-2, abs=1e-5)
        np.testing.assert_allclose(effect.by_dimension, change.mean(axis=0), **CLOSE)


def test_direct_parts_and_attention_are_those_of_their_own_modules(
    found: Explanation, policy: Policy, demos: Demonstrations
) -> None:
    noise = frame_noise(policy, demos, range(ROW, ROW + 1), SETTINGS.seed)
    observation = demos.observation(ROW)
    written = direct(policy, policy.batch([observation]), noise)
    for part in found.heads:
        mass = attention_mass(policy, [observation], noise, tower=part.head.tower).mass
        place = (0, part.head.layer, part.head.index)
        for name, share in part.mass.items():
            assert share == pytest.approx(mass[name][place] if name in mass else 0.0, abs=1e-5)
        assert sum(part.mass.values()) == pytest.approx(1, abs=1e-5)
        if part.head.tower == "vlm":
            assert part.direct is None
        else:
            assert part.direct is not None
            np.testing.assert_allclose(part.direct.change, written.heads[place], atol=1e-6)
    assert {str(part.head) for part in found.heads} == {
        str(head) for head in policy.spec.live_heads(["expert", "vlm"])
    }
    sizes = [part.mean.rms for part in found.heads]
    assert sizes == sorted(sizes, reverse=True)
    for look in found.looks:
        part = next(part for part in found.heads if part.head == look.head)
        for camera, grid in look.maps.items():  # square pictures: every patch shows something
            assert grid.sum() == pytest.approx(part.mass[f"image/{camera}"], abs=1e-5)
        assert [word for word, _ in look.words] == found.instruction.split()


def test_examples_are_the_frames_with_the_largest_direct_parts(
    found: Explanation, policy: Policy, demos: Demonstrations
) -> None:
    strength = []
    for row in range(len(demos)):
        noise = frame_noise(policy, demos, range(row, row + 1), SETTINGS.seed)
        strength.append(direct(policy, policy.batch([demos.observation(row)]), noise).grid()[0])
    for look in found.looks:
        if look.head.tower == "vlm":
            assert look.examples == ()
            continue
        own = np.array(strength)[:, look.head.layer, look.head.index]
        best = [
            (own[e.start : e.stop].max(), e.index, own[e.start : e.stop].argmax()) for e in demos.episodes
        ]
        expected = sorted(best, reverse=True)[:2]
        assert [(e.episode, e.frame) for e in look.examples] == [(at, frame) for _, at, frame in expected]
        assert [e.rms for e in look.examples] == pytest.approx([size for size, _, _ in expected], rel=1e-4)


def test_the_command_writes_what_can_be_read_without_the_policy(
    run: Run, demos: Demonstrations, tiny_policy_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["explain", "--run", str(run.path), "--episode", "1", "--frame", "2", "--top", "3"]
    words += ["--policy", str(tiny_policy_dir), "--demos", str(demos.path)]
    assert main([*words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    saved = json.loads((tmp_path / "1-2.json").read_text())
    assert len(saved["heads"]) == 12
    assert len(saved["looks"]) == 3
    assert saved["action"]["names"] == list(run.spec.action_names)
    assert saved["settings"]["seed"] == 3  # the run's own
    np.testing.assert_allclose(saved["action"]["predicted"], run.signals().prediction[ROW], atol=1e-5)
    root = ElementTree.parse(tmp_path / "1-2.svg").getroot()
    said = " ".join(root.itertext())
    for part in saved["heads"][:3]:
        assert part["head"] in said
        assert part["head"] in printed
    pictures = [element.attrib["href"] for element in root.iter() if element.tag.endswith("image")]
    assert len(pictures) == 2 + 3 * (2 + 3)
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)
    assert main([*words[:-2], "--demos", str(tmp_path)]) == 2
    assert "not a LeRobotDataset" in capsys.readouterr().err


def test_vlm_heads_can_be_drawn_and_text_cannot_break_the_picture(
    found: Explanation, demos: Demonstrations
) -> None:
    from dataclasses import replace

    drawn = figure(replace(found, instruction='put <b> & "c"'), demos)
    assert 'put <b> & "c"' in " ".join(ElementTree.fromstring(drawn).itertext())


def test_a_spotlight_falls_where_the_letterbox_puts_the_picture() -> None:
    """A 2 x 4 picture sits in the middle rows of a 4 x 4 square with one patch a pixel."""
    camera = Camera((4, 4), {"top": 1, "left": 0, "height": 2, "width": 4, "size": 4})
    light = np.zeros((4, 4))
    light[1, 3], light[0, 0] = 1.0, 1.0  # the second is in the bar
    lit = spotlight(np.full((2, 4, 3), 200, np.uint8), light, camera)
    expected = np.full((2, 4), int(200 * DIM))
    expected[0, 3] = 200
    np.testing.assert_array_equal(lit[..., 0], expected)


def test_bad_input_is_one_clear_line(policy: Policy, demos: Demonstrations) -> None:
    for attempt, message in (
        (lambda: explain(policy, demos, 7, 0), "unknown episode .*'7': known are 0, 1, 2"),
        (lambda: explain(policy, demos, 1, 5), "frame 5: episode 1 has frames 0-4"),
        (lambda: explain(policy, demos, 1, -1), "frame -1: episode 1 has frames 0-4"),
        (lambda: ExplainSettings(towers=("vision",)), "unknown tower to explain 'vision'"),
        (lambda: ExplainSettings(towers=("vlm",), by="direct"), "only heads of the expert write"),
        (lambda: ExplainSettings(by="best"), "unknown measure 'best'"),  # type: ignore[arg-type]
        (lambda: ExplainSettings(shown=0), "shown must be at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            attempt()
