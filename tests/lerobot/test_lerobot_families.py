"""Promises for every family of LeRobot's: what is hooked, edited, trained and saved is what LeRobot computes.

Independent computations: LeRobot's own loading, processors and sampling; plain PyTorch hooks; nnsight; full gradients.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_kit import FAMILIES, STEPS, as_lerobot_sees, build
from lerobot_reference import LeRobot, by_hand, by_nnsight

from interp.edits import NOTHING, Edit, single
from interp.heads import Head
from interp.hooked import HookedVLA
from interp.patching import Pairs, Sides
from interp.policies import Observation, Policy, load_policy
from interp.sites import site_name
from interp.sweep import Stage
from interp.view import TowerView
from steering.slices import attach

CLOSE = {"atol": 2e-5, "rtol": 1e-3}  # float32 sums in another order, over four flow steps


def test_chunks_are_lerobots(
    directories: dict[str, Path], family: str, policy: Policy, seen: list[Observation]
) -> None:
    """In the robot's units, through both processors; observations together as one by one."""
    theirs = LeRobot(directories[family])
    noise = policy.noise(len(seen), seed=3)
    with torch.no_grad():
        ours = policy.sample(policy.batch(seen), noise)
    for at, observation in enumerate(seen):
        torch.testing.assert_close(ours[at], theirs.chunk(observation, policy, noise[at : at + 1]), **CLOSE)


def test_idle_hooks_change_nothing_and_all_fire(policy: Policy, seen: list[Observation]) -> None:
    vla = HookedVLA(policy)
    batch, noise = policy.batch(seen), policy.noise(2, seed=0)
    with torch.no_grad():
        bare = policy.sample(batch, noise)
        plain = [name for name in vla.hook_dict if not name.endswith(("pattern", "scores"))]
        hooked, cache = vla.run_with_cache(batch, noise, names_filter=plain)
        assert torch.equal(bare, hooked)
        assert set(cache) == set(plain)
        spec = policy.spec
        for tower, shape in spec.towers.items():
            z = cache[site_name(tower, 0, "attn.hook_z")]
            assert z.shape[-2:] == (shape.heads_per_layer[0], shape.d_head)
            assert z.shape[-3] == spec.n_positions(tower)
        assert len(cache[site_name("expert", 0, "attn.hook_z")]) == STEPS
        # Watched attention goes by the formula instead of the fused kernel: rounding.
        patterns = [name for name in vla.hook_dict if name.endswith("pattern")]
        if patterns:
            again, watched = vla.run_with_cache(batch, noise, names_filter=patterns)
            torch.testing.assert_close(again, bare, **CLOSE)
            for name in patterns:
                torch.testing.assert_close(
                    watched[name].sum(-1), torch.ones(watched[name].shape[:-1]), atol=1e-5, rtol=0
                )


def test_live_heads_matter_and_dead_ones_do_not(policy: Policy, seen: list[Observation]) -> None:
    noise, batch = policy.noise(1, seed=1), policy.batch(seen[:1])
    with torch.no_grad():
        bare = policy.denoise(batch, noise)
    for tower, spec in policy.spec.towers.items():
        for layer in range(spec.layers):
            for head in range(spec.heads_per_layer[layer]):
                change = by_hand(policy, batch, noise, Head(tower, layer, head)) - bare
                dead = (layer, head) in spec.dead
                assert (change.abs().max() == 0) == dead, Head(tower, layer, head)


@pytest.mark.parametrize("tower", ["vision", "vlm", "expert"])
def test_sweeps_agree_with_plain_hooks(policy: Policy, seen: list[Observation], tower: str) -> None:
    """Stacked, resumed in the middle, on a shared prefix: as if each edit ran alone through the whole network."""
    if tower not in policy.spec.towers:
        assert policy.spec.family == "lerobot/xvla"  # DaViT's heads have no positions in the image
        return
    noise, batch = policy.noise(2, seed=1), policy.batch(seen)
    edits = [*single(policy, tower), NOTHING]
    with torch.no_grad():
        found = Stage(policy, batch).denoise(noise, edits)
        bare = policy.denoise(batch, noise)[..., : policy.spec.action_dim]
    assert torch.equal(found[-1], bare)
    for row, edit in zip(found, edits[:-1], strict=False):
        alone = by_hand(policy, batch, noise, edit.heads[0])[..., : policy.spec.action_dim]
        torch.testing.assert_close(row, alone, **CLOSE)


def test_patching_agrees_with_nnsight_on_lerobots_own_sampling(
    directories: dict[str, Path], family: str, policy: Policy, seen: list[Observation]
) -> None:
    """z of one head from another observation, at every flow step: nnsight traces LeRobot's `predict_action_chunk`."""
    clean, other = seen
    pairs = Pairs((clean,), (Observation(other.images, other.state, clean.instruction),))
    sides = Sides.of(policy, pairs, [0], "denoising", seed=0)
    theirs = LeRobot(directories[family])
    for head in (Head("expert", 0, 1), Head("expert", 1, 2), Head("vlm", 0, 0)):
        _, values = sides.source_run(policy, [head.tower])
        with torch.no_grad():
            ours = Stage(policy, sides.base).denoise(sides.noise, [Edit((head,))], values)[0, 0]
        base, source = (pairs.corrupt[0], pairs.clean[0])
        expected = by_nnsight(theirs, policy, base, source, sides.noise, head)
        torch.testing.assert_close(policy.unnormalise_actions(ours), expected, **CLOSE)


def test_slices_get_the_gradients_of_full_finetuning(
    directories: dict[str, Path], family: str, seen: list[Observation]
) -> None:
    policy = load_policy(directories[family])
    heads = [Head("expert", 0, 1), Head("expert", 1, 0), Head("vlm", 0, 2)]
    batch, noise, time = policy.batch(seen), policy.noise(2, seed=1), torch.tensor([0.3, 0.8])
    actions = torch.randn(
        2, policy.spec.horizon, policy.spec.action_dim, generator=torch.Generator().manual_seed(0)
    )

    def loss() -> torch.Tensor:
        return policy.loss(batch, actions, noise, time).mean()

    full = {}
    for head in heads:
        weights = [
            projection(head.tower, head.layer).weight.requires_grad_()
            for projection in (policy.query_projection, policy.out_projection)
        ]
        full[head] = torch.autograd.grad(loss(), weights)
    before = loss().detach()
    slices = attach(policy, heads)
    assert torch.equal(loss().detach(), before)
    loss().backward()
    found = {(site.tower, site.projection, site.linear.base): site.linear for site in slices.sites}
    for head in heads:
        d_head = policy.spec.tower(head.tower).d_head
        own = slice(head.index * d_head, (head.index + 1) * d_head)
        for at, projection in enumerate(("q", "o")):
            [sliced] = [
                site.linear
                for site in slices.sites
                if (site.tower, site.projection) == (head.tower, projection)
                and site.parent is policy.attention(head.tower, head.layer)
            ]
            expected = full[head][at][own] if projection == "q" else full[head][at][:, own]
            torch.testing.assert_close(sliced.delta.grad, expected, rtol=1e-4, atol=1e-6)
    assert len(found) == 2 * len(heads)


def test_saved_policies_are_the_same_to_lerobot_and_to_us(
    directories: dict[str, Path], family: str, seen: list[Observation], tmp_path: Path
) -> None:
    """With changed weights, so that it is those that were saved."""
    policy = load_policy(directories[family])
    with torch.no_grad():
        policy.out_projection("expert", 1).weight.mul_(1.5)
    policy.save(tmp_path / "out")
    noise = policy.noise(1, seed=5)
    with torch.no_grad():
        ours = policy.sample(policy.batch(seen[:1]), noise)[0]
        again = load_policy(tmp_path / "out")
        assert torch.equal(again.sample(again.batch(seen[:1]), noise)[0], ours)
    saved = LeRobot(tmp_path / "out")
    theirs = saved.chunk(seen[0], policy, noise)
    # Through LeRobot's code, what was saved is what is in memory; between its code and ours lies rounding.
    in_memory = saved.running(policy.module).chunk(seen[0], policy, noise)
    torch.testing.assert_close(theirs, in_memory, atol=1e-6, rtol=0)
    torch.testing.assert_close(theirs, ours, **CLOSE)
    before = LeRobot(directories[family]).chunk(seen[0], policy, noise)
    assert (before - theirs).abs().max() > 1e-3
    assert load_policy(tmp_path / "out").fingerprint != load_policy(directories[family]).fingerprint


def test_fingerprints_follow_weights_and_statistics(
    directories: dict[str, Path], family: str, policy: Policy, tmp_path: Path
) -> None:
    policy.save(tmp_path / "copy")
    assert load_policy(tmp_path / "copy").fingerprint == policy.fingerprint
    assert load_policy(build(family, tmp_path / "other", seed=1)).fingerprint != policy.fingerprint


def test_normalisation_is_inverted(policy: Policy) -> None:
    actions = torch.randn(3, 4, policy.spec.action_dim)
    torch.testing.assert_close(
        policy.unnormalise_actions(policy.normalise_actions(actions)), actions, **CLOSE
    )


def test_a_state_is_normalised_as_in_a_batch(policy: Policy, seen: list[Observation]) -> None:
    states = torch.tensor(np.stack([observation.state for observation in seen]))
    expected = policy.batch(seen)["state"][:, : policy.spec.state_dim]
    torch.testing.assert_close(policy.normalise_state(states), expected, **CLOSE)


def test_losses_are_lerobots(directories: dict[str, Path], family: str, seen: list[Observation]) -> None:
    policy = load_policy(directories[family])
    theirs = LeRobot(directories[family])
    actions = torch.randn(
        1, policy.spec.horizon, policy.spec.action_dim, generator=torch.Generator().manual_seed(2)
    )
    noise, time = policy.noise(1, seed=4), torch.tensor([0.4])
    with torch.no_grad():
        ours = policy.loss(policy.batch(seen[:1]), policy.normalise_actions(actions), noise, time).mean()
    torch.testing.assert_close(ours, theirs.loss(seen[0], policy, actions, noise, time), **CLOSE)


def test_views_run_transformer_lens_unchanged(smolvla: Policy, seen: list[Observation]) -> None:
    from transformer_lens import patching

    view: TowerView = HookedVLA(smolvla).view("expert")
    clean, corrupt = (view.inputs(smolvla.batch([o]), smolvla.noise(1, 0)) for o in seen)
    _, cache = view.run_with_cache(clean)
    target = view(clean)
    found = patching.get_act_patch_attn_head_out_all_pos(
        view, corrupt, cache, lambda out: (out - target).square().sum()
    )
    assert found.shape == (4, 3)
    assert np.unique(found.detach().numpy()).size == 12


def test_every_family_is_tested(loaded: dict[str, Policy]) -> None:
    assert set(loaded) == set(FAMILIES)
    assert as_lerobot_sees
