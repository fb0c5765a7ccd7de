"""Promises of a loaded pi0 policy: it is the network on disk, nothing else, and computes what transformers computes."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from random_policy import CAMERAS, IMAGE_SIZE, STATE_DIM, build_policy, random_observations
from safetensors.torch import load_file, save_file

from interp.errors import UsageError
from interp.policies import Letterbox, Observation, Policy, PolicySpec, load_policy


def test_sampling_equals_transformers_own_to_the_bit(policy: Policy, observations: list[Observation]) -> None:
    batch, noise = policy.batch(observations), policy.noise(3, seed=1)
    theirs = policy.module.sample_actions(noise=noise, **batch)
    assert torch.equal(policy.denoise(batch, noise), theirs)
    mean, std = (torch.tensor(getattr(policy.preprocessing.action, name)) for name in ("mean", "std"))
    torch.testing.assert_close(policy.sample(batch, noise), theirs[..., :7] * std + mean)


def test_loss_equals_transformers_own(
    policy: Policy, observations: list[Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, noise = policy.batch(observations), policy.noise(3, seed=1)
    actions, time = torch.randn(3, 6, 7), torch.tensor([0.2, 0.5, 0.9])
    monkeypatch.setattr(policy.module.config, "loss_reduction", "none")
    padded = torch.nn.functional.pad(actions, (0, 1))
    theirs = policy.module(actions=padded, noise=noise, timestep=time, **batch).loss
    torch.testing.assert_close(policy.loss(batch, actions, noise, time), theirs[..., :7])


def test_one_prefix_serves_many_draws_and_is_left_as_it_was(
    policy: Policy, observations: list[Observation]
) -> None:
    batch = policy.batch(observations)
    prefix, x, time = policy.prefix(batch, draws=4), policy.noise(12, seed=0), torch.rand(12)
    before = [keys.clone() for keys in prefix.keys]
    together = policy.velocity(batch, x, time, prefix)
    for row in range(12):
        alone = policy.batch([observations[row // 4]])
        torch.testing.assert_close(
            together[row],
            policy.velocity(alone, x[row : row + 1], time[row : row + 1])[0],
            atol=1e-5,
            rtol=1e-5,
        )
    assert all(torch.equal(keys, old) for keys, old in zip(prefix.keys, before, strict=True))
    assert torch.equal(policy.velocity(batch, x, time, prefix), together)


def test_a_prefix_of_another_size_is_refused(policy: Policy, observations: list[Observation]) -> None:
    batch = policy.batch(observations)
    with pytest.raises(
        UsageError, match="the prefix has 6 rows and x 12: it needs one a draw, or 3 to be shared"
    ):
        policy.velocity(batch, policy.noise(12, 0), torch.rand(12), policy.prefix(batch, draws=2))


def test_draws_that_share_a_prefix_get_the_numbers_and_gradients_of_a_repeated_one(
    policy: Policy, observations: list[Observation]
) -> None:
    batch = policy.batch(observations)
    assert not batch["attention_mask"].all()  # padded words must stay unseen in both forms
    x, time = policy.noise(12, seed=0).requires_grad_(), torch.rand(12)
    prefix = policy.prefix(batch)
    shared = policy.velocity(batch, x, time, prefix)
    repeated = policy.velocity(batch, x, time, prefix.repeat(4))
    # the same sums in another order, through 3 layers in float32
    torch.testing.assert_close(shared, repeated, atol=1e-5, rtol=1e-5)
    theirs, ours = (torch.autograd.grad(v.square().sum(), x)[0] for v in (repeated, shared))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    leaked = torch.autograd.grad(policy.velocity(batch, x, time, prefix)[5].sum(), x)[0]
    assert leaked[5].any()
    assert not leaked[[row for row in range(12) if row != 5]].any()  # no draw sees another


def test_normalisation_round_trips(policy: Policy) -> None:
    actions = torch.randn(5, 6, 7)
    torch.testing.assert_close(policy.unnormalise_actions(policy.normalise_actions(actions)), actions)


def test_noise_depends_on_the_seed_alone(policy: Policy) -> None:
    torch.manual_seed(0)
    first = policy.noise(2, seed=7)
    torch.manual_seed(1)
    assert torch.equal(first, policy.noise(2, seed=7))
    assert not torch.equal(first, policy.noise(2, seed=8))


def test_dead_heads_are_exactly_those_whose_ablation_changes_nothing(tmp_path: Path) -> None:
    """Every head of every tower is zeroed by a plain hook; one expert head had its output weights removed before."""
    directory = build_policy(tmp_path / "policy")
    weights = load_file(directory / "model.safetensors")
    name = next(n for n in weights if n.endswith("expert.model.layers.1.self_attn.o_proj.weight"))
    weights[name][:, 8:16] = 0
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    policy = load_policy(directory)
    batch, noise = policy.batch(random_observations(1, seed=3)), policy.noise(1, 3)
    base = policy.denoise(batch, noise)
    model = policy.module.model
    projections = {
        "vision": [layer.self_attn.out_proj for layer in model.vlm.vision_tower.encoder.layers],
        "vlm": [layer.self_attn.o_proj for layer in model.vlm.language_model.layers],
        "expert": [layer.self_attn.o_proj for layer in model.dit.layers],
    }
    for tower, spec in policy.spec.towers.items():
        without_effect = []
        for layer, projection in enumerate(projections[tower]):
            for head in range(spec.heads):

                def zero(_, args, head=head, d=spec.d_head):
                    z = args[0].clone()
                    z[..., head * d : (head + 1) * d] = 0
                    return (z,)

                handle = projection.register_forward_pre_hook(zero)
                if torch.equal(policy.denoise(batch, noise), base):
                    without_effect.append((layer, head))
                handle.remove()
        assert tuple(without_effect) == spec.dead
    assert policy.spec.towers["expert"].dead == ((1, 1),)
    assert len(policy.spec.towers["vlm"].dead) == 4


def test_spec_says_what_the_modules_are(policy: Policy) -> None:
    for tower, spec in policy.spec.towers.items():
        for layer in range(spec.layers):
            assert policy.out_projection(tower, layer).in_features == spec.heads * spec.d_head
            assert policy.query_projection(tower, layer).out_features == spec.heads * spec.d_head
    assert policy.out_projection("expert", 0).out_features != 4 * 8  # head dim is not width // heads here
    assert PolicySpec.from_json(json.loads(json.dumps(policy.spec.to_json()))) == policy.spec


def test_spans_tile_the_sequence_that_the_network_sees(
    policy: Policy, observations: list[Observation]
) -> None:
    spec, batch = policy.spec, policy.batch(observations)
    ends = [span.stop for span in spec.spans.values()]
    assert [span.start for span in spec.spans.values()] == [0, *ends[:-1]]
    assert spec.span("language").stop == batch["input_ids"].shape[1]
    assert spec.span("action").stop - spec.span("language").stop == 1 + spec.horizon
    image_token = policy.module.config.vlm_config.image_token_id
    assert (batch["input_ids"] == image_token).all(0).nonzero().max() == spec.span("image/wrist").stop - 1
    assert spec.positions("expert", "state") == slice(0, 1)
    assert spec.positions("expert", "action") == slice(1, 7)
    assert spec.positions("vlm", "language") == slice(32, 42)
    with pytest.raises(UsageError, match="belong to another tower"):
        spec.positions("vlm", "action")


def test_the_instruction_is_read_and_its_padding_is_not(policy: Policy) -> None:
    short, other = random_observations(2)
    long = Observation(short.images, short.state, "put the blue cube in the bowl")
    same = Observation(other.images, short.state, short.instruction)
    batch = policy.batch([short, long])
    assert batch["attention_mask"].sum(1).tolist() == [32 + 6, 32 + 8]
    noise = policy.noise(1, 0)
    outputs = [policy.sample(policy.batch([one]), noise) for one in (short, long, same)]
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-4)
    padded = policy.batch([short])
    padded["input_ids"][:, -1] = 5  # a masked position
    torch.testing.assert_close(policy.sample(padded, noise), outputs[0])


def test_unknown_words_warn_and_long_instructions_are_refused(policy: Policy) -> None:
    one = random_observations(1)[0]
    with pytest.warns(UserWarning, match="does not know"):
        policy.batch([Observation(one.images, one.state, "defenestrate the cube")])
    with pytest.raises(UsageError, match="20 tokens: the policy takes at most 9"):
        policy.batch([Observation(one.images, one.state, "cube " * 20)])


def test_bad_observations_are_refused(policy: Policy) -> None:
    good = random_observations(1)[0]
    with pytest.raises(UsageError, match="lacks camera 'wrist'"):
        policy.batch([Observation({"front": good.images["front"]}, good.state, "")])
    with pytest.raises(UsageError, match="state has 3 numbers: the policy needs 8"):
        policy.batch([Observation(good.images, good.state[:3], "")])
    with pytest.raises(UsageError, match="uint8"):
        Observation({"front": np.zeros((8, 8, 3), np.float32)}, good.state, "")
    with pytest.raises(UsageError, match="finite"):
        Observation(good.images, np.full(STATE_DIM, np.nan), "")


def test_images_are_letterboxed_without_distortion(policy: Policy) -> None:
    """A wide image of one colour fills the middle; the rest is black, which is -1 to the network."""
    red = np.zeros((16, 32, 3), np.uint8)
    red[..., 0] = 255
    batch = policy.batch([Observation(dict.fromkeys(CAMERAS, red), np.zeros(STATE_DIM), "")])
    pixels = batch["pixel_values"][0, 0]
    box = policy.spec.letterbox(16, 32)
    assert box == Letterbox(top=8, left=0, height=16, width=32, size=IMAGE_SIZE)
    assert (pixels[:, :8] == -1).all()
    assert (pixels[:, 24:] == -1).all()
    assert (pixels[0, 8:24] == 1).all()
    exact = random_observations(1)[0]
    pixels = policy.batch([exact])["pixel_values"][0, 1]
    restored = rearrange((pixels + 1) * 127.5, "c h w -> h w c").round().to(torch.uint8).numpy()
    assert np.array_equal(restored, exact.images["wrist"])


def test_loading_leaves_the_network_frozen_in_eval_mode(policy: Policy) -> None:
    assert not policy.module.training
    assert not any(parameter.requires_grad for parameter in policy.module.parameters())


def test_saving_and_loading_gives_the_same_policy(
    policy: Policy, observations: list[Observation], tmp_path: Path
) -> None:
    policy.save(tmp_path / "copy")
    copy = load_policy(tmp_path / "copy")
    assert copy.fingerprint == policy.fingerprint
    assert copy.spec == policy.spec
    batch, noise = policy.batch(observations), policy.noise(3, 0)
    assert torch.equal(copy.sample(copy.batch(observations), noise), policy.sample(batch, noise))
    copy.save(tmp_path / "copy")  # over an older policy
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_saving_never_replaces_something_that_is_no_policy(policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not a policy"):
        policy.save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failed_save_leaves_the_old_policy(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy.save(tmp_path / "kept")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(policy.module, "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        policy.save(tmp_path / "kept")
    assert load_policy(tmp_path / "kept").fingerprint == policy.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("kind", ["weights", "norm", "config"])
def test_every_change_that_matters_changes_the_fingerprint(
    policy: Policy, tiny_policy_dir: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(tiny_policy_dir, tmp_path / "p")
    if kind == "weights":
        weights = load_file(tmp_path / "p/model.safetensors")
        weights["action_out_proj.weight"][0, 0] += 1e-3
        save_file(weights, tmp_path / "p/model.safetensors", metadata={"format": "pt"})
    else:
        file = tmp_path / "p" / ("robosteer.json" if kind == "norm" else "config.json")
        data = json.loads(file.read_text())
        if kind == "norm":
            data["norm"]["action"]["std"][0] *= 2
        else:
            data["num_inference_steps"] = 7
        file.write_text(json.dumps(data))
    assert load_policy(tmp_path / "p").fingerprint != policy.fingerprint


# ---- faults


@pytest.fixture
def broken(tiny_policy_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_policy_dir, tmp_path / "broken"))


def test_truncated_weights_are_an_error(broken: Path) -> None:
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UsageError, match="cannot load the policy"):
        load_policy(broken)


def test_missing_tensors_are_an_error_not_random_numbers(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    del weights["action_out_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"1 missing keys in the weights, first action_out_proj\.weight"):
        load_policy(broken)


def test_weights_of_another_shape_are_an_error(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    config["dit_config"]["intermediate_size"] = 80
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="cannot load the policy"):
        load_policy(broken)


def test_weights_that_are_not_numbers_are_an_error(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    weights["action_out_proj.bias"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="non-finite"):
        load_policy(broken)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("cameras"), "KeyError: 'cameras'"),
        (lambda d: d.update(schema=9), "schema 9"),
        (lambda d: d.update(image_size=64), "the network sees 32"),
        (lambda d: d["norm"]["state"]["mean"].pop(), "norm"),
        (lambda d: d.update(state_dim=99), "norm.state has 8 dimensions"),
    ],
)
def test_a_broken_robosteer_json_says_what_is_wrong(broken: Path, edit, message: str) -> None:
    data = json.loads((broken / "robosteer.json").read_text())
    edit(data)
    (broken / "robosteer.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=message):
        load_policy(broken)


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown policy 'no-such-thing'"):
        load_policy("no-such-thing")
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="'bert' model"):
        load_policy(tmp_path)
    with pytest.raises(UsageError, match="is no directory"):
        load_policy("nobody/nothing-here")


def test_grouped_query_attention_loads_too(tmp_path: Path) -> None:
    policy = load_policy(build_policy(tmp_path / "gqa", kv_heads=2, heads=6, layers=2))
    assert policy.spec.towers["expert"].kv_heads == 2
    assert policy.spec.towers["vlm"].dead == tuple((1, head) for head in range(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = policy.batch(random_observations(2))
    noise = policy.noise(2, 0)
    assert torch.equal(policy.denoise(batch, noise), policy.module.sample_actions(noise=noise, **batch))


def test_half_precision_weights_stay_half_precision(tiny_policy_dir: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny_policy_dir)
    policy.module.to(torch.bfloat16)
    policy.save(tmp_path / "half")
    half = load_policy(tmp_path / "half")
    assert half.module.dtype == torch.bfloat16
    assert half.fingerprint != load_policy(tiny_policy_dir).fingerprint
    batch, noise = half.batch(random_observations(2)), half.noise(2, 0)
    theirs = half.module.sample_actions(noise=noise, **{**batch, "state": batch["state"].bfloat16()})
    assert torch.equal(half.denoise(batch, noise), theirs)
    loss = half.loss(batch, torch.zeros(2, 6, 7), noise, torch.rand(2))
    assert torch.isfinite(loss).all()
