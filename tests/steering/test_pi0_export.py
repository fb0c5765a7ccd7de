"""Promises of exports for LeRobot and openpi: all that the policy does is in files that have their names and schemas.

That LeRobot's own code acts alike on them is promised in tests/lerobot/test_lerobot_pi0.py.
"""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_kit import answer_here
from safetensors import safe_open
from safetensors.torch import load_file
from training_kit import HEADS, SMALL

import robosteer
from interp.capture import capture
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import Observation, load_policy
from interp.policies.pi0_layouts import from_transformers
from interp.policies.preprocessing import Statistics
from interp.runs import Run
from steering import export as export_module
from steering import pi0_files
from steering.export import ExportError, Names, export
from steering.finetune import finetune
from steering.pi0_files import Gemma, Stock
from steering.slices import attach
from steering.verify import chunks_of

BASE = {"base": {"source": "random", "fingerprint": "pi0-base"}}


@pytest.fixture
def tuned(tiny_policy_dir: Path) -> Any:
    """A policy whose weights are on no disk."""
    policy = load_policy(tiny_policy_dir)
    slices = attach(policy, HEADS.heads)
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    slices.merge()
    return policy


@pytest.mark.parametrize("form", ["lerobot", "openpi"])
def test_a_fresh_process_acts_alike_on_what_was_written(
    form: Any, tuned: Any, observations: list[Observation], tiny_policy_dir: Path, tmp_path: Path
) -> None:
    done = export(tuned, tmp_path / "out" / form, observations, BASE, form=form)
    assert done.difference <= 1e-6
    again = load_policy(tmp_path / "out" / form)
    assert again.fingerprint == done.fingerprint
    np.testing.assert_allclose(
        chunks_of(again, observations, 0), chunks_of(tuned, observations, 0), atol=1e-6
    )
    base = chunks_of(load_policy(tiny_policy_dir), observations, 0)
    assert not np.allclose(chunks_of(again, observations, 0), base, atol=1e-3)
    assert again.spec.action_names == tuned.spec.action_names
    card = json.loads((done.directory / "card.json").read_text())
    assert (card["form"], card["policy"], card["notes"]) == (form, done.fingerprint, list(done.notes))
    assert all(note in (done.directory / "README.md").read_text() for note in done.notes)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [form]


@pytest.mark.parametrize(("form", "prefix"), [("lerobot", "model."), ("openpi", "")])
@pytest.mark.usefixtures("at_once")
def test_weights_have_their_names_and_every_bit(
    form: Any, prefix: str, tuned: Any, observations: list[Observation], tmp_path: Path
) -> None:
    """Of several precisions: a bfloat16 tower among float32 parts stays as it is."""
    tuned.module.model.vlm.multi_modal_projector.to(torch.bfloat16)
    pi0_files.write_weights(tuned.module, tmp_path / "model.safetensors", form)
    stored = load_file(tmp_path / "model.safetensors")
    own = {from_transformers(name, form): t for name, t in tuned.module.state_dict().items()}
    assert stored.keys() == own.keys()
    assert all(t.dtype == own[name].dtype and torch.equal(t, own[name]) for name, t in stored.items())
    both = f"{prefix}paligemma_with_expert"
    words = f"{both}.paligemma.model.language_model.embed_tokens.weight"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", words: f"{both}.paligemma.lm_head.weight"}
    assert words not in stored


@pytest.mark.usefixtures("at_once")
def test_lerobots_files_say_what_robosteer_json_says(
    tuned: Any, observations: list[Observation], tmp_path: Path
) -> None:
    """Step names as in LeRobot's processor registry; statistics under its names; no new line that was not trained."""
    done = export(
        tuned, tmp_path / "out", observations, BASE, form="lerobot", names=Names(tokenizer="me/words")
    )
    about = tuned.preprocessing
    config = json.loads((tmp_path / "out/config.json").read_text())
    inputs = config["input_features"]
    assert list(inputs) == ["observation.images.front", "observation.images.wrist", "observation.state"]
    assert inputs["observation.images.front"] == {"type": "VISUAL", "shape": [3, 32, 32]}
    assert config["output_features"] == {"action": {"type": "ACTION", "shape": [about.action_dim]}}
    sizes = {
        "chunk_size": 6,
        "n_action_steps": 2,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "num_inference_steps": 4,
    }
    sizes |= {"tokenizer_max_length": 10, "image_resolution": [32, 32], "type": "pi0", "dtype": "float32"}
    assert {name: config[name] for name in sizes} == sizes
    steps = {
        part: json.loads((tmp_path / f"out/policy_{part}.json").read_text())["steps"]
        for part in ("preprocessor", "postprocessor")
    }
    assert [step["registry_name"] for step in steps["preprocessor"]] == [
        "rename_observations_processor", "to_batch_processor", "tokenizer_processor", "device_processor",
        "normalizer_processor",
    ]  # fmt: skip
    assert [step["registry_name"] for step in steps["postprocessor"]] == [
        "unnormalizer_processor", "device_processor",
    ]  # fmt: skip
    assert steps["preprocessor"][2]["config"]["tokenizer_name"] == "me/words"
    for step in (steps["preprocessor"][-1], steps["postprocessor"][0]):
        found = load_file(tmp_path / "out" / step["state_file"])
        for feature, stats in (("observation.state", about.state), ("action", about.action)):
            torch.testing.assert_close(found[f"{feature}.mean"], torch.tensor(stats.mean))
            torch.testing.assert_close(found[f"{feature}.std"], torch.tensor(stats.std))
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in done.directory.iterdir())


@pytest.mark.usefixtures("at_once")
def test_the_new_line_and_the_tokenizer_of_a_released_policy(
    tuned: Any, observations: list[Observation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.preprocessing = replace(tuned.preprocessing, prompt_suffix="\n")
    words = {**tuned.tokenizer.get_vocab(), "<loc0000>": 256000, "<seg127>": 257151}
    monkeypatch.setattr(tuned.tokenizer, "get_vocab", lambda: words)
    done = export(tuned, tmp_path / "out", observations, BASE, form="lerobot")
    steps = json.loads((tmp_path / "out/policy_preprocessor.json").read_text())["steps"]
    assert steps[2]["registry_name"] == "pi0_new_line_processor"
    assert steps[3]["config"]["tokenizer_name"] == "google/paligemma-3b-pt-224"
    assert any("licence" in note for note in done.notes)


@pytest.mark.usefixtures("at_once")
def test_openpis_statistics_normalise_as_the_policy_does(
    tuned: Any, observations: list[Observation], tmp_path: Path
) -> None:
    """openpi divides by std + 1e-6 (transforms.py), the policy by std + 1e-8."""
    names = Names(asset="me/robot")
    done = export(tuned, tmp_path / "out", observations, BASE, form="openpi", names=names)
    stats = json.loads((tmp_path / "out/assets/me/robot/norm_stats.json").read_text())["norm_stats"]
    assert stats.keys() == {"state", "actions"}
    for theirs, ours in (("state", tuned.preprocessing.state), ("actions", tuned.preprocessing.action)):
        assert stats[theirs]["mean"] == list(ours.mean)
        divisor = np.array(stats[theirs]["std"], np.float32) + np.float32(1e-6)
        assert np.array_equal(divisor, np.array(ours.std, np.float32) + np.float32(1e-8))
    assert "cameras as openpi's images: front is base_0_rgb, wrist is left_wrist_0_rgb" in done.notes
    assert any("action_horizon 6, asset_id me/robot" in note for note in done.notes)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("form", ["lerobot", "openpi"])
def test_a_dimension_without_a_range_is_exported(
    form: Any, tuned: Any, observations: list[Observation], tmp_path: Path
) -> None:
    """Of a policy with extremes or quantiles: as a mean and a std that both libraries' floors leave room for."""
    low, high = ((0.5, *[end] * 7) for end in (-1.0, 2.0))
    state, action = (Statistics.of_range(low[:dim], high[:dim]) for dim in (8, 7))
    tuned.preprocessing = replace(tuned.preprocessing, state=state, action=action)
    seen = [replace(each, state=np.r_[np.float32(0.5), each.state[1:]]) for each in observations]
    export(tuned, tmp_path / "out", seen, BASE, form=form)
    chunks = chunks_of(load_policy(tmp_path / "out"), seen, 0)
    np.testing.assert_allclose(chunks[..., 0], 0.5, atol=1e-4)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("images", "warned"), [("openpi", True), ("pillow", False)])
@pytest.mark.parametrize("form", ["lerobot", "openpi"])
def test_whoever_gets_a_policy_that_openpi_trained_is_told_of_deltas(
    form: Any, images: Any, warned: bool, tuned: Any, observations: list[Observation], tmp_path: Path
) -> None:
    """No file of a checkpoint says whether its actions are deltas, so the card says who adds the state."""
    tuned.preprocessing = replace(tuned.preprocessing, images=images)
    export(tuned, tmp_path / "out", observations, BASE, form=form)
    assert ("DeltaActions" in (tmp_path / "out/README.md").read_text()) is warned


@pytest.mark.usefixtures("at_once")
def test_whoever_gets_a_policy_of_deltas_is_told_how_lerobot_runs_it(
    tuned: Any, observations: list[Observation], tmp_path: Path
) -> None:
    tuned.preprocessing = replace(tuned.preprocessing, delta_actions=(True, *[False] * 6))
    done = export(tuned, tmp_path / "out", observations, BASE, form="lerobot")
    assert any("--inference.type=rtc" in note and "0.5.1" in note for note in done.notes)


@pytest.mark.usefixtures("at_once")
def test_cameras_of_another_size_are_measured(
    tuned: Any, observations: list[Observation], tmp_path: Path
) -> None:
    """LeRobot resizes by its own code: how much actions differ is said, unless the policy was trained on that."""
    rng = np.random.default_rng(0)
    larger = [
        replace(each, images={c: rng.integers(0, 256, (48, 64, 3), np.uint8) for c in each.images})
        for each in observations
    ]
    done = export(tuned, tmp_path / "a", larger, BASE, form="lerobot")
    inputs = json.loads((tmp_path / "a/config.json").read_text())["input_features"]
    assert inputs["observation.images.wrist"]["shape"] == [3, 48, 64]
    assert any("actions differ by up to" in note for note in done.notes)
    for images, other in (("lerobot", "LeRobot from 0.5 on"), ("lerobot-0.5", "LeRobot 0.4")):
        tuned.preprocessing = replace(tuned.preprocessing, images=images)
        done = export(tuned, tmp_path / images, larger, BASE, form="lerobot")
        (note,) = (note for note in done.notes if "actions differ by up to" in note)
        assert note.startswith(f"{other} resizes cameras")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("form", ["lerobot", "openpi"])
def test_a_wrong_export_is_noticed_and_nothing_is_left(
    form: Any, tuned: Any, observations: list[Observation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit of a weight flips on its way to the disk; or statistics are those of another robot."""
    write = pi0_files.write_weights

    def corrupting(module: Any, path: Path, layout: Any) -> None:
        write(module, path, layout)
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)

    for file in ("steering.pi0_lerobot", "steering.pi0_openpi"):
        monkeypatch.setattr(f"{file}.write_weights", corrupting)
    with pytest.raises(UsageError, match="does not hold the weights"):
        export(tuned, tmp_path / "out", observations, BASE, form=form)
    monkeypatch.undo()
    monkeypatch.setattr(export_module, "ask_fresh_process", answer_here)
    for file in ("steering.pi0_lerobot", "steering.pi0_openpi"):
        monkeypatch.setattr(
            f"{file}.rescaled", lambda stats, floor: {"mean": list(stats.mean), "std": [2.0] * len(stats.std)}
        )
    with pytest.raises(ExportError, match="differs from the one in memory"):
        export(tuned, tmp_path / "out", observations, BASE, form=form)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("form", ["lerobot", "openpi"])
def test_half_precision_acts_as_lerobot_and_openpi_compute_it(
    form: Any, tuned: Any, observations: list[Observation], tmp_path: Path
) -> None:
    """They keep norms and projections in float32: the weights are the policy's, actions differ by its rounding."""
    full = chunks_of(tuned, observations, 0)
    for parameter in tuned.module.parameters():  # not its buffers: loaded in bfloat16, they are float32
        parameter.data = parameter.data.to(torch.bfloat16)
    half = chunks_of(tuned, observations, 0)
    done = export(tuned, tmp_path / "out", observations, BASE, form=form)
    assert done.difference <= 1e-6 * np.abs(full).max()
    assert any("bfloat16's rounding" in note for note in done.notes)
    assert np.array_equal(chunks_of(tuned, observations, 0), half)  # the policy itself stays as it is
    assert {parameter.dtype for parameter in tuned.module.parameters()} == {torch.bfloat16}
    again = chunks_of(load_policy(tmp_path / "out"), observations, 0)
    assert 0 < np.abs(again - half).max() <= 2 * np.abs(half - full).max()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("form", "told"), [("lerobot", False), ("openpi", True)])
def test_that_openpi_casts_what_is_float32_is_said(
    form: Any, told: bool, tuned: Any, observations: list[Observation], tmp_path: Path
) -> None:
    """Its create_trained_policy casts whatever the file holds; LeRobot computes in what its config.json says."""
    done = export(tuned, tmp_path / "out", observations, BASE, form=form)
    assert any("openpi casts to bfloat16 what it loads" in note for note in done.notes) == told
    assert any("bfloat16" in note for note in done.notes) == told


# ---- refusals


@pytest.mark.usefixtures("at_once")
def test_what_lerobot_or_openpi_cannot_do_is_one_line(
    tuned: Any, observations: list[Observation], tmp_path: Path
) -> None:
    def refusal(form: Any, names: Names | None = None, **changes: Any) -> str:
        before = tuned.preprocessing
        tuned.preprocessing = replace(before, **changes)
        try:
            with pytest.raises(UsageError) as raised:
                export(tuned, tmp_path / "out", observations, BASE, form=form, names=names)
        finally:
            tuned.preprocessing = before
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "prompt_suffix '?'" in refusal("lerobot", prompt_suffix="?")
    assert "--asset-id '../up'" in refusal("openpi", Names(asset="../up"))
    tuned.module.config.max_period = 5.0
    assert "openpi's pi0 has 0.004 to 4.0" in refusal("openpi")
    tuned.module.half()
    assert "float32 or bfloat16" in refusal("lerobot")
    tuned.spec = replace(tuned.spec, family="lerobot/smolvla")
    assert "is lerobot/smolvla: use merged" in refusal("lerobot")
    assert "is lerobot/smolvla: use merged" in refusal("openpi")
    assert not list(tmp_path.iterdir())


# ---- the verb


@pytest.mark.usefixtures("at_once")
def test_the_verb_exports_the_base_the_policy_and_the_adapter(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Run = capture(
        load_policy(tiny_policy_dir),
        demos,
        tmp_path / "run",
        towers=("expert",),
        thumbnails=False,
        progress=False,
    )
    finetune(
        load_policy(tiny_policy_dir), demos, SMALL, run.path / "jobs/aligned", heads=HEADS, progress=False
    )
    capsys.readouterr()

    def say(*words: str) -> tuple[int, str, str]:
        status = robosteer.main(["export", "--run", str(run.path), *words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    status, _, error = say("--format", "lerobot-peft")
    assert status == 2
    assert "export --name base --format lerobot" in error.strip().splitlines()[-1]
    for words, directory in (
        (("--name", "base", "--format", "lerobot"), "base-lerobot"),
        (("--format", "lerobot-peft"), "aligned-lerobot-peft"),  # finds the base beside it
        (("--format", "lerobot", "--tokenizer", "me/words"), "aligned-lerobot"),
        (("--format", "openpi", "--asset-id", "droid"), "aligned-openpi"),
    ):
        status, out, error = say(*words)
        assert status == 0, error
        assert out.startswith(f"{run.path / 'exports' / directory}: ")
        assert "frames agree within" in out
    assert "note: LeRobot cannot build this network" in say("--format", "lerobot", "--overwrite")[1]
    assert (run.path / "exports/aligned-openpi/assets/droid/norm_stats.json").is_file()


def test_the_commands_of_the_docs_parse() -> None:
    docs = Path(robosteer.__file__).parent / "docs"
    lines = [
        line
        for page in ("export.md", "lerobot.md")
        for line in (docs / page).read_text().splitlines()
        if line.startswith("robosteer export ")
    ]
    assert len(lines) >= 8
    for line in lines:
        assert robosteer.build_parser().parse_args(shlex.split(line, comments=True)[1:]).verb == "export"


def test_a_network_of_stock_size_is_exported_without_a_warning(
    tuned: Any, observations: list[Observation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were these sizes the stock ones, LeRobot's and openpi's names would be in the configurations."""
    monkeypatch.setattr(export_module, "ask_fresh_process", answer_here)
    gemma = Gemma(48, 3, 64, 4, 1, 8)
    stock = Stock({"gemma_2b": gemma}, (24, 2, 2, 48, 8), 17)
    monkeypatch.setattr(pi0_files, "STOCK", stock)
    for form in ("lerobot", "openpi"):
        done = export(tuned, tmp_path / form, observations, BASE, form=form)  # type: ignore[arg-type]
        assert not any("cannot build" in note for note in done.notes)
        config = json.loads((tmp_path / form / "config.json").read_text())
        assert config["paligemma_variant"] == config["action_expert_variant"] == "gemma_2b"
