"""Several annotators on the same picture: how well they agree, what most of them drew, who agrees with the truth."""

from __future__ import annotations

import importlib.util
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, InputError
from ..hlmat.arrays import Mask, mask_box
from ..hlmat.metrics import iou
from ..training.evaluation import match_masks

__all__ = ["Agreed", "agreement", "annotator_scores", "consensus", "majority", "pixel_rule", "staple"]

_SAME = 0.3
"""IoU from which objects of several annotators are taken for one."""
PixelRule = Callable[[Sequence[Mask]], Mask]
"""Makes one mask of several of the same object."""
Drawn = Sequence[tuple[str, Mask]]
"""(label, mask) of every object that somebody drew; masks bool (H, W)."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """An object that several annotators drew.

    Attributes:
        label: Its label.
        mask: Its pixels, bool (H, W).
        votes: How many drew it.
        of: How many looked at the picture.
    """

    label: str
    mask: Mask
    votes: int
    of: int


def agreement(one: Drawn, other: Drawn) -> float:
    """How well two annotators agree, in [0, 1]: IoU over matched objects of the same label, 0 for unmatched ones.

    1 where both drew nothing.
    """
    total, count = 0.0, 0
    for label in {label for label, _ in (*one, *other)}:
        first, second = ([mask for name, mask in drawn if name == label] for drawn in (one, other))
        ious, extra = match_masks(second, first)
        total += sum(ious)
        count += len(ious) + extra
    return total / count if count else 1.0


def majority(masks: Sequence[Mask]) -> Mask:
    """The pixels that more than half of some masks have, bool (H, W)."""
    return np.asarray(np.mean(masks, 0) > 0.5)


def staple(masks: Sequence[Mask]) -> Mask:
    """The pixels that probably belong to an object, bool (H, W), with annotators weighed by how reliable they are.

    STAPLE (Warfield et al., IEEE TMI 2004, doi:10.1109/TMI.2004.828354) as SimpleITK has it. It looks at the masks'
    surroundings only, so that its prior does not depend on the size of the picture.
    """
    import SimpleITK

    sitk: Any = SimpleITK
    found = mask_box(np.logical_or.reduce(masks))
    if found is None:
        return np.zeros_like(masks[0])
    x0, y0, x1, y1 = (round(edge) for edge in found)
    # There must be background: without any, STAPLE has no specificity to estimate and gives NaN.
    margins = [(1 + (y1 - y0) // 2,) * 2, (1 + (x1 - x0) // 2,) * 2]
    cuts = [np.pad(mask[y0:y1, x0:x1].astype(np.uint8), margins) for mask in masks]
    likely = sitk.GetArrayFromImage(sitk.STAPLE([sitk.GetImageFromArray(cut) for cut in cuts], 1.0))
    (top, _), (left, _) = margins
    mask = np.zeros_like(masks[0])
    mask[y0:y1, x0:x1] = likely[top : top + y1 - y0, left : left + x1 - x0] > 0.5
    return mask


def pixel_rule(name: str) -> PixelRule:
    """The function of a name: "majority" or "staple".

    Raises:
        ConfigError: What it needs is not installed.
        InputError: There is no such rule.
    """
    if name == "majority":
        return majority
    if name != "staple":
        raise InputError(f"unknown consensus {name!r}; known: majority, staple")
    if importlib.util.find_spec("SimpleITK") is None:
        raise ConfigError("the consensus 'staple' needs SimpleITK: pip install 'label-studio-segagent[staple]'")
    return staple


def consensus(drawn: Sequence[Drawn], rule: PixelRule = majority) -> list[Agreed]:
    """The objects that more than half of the annotators of a picture drew.

    Args:
        drawn: For every annotator what they drew.
        rule: Makes one mask of those of an object.
    """
    groups: list[tuple[str, list[Mask], set[int]]] = []
    for number, objects in enumerate(drawn):
        for label, mask in objects:
            fits = [
                (iou(mask, np.mean(masks, 0) >= 0.5), position)
                for position, (name, masks, who) in enumerate(groups)
                if name == label and number not in who
            ]
            best = max(fits, default=(0.0, -1))
            if best[0] >= _SAME:
                groups[best[1]][1].append(mask)
                groups[best[1]][2].add(number)
            else:
                groups.append((label, [mask], {number}))
    agreed = [
        Agreed(label, rule(masks), len(masks), len(drawn)) for label, masks, _ in groups if 2 * len(masks) > len(drawn)
    ]
    return [one for one in agreed if one.mask.any()]


def annotator_scores(
    pictures: Sequence[Mapping[Hashable, Drawn]], truths: Sequence[Drawn | None]
) -> dict[Hashable, dict[str, float | int | None]]:
    """For every annotator how well they agree with the others, and with ground truth.

    Args:
        pictures: For each picture what each annotator drew; ground truth is not among it.
        truths: For each picture its ground truth, or None.

    Returns:
        By annotator: `pictures`, `agreement` with others (None where nobody else drew), `shared` pictures with others,
        `accuracy` on ground truth (None without any), and `checked` pictures with ground truth.
    """
    shared: dict[Hashable, list[float]] = defaultdict(list)
    checked: dict[Hashable, list[float]] = defaultdict(list)
    count: dict[Hashable, int] = defaultdict(int)
    for drawn, truth in zip(pictures, truths, strict=True):
        for name in drawn:
            count[name] += 1
            if truth is not None:
                checked[name].append(agreement(truth, drawn[name]))
        pairs: dict[Hashable, list[float]] = defaultdict(list)
        for a, b in itertools.combinations(drawn, 2):
            value = agreement(drawn[a], drawn[b])
            pairs[a].append(value)
            pairs[b].append(value)
        for name, values in pairs.items():
            shared[name].append(float(np.mean(values)))

    def mean(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return {
        name: {
            "pictures": number, "shared": len(shared[name]), "agreement": mean(shared[name]),
            "checked": len(checked[name]), "accuracy": mean(checked[name]),
        }
        for name, number in count.items()
    }  # fmt: skip
