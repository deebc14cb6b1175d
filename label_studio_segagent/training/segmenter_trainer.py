"""Teaching the embedded segmenter the objects of a project: minutes on a CPU, and the policy goes on working with it.

The decoder alone learns. What the encoder says about an image stays the same to the bit: the embedded policy looks
through it, no gradient has to go through it, and some dozens of images would rather spoil than improve it.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ..errors import ConfigError, InputError
from ..hlmat.actions import Click
from ..hlmat.annotator import SimulatedAnnotator
from ..hlmat.arrays import Image, Mask
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Trajectory, decode_mask, encode_mask
from ..segmenters import ImageState, load_segmenter
from ..segmenters.embedded import EmbeddedSegmenter
from ..segmenters.embedded_net import SegmenterNet
from .curves import Curves
from .running import rate_factor
from .segmenter_data import CropDataset, Source
from .segmenter_report import save_weights
from .segmenter_steps import train_on
from .trainer import FitSettings, Fitted, ImageReader, Progress, Trainer, keep_back, open_image, start_run, weight_of

__all__ = ["EmbeddedSegmenterTrainer"]

_RATE = 3e-4
_PASSES, _STEPS = 30.0, 240
"""Passes over the objects and optimizer steps, whichever is more, unless the settings say how many passes."""
_CROPS = ((256, 6), (320, 4))
"""Batches: side in pixels, crops."""
_TARGETS, _CLICKS = 2, 3
"""Objects of a crop, at most, and clicks on each of them that are learned from."""
_ROUND = 40
"""Steps between two looks at what was kept back."""
_EXAM, _EXAM_CLICKS = 24, 3
"""Objects kept back that are segmented, at most, and clicks on each."""
_AVERAGE = 0.98
_LEAST = 16
"""Pixels of the smallest object that is learned from."""
_LONGEST, _OPEN = 1600, 48
"""Larger images are shrunk to this side; so many are kept in memory."""


class EmbeddedSegmenterTrainer(Trainer):
    """Fine-tunes the decoder of an embedded segmenter on the targets of trajectories.

    Clicks are made up on the way, from the network's own errors. The loss that is reported and stopped by is one minus
    the mean IoU after one to three clicks of F_sim on objects kept back; the start model is in the competition, so that
    the result is no worse there. With too few images to keep any back it is the training loss.

    Args:
        start: "embedded" or "embedded:<weights>".
    """

    clicks = False

    def __init__(self, start: str) -> None:
        super().__init__(start)
        segmenter = load_segmenter(start)
        if not isinstance(segmenter, EmbeddedSegmenter):
            raise ConfigError(f"{start!r} is no embedded segmenter")
        self.segmenter = segmenter

    @override
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
        settings, report = settings or FitSettings(), progress or (lambda share, step: None)
        start_run(out, resume)
        # A picture of nothing, kept back, would leave nothing to judge by.
        kept, learned = keep_back([t for t in trajectories if _teaches(t)], settings.seed)
        sources, exam = _sources(learned, images or open_image), _sources(kept, images or open_image)
        if not sources:
            raise InputError(f"none of the {len(trajectories)} trajectories ends in a mask: nothing to learn from")
        run = _Run(self.segmenter, sources, _Exam(self.segmenter, exam, settings.seed), settings, out)
        if resume:
            run.load()
        run.learn(report)
        path = out / "segmenter.safetensors"
        save_weights(run.finish(), path, self.segmenter.eyes)
        return Fitted(f"embedded:{path}", run.step, run.least, run.seconds)


def _teaches(trajectory: Trajectory) -> bool:
    """Whether it counts and ends in a mask that is no speck."""
    if not trajectory.steps or weight_of(trajectory) <= 0:
        return False
    return bool(np.count_nonzero(_target(trajectory)) >= _LEAST)


def _sources(trajectories: Sequence[Trajectory], images: ImageReader) -> list[Source]:
    """The images with the objects in them, each once."""
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.image or str(id(trajectory)), []).append(trajectory)
    heaviest = max((min(map(weight_of, group)) for group in groups.values()), default=1.0)

    @lru_cache(maxsize=_OPEN)
    def read(key: str, size: tuple[int, int]) -> Image:
        image = images(groups[key][0])
        if image.shape[:2] != size:
            raise InputError(
                f"masks on the image {key!r} are {size[1]} x {size[0]} pixels large, the image is "
                f"{image.shape[1]} x {image.shape[0]}"
            )
        scale = min(1.0, _LONGEST / max(size))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
        return np.asarray(small, np.uint8)

    found = []
    for key, group in sorted(groups.items()):
        masks = {mask.tobytes(): mask for mask in map(_target, group)}
        sizes = sorted({mask.shape for mask in masks.values()})
        if len(sizes) > 1:
            raise InputError(f"masks on the image {key!r} have different sizes (height, width): {sizes}")
        rles = [encode_mask(small) for mask in masks.values() if (small := _shrink(mask)).any()]
        if rles:
            found.append(Source(partial(read, key, sizes[0]), rles, min(map(weight_of, group)) / heaviest))
    return found


def _target(trajectory: Trajectory) -> Mask:
    target = trajectory.target
    assert target is not None  # those without a step have been left out
    return target


def _shrink(mask: Mask) -> Mask:
    """A mask at the size at which its image is looked at."""
    scale = min(1.0, _LONGEST / max(mask.shape))
    if scale == 1:
        return mask
    return np.asarray(cv2.resize(mask.astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) > 0)


class _Exam:
    """Objects that nothing is learned from, clicked by F_sim through the segmenter's own code."""

    def __init__(self, segmenter: EmbeddedSegmenter, sources: Sequence[Source], seed: int) -> None:
        self.segmenter = copy.copy(segmenter)
        objects = [(source, rle) for source in sources for rle in source.rles]
        chosen = np.random.default_rng(seed).permutation(len(objects))[:_EXAM]
        self._objects = [objects[int(i)] for i in sorted(chosen)]
        self._states: list[ImageState] = []

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._objects)

    def loss(self, net: SegmenterNet) -> float:
        """One minus the mean IoU after each of the clicks, with a network that has the same encoder."""
        if not self._states:
            self._states = [self.segmenter.set_image(source.image()) for source, _ in self._objects]
        self.segmenter.net = net
        ious: list[float] = []
        for state, (_, rle) in zip(self._states, self._objects, strict=True):
            ious += self._click(self.segmenter.fresh(state), decode_mask(rle))
        return 1.0 - float(np.mean(ious))

    def _click(self, state: ImageState, target: Mask) -> list[float]:
        mask, logits, clicks, ious = np.zeros_like(target), None, list[Click](), list[float]()
        for _ in range(_EXAM_CLICKS):
            action = SimulatedAnnotator().next_action(mask, target, clicks)
            if isinstance(action, Click):
                clicks.append(action)
                found = self.segmenter.predict(state, clicks, prior=logits)
                mask, logits = found.mask, found.logits
            ious.append(iou(mask, target))
        return ious


class _Run:
    """One training, with checkpoints."""

    def __init__(
        self, segmenter: EmbeddedSegmenter, sources: Sequence[Source], exam: _Exam, settings: FitSettings, out: Path
    ) -> None:
        self.sources, self.exam, self.settings, self.out, self.start = sources, exam, settings, out, segmenter.version
        self.net, self.average = copy.deepcopy(segmenter.net).train(), copy.deepcopy(segmenter.net)
        self.weights, self.means = self.net.decoding(), self.average.decoding()
        for weight in self.weights:
            weight.requires_grad_()
        self.optimizer = torch.optim.AdamW(self.weights, settings.rate or _RATE, betas=(0.9, 0.99), weight_decay=0.0)
        objects, batch = sum(len(s.rles) for s in sources), _TARGETS * sum(n for _, n in _CROPS) / len(_CROPS)
        self.steps = math.ceil((settings.epochs or _PASSES) * objects / batch)
        if settings.epochs is None:
            self.steps = max(self.steps, _STEPS)
        self.step, self.worse, self.least, self.spent = 0, 0, math.inf, 0.0
        self.best = self._copy()
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent, interrupted runs included."""
        return self.spent + time.monotonic() - self.started

    @property
    def share(self) -> float:
        """How much of the steps or of the time is used up, whichever is more."""
        return min(1.0, max(self.step / self.steps, self.seconds / self.settings.seconds))

    def learn(self, report: Progress) -> None:
        """Go on until the time is up, the steps are made, or nothing is gained any more."""
        curves = Curves(self.out, ("loss", "quality_error", "kept_back"), self.step)
        if self.exam and not self.step:
            report(0.0, "judging the start model")
            self.least = self.exam.loss(self.average)
            curves.add(0, self.seconds / 60, {"kept_back": self.least})
        while self.share < 1 and not (self.exam and self.worse >= self.settings.patience):
            losses = self._round(report)
            judgement = {"kept_back": self.exam.loss(self.average)} if self.exam else {}
            loss = judgement.get("kept_back", losses["loss"])
            self.worse = 0 if loss < self.least else self.worse + 1
            if loss < self.least or not self.exam:
                self.least, self.best = loss, self._copy()
            curves.add(self.step, self.seconds / 60, losses | judgement)
            self.save()
        curves.close()

    def finish(self) -> SegmenterNet:
        """The network with the best weights."""
        with torch.no_grad():
            for weight, best in zip(self.means, self.best, strict=True):
                weight.copy_(best)
        (self.out / "checkpoint.pt").unlink(missing_ok=True)
        return self.average

    def save(self) -> None:
        """Write the checkpoint; always whole."""
        state = {
            "start": self.start, "weights": [w.detach() for w in self.weights], "means": self.means, "best": self.best,
            "optimizer": self.optimizer.state_dict(), "step": self.step, "worse": self.worse, "least": self.least,
            "spent": self.seconds,
        }  # fmt: skip
        temporary = self.out / "checkpoint.part"
        torch.save(state, temporary)
        temporary.replace(self.out / "checkpoint.pt")

    def load(self) -> None:
        """Go on from the checkpoint, if there is one that began with the same model."""
        path = self.out / "checkpoint.pt"
        state: Mapping[str, Any] = torch.load(path, weights_only=True) if path.exists() else {}
        if state.get("start") != self.start:
            return
        with torch.no_grad():
            for mine, stored in ((self.weights, state["weights"]), (self.means, state["means"])):
                for weight, value in zip(mine, stored, strict=True):
                    weight.copy_(value)
        self.best = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.worse, self.least, self.spent = (state[k] for k in ("step", "worse", "least", "spent"))

    def _copy(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.means]

    def _round(self, report: Progress) -> dict[str, float]:
        """Some steps, whose chances depend on nothing but the seed and where they start; their mean losses."""
        # A fresh data set remembers no answers, and so a resumed run does what an uninterrupted one would have done.
        dataset, rng = CropDataset([self.sources], [1.0]), np.random.default_rng((self.settings.seed, self.step))
        reports = []
        for _ in range(min(_ROUND, self.steps - self.step)):
            rate = (self.settings.rate or _RATE) * rate_factor(self.step, 10, self.share, 0.5)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            size, count = _CROPS[int(rng.integers(len(_CROPS)))]
            samples = [dataset.sample(rng, size, _TARGETS) for _ in range(count)]
            self.optimizer.zero_grad(set_to_none=True)
            done = train_on(self.net, samples, dataset, rng, steps=_CLICKS, frozen=0)
            if math.isfinite(float(torch.nn.utils.clip_grad_norm_(self.weights, 2.0))):
                self.optimizer.step()
            decay = min(_AVERAGE, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for mean, now in zip(self.means, self.weights, strict=True):
                    mean.lerp_(now, 1 - decay)
            self.step += 1
            reports.append((done.loss, done.quality_error))
            report(self.share, f"learning {sum(len(s.rles) for s in self.sources)} objects")
            if self.share >= 1:
                break
        loss, quality = np.mean(reports, 0)
        return {"loss": float(loss), "quality_error": float(quality)}
