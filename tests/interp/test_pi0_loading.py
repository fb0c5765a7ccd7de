"""Promises of loading pi0: whoever wrote the directory, the network is that of its files, or an error names what is
wrong. Independent computations: transformers' own loading, and the formulas that LeRobot and openpi publish."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pi0_directories import as_lerobot, as_openpi, drop, edit_json, edit_weights, in_layout, state_dict
from random_policy import build_policy, random_observations
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PI0ForConditionalGeneration

import interp.policies.lerobot
from interp.attribution.direct import direct
from interp.edits import NOTHING, single
from interp.errors import UsageError
from interp.hooked import HookedVLA
from interp.policies import Policy, load_policy
from interp.policies.pi0_layouts import TWIN, from_transformers
from interp.sweep import Stage

CLOSE = {"atol": 2e-6, "rtol": 1e-5}  # weights that lie elsewhere in memory are summed by other kernels
KINDS = ["transformers", "lerobot", "openpi"]


@pytest.fixture(autouse=True)
def _without_lerobot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interp.policies.lerobot, "installed", lambda: False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_policy(tmp_path_factory.mktemp("source") / "transformers")


@pytest.fixture
def lerobot(source: Path, tmp_path: Path) -> Path:
    return as_lerobot(source, tmp_path / "lerobot")


@pytest.fixture
def openpi(source: Path, tmp_path: Path) -> Path:
    return as_openpi(source, tmp_path / "openpi")


def chunk(policy: Policy, n: int = 2) -> Tensor:
    """In the robot's units, of images that need no resizing, which the makers do differently."""
    with torch.no_grad():
        return policy.sample(policy.batch(random_observations(n)), policy.noise(n, seed=0).float())


# ---- what is loaded


@pytest.mark.parametrize("kind", ["lerobot", "openpi", "openpi of its trainer"])
def test_every_layout_is_the_same_policy(source: Path, tmp_path: Path, kind: str) -> None:
    make = as_lerobot if kind == "lerobot" else as_openpi
    directory = make(source, tmp_path / "p")
    if "trainer" in kind:
        (directory / "config.json").unlink()
        edit_json(directory / "robosteer.json", network={**network(directory), "chunk_size": 6})
    policy, expected = load_policy(directory), load_policy(source)
    theirs = state_dict(source)
    ours = policy.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert policy.spec.towers == expected.spec.towers
    assert policy.spec.cameras == ("front", "wrist")
    assert policy.spec.spans == expected.spec.spans
    assert (policy.spec.state_dim, policy.spec.action_dim, policy.spec.horizon) == (8, 7, 6)
    # Both makers end a prompt by a line break, which this vocabulary does not have.
    torch.testing.assert_close(chunk(policy), chunk(expected), **CLOSE)


def network(directory: Path) -> dict:
    return json.loads((directory / "robosteer.json").read_text())["network"]


def test_buffers_that_no_file_holds_are_those_of_transformers(source: Path) -> None:
    """Rotary frequencies, position ids: the network is built without memory, and these must come from somewhere."""
    theirs = dict(PI0ForConditionalGeneration.from_pretrained(source, local_files_only=True).named_buffers())
    ours = dict(load_policy(source).module.named_buffers())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("layout", ["lerobot", "openpi"])
def test_word_embeddings_under_either_name_or_both(source: Path, tmp_path: Path, layout: str) -> None:
    directory = in_layout(layout, tmp_path)
    given, other = TWIN[layout]
    edit_weights(directory, lambda t: t.update({other: t[given].clone()}))
    both = load_policy(directory)
    edit_weights(directory, drop(given))
    one = load_policy(directory)
    assert both.fingerprint == one.fingerprint

    def contradict(tensors: dict[str, Tensor]) -> None:
        tensors[given] = tensors[other] + 1

    edit_weights(directory, contradict)
    if layout == "lerobot":  # whose pi0, from 0.5 on, never reads nor trains lm_head
        assert load_policy(directory).fingerprint == both.fingerprint
        return
    with pytest.raises(UsageError, match="same tensor") as raised:
        load_policy(directory)
    assert other in str(raised.value) or given in str(raised.value)


def test_the_experts_words_may_be_left_out_for_nothing_reads_them(openpi: Path) -> None:
    expected = chunk(load_policy(openpi))
    edit_weights(openpi, drop("paligemma_with_expert.gemma_expert.lm_head.weight"))
    policy = load_policy(openpi)
    assert policy.module.get_parameter("model.dit.embed_tokens.weight").abs().max() == 0
    torch.testing.assert_close(chunk(policy), expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_parts(kind: str, tmp_path: Path) -> None:
    directory = in_layout(kind, tmp_path)
    expected = load_policy(directory).fingerprint
    split(directory)
    assert load_policy(directory).fingerprint == expected
    (directory / "part-1.safetensors").unlink()
    with pytest.raises(UsageError, match=r"names part-1\.safetensors, which is not there"):
        load_policy(directory)


def split(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    parts = {f"part-{at}.safetensors": names[at::2] for at in range(2)}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, directory / file, metadata={"format": "pt"})
    index = {name: file for file, own in parts.items() for name in own}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (directory / "model.safetensors").unlink()


def test_a_lerobot_that_cannot_run_its_pi0_leaves_it_to_transformers(
    lerobot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeRobot 0.4 on stock transformers, which lacks the branch that it asks for."""
    monkeypatch.setattr(interp.policies.lerobot, "installed", lambda: True)
    assert load_policy(lerobot).spec.family == "pi0"


# ---- precision


def test_released_half_precision_is_computed_as_openpi_does(openpi: Path, tmp_path: Path) -> None:
    """Towers in bfloat16; first layers of vision, norms of the Gemmas, and projections in float32."""
    edit_weights(openpi, lambda t: {name: tensor.bfloat16() for name, tensor in t.items()})
    policy = load_policy(openpi)
    dtypes = {name: tensor.dtype for name, tensor in policy.module.named_parameters()}
    singled = [name for name, dtype in dtypes.items() if dtype == torch.float32]
    # The selectors of openpi's to_bfloat16_for_selected_params, and all that lies outside of its two Gemmas.
    selectors = ("embeddings.patch_embedding", "embeddings.position_embedding", "input_layernorm",
                 "post_attention_layernorm", "model.norm", "language_model.norm", "dit.norm",
                 "embed_action_time", "action_out_proj")  # fmt: skip
    assert sorted(singled) == sorted(name for name in dtypes if any(each in name for each in selectors))
    assert policy.noise(1, 0).dtype == torch.float32

    edit_weights(openpi, lambda t: {name: tensor.float() for name, tensor in t.items()})
    exact = load_policy(openpi)
    half, full = chunk(policy), chunk(exact)
    assert half.dtype == torch.float32
    # bfloat16 has 8 bits: a few times 2 ** -8 over four steps, and not nothing.
    assert 0 < (half - full).abs().max() < 0.05 * full.abs().max()

    batch, x, time = policy.batch(random_observations(2)), policy.noise(6, 0), torch.rand(6)
    with torch.no_grad():
        shared = policy.velocity(batch, x, time, policy.prefix(batch))
        torch.testing.assert_close(
            shared, policy.velocity(batch, x, time, policy.prefix(batch, 3)), atol=0.05, rtol=0.05
        )
    policy.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    assert again.fingerprint == policy.fingerprint
    torch.testing.assert_close(chunk(again), half, **CLOSE)


def test_half_precision_of_lerobot_06_stays_what_it_is(lerobot: Path, tmp_path: Path) -> None:
    """Its files hold float32 of vision up to the projector, and of the Gemmas' norms; in bfloat16 all else."""
    exact = chunk(load_policy(lerobot))
    # The selectors of LeRobot 0.6.1's to_bfloat16_for_selected_params, of its two Gemmas.
    selectors = ("vision_tower", "multi_modal_projector", "input_layernorm", "post_attention_layernorm",
                 "model.norm")  # fmt: skip
    edit_weights(
        lerobot,
        lambda tensors: {
            name: tensor.float() if any(each in name for each in selectors) else tensor.bfloat16()
            for name, tensor in tensors.items()
        },
    )
    policy = load_policy(lerobot)
    dtypes = {name: tensor.dtype for name, tensor in policy.module.named_parameters()}
    halves = {name.partition("layers.")[0] for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert halves == {
        "model.vlm.language_model.", "model.vlm.language_model.embed_tokens.weight", "model.dit.",
        "model.dit.embed_tokens.weight",
    }  # fmt: skip
    assert all(dtypes[name] == torch.float32 for name in dtypes if "vision" in name or "projector" in name)
    assert dtypes["model.dit.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert policy.module.config.dtype == torch.bfloat16
    half = chunk(policy)
    assert 0 < (half - exact).abs().max() < 0.05 * exact.abs().max()
    policy.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    assert again.fingerprint == policy.fingerprint
    torch.testing.assert_close(chunk(again), half, **CLOSE)
    batch, noise = policy.batch(random_observations(2)), policy.noise(2, 0)
    with torch.no_grad():
        bare = policy.denoise(batch, noise)
        found = Stage(policy, batch).denoise(noise, [*single(policy, "vision"), NOTHING])[-1]
    assert torch.equal(found, bare[..., :7])


def test_released_half_precision_is_hooked_swept_and_read_out(openpi: Path) -> None:
    edit_weights(openpi, lambda t: {name: tensor.bfloat16() for name, tensor in t.items()})
    policy = load_policy(openpi)
    vla, batch, noise = HookedVLA(policy), policy.batch(random_observations(2)), policy.noise(2, 0)
    with torch.no_grad():
        bare = policy.denoise(batch, noise)[..., :7]
        for tower in policy.spec.towers:
            edits = [*single(policy, tower), NOTHING]
            assert torch.equal(Stage(policy, batch).denoise(noise, edits)[-1], bare)
        assert torch.equal(vla.run_with_hooks(batch, noise)[..., :7], policy.unnormalise_actions(bare))
        parts = direct(policy, batch, noise)
    # Parts are read out of a stream of 8 bits.
    torch.testing.assert_close(parts.total(), bare, atol=0.05 * float(bare.abs().max()), rtol=0)
    dead = policy.spec.tower("vlm").dead
    assert dead == tuple((2, head) for head in range(4))


def test_other_mixtures_of_precision_are_computed_in_the_widest(openpi: Path) -> None:
    first = "paligemma_with_expert.gemma_expert.model.layers.0.mlp.up_proj.weight"

    def one_half(tensors: dict[str, Tensor]) -> None:
        tensors[first] = tensors[first].bfloat16()

    edit_weights(openpi, one_half)
    policy = load_policy(openpi)
    assert {p.dtype for p in policy.module.parameters()} == {torch.float32}
    assert torch.isfinite(chunk(policy)).all()


# ---- statistics


def test_openpis_statistics_end_where_padding_begins(openpi: Path) -> None:
    policy = load_policy(openpi)
    file = openpi / "assets/physical-intelligence/tiny/norm_stats.json"
    actions = json.loads(file.read_text())["norm_stats"]["actions"]
    raw = torch.randn(3, 7)
    # openpi's transforms.Normalize and Unnormalize
    mean, std = (torch.tensor(actions[name][:7]) for name in ("mean", "std"))
    torch.testing.assert_close(policy.normalise_actions(raw), (raw - mean) / (std + 1e-6))
    torch.testing.assert_close(policy.unnormalise_actions(raw), raw * (std + 1e-6) + mean)

    edit_json(openpi / "robosteer.json", action_dim=5)
    assert load_policy(openpi).spec.action_dim == 5


@pytest.mark.parametrize("mode", ["MEAN_STD", "QUANTILES", "MIN_MAX", "QUANTILE10", "IDENTITY"])
def test_lerobots_statistics_normalise_as_lerobot_does(lerobot: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    low, high = torch.tensor(rng.normal(size=7)).float(), torch.tensor(rng.normal(size=7) + 6).float()
    high[3] = low[3]  # a dimension that never changes
    names = {"QUANTILES": ("q01", "q99"), "MIN_MAX": ("min", "max"), "QUANTILE10": ("q10", "q90")}.get(mode)
    statistics = load_file(lerobot / "norm.safetensors")
    if names:
        statistics.update({f"action.{name}": value for name, value in zip(names, (low, high), strict=True)})
    save_file(statistics, lerobot / "norm.safetensors")
    steps = json.loads((lerobot / "policy_preprocessor.json").read_text())["steps"]
    steps[-1]["config"]["norm_map"]["ACTION"] = mode
    edit_json(lerobot / "policy_preprocessor.json", steps=steps)
    policy, raw = load_policy(lerobot), torch.randn(4, 7)
    raw[:, 3] = low[3]
    # normalize_processor.py, `_apply_transform`
    mean, std = statistics["action.mean"], statistics["action.std"]
    denominator = torch.where(high == low, torch.tensor(1e-8), high - low)
    expected = {"MEAN_STD": (raw - mean) / (std + 1e-8), "IDENTITY": raw}.get(
        mode, 2 * (raw - low) / denominator - 1
    )
    torch.testing.assert_close(policy.normalise_actions(raw), expected)
    torch.testing.assert_close(policy.unnormalise_actions(expected), raw, atol=1e-6, rtol=1e-5)


# ---- faults


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["cut", "missing", "unexpected", "shape", "int8"])
def test_faults_are_named_as_the_file_names_them(kind: str, fault: str, tmp_path: Path) -> None:
    directory = in_layout(kind, tmp_path)
    file = directory / "model.safetensors"
    name = from_transformers(
        "model.dit.layers.1.self_attn.o_proj.weight", "saved" if kind == "transformers" else kind
    )
    assert name in load_file(file)
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-100])
        said = r"model\.safetensors is cut off or broken"
    elif fault == "missing":
        edit_weights(directory, drop(name))
        said = f"1 missing keys in the weights, first {name} "
    elif fault == "unexpected":
        edit_weights(directory, lambda t: t.update({f"{name}_scale": torch.ones(1)}))
        said = f"1 unexpected keys in the weights, first {name}_scale "
    elif fault == "shape":
        edit_weights(directory, lambda t: t.update({name: torch.ones(48, 31)}))
        said = f"1 mismatched keys in the weights, first {name} "
    else:
        edit_weights(directory, lambda t: t.update({name: torch.ones(48, 32, dtype=torch.int8)}))
        said = f"{name} is I8"
    with pytest.raises(UsageError, match=said) as raised:
        load_policy(directory)
    assert "\n" not in str(raised.value)


def _without(*names: str):
    def edit(directory: Path) -> None:
        for name in names:
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def _field(file: str, **fields: object):
    return lambda directory: edit_json(directory / file, **fields)


def _another_robot(directory: Path) -> None:
    shutil.copytree(directory / "assets/physical-intelligence", directory / "assets/other")


def _no_statistics(directory: Path) -> None:
    """As in lerobot/pi0_base."""
    save_file({"observation.images.front.mean": torch.ones(3)}, directory / "norm.safetensors")


@pytest.mark.parametrize(
    ("kind", "fault", "said"),
    [
        ("openpi", _without("assets"), "has no state_dim"),
        ("openpi", _another_robot, "assets of several robots"),
        (
            "openpi",
            _field("robosteer.json", network={"chunk_size": 6}),
            "heads of a vision tower of width 24",
        ),
        ("openpi", _field("robosteer.json", tokenizer="nowhere"), "no tokenizer in nowhere"),
        ("openpi", _field("robosteer.json", images="tensorflow"), "images 'tensorflow' is none of"),
        ("openpi", _field("config.json", action_horizon="six"), "config.json"),
        ("openpi", _without("model.safetensors"), r"no model\.safetensors"),
        ("lerobot", _without("policy_preprocessor.json"), "policy_preprocessor.json is missing"),
        ("lerobot", _without("norm.safetensors"), "its statistics"),
        ("lerobot", _no_statistics, "has no statistics of state"),
        ("lerobot", _field("policy_preprocessor.json", steps=["x"]), "is broken: AttributeError"),
        ("openpi", _field("robosteer.json", norm={"state": 3}), r"robosteer\.json is broken"),
        ("lerobot", _field("policy_preprocessor.json", steps=[]), "no normalizer_processor"),
        ("lerobot", _field("config.json", output_features={}), "no feature action"),
        ("lerobot", _field("config.json", tokenizer_max_length=0), "max_tokens"),
    ],
)
def test_what_a_directory_does_not_say_is_asked_for(kind: str, fault, said: str, tmp_path: Path) -> None:
    directory = in_layout(kind, tmp_path)
    fault(directory)
    with pytest.raises(UsageError, match=said) as raised:
        load_policy(directory)
    assert "\n" not in str(raised.value)


def test_a_chunk_length_is_not_guessed(openpi: Path) -> None:
    (openpi / "config.json").unlink()
    with pytest.raises(UsageError, match="how many actions a chunk has"):
        load_policy(openpi)


@pytest.mark.parametrize("converted", [True, False])
def test_openpis_robots_carry_out_whole_chunks(source: Path, tmp_path: Path, converted: bool) -> None:
    """Unless robosteer.json says otherwise; openpi's trainer writes no file that does."""
    directory = as_openpi(source, tmp_path / "openpi", converted)
    assert load_policy(directory).spec.execute == 6
    edit_json(directory / "robosteer.json", execute=2)
    assert load_policy(directory).spec.execute == 2


def test_pi05_is_refused_by_name(openpi: Path) -> None:
    edit_weights(openpi, lambda t: t.update({"time_mlp_in.weight": torch.ones(2)}))
    with pytest.raises(UsageError, match=r"pi0\.5"):
        load_policy(openpi)
