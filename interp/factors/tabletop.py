"""Factor pairs from the testbed: one simulator state, rendered twice.

The expert plays an episode up to a random step; there the clean observation is taken, and its twin with one thing
changed (see tabletop_edits.py). Edits take turns, so that every one gets as many pairs as the episodes allow. Pair i of
every factor stands in the same episode at the same step, so factors are compared on the same states, and intervals
resample the same episodes.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing

import numpy as np
from tqdm import tqdm

from interp.errors import UsageError
from interp.factors.pairs import FactorPairs, Turns, check_factor
from interp.factors.tabletop_edits import EDITS, Scene, seen
from interp.policies.protocol import Policy
from interp.policies.spec import PolicySpec
from testbed.expert import Expert
from testbed.tabletop import CAMERAS, STATE_NAMES, Tabletop
from testbed.tasks import PRETRAINING, TASKS, get_task

FIRST_SEED = 700_000
"""Apart from the seeds of evaluation (0), demonstrations (500 000) and pretraining (1 000 000)."""


def tabletop_pairs(
    policy: Policy,
    factor: str,
    n: int = 30,
    *,
    tasks: Sequence[str] = PRETRAINING,
    edits: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> FactorPairs:
    """n pairs, one an episode, tasks and edits in turn. `edits` names some of the factor's (all by default)."""
    turns = Turns(factor, EDITS[check_factor(factor)], edits)
    if n < 1 or not tasks:
        raise UsageError(f"{n} pairs of {len(tasks)} tasks: need at least one of each")
    if not shows(policy.spec):
        raise UsageError(
            f"the testbed has cameras {', '.join(CAMERAS)} and {len(STATE_NAMES)} state dimensions, the policy needs "
            f"{', '.join(policy.spec.cameras)} and {policy.spec.state_dim}: make pairs from demonstrations instead"
        )
    for task in tasks:
        get_task(task)
    twins = []
    with closing(Tabletop(image_size=policy.spec.image_size)) as env:
        for i in tqdm(range(n), desc=f"{factor} pairs", unit="pair", disable=not progress):
            task = tasks[i % len(tasks)]
            scene = _stopped(env, policy, task, FIRST_SEED + 1000 * seed + i)
            twins.append(turns.twin(scene, scene.clean, task, group=i))
    return FactorPairs(factor, tuple(twins), "testbed")


def shows(spec: PolicySpec) -> bool:
    """Whether the testbed has what a policy of this spec observes."""
    return set(spec.cameras) <= set(CAMERAS) and spec.state_dim == len(STATE_NAMES)


def tasks_saying(instructions: Iterable[str]) -> tuple[str, ...]:
    """Tasks of the testbed that these instructions may come from; none if one of them is of no task."""
    found: dict[str, None] = {}
    for instruction in instructions:
        saying = [
            name
            for name, task in TASKS.items()
            if any(
                text.format(colour=colour) == instruction
                for text in task.instructions
                for colour in task.colours
            )
        ]
        if not saying:
            return ()
        found.update(dict.fromkeys(saying))
    return tuple(found)


def _stopped(env: Tabletop, policy: Policy, task: str, seed: int) -> Scene:
    """The expert's episode at a random step before its end."""
    rng = np.random.default_rng([seed, 7])
    length = _play(env, task, seed, get_task(task).max_steps)
    _play(env, task, seed, int(rng.integers(max(1, length))))
    return Scene(env, policy, seen(env), rng)


def _play(env: Tabletop, task: str, seed: int, steps: int) -> int:
    """How many of the steps the expert needed."""
    env.reset(seed=seed, options={"task": task})
    expert = Expert(env)
    while env.steps < steps and not env.success and env.failure is None:
        env.advance(expert())
    return env.steps
