"""Promises of data parallelism: two processes are one training, only the first writes, and both stop together."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_kit import SMALL, events, run, weights

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import load_policy
from steering.ranks import Ranks

ROOT = Path(__file__).parents[2]
SCRIPT = """
import math, os, sys
from pathlib import Path
import torch; torch.set_num_threads(1)
sys.path[:0] = {path!r}
from training_kit import run
from interp.demos import Demonstrations
from interp.policies import load_policy

policy_dir, demos, out = sys.argv[1:]
rank, written = int(os.environ["RANK"]), []
if rank == 1:  # whatever the second process opens to write there is a broken promise
    def see(event, args):
        if event == "open" and args[1] and args[1][0] in "wax" and str(args[0]).startswith(out):
            written.append(args[0])
    sys.addaudithook(see)

def train(name, broken=False):
    policy = load_policy(policy_dir)
    if broken:
        loss, calls = policy.loss, iter(range(100))
        policy.loss = lambda *a: loss(*a) * (math.nan if next(calls) == 4 else 1)
    return run(policy, Demonstrations.open(demos), Path(out, name)).policy.fingerprint

print(f"rank {{rank}} has {{train('two')}}", flush=True)
try:
    train("broken", broken=rank == 1)
except Exception as error:
    print(f"rank {{rank}}: {{error}}", flush=True)
print(f"rank {{rank}} wrote {{written}}", flush=True)
"""


@pytest.fixture(scope="module")
def launched(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Two processes on this machine, started as docs/recipes.md says; their directory and what they said."""
    out, tests = tmp_path_factory.mktemp("parallel"), ROOT / "tests"
    script = out / "train.py"
    script.write_text(
        SCRIPT.format(path=[str(p) for p in (ROOT, tests, tests / "steering", tests / "interp")])
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", str(script), str(tiny_policy_dir), str(demos.path), str(out)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    return out, child.stdout


def test_two_processes_are_one_training(
    tiny_policy_dir: Path, demos: Demonstrations, launched: tuple[Path, str], tmp_path: Path
) -> None:
    out, said = launched
    torch.set_num_threads(1)
    run(load_policy(tiny_policy_dir), demos, tmp_path / "one")
    one, two = ([e["loss"] for e in events(d)] for d in (tmp_path / "one", out / "two"))
    assert len(two) == SMALL.steps
    # sums over the same squared errors in another order: float32 rounding
    np.testing.assert_allclose(two, one, rtol=2e-5)
    ours, theirs = weights(tmp_path / "one"), weights(out / "two")
    for name in ours:
        # Adam's first steps divide by the root of tiny second moments: rounding grows to a share of lr = 2e-3
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=2e-5)
    summary = json.loads((out / "two" / "summary.json").read_text())
    assert summary["processes"] == 2
    for rank in (0, 1):  # both go on with the saved policy
        assert f"rank {rank} has {summary['policy']}" in said


def test_only_the_first_process_writes(launched: tuple[Path, str]) -> None:
    assert "rank 1 wrote []" in launched[1]


def test_a_loss_that_is_not_a_number_in_one_process_stops_both(launched: tuple[Path, str]) -> None:
    out, said = launched
    for rank in (0, 1):
        assert f"rank {rank}: the loss is nan at step 5: training stopped, step 4 is kept in" in said
    assert (out / "broken" / "checkpoint.safetensors").is_file()
    assert not (out / "broken" / "policy").exists()


def test_one_process_touches_nothing() -> None:
    ranks = Ranks(torch.device("cpu"))
    gradient = torch.ones(3)
    assert ranks.add_up([gradient], 1.5, True) == (1.5, True)
    assert torch.equal(gradient, torch.ones(3))
    assert (ranks.count, ranks.first, ranks.share(4)) == (1, True, slice(0, None, 1))


def test_a_batch_smaller_than_the_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(torch.device("cpu"))
    monkeypatch.setattr(Ranks, "count", 4)
    with pytest.raises(UsageError, match="batch 3 cannot be shared by 4 processes"):
        ranks.share(3)
