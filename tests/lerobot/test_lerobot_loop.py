"""Promises of the whole loop on LeRobot's policies: every method runs; what is exported, LeRobot serves and loads."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy
from lerobot_kit import HORIZON, as_lerobot_sees
from lerobot_reference import LeRobot
from policy_server import Server, ask, instruct, running

from interp.attribution import atp, atp_qk, direct, integrated
from interp.capture import capture
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.factors.edits import edited_pairs
from interp.factors.effects import measure
from interp.heads import Head
from interp.knn import KnnSettings, rank
from interp.mass import attention_mass
from interp.patching import Pairs, patch_heads, prompt_lengths
from interp.paths import patch_paths
from interp.policies import Observation, Policy, load_policy
from interp.watching import watch
from steering.export import export_job
from steering.finetune import finetune
from steering.headset import HeadSet
from steering.recipes import Recipe

HEADS = HeadSet((Head("expert", 0, 1), Head("expert", 1, 0)))
SMALL = Recipe.named("aligned", steps=4, batch=4, draws=2, warmup=1)


def test_captured_runs_are_ranked(policy: Policy, demos: Demonstrations, tmp_path: Path) -> None:
    """Every tower; a frame's z is that of the frame alone."""
    run = capture(policy, demos, tmp_path / "run", thumbnails=False, progress=False)
    for tower, spec in policy.spec.towers.items():
        for token in run.tokens(tower):
            z = np.asarray(run.activations(tower, token))
            assert z.shape == (len(demos), spec.layers, spec.heads, spec.d_head)
            assert np.isfinite(z).all()
            assert z.std() > 0
    has_state = {"smolvla": ("vlm",), "pi0": ("expert",), "pi05": (), "xvla": ()}
    family = policy.spec.family.removeprefix("lerobot/")
    assert tuple(t for t in policy.spec.towers if "state" in run.tokens(t)) == has_state[family]
    scores = rank(run, KnnSettings(ks=(2, 3)), towers=("expert", "vlm"), progress=False)
    assert len(scores.best(3, "expert")) == 3


def pair(seen: list[Observation]) -> Pairs:
    clean, other = seen
    return Pairs((clean,), (replace(clean, images=other.images, state=other.state),))


def test_gradients_estimate_what_patching_finds(policy: Policy, seen: list[Observation]) -> None:
    """To first order, so of observations that differ a little: one of the cameras is a bit brighter."""
    front = np.minimum(seen[0].images["front"], 254) + 1
    twin = replace(seen[0], images={**seen[0].images, "front": front.astype(np.uint8)})
    near = Pairs((seen[0],), (twin,))
    exact, estimate = (method(policy, near, towers=("expert",)) for method in (patch_heads, atp))
    a, b = (scores.tower("expert").value.ravel() for scores in (exact, estimate))
    assert np.corrcoef(a, b)[0, 1] > 0.9


def test_integrated_gradients_add_up_to_the_effect(policy: Policy, seen: list[Observation]) -> None:
    found = integrated(policy, pair(seen), towers=("expert",), n=8)
    if policy.spec.family == "lerobot/smolvla":  # whose expert reads nothing but keys, values and actions
        assert found.settings["completeness"] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("node", ["q", "k"])
def test_queries_and_keys_can_be_patched_where_they_are_apart(
    smolvla: Policy, seen: list[Observation], node: str
) -> None:
    assert np.isfinite(atp_qk(smolvla, pair(seen), node).tower("expert").value).any()


def test_paths_are_followed_where_the_expert_reads_the_vlms_layers(
    policy: Policy, seen: list[Observation]
) -> None:
    senders, receivers = [Head("vlm", 0, 1), Head("expert", 0, 1)], [Head("expert", 2, 0)]
    if policy.spec.family == "lerobot/xvla":
        with pytest.raises(UsageError, match="paths between heads are not defined here") as error:
            patch_paths(policy, pair(seen), senders, receivers)
        assert "\n" not in str(error.value)
    else:
        assert (np.abs(patch_paths(policy, pair(seen), senders, receivers).heads) > 0).all()


def test_direct_contributions_add_up_where_they_are_defined(policy: Policy, seen: list[Observation]) -> None:
    batch, noise = policy.batch(seen), policy.noise(2, 0)
    if policy.spec.family in ("lerobot/smolvla", "lerobot/pi0"):
        found = direct(policy, batch, noise)
        torch.testing.assert_close(found.total(), found.action, atol=1e-3, rtol=1e-3)
    else:
        with pytest.raises(UsageError, match="not defined here"):
            direct(policy, batch, noise)


def test_attention_is_divided_among_the_parts(policy: Policy, seen: list[Observation]) -> None:
    """Also of cross-attention layers, which see the prefix alone."""
    noise = policy.noise(2, 0)
    if policy.spec.family == "lerobot/xvla":
        with pytest.raises(UsageError, match="hook_pattern"):
            attention_mass(policy, seen, noise)
        return
    mass = attention_mass(policy, seen, noise).mass
    np.testing.assert_allclose(sum(mass.values()), 1, atol=1e-4)
    assert {"image/front", "image/wrist", "language", "action"} <= set(mass)
    if policy.spec.family == "lerobot/smolvla":
        assert mass["action"][:, 1].max() == 0  # layer 1 is a cross-attention layer
        assert mass["action"][:, 0].min() > 0
    shown = watch(policy, seen[:1], noise[:1])
    assert shown.images["expert", "front"].shape[-2:] == policy.spec.span("image/front").grid


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, directories: dict[str, Path], dataset: Path) -> Path:
    """A finished training of SmolVLA."""
    where = tmp_path_factory.mktemp("jobs") / "aligned"
    policy = load_policy(directories["smolvla"])
    finetune(policy, Demonstrations.open(dataset), SMALL, where, heads=HEADS, progress=False)
    return where


@pytest.mark.parametrize("factor", ["visual", "linguistic", "physical"])
def test_factors_are_measured_on_recorded_frames(policy: Policy, demos: Demonstrations, factor: str) -> None:
    """Edits of pixels, words and state; of words, those that are as long in this policy's tokens."""
    pairs = edited_pairs(policy, demos, factor, n=3)
    if factor == "linguistic":
        lengths = [prompt_lengths(policy, [twin.clean, twin.corrupt]) for twin in pairs.twins]
        assert all(clean == corrupt for clean, corrupt in lengths)
    found = measure(policy, pairs, method="atp", towers=("vlm", "expert"))
    assert np.isfinite(found.indirect).all()
    assert np.abs(found.indirect).max() > 0


def error(policy: Policy, demos: Demonstrations) -> float:
    """On all frames, with the same noise every time."""
    actions, _ = demos.chunks(policy.spec.horizon)
    n, generator = len(demos), torch.Generator().manual_seed(1)
    with torch.no_grad():
        batch = policy.batch(list(demos.observations()))
        target = policy.normalise_actions(torch.from_numpy(actions).float())
        return float(
            policy.loss(batch, target, policy.noise(n, 1), torch.rand(n, generator=generator)).mean()
        )


@pytest.mark.parametrize("name", ["aligned", "lora", "full"])
def test_recipes_train(
    family: str, directories: dict[str, Path], demos: Demonstrations, tmp_path: Path, name: str
) -> None:
    """The loss falls, and what is not chosen stays."""
    policy = load_policy(directories[family])
    before, loss = copy.deepcopy(policy.module.state_dict()), error(policy, demos)
    recipe = Recipe.named(name, steps=12, batch=4, draws=2, warmup=1, lr=1e-3)
    tuned = finetune(
        policy, demos, recipe, tmp_path / name, heads=HEADS if name == "aligned" else None, progress=False
    ).policy
    assert error(tuned, demos) < loss
    after = tuned.module.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed
    if name == "aligned":
        owned = {policy.out_projection("expert", layer) for layer in (0, 1)}
        owned |= {policy.query_projection("expert", layer) for layer in (0, 1)}
        names = {f"{key}.weight" for key, module in policy.module.named_modules() if module in owned}
        assert changed == names


def test_frozen_prefixes_train_as_recomputed_ones(
    directories: dict[str, Path], demos: Demonstrations, tmp_path: Path
) -> None:
    """Heads of the vlm's last layers: what comes before them is computed once."""
    heads = HeadSet((Head("vlm", 2, 1), Head("expert", 3, 0)))
    losses = []
    for cache_mb in (0, 1024):
        policy = load_policy(directories["smolvla"])
        done = finetune(
            policy, demos, SMALL, tmp_path / str(cache_mb), heads=heads, cache_mb=cache_mb, progress=False
        )
        losses.append(done.summary["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_merged_exports_are_lerobots(job: Path, demos: Demonstrations, tmp_path: Path) -> None:
    done = export_job(job, tmp_path / "merged", demos)
    policy, theirs = load_policy(tmp_path / "merged"), LeRobot(tmp_path / "merged")
    assert done.fingerprint == policy.fingerprint
    observation, noise = demos.observation(3), policy.noise(1, 0)
    with torch.no_grad():
        ours = policy.sample(policy.batch([observation]), noise)[0]
    found = theirs.chunk(observation, policy, noise)
    torch.testing.assert_close(found, ours, atol=1e-5, rtol=1e-5)  # rounding between LeRobot's code and ours
    tuned = load_policy(job / "policy").module
    torch.testing.assert_close(
        found, theirs.running(tuned).chunk(observation, policy, noise), atol=1e-6, rtol=0
    )


def test_adapters_load_through_make_policy(
    job: Path, demos: Demonstrations, dataset: Path, tmp_path: Path
) -> None:
    export_job(job, tmp_path / "adapter", demos, form="peft")
    config = PreTrainedConfig.from_pretrained(str(tmp_path / "adapter"))
    config.pretrained_path = tmp_path / "adapter"
    meta = LeRobotDatasetMetadata("local/tiny", root=dataset)
    theirs = make_policy(config, ds_meta=meta).eval()
    tuned = load_policy(job / "policy")
    reference, noise = LeRobot(job / "policy"), tuned.noise(1, 0)
    processed = reference.pre(as_lerobot_sees(demos.observation(3)))
    with torch.no_grad():
        adapted = theirs.predict_action_chunk(dict(processed), noise=noise)
    torch.testing.assert_close(adapted, reference.normalised(processed, noise), atol=1e-6, rtol=1e-5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as found:
        yield found


def test_the_policy_server_serves_what_is_saved(
    family: str, directories: dict[str, Path], seen: list[Observation], tmp_path: Path, server: Server
) -> None:
    policy = load_policy(directories[family])
    policy.save(tmp_path / "served")
    if family == "xvla":  # LeRobot 0.4's list of policies that it serves lacks it
        with pytest.raises(grpc.RpcError):
            instruct(server, family, tmp_path / "served", seen[0], HORIZON)
        return
    instruct(server, family, tmp_path / "served", seen[0], HORIZON)
    noise = policy.noise(1, seed=7)
    with torch.no_grad():
        ours = policy.sample(policy.batch(seen[:1]), noise)[0]
    torch.testing.assert_close(ask(server, seen[0], noise), ours, atol=2e-5, rtol=1e-3)
