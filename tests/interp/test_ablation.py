"""Promises of ablation: exactly what a plain hook does to one head at a time, only faster.

The independent computation is a forward pre-hook on the output projection, one head and one frame at a time, and the
policy's own sampling and loss.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_writer import random_episodes, write_dataset
from random_policy import build_half, build_policy, random_observations
from torch import Tensor

import interp.ablation
from interp.ablation import AblationSettings, _Problem, ablate, ablate_set, ablated
from interp.assembly import bootstrap
from interp.demos import Demonstrations
from interp.edits import NOTHING, Edit, single
from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Policy, load_policy
from interp.policies.preprocessing import Statistics
from interp.scores import HeadScores
from interp.sweep import Stage

# Stacked rows take other kernels than single ones; chunks are of order one.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    path = write_dataset(tmp_path_factory.mktemp("data") / "demos", random_episodes((4, 3)))
    return Demonstrations.open(path)


@contextmanager
def replaced(policy: Policy, head: Head, new: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """z of one head, as a plain PyTorch hook sees it: [batch, pos, d_head]."""
    d = policy.spec.towers[head.tower].d_head
    own = slice(head.index * d, (head.index + 1) * d)

    def hook(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        z = args[0].clone()
        z[..., own] = new(z[..., own])
        return (z,)

    handle = policy.out_projection(head.tower, head.layer).register_forward_pre_hook(hook)
    yield
    handle.remove()


def chunk_at(policy: Policy, demos: Demonstrations, settings: AblationSettings, frame: int) -> Tensor:
    """The normalised chunk of one frame, by itself."""
    noise = _Problem(policy, demos, settings, demos, 0).passes.noise([frame], 1)[:, 0]
    with torch.no_grad():
        return policy.normalise_actions(policy.sample(policy.batch([demos.observation(frame)]), noise))[0]


@pytest.mark.parametrize("tower", ["vision", "vlm", "expert"])
def test_zero_ablation_equals_one_head_and_frame_at_a_time(
    policy: Policy, demos: Demonstrations, tower: str
) -> None:
    settings = AblationSettings(block=3)
    scores = ablate(policy, demos, settings, towers=[tower])
    live = policy.spec.tower(tower).live
    for layer, index in (live[0], live[len(live) // 2], live[-1]):
        head, effects = Head(tower, layer, index), []
        for frame in range(7):
            intact = chunk_at(policy, demos, settings, frame)
            with replaced(policy, head, torch.zeros_like):
                effects.append((chunk_at(policy, demos, settings, frame) - intact).square().mean().sqrt())
        assert scores.score(head) == pytest.approx(float(torch.stack(effects).mean()), rel=1e-3)
        assert scores.score(head) > 1e-4
    assert scores.n == {"episodes": 2, "frames": 7}
    assert (scores.tower(tower).low <= scores.tower(tower).value)[scores.tower(tower).value > 0].all()
    assert HeadScores.from_json(scores.to_json()).best(2, tower) == scores.best(2, tower)


def test_dead_heads_have_no_score_and_exactly_no_effect(policy: Policy, demos: Demonstrations) -> None:
    grid = ablate(policy, demos, AblationSettings(frames=1), towers=["vlm"]).tower("vlm")
    assert grid.dead == tuple((2, head) for head in range(4))
    assert np.isnan(grid.value[2]).all()
    assert np.isfinite(grid.value[:2]).all()
    batch, noise = policy.batch([demos.observation(0)]), policy.noise(1, 0)
    edits = [NOTHING, *(Edit((Head("vlm", 2, head),)) for head in range(4))]
    out = Stage(policy, batch, budget=0).denoise(noise, edits)
    assert all(torch.equal(out[0], each) for each in out[1:])


def test_a_head_wrongly_marked_dead_is_found(
    policy: Policy, demos: Demonstrations, tiny_policy_dir: Path
) -> None:
    lying = load_policy(tiny_policy_dir)
    towers = {**lying.spec.towers, "expert": replace(lying.spec.towers["expert"], dead=((0, 1),))}
    lying.spec = replace(lying.spec, towers=towers)
    with pytest.raises(RuntimeError, match="marked dead"):
        ablate(lying, demos, AblationSettings(frames=1))


def test_mean_ablation_uses_the_mean_over_the_reference_per_position_and_step(
    policy: Policy, demos: Demonstrations
) -> None:
    settings = AblationSettings(mode="mean", block=2)
    scores = ablate(policy, demos, settings, towers=["expert", "vlm"])
    for head in (Head("expert", 1, 2), Head("vlm", 0, 3)):
        seen: list[list[Tensor]] = []
        masks = torch.cat([policy.batch([demos.observation(f)])["attention_mask"] for f in range(7)])
        for frame in range(7):
            seen.append([])
            with replaced(policy, head, lambda z, into=seen[-1]: into.append(z) or z):
                chunk_at(policy, demos, settings, frame)
        z = torch.stack([torch.cat(steps) for steps in seen])  # frame step pos d_head
        weight = masks[:, None, :, None].float() if head.tower == "vlm" else torch.ones(7, 1, 1, 1)
        mean = (z * weight).sum(0) / weight.sum(0).clamp(min=1)
        effects = []
        for frame in range(7):
            steps = iter(mean)
            with replaced(policy, head, lambda z, steps=steps: next(steps).expand_as(z)):
                edited = chunk_at(policy, demos, settings, frame)
            effects.append((edited - chunk_at(policy, demos, settings, frame)).square().mean().sqrt())
        assert scores.score(head) == pytest.approx(float(torch.stack(effects).mean()), rel=1e-3)


def test_a_mean_that_no_reference_frame_has_is_not_taken_for_zero(
    policy: Policy, demos: Demonstrations
) -> None:
    """Frame 4 alone is told much; the two reference frames are the first and the last."""
    long, short = "pick up the red cube", "press the button"
    told = replace(demos, instructions=(short, long), task=np.array([0, 0, 0, 0, 1, 0, 0]))
    settings = AblationSettings("mean", frames=2)
    edits = [Edit((Head("vlm", 0, 1),))]
    with pytest.raises(
        UsageError, match="the prompt of frame 4 is longer than that of every reference frame"
    ) as error:
        ablated(policy, told, [3, 4], edits, settings)
    assert "\n" not in str(error.value)
    assert np.isfinite(ablated(policy, told, [3, 5], edits, settings)).all()  # as long as the reference
    assert np.isfinite(ablated(policy, told, [4], [Edit((Head("expert", 0, 1),))], settings)).all()
    assert np.isfinite(ablated(policy, told, [4], edits, AblationSettings("mean", frames=None))).all()


def test_resampling_takes_z_of_a_frame_of_another_episode(policy: Policy, demos: Demonstrations) -> None:
    settings = AblationSettings(mode="resample", donors=2, block=2)
    problem, head = _Problem(policy, demos, settings, demos, 0), Head("expert", 0, 1)
    effect = problem.effect(problem.changes([Edit((head,))], None, False))
    for frame in (0, 6):
        found = []
        for at in range(2):
            donor = problem.substitutes.donor(frame, at)
            assert demos.episode_of[donor] != demos.episode_of[frame]
            steps: list[Tensor] = []
            with replaced(policy, head, lambda z, into=steps: into.append(z) or z):
                chunk_at(policy, demos, settings, donor)
            feed = iter(steps)
            with replaced(policy, head, lambda z, feed=feed: next(feed)):
                edited = chunk_at(policy, demos, settings, frame)
            found.append((edited - chunk_at(policy, demos, settings, frame)).square().mean().sqrt())
        assert effect[0, frame] == pytest.approx(float(torch.stack(found).mean()), rel=1e-3)


def test_demonstrated_actions_are_normalised_before_they_are_rounded(
    demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An action half a deviation below the mean, in bfloat16, whose step at 1 is as large as that deviation."""
    half = load_policy(build_half(tmp_path / "half", torch.bfloat16))
    shown = demos.action[2].astype(np.float64)
    norm = Statistics(tuple(shown + 0.004), (0.008,) * 7)
    monkeypatch.setattr(half, "preprocessing", replace(half.preprocessing, action=norm))
    told: list[Tensor] = []
    original = half.loss
    monkeypatch.setattr(
        half, "loss", lambda batch, actions, *more: told.append(actions) or original(batch, actions, *more)
    )
    settings = AblationSettings("mean", "loss", frames=1, draws=1)
    ablated(half, demos, [2], [Edit((Head("expert", 0, 0),))], settings, reference=demos)
    assert len(told) == 3  # of the reference's first frame, intact, ablated
    for actions in told[1:]:
        torch.testing.assert_close(actions[:, 0].float(), torch.full((1, 7), -0.5), atol=2**-9, rtol=0)


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_the_effect_on_the_loss_is_ablated_minus_intact_over_valid_steps(
    policy: Policy, demos: Demonstrations, mode: str
) -> None:
    settings = AblationSettings(mode=mode, effect="loss", draws=2, block=2)
    scores = ablate(policy, demos, settings, towers=["expert", "vlm"])
    assert scores.method == f"ablation-{mode}-loss"
    if mode != "zero":
        assert np.isfinite(scores.tower("vlm").value[:2]).all()
        assert not np.allclose(scores.tower("expert").value, 0)
        return
    noise = _Problem(policy, demos, settings, demos, 0).passes.noise
    for head in (Head("expert", 2, 0), Head("vlm", 1, 1)):

        def loss(frame: int) -> np.ndarray:
            actions, over = demos.chunk(frame, policy.spec.horizon)
            batch = policy.batch([demos.observation(frame)])
            target = policy.normalise_actions(torch.tensor(actions)[None])
            draws = []
            for draw, time in enumerate((0.25, 0.75)):
                one = policy.loss(batch, target, noise([frame], 2)[:, draw], torch.tensor([time]))
                draws.append(one[0, ~over].mean().item())
            return np.mean(draws)

        intact = np.array([loss(frame) for frame in range(7)])
        with replaced(policy, head, torch.zeros_like):
            ablated = np.array([loss(frame) for frame in range(7)])
        assert scores.score(head) == pytest.approx(float((ablated - intact).mean()), abs=2e-5, rel=1e-3)


def test_a_set_is_ablated_together(policy: Policy, demos: Demonstrations) -> None:
    heads = [Head("expert", 0, 1), Head("expert", 2, 3), Head("vlm", 0, 0)]
    settings = AblationSettings()
    effect = ablate_set(policy, demos, heads, settings)
    joint, additive = [], []
    for frame in range(7):
        intact = chunk_at(policy, demos, settings, frame)
        alone = []
        for head in heads:
            with replaced(policy, head, torch.zeros_like):
                alone.append(chunk_at(policy, demos, settings, frame) - intact)
        with (
            replaced(policy, heads[0], torch.zeros_like),
            replaced(policy, heads[1], torch.zeros_like),
            replaced(policy, heads[2], torch.zeros_like),
        ):
            joint.append((chunk_at(policy, demos, settings, frame) - intact).square().mean().sqrt())
        additive.append(torch.stack(alone).sum(0).square().mean().sqrt())
    assert effect.joint == pytest.approx(float(torch.stack(joint).mean()), rel=1e-3)
    assert effect.additive == pytest.approx(float(torch.stack(additive).mean()), rel=1e-3)
    singles = ablate(policy, demos, settings, towers=["expert", "vlm"])
    assert effect.singles == pytest.approx({head: singles.score(head) for head in heads}, rel=1e-3)
    assert effect.low <= effect.joint <= effect.high
    one = ablate_set(policy, demos, heads[:1], settings)
    assert one.joint == pytest.approx(one.additive) == pytest.approx(one.singles[heads[0]])


def test_ablating_every_head_of_the_expert_leaves_no_trace_of_the_image(policy: Policy) -> None:
    """Then nothing reads the prefix, and only noise and time remain."""
    every = Edit(policy.spec.live_heads(["expert"]))
    batch = policy.batch(random_observations(3))
    noise = policy.noise(1, 0).repeat(3, 1, 1)
    out = Stage(policy, batch).denoise(noise, [NOTHING, every])
    assert (out[0, 0] - out[0, 1]).abs().max() > 1e-3
    torch.testing.assert_close(out[1, 0], out[1, 1])
    torch.testing.assert_close(out[1, 0], out[1, 2])


@pytest.mark.parametrize("tower", ["vlm", "expert"])
def test_the_budget_changes_memory_and_not_the_answer(policy: Policy, tower: str) -> None:
    batch, noise = policy.batch(random_observations(2)), policy.noise(2, 0)
    edits = single(policy, tower)
    wide, narrow = (Stage(policy, batch, budget).denoise(noise, edits) for budget in (2**30, 0))
    torch.testing.assert_close(wide, narrow, **CLOSE)
    shuffled = Stage(policy, batch, 2**19).denoise(noise, edits[::-1])
    torch.testing.assert_close(shuffled.flip(0), wide, **CLOSE)


def test_only_what_an_edit_can_change_runs_again(policy: Policy) -> None:
    batch, noise, ran = policy.batch(random_observations(2)), policy.noise(2, 0), []
    stage = Stage(policy, batch)
    handles = [
        module.register_forward_hook(lambda *_, name=f"{tower}{layer} {kind}": ran.append(name))
        for tower in ("vision", "vlm", "expert")
        for layer in range(policy.spec.towers[tower].layers)
        for kind, module in (("mlp", policy.block(tower, layer).mlp), ("q", policy.block(tower, layer).query))
    ]
    stage.denoise(noise, single(policy, "expert"))
    assert (ran.count("vision0 q"), ran.count("vlm0 q")) == (1, 1)
    # The clean run's 4 steps; the first step once for every layer that edits are in, from z there on; 3 more together.
    assert [ran.count(f"expert{layer} q") for layer in range(3)] == [4 + 0 + 3, 4 + 1 + 3, 4 + 2 + 3]
    assert [ran.count(f"expert{layer} mlp") for layer in range(3)] == [4 + 1 + 3, 4 + 2 + 3, 4 + 3 + 3]
    ran.clear()
    stage.denoise(noise, [Edit((Head("expert", 1, 0),), step=3)])
    # A late step starts late.
    assert [ran.count(f"expert{layer} mlp") for layer in range(3)] == [4 + 0, 4 + 1, 4 + 1]
    ran.clear()
    stage.denoise(noise, [Edit((Head("vlm", 0, 0),)), Edit((Head("vlm", 0, 1),))])
    assert ran.count("vision0 q") == 0
    # Of the last layer only keys and values are computed, so it never comes to its end.
    assert [ran.count(f"vlm{layer} mlp") for layer in range(3)] == [1, 1, 0]
    assert [ran.count(f"vlm{layer} q") for layer in range(3)] == [0, 1, 1]
    # The expert reads the first layer's keys and values as they were.
    assert [ran.count(f"expert{layer} q") for layer in range(3)] == [4 + 0 + 3, 4 + 1 + 3, 4 + 1 + 3]
    ran.clear()
    stage.denoise(noise, [Edit((Head("vision", 1, 0),))])
    assert [ran.count(f"vision{layer} q") for layer in range(2)] == [1, 1]  # the clean run alone
    for handle in handles:
        handle.remove()


def test_grouped_keys_and_head_dimensions_of_their_own(tmp_path: Path) -> None:
    """15 query heads share 5 KV heads, and head dimension is not width / heads."""
    grouped = load_policy(build_policy(tmp_path / "gqa", heads=15, kv_heads=5, layers=2))
    batch, noise = grouped.batch(random_observations(1)), grouped.noise(1, 0)
    for head in (Head("vlm", 0, 14), Head("expert", 1, 7)):
        with replaced(grouped, head, torch.zeros_like):
            expected = grouped.denoise(batch, noise)[..., :7]
        stacked = Stage(grouped, batch).denoise(noise, [NOTHING, Edit((head,)), NOTHING])
        torch.testing.assert_close(stacked[1], expected, **CLOSE)


def test_killed_between_blocks_it_resumes_to_the_same_bits(
    policy: Policy, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AblationSettings(block=2)
    whole = ablate(policy, demos, settings)
    original, calls = interp.ablation._Problem.block, []

    def dying(self, frames, edits):
        calls.append(list(frames))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, frames, edits)

    monkeypatch.setattr(interp.ablation._Problem, "block", dying)
    with pytest.raises(KeyboardInterrupt):
        ablate(policy, demos, settings, directory=tmp_path)
    resumed = ablate(policy, demos, settings, directory=tmp_path)
    assert calls == [[0, 1], [2, 3], [4, 5], [4, 5], [6]]
    for name in ("value", "low", "high"):
        assert np.array_equal(getattr(resumed.tower("expert"), name), getattr(whole.tower("expert"), name))
    ablate(policy, demos, AblationSettings(block=2, seed=1), directory=tmp_path)
    assert len(calls) == 9  # another plan starts over


def test_the_interval_covers_the_mean_of_what_the_episodes_come_from() -> None:
    """95 % intervals of 12 normal episodes cover the true mean about as often as they say."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        group = np.repeat(np.arange(12), 3)
        values = (rng.normal(size=12)[group] + 1)[None]
        low, high = bootstrap(values, np.ones(36), group, 300, trial)
        covered += low[0] <= 1 <= high[0]
    assert 0.82 < covered / 200 < 0.99  # the percentile bootstrap is a little short for 12 groups
    assert bootstrap(np.ones((1, 1)), np.ones(1), np.zeros(1, int), 100, 0) == (None, None)


def test_mistakes_are_one_line(policy: Policy, demos: Demonstrations) -> None:
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: AblationSettings(mode="median"), "known are zero, mean, resample"),
        (lambda: AblationSettings(effect="reward"), "known are action, loss"),
        (lambda: AblationSettings(frames=0), "frames must be at least 1"),
        (lambda: ablate(policy, demos, towers=["arm"]), "unknown tower 'arm'"),
        (lambda: ablate_set(policy, demos, []), "at least one head"),
        (lambda: ablate_set(policy, demos, [Head("vlm", 2, 0)]), "is dead"),
        (lambda: ablate_set(policy, demos, [Head("expert", 0, 9)]), "layer 0 has 4 heads"),
        (lambda: Edit((), span="state", position=1), "not at both"),
        (lambda: Edit((Head("vlm", 0, 0),), step=1), "only the expert"),
    ]
    for attempt, message in attempts:
        with pytest.raises(UsageError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_an_edit_at_a_place_that_does_not_exist_is_an_error(policy: Policy) -> None:
    stage, noise = Stage(policy, policy.batch(random_observations(1))), policy.noise(1, 0)
    head = Head("expert", 0, 0)
    for edit, message in (
        (Edit((head,), position=7), "positions 0-6"),
        (Edit((head,), step=4), "flow steps 0-3"),
        (Edit((head,), span="language"), "belong to another tower"),
        (Edit((head,), span="tail"), "unknown token span"),
    ):
        with pytest.raises(UsageError, match=message):
            stage.denoise(noise, [edit])
    with pytest.raises(UsageError, match="cache that hook"):
        stage.denoise(noise, [Edit((head,))], values={})
