"""The policy that knows the answer, for evaluation only: what would a perfect annotator reach with this segmenter?"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from typing_extensions import override

from ..datasets.coco import coco_records
from ..datasets.record import load_samples
from ..errors import ConfigError
from ..hlmat.actions import GRAMMARS
from ..hlmat.annotator import SimulatedAnnotator
from ..hlmat.arrays import Image, Mask, mask_box
from ..hlmat.metrics import box_iou, iou
from ..hlmat.trajectory import Sample
from .base import Decision, Observation, Policy, Target

__all__ = ["OraclePolicy", "load_oracle"]

log = logging.getLogger(__name__)

_Answer = tuple[Mask, Mask | None]
"""A target and its void pixels."""


class OraclePolicy(Policy):
    """Clicks like F_sim and rates with the true IoU. Images are recognised by their pixels.

    Args:
        samples: The ground truth; several samples may share image and prompt (instances).
        annotator: How it clicks, and when it finishes.
    """

    def __init__(self, samples: Iterable[Sample], annotator: SimulatedAnnotator | None = None) -> None:
        self.annotator = annotator or SimulatedAnnotator()
        self.grammar = GRAMMARS["segagent"]()
        self._answers: dict[tuple[str, str], list[_Answer]] = {}
        for sample in samples:
            key = (_digest(sample.image), sample.prompt)
            self._answers.setdefault(key, []).append((sample.mask, sample.void))
        known = hashlib.sha256(repr(self.annotator).encode())
        for key, answers in self._answers.items():
            known.update(repr(key).encode())
            for mask, void in answers:
                known.update(np.packbits(mask).tobytes())
                known.update(b"" if void is None else np.packbits(void).tobytes())
        self.version = f"oracle-{known.hexdigest()[:8]}"

    @override
    def locate_batch(self, items: Sequence[tuple[Image, str]]) -> list[list[Target]]:
        return [
            [
                Target(box, None, 1.0)
                for mask, _ in self._answers.get((_digest(image), prompt), [])
                if (box := mask_box(mask))
            ]
            for image, prompt in items
        ]

    @override
    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        return [self._act(observation) for observation in observations]

    def _act(self, seen: Observation) -> Decision:
        answers = self._answers.get((_digest(seen.image), seen.prompt)) or [(np.zeros_like(seen.mask), None)]
        target, void = max(answers, key=lambda answer: _closeness(answer[0], seen))
        action = self.annotator.next_action(seen.mask, target, seen.rejected, void)
        rating = iou(seen.mask, target, void)
        # Exact to a pixel, not to a thousandth as in the text: the oracle measures segmenters, not rounding.
        return Decision(action, rating, self.decide(action, rating, seen.image).text)


def load_oracle(path: str = "") -> OraclePolicy:
    """An oracle that knows the masks of a COCO file, those that can be read; the images lie in `images/` beside it.

    Raises:
        ConfigError: No file is named, it cannot be read, or has no objects.
    """
    if not path:
        raise ConfigError('the oracle needs a COCO file with the answers: "oracle:data/val.json"')
    samples = load_samples(coco_records(Path(path)), lambda record, error: log.warning("%s", error))
    return OraclePolicy(samples)


def _digest(image: Image) -> str:
    return hashlib.blake2b(
        repr(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16
    ).hexdigest()


def _closeness(mask: Mask, seen: Observation) -> tuple[float, float]:
    """How likely an observation is about this instance: by its box where there is one, then by its mask."""
    box = mask_box(mask)
    around = box_iou(box, seen.box) if box and seen.box else 0.0
    return around, iou(mask, seen.mask)
