"""Made-up records of a reproduction with effects that are known, and made-up scores of heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from interp.scores import HeadScores, TowerScores
from steering.episode import Episode
from steering.reproduce import maps
from steering.reproduce.plan import FULL, Arm, Plan
from steering.reproduce.records import write_costs, write_record
from steering.results import Result
from steering.suites import SUITES

Rate = Callable[[str, str, str], float]
"""Success rate of (arm, task, suite)."""
LAYERS, HEADS, LIVE = 8, 8, 64
FACTORS = ("visual", "linguistic", "physical")


def write_results(directory: Path, plan: Plan, rate: Rate, n: int | None = None) -> Path:
    """Records of all cells of a plan. An episode is as hard for every arm, so differences are exactly paired: with a
    rate of 0.6, the 60 % of layouts that are easiest succeed."""
    n = n or plan.n
    made: dict[tuple[str, str], list[tuple[int, Result]]] = {}
    for job in plan.jobs():
        for suite in job.suites:
            made.setdefault((job.task, job.arm.name), []).append(
                (
                    job.seed,
                    _result(job.task, job.arm, job.seed, suite, rate(job.arm.name, job.task, suite), n),
                )
            )
    for (task, arm), results in made.items():
        write_record(directory, results, f"robosteer reproduce --tasks {task} --arms {arm}")
        write_costs(directory, results)
    return directory


def _result(task: str, arm: Arm, seed: int, name: str, rate: float, n: int) -> Result:
    suite = SUITES[name]
    condition = suite.condition(task)
    hardness = np.random.default_rng([7, *map(ord, condition.task + name)]).permutation(n)
    episodes = tuple(
        Episode(i, bool(h < round(rate * n)), 20, None if h < round(rate * n) else "dropped")
        for i, h in enumerate(hardness)
    )
    trained = arm.trained
    counts = {"full": 3_300_000, "all-heads": 260_000, "paper": 280_000, "ffn-only": 170_000}
    lora = {"lerobot": 68_000, "all-linear": 600_000}[arm.targets]
    count = lora if arm.recipe == "lora" else counts.get(arm.recipe, 4_000 * arm.heads * len(arm.towers))
    heads = None
    if trained and arm.recipe not in ("lora", "full", "ffn-only"):
        number = LIVE if arm.recipe == "all-heads" else arm.heads
        drawn = np.random.default_rng([seed, *map(ord, task + arm.name)]).permutation(LIVE)[:number]
        heads = tuple(f"{arm.tower}.L{h // HEADS}H{h % HEADS}" for h in drawn.tolist())
    return Result(
        name=arm.name,
        arm=arm.recipe,
        task=task,
        policy=f"pi0-{task}-{arm.name}-{seed}" if trained else "pi0-base",
        episodes=episodes,
        trainable_parameters={"expert query rows": count} if trained else {},
        seconds={
            "train": 900.0,  # others shared the machine
            "train_processor": 60.0 + 10 * (arm.recipe == "lora") + 30 * (arm.tower == "vlm") + seed
            if trained
            else 0.0,
            "evaluate": 40.0,
        },
        peak_memory_mb=900.0 if trained else None,
        heads=heads,
        settings={
            "rolled_out": condition.task,
            **json.loads(json.dumps(condition.options)),
            "execute": 2,
            **(
                {"seed": seed, "data": f"demos-{task}-{seed}", "recipe": {"name": arm.recipe}}
                if trained
                else {}
            ),
        },
        suite=name,
        factor=suite.factor,
    )


def write_scores(directory: Path, tasks: tuple[str, ...]) -> Path:
    """Scores that differ by task and method, in files as `maps.make` writes them."""
    for task in tasks:
        for what in (*maps.METHODS, "stability"):
            for tower in maps.TOWERS:
                _write(directory, task, f"{what}-{tower}", _scores(what, (tower,), [*map(ord, task + what)]))
        for factor in FACTORS:
            scores = _scores("patching-denoising", maps.TOWERS, [*map(ord, task + factor)], factor)
            _write(directory, task, factor, scores)
        rng = np.random.default_rng([*map(ord, task)])
        share = rng.dirichlet((0.6, 0.6, 0.6), 120)
        heads = [
            f"{tower}.L{i // 8}H{i % 8}" for tower, live in (("expert", 64), ("vlm", 56)) for i in range(live)
        ]
        profile = {
            "factors": FACTORS,
            "heads": heads,
            "share": share.tolist(),
            "strength": share.max(1).tolist(),
        }
        profile |= {"low": (share * 0.8).tolist(), "high": np.minimum(1, share * 1.2).tolist()}
        maps.path(directory, task, "profile").write_text(json.dumps(profile))
    return directory


def _scores(what: str, towers: tuple[str, ...], seed: list[int], factor: str | None = None) -> HeadScores:
    rng = np.random.default_rng(seed)
    made = {}
    for tower in towers:
        value = rng.random((LAYERS, HEADS)) ** 3
        dead: tuple[tuple[int, int], ...] = ()
        if tower == "vlm":
            value[-1] = np.nan
            dead = tuple((LAYERS - 1, h) for h in range(HEADS))
        made[tower] = TowerScores(value, value * 0.8, value * 1.2, dead=dead)
    agreement = {
        tower: {
            name: {"mean": 0.6, "low": 0.5, "high": 0.7, "chance": 2.25}
            for name in ("spearman", "kendall", "shared")
        }
        for tower in towers
    }
    size = {"value": 0.2, "low": 0.15, "high": 0.25, "pairs": 30}
    words = {**size, "value": 0.04, "low": 0.03, "high": 0.05}
    control = {"words": words, "empty_prompt": size, "blind": False} if factor == "linguistic" else None
    return HeadScores(
        method=what, label=what, units="share", higher_is_better=what != "knn", towers=made, policy="pi0-base",
        data="demos", n={"frames": 10, "pairs": 30}, factor=factor,
        settings={"agreement": agreement, "n": dict.fromkeys(towers, 12), "control": control, "size": size},
    )  # fmt: skip


def _write(directory: Path, task: str, name: str, scores: HeadScores) -> None:
    path = maps.path(directory, task, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(scores.to_json()))


KNOWN_PLAN = FULL.only(studies=["success", "methods", "robustness"], seeds=[0, 1], n=40)


def known(arm: str, task: str, suite: str) -> float:
    """Chosen heads beat LoRA by 20 points, and by 10 if it is everywhere; under lighting they lose by 20; all choices
    of heads are alike, but at 4 heads those by patching are 30 better; all finetuning forgets 40 points, `retain` only
    20."""
    if suite.startswith("forgetting:"):
        return {"base": 0.9, "retain": 0.7}.get(arm, 0.5)
    if suite == "lighting":
        return {"base": 0.3, "lora": 0.5}.get(arm, 0.3)
    return {"base": 0.3, "lora": 0.4, "lora-all-linear": 0.5, "aligned-patching-k4": 0.9}.get(arm, 0.6)
