"""Promises of finetuning: it trains what the recipe says, by the loss it says, and leaves an ordinary policy."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_kit import EXPERT, SMALL, events, run, weights

import steering.finetune as finetune_module
from interp.demos import Demonstrations
from interp.policies import Observation, Policy, load_policy
from steering.draws import Draw
from steering.finetune import TrainingError, flow_loss, learning_rate
from steering.frames import TrainingFrames
from steering.memory import PeakMemory
from steering.recipes import Recipe


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


def test_training_lowers_the_loss_and_moves_only_the_chosen_heads(
    policy: Policy, demos: Demonstrations, tiny_policy_dir: Path, tmp_path: Path
) -> None:
    tuned = run(policy, demos, tmp_path, steps=60)
    losses = [event["loss"] for event in events(tmp_path)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    before, after = load_file(tiny_policy_dir / "model.safetensors"), weights(tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{EXPERT}.{i}.self_attn.{p}_proj.weight" for i in (0, 2) for p in "qo"}
    q = f"{EXPERT}.0.self_attn.q_proj.weight"
    rows = (before[q] != after[q]).any(dim=1).nonzero().flatten()
    assert rows.tolist() == list(range(24, 32))  # head 3 of 8 dimensions
    assert tuned.summary["trainable_parameters"] == {
        "expert query rows": 2 * 8 * 48,
        "expert output columns": 2 * 48 * 8,
    }


def test_the_result_is_an_ordinary_policy_with_a_fingerprint_of_its_own(
    policy: Policy, demos: Demonstrations, observations: list[Observation], tmp_path: Path
) -> None:
    base = policy.fingerprint
    tuned = run(policy, demos, tmp_path)
    assert tuned.policy.fingerprint != base
    again = load_policy(tmp_path / "policy")
    assert again.fingerprint == tuned.policy.fingerprint == policy.fingerprint
    noise = policy.noise(3, 0)
    assert torch.equal(
        again.sample(again.batch(observations), noise), policy.sample(policy.batch(observations), noise)
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == tuned.summary
    assert (summary["base"]["fingerprint"], summary["policy"]) == (base, again.fingerprint)
    assert summary["demonstrations"]["fingerprint"] == demos.fingerprint
    assert summary["heads"] == ["expert.L0H3", "expert.L2H0"]
    assert summary["peak_memory_mb"] > 100
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"], status["total"]) == ("done", 6, 6)
    assert status["loss"] == events(tmp_path)[-1]["loss"] == summary["loss"]


@pytest.mark.parametrize("padding", ["mask", "repeat"])
def test_the_loss_is_flow_matching_over_the_actions_that_exist(
    policy: Policy, demos: Demonstrations, padding: str
) -> None:
    """Against a loop over frames and draws that masks by hand and asks the policy for one velocity at a time."""
    recipe = replace(SMALL, padding=padding)
    frames = TrainingFrames(policy, demos, recipe, cache_mb=100, show=False)
    draw = Draw.at(0, 0, len(frames), recipe, policy.spec)
    loss = flow_loss(policy, frames.take(draw), draw)
    errors = []
    for b, frame in enumerate(draw.rows.tolist()):
        episode = demos.episodes[int(demos.episode_of[frame])]
        actions = torch.zeros(6, 8)
        left = min(6, episode.stop - frame)
        actions[:left, :7] = policy.normalise_actions(torch.from_numpy(demos.action[frame : frame + left]))
        if left < 6:
            actions[left:] = actions[left - 1]
        for d in range(SMALL.draws):
            noise, t = draw.noise[b * SMALL.draws + d], draw.time[b * SMALL.draws + d]
            x = t * noise + (1 - t) * actions
            velocity = policy.velocity(policy.batch([demos.observation(frame)]), x[None], t[None])[0]
            counted = left if padding == "mask" else 6
            errors.append(((velocity - (noise - actions)) ** 2)[:counted, :7].flatten())
    torch.testing.assert_close(loss, torch.cat(errors).mean(), rtol=1e-5, atol=1e-6)
    assert frames.count(draw) == torch.cat(errors).numel()


def test_flow_times_follow_pi0s_beta_distribution(policy: Policy) -> None:
    recipe = Recipe.named("aligned", batch=5000, draws=4)
    u = (Draw.at(0, 0, 10, recipe, policy.spec).time.double() - 0.001) / 0.999
    assert 0 <= u.min() < u.max() <= 1
    # moments of Beta(1.5, 1): a/(a+b) and ab/((a+b)^2 (a+b+1)); standard errors over 20,000 draws
    mean, variance = 0.6, 1.5 / (2.5**2 * 3.5)
    assert float(u.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 20_000))
    assert float(u.var()) == pytest.approx(variance, rel=0.05)
    # and its distribution function is u^1.5
    for q in (0.1, 0.5, 0.9):
        assert float((u < q).double().mean()) == pytest.approx(q**1.5, abs=0.015)


def test_draws_depend_on_seed_and_step_and_on_nothing_else(policy: Policy) -> None:
    a, b = (Draw.at(3, 1, 50, SMALL, policy.spec) for _ in range(2))
    assert np.array_equal(a.rows, b.rows)
    assert torch.equal(a.noise, b.noise)
    for other in (Draw.at(4, 1, 50, SMALL, policy.spec), Draw.at(3, 2, 50, SMALL, policy.spec)):
        assert not torch.equal(a.noise, other.noise)
    augmented = Draw.at(3, 1, 50, replace(SMALL, augment_shift=0.1), policy.spec)
    assert torch.equal(a.noise, augmented.noise)  # arms with and without augmentation stay paired
    assert torch.equal(a.time, augmented.time)


def test_the_shares_of_a_step_are_the_step(policy: Policy) -> None:
    recipe = Recipe.named("aligned", batch=5, draws=3, augment_colour=0.1)
    whole = Draw.at(0, 0, 50, recipe, policy.spec)
    shares = [whole.share(slice(rank, None, 2)) for rank in range(2)]
    assert [len(s.rows) for s in shares] == [3, 2]
    for i in range(5):
        share, at = shares[i % 2], i // 2
        assert share.rows[at] == whole.rows[i]
        assert torch.equal(share.noise[3 * at : 3 * at + 3], whole.noise[3 * i : 3 * i + 3])
        assert torch.equal(share.time[3 * at : 3 * at + 3], whole.time[3 * i : 3 * i + 3])
        assert share.views is not None
        assert whole.views is not None
        assert np.array_equal(share.views.tint[at], whole.views.tint[i])


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    recipe = Recipe.named("aligned", steps=100, warmup=10, lr=1.0, lr_final=0.1)
    assert learning_rate(recipe, 0) == pytest.approx(0.1, rel=1e-2)
    assert learning_rate(recipe, 50) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate(recipe, 100) == pytest.approx(0.1)
    rates = [learning_rate(recipe, s) for s in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    peak = 0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * 9 / 100))  # the cosine has run since step 0
    assert rates[9] == pytest.approx(peak)


def test_the_average_of_the_weights_is_what_is_saved(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    """Against the average taken by hand over the trainings that stop after 1, 2, ... steps of the same schedule."""
    recipe = replace(SMALL, ema=0.5, steps=4)
    run(load_policy(tiny_policy_dir), demos, tmp_path / "averaged", recipe)
    name = f"{EXPERT}.0.self_attn.q_proj.weight"
    expected = load_file(tiny_policy_dir / "model.safetensors")[name].double()
    schedule = finetune_module.learning_rate
    for step in range(4):
        plain = replace(SMALL, steps=step + 1, warmup=0)
        with pytest.MonkeyPatch.context() as patch:  # the schedule of the whole training
            patch.setattr(finetune_module, "learning_rate", lambda _, at: schedule(recipe, at))
            run(load_policy(tiny_policy_dir), demos, tmp_path / str(step), plain)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights(tmp_path / str(step))[name].double()
    torch.testing.assert_close(weights(tmp_path / "averaged")[name].double(), expected, rtol=0, atol=1e-7)


def test_an_averaged_training_resumes_bit_for_bit(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(SMALL, ema=0.9)
    run(load_policy(tiny_policy_dir), demos, tmp_path / "whole", recipe)
    policy = load_policy(tiny_policy_dir)
    with monkeypatch.context() as patch:
        loss, calls = policy.loss, iter(range(100))
        patch.setattr(policy, "loss", lambda *a: loss(*a) * (math.nan if next(calls) == 4 else 1))
        with pytest.raises(TrainingError):
            run(policy, demos, tmp_path / "cut", recipe)
    run(policy, demos, tmp_path / "cut", recipe)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_peak_memory_is_that_of_the_work_and_not_of_the_past() -> None:
    def work() -> None:
        # straight from the system: malloc may have as much at hand that is resident already
        np.frombuffer(mmap(-1, 120 * 2**20), np.uint8).fill(1)

    work()
    with PeakMemory() as idle:
        pass
    with PeakMemory() as busy:
        work()
    if not busy.exact:
        pytest.skip("this kernel does not let a process reset its high-water mark")
    # two marks of one process: they differ by what the work took, give or take what the allocator keeps
    assert busy.megabytes - idle.megabytes == pytest.approx(120, abs=20)
