"""What the reproduction runs: arms, the studies that compare them, and the order in which their cells are filled.

Words. An *arm* is a way of adapting the base policy (recipe, heads, demonstrations, steps). A *cell* is an arm on a
task, adapted from one *seed*, under one perturbation suite. A seed decides everything that luck decides: which layouts
are demonstrated, the training's draws, and which heads `random-k` takes; the rollouts' layouts are the same for all, so
every difference is paired. A *study* is a set of arms that answer one question. Studies share cells: `aligned` of
`success` is also the 12-heads point of `heads`.

Source: Robotic Steering (Mitra et al., arXiv 2511.22697): the five tasks, 20 demonstrations, the choice by k-NN, LoRA
beside it. Ours on top: every other arm, all seeds and intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interp.errors import UsageError, unknown
from steering.recipe import LoraTargets
from steering.results import IN_DOMAIN
from steering.suites import GROUPS
from testbed.tasks import TARGETS

HEADS = 12
"""Heads that are trained unless a study says otherwise."""
FIRST = 0
"""Seed of what is measured once, whatever part of the seeds is asked for: the base, and the maps of heads."""
RETAINED = 0.5
"""Weight of the finetuned policy in `retain`'s average with the base."""


@dataclass(frozen=True)
class Arm:
    """A way of adapting the base policy. What is None is the plan's."""

    recipe: str
    heads: int = HEADS
    by: str = "knn"
    """What chooses the heads (steering/reproduce/scores.py)."""
    tower: str = "expert"
    """Whose heads; `both`: as many of the vlm as of the expert."""
    targets: LoraTargets = "lerobot"
    """What LoRA is put on, of arm `lora`."""
    demos: int | None = None
    steps: int | None = None

    @property
    def name(self) -> str:
        """The recipe and what differs from its main arm: `aligned-atp-k4`."""
        parts = [
            "" if self.by == "knn" else self.by,
            "" if self.tower == "expert" else self.tower,
            "" if self.targets == "lerobot" else self.targets,
            "" if self.heads == HEADS else f"k{self.heads}",
            "" if self.demos is None else f"demos{self.demos}",
            "" if self.steps is None else f"steps{self.steps}",
        ]
        return "-".join([self.recipe, *filter(None, parts)])

    @property
    def towers(self) -> tuple[str, ...]:
        return ("expert", "vlm") if self.tower == "both" else (self.tower,)

    @property
    def trained(self) -> bool:
        return self.recipe != "base"


@dataclass(frozen=True)
class Study:
    """One question, the arms that answer it, and under which suites they are tried."""

    name: str
    question: str
    arms: tuple[Arm, ...]
    suites: tuple[str, ...] = (IN_DOMAIN,)
    tasks: tuple[str, ...] = TARGETS


@dataclass(frozen=True)
class Job:
    """What one process does at a time: train an arm on a task from a seed, unless it is there, and roll it out."""

    task: str
    arm: Arm
    seed: int
    suites: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.arm.name} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """Studies in the order in which they are run, and the sizes that hold unless an arm has its own."""

    name: str
    studies: tuple[Study, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    n: int = 100
    demos: int = 20
    steps: int = 250
    checkpoint_every: int = 50
    """Steps that a kill can cost a training."""
    settings: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the scores: frames, pairs (steering/reproduce/scores.py)."""

    @property
    def tasks(self) -> tuple[str, ...]:
        named = {task for study in self.studies for task in study.tasks}
        return tuple(task for task in TARGETS if task in named)

    def study(self, name: str) -> Study:
        for study in self.studies:
            if study.name == name:
                return study
        raise unknown("study", name, [study.name for study in self.studies])

    def demos_of(self, arm: Arm) -> int:
        return arm.demos or self.demos

    def steps_of(self, arm: Arm) -> int:
        return arm.steps or self.steps

    def jobs(self) -> Iterator[Job]:
        """Every job, by seed, then study: a plan that is stopped has answered its first questions from one seed.

        The base is adapted from nothing, so it has one seed, the first; and it has no pretraining or unseen tasks of
        its own, so these are rolled out for the first task of a study alone.
        """
        seen: set[tuple[str, str, int, str]] = set()
        for seed in self.seeds:
            for study in self.studies:
                for arm in study.arms:
                    for task in study.tasks:
                        at = seed if arm.trained else FIRST
                        everywhere = (*GROUPS["unseen"], *GROUPS["forgetting"])
                        suites = [
                            suite
                            for suite in study.suites
                            if arm.trained or suite not in everywhere or task == study.tasks[0]
                        ]
                        fresh = tuple(s for s in suites if (task, arm.name, at, s) not in seen)
                        if fresh:
                            seen |= {(task, arm.name, at, suite) for suite in fresh}
                            yield Job(task, arm, at, fresh)

    def only(
        self,
        studies: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        arms: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        n: int | None = None,
    ) -> Plan:
        """A part of this plan; what is named must be in it."""
        chosen = tuple(self.study(name) for name in studies) if studies else self.studies
        known_tasks = sorted({task for study in chosen for task in study.tasks})
        known_arms = list(dict.fromkeys(arm.name for study in chosen for arm in study.arms))
        _check("task", tasks, known_tasks)
        _check("arm", arms, known_arms)
        if seeds is not None and (wrong := [seed for seed in seeds if seed < 0]):
            raise UsageError(f"seed {wrong[0]}: seeds start at 0")
        if n is not None and n < 1:
            raise UsageError(f"n = {n} rollouts: a cell needs at least 1")
        for arm in arms or ():
            there = {task for study in chosen if arm in {a.name for a in study.arms} for task in study.tasks}
            if tasks and not there & set(tasks):
                raise UsageError(
                    f"arm {arm} on {', '.join(tasks)}: no study of {', '.join(s.name for s in chosen)} runs it there; "
                    f"it runs on {', '.join(task for task in TARGETS if task in there)}"
                )
        parts = tuple(
            replace(
                study,
                arms=tuple(arm for arm in study.arms if not arms or arm.name in arms),
                tasks=tuple(task for task in study.tasks if not tasks or task in tasks),
            )
            for study in chosen
        )
        return replace(self, studies=parts, seeds=tuple(seeds) if seeds else self.seeds, n=n or self.n)


def _check(what: str, names: Iterable[str] | None, known: Sequence[str]) -> None:
    for name in names or ():
        if name not in known:
            raise unknown(what, name, known)


BASE = Arm("base")
MAIN = (
    BASE,
    *(
        Arm(recipe)
        for recipe in (
            "aligned",
            "random-k",
            "lora",
            "all-heads",
            "bottom-k",
            "generic-k",
            "retain",
            "paper",
            "ffn-only",
            "full",
        )
    ),
)
"""The arms that the paper and its controls name: most train parts of the expert."""
VLM, VLM_RANDOM = Arm("aligned", tower="vlm"), Arm("random-k", tower="vlm")
BOTH, BOTH_RANDOM = Arm("aligned", tower="both"), Arm("random-k", tower="both")
LORA_EVERYWHERE = Arm("lora", targets="all-linear")
REACHING_VLM = (BOTH, VLM, LORA_EVERYWHERE, BOTH_RANDOM, VLM_RANDOM)
"""Arms that reach the vlm, as what the paper compares does: heads there, chosen and random, and LoRA everywhere."""
TRIED = (
    "lighting",
    "form",
    "distractors",
    "paraphrase",
    "pose-shift",
    *GROUPS["unseen"],
    *GROUPS["forgetting"],
)
"""What every main arm is tried on besides its own task."""
ADAPTING = ("marker-in-mug", "press-button-hard", "cube-in-bowl")
"""Tasks on which heads of the expert were found to help (seed 0 of study `success`): the ablations, which are all of
such heads, say nothing where these do not help."""
FEW = 4
"""Heads of the study of methods: with fewer heads their choice has more to say."""


def _arms(recipes: Iterable[str], **changes: Any) -> tuple[Arm, ...]:
    return tuple(Arm(recipe, **changes) for recipe in recipes)


FULL = Plan(
    "full",
    (
        Study("success", "Does finetuning few heads help, against every control?", (*MAIN, *REACHING_VLM)),
        Study(
            "methods",
            "With few heads to spend, does it matter how they are chosen?",
            (
                BASE,
                *_arms(("aligned", "random-k", "bottom-k"), heads=FEW),
                *(Arm("aligned", heads=FEW, by=by) for by in ("ablation", "patching", "atp", "best-add")),
            ),
            tasks=ADAPTING,
        ),
        Study(
            "robustness",
            "What holds under perturbation, what is forgotten?",
            (*MAIN, *REACHING_VLM),
            (IN_DOMAIN, *TRIED),
        ),
        Study(
            "heads",
            "How many heads?",
            (
                BASE,
                *(Arm(recipe, heads=k) for k in (2, FEW, 8, HEADS, 24) for recipe in ("aligned", "random-k")),
                Arm("all-heads"),
            ),
            tasks=ADAPTING,
        ),
        Study(
            "demos",
            "How many demonstrations?",
            (
                BASE,
                *(
                    Arm(recipe, demos=demos)
                    for demos in (1, 5, 10, None, 40)
                    for recipe in ("aligned", "random-k", "lora")
                ),
            ),
            tasks=ADAPTING,
        ),
        Study(
            "steps",
            "How long?",
            (
                BASE,
                *(
                    Arm(recipe, steps=steps)
                    for steps in (50, 100, None, 500, 1000)
                    for recipe in ("aligned", "lora")
                ),
            ),
            tasks=ADAPTING,
        ),
        Study(
            "knn",
            "Does the setting of k-NN matter?",
            (
                BASE,
                *(
                    Arm("aligned", heads=FEW, by=by)
                    for by in ("knn", "knn-10", "knn-40", "knn-euclidean", "knn-chunk")
                ),
            ),
            tasks=ADAPTING,
        ),
        Study(
            "tower",
            "Which tower?",
            (BASE, *_arms(("aligned", "random-k", "lora")), *REACHING_VLM),
        ),
    ),
)

QUICK = Plan(
    "quick",
    (
        Study(
            "success", FULL.study("success").question, MAIN[:4], tasks=("press-button-hard", "cube-in-bowl")
        ),
        Study(
            "robustness",
            FULL.study("robustness").question,
            MAIN[:4],
            (IN_DOMAIN, "lighting", "paraphrase", "pose-shift", "unseen:pick-mug", "forgetting:press"),
            tasks=("cube-in-bowl",),
        ),
        Study(
            "heads",
            FULL.study("heads").question,
            (BASE, *(Arm(recipe, heads=k) for k in (2, HEADS) for recipe in ("aligned", "random-k"))),
            tasks=("cube-in-bowl",),
        ),
    ),
    seeds=(0,),
    n=6,
    demos=4,
    steps=30,
    settings={"frames": 8, "pairs": 2},
)
"""Minutes: shows that everything runs; its numbers mean little."""

PLANS: Mapping[str, Plan] = {plan.name: plan for plan in (FULL, QUICK)}
