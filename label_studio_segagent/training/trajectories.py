"""HLMAT trajectories: the simulated annotator F_sim segments objects whose masks are known, click by click.

A trajectory goes on while every click raises the IoU by more than tau_diff. It ends at tau_stop, at the first click
that does not (which is left out), or after T clicks. Each answer rates the mask that was shown, *before* its click.
Source: SegAgent (arXiv 2503.08625), section 3 and its released generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..defaults import ANNOTATOR_STOP_IOU, MAX_CLICKS, SPOILED_STARTS
from ..errors import ConfigError
from ..hlmat.actions import GRAMMARS, Action, Answer, Click, Finish
from ..hlmat.annotator import SimulatedAnnotator
from ..hlmat.arrays import Box, Mask, mask_box
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Sample, Step, Trajectory, encode_mask
from ..segmenters.base import ImageState, Segmenter
from .mask_corruption import corrupt_mask

__all__ = [
    "KINDS",
    "TrajectorySettings",
    "correction",
    "loose_box",
    "make_trajectory",
    "spoiled_mask",
    "trajectories_of",
]

KINDS = ("empty", "box", "refine", "auxiliary")
"""From what a trajectory starts: nothing, a box, a corrupted mask; or a single correction of a corrupted mask."""
_LOOSE = 0.05
"""How far a side of a box is off, as a share of the box's extent (standard deviation)."""
_SPOILED_SIDE = 512
"""Long side at which masks are corrupted: the kernels grow with the object, and their cost with the square of it."""
_TRIES = 12
_OTHERS = 4


@dataclass(frozen=True, slots=True)
class TrajectorySettings:
    """Which trajectories are made of an object, and when they end.

    Attributes:
        stop_iou: tau_stop; the annotator is content at this IoU.
        least_gain: tau_diff; a click must raise the IoU by more than this.
        max_clicks: T, the most clicks of a trajectory.
        empty: Trajectories from an empty mask (0 or 1: they are all the same).
        box: Trajectories from a box around the object, as a detector might draw it.
        refine: Trajectories from a corrupted mask.
        auxiliary: Single steps from a corrupted mask to the centre of its largest error.
        seed: Of everything random.
    """

    stop_iou: float = ANNOTATOR_STOP_IOU
    least_gain: float = 0.0
    max_clicks: int = MAX_CLICKS
    empty: int = 1
    box: int = 0
    refine: int = SPOILED_STARTS
    auxiliary: int = SPOILED_STARTS
    seed: int = 0

    def __post_init__(self) -> None:  # noqa: D105
        if not 0 < self.stop_iou <= 1:
            raise ConfigError(f"tau_stop is {self.stop_iou}; it is an IoU, above 0 and at most 1")
        if not self.least_gain < 1:
            raise ConfigError(f"tau_diff is {self.least_gain}; it is a gain in IoU, below 1")
        if min(self.max_clicks, self.empty, self.box, self.refine, self.auxiliary) < 0 or self.empty > 1:
            raise ConfigError(
                f"numbers of clicks and trajectories must be 0 or more, those from nothing 0 or 1: {self}"
            )

    @property
    def plan(self) -> list[tuple[str, int]]:
        """(kind, number) of every trajectory of an object."""
        return [(kind, number) for kind in KINDS for number in range(getattr(self, kind))]

    @property
    def rules(self) -> dict[str, Any]:
        """What decides how a trajectory comes out, as JSON; not how many there are."""
        return {name: value for name, value in asdict(self).items() if name not in KINDS}


def trajectories_of(
    sample: Sample, segmenter: Segmenter, state: ImageState, others: Sequence[Mask], settings: TrajectorySettings,
    keys: Sequence[tuple[str, int]], seed: Sequence[int],
) -> Iterator[tuple[tuple[str, int], Trajectory]]:  # fmt: skip
    """The planned trajectories of one object, each with its (kind, number).

    What comes out depends on the object, the settings and the seed only, and not on what was made before.

    Args:
        sample: The object; its mask is not empty.
        segmenter: Turns clicks into masks.
        state: The image as the segmenter encoded it.
        others: Masks of other objects on the image, for corruptions.
        settings: When trajectories end.
        keys: Which ones to make; see `TrajectorySettings.plan`.
        seed: Of this object.
    """
    for kind, number in keys:
        rng = np.random.default_rng([settings.seed, KINDS.index(kind), number, *seed])
        start: Mask | None = None
        if kind in ("refine", "auxiliary"):
            start = spoiled_mask(sample, others, rng, settings.stop_iou)
            if start is None:
                continue
        if kind == "auxiliary" and start is not None:
            trajectory = correction(sample, start)
        else:
            box = loose_box(sample.mask, rng) if kind == "box" else None
            trajectory = make_trajectory(
                sample, segmenter, settings, start=start, box=box, state=segmenter.fresh(state)
            )
        trajectory.meta["kind"] = kind
        yield (kind, number), trajectory


def make_trajectory(
    sample: Sample,
    segmenter: Segmenter,
    settings: TrajectorySettings | None = None,
    *,
    start: Mask | None = None,
    box: Box | None = None,
    state: ImageState | None = None,
) -> Trajectory:
    """Segment an object as F_sim does.

    Args:
        sample: The object.
        segmenter: Turns clicks into masks.
        settings: When it ends; the defaults by default.
        start: A mask to start from, bool (H, W).
        box: (x0, y0, x1, y1) pixels to start from; it stays a prompt for every click.
        state: The image as the segmenter encoded it, where it has already.

    Returns:
        The states with the clicks made in them, and at last the state that nothing was done in. Its action is Finish
        where no click was needed, or where clicks had helped and one more did not. It is None, with an empty text,
        where no click was left (T) or none had helped at all: nobody should learn to finish there. The meta says why it
        `stopped` ("good enough", "no gain", "clicks" or "no error": none that could be clicked), and has the `target`.
    """
    settings = settings or TrajectorySettings()
    state = segmenter.set_image(sample.image) if state is None else state
    annotator = SimulatedAnnotator(settings.stop_iou)
    prior: npt.NDArray[Any] | None = start
    mask = np.zeros_like(sample.mask) if start is None else start
    if box is not None:
        answer = segmenter.predict(state, (), box=box, prior=prior)
        mask, prior = answer.mask, answer.logits
    trajectory = _trajectory(sample, box)
    clicks: list[Click] = []
    now = iou(mask, sample.mask, sample.void)
    while True:
        action = annotator.next_action(mask, sample.mask, clicks, sample.void)
        if isinstance(action, Finish):
            stopped = "good enough" if now >= settings.stop_iou else "no error"
            break
        if len(clicks) >= settings.max_clicks:
            stopped = "clicks"
            break
        answer = segmenter.predict(state, [*clicks, action], box=box, prior=prior)
        then = iou(answer.mask, sample.mask, sample.void)
        if then - now <= settings.least_gain:
            stopped = "no gain"
            break
        trajectory.steps.append(_step(mask, action, now))
        clicks.append(action)
        mask, prior, now = answer.mask, answer.logits, then
    unfinished = stopped == "clicks" or (stopped == "no gain" and not clicks) or not mask.any()
    trajectory.steps.append(_step(mask, None if unfinished else Finish(), now))
    trajectory.meta["stopped"] = stopped
    return trajectory


def correction(sample: Sample, mask: Mask) -> Trajectory:
    """One step: a mask, and the click in the middle of its largest error."""
    action = SimulatedAnnotator(stop_iou=1.0).next_action(mask, sample.mask, (), sample.void)
    trajectory = _trajectory(sample, None)
    trajectory.steps.append(_step(mask, action, iou(mask, sample.mask, sample.void)))
    trajectory.meta["stopped"] = "one step"
    return trajectory


def _trajectory(sample: Sample, box: Box | None) -> Trajectory:
    return Trajectory(sample.prompt, sample.path, box, meta={**sample.meta, "target": encode_mask(sample.mask)})


def _step(mask: Mask, action: Action | None, now: float) -> Step:
    text = "" if action is None else GRAMMARS["segagent"]().format(Answer(action, now), mask.shape)
    return Step(mask, action, true_iou=now, text=text)


def loose_box(mask: Mask, rng: np.random.Generator) -> Box:
    """The box around a mask, each side a little off; inside the image, at least one pixel wide and high."""
    tight = mask_box(mask)
    assert tight is not None
    extent = np.array([tight[2] - tight[0], tight[3] - tight[1]] * 2)
    x0, y0, x1, y1 = (float(v) for v in np.array(tight) + rng.normal(0, _LOOSE, 4) * extent)
    height, width = mask.shape
    x0, y0 = min(max(x0, 0.0), width - 1.0), min(max(y0, 0.0), height - 1.0)
    return x0, y0, min(max(x1, x0 + 1), float(width)), min(max(y1, y0 + 1), float(height))


def spoiled_mask(
    sample: Sample, others: Sequence[Mask], rng: np.random.Generator, stop_iou: float = ANNOTATOR_STOP_IOU
) -> Mask | None:
    """A corrupted mask of an object that is neither empty nor good enough; None where none came out in some tries.

    Args:
        sample: The object.
        others: Masks of other objects on the image.
        rng: Source of chance.
        stop_iou: From this IoU on a mask is good enough.
    """
    height, width = sample.mask.shape
    scale = min(1.0, _SPOILED_SIDE / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    target = _resize(sample.mask, small)
    shown = [_resize(mask, small) for mask in others[:_OTHERS]]
    for _ in range(_TRIES if target.any() else 0):
        spoiled = _resize(corrupt_mask(target, shown, rng), (width, height))
        if spoiled.any() and iou(spoiled, sample.mask, sample.void) < stop_iou:
            return spoiled
    return None


def _resize(mask: Mask, size: tuple[int, int]) -> Mask:
    if mask.shape == size[::-1]:
        return mask
    return np.asarray(cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5)
