"""Promises of retain: exact averages of base and finetuned policy, each an ordinary policy that says what it is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_kit import run, weights

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import load_policy
from steering.retain import retain


def test_every_weight_is_the_average_that_was_asked_for(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    run(load_policy(tiny_policy_dir), demos, tmp_path / "aligned")
    none, quarter, all_ = retain(tmp_path / "aligned", [0, 0.25, 1])
    assert [d.name for d in (none, quarter, all_)] == [f"aligned-retain-{a}" for a in ("0", "0.25", "1")]
    base, tuned = load_file(tiny_policy_dir / "model.safetensors"), weights(tmp_path / "aligned")
    for name in base:
        assert torch.equal(weights(none)[name], base[name])
        assert torch.equal(weights(all_)[name], tuned[name])
        mean = (0.75 * base[name].double() + 0.25 * tuned[name].double()).float()
        torch.testing.assert_close(weights(quarter)[name], mean, rtol=1e-6, atol=1e-8)  # one rounding
    summary = json.loads((quarter / "summary.json").read_text())
    assert summary["policy"] == load_policy(quarter / "policy").fingerprint
    assert summary["recipe"]["name"] == "retain"
    assert (summary["recipe"]["of"], summary["recipe"]["coefficient"]) == ("aligned", 0.25)


def test_a_sweep_is_made_finer_without_repeating_it_and_never_mixes_trainings(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    run(load_policy(tiny_policy_dir), demos, tmp_path / "aligned")
    (half,) = retain(tmp_path / "aligned", [0.5])
    written = (half / "summary.json").stat().st_mtime_ns
    assert retain(tmp_path / "aligned", [0.5, 0.75])[0] == half
    assert (half / "summary.json").stat().st_mtime_ns == written
    (tmp_path / "aligned").rename(tmp_path / "first")
    run(load_policy(tiny_policy_dir), demos, tmp_path / "aligned", seed=1)
    with pytest.raises(UsageError, match=r"aligned-retain-0.5 holds an average of pi0-\w+, not of pi0-\w+"):
        retain(tmp_path / "aligned", [0.5])


def test_what_cannot_be_averaged_is_refused(
    tiny_policy_dir: Path, other_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"coefficient 1.5: .*from 0 \(base\) to 1"):
        retain(tmp_path, [1.5])
    with pytest.raises(UsageError, match="no finished training to average"):
        retain(tmp_path / "none", [0.5])
    run(load_policy(tiny_policy_dir), demos, tmp_path / "aligned")
    summary = json.loads((tmp_path / "aligned" / "summary.json").read_text())
    summary["base"]["source"] = str(other_policy_dir)
    (tmp_path / "aligned" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UsageError, match="was trained with pi0-"):
        retain(tmp_path / "aligned", [0.5])
