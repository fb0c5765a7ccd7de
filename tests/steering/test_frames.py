"""Promises of training examples: what is frozen is computed once, and nothing in the numbers gives it away."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_kit import HEADS, SMALL, run, weights

from interp.demos import Demonstrations
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy
from steering.augment import Views
from steering.draws import Draw
from steering.finetune import flow_loss
from steering.frames import TrainingFrames
from steering.headset import HeadSet
from steering.recipes import Recipe, adapt, trainable


@pytest.fixture
def policy(tiny_policy_dir: Path) -> Policy:
    return load_policy(tiny_policy_dir)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit promises hold on one thread: more of them add numbers up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def frames_of(
    policy: Policy, demos: Demonstrations, recipe: Recipe = SMALL, cache_mb: float = 100
) -> TrainingFrames:
    return TrainingFrames(policy, demos, recipe, cache_mb, show=False)


@pytest.mark.parametrize(
    ("heads", "start", "said"),
    [
        ([Head("expert", 0, 0)], 3, "prefix of 21 frames computed once"),
        ([Head("vlm", 1, 0), Head("expert", 0, 0)], 1, "vlm up to layer 0 of 21 frames computed once"),
        ([Head("vlm", 0, 0)], 0, "vision of 21 frames computed once"),
        ([Head("vision", 1, 0)], None, "prefix computed at every step: vision or the whole vlm train"),
    ],
)
def test_what_lies_before_the_first_trained_layer_is_computed_once(
    policy: Policy, demos: Demonstrations, heads: list[Head], start: int | None, said: str
) -> None:
    adapt(policy, SMALL, HeadSet(tuple(heads)))
    frames = frames_of(policy, demos)
    assert frames.start == start
    assert frames.cached == (start is not None)
    assert str(frames).startswith(said)
    draw = Draw.at(0, 0, len(frames), SMALL, policy.spec)
    ran: list[str] = []
    for layer in range(3):
        policy.block("vlm", layer).layer.register_forward_hook(lambda *_, at=layer: ran.append(f"vlm {at}"))
    policy.tower_module("vision").register_forward_hook(lambda *_: ran.append("vision"))
    flow_loss(policy, frames.take(draw), draw).backward()
    before = 0 if start is None else start
    expected = [f"vlm {layer}" for layer in range(before, 3)]
    if frames.cached and start != 3:
        expected.pop()  # of the last layer nothing but keys and values is wanted: it is left in the middle
    assert [each for each in ran if each != "vision"] == expected
    assert ("vision" in ran) == (start is None)


@pytest.mark.parametrize("tower", ["expert", "vlm"])
@pytest.mark.parametrize("layer", [0, 1])
def test_stored_activations_give_the_loss_and_gradients_of_fresh_ones(
    policy: Policy, demos: Demonstrations, tower: str, layer: int
) -> None:
    adapt(policy, SMALL, HeadSet((Head(tower, layer, 1), Head("expert", 2, 0))))
    found = []
    for cache_mb in (100, 0):
        frames = frames_of(policy, demos, cache_mb=cache_mb)
        assert frames.cached == bool(cache_mb)
        draw = Draw.at(3, 0, len(frames), SMALL, policy.spec)
        policy.module.zero_grad()
        loss = flow_loss(policy, frames.take(draw), draw)
        loss.backward()
        found.append(
            (loss, {name: p.grad.clone() for name, p in trainable(policy).items() if p.grad is not None})
        )
    (stored, ours), (fresh, theirs) = found
    # prefixes of other batch sizes round differently
    torch.testing.assert_close(stored, fresh, rtol=1e-5, atol=1e-6)
    assert ours.keys() == theirs.keys() == trainable(policy).keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_the_budget_is_kept_and_the_reason_said(policy: Policy, demos: Demonstrations) -> None:
    adapt(policy, SMALL, HEADS)
    whole = frames_of(policy, demos)
    # keys and values of 3 layers, 1 head of 8 on 42 tokens (2 x 16 patches, 10 words), float32; and a little more
    least = 21 * 3 * 2 * 42 * 8 * 4 / 2**20
    assert least < whole.megabytes < 1.1 * least
    small = frames_of(policy, demos, cache_mb=0.1)
    assert (small.frozen, small.cached) == (True, False)
    assert str(small) == "prefix computed at every step: 0 MB exceed the budget of 0 MB"


def test_augmentation_switches_the_store_off_and_says_so(policy: Policy, demos: Demonstrations) -> None:
    adapt(policy, SMALL, HEADS)
    recipe = replace(SMALL, augment_shift=0.1)
    frames = frames_of(policy, demos, recipe)
    assert not frames.cached
    assert str(frames) == "prefix computed at every step: images are augmented"
    first, second = (frames.take(Draw.at(s, 0, 1, recipe, policy.spec)).batch["pixel_values"] for s in (0, 1))
    assert not torch.equal(first, second)  # the same frame (there is one to choose from), other views


def test_a_view_is_a_shift_and_a_change_of_colour(observations: list[Observation]) -> None:
    image = observations[0].images["front"]  # 32 x 32
    shift = np.zeros((1, 2, 2))
    shift[0, 0] = (3 / 32, -2 / 32)
    same, other = np.ones((1, 2)), np.full((1, 2), 0.5)
    moved = Views(shift, same, np.zeros((1, 2, 3))).apply(0, observations[0])
    assert np.array_equal(moved.images["front"][3:, :-2], image[:-3, 2:])  # down by 3, left by 2
    assert np.array_equal(
        moved.images["front"][:3, :-2], np.repeat(image[:1, 2:], 3, axis=0)
    )  # the border repeats
    assert np.array_equal(moved.images["wrist"], observations[0].images["wrist"])
    dimmed = Views(0 * shift, other, np.zeros((1, 2, 3))).apply(0, observations[0])
    expected = np.rint((image.astype(float) - 127.5) * 0.5 + 127.5)
    assert np.abs(dimmed.images["front"] - expected).max() <= 1  # halves round either way
    assert dimmed.images["front"].dtype == np.uint8


def test_a_cached_prefix_trains_the_same_policy_as_a_recomputed_one(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    for cache_mb in (100, 0):
        run(load_policy(tiny_policy_dir), demos, tmp_path / str(cache_mb), cache_mb=cache_mb)
    cached, fresh = weights(tmp_path / "100"), weights(tmp_path / "0")
    for name in cached:
        # prefixes of other batch sizes round differently, and Adam's first steps amplify to lr * rounding
        torch.testing.assert_close(cached[name], fresh[name], rtol=0, atol=2e-5)
