"""A study of a run's policy: every factor measured, scored, profiled, and written into the run.

scores/<method>-<factor>.json     HeadScores with `factor` set
scores/<method>-<kind>.json       HeadScores over the factors' semantic, nuisance swaps
factors/<method>.json             profiles of all heads
.sweeps/factors-<method>/         what an interrupted study goes on from
run.json "factors"                one entry a factor: how it was measured, sizes, control, name of its scores
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.factors.edits import edited_pairs
from interp.factors.effects import Effects, Method, measure, of_kind
from interp.factors.pairs import FACTORS, KINDS, FactorPairs, check_factor
from interp.factors.profile import Profile, profile
from interp.factors.scores import factor_scores, kind_scores
from interp.factors.tabletop import shows, tabletop_pairs, tasks_saying
from interp.policies.protocol import Policy
from interp.runs import Run, write_json
from interp.scores import HeadScores


@dataclass(frozen=True)
class Study:
    """What was found, by factor; `kinds` by kind. A profile needs at least two factors."""

    method: Method
    effects: Mapping[str, Effects]
    scores: Mapping[str, HeadScores]
    kinds: Mapping[str, HeadScores]
    profile: Profile | None

    def save(self, run: Run) -> list[Path]:
        """Everything into the run, whose policy and data must be the scores'."""
        paths = [
            run.save_scores(scores, f"{self.method}-{name}")
            for name, scores in (*self.scores.items(), *self.kinds.items())
        ]
        if self.profile is not None:
            paths.append(run.path / "factors" / f"{self.method}.json")
            write_json(paths[-1], {"schema": 1, "method": self.method, **self.profile.to_json()})
        run.update(factors=list(self._entries()))
        return paths

    def summary(self, k: int = 5) -> Iterator[str]:
        """What a person wants to know, line by line."""
        for factor, scores in self.scores.items():
            effects, edits = self.effects[factor], scores.settings["edits"]
            moved = ", ".join(f"{name} {edit['value']:.3g}" for name, edit in edits.items())
            yield f"{factor}: {len(effects.pairs)} pairs ({effects.pairs.source}), each moves the action"
            yield f"  by {effects.size()} standard deviations: {moved}"
            if effects.empty is not None:
                yield f"  control: no instruction at all moves it by {effects.empty}"
            if scores.settings["note"]:
                yield f"  {scores.settings['note']}"
            for tower in scores.towers:
                best = ", ".join(f"{head} {scores.score(head):.3f}" for head in scores.ranked(tower)[:k])
                yield f"  {tower}: {best or 'no scores'} [{scores.units}]"

    def _entries(self) -> Iterator[dict[str, Any]]:
        for factor, scores in self.scores.items():
            settings = scores.settings
            yield {
                "factor": factor,
                "method": self.method,
                "scores": f"{self.method}-{factor}",
                "towers": list(scores.towers),
                "from": settings["factor_pairs"],
                **scores.n,
                **{key: settings[key] for key in ("direction", "seed", "size", "control", "note")},
                "edits": {
                    name: {key: edit[key] for key in ("kind", "pairs", "value")}
                    for name, edit in settings["edits"].items()
                },
            }


def study(
    run: Run,
    policy: Policy,
    pairs: Sequence[FactorPairs],
    *,
    method: Method = "patching",
    towers: Sequence[str] = ("vlm", "expert"),
    seed: int = 0,
    resamples: int = 1000,
    progress: bool = False,
    **options: Any,
) -> Study:
    """Measure the factors of `pairs`; started again after an interruption, it goes on. Options are `measure`'s."""
    run.expect(policy=policy.fingerprint)
    if not pairs:
        raise UsageError("a study needs the pairs of at least one factor")
    effects = {
        each.factor: measure(
            policy,
            each,
            method=method,
            towers=towers,
            seed=seed,
            directory=run.path / ".sweeps" / f"factors-{method}" / each.factor,
            progress=progress,
            **options,
        )
        for each in pairs
    }
    return Study(
        method=method,
        effects=effects,
        scores={
            factor: factor_scores(policy, each, data=run.data, resamples=resamples)
            for factor, each in effects.items()
        },
        kinds={
            kind: kind_scores(policy, effects.values(), kind, data=run.data, resamples=resamples)
            for kind in KINDS
            if of_kind(effects.values(), kind)
        },
        profile=profile(effects, resamples, seed) if len(effects) > 1 else None,
    )


def pairs_for(
    run: Run,
    policy: Policy,
    demos: Callable[[], Demonstrations],
    factors: Sequence[str] = FACTORS,
    n: int = 30,
    *,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[FactorPairs]:
    """Pairs that fit a run: from the testbed in the tasks that its instructions come from (or in `tasks`), else edits
    of its demonstrations, which are opened only then."""
    for factor in factors:
        check_factor(factor)
    if tasks is None and shows(policy.spec):
        tasks = tasks_saying(run.info["data"]["tasks"])
    if tasks:
        return [
            tabletop_pairs(policy, factor, n, tasks=tasks, seed=seed, progress=progress) for factor in factors
        ]
    recorded = demos()
    return [edited_pairs(policy, recorded, factor, n, seed=seed) for factor in factors]
