"""Promises of finetuning: it trains what the recipe says, resumes bit for bit, never leaves half a result."""

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_writer import random_episodes, write_dataset  # tests/interp, on the path through conftest.py
from safetensors.torch import load_file

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy
from interp.scores import HeadScores
from steering.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from steering.finetune import Draw, TrainingError, finetune, flow_loss, learning_rate
from steering.frames import TrainingFrames
from steering.headset import HeadSet
from steering.progress import Progress
from steering.recipes import Recipe, adapt, trainable

HEADS = HeadSet((Head("expert", 0, 3), Head("expert", 2, 0)))
SMALL = Recipe.named("aligned", steps=6, batch=4, draws=2, warmup=2)
ROOT = Path(__file__).parents[2]
EXPERT = "paligemma_with_expert.gemma_expert.model.layers"  # in files, transformers keeps LeRobot's names
FLOW = "state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out"
LEROBOT_LORA = rf".*\.gemma_expert\..*\.self_attn\.(q|v)_proj|(model\.)?({FLOW})"  # LeRobot's default targets


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


def run(
    policy: Policy, demos: Demonstrations, directory: Path, recipe: Recipe = SMALL, **options: Any
) -> Any:
    options = {"heads": HEADS, "checkpoint_every": 2, "progress": False, **options}
    return finetune(policy, demos, recipe, directory, **options)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "policy" / "model.safetensors")


def events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "progress.jsonl").read_text().splitlines()]


# training


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


def test_the_loss_is_flow_matching_over_the_actions_that_exist(policy: Policy, demos: Demonstrations) -> None:
    """Against a loop over frames and draws that masks by hand and asks the policy for one velocity at a time."""
    frames = TrainingFrames(policy, demos, cache_mb=100, show=False)
    draw = Draw.at(0, 0, len(frames), SMALL, policy.spec.horizon, policy.spec.max_action_dim)
    loss = flow_loss(policy, frames.take(draw.rows), draw, SMALL.draws)
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
            errors.append(((velocity - (noise - actions)) ** 2)[:left, :7].flatten())
    torch.testing.assert_close(loss, torch.cat(errors).mean(), rtol=1e-5, atol=1e-6)


def test_flow_times_follow_pi0s_beta_distribution() -> None:
    recipe = Recipe.named("aligned", batch=5000, draws=4)
    u = (Draw.at(0, 0, 10, recipe, 1, 1).time.double() - 0.001) / 0.999
    assert 0 <= u.min() < u.max() <= 1
    # moments of Beta(1.5, 1): a/(a+b) and ab/((a+b)^2 (a+b+1)); standard errors over 20,000 draws
    mean, variance = 0.6, 1.5 / (2.5**2 * 3.5)
    assert float(u.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 20_000))
    assert float(u.var()) == pytest.approx(variance, rel=0.05)
    # and its distribution function is u^1.5
    for q in (0.1, 0.5, 0.9):
        assert float((u < q).double().mean()) == pytest.approx(q**1.5, abs=0.015)


def test_draws_depend_on_seed_and_step_and_on_nothing_else() -> None:
    a, b = (Draw.at(3, 1, 50, SMALL, 6, 8) for _ in range(2))
    assert np.array_equal(a.rows, b.rows)
    assert torch.equal(a.noise, b.noise)
    for other in (Draw.at(4, 1, 50, SMALL, 6, 8), Draw.at(3, 2, 50, SMALL, 6, 8)):
        assert not torch.equal(a.noise, other.noise)


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    recipe = Recipe.named("aligned", steps=100, warmup=10, lr=1.0, lr_final=0.1)
    assert learning_rate(recipe, 0) == pytest.approx(0.1, rel=1e-2)
    assert learning_rate(recipe, 50) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate(recipe, 100) == pytest.approx(0.1)
    rates = [learning_rate(recipe, s) for s in range(10, 100)]
    assert rates == sorted(rates, reverse=True)


# frozen prefixes


def test_prefixes_are_cached_exactly_when_nothing_in_them_trains(
    policy: Policy, demos: Demonstrations
) -> None:
    adaptation = adapt(policy, SMALL, HEADS)
    assert TrainingFrames(policy, demos, cache_mb=100, show=False).cached
    small = TrainingFrames(policy, demos, cache_mb=0.1, show=False)
    assert (small.frozen, small.cached) == (True, False)
    adaptation.remove()
    for tower, layer in (("vlm", 0), ("vision", 1)):
        adaptation = adapt(policy, SMALL, HeadSet((Head(tower, layer, 0),)))
        frames = TrainingFrames(policy, demos, cache_mb=100, show=False)
        assert (frames.frozen, frames.cached) == (False, False)
        adaptation.remove()


def test_a_cached_prefix_trains_the_same_policy_as_a_recomputed_one(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    for cache_mb in (100, 0):
        run(load_policy(tiny_policy_dir), demos, tmp_path / str(cache_mb), cache_mb=cache_mb)
    cached, fresh = weights(tmp_path / "100"), weights(tmp_path / "0")
    for name in cached:
        # prefixes of other batch sizes round differently, and Adam's first steps amplify to lr * rounding
        torch.testing.assert_close(cached[name], fresh[name], rtol=0, atol=2e-5)


# stopping and resuming


def test_a_killed_training_resumes_to_the_same_weights_bit_for_bit(
    policy: Policy, tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    recipe = Recipe.named("aligned", steps=60, batch=4, draws=2, warmup=2)
    run(policy, demos, tmp_path / "whole", recipe)
    script = f"""
import torch; torch.set_num_threads(1)
from interp.demos import Demonstrations
from interp.heads import Head
from interp.policies import load_policy
from steering.finetune import finetune
from steering.headset import HeadSet
from steering.recipes import Recipe
heads = HeadSet((Head("expert", 0, 3), Head("expert", 2, 0)))
recipe = Recipe.named("aligned", steps=60, batch=4, draws=2, warmup=2)
finetune(load_policy({str(tiny_policy_dir)!r}), Demonstrations.open({str(demos.path)!r}), recipe,
         {str(tmp_path / "killed")!r}, heads=heads, checkpoint_every=4, progress=False)
"""
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    log = tmp_path / "killed" / "progress.jsonl"
    while not log.exists() or log.read_text().count("\n") < 10:
        assert child.poll() is None, "the training ended before it could be killed"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed" / "policy").exists()
    run(load_policy(tiny_policy_dir), demos, tmp_path / "killed", recipe, checkpoint_every=4)
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert [e["step"] for e in events(tmp_path / "killed")] == list(range(1, 61))
    assert [e["loss"] for e in events(tmp_path / "killed")] == [e["loss"] for e in events(tmp_path / "whole")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_go_on_and_gives_the_policy_back(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run(load_policy(tiny_policy_dir), demos, tmp_path / "whole")
    update = Progress.update

    def interrupting(self: Progress, step: int, **values: float) -> None:
        update(self, step, **values)
        if step == 3:
            os.kill(os.getpid(), number)

    policy = load_policy(tiny_policy_dir)
    base = {name: value.clone() for name, value in policy.module.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupting)
        with pytest.raises(KeyboardInterrupt, match=r"stopped after step 3 of 6; call it again to resume"):
            run(policy, demos, tmp_path / "stopped")
    assert json.loads((tmp_path / "stopped" / "status.json").read_text())["state"] == "interrupted"
    after = policy.module.state_dict()
    assert base.keys() == after.keys()
    assert all(torch.equal(base[name], after[name]) for name in base)
    run(policy, demos, tmp_path / "stopped")
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_finished_training_is_not_repeated(
    policy: Policy, tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    first = run(policy, demos, tmp_path)
    log = (tmp_path / "progress.jsonl").read_text()
    second = run(load_policy(tiny_policy_dir), demos, tmp_path)
    assert second.policy.fingerprint == first.policy.fingerprint
    assert second.summary == first.summary
    assert (tmp_path / "progress.jsonl").read_text() == log


def test_another_training_does_not_take_over_a_directory(
    policy: Policy, tiny_policy_dir: Path, other_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    run(policy, demos, tmp_path)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    fresh = load_policy(tiny_policy_dir)
    with pytest.raises(UsageError, match="a training with seed 0, not 1"):
        run(fresh, demos, tmp_path, seed=1)
    with pytest.raises(UsageError, match=r"a training with heads .*L2H0.*, not .*L1H1"):
        run(fresh, demos, tmp_path, heads=HeadSet((Head("expert", 1, 1),)))
    other = load_policy(other_policy_dir)
    with pytest.raises(UsageError, match=f"with policy {fresh.fingerprint}, not {other.fingerprint}"):
        run(other, demos, tmp_path)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


# faults


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint(
    policy: Policy, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = policy.loss, iter(range(100))

    def breaking(*args: Any) -> torch.Tensor:
        return loss(*args) * (float("nan") if next(calls) == 4 else 1.0)

    monkeypatch.setattr(policy, "loss", breaking)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 5: .* step 4 is kept in .*checkpoint"):
        run(policy, demos, tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    monkeypatch.undo()
    run(policy, demos, tmp_path)
    assert [event["step"] for event in events(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_demonstrations_of_another_robot_leave_nothing_behind(policy: Policy, tmp_path: Path) -> None:
    for name, options, message in (
        ("one-camera", {"cameras": ["front"]}, "lack camera 'wrist'"),
        ("six-axes", {"action_dim": 6}, "action has 6 dimensions, the policy's has 7"),
    ):
        demos = Demonstrations.open(write_dataset(tmp_path / name, random_episodes([4], **options)))
        with pytest.raises(UsageError, match=message):
            run(policy, demos, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path) -> None:
    parameters = {"slice": torch.nn.Parameter(torch.arange(4096.0))}
    optimiser = torch.optim.AdamW(parameters.values())
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, Checkpoint(1, 0.5, 0.25), parameters, optimiser)
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # no file may grow beyond one kilobyte
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, Checkpoint(2, 0.5, 0.25), parameters, optimiser)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert load_checkpoint(path, parameters, optimiser).step == 1


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    parameters = {"slice": torch.nn.Parameter(torch.zeros(3))}
    optimiser = torch.optim.AdamW(parameters.values())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(UsageError, match=r"checkpoint\.safetensors is broken .*: delete it"):
        load_checkpoint(path, parameters, optimiser)
    save_checkpoint(path, Checkpoint(1, 0, 0), {"other": torch.nn.Parameter(torch.zeros(3))}, optimiser)
    with pytest.raises(UsageError, match="other, which does not train here"):
        load_checkpoint(path, parameters, optimiser)


# recipes


@pytest.mark.parametrize(
    ("name", "may_move"),
    [
        *(
            (name, r".*\.gemma_expert\..*\.self_attn\.[qo]_proj")
            for name in ("aligned", "random-k", "bottom-k", "all-heads")
        ),
        ("lora", LEROBOT_LORA),
        ("full", ".*"),
    ],
)
def test_every_recipe_trains_and_merges_into_an_ordinary_policy(
    policy: Policy,
    tiny_policy_dir: Path,
    demos: Demonstrations,
    scores: HeadScores,
    tmp_path: Path,
    name: str,
    may_move: str,
) -> None:
    modules = {name: type(module) for name, module in policy.module.named_modules()}
    tuned = run(policy, demos, tmp_path, Recipe.named(name, steps=2, batch=4, draws=2), scores=scores)
    assert {name: type(module) for name, module in policy.module.named_modules()} == modules
    assert not trainable(tuned.policy)
    before, after = load_file(tiny_policy_dir / "model.safetensors"), weights(tmp_path)
    assert before.keys() == after.keys()
    moved = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert {name for name in moved if re.fullmatch(may_move, name)} == moved


def test_controls_take_as_many_heads_as_the_set_has_in_each_tower(policy: Policy, scores: HeadScores) -> None:
    mixed = HeadSet((Head("expert", 2, 3), Head("expert", 2, 2), Head("vlm", 0, 0)))
    random_k = adapt(policy, Recipe.named("random-k"), mixed, seed=1)
    assert random_k.heads is not None
    assert sorted(h.tower for h in random_k.heads.heads) == ["expert", "expert", "vlm"]
    random_k.remove()
    bottom = adapt(policy, Recipe.named("bottom-k"), HEADS, scores)
    assert bottom.heads is not None
    assert [str(h) for h in bottom.heads.heads] == ["expert.L0H0", "expert.L0H1"]
    bottom.remove()
    everything = adapt(policy, Recipe.named("all-heads"), HEADS)
    assert everything.heads is not None
    assert len(everything.heads.heads) == 12


def test_lora_adapts_the_modules_that_lerobot_adapts(
    policy: Policy, tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    run(policy, demos, tmp_path, Recipe.named("lora", steps=4, batch=4, draws=2))
    before, after = load_file(tiny_policy_dir / "model.safetensors"), weights(tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if re.fullmatch(rf"({LEROBOT_LORA})\.weight", name)}
    assert len(moved) == 3 * 2 + 5


def test_lora_on_all_linear_layers_covers_both_language_towers(policy: Policy) -> None:
    adaptation = adapt(policy, Recipe.named("lora", lora_targets="all-linear", lora_rank=2))
    adapted = {name.partition(".lora_")[0] for name in trainable(policy)}
    # q, k, v, o, gate, up, down of 3 layers of vlm and of expert
    assert len(adapted) == 2 * 3 * 7
    assert set(adaptation.groups) == {"lora vlm", "lora expert"}


def test_lora_starts_at_the_base_and_is_a_function_of_its_seed(
    tiny_policy_dir: Path, observations: list[Observation]
) -> None:
    states = []
    for seed, disturbance in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(disturbance)
        policy = load_policy(tiny_policy_dir)
        batch, noise = policy.batch(observations), policy.noise(3, 0)
        before = policy.sample(batch, noise)
        adapt(policy, Recipe.named("lora"), seed=seed)
        assert torch.equal(policy.sample(batch, noise), before)
        states.append(torch.cat([p.detach().flatten() for p in trainable(policy).values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_trainable_parameters_are_shown_by_group(policy: Policy) -> None:
    assert str(adapt(policy, SMALL, HEADS)).splitlines() == [
        "trainable parameters",
        "  768  expert query rows",
        "  768  expert output columns",
        "1,536  total",
    ]


def test_bad_recipes_are_named(
    policy: Policy, demos: Demonstrations, scores: HeadScores, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"unknown recipe 'alligned'.*did you mean aligned"):
        Recipe.named("alligned")
    with pytest.raises(UsageError, match="unknown recipe setting 'learning_rate'"):
        Recipe.named("aligned", learning_rate=1)
    with pytest.raises(UsageError, match=r"unknown LoRA targets 'all'.*all-linear"):
        Recipe.named("lora", lora_targets="all")
    with pytest.raises(UsageError, match="unknown slice form 'half'"):
        Recipe.named("aligned", form="half")
    with pytest.raises(UsageError, match="seed -1"):
        run(policy, demos, tmp_path, seed=-1)
    with pytest.raises(UsageError, match="rank = 0"):
        Recipe.named("aligned", rank=0)
    with pytest.raises(UsageError, match="recipe aligned needs a head set"):
        run(policy, demos, tmp_path, heads=None)
    with pytest.raises(UsageError, match="bottom-k needs head scores"):
        run(policy, demos, tmp_path, Recipe.named("bottom-k"))
    with pytest.raises(
        UsageError, match=f"head set is for policy pi0-0, but this policy is {policy.fingerprint}"
    ):
        run(policy, demos, tmp_path, heads=HeadSet(HEADS.heads, policy="pi0-0"))
    assert not any(tmp_path.iterdir())
