"""Perturbation suites: what else a policy is tried on, named, with the factor that each one changes.

Robustness is asked by factor: a *visual* suite changes what the cameras see, a *linguistic* one what is said, a
*physical* one where things are and how the robot stands. Two more questions have suites: a task that nobody trained
(`unseen:...`) and the pretraining tasks (`forgetting:...`). Every suite keeps the episodes' seeds, so arms are paired
under each suite, and all but `pose-shift` keep the very layout of the in-domain episode with the same seed.

`other-object` names another object that lies in the scene, and that object is judged: a policy that does what its
demonstrations did, whatever is said, fails. The alternative, another word for the same object, cannot be asked of a
policy with a word-level vocabulary: it would see <unk>. `paraphrase` says the same with the last template of the task,
which no demonstration uses.

The scripted expert solves every suite on every task (tests/steering/test_suites.py): failing one is the policy's doing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from interp.errors import UsageError, unknown
from interp.policies import load_policy
from steering.episode import Condition, Episode
from steering.results import (
    IN_DOMAIN,
    TRAINING,
    Factor,
    Result,
    check_like,
    condition_of,
    load_result,
    result_path,
    save_result,
)
from steering.rollouts import TABLETOP, Evaluation, check_numbers, evaluate_all, settings_of
from testbed.tasks import PRETRAINING, UNSEEN

HELD_OUT_PARAPHRASE = 3  # the last template of every task: demonstrations leave it out


@dataclass(frozen=True)
class Suite:
    """One way of trying a policy. `options` go to the environment's reset, over the task's own look."""

    name: str
    factor: Factor | None = None
    about: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    of_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Other options for a task whose own look already turns the same knob."""
    task: str | None = None
    """What is rolled out instead of the task that the policy was adapted to."""

    def condition(self, task: str) -> Condition:
        """What is rolled out for a policy that was adapted to `task`."""
        return Condition(self.task or task, self.of_task.get(task, self.options))


def _vary(**knobs: Any) -> dict[str, Any]:
    return {"variation": knobs}


_SUITES = (
    Suite(IN_DOMAIN, None, "as in the demonstrations"),
    Suite(
        # Dimmer and tiny-pi0 does nothing at all, whoever finetuned it: 0 to 4 % at 0.45 says nothing of an arm.
        "lighting", "visual", "three quarters of the light, from the other side",
        _vary(light=0.75, light_direction=[0.5, -0.4, -1.0]),
    ),
    Suite("form", "visual", "the object's box and cylinder swapped", _vary(form="swapped")),
    Suite("distractors", "visual", "three more cubes that nobody speaks of", _vary(distractors=3)),
    Suite(
        "camera", "visual", "the front camera 12 cm aside and 4 cm up",
        _vary(camera_offset=[0.0, 0.12, 0.04]),
        of_task={"cube-in-bowl": _vary(camera_offset=[-0.05, 0.18, 0.12])},
    ),
    Suite("paraphrase", "linguistic", "word order of no demonstration", {"paraphrase": HELD_OUT_PARAPHRASE}),
    Suite("other-object", "linguistic", "another object is named and judged", {"other_object": True}),
    Suite(
        "pose-shift", "physical", "everything lies 5 cm aside",
        _vary(pose_shift=[0.0, -0.05]),
        of_task={"cube-in-bowl": _vary(pose_shift=[0.0, -0.01])},
    ),
    Suite("robot-start", "physical", "start joints off by up to 0.08 rad", _vary(robot_start=0.08)),
    Suite("gripper-offset", "physical", "the hand 1 cm from where the controller believes",
          _vary(gripper_offset=[0.01, 0.0, 0.0])),
    *(Suite(f"unseen:{task}", None, "a task that nobody trained", task=task) for task in UNSEEN),
    *(Suite(f"forgetting:{task}", None, "a pretraining task", task=task) for task in PRETRAINING),
)  # fmt: skip

SUITES: Mapping[str, Suite] = {suite.name: suite for suite in _SUITES}
FACTORS: tuple[Factor, ...] = ("visual", "linguistic", "physical")


def groups_of(suites: Mapping[str, Suite]) -> Mapping[str, tuple[str, ...]]:
    """Names for several suites at once: `all`, a factor, `unseen`, `forgetting`; those that are not empty."""
    groups: dict[str, tuple[str, ...]] = {
        "all": tuple(suites),
        **{factor: tuple(s.name for s in suites.values() if s.factor == factor) for factor in FACTORS},
        "unseen": tuple(name for name in suites if name.startswith("unseen:")),
        "forgetting": tuple(name for name in suites if name.startswith("forgetting:")),
    }
    return {name: members for name, members in groups.items() if members}


GROUPS = groups_of(SUITES)


def choose(names: Iterable[str], suites: Mapping[str, Suite] = SUITES) -> tuple[Suite, ...]:
    """Suites by their names or by a group's, each once, in the order of `suites`."""
    groups, chosen = groups_of(suites), set[str]()
    for name in names:
        if name not in suites and name not in groups:
            raise unknown("suite", name, [*groups, *suites])
        chosen.update(groups.get(name, (name,)))
    return tuple(suite for suite in suites.values() if suite.name in chosen)


def custom(variation: Mapping[str, Any]) -> Suite:
    """A suite of one's own, of no factor."""
    return Suite("custom", None, "as given", {"variation": dict(variation)})


@dataclass(frozen=True)
class Subject:
    """Who is evaluated: a policy (directory or name), and how its results are called.

    `training` is the summary.json of a finetuned policy. Without a `fingerprint` the policy is loaded to find it, if
    there are earlier results that may be of another policy.
    """

    policy: str | Path
    name: str
    arm: str
    training: Mapping[str, Any] | None = None
    fingerprint: str | None = None


def run_suites(
    subject: Subject,
    task: str,
    suites: Iterable[Suite],
    n: int,
    seed0: int = 0,
    *,
    directory: Path | None,
    execute: int | None = None,
    against: str | None = None,
    again: bool = False,
    retrained: bool = False,
    workers: int = 2,
    env: str = TABLETOP,
    env_options: Mapping[str, Any] | None = None,
    cameras: Mapping[str, str] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Iterator[tuple[Result, Path | None, int]]:
    """Yield (result, its file, episodes run now) of every suite as it is done; one set of workers serves all.

    With a `directory` results are kept there: episodes that an earlier call ran, of this policy under this very
    condition, are not run again unless `again` asks for it. Results of this policy under another condition, or of
    another policy, are in the way: they are refused, and only `again` replaces them. So does `retrained` with those of
    another policy: it says that they are of an earlier training of this one. With `against`, results are paired with
    those of that name, which must be there. Whatever stops this (Ctrl-C, a worker that dies) leaves the episodes of the
    suite that it stopped there too, unless a result that they would replace is there.
    """
    check_numbers(n, seed0, workers)
    if against and directory is None:
        raise UsageError(f"--against {against}: name the --run that holds these results")
    chosen = list(suites)
    conditions = [suite.condition(task) for suite in chosen]
    paths = [result_path(directory, subject.name, s.name) if directory else None for s in chosen]
    baselines = [_baseline(directory, against, s) for s in chosen] if against and directory else []
    if subject.fingerprint is None and not again and any(path and path.is_file() for path in paths):
        subject = replace(subject, fingerprint=load_policy(subject.policy).fingerprint)
    asked = [settings_of(c, subject.policy, seed0, execute, env, cameras) for c in conditions]
    earlier = [
        None if again or path is None else _earlier(path, subject, settings, retrained)
        for path, settings in zip(paths, asked, strict=True)
    ]
    seeds = range(seed0, seed0 + n)
    kept = [{e.seed: e for e in result.episodes} if result else dict[int, Episode]() for result in earlier]
    todo = [i for i, episodes in enumerate(kept) if not earlier[i] or not episodes.keys() >= set(seeds)]
    for baseline, episodes, settings in zip(baselines, kept, asked, strict=False):
        # told before hours of rollouts, not after
        _check_pair(subject.name, condition_of(settings), sorted(episodes.keys() | set(seeds)), baseline)

    def result_of(i: int, evaluation: Evaluation) -> Result:
        suite, before = chosen[i], earlier[i]
        result = Result.of(
            evaluation,
            name=subject.name,
            arm=subject.arm,
            training=subject.training,
            task=task,
            suite=suite.name,
            factor=suite.factor,
        )
        if before is None:
            return result
        spent = before.seconds.get("evaluate", 0.0) + result.seconds["evaluate"]
        return replace(result, seconds={**result.seconds, "evaluate": round(spent, 3)})

    def keep_part(place: int, evaluation: Evaluation) -> None:
        path, goes_on = paths[todo[place]], earlier[todo[place]] is not None
        if path is not None and (goes_on or not path.exists()):  # a whole result gives way to a whole one
            save_result(path, result_of(todo[place], evaluation))

    evaluations = evaluate_all(
        subject.policy,
        [conditions[i] for i in todo],
        n,
        seed0,
        kept=[kept[i] for i in todo],
        fingerprint=subject.fingerprint,
        unfinished=keep_part,
        workers=workers,
        execute=execute,
        env=env,
        env_options=env_options,
        cameras=cameras,
        device=device,
        progress=progress,
    )
    with closing(evaluations):
        for i, path in enumerate(paths):
            before = earlier[i]
            if i in todo:
                result = result_of(i, next(evaluations))
                if path is not None:
                    save_result(path, result)
            else:
                assert before is not None
                result = before
            if baselines:
                paired = result.against(baselines[i])
                if path is not None and paired != result:
                    save_result(path, paired)
                result = paired
            yield result, path, len(result.episodes) - len(kept[i])


def _baseline(directory: Path, name: str, suite: Suite) -> Result:
    path = result_path(directory, name, suite.name)
    if not path.is_file():
        there = sorted({p.stem.split("--")[0] for p in directory.glob("*.json")})
        raise UsageError(
            f"{path} does not exist: evaluate {name} on suite {suite.name} first "
            f"(results here: {', '.join(there) or 'none'})"
        )
    return load_result(path)


def _check_pair(name: str, condition: Mapping[str, Any], seeds: Sequence[int], baseline: Result) -> None:
    """Refuse results of these seeds under this condition that could not be paired with the baseline."""
    check_like(name, condition, baseline)
    theirs = sorted(e.seed for e in baseline.episodes)
    if list(seeds) != theirs:
        raise UsageError(
            f"{name} would have {len(seeds)} episodes from seed {seeds[0] if seeds else '?'}, "
            f"{baseline.name} ({baseline.suite}) has {len(theirs)} from {theirs[0]}: "
            "evaluate both with the same n and seed"
        )


def _earlier(
    path: Path, subject: Subject, settings: Mapping[str, Any], retrained: bool = False
) -> Result | None:
    """The result of an earlier call. Another policy's is in the way (`retrained`: it counts as none), and so is one of
    this policy under other settings."""
    if not path.is_file():
        return None
    result = load_result(path)
    if result.policy != subject.fingerprint:
        if retrained:
            return None
        theirs = result.settings.get("policy", result.arm)
        raise UsageError(
            f"{path} holds episodes of another policy, {theirs} ({result.policy}), not of {settings['policy']} "
            f"({subject.fingerprint}): {_MAKE_WAY}"
        )
    ran = {"rolled_out": result.task, **result.settings}
    compared = (ran.keys() | settings.keys()) - {"policy", *TRAINING}
    if settings["execute"] is None:  # the policy's own, whatever it is
        compared -= {"execute"}
    apart = [
        f"{_SPOKEN.get(what, what)} {ran.get(what)}, not {settings.get(what)}"
        for what in sorted(compared)
        if ran.get(what) != settings.get(what)
    ]
    if apart:
        raise UsageError(f"{path} holds episodes of this policy with {'; '.join(apart)}: {_MAKE_WAY}")
    return result


_MAKE_WAY = "give these another name (--name), or run all --again in their place"
_SPOKEN = {"seed0": "seed", "rolled_out": "task"}
