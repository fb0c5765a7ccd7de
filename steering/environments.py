"""Where a policy acts: the environment behind `robosteer evaluate --env`, and the suites that it has.

    tabletop                the embedded default; the task is one of testbed/tasks.py
    libero_spatial:3        task 3 of a LIBERO suite (testbed/libero.py, an optional extra)
    module:id               any gymnasium.Env with the contract of steering/episode.py, in-domain only

LIBERO's suites are the variants of LIBERO-PRO. `language` says the same in other words; `task` names another goal of
the same scene, and that one is judged: a policy that does what its demonstrations did, whatever is said, fails; both
are linguistic. `object` replaces what is handled by another look or form of it (visual); `position` swaps where things
lie (physical). Episode i starts from official initial state i of the variant, so variants have layouts of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.errors import UsageError
from steering.results import IN_DOMAIN
from steering.rollouts import TABLETOP
from steering.suites import SUITES, Suite

LIBERO = "testbed.libero:robosteer/Libero-v0"
RENDERED = (
    256  # pixels at which LIBERO's training data were rendered; policies resize, as in published evaluations
)

_PLAIN = Suite(IN_DOMAIN, None, "as in the demonstrations")
LIBERO_SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        _PLAIN,
        Suite("object", "visual", "what is handled looks otherwise", {"variant": "object"}),
        Suite("language", "linguistic", "the same said in other words", {"variant": "language"}),
        Suite("task", "linguistic", "another goal of the scene is named and judged", {"variant": "task"}),
        Suite("position", "physical", "things lie where others lay", {"variant": "position"}),
    )
}


@dataclass(frozen=True)
class Place:
    """An environment, one task in it, the suites that it has, and what its constructor is told."""

    env: str
    task: str
    suites: Mapping[str, Suite]
    options: Mapping[str, Any] = field(default_factory=dict)


def place(env: str, task: str | None = None) -> Place:
    """What `--env` and `--task` mean together."""
    if env.startswith("libero"):
        if task not in (None, env):
            raise UsageError(f"--task {task}: --env {env} names the task already; leave --task out")
        return Place(LIBERO, env, LIBERO_SUITES, {"image_size": RENDERED})
    if task is None:
        raise UsageError(f"--task is missing: say which task of {env} the policy does")
    if env == "tabletop":
        return Place(TABLETOP, task, SUITES)
    if not re.fullmatch(r"[\w.]+:[^:]+", env):
        raise UsageError(
            f"unknown environment {env!r}: use tabletop, a LIBERO task such as libero_spatial:3, "
            "or module:id of a gymnasium environment"
        )
    return Place(env, task, {IN_DOMAIN: _PLAIN})
