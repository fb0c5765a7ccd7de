"""Actions relative to the state, in LeRobot 0.5 and newer: config.json and the processors must say the same.

config.json says whether actions are relative (`use_relative_actions`) and which stay absolute: those whose name
(`action_feature_names`) has one of `relative_exclude_joints` in it. The processors do what their own settings say, and
without a name in them nothing stays absolute; LeRobot's inference fills names in from config.json or the robot. Where
the two differ, a policy is trained on other actions than it is run with: off by the state.
"""

from collections.abc import Iterator
from typing import Any

from interp.data.layout import Layout
from interp.errors import UsageError

RELATIVE = "RelativeActionsProcessorStep"
"""By name: before LeRobot 0.5 there is no such class."""
_ABSOLUTE = "AbsoluteActionsProcessorStep"
SETTING = "use_relative_actions"


def is_relative(config: Any) -> bool:
    return bool(getattr(config, SETTING, False))


def names_of(config: Any, layout: Layout) -> list[str]:
    """What the dimensions of actions are called: as the data have it, or config.json, or by numbers; never nothing,
    which LeRobot would fill in."""
    own: list[str] | None = config.action_feature_names
    given = all(layout.features[feature].get("names") for feature in layout.actions)
    return list(own) if own and not given else layout.names(layout.actions)


def overrides(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of steps of the pre-processor and of the post-processor, as lerobot-train has them."""
    if not is_relative(config):
        return {}, {}
    relative = {
        "enabled": True,
        "exclude_joints": config.relative_exclude_joints,
        "action_names": config.action_feature_names,
    }
    return {"relative_actions_processor": relative}, {"absolute_actions_processor": {"enabled": True}}


def check(config: Any, pre: Any, post: Any, source: str) -> None:
    """Refuse processors that do otherwise than config.json says."""
    if said := next(_differences(config, pre, post), None):
        raise UsageError(
            f"policy {source}: config.json and its processors disagree about relative actions: {said}; set "
            f"config.json as the policy was trained, then `robosteer demos normalise DEMOS NEW --policy {source}` "
            "writes a copy in which they agree"
        )


def _differences(config: Any, pre: Any, post: Any) -> Iterator[str]:
    if not hasattr(config, SETTING):
        return
    steps = {type(step).__name__: step for step in (*pre.steps, *post.steps)}
    relative = steps.get(RELATIVE)
    for name in (RELATIVE, _ABSOLUTE):
        if is_relative(config) != (name in steps and steps[name].enabled):
            state = "off" if is_relative(config) else "on"
            yield f"{SETTING} is {str(is_relative(config)).lower()} and {name} is {state}"
    # A configuration that names nothing contradicts nothing: LeRobot goes by the step.
    if relative is None or not relative.enabled or config.action_feature is None:
        return
    names, dim = config.action_feature_names or relative.action_names, config.action_feature.shape[0]
    configured = type(relative)(True, config.relative_exclude_joints, names)
    for at, both in enumerate(zip(configured._build_mask(dim), relative._build_mask(dim), strict=True)):
        if both[0] != both[1]:
            here, there = ("relative" if each else "absolute" for each in both)
            called = names[at] if at < len(names) else f"action {at}"
            yield f"{called} is {here} by config.json and {there} by {RELATIVE}"
