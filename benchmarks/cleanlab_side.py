"""What cleanlab says about the same masks, from the same network's probabilities; used by `benchmarks/quality.py`.

`cleanlab.segmentation.rank.get_label_quality_scores` wants the class of every pixel as it was drawn, and the
probabilities of a model that did not learn from it. Each mask is an image of two classes for it, object and rest. There
is no telling which probabilities suit it best, so it gets several, and its best counts:

* "located": the segmenter's probabilities for the agent's own target of the label that fits the mask best (nothing,
  where it has none). They owe nothing to the mask but the choice among targets.
* "boxed": those for the box of the mask itself. They see what is wrong inside of a box, and not that the box is wrong.
* each on the whole image, and on the surroundings of mask and target alone, where there are fewer easy pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from label_studio_segagent import Click, SegAgent
from label_studio_segagent.hlmat.arrays import Image, mask_box
from label_studio_segagent.quality.evidence import Judged
from label_studio_segagent.segmenters.base import Segmentation

__all__ = ["FEEDS", "cleanlab_rank", "cleanlab_scores"]

FEEDS = ("located, whole", "located, near", "boxed, whole", "boxed, near")
_MARGIN = 0.25
"""What surrounds a box, as a share of its sides."""
_SURE = 1e-3

Probabilities = npt.NDArray[np.float32]


def cleanlab_rank() -> ModuleType | None:
    """`cleanlab.segmentation.rank`, or None where cleanlab is not installed."""
    try:
        return importlib.import_module("cleanlab.segmentation.rank")
    except ImportError:
        return None


def cleanlab_scores(rank: ModuleType, agent: SegAgent, image: Image, judged: Sequence[Judged]) -> list[list[float]]:
    """For each mask of an image its label quality by each of `FEEDS`, in [0, 1], larger for better ones."""
    return [[_score(rank, one.mask, fed) for fed in _feeds(agent, image, one)] for one in judged]


def _score(rank: ModuleType, mask: npt.NDArray[np.bool_], fed: tuple[Probabilities, tuple[slice, slice]]) -> float:
    inside, window = fed
    labels, p = mask[window].astype(np.int64), inside[window]
    scores, _ = rank.get_label_quality_scores(labels[None], np.stack([1 - p, p])[None], verbose=False)
    return float(scores[0])


def _feeds(agent: SegAgent, image: Image, one: Judged) -> Iterator[tuple[Probabilities, tuple[slice, slice]]]:
    """(probability of the object, the window that counts), in the order of `FEEDS`."""
    state, size, box = agent.encode(image), one.mask.shape, mask_box(one.mask)
    assert box is not None
    whole = (slice(0, size[0]), slice(0, size[1]))
    target = one.target
    if target is None:
        located, boxes = np.full(size, _SURE, np.float32), [box]
    elif target.box is not None:
        located = _probability(agent.segmenter.predict(state, (), box=target.box), size)
        boxes = [box, target.box]
    else:
        assert target.point is not None
        located, boxes = _probability(agent.segmenter.predict(state, [Click(*target.point, True)]), size), [box]
    yield located, whole
    yield located, _window(boxes, size)
    boxed = _probability(agent.segmenter.predict(state, (), box=box), size)
    yield boxed, whole
    yield boxed, _window([box], size)


def _probability(answer: Segmentation, size: tuple[int, ...]) -> Probabilities:
    """The logits as probabilities, float32 (H, W), as large as the image."""
    logits: Any = cv2.resize(answer.logits.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))), np.float32)


def _window(boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, ...]) -> tuple[slice, slice]:
    x0, y0 = (min(b[i] for b in boxes) for i in (0, 1))
    x1, y1 = (max(b[i] for b in boxes) for i in (2, 3))
    dx, dy = _MARGIN * (x1 - x0) + 2, _MARGIN * (y1 - y0) + 2
    return (
        slice(max(0, int(y0 - dy)), min(size[0], int(y1 + dy) + 1)),
        slice(max(0, int(x0 - dx)), min(size[1], int(x1 + dx) + 1)),
    )
