"""Promises of patching: what nnsight and plain hooks find one head at a time, with the sign and scale that it says.

The tiny policy is random, so nothing here depends on what it has learned.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nnsight import NNsight
from patch_kit import naive
from random_policy import random_observations
from torch import Tensor

import interp.patching
from interp.edits import Edit, single
from interp.errors import UsageError
from interp.heads import Head
from interp.patching import Pairs, Patched, Sides, at_positions, at_steps, patch, patch_heads
from interp.policies import Observation, Policy, load_policy
from interp.scores import HeadScores

# Ratios of projections; stacked rows take other kernels than single ones.
CLOSE = {"atol": 2e-5, "rtol": 1e-3}


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    clean = random_observations(3)
    other = random_observations(3, seed=1)
    corrupt = (
        replace(clean[0], instruction="put up the blue bowl"),  # as long as the clean one
        replace(clean[1], images={**clean[1].images, "front": other[1].images["front"]}),
        replace(clean[2], state=other[2].state),
    )
    return Pairs(tuple(clean), corrupt)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(("tower", "heads"), [("vision", 2), ("vlm", 3), ("expert", 3)])
def test_every_head_equals_a_plain_hook(
    policy: Policy, pairs: Pairs, tower: str, heads: int, direction: str
) -> None:
    edits = single(policy, tower)
    found = patch(policy, pairs, edits, direction=direction, block=2)
    for at in np.linspace(0, len(edits) - 1, heads).astype(int):
        one = naive(policy, pairs, edits[at].heads[0], direction)
        np.testing.assert_allclose(found.effect[at], one[0].sum() / one[1].sum(), **CLOSE)
        np.testing.assert_allclose(found.by_dimension[at], one[0].sum(0) / one[1].sum(0), **CLOSE)
        np.testing.assert_allclose(found.by_pair[at], one[0].sum(1) / one[1].sum(1), **CLOSE)
    assert np.abs(found.effect).max() > 1e-3


def test_one_head_equals_nnsight(policy: Policy, pairs: Pairs, tiny_policy_dir: Path) -> None:
    """A single flow step, traced by nnsight without any cache, edits and all."""
    head, d = Head("expert", 1, 2), 8
    traced = NNsight(load_policy(tiny_policy_dir).module)
    sides = Sides.of(policy, pairs, [0, 1, 2], "denoising", seed=0)

    def run(batch: dict[str, Tensor], new: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        x, seen = sides.noise, []
        for step in range(4):
            with torch.no_grad(), traced.trace(noise=x, timestep=torch.full((3,), 1 - step / 4), **batch):
                projection = traced.model.dit.layers[1].self_attn.o_proj
                if new is not None:
                    projection.input[..., 2 * d : 3 * d] = new[step][..., 2 * d : 3 * d]
                z = projection.input.save()
                velocity = traced.action_out_proj.output.save()
            seen.append(z.clone())
            x = x - velocity / 4
        return x[..., :7].double(), seen

    target, z = run(sides.source, None)
    base, _ = run(sides.base, None)
    patched, _ = run(sides.base, z)
    expected = ((patched - base) * (target - base)).sum() / (target - base).square().sum()
    found = patch(policy, pairs, [Edit((head,))])
    # The traced pass recomputes the prefix together with the expert in every step.
    np.testing.assert_allclose(found.effect[0], expected.item(), atol=1e-4, rtol=1e-3)


def test_positions_spans_and_steps_equal_a_plain_hook(policy: Policy, pairs: Pairs) -> None:
    head = Head("expert", 0, 3)
    edits = at_positions([Edit((head,))], range(7)) + at_steps(policy, [Edit((head,))])
    edits += [Edit((head,), span="action"), Edit((head,), span="state", step=0)]
    found = patch(policy, pairs, edits).effect
    cases = [(slice(p, p + 1), (0, 1, 2, 3)) for p in range(7)] + [(slice(None), (s,)) for s in range(4)]
    cases += [(slice(1, 7), (0, 1, 2, 3)), (slice(0, 1), (0,))]
    for at in (0, 3, 7, 10, 11, 12):
        one = naive(policy, pairs, head, positions=cases[at][0], steps=cases[at][1])
        np.testing.assert_allclose(found[at], one[0].sum() / one[1].sum(), **CLOSE)
    front = policy.spec.span("image/front").slice
    head = Head("vlm", 1, 0)
    image = patch(policy, pairs, [Edit((head,), span="image/front")])
    one = naive(policy, pairs, head, positions=front)
    np.testing.assert_allclose(image.effect[0], one[0].sum() / one[1].sum(), **CLOSE)


def test_a_camera_of_the_vision_tower_is_patched_alone(policy: Policy) -> None:
    """The pair differs in the front image, so the heads' output for the wrist image carries nothing."""
    clean, other = random_observations(1)[0], random_observations(1, seed=1)[0]
    corrupt = replace(clean, images={**clean.images, "front": other.images["front"]})
    every = policy.spec.live_heads(["vision"])
    whole, front, wrist = patch(
        policy,
        Pairs((clean,), (corrupt,)),
        [Edit(every), Edit(every, span="image/front"), Edit(every, span="image/wrist")],
    ).effect
    assert wrist == pytest.approx(0, abs=1e-5)
    assert front == pytest.approx(whole, abs=1e-5)
    assert abs(front) > 1e-2


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_patching_all_of_the_expert_is_the_total_effect(policy: Policy, pairs: Pairs, direction: str) -> None:
    """Actions see image, prompt and state through attention alone, so all heads together carry all of it."""
    found = patch(policy, pairs, [Edit(policy.spec.live_heads(["expert"]))], direction=direction)
    np.testing.assert_allclose(found.effect, 1, atol=1e-4)
    np.testing.assert_allclose(found.by_dimension, 1, atol=1e-3)
    np.testing.assert_allclose(found.by_pair, 1, atol=1e-3)


def test_patching_a_run_into_itself_does_nothing(policy: Policy, pairs: Pairs) -> None:
    mixed = Pairs((pairs.clean[0], pairs.clean[1]), (pairs.clean[0], pairs.corrupt[1]))
    found = patch(policy, mixed, single(policy, "expert") + single(policy, "vlm"))
    assert np.abs(found.indirect[:, 0]).max() < 1e-9
    assert found.total[0].max() < 1e-9
    assert np.isnan(found.by_pair[:, 0]).all()
    np.testing.assert_allclose(found.effect, found.by_pair[:, 1])


def test_a_head_that_reads_nothing_new_carries_nothing(policy: Policy, pairs: Pairs) -> None:
    """The state enters in the expert: the vlm is the same on both sides."""
    only_state = Pairs(pairs.clean[2:], pairs.corrupt[2:])
    found = patch(policy, only_state, single(policy, "vlm"))
    np.testing.assert_allclose(found.effect, 0, atol=1e-5)


def test_scores_say_what_they_are(policy: Policy, pairs: Pairs) -> None:
    grouped = Pairs(pairs.clean, pairs.corrupt, group=(4, 4, 7))
    scores = patch_heads(policy, grouped, towers=["expert", "vlm"], factor="visual", data="demos-1", seed=3)
    assert (scores.method, scores.factor, scores.data) == ("patching-denoising", "visual", "demos-1")
    assert scores.n == {"pairs": 3, "groups": 2}
    direct = patch(policy, pairs, single(policy, "expert"), seed=3)
    grid = scores.tower("expert")
    np.testing.assert_allclose(grid.value.ravel(), direct.effect)
    assert (grid.low <= grid.value).all()
    assert (grid.value <= grid.high).all()
    assert scores.tower("vlm").dead == tuple((2, head) for head in range(4))
    assert np.isnan(scores.tower("vlm").value[2]).all()
    again = HeadScores.from_json(scores.to_json())
    assert again.best(3, "expert") == scores.best(3, "expert")
    gripper = np.array(again.settings["by_dimension"]["expert"]["gripper"])
    np.testing.assert_allclose(gripper.ravel(), direct.by_dimension[:, 6], atol=1e-6)


def test_killed_between_blocks_it_resumes_to_the_same_bits(
    policy: Policy, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = single(policy, "expert")
    whole = patch(policy, pairs, edits, block=1)
    original, calls = Sides.of, []

    def dying(policy, pairs, block, *others):
        calls.append(list(block))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(policy, pairs, block, *others)

    monkeypatch.setattr(interp.patching.Sides, "of", dying)
    with pytest.raises(KeyboardInterrupt):
        patch(policy, pairs, edits, block=1, directory=tmp_path)
    resumed = patch(policy, pairs, edits, block=1, directory=tmp_path)
    assert calls == [[0], [1], [1], [2]]
    assert np.array_equal(resumed.indirect, whole.indirect)
    assert np.array_equal(resumed.total, whole.total)


def test_mistakes_are_one_line(policy: Policy, pairs: Pairs) -> None:
    a, b = random_observations(2)
    same = Pairs((a,), (a,))
    longer = Pairs((a,), (b,))  # prompts of different length
    head = Edit((Head("vlm", 0, 0),))
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: Pairs((), ()), "at least one"),
        (lambda: Pairs((a, b), (a,)), "2 clean and 1 corrupt"),
        (lambda: Pairs((a,), (b,), group=(1, 2)), "2 groups for 1 pairs"),
        (lambda: patch(policy, same, single(policy, "expert")), "there is no effect to explain"),
        (lambda: patch(policy, longer, [head]), "prompts of a pair differ in length"),
        (lambda: patch(policy, pairs, [head], direction="sideways"), "known are denoising, noising"),
        (lambda: patch(policy, pairs, [Edit((Head("vlm", 0, 0),), span="state")]), "belong to another tower"),
        (lambda: patch(policy, pairs, [Edit((Head("expert", 5, 0),))]), "tower expert has 3 layers"),
        (lambda: patch(policy, pairs, [Edit((Head("arm", 0, 0),))]), "unknown tower 'arm'"),
    ]
    for attempt, message in attempts:
        with pytest.raises(UsageError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)
    patch(policy, longer, [replace(head, span="image/front"), Edit((Head("expert", 0, 0),))])  # both are fine


@pytest.mark.parametrize(
    ("place", "says"), [({"step": 1}, "only the expert runs"), ({"span": "action"}, "belong")]
)
def test_places_of_all_towers_are_checked_before_the_first_is_swept(
    policy: Policy, pairs: Pairs, monkeypatch: pytest.MonkeyPatch, place: dict[str, object], says: str
) -> None:
    monkeypatch.setattr(interp.patching, "patch", None)
    with pytest.raises(UsageError, match=says):
        patch_heads(policy, pairs, towers=("expert", "vlm"), **place)


def test_prompts_that_differ_in_length_are_found_before_the_first_tower_is_swept(
    policy: Policy, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interp.patching, "patch", None)
    longer = Pairs(pairs.clean, tuple(replace(o, instruction="press the blue button") for o in pairs.corrupt))
    with pytest.raises(UsageError, match="prompts of a pair differ in length"):
        patch_heads(policy, longer, towers=("expert", "vlm"))


def test_a_policy_that_answers_with_nan_is_an_error(tiny_policy_dir: Path, pairs: Pairs) -> None:
    broken = load_policy(tiny_policy_dir)
    with torch.no_grad():
        broken.module.action_out_proj.bias.fill_(torch.nan)
    with pytest.raises(UsageError, match="not finite"):
        patch(broken, pairs, [Edit((Head("expert", 0, 0),))])


def test_pairs_count_by_the_size_of_their_effect() -> None:
    found = Patched((Edit(()),), np.array([[[0.9], [0.0]]]), np.array([[1.0], [3.0]]))
    assert found.effect == pytest.approx([0.9 / 4])
    low, high = found.interval([0, 1])
    assert low[0] == pytest.approx(0)
    assert high[0] == pytest.approx(0.9)


def test_observations_that_look_the_same_have_one_fingerprint(pairs: Pairs) -> None:
    def copy(observation: Observation) -> Observation:
        images = {name: image.copy() for name, image in reversed(observation.images.items())}
        return replace(observation, images=images)

    again = Pairs(tuple(map(copy, pairs.clean)), tuple(map(copy, pairs.corrupt)))
    assert again.fingerprint == pairs.fingerprint
    assert Pairs(pairs.corrupt, pairs.clean).fingerprint != pairs.fingerprint
