"""Promises: only the chosen heads change, by exactly the gradients that full finetuning would give them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy
from steering.slices import SlicedLinear, Slices, attach

HEADS = [Head("expert", 0, 3), Head("expert", 2, 0), Head("expert", 2, 1)]
VLM_AND_VISION = [Head("vlm", 0, 1), Head("vision", 1, 1)]

Loss = Callable[[], Tensor]


@pytest.fixture
def policy(tiny_policy_dir: Path) -> Policy:
    return load_policy(tiny_policy_dir)


@pytest.fixture
def loss(policy: Policy, observations: list[Observation]) -> Loss:
    batch = policy.batch(observations)
    actions = torch.randn(
        3, policy.spec.horizon, policy.spec.action_dim, generator=torch.Generator().manual_seed(0)
    )
    noise, time = policy.noise(3, seed=1), torch.tensor([0.2, 0.5, 0.9])
    return lambda: policy.loss(batch, actions, noise, time).mean()


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.module.state_dict().items()}


def train(slices: Slices, loss: Loss, steps: int = 3) -> torch.optim.AdamW:
    optimiser = torch.optim.AdamW(slices.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    return optimiser


def rows_of(heads: list[Head], layer: int, d_head: int) -> list[int]:
    return [h.index * d_head + i for h in heads if h.layer == layer for i in range(d_head)]


@pytest.mark.parametrize("form", ["full", "low-rank"])
@pytest.mark.parametrize("heads", [HEADS, VLM_AND_VISION])
def test_attaching_changes_no_output_by_a_single_bit(
    policy: Policy, observations: list[Observation], heads: list[Head], form: str
) -> None:
    batch, noise = policy.batch(observations), policy.noise(3, seed=0)
    before = policy.sample(batch, noise)
    attach(policy, heads, form=form)
    assert torch.equal(policy.sample(batch, noise), before)


def test_gradient_of_a_full_slice_is_the_full_gradient_on_its_rows_and_columns(
    policy: Policy, loss: Loss
) -> None:
    d_head, sites = policy.spec.tower("expert").d_head, [(0, HEADS[:1]), (2, HEADS[1:])]
    full = {}
    for layer, _ in sites:
        q, o = policy.query_projection("expert", layer).weight, policy.out_projection("expert", layer).weight
        q.requires_grad_(), o.requires_grad_()
        full[layer] = torch.autograd.grad(loss(), [q, o])
    slices = attach(policy, HEADS)
    loss().backward()
    linears = {(s.projection, s.parent): s.linear for s in slices.sites}
    for layer, heads in sites:
        attention, owned = policy.attention("expert", layer), rows_of(heads, layer, d_head)
        q, o = linears["q", attention], linears["o", attention]
        # same sums in another order: float32 rounding only
        torch.testing.assert_close(q.delta.grad, full[layer][0][owned], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(o.delta.grad, full[layer][1][:, owned], rtol=1e-5, atol=1e-7)
        assert q.weight.grad is None
        assert o.weight.grad is None


@pytest.mark.parametrize("form", ["full", "low-rank"])
@pytest.mark.parametrize("heads", [HEADS, VLM_AND_VISION])
def test_merging_keeps_the_outputs_and_every_other_weight_bit_for_bit(
    policy: Policy, observations: list[Observation], loss: Loss, heads: list[Head], form: str
) -> None:
    before, names = weights(policy), {m: n for n, m in policy.module.named_modules()}
    mutable = {}
    for tower, layer in {(h.tower, h.layer) for h in heads}:
        here = [h for h in heads if h.tower == tower]
        owned = rows_of(here, layer, policy.spec.tower(tower).d_head)
        mutable[f"{names[policy.query_projection(tower, layer)]}.weight"] = (owned, slice(None))
        mutable[f"{names[policy.out_projection(tower, layer)]}.weight"] = (slice(None), owned)
    slices = attach(policy, heads, form=form)
    train(slices, loss)
    batch, noise = policy.batch(observations), policy.noise(3, seed=0)
    unmerged = policy.sample(batch, noise)
    slices.merge()
    # W x + dW x against (W + dW) x, through 4 flow steps of a random network
    torch.testing.assert_close(policy.sample(batch, noise), unmerged, rtol=1e-4, atol=1e-5)
    after = weights(policy)
    assert after.keys() == before.keys()
    for name, value in after.items():
        same = value == before[name]
        if name in mutable:
            assert not same[mutable[name]].any()  # every chosen entry moved ...
            same[mutable[name]] = True
        assert same.all(), f"{name} changed outside the chosen heads"


def test_optimiser_state_is_as_large_as_the_slices_and_no_larger(policy: Policy, loss: Loss) -> None:
    slices = attach(policy, HEADS)
    optimiser = train(slices, loss, steps=1)
    d_head, d_model = policy.spec.tower("expert").d_head, policy.query_projection("expert", 0).in_features
    size = len(HEADS) * d_head * d_model * 2  # rows of Q and columns of O
    state = sum(t.numel() for p in optimiser.state.values() for name, t in p.items() if name != "step")
    assert state == 2 * size  # Adam's two moments
    assert sum(p.numel() for p in policy.module.parameters() if p.requires_grad) == size
    assert sum(p.grad.numel() for p in policy.module.parameters() if p.grad is not None) == size
    assert slices.groups() == {"expert query rows": size // 2, "expert output columns": size // 2}


def test_low_rank_parameters_are_rank_times_the_two_sides_of_each_head(policy: Policy) -> None:
    d_head, d_model = policy.spec.tower("expert").d_head, policy.query_projection("expert", 0).in_features
    slices = attach(policy, HEADS, form="low-rank", rank=2)
    assert sum(slices.groups().values()) == len(HEADS) * 2 * 2 * (d_head + d_model)


def test_low_rank_change_is_the_product_of_its_factors_head_by_head(policy: Policy, loss: Loss) -> None:
    slices = attach(policy, HEADS, form="low-rank", rank=2)
    train(slices, loss)
    for site in slices.sites:
        linear, d_head = site.linear, site.linear.d_head
        for i in range(len(linear.heads)):
            block = linear.up[i] @ linear.down[i]
            change = linear.change()
            rows = slice(i * d_head, (i + 1) * d_head)
            torch.testing.assert_close(change[rows] if site.projection == "q" else change[:, rows], block)
            assert torch.linalg.matrix_rank(block) == 2


def test_removing_gives_the_policy_back_as_it_was(policy: Policy, loss: Loss) -> None:
    before, modules = weights(policy), [*policy.module.modules()]
    slices = attach(policy, HEADS)
    train(slices, loss)
    slices.remove()
    assert [*policy.module.modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in weights(policy).items())


def test_hooks_keep_seeing_z_whether_they_came_before_or_after(policy: Policy, loss: Loss) -> None:
    seen: list[str] = []
    before = policy.out_projection("expert", 2).register_forward_pre_hook(lambda *_: seen.append("before"))
    slices = attach(policy, HEADS)
    assert isinstance(policy.out_projection("expert", 2), nn.Linear)
    assert policy.out_projection("expert", 2).in_features == 32
    after = policy.out_projection("expert", 2).register_forward_pre_hook(lambda *_: seen.append("after"))
    loss()
    assert seen == ["before", "after"]
    before.remove()
    slices.merge()
    loss()
    assert seen == ["before", "after", "after"]
    after.remove()
    loss()
    assert seen == ["before", "after", "after"]


def test_a_hook_that_replaces_z_also_replaces_it_for_the_slice(policy: Policy, loss: Loss) -> None:
    slices = attach(policy, HEADS)
    train(slices, loss)
    sliced = policy.out_projection("expert", 2)
    sliced.register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]),))
    assert not sliced(torch.randn(1, 4, sliced.in_features)).any()


@pytest.mark.parametrize("form", ["full", "low-rank"])
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_a_single_linear_equals_the_linear_with_the_changed_weight(side: str, form: str) -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 12).double()
    sliced = SlicedLinear(base, [2, 0], d_head=4, side=side, form=form, rank=2)
    with torch.no_grad():
        for parameter in sliced.own_parameters().values():
            parameter.normal_()
    delta = torch.zeros(12, 12).double()
    entries = [0, 1, 2, 3, 8, 9, 10, 11]  # heads 0 and 2
    if side == "rows":
        delta[entries] = sliced.change()
    else:
        delta[:, entries] = sliced.change()
    x = torch.randn(2, 5, 12).double()
    expected = nn.functional.linear(x, base.weight + delta, base.bias)
    torch.testing.assert_close(sliced(x), expected)
    torch.testing.assert_close(sliced.merge()(x), expected)


def test_half_precision_weights_train_in_float32(policy: Policy) -> None:
    policy.module.to(torch.bfloat16)
    slices = attach(policy, HEADS)
    assert {p.dtype for p in slices.parameters()} == {torch.float32}
    linear = slices.sites[0].linear
    x = torch.randn(2, linear.in_features, dtype=torch.bfloat16)
    assert linear(x).dtype == torch.bfloat16


@pytest.mark.parametrize("projection", ["k", "v"])
def test_keys_and_values_are_refused_with_the_reason(policy: Policy, projection: str) -> None:
    with pytest.raises(
        UsageError, match=r"grouped-query attention shares keys and values.*4 heads share 1 K/V head"
    ):
        attach(policy, HEADS, projections=("q", projection))


@pytest.mark.parametrize(
    ("heads", "options", "message"),
    [
        ([], {}, "no heads chosen"),
        ([Head("expert", 9, 0)], {}, r"expert.L9H0: tower expert has 3 layers"),
        ([Head("expert", 0, 4)], {}, r"expert.L0H4: layer 0 has 4 heads \(0-3\)"),
        ([Head("planner", 0, 0)], {}, "unknown tower 'planner'"),
        ([Head("vlm", 2, 0)], {}, r"vlm.L2H0 is dead"),
        ([HEADS[0], HEADS[0]], {}, r"expert.L0H3 is chosen twice"),
        (HEADS, {"form": "low-rank", "rank": 0}, "rank 0"),
        (HEADS, {"form": "half"}, "slice form 'half'"),
        (HEADS, {"projections": ("mlp",)}, "projection 'mlp'"),
    ],
)
def test_bad_choices_are_refused_and_leave_the_policy_alone(
    policy: Policy, heads: list[Head], options: dict[str, object], message: str
) -> None:
    modules = [*policy.module.modules()]
    with pytest.raises(UsageError, match=message):
        attach(policy, heads, **options)
    assert [*policy.module.modules()] == modules


def test_attaching_twice_is_refused(policy: Policy) -> None:
    attach(policy, HEADS)
    with pytest.raises(UsageError, match="already carries head slices"):
        attach(policy, HEADS)
