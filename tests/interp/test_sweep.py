"""Promises of sweeps, for policies of any shape and for sweeps that die: what is stacked, skipped and resumed is exact.

Independent computations: plain hooks and nnsight on the same module, one edit at a time; a process that SIGKILL ends.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import repeat
from nnsight import NNsight
from patch_kit import naive
from random_policy import build_policy, random_observations
from torch import Tensor, nn

import interp.sweep as sweep_module
from interp.assembly import resumable
from interp.attribution import atp
from interp.edits import NOTHING, Edit, single
from interp.errors import UsageError
from interp.heads import Head
from interp.kernels import StackedLinears
from interp.patching import Pairs, Sides, at_steps, patch
from interp.policies import Policy, load_policy
from interp.policies.pi0 import PI0Policy
from interp.runs import Run
from interp.sweep import Stage

CLOSE = {"atol": 2e-5, "rtol": 1e-3}


def make_pairs(n: int = 2) -> Pairs:
    clean, other = random_observations(n), random_observations(n, seed=1)
    return Pairs(
        tuple(clean),
        tuple(replace(a, images=b.images, state=b.state) for a, b in zip(clean, other, strict=True)),
    )


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """15 query heads on 5 KV heads, of 8 dimensions each at a width of 48."""
    path = tmp_path_factory.mktemp("grouped") / "gqa"
    return load_policy(build_policy(path, heads=15, kv_heads=5, layers=2))


@pytest.fixture(scope="module")
def pruned(tiny_policy_dir: Path) -> Policy:
    """The random policy with heads cut out: 4, 2 and 3 heads in the expert's layers, 4, 1, 4 in the vlm's."""
    whole = load_policy(tiny_policy_dir)
    assert isinstance(whole, PI0Policy)
    module = whole.module
    with torch.no_grad():
        for stack, counts in ((module.model.dit, (4, 2, 3)), (module.model.vlm.language_model, (4, 1, 4))):
            for layer, count in zip(stack.layers, counts, strict=True):
                attention, width = layer.self_attn, count * 8
                attention.num_key_value_groups = count
                attention.q_proj.weight = nn.Parameter(attention.q_proj.weight[:width].clone())
                attention.o_proj.weight = nn.Parameter(attention.o_proj.weight[:, :width].clone())
                attention.q_proj.out_features = attention.o_proj.in_features = width
    return PI0Policy(module, whole.tokenizer, whole.preprocessing)


# ---- shapes


def test_grouped_keys_patch_as_nnsight_does(grouped: Policy) -> None:
    """Head dimension is not width / heads, and three heads share a KV head."""
    head, d = Head("expert", 1, 13), 8
    own = slice(head.index * d, (head.index + 1) * d)
    pairs = make_pairs()
    sides = Sides.of(grouped, pairs, [0, 1], "denoising", seed=0)
    module, kept = NNsight(grouped.module), []

    def run(batch: dict[str, Tensor], new: list[Tensor] | None) -> Tensor:
        x = sides.noise
        for step in range(4):
            with torch.no_grad(), module.trace(noise=x, timestep=torch.full((2,), 1 - step / 4), **batch):
                projection = module.model.dit.layers[1].self_attn.o_proj
                if new is not None:
                    projection.input[..., own] = new[step][..., own]
                z = projection.input.save()
                velocity = module.action_out_proj.output.save()
            if new is None:
                kept.append(z.clone())
            x = x - velocity / 4
        return x[..., :7].double()

    target = run(sides.source, None)
    source = kept[:4]
    base = run(sides.base, None)
    patched, zeroed = run(sides.base, source), run(sides.base, [torch.zeros_like(z) for z in source])
    expected = ((patched - base) * (target - base)).sum() / (target - base).square().sum()
    found = patch(grouped, pairs, [Edit((head,))])
    # The traced passes recompute the prefix together with the expert in every step.
    np.testing.assert_allclose(found.effect[0], expected.item(), atol=1e-4, rtol=1e-3)
    assert abs(found.effect[0]) > 1e-3
    ablated = Stage(grouped, sides.base).denoise(sides.noise, single(grouped, "expert"))[15 + 13]
    torch.testing.assert_close(ablated.double(), zeroed, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("tower", ["vlm", "expert"])
def test_grouped_keys_patch_as_plain_hooks_do(grouped: Policy, tower: str) -> None:
    pairs = make_pairs()
    edits = single(grouped, tower)
    found = patch(grouped, pairs, edits)
    for at in (0, len(edits) - 1):
        one = naive(grouped, pairs, edits[at].heads[0])
        np.testing.assert_allclose(found.effect[at], one[0].sum() / one[1].sum(), **CLOSE)


def test_grouped_keys_have_nnsights_gradients(grouped: Policy) -> None:
    """At the last flow step, which no later step follows, for every head of the last layer of the expert."""
    pairs = make_pairs()
    sides = Sides.of(grouped, pairs, [0, 1], "denoising", seed=0)
    traced, ends = NNsight(grouped.module), []
    for batch in (sides.source, sides.base):
        with torch.no_grad():
            ends.append(grouped.denoise(batch, sides.noise, steps=range(3)))
            target = grouped.denoise(sides.source, sides.noise)[..., :7]
    time = torch.full((2,), 0.25)
    with torch.no_grad(), traced.trace(noise=ends[0], timestep=time, **sides.source):
        new = traced.model.dit.layers[1].self_attn.o_proj.input.save()
    with traced.trace(noise=ends[1].requires_grad_(), timestep=time, **sides.base):
        z = traced.model.dit.layers[1].self_attn.o_proj.input.save()
        action = (ends[1] - traced.action_out_proj.output / 4)[..., :7]
        difference = (target - action).detach().save()
        with (action * difference).sum().backward():
            grad = z.grad.save()
    product = ((new - z) * grad).detach().reshape(2, 7, 15, 8).sum(dim=(0, 1, 3))
    found = atp(grouped, pairs, step=3).tower("expert").value[1]
    np.testing.assert_allclose(found, product / difference.square().sum(), rtol=1e-2, atol=1e-5)


def test_layers_may_differ_in_their_heads(pruned: Policy) -> None:
    assert pruned.spec.tower("expert").heads_per_layer == (4, 2, 3)
    assert pruned.spec.tower("vlm").live == ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0))
    pairs = make_pairs()
    for tower, heads in (("expert", [(1, 1), (2, 2)]), ("vlm", [(0, 3), (1, 0)])):
        edits = [Edit((Head(tower, *at),)) for at in heads]
        found = patch(pruned, pairs, edits)
        for at, edit in enumerate(edits):
            one = naive(pruned, pairs, edit.heads[0])
            np.testing.assert_allclose(found.effect[at], one[0].sum() / one[1].sum(), **CLOSE)
    grid = atp(pruned, pairs).tower("expert").value
    assert np.isfinite(grid).tolist() == [[True] * 4, [True, True, False, False], [True, True, True, False]]
    with pytest.raises(UsageError, match="layer 1 has 2 heads"):
        patch(pruned, pairs, [Edit((Head("expert", 1, 2),))])


# ---- what is skipped


def test_no_edit_is_the_policys_own_answer_to_the_bit(policy: Policy) -> None:
    batch, noise = policy.batch(random_observations(2)), policy.noise(2, 0)
    edits = [*single(policy, "expert"), NOTHING, *single(policy, "vlm")]
    with torch.no_grad():
        bare = policy.denoise(batch, noise)[..., :7]
    assert torch.equal(Stage(policy, batch).denoise(noise, edits)[12], bare)


def test_edits_of_all_kinds_in_one_sweep_equal_each_alone(policy: Policy) -> None:
    """Late steps, several layers, several towers: each starts somewhere else."""
    pairs = make_pairs()
    sides = Sides.of(policy, pairs, [0, 1], "denoising", seed=0)
    _, values = sides.source_run(policy, ["vision", "vlm", "expert"])
    a, b, c, d = Head("expert", 2, 1), Head("expert", 0, 3), Head("vlm", 1, 0), Head("vision", 1, 1)
    edits = [
        Edit((a,), step=2),
        Edit((a, b)),
        Edit((a, c)),
        Edit((b, c, d)),
        Edit((d,)),
        Edit((c,), span="language"),
    ]
    edits += at_steps(policy, [Edit((b,), span="state")])
    together = Stage(policy, sides.base).denoise(sides.noise, edits, values)
    for at, edit in enumerate(edits):
        alone = Stage(policy, sides.base, budget=0).denoise(sides.noise, [edit], values)
        torch.testing.assert_close(together[at], alone[0], atol=2e-5, rtol=1e-4)
    # The state's z at step 2 is a matter of that step: what a plain hook does to it (test_patching) in all steps.
    assert len({round(float(chunk.sum()), 4) for chunk in together}) == len(edits)


def test_passes_of_a_wide_network_still_share_its_weights(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little fits the cache, eight rows run together, unless the budget forbids it."""
    monkeypatch.setattr(sweep_module, "_CACHE", 1)
    sides, rows = Sides.of(policy, make_pairs(1), [0], "denoising", 0), list[int]()
    layer = policy.block("expert", policy.spec.tower("expert").layers - 1).layer
    edits = single(policy, "expert")
    for budget in (2**30, 0):
        rows.clear()
        handle = layer.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        Stage(policy, sides.base, budget).denoise(sides.noise, edits)
        handle.remove()
        assert max(rows) == (min(8, len(edits)) if budget else 1)


def test_a_step_range_continues_where_another_stopped(policy: Policy) -> None:
    batch, noise = policy.batch(random_observations(2)), policy.noise(2, 0)
    whole = policy.denoise(batch, noise)
    half = policy.denoise(batch, noise, steps=range(2))
    assert torch.equal(policy.denoise(batch, half, steps=range(2, 4)), whole)


def test_the_fast_kernel_is_the_same_product() -> None:
    x, layer = torch.randn(3, 200, 24), nn.Linear(24, 40)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    with torch.no_grad(), StackedLinears():
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)
        assert layer(x.double().float()[:, :1]).shape == (3, 1, 40)  # too small for it: the usual way
    with StackedLinears():
        layer(x).sum().backward()  # and so with gradients
    assert layer.weight.grad is not None


# ---- a sweep that dies

DYING = """
import sys
import interp.patching
from test_sweep import make_pairs, sweep
from interp.policies import load_policy

original = interp.patching.Sides.of
def announced(policy, pairs, block, *others):
    print("block", *block, flush=True)
    return original(policy, pairs, block, *others)
interp.patching.Sides.of = announced
sweep(load_policy(sys.argv[1]), sys.argv[2])
"""


def sweep(policy: Policy, directory: str | Path | None):
    return patch(policy, make_pairs(4), single(policy, "expert"), block=1, directory=directory)


def test_a_sweep_ended_by_sigkill_resumes_to_the_same_bits(
    policy: Policy, tiny_policy_dir: Path, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (root, root / "tests", root / "tests/interp")))
    child = subprocess.Popen(
        [sys.executable, "-c", DYING, str(tiny_policy_dir), str(tmp_path / "sweep")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.split() == ["block", "2"]:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait(timeout=60) == -signal.SIGKILL
    done = sorted(path.name for path in (tmp_path / "sweep").rglob("*.npy"))
    assert done == ["000000.npy", "000001.npy"]
    resumed, whole = sweep(policy, tmp_path / "sweep"), sweep(policy, None)
    assert np.array_equal(resumed.indirect, whole.indirect)
    assert np.array_equal(resumed.total, whole.total)


def test_sweeps_of_two_plans_in_one_directory_keep_their_own_numbers(tmp_path: Path) -> None:
    """The second sweep starts and ends while the first computes its third block."""
    blocks = [[at] for at in range(5)]

    def other(block: list[int]) -> np.ndarray:
        return np.full((1, 1), 2.0)

    def first(block: list[int]) -> np.ndarray:
        if block == [2]:
            assert resumable(tmp_path, {"direction": "noising"}, blocks, other, desc="") == [2.0] * 5
        return np.full((1, 1), 1.0)

    assert resumable(tmp_path, {"direction": "denoising"}, blocks, first, desc="") == [1.0] * 5
    # and both can still be resumed
    assert resumable(tmp_path, {"direction": "denoising"}, blocks, other, desc="") == [1.0] * 5


# ---- mistakes


def test_activations_that_are_nan_are_one_line(tiny_policy_dir: Path) -> None:
    broken = load_policy(tiny_policy_dir)
    with torch.no_grad():
        broken.module.model.dit.layers[1].mlp.down_proj.weight[0] = torch.nan
    pairs = make_pairs()
    for attempt in (
        lambda: patch(broken, pairs, single(broken, "expert")),
        lambda: atp(broken, pairs),
    ):
        with pytest.raises(UsageError, match="not finite") as error:
            attempt()
        assert "\n" not in str(error.value)


def test_places_and_heads_that_are_not_there_are_one_line(policy: Policy, tmp_path: Path) -> None:
    pairs, head = make_pairs(), Edit((Head("expert", 0, 0),))
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: patch(policy, pairs, []), "at least one edit"),
        (lambda: patch(policy, pairs, [replace(head, span="tail")]), "unknown token span 'tail'"),
        (lambda: patch(policy, pairs, [replace(head, position=9)]), "positions 0-6"),
        (lambda: atp(policy, pairs, towers=["arm"]), "unknown tower 'arm'"),
        (lambda: atp(policy, pairs, span="image/left"), "unknown token span"),
        (lambda: patch(policy, pairs, [Edit((Head("expert", 0, 4),))]), "layer 0 has 4 heads"),
    ]
    for attempt, message in attempts:
        with pytest.raises(UsageError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_the_loss_has_one_pass_of_the_expert_and_no_later_step(policy: Policy) -> None:
    stage, head = Stage(policy, policy.batch(random_observations(1))), Head("expert", 0, 1)
    actions, noise, time = torch.zeros(1, 6, 7), policy.noise(1, 0)[:, None], torch.full((1, 1), 0.5)
    first, whole = stage.loss(actions, noise, time, [Edit((head,), step=0), Edit((head,))])
    assert torch.equal(first, whole)
    with pytest.raises(UsageError, match="step 2: the loss is of one pass") as error:
        stage.loss(actions, noise, time, [Edit((head,), step=2)])
    assert "\n" not in str(error.value)


def test_scores_of_another_policy_do_not_enter_a_run(
    policy: Policy, other_policy_dir: Path, tmp_path: Path
) -> None:
    other = load_policy(other_policy_dir)
    run = Run.create(
        tmp_path / "run", policy=policy.fingerprint, source="x", spec=policy.spec, data={"fingerprint": "d"}
    )
    with pytest.raises(UsageError, match=f"{other.fingerprint}.*{policy.fingerprint}"):
        run.save_scores(atp(other, make_pairs(), data="d", resamples=0))


def test_rows_of_a_shared_prefix_are_neighbours(policy: Policy) -> None:
    prefix = policy.prefix(policy.batch(random_observations(2)))
    twice = prefix.repeat(2)
    torch.testing.assert_close(twice.keys[0], repeat(prefix.keys[0], "b ... -> (b 2) ..."))
    one = prefix.select(slice(0, 1))
    assert one.repeat(5).keys[0].data_ptr() == one.keys[0].data_ptr()  # and a single row is not copied
