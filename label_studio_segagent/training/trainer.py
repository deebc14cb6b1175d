"""What all ways to fine-tune a model have in common: trajectories in, the name of a better model out.

A trainer belongs to one model family. It reads trajectories only: `Step.mask` is what the policy saw,
`Step.true_iou` and `Step.action` what it should have answered, `Trajectory.target` what the object really is.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..datasets.image_file import read_image
from ..defaults import FIT_MINUTES
from ..errors import ConfigError, InputError
from ..hlmat.arrays import Image
from ..hlmat.trajectory import Trajectory
from ..segmenters.base import Segmenter

__all__ = [
    "FitSettings", "Fitted", "ImageReader", "Progress", "Trainer", "keep_back", "load_segmenter_trainer",
    "load_trainer", "open_image", "start_run", "trainable", "weight_of",
]  # fmt: skip

_KEPT_BACK = 0.1
"""Share of the images whose trajectories are kept back to see when to stop."""
_FEWEST = 10
"""Images below which none are kept back."""
_TRACES = ("checkpoint*", "*.csv", "*.safetensors")
"""Files that a training leaves, finished or not: checkpoints, curves, weights."""

ImageReader = Callable[[Trajectory], Image]
"""Gives the image of a trajectory, RGB uint8 (H, W, 3)."""
Progress = Callable[[float, str], None]
"""Called with the share done, in [0, 1], and a few words about what is going on."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How long and how hard to learn.

    Attributes:
        seconds: Time budget; training ends in good order when it is used up.
        epochs: Passes over the trajectories, at most; None for the family's own.
        rate: Learning rate, or None for the family's own.
        patience: Evaluations without a better loss on kept-back trajectories after which training stops.
        seed: Of everything random.
    """

    seconds: float = FIT_MINUTES * 60
    epochs: float | None = None
    rate: float | None = None
    patience: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model.

    Attributes:
        model: Its name, as `load_policy` or `load_segmenter` take it.
        steps: Optimizer steps made.
        loss: On kept-back trajectories, or on the last steps where there were too few to keep any back.
        seconds: How long it took, resumed runs included.
    """

    model: str
    steps: int
    loss: float
    seconds: float


class Trainer(ABC):
    """Fine-tunes a model of one family.

    Args:
        start: The model to start from, as `load_policy` or `load_segmenter` take it.

    Attributes:
        clicks: Whether it learns from clicks. If not, the targets of trajectories are all it needs.
    """

    clicks: ClassVar[bool] = True

    def __init__(self, start: str) -> None:
        self.start = start

    @abstractmethod
    def fit(
        self,
        trajectories: Sequence[Trajectory],
        out: Path,
        settings: FitSettings | None = None,
        *,
        images: ImageReader | None = None,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> Fitted:
        """Train a copy of the start model; the start model stays as it is.

        Args:
            trajectories: What to learn from; `weight_of` says how much each counts.
            out: Folder for the result, `checkpoint*`, curves (`curves.csv`, `curves.png`, TensorBoard event files).
            settings: The defaults of `FitSettings` by default.
            images: By default the file that a trajectory names.
            resume: Go on from the checkpoint in `out`, where there is one.
            progress: Told what happens.

        Raises:
            InputError: There is nothing to learn from, or `out` holds a run that is not to be resumed.
            ConfigError: The start model cannot be loaded, or an extra is missing.
        """


def start_run(out: Path, resume: bool) -> None:
    """Make the folder of a training, which must not overwrite what another one has left there.

    Raises:
        InputError: It holds a training, and `resume` does not say that this one goes on with it.
    """
    used = [path.name for pattern in _TRACES for path in out.glob(pattern)]
    if used and not resume:
        raise InputError(f"{out} holds a run already ({used[0]}): resume it (--resume), or name another folder")
    out.mkdir(parents=True, exist_ok=True)


def keep_back(trajectories: Sequence[Trajectory], seed: int) -> tuple[list[Trajectory], list[Trajectory]]:
    """Trajectories kept back, and those to learn from; all of one image are on the same side, whatever else there is.

    Args:
        trajectories: All.
        seed: Decides, with the names of the images, which side an image is on.
    """
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.image, []).append(trajectory)
    if len(groups) < _FEWEST:
        return [], list(trajectories)
    order = sorted(groups, key=lambda image: hashlib.sha256(f"{seed} {image}".encode()).digest())
    held = set(order[: max(1, round(_KEPT_BACK * len(order)))])
    return [t for t in trajectories if t.image in held], [t for t in trajectories if t.image not in held]


def weight_of(trajectory: Trajectory) -> float:
    """How much a trajectory counts in training: its meta's "weight", 1 by default."""
    weight = trajectory.meta.get("weight", 1.0)
    return float(weight) if isinstance(weight, (int, float)) and weight >= 0 else 1.0


def open_image(trajectory: Trajectory) -> Image:
    """The image file that a trajectory names.

    Raises:
        InputError: It cannot be read.
    """
    size = trajectory.steps[0].mask.shape if trajectory.steps else None
    exif = trajectory.meta.get("exif")
    return read_image(Path(trajectory.image), size, exif if exif in ("applied", "ignored") else None)


def trainable(policy: str) -> bool:
    """Whether there is a trainer for a policy, by its name."""
    return policy.partition(":")[0] in ("embedded", "hf")


def load_trainer(start: str, segmenter: Segmenter | None = None) -> Trainer:
    """The trainer for a policy.

    Args:
        start: The model to start from, as `load_policy` takes it.
        segmenter: The one that the policy works with; the embedded policy looks through its eyes.

    Raises:
        ConfigError: Models of that family cannot be trained here.
    """
    family = start.partition(":")[0]
    if family == "embedded":
        from .embedded_trainer import EmbeddedPolicyTrainer

        return EmbeddedPolicyTrainer(start, segmenter)
    if family == "hf":
        from .mllm_trainer import MllmTrainer

        return MllmTrainer(start)
    raise ConfigError(f"{start!r} cannot be trained; trainable: embedded, hf:<model>, hf:<model>+<adapter>")


def load_segmenter_trainer(start: str) -> Trainer:
    """The trainer for a segmenter.

    Args:
        start: The segmenter to start from, as `load_segmenter` takes it.

    Raises:
        ConfigError: Segmenters of that family cannot be trained here.
    """
    if start.partition(":")[0] != "embedded":
        raise ConfigError(f"the segmenter {start!r} cannot be trained; trainable: embedded, embedded:<weights>")
    from .segmenter_trainer import EmbeddedSegmenterTrainer

    return EmbeddedSegmenterTrainer(start)
