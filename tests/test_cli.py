"""The command line: the whole loop on the shipped policy, and bad input in one line with nothing left behind."""

import argparse
import errno
import json
import os
import shlex
import socket
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

import robosteer
from interp.demos import Demonstrations
from interp.policies import load_policy
from interp.verbs import command_of
from steering.export import ExportError
from steering.rollouts import RolloutError
from testbed.demos import record

ROOT = Path(robosteer.__file__).parent


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "robosteer.py"), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT
    )


def ok(*words: object) -> str:
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*words: object, **environment: str) -> str:
    """The one line on stderr of a command that must end with status 2."""
    done = run(*words, **environment)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """A run that went once around, by command."""
    folder = tmp_path_factory.mktemp("loop")
    demos, path = folder / "demos", folder / "runs/mug"
    ok("record", "--task", "marker-in-mug", "--episodes", 3, "--demos", demos, "--workers", 1)
    ok("capture", "--demos", demos, "--run", path)
    ok("rank", "--run", path, "--k", 5, 10)
    ok("select", "--run", path, "--top", 6, "--name", "chosen")
    return demos, path


@pytest.mark.slow
def test_the_loop_from_demonstrations_to_checkpoint(loop):
    demos, path = loop
    ok("evaluate", "--run", path, "--task", "press", "--n", 2, "--name", "base")
    ok("finetune", "--run", path, "--heads", "chosen", "--steps", 3)
    tuned = path / "jobs/aligned/policy"
    ok("evaluate", "--run", path, "--policy", tuned, "--task", "press", "--n", 2, "--against", "base")
    ok("export", "--run", path)
    ok("export", "--run", path, "--format", "peft")
    assert "aligned" in ok("compare", path)
    base, result = (json.loads((path / f"results/{name}.json").read_text()) for name in ("base", "aligned"))
    assert [e["seed"] for e in base["episodes"]] == [e["seed"] for e in result["episodes"]]
    assert result["paired"]["against"] == "base"
    heads = json.loads((path / "selections/chosen.json").read_text())["heads"]
    d_head, width = 16, 128  # tiny-pi0's
    assert sum(result["trainable_parameters"].values()) == len(heads) * 2 * d_head * width
    # The exported policy acts like the finetuned one and unlike the base.
    observation = [Demonstrations.open(demos).observation(0)]
    chunks = {}
    for name, source in {"export": path / "exports/aligned", "tuned": tuned, "base": "tiny-pi0"}.items():
        policy = load_policy(source)
        chunks[name] = policy.sample(policy.batch(observation), policy.noise(1, 0)).detach().numpy()
    assert np.allclose(chunks["export"], chunks["tuned"], atol=1e-6)
    assert not np.allclose(chunks["export"], chunks["base"], atol=1e-6)


@pytest.mark.parametrize(
    "words",
    [
        ["--demos", "my demos", "--run", "runs/mug"],
        ["--demos", "d", "--run", "r", "--towers", "expert", "vlm", "--seed", "7", "--footage"],
        ["--demos", "d", "--run", "r", "--policy", "a b's", "--footage", "twins", "--device", "cuda:1"],
    ],
)
def test_the_command_that_a_run_keeps_repeats_it(words):
    """Through a shell, too."""
    asked = robosteer.build_parser().parse_args(["capture", *words])
    program, *repeated = shlex.split(shlex.join(command_of(asked)))
    assert program == "robosteer"
    assert robosteer.build_parser().parse_args(repeated) == asked


def test_every_verb_explains_itself():
    verbs = {function.__name__ for function, _ in robosteer.VERBS}
    assert verbs >= {"capture", "rank", "factors", "attribute", "patch", "explain", "compare", "serve", "app"}
    for verb in verbs:
        assert "usage: robosteer" in ok(verb, "--help")
    assert silent(robosteer.build_parser()) == []


def silent(parser: argparse.ArgumentParser) -> list[str]:
    """Options, of this parser and those below it, that do not say what they are."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [option for below in action.choices.values() for option in silent(below)]
        elif not action.help:
            found.append(f"{parser.prog} {action.dest}")
    return found


def test_benchmarks_are_listed_and_run():
    listed = [line.split()[0] for line in ok("bench").splitlines()]
    assert {"training", "patching", "knn"} <= set(listed)
    assert "browser" not in listed  # a part of others
    assert "usage: hooks.py" in ok("bench", "hooks", "--help")
    assert "did you mean hooks" in refused("bench", "hook") or "hooks" in refused("bench", "hook")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"run": "runs/mug"}, "goes on from here"),
        ({"run": None}, "nothing is kept"),
        ({"run": "runs/mug", "again": True}, "begins anew"),
    ],
)
def test_a_stop_says_what_is_kept(monkeypatch, capsys, asked, said):
    def stopped(arguments: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    words = argparse.Namespace(run_verb=stopped, verb="evaluate", **asked)
    monkeypatch.setattr(robosteer.Parser, "parse_args", lambda *_: words)
    assert robosteer.main(["evaluate"]) == 130
    assert said in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = "import sys, robosteer; robosteer.build_parser().format_help(); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout
        == "False\n"
    )


def test_unknown_names_list_the_known_ones(loop, tmp_path):
    demos, path = loop
    assert "marker-in-mug" in refused("record", "--task", "fly", "--demos", tmp_path / "d")
    assert "tiny-pi" in refused("evaluate", "--policy", "tiny-pi", "--task", "pick", "--n", 1)
    assert "pick" in refused("evaluate", "--task", "pik", "--n", 1)
    assert "expert" in refused("capture", "--demos", demos, "--run", tmp_path / "r", "--towers", "expertt")
    assert "expert" in refused("select", "--run", path, "--tower", "exprt")
    assert "L9H0" in refused("select", "--run", path, "--heads", "expert.L9H0")
    assert "vlm.L7H0" in refused("select", "--run", path, "--heads", "vlm.L7H0"), "a dead head"
    assert "lora" in refused("finetune", "--run", path, "--recipe", "loraa")
    assert "light" in refused("evaluate", "--task", "pick", "--n", 1, "--vary", "lihgt=2")
    assert "demos" in refused("capture", "--run", tmp_path / "r")
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "r").exists()


def test_heads_of_another_policy_are_refused_with_both_fingerprints(loop, tmp_path):
    _, path = loop
    record = json.loads((path / "selections/chosen.json").read_text())
    ours, record["policy"] = record["policy"], "pi0-0123456789ab"
    (tmp_path / "other.json").write_text(json.dumps(record))
    line = refused("finetune", "--run", path, "--heads", tmp_path / "other.json", "--name", "other")
    assert "pi0-0123456789ab" in line
    assert ours in line
    assert not (path / "jobs/other").exists()


def test_a_run_of_other_demonstrations_is_refused(loop, tmp_path):
    _, path = loop
    other = record("press", 2, tmp_path / "press", workers=1, progress=False)
    before = (path / "run.json").read_bytes()
    assert "choose another name" in refused("capture", "--demos", other, "--run", path)
    assert (path / "run.json").read_bytes() == before


def test_demonstrations_without_a_needed_camera_are_refused(tmp_path):
    """A dataset whose wrist camera has another name."""
    import pyarrow.parquet as pq

    demos = record("press", 2, tmp_path / "press", workers=1, progress=False)
    for file in (demos / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        names = [n.replace("images.wrist", "images.hand") for n in table.column_names]
        pq.write_table(table.rename_columns(names).replace_schema_metadata(None), file)
    info = demos / "meta/info.json"
    info.write_text(info.read_text().replace("images.wrist", "images.hand"))
    assert "wrist" in refused("capture", "--demos", demos, "--run", tmp_path / "run")
    assert not (tmp_path / "run/run.json").exists()


def test_a_missing_gl_library_is_named(tmp_path):
    """As on a machine whose loader finds no OSMesa."""
    code = "import ctypes.util, sys; ctypes.util.find_library = lambda name: None; import robosteer; "
    words = ["record", "--task", "pick", "--workers", "1", "--demos", str(tmp_path / "d")]
    code += f"sys.exit(robosteer.main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "libosmesa6" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "d").exists()


def test_a_file_that_cannot_be_is_one_line_and_a_bug_is_a_traceback(monkeypatch, capsys):
    def failing(error):
        def compare(arguments):
            raise error

        monkeypatch.setattr(robosteer, "VERBS", ((compare, lambda parser: None),))
        return robosteer.main(["compare"])

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write(2) says it, without a name
    assert failing(full) == 2
    assert capsys.readouterr().err == "robosteer compare: No space left on device\n"
    assert failing(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/x")) == 2
    assert capsys.readouterr().err == "robosteer compare: /root/x: Permission denied\n"
    with pytest.raises(OSError, match="Bad file descriptor"):
        failing(OSError(errno.EBADF, os.strerror(errno.EBADF)))
    monkeypatch.undo()
    record = ROOT / "benchmarks/results/reproduce/pick-cube/base.json"
    assert robosteer.main(["compare", str(record), "--out", "/proc/nowhere"]) == 2
    assert capsys.readouterr().err == "robosteer compare: /proc/nowhere: No such file or directory\n"


@pytest.mark.parametrize(
    ("option", "value", "fewer"),
    [
        ("workers", 4, ", with fewer --workers than 4 if"),
        ("processes", 2, "--processes than 2"),
        ("n", 1, "again"),
    ],
)
def test_what_fails_through_no_fault_of_the_users_is_one_line_and_status_1(
    monkeypatch, capsys, option, value, fewer
):
    def failing(error):
        def verb(arguments):
            raise error

        words = argparse.Namespace(run_verb=verb, verb="evaluate", **{option: value})
        monkeypatch.setattr(robosteer.Parser, "parse_args", lambda *_: words)
        return robosteer.main(["evaluate"])

    for error in (RolloutError("rollout worker 3 died"), ExportError("it differs")):
        assert failing(error) == 1
        assert capsys.readouterr().err == f"robosteer evaluate: {error}\n"
    assert failing(BrokenProcessPool("terminated abruptly")) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "run the same command again" in said
    assert fewer in said


def test_a_taken_port_is_named(tmp_path):
    (tmp_path / "runs").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refused("app", "--runs", tmp_path / "runs", "--port", port)


def test_an_interrupted_capture_is_said_so_and_resumes(loop, tmp_path):
    demos, path = loop
    again = tmp_path / "again"
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "robosteer.py"), "capture", "--demos", str(demos), "--run", str(again)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    while not (again / "run.json").exists() and child.poll() is None:
        pass
    child.kill()
    child.wait()
    if not json.loads((again / "run.json").read_text())["captured"]:
        assert "resume" in refused("rank", "--run", again)
    ok("capture", "--demos", demos, "--run", again)
    ok("rank", "--run", again, "--k", 5, 10)
    first, second = (json.loads((p / "scores/knn.json").read_text())["towers"] for p in (path, again))
    assert first == second
