"""Results on disk: one JSON an arm, task and suite, all that comparisons and the dashboard read.

    {"schema": 1, "name": "aligned", "task": ..., "arm": "aligned", "policy": fingerprint,
     "suite": "lighting", "factor": "visual",
     "episodes": [{"seed": 0, "success": true, "steps": 31, "failure": null}, ...],
     "n": 100, "successes": 61, "success_rate": 0.61, "wilson": [0.51, 0.70],
     "paired": {"against": "base", "difference": 0.34, "low": 0.24, "high": 0.44} | null,
     "trainable_parameters": {"expert query rows": 24576},
     "seconds": {"train": 41.0, "train_processor": 39.8, "evaluate": 63.0},
     "peak_memory_mb": 611.0, "heads": ["expert.L3H5"] | null, "settings": {...}, "created": "...Z"}

`task` is what the policy was adapted to (or is tried for); `suite` says how it was tried (steering/suites.py), and a
suite that rolls out another task says so in `settings["rolled_out"]`. Files without a suite are in-domain. A file is
called `<name>.json` in-domain and `<name>--<suite>.json` else (`-` for the suite's colon); readers go by the fields.

Everything that follows from the episodes (n, rate, interval) is derived when written and ignored when read,
so that a file cannot contradict itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from interp.errors import UsageError
from interp.runs import check_name, read_json, write_json
from interp.scores import now
from steering.episode import Condition, Episode
from steering.rollouts import Evaluation
from steering.stats import Interval, paired_bootstrap, wilson

SCHEMA = 1
IN_DOMAIN = "in-domain"
Factor = Literal["visual", "linguistic", "physical"]
CONDITION = ("variation", "paraphrase", "other_object", "variant")
"""Settings that change an episode of a given task and seed."""
TRAINING = ("recipe", "seed", "data", "adapted_from")
"""Settings that a result has from its policy's training; the last, where an experiment has a plan to keep to."""


@dataclass(frozen=True)
class Paired:
    """Difference of success rates to a baseline on the same episodes, treated minus baseline."""

    against: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """One arm on one task: its episodes, what it cost, and how it stands against a baseline."""

    name: str
    arm: str
    task: str
    policy: str
    episodes: tuple[Episode, ...]
    paired: Paired | None = None
    trainable_parameters: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    heads: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=now)
    suite: str = IN_DOMAIN
    factor: Factor | None = None

    def __post_init__(self) -> None:
        if not self.episodes:
            raise UsageError(f"result {self.name}: no episodes; a result needs at least one")

    @property
    def success_rate(self) -> Interval:
        return wilson(sum(e.success for e in self.episodes), len(self.episodes))

    @property
    def condition(self) -> dict[str, Any]:
        """What was rolled out, whoever acted: results of one condition and the same seeds are paired."""
        return condition_of({"rolled_out": self.task, **self.settings})

    def against(self, baseline: Result) -> Result:
        """This result with its paired difference to `baseline`, which must have run the same episodes."""
        difference = paired_difference(self, baseline)
        return replace(self, paired=Paired(baseline.name, difference.value, difference.low, difference.high))

    @classmethod
    def of(
        cls,
        evaluation: Evaluation,
        *,
        name: str,
        arm: str,
        training: Mapping[str, Any] | None = None,
        task: str | None = None,
        suite: str = IN_DOMAIN,
        factor: Factor | None = None,
    ) -> Result:
        """A result from an evaluation and, for a finetuned policy, its training's summary.json.

        `task` is what the policy was adapted to, if the suite rolls out another one.
        """
        training = training or {}
        asked = {what: training[what] for what in TRAINING if what in training}
        return cls(
            name=name,
            arm=arm,
            task=task or evaluation.task,
            policy=evaluation.policy,
            episodes=evaluation.episodes,
            trainable_parameters=training.get("trainable_parameters", {}),
            seconds={
                "train": training.get("seconds", 0.0),
                "train_processor": training.get("processor_seconds", 0.0),
                "evaluate": round(evaluation.seconds, 3),
            },
            peak_memory_mb=training.get("peak_memory_mb"),
            heads=tuple(training["heads"]) if training.get("heads") else None,
            settings={**evaluation.settings, **asked},
            suite=suite,
            factor=factor,
        )

    def to_json(self) -> dict[str, Any]:
        rate = self.success_rate
        return {
            "schema": SCHEMA,
            **asdict(self),
            "n": len(self.episodes),
            "successes": sum(e.success for e in self.episodes),
            "success_rate": rate.value,
            "wilson": [rate.low, rate.high],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Result:
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        known["episodes"] = tuple(Episode(**episode) for episode in record["episodes"])
        known["paired"] = Paired(**record["paired"]) if record.get("paired") else None
        known["heads"] = tuple(record["heads"]) if record.get("heads") is not None else None
        return cls(**known)


@dataclass(frozen=True)
class Entry:
    """A result, where it came from (a run's name, a directory's), and the arm that it counts to."""

    result: Result
    source: str
    arm: str


def condition_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation with these settings rolls out, whoever acts."""
    return {"task": settings["rolled_out"], **{what: settings.get(what) for what in CONDITION}}


def asked_of(condition: Condition) -> dict[str, Any]:
    """`condition_of` an evaluation that has yet to run."""
    return condition_of({"rolled_out": condition.task, **json.loads(json.dumps(condition.options))})


def check_like(name: str, condition: Mapping[str, Any], baseline: Result) -> None:
    """Refuse to pair what is rolled out under another condition than the baseline was."""
    for what, a in condition.items():
        if a != (b := baseline.condition[what]):
            raise UsageError(f"{name} has {what} {a}, {baseline.name} has {b}: only like can be paired")


def paired_difference(treated: Result, baseline: Result, *, seed: int = 0) -> Interval:
    """Bootstrap interval of the difference in success, over the episodes that both arms ran."""
    check_like(treated.name, treated.condition, baseline)
    ours, theirs = ({e.seed: e.success for e in r.episodes} for r in (treated, baseline))
    if ours.keys() != theirs.keys():
        raise UsageError(
            f"{treated.name} ran seeds {_span(ours)}, {baseline.name} {_span(theirs)}: "
            "evaluate both with the same n and seed"
        )
    seeds = sorted(ours)
    return paired_bootstrap([ours[s] for s in seeds], [theirs[s] for s in seeds], seed=seed)


def result_path(directory: str | Path, name: str, suite: str = IN_DOMAIN) -> Path:
    """Where a result is kept."""
    return Path(directory) / f"{file_stem(name, suite)}.json"


def file_stem(name: str, suite: str = IN_DOMAIN) -> str:
    """What files of a result begin with. They hold no colon: not every file system takes one."""
    stem = name if suite == IN_DOMAIN else f"{name}--{suite.replace(':', '-')}"
    return check_name(stem, "name of the result")


def save_result(path: str | Path, result: Result) -> Path:
    """Write one result, whole or not at all."""
    write_json(path, result.to_json())
    return Path(path)


def load_result(path: str | Path) -> Result:
    record = read_json(path)
    if record.get("schema") != SCHEMA:
        raise UsageError(f"result {path}: schema {record.get('schema')!r}, this version reads {SCHEMA}")
    try:
        return Result.from_json(record)
    except (KeyError, TypeError) as error:
        raise UsageError(f"result {path}: not a result file ({type(error).__name__}: {error})") from error


def _span(seeds: Mapping[int, bool]) -> str:
    return f"{min(seeds)}-{max(seeds)} ({len(seeds)})"
