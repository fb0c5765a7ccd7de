"""Demonstration frames as training examples, with everything that is frozen computed once.

Whatever lies before the first trained parameter is a constant of each frame. `TrainingFrames` finds out where that is
by running the prefix once and looking which layers' inputs require gradients, and keeps, if the budget allows:

expert trains alone          the prefix: keys and values of every vlm layer, all that the expert sees of images and
                             instruction
vlm trains from layer k on   what enters layer k, and the keys and values before it; the vlm then starts at layer k
vision trains                nothing

Changed images (augmentation) are new at every step, and switch this off.

Axis names: frame (of all demonstrations, in order), batch (frames of one step), token, horizon, action.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from interp.demos import Demonstrations
from interp.policies import Batch, Policy, Prefix
from steering.augment import Views
from steering.draws import Draw
from steering.frozen import Constant, first_trained_layer
from steering.recipes import Recipe
from steering.stored import FrameStore

CHUNK = 32  # most frames a forward pass while filling the store
PROBE = (
    3  # frames of the pass that shows what there is to store: no other axis is likely to be of this length
)


@dataclass(frozen=True)
class Examples:
    """Frames of one step, ready for `Policy.loss`. `real` is False where an action does not count."""

    batch: Batch
    prefix: Prefix
    actions: Float[Tensor, "batch horizon action"]
    real: Bool[Tensor, "batch horizon"]


class TrainingFrames:
    """All demonstration frames; `take` gives those of one step. Made after the recipe was applied.

    `start` is the first vlm layer that has to run again at every step: the number of vlm layers if none has,
    None if vision has to.
    """

    def __init__(
        self, policy: Policy, demos: Demonstrations, recipe: Recipe, cache_mb: float, show: bool = True
    ) -> None:
        self._policy, self._demos, self._budget = policy, demos, cache_mb
        actions, padding = demos.chunks(policy.spec.horizon)
        device = next(policy.module.parameters()).device
        self._actions = policy.normalise_actions(
            torch.from_numpy(actions).float().to(device), torch.from_numpy(demos.state).to(device)
        )
        self._real = torch.from_numpy(~padding).to(device)
        if recipe.padding == "repeat":
            self._real = torch.ones_like(self._real)

        self.start = first_trained_layer(policy, self._batch([0]))
        self._augments = recipe.augments
        self.megabytes, self.cached = 0.0, False
        if self.start is not None and not self._augments:
            self._constant = Constant(policy, self.start)
            probe = self._constant.of(self._batch([0] * PROBE))
            if probe is not None:
                store = FrameStore(probe, rows=PROBE, frames=len(self))
                self.megabytes = store.megabytes
                if self.megabytes <= cache_mb:
                    self._store, self.cached = store, True
                    # no more than a step takes, or filling would need the most memory of all
                    self._fill(min(CHUNK, recipe.batch), show)

    def __len__(self) -> int:
        return len(self._demos)

    @property
    def frozen(self) -> bool:
        """Whether nothing of the prefix trains."""
        return self.start == self._policy.spec.tower("vlm").layers

    def __str__(self) -> str:
        if not self.cached:
            return f"prefix computed at every step: {self._reason()}"
        what = (
            "prefix" if self.frozen else "vision" if not self.start else f"vlm up to layer {self.start - 1}"
        )
        return f"{what} of {len(self)} frames computed once ({self.megabytes:.0f} MB)"

    def _reason(self) -> str:
        if self._augments:
            return "images are augmented"
        if self.start is None:
            return "vision or the whole vlm train"
        if self.megabytes:
            return f"{self.megabytes:.0f} MB exceed the budget of {self._budget:.0f} MB"
        return "this family's vlm cannot start in the middle"

    def count(self, draw: Draw) -> int:
        """How many squared errors a step's mean is over."""
        chosen = self._real[torch.from_numpy(draw.rows)]
        return int(chosen.sum()) * draw.draws * self._actions.shape[-1]

    def take(self, draw: Draw) -> Examples:
        picked = torch.from_numpy(draw.rows)
        if self.cached:
            batch, prefix = self._constant.complete(self._store.take(picked))
        else:
            batch = self._batch(draw.rows.tolist(), draw.views)
            with torch.set_grad_enabled(not self.frozen):
                prefix = self._policy.prefix(batch)
        return Examples(batch, prefix, self._actions[picked], self._real[picked])

    def _batch(self, rows: list[int], views: Views | None = None) -> Batch:
        observations = list(self._demos.observations(rows))
        if views is not None:
            cameras = self._policy.spec.cameras  # a data set may hold more, in another order
            wanted = [replace(o, images={c: o.images[c] for c in cameras}) for o in observations]
            observations = [views.apply(row, o) for row, o in enumerate(wanted)]
        return self._policy.batch(observations)

    def _fill(self, chunk: int, show: bool) -> None:
        starts = range(0, len(self), chunk)
        for start in tqdm(starts, desc="frozen activations", unit="batch", disable=not show, leave=False):
            rows = list(range(start, min(start + chunk, len(self))))
            values = self._constant.of(self._batch(rows))
            assert values is not None
            self._store.put(start, values)
