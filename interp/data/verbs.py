"""`robosteer demos`: look at demonstrations, check them, bring them in and take them elsewhere, and let a policy
normalise by them; and the same for published activations files: `robosteer activations`.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.data.choices import CODECS, DROID_ACTIONS, ORIENTATIONS
from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.data.recordings import Source
    from interp.demos import Demonstrations


def demos(a: Namespace) -> int | None:
    """Look at demonstrations, check them, import other formats and export them."""
    done: int | None = a.run_demos(a)
    return done


def _demos_takes(p: ArgumentParser) -> None:
    verbs = p.add_subparsers(dest="demos_verb", required=True, metavar="WHAT")
    for name, function, takes in (
        ("info", info, _info_takes),
        ("validate", validate, _validate_takes),
        ("import", import_, _import_takes),
        ("export", export, _export_takes),
        ("normalise", normalise, _normalise_takes),
    ):
        text = (function.__doc__ or "").strip()
        added = verbs.add_parser(
            name, help=text.split("\n")[0], description=text, formatter_class=p.formatter_class
        )
        takes(added)
        added.set_defaults(run_demos=function)


# ---- info


def info(a: Namespace) -> None:
    """Say what a data set holds: episodes, frames, tasks, cameras, state and action."""
    found = describe(a.demos)
    if a.json:
        print(json.dumps(found, indent=1))
        return
    lengths = found["lengths"]
    print(f"{found['path']}: LeRobotDataset {found['version']}, {found['robot']}, {found['fingerprint']}")
    print(
        f"episodes  {found['episodes']}, of {lengths['min']} to {lengths['max']} frames, median {lengths['median']:g}"
    )
    print(f"frames    {found['frames']}, {found['frames'] / found['fps']:.1f} s at {found['fps']:g} fps")
    for kind in ("state", "action"):
        print(f"{kind:9} {found[kind]['dim']}: {', '.join(found[kind]['names'])}")
    for at, camera in enumerate(found["cameras"]):
        size = f"{camera['height']} x {camera['width']}"
        print(f"{'' if at else 'cameras':9} {camera['name']}: {size}, {camera['stored']}")
    if not found["cameras"]:
        print("cameras   none")
    for at, (task, episodes) in enumerate(found["tasks"].items()):
        print(f"{'' if at else 'tasks':9} {episodes} x {task}")
    if found["others"]:
        print(f"others    {', '.join(found['others'])}")


def _info_takes(p: ArgumentParser) -> None:
    p.add_argument("demos", help="LeRobotDataset v3 directory")
    p.add_argument("--json", action="store_true", help="as JSON, for programs")


def describe(path: str | Path) -> dict[str, Any]:
    """What `robosteer demos info --json` prints. Images are not read."""
    import numpy as np

    from interp.demos import Demonstrations

    opened = Demonstrations.open(path)
    layout = opened.layout
    lengths = np.array([len(episode) for episode in opened.episodes])
    cameras = []
    for name, feature in layout.cameras.items():
        height, width = layout.image_size(name)
        codec = (layout.features[feature].get("info") or {}).get("video.codec", "film")
        filmed = layout.features[feature]["dtype"] == "video"
        stored = f"video ({codec})" if filmed else "images"
        cameras.append({"name": name, "height": height, "width": width, "stored": stored})
    return {
        "path": str(path),
        "version": layout.info["codebase_version"],
        "robot": layout.info.get("robot_type") or "unknown robot",
        "fingerprint": opened.fingerprint,
        "fps": layout.fps,
        "episodes": len(lengths),
        "frames": len(opened),
        "lengths": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "max": int(lengths.max()),
        },
        "tasks": dict(Counter(episode.instruction for episode in opened.episodes).most_common()),
        "cameras": cameras,
        "state": {"dim": opened.state.shape[1], "names": layout.names(layout.states)},
        "action": {"dim": opened.action.shape[1], "names": layout.names(layout.actions)},
        "others": list(layout.extras),
    }


# ---- validate


def validate(a: Namespace) -> int:
    """Check files, frame counts, time stamps, numbers, images and statistics; with --policy, whether it can use them.

    One line a problem. Exit status 1 if there is one, 0 if there is none. Another control rate than the policy's is a
    warning: it can be trained on.
    """
    from interp.data.check import problems

    policy = None
    if a.policy:
        from interp.demos import Demonstrations
        from interp.policies import load_policy
        from interp.rates import warn_if_other_rate
        from interp.units import unlike_training

        policy = load_policy(a.policy)
    if not Path(a.demos).is_dir():
        raise UsageError(f"{a.demos} is no directory")
    found = 0
    spec = policy.spec if policy else None
    for line in problems(a.demos, spec, every_image=not a.quick, progress=True):
        print(line)
        found += 1
    if policy and not found:
        opened = Demonstrations.open(a.demos)
        warn_if_other_rate(policy.spec, opened)
        for line in unlike_training(policy, opened):
            print(line)
            found += 1
    if not found:
        print(f"{a.demos}: no problems found")
    return 1 if found else 0


def _validate_takes(p: ArgumentParser) -> None:
    p.add_argument("demos", help="LeRobotDataset v3 directory")
    p.add_argument("--policy", help="directory, hub id or tiny-pi0 that is to use the data")
    p.add_argument("--quick", action="store_true", help="decode three images of every episode instead of all")


# ---- import


def import_(a: Namespace) -> None:
    """Write LIBERO, robomimic or DROID files as a LeRobotDataset v3."""
    from interp.data import droid, keyframes, robomimic
    from interp.data.recordings import write_dataset

    if a.keyframes and a.format not in keyframes.RULES:
        raise UsageError(
            f"--keyframes: rules are published for {' and '.join(keyframes.RULES)}, not {a.format}"
        )
    source: Source
    shared: dict[str, Any] = {"cameras": pairs_of(a.cameras), "instruction": a.instruction, "fps": a.fps}
    if a.format == "droid":
        _refuse(a, "droid", "state", "orientation")
        size = None if a.size == "keep" else size_of(a.size) or droid.SIZE
        source = droid.read(a.source, size=size, action=a.action or "joint_velocity", **shared)
    else:
        _refuse(a, a.format, "size", "action")
        libero = a.format == "libero"
        source = robomimic.read(
            a.source,
            state=a.state or (robomimic.LIBERO_STATE if libero else None),
            orientation=a.orientation or ("rotate" if libero else "keep"),
            **shared,
        )
    rule = keyframes.RULES[a.format] if a.keyframes else None
    written, seen = write_dataset(source, a.demos, codec=a.video, keyframes=rule)
    kept = f"{written} key frames of {seen}" if a.keyframes else f"{written} frames"
    print(f"{a.demos}: {source.length} episodes, {kept}")


def _import_takes(p: ArgumentParser) -> None:
    p.add_argument("source", help="an .hdf5 file, or a directory of them (droid: of episodes)")
    p.add_argument("demos", help="directory to write (LeRobotDataset v3)")
    p.add_argument(
        "--format", required=True, choices=("libero", "robomimic", "droid"), help="of what is imported"
    )
    p.add_argument(
        "--keyframes", action="store_true",
        help="keep only the key frames of the published procedure: to rank heads on, not to finetune on",
    )  # fmt: skip
    p.add_argument("--instruction", help="the task in words, where the files do not say it")
    p.add_argument(
        "--cameras", nargs="+", metavar="NAME[=NEW]", help="cameras to take, and what to call them"
    )
    p.add_argument("--state", nargs="+", metavar="KEY", help="observations that are the state (not droid)")
    p.add_argument(
        "--orientation", choices=ORIENTATIONS,
        help="of images: rotate by 180 degrees (libero's default: so policies for it are trained), flip, or keep",
    )  # fmt: skip
    p.add_argument(
        "--action", choices=DROID_ACTIONS, help="of droid (joint_velocity by default), beside the gripper"
    )
    p.add_argument(
        "--size", metavar="HxW", help="of droid's images: 180x320 by default, keep for the recordings' own"
    )
    p.add_argument("--fps", type=float, help="frames a second, where the files are wrong or silent")
    p.add_argument("--video", nargs="?", const="h264", choices=CODECS, help="store videos instead of images")


# ---- export


def export(a: Namespace) -> None:
    """Write some or all episodes and cameras as another LeRobotDataset v3, or as robomimic's HDF5."""
    from interp.data import copying, robomimic
    from interp.data.recordings import write_dataset
    from interp.demos import Demonstrations

    opened = Demonstrations.open(a.demos)
    if a.episodes:
        opened = take(opened, a.episodes)
    cameras = copying.renamed(opened, pairs_of(a.cameras))
    if a.format == "robomimic":
        _refuse(a, "robomimic", "video")
        robomimic.write(opened, a.out, cameras=cameras)
    else:
        write_dataset(copying.source_of(opened, cameras), a.out, codec=a.video)
    print(
        f"{a.out}: {len(opened.episodes)} episodes, {len(opened)} frames, cameras {', '.join(cameras.values())}"
    )


def _export_takes(p: ArgumentParser) -> None:
    p.add_argument("demos", help="LeRobotDataset v3 directory")
    p.add_argument("out", help="directory to write, or .hdf5 file")
    p.add_argument("--format", choices=("lerobot", "robomimic"), default="lerobot", help="of what is written")
    p.add_argument("--episodes", nargs="+", metavar="N", help="episodes to take: 3 5-9")
    p.add_argument(
        "--cameras", nargs="+", metavar="NAME[=NEW]", help="cameras to take, and what to call them"
    )
    p.add_argument("--video", nargs="?", const="h264", choices=CODECS, help="store videos instead of images")


def take(demos: Demonstrations, words: Sequence[str]) -> Demonstrations:
    """Episodes by their numbers in the data set: `3`, `5-9`."""
    numbers: list[int] = []
    for word in words:
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--episodes {word}: write 3 or 5-9")
        if int(last or first) < int(first):
            raise UsageError(f"--episodes {word}: write the lower number first")
        numbers += range(int(first), int(last or first) + 1)
    places = {episode.index: at for at, episode in enumerate(demos.episodes)}
    for number in numbers:
        if number not in places:
            raise UsageError(
                f"episode {number}: demonstrations {demos.path} have {min(places)}-{max(places)}"
            )
    return demos.take([places[number] for number in numbers])


def pairs_of(words: Sequence[str] | None) -> Mapping[str, str] | None:
    """`top=front wrist` as {top: front, wrist: wrist}."""
    if words is None:
        return None
    pairs = {old: new or old for old, _, new in (word.partition("=") for word in words)}
    for new in pairs.values():
        if not new.replace("_", "").replace("-", "").isalnum():
            raise UsageError(f"camera name {new!r}: use letters, digits, _ and -")
    if len(pairs) < len(words) or len(set(pairs.values())) < len(pairs):
        raise UsageError(f"--cameras {' '.join(words)}: name every camera once")
    return pairs


def size_of(word: str | None) -> tuple[int, int] | None:
    """`180x320` as (180, 320)."""
    if word is None:
        return None
    height, _, width = word.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UsageError(f"--size {word}: write height x width, as 180x320, or keep")
    return int(height), int(width)


def _refuse(a: Namespace, form: str, *options: str) -> None:
    for option in options:
        if getattr(a, option) is not None:
            raise UsageError(f"--{option} means nothing for {form}")


# ---- normalise


def normalise(a: Namespace) -> None:
    """Write a copy of a LeRobot policy that normalises state and actions by the statistics of these demonstrations.

    For base policies that come without, such as lerobot/smolvla_base: it is what lerobot-train does before training.
    """
    from interp.policies import policy_directory
    from interp.policies.lerobot import installed

    directory = policy_directory(a.policy)
    if not installed():
        raise UsageError("LeRobot is not installed here: use the environment of `make setup-lerobot`")
    from interp.policies.lerobot.statistics import with_statistics

    with_statistics(directory, a.demos, Path(a.out))
    print(f"{a.out}: {a.policy} with the statistics of {a.demos}")


def _normalise_takes(p: ArgumentParser) -> None:
    p.add_argument("demos", help="LeRobotDataset v3 directory")
    p.add_argument("out", help="directory to write")
    p.add_argument("--policy", required=True, help="LeRobot policy: directory or hub id")


# ---- activations


def activations(a: Namespace) -> None:
    """Read an activations file in the published form (HDF5) into a run, or write one from a run."""
    from interp.data.activations import read, write
    from interp.runs import Run

    if a.activations_verb == "export":
        write(Run.open(a.run), a.file)
        print(a.file)
        return
    policy = None
    if a.policy:
        from interp.policies import load_policy

        policy = load_policy(a.policy)
    run = read(a.file, a.run, policy=policy, command=["robosteer", "activations", "import", a.file])
    tokens = ", ".join(f"{tower} {' and '.join(run.tokens(tower))}" for tower in run.info["captured"])
    print(
        f"{run.path}: {run.info['data']['frames']} frames of {len(run.info['data']['episodes'])} episodes, {tokens}"
    )


def _activations_takes(p: ArgumentParser) -> None:
    verbs = p.add_subparsers(dest="activations_verb", required=True, metavar="WHAT")
    reading = verbs.add_parser("import", help="make a run from a file, to rank its heads")
    reading.add_argument(
        "file", help="task/episode_000/frame_0000/{first_action_token_attn, action_label, ...}"
    )
    reading.add_argument("--run", required=True, help="run directory to make")
    reading.add_argument("--policy", help="the policy that the file is of, if its heads are to be trained")
    writing = verbs.add_parser("export", help="write a run's activations as such a file")
    writing.add_argument("file", help=".hdf5 file to write")
    writing.add_argument("--run", required=True, help="run with expert activations")


Verb = tuple[Callable[[Namespace], int | None], Callable[[ArgumentParser], None]]
VERBS: tuple[Verb, ...] = ((demos, _demos_takes), (activations, _activations_takes))
