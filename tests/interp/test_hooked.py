"""Promises of HookedVLA: it shows what is there, changes what it is told to, and never goes unnoticed.

The independent computations are nnsight, plain PyTorch hooks on the same modules, and attention by its formula.
"""

from pathlib import Path

import pytest
import torch
from einops import rearrange, repeat
from nnsight import NNsight
from random_policy import build_policy, random_observations
from torch import Tensor

from interp.errors import UsageError
from interp.hooked import HookedVLA
from interp.policies import Batch, Observation, Policy, load_policy

STEPS = 4


@pytest.fixture(scope="module")
def vla(policy: Policy) -> HookedVLA:
    return HookedVLA(policy)


@pytest.fixture(scope="module")
def batch(policy: Policy, observations: list[Observation]) -> Batch:
    return policy.batch(observations)


@pytest.fixture(scope="module")
def noise(policy: Policy) -> Tensor:
    return policy.noise(3, seed=5)


def test_z_of_all_towers_equals_nnsights(
    vla: HookedVLA, tiny_policy_dir: Path, batch: Batch, noise: Tensor
) -> None:
    _, cache = vla.run_with_cache(batch, noise, names_filter=lambda name: name.endswith("hook_z"))
    traced = NNsight(load_policy(tiny_policy_dir).module)
    x, dt = noise, -1 / STEPS
    for step in range(STEPS):
        time = torch.full((3,), 1 + step * dt)
        with torch.no_grad(), traced.trace(noise=x, timestep=time, **batch):
            vision = traced.model.vlm.vision_tower.encoder.layers[1].self_attn.out_proj.input.save()
            vlm = traced.model.vlm.language_model.layers[1].self_attn.o_proj.input.save()
            expert = traced.model.dit.layers[2].self_attn.o_proj.input.save()
            velocity = traced.action_out_proj.output.save()
        shown = cache["expert.blocks.2.attn.hook_z"][step]
        # 1e-5: the traced pass recomputes the prefix together with the expert instead of caching it.
        torch.testing.assert_close(
            shown, rearrange(expert, "b p (h d) -> b p h d", h=4), atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            cache["vlm.blocks.1.attn.hook_z"],
            rearrange(vlm, "b p (h d) -> b p h d", h=4),
            atol=1e-5,
            rtol=1e-5,
        )
        torch.testing.assert_close(
            cache["vision.blocks.1.attn.hook_z"],
            rearrange(vision, "(b c) p (h d) -> b c p h d", h=2, c=2),
            atol=1e-5,
            rtol=1e-5,
        )
        x = x + dt * velocity


def test_every_site_of_a_layer_equals_what_its_modules_compute(
    vla: HookedVLA, policy: Policy, batch: Batch, noise: Tensor
) -> None:
    names = [name for name in vla.hook_dict if name.startswith("expert.blocks.1.")]
    layer = policy.module.model.dit.layers[1]
    seen: dict[str, list[Tensor]] = {key: [] for key in ("pre", "post", "attn", "mlp", "q", "k", "v", "z")}
    modules = {
        "q": layer.self_attn.q_proj,
        "k": layer.self_attn.k_proj,
        "v": layer.self_attn.v_proj,
        "mlp": layer.mlp,
    }
    handles = [
        m.register_forward_hook(lambda _, a, out, key=key: seen[key].append(out))
        for key, m in modules.items()
    ]
    handles += [
        layer.register_forward_pre_hook(lambda _, a: seen["pre"].append(a[0])),
        layer.register_forward_hook(lambda _, a, out: seen["post"].append(out)),
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, a: seen["z"].append(a[0])),
        layer.self_attn.o_proj.register_forward_hook(lambda _, a, out: seen["attn"].append(out)),
    ]
    _, cache = vla.run_with_cache(batch, noise, names_filter=names)
    for handle in handles:
        handle.remove()
    for key, site in (("pre", "resid_pre"), ("post", "resid_post"), ("attn", "attn_out"), ("mlp", "mlp_out")):
        assert torch.equal(cache[f"expert.blocks.1.hook_{site}"], torch.stack(seen[key]))
    for key in "qkvz":
        flat = rearrange(cache[f"expert.blocks.1.attn.hook_{key}"], "... h d -> ... (h d)")
        assert torch.equal(flat, torch.stack(seen[key]))
    total = cache["expert.blocks.1.hook_resid_pre"] + cache["expert.blocks.1.hook_attn_out"]
    torch.testing.assert_close(
        total + cache["expert.blocks.1.hook_mlp_out"], cache["expert.blocks.1.hook_resid_post"]
    )


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_pattern_is_the_attention_that_makes_z(tmp_path: Path, kv_heads: int) -> None:
    policy = load_policy(build_policy(tmp_path / "p", kv_heads=kv_heads))
    vla, batch, noise = HookedVLA(policy), policy.batch(random_observations(2)), policy.noise(2, 0)
    fused = vla(batch, noise)
    out, cache = vla.run_with_cache(batch, noise, names_filter=lambda name: ".attn." in name)
    torch.testing.assert_close(out, fused, atol=1e-5, rtol=1e-5)  # the formula rounds differently
    for tower, heads in (("vision", 2), ("vlm", 4), ("expert", 4)):
        pattern = cache[f"{tower}.blocks.0.attn.hook_pattern"]
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        if tower == "expert":  # its keys include the prefix, which k and v of its own do not cover
            padding = batch["attention_mask"][0] == 0
            assert (pattern[:, 0, :, :, : len(padding)][..., padding] == 0).all()
            assert (pattern[:, :, :, 0, -6:] == 0).all()  # the state does not see the actions
            assert (pattern[:, :, :, 1:, -6:] > 0).all()  # actions see each other
            continue
        v = cache[f"{tower}.blocks.0.attn.hook_v"]
        v = repeat(v, "... kv d -> ... (kv g) d", g=heads // v.shape[-2])
        z = torch.einsum("...hqk,...khd->...qhd", pattern, v)
        torch.testing.assert_close(z, cache[f"{tower}.blocks.0.attn.hook_z"], atol=1e-5, rtol=1e-5)


def test_editing_the_pattern_edits_z(vla: HookedVLA, batch: Batch, noise: Tensor) -> None:
    """Attending to the state token alone makes the first layer's z the state's value."""
    state = vla.spec.span("state").start

    def only_state(pattern: Tensor, hook: object) -> Tensor:
        new = torch.zeros_like(pattern)
        new[..., state] = 1
        return new

    with vla.hooks([("expert.blocks.0.attn.hook_pattern", only_state)]):
        _, cache = vla.run_with_cache(
            batch, noise, names_filter=["expert.blocks.0.attn.hook_z", "expert.blocks.0.attn.hook_v"]
        )
    value = cache["expert.blocks.0.attn.hook_v"][:, :, :1]
    torch.testing.assert_close(
        cache["expert.blocks.0.attn.hook_z"], value.expand_as(cache["expert.blocks.0.attn.hook_z"])
    )


def test_watching_fused_sites_changes_no_bit_and_leaves_nothing_behind(
    vla: HookedVLA, policy: Policy, batch: Batch, noise: Tensor
) -> None:
    bare = policy.sample(batch, noise)
    fused = [name for name in vla.hook_dict if "pattern" not in name and "scores" not in name]
    assert torch.equal(vla.run_with_cache(batch, noise, names_filter=fused)[0], bare)
    vla.run_with_cache(batch, noise)  # everything, patterns too
    assert torch.equal(policy.sample(batch, noise), bare)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in policy.module.modules())
    assert policy.attention("expert", 0).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("tower", "layer", "head"), [("vision", 0, 1), ("vlm", 1, 2), ("expert", 2, 3)])
def test_replacing_z_equals_the_same_edit_by_a_plain_hook(
    vla: HookedVLA, policy: Policy, batch: Batch, noise: Tensor, tower: str, layer: int, head: int
) -> None:
    d = policy.spec.towers[tower].d_head

    def ablate(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[..., head, :] = 0
        return z

    def plain(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        z = args[0].clone()
        z[..., head * d : (head + 1) * d] = 0
        return (z,)

    hooked = vla.run_with_hooks(batch, noise, fwd_hooks=[(f"{tower}.blocks.{layer}.attn.hook_z", ablate)])
    handle = policy.out_projection(tower, layer).register_forward_pre_hook(plain)
    expected = policy.sample(batch, noise)
    handle.remove()
    assert torch.equal(hooked, expected)
    assert not torch.equal(hooked, policy.sample(batch, noise))


def test_a_hook_knows_its_step_and_can_act_on_one_alone(
    vla: HookedVLA, policy: Policy, batch: Batch, noise: Tensor
) -> None:
    name, steps = "expert.blocks.1.attn.hook_z", []

    def at_two(z: Tensor, hook) -> Tensor | None:
        steps.append(hook.ctx["step"])
        return z * 0 if hook.ctx["step"] == 2 else None

    edited, cache = None, None
    with vla.hooks([(name, at_two)]):
        edited = vla(batch, noise)
        again, cache = vla.run_with_cache(batch, noise, names_filter=name)
    assert steps == [0, 1, 2, 3] * 2  # every sample counts from 0
    assert torch.equal(edited, again)
    clean = vla.run_with_cache(batch, noise, names_filter=name)[1][name]
    assert torch.equal(cache[name][:2], clean[:2])
    assert (cache[name][2] == 0).all()
    assert not torch.equal(cache[name][3], clean[3])

    # By hand: three clean steps, of which the third runs with z at zero.
    prefix, x = policy.prefix(batch), noise
    for step in range(STEPS):
        zero = policy.out_projection("expert", 1).register_forward_pre_hook(lambda _, a: (a[0] * 0,))
        if step != 2:
            zero.remove()
        x = x - policy.velocity(batch, x, torch.full((3,), 1 - step / STEPS), prefix) / STEPS
        zero.remove()
    torch.testing.assert_close(edited, policy.unnormalise_actions(x[..., :7]))


def test_gradients_flow_through_hooks(vla: HookedVLA, policy: Policy, batch: Batch, noise: Tensor) -> None:
    """d loss / d z from a hook equals finite differences of the loss."""
    name, kept = "vlm.blocks.0.attn.hook_z", []

    def keep(z: Tensor, hook: object) -> Tensor:
        z = z if z.requires_grad else z.detach().requires_grad_()
        z.retain_grad()
        kept.append(z)
        return z

    def loss() -> Tensor:
        return policy.loss(batch, torch.zeros(3, 6, 7), noise, torch.full((3,), 0.5)).mean()

    with vla.hooks([(name, keep), ("expert.blocks.1.attn.hook_z", keep)]):
        loss().backward()
    for z, hooked in zip(kept, (name, "expert.blocks.1.attn.hook_z"), strict=True):
        direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        losses = []
        for sign in (1, -1):
            with (
                torch.no_grad(),
                vla.hooks([(hooked, lambda z, hook, s=sign, d=direction: z + s * 1e-2 * d)]),
            ):
                losses.append(loss())
        slope = (losses[0] - losses[1]) / 2e-2
        # 2 %: float32 differences of a loss of order one.
        torch.testing.assert_close((z.grad * direction).sum(), slope, rtol=2e-2, atol=1e-4)


def test_a_hook_that_only_looks_still_gets_its_gradient(
    vla: HookedVLA, policy: Policy, batch: Batch, noise: Tensor
) -> None:
    seen = []

    def start(resid: Tensor, hook: object) -> Tensor:
        return resid.detach().requires_grad_()

    def look(z: Tensor, hook: object) -> None:
        z.retain_grad()
        seen.append(z)

    with vla.hooks([("expert.blocks.0.hook_resid_pre", start), ("expert.blocks.1.attn.hook_z", look)]):
        vla(batch, noise).sum().backward()
    assert all(z.grad is not None and z.grad.abs().max() > 0 for z in seen)


def test_backward_hooks_see_the_same_gradient(vla: HookedVLA, batch: Batch, noise: Tensor) -> None:
    grads, kept = [], []

    def start(resid: Tensor, hook: object) -> Tensor:
        return resid.detach().requires_grad_()

    def keep(z: Tensor, hook: object) -> Tensor:
        z.retain_grad()
        kept.append(z)
        return z

    name = "expert.blocks.2.attn.hook_z"
    forward = [("expert.blocks.0.hook_resid_pre", start), (name, keep)]
    with vla.hooks(forward, bwd_hooks=[(name, lambda grad, hook: grads.append(grad.clone()))]):
        vla.velocity(batch, noise, torch.full((3,), 0.5)).sum().backward()
    torch.testing.assert_close(grads[0], kept[0].grad)


def test_cached_tensors_are_copies_and_the_callers_grad_mode_counts(
    vla: HookedVLA, batch: Batch, noise: Tensor
) -> None:
    name = "expert.blocks.0.hook_resid_pre"
    _, cache = vla.run_with_cache(batch, noise, names_filter=name)
    before = cache[name].clone()
    cache[name].zero_()
    assert torch.equal(vla.run_with_cache(batch, noise, names_filter=name)[1][name], before)

    def start(z: Tensor, hook: object) -> Tensor:
        return z.detach().requires_grad_() if torch.is_grad_enabled() else z

    with vla.hooks([(name, start)]):
        assert vla(batch, noise).requires_grad
        with torch.no_grad():
            assert not vla(batch, noise).requires_grad


def test_names_that_match_nothing_are_errors(vla: HookedVLA, batch: Batch, noise: Tensor) -> None:
    ran = []
    for attempt in (
        lambda: vla.run_with_cache(batch, noise, names_filter="expert.blocks.9.attn.hook_z"),
        lambda: vla.run_with_cache(batch, noise, names_filter=lambda name: name == "blocks.0.attn.hook_z"),
        lambda: vla.run_with_hooks(
            batch, noise, fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: ran.append(1))]
        ),
        lambda: vla.add_hook("expert.blocks.0.attn.hook_zz", lambda z, hook: None),
    ):
        with pytest.raises(UsageError, match=r"unknown hook|matches none"):
            attempt()
    assert not ran


def test_a_hook_that_never_fires_is_an_error(
    vla: HookedVLA, policy: Policy, batch: Batch, noise: Tensor
) -> None:
    prefix = policy.prefix(batch)
    with pytest.raises(UsageError, match=r"vlm\.blocks\.0\.attn\.hook_z: the vlm tower did not run"):
        vla.run_with_hooks(
            batch, noise, prefix, fwd_hooks=[("vlm.blocks.0.attn.hook_z", lambda z, hook: None)]
        )
    with pytest.raises(UsageError, match="never fired"):
        vla.run_with_cache(batch, noise, prefix)
    with (
        pytest.raises(UsageError, match="never fired"),
        vla.hooks([("expert.blocks.0.attn.hook_z", lambda z, hook: z)]),
    ):
        pass


def test_a_hook_that_returns_another_shape_is_an_error(vla: HookedVLA, batch: Batch, noise: Tensor) -> None:
    with pytest.raises(UsageError, match=r"must return \(3, 7, 4, 8\) or None"):
        vla.run_with_hooks(
            batch, noise, fwd_hooks=[("expert.blocks.0.attn.hook_z", lambda z, hook: z[:, :1])]
        )


def test_a_hook_that_raises_leaves_the_policy_clean(
    vla: HookedVLA, policy: Policy, batch: Batch, noise: Tensor
) -> None:
    bare, prefix = policy.sample(batch, noise), policy.prefix(batch)

    def explode(z: Tensor, hook: object) -> None:
        raise ZeroDivisionError

    for name in ("expert.blocks.1.attn.hook_z", "expert.blocks.1.attn.hook_pattern"):
        with pytest.raises(ZeroDivisionError):
            vla.run_with_hooks(batch, noise, prefix, fwd_hooks=[(name, explode)])
    assert torch.equal(policy.sample(batch, noise, prefix), bare)
    assert not any(point.has_hooks() for point in vla.hook_dict.values())


def test_hooks_neither_train_nor_move_the_policy(vla: HookedVLA, policy: Policy) -> None:
    assert not list(vla.parameters())
    vla.train()
    vla.to(torch.float64)
    assert not policy.module.training
    assert not vla.training
    assert policy.module.dtype == torch.float32


def test_a_layer_knows_its_number(vla: HookedVLA) -> None:
    assert vla.hook_dict["expert.blocks.2.attn.hook_z"].layer() == 2
