"""Promises of the doors to other libraries: TransformerLens's patching runs unchanged, nnsight traces the same module.

Both are checked against exact patching, which is itself checked against plain hooks.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_policy import random_observations
from torch import Tensor
from transformer_lens import patching

from interp.edits import Edit, single
from interp.errors import UsageError
from interp.heads import Head
from interp.hooked import HookedVLA
from interp.patching import Pairs, Sides, at_positions, patch
from interp.policies import Policy
from interp.sweep import Stage
from interp.view import TowerView, ViewInput


@pytest.fixture(scope="module")
def vla(policy: Policy) -> HookedVLA:
    return HookedVLA(policy)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    clean, other = random_observations(2), random_observations(2, seed=1)
    corrupt = [replace(a, state=b.state, images=b.images) for a, b in zip(clean, other, strict=True)]
    return Pairs(tuple(clean), tuple(corrupt))


class Case:
    """A pair of inputs of a view, and NIE / TE as a TransformerLens metric."""

    def __init__(self, policy: Policy, view: TowerView, pairs: Pairs) -> None:
        sides = Sides.of(policy, pairs, [0, 1], "denoising", seed=0)
        self.clean, self.corrupt = (view.inputs(batch, sides.noise) for batch in (sides.source, sides.base))
        clean, self.cache = view.run_with_cache(self.clean)
        self.base = policy.normalise_actions(view(self.corrupt))
        self.difference = policy.normalise_actions(clean) - self.base
        self.policy = policy

    def metric(self, actions: Tensor) -> Tensor:
        change = self.policy.normalise_actions(actions) - self.base
        return (change * self.difference).sum() / self.difference.square().sum()


@pytest.mark.parametrize("tower", ["vlm", "expert"])
def test_transformer_lens_patches_every_head_to_the_same_numbers(
    vla: HookedVLA, policy: Policy, pairs: Pairs, tower: str
) -> None:
    view = vla.view(tower)
    case = Case(policy, view, pairs)
    found = patching.get_act_patch_attn_head_out_all_pos(view, case.corrupt, case.cache, case.metric)
    exact = patch(policy, pairs, single(policy, tower)).effect
    live = [(head.layer, head.index) for head in policy.spec.live_heads([tower])]
    np.testing.assert_allclose([found[at] for at in live], exact, atol=2e-5, rtol=1e-3)
    for layer, head in policy.spec.tower(tower).dead:
        assert abs(found[layer, head]) < 1e-6


def test_transformer_lens_patches_positions_and_patterns(
    vla: HookedVLA, policy: Policy, pairs: Pairs
) -> None:
    view = vla.view("expert")
    case = Case(policy, view, pairs)
    by_position = patching.get_act_patch_resid_pre(view, case.corrupt, case.cache, case.metric)
    assert by_position.shape == (3, 7)
    assert by_position[0].abs().max() > 1e-3
    generic = patching.generic_activation_patch(
        view,
        case.corrupt,
        case.cache,
        case.metric,
        patching.layer_pos_head_vector_patch_setter,
        "z",
        index_axis_names=("layer", "pos", "head"),
    )
    edits = at_positions(single(policy, "expert"), range(7))
    exact = patch(policy, pairs, edits).effect.reshape(3, 4, 7).swapaxes(1, 2)
    np.testing.assert_allclose(generic, exact, atol=2e-5, rtol=1e-3)
    pattern = patching.get_act_patch_attn_head_pattern_all_pos(view, case.corrupt, case.cache, case.metric)
    assert pattern.shape == (3, 4)

    # One cell by hand, with the hooks of HookedVLA and the steps that they name.
    clean = case.cache["blocks.1.attn.hook_pattern"]

    def only_head_two(here: Tensor, hook) -> Tensor:
        here = here.clone()
        here[:, 2] = clean[hook.ctx["step"]][:, 2]
        return here

    with torch.no_grad():
        out = vla.run_with_hooks(
            case.corrupt.batch,
            case.corrupt.noise,
            case.corrupt.prefix,
            fwd_hooks=[("expert.blocks.1.attn.hook_pattern", only_head_two)],
        )
    torch.testing.assert_close(pattern[1, 2], case.metric(out), atol=1e-5, rtol=1e-4)


def test_the_cache_of_a_view_is_the_cache_without_the_tower(
    vla: HookedVLA, policy: Policy, pairs: Pairs
) -> None:
    view = vla.view("expert")
    tokens = view.inputs(policy.batch(pairs.clean), policy.noise(2, 0))
    assert isinstance(tokens, ViewInput)
    assert tokens.shape == (2, 7)
    out, cache = view.run_with_cache(tokens, names_filter=["blocks.0.attn.hook_z", "blocks.2.hook_mlp_out"])
    whole, full = vla.run_with_cache(tokens.batch, tokens.noise, names_filter="expert.blocks.0.attn.hook_z")
    assert torch.equal(out, whole)
    assert set(cache) == {"blocks.0.attn.hook_z", "blocks.2.hook_mlp_out"}
    z = cache["blocks.0.attn.hook_z"]
    assert torch.equal(
        z[1:3], full["expert.blocks.0.attn.hook_z"][1:3]
    )  # an ordinary [step, ...] outside of hooks
    assert type(z + 1) is Tensor
    assert (view.cfg.n_layers, view.cfg.n_heads, view.cfg.n_key_value_heads, view.cfg.d_head) == (3, 4, 1, 8)


def test_setters_that_write_in_place_spoil_nothing(vla: HookedVLA, policy: Policy, pairs: Pairs) -> None:
    view = vla.view("expert")
    tokens = view.inputs(policy.batch(pairs.clean), policy.noise(2, 0))
    bare = view(tokens)

    def scribble(z: Tensor, hook: object) -> None:
        z.zero_()  # returns nothing, so nothing may change

    assert torch.equal(view.run_with_hooks(tokens, [("blocks.0.attn.hook_z", scribble)]), bare)


def test_mistakes_are_one_line(vla: HookedVLA, policy: Policy, pairs: Pairs) -> None:
    with pytest.raises(UsageError, match="unknown tower 'arm'"):
        vla.view("arm")
    view = vla.view("expert")
    tokens = view.inputs(policy.batch(pairs.clean), policy.noise(2, 0))
    with pytest.raises(UsageError, match="unknown hook"):
        view.run_with_hooks(tokens, [("blocks.9.attn.hook_z", lambda z, hook: z)])
    with pytest.raises(UsageError, match=r"view\.inputs"):
        view.to_tokens("pick up the cube")


def test_nnsight_traces_and_edits_the_same_module(vla: HookedVLA, policy: Policy) -> None:
    """Zeroing a head in nnsight is zeroing it in a sweep; afterwards the policy is as it was."""
    batch, x = policy.batch(random_observations(2)), policy.noise(2, 0)
    bare = policy.denoise(batch, x)
    traced, now = vla.nnsight(), x
    for step in range(4):
        with torch.no_grad(), traced.trace(noise=now, timestep=torch.full((2,), 1 - step / 4), **batch):
            traced.model.dit.layers[1].self_attn.o_proj.input[..., 24:32] = 0
            velocity = traced.action_out_proj.output.save()
        now = now - velocity / 4
    ablated = Stage(policy, batch).denoise(x, [Edit((Head("expert", 1, 3),))])[0]
    # The traced pass recomputes the prefix together with the expert in every step.
    torch.testing.assert_close(now[..., :7], ablated, atol=1e-4, rtol=1e-3)
    assert torch.equal(policy.denoise(batch, x), bare)
