"""What the reviewer learns from: masks of objects, looked at exactly as the policy looks at them at run time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as rle_codec
from rich.progress import track
from torch import Tensor

from ..embedded.words import SALIENT
from ..hlmat.arrays import Image, Mask
from ..hlmat.metrics import iou
from ..hlmat.trajectory import encode_mask
from ..policies.base import Observation
from ..policies.embedded import EmbeddedPolicy
from ..policies.embedded_inputs import cut_mask, draw_state, pad_maps
from ..policies.embedded_net import PolicyConfig
from ..segmenters.embedded_views import View
from .mask_corruption import corrupt_mask
from .policy_data import Instance, Scene, also_known_as, located_box
from .policy_states import StoredRollout

__all__ = ["Review", "ReviewBatch", "ReviewDataset", "make_reviews"]

_WRONG_LABEL = 0.12
"""Share of the masks shown with the label of something else; the right mask is then empty."""
_SALIENT_LABEL = 0.12
"""Share shown as "what stands out"."""
_WRONG_OBJECT = 0.35
"""Share of the objects beside which another one is shown, boxed as if it were what was looked for: its rating is 0."""
_SPOILED = 0.4
"""Share of the masks that are made for the occasion, so that none is learned by heart."""
Review = dict[str, Any]
"""A `Glimpse` with what may be asked about it: plain values and float16 tensors, so that it can be kept in a file.

`window`, `crop`: the view's; `box`; `maps`, `context`, `presence`; `wanted`: RLE of the right mask; `shown`:
RLEs of masks to be reviewed; `ious`: theirs; `wrong`: whether it is not what was looked for, so that all are worth 0.
"""


@dataclass(slots=True)
class ReviewBatch:
    """R masks to review.

    Attributes:
        maps: The segmenter's maps (R, c, h, w) at strides 4, 8, 16 and its embeddings at stride 8.
        context: (R, c, h, w) at stride 8: what the locator says.
        presence: (R,) logits, the locator's.
        state: (R, 4, h, w) at stride 4.
        wanted: (R, 1, h, w) at stride 4: what the mask should be.
        ious: (R,) of the masks with it.
    """

    maps: list[Tensor]
    context: Tensor
    presence: Tensor
    state: Tensor
    wanted: Tensor
    ious: Tensor


def make_reviews(
    policy: EmbeddedPolicy, scenes: Sequence[Scene], rollouts: Mapping[str, StoredRollout], *, per_scene: int,
    seconds: float = math.inf, seed: int = 0,
) -> list[Review]:  # fmt: skip
    """Two reviews an object: one in the middle of a rollout, with a box, and one of a submitted mask, without.

    Beside some objects a third one: of another object that was located instead.

    Args:
        policy: Whose locator is trained.
        scenes: Annotated images.
        rollouts: By the key of their object.
        per_scene: Objects per image, largest first.
        seconds: Scenes, in random order, that there is no time for are left out.
        seed: Of everything random.
    """
    rng = np.random.default_rng(seed)
    out: list[Review] = []
    deadline = time.monotonic() + seconds
    for index in track(rng.permutation(len(scenes)), "features of objects"):
        scene = scenes[int(index)]
        if time.monotonic() > deadline:
            break
        for instance in scene.instances[:per_scene]:
            out += _reviews_of(policy, scene, instance, rollouts.get(instance.key), rng)
    return out


def _reviews_of(
    policy: EmbeddedPolicy, scene: Scene, instance: Instance, rollout: StoredRollout | None, rng: np.random.Generator
) -> Iterator[Review]:
    image, truth = scene.image(), instance.mask()
    others = [i.mask() for i in scene.instances if i is not instance][:4]
    names = also_known_as(instance.label)
    box = (rollout and rollout.box) or located_box(policy, scene, instance, rng)
    shown = [np.zeros_like(truth), truth, corrupt_mask(truth, others, rng), corrupt_mask(truth, others, rng)]
    label = SALIENT if rng.random() < _SALIENT_LABEL else names[int(rng.integers(len(names)))]
    masks = [encode_mask(m) for m in shown] + list(rollout.masks if rollout else ()) * 2
    yield from _glance(policy, Observation(image, shown[0], label, box), truth, masks)
    if label != SALIENT and rng.random() < _WRONG_OBJECT:
        different = [i for i in scene.instances if label not in also_known_as(i.label) and i.label not in names]
        yield from _wrong_object(policy, image, label, truth, different, rng)
    mask, wanted = corrupt_mask(truth, others, rng), truth
    if SALIENT not in scene.known and scene.known and rng.random() < _WRONG_LABEL:
        absent = sorted(scene.known - {n for i in (*scene.instances, *scene.small) for n in also_known_as(i.label)})
        if absent:
            label, wanted = absent[int(rng.integers(len(absent)))], np.zeros_like(truth)
    if mask.any():
        yield from _glance(policy, Observation(image, mask, label), wanted, [encode_mask(mask)])


def _wrong_object(
    policy: EmbeddedPolicy, image: Image, label: str, truth: Mask, others: Sequence[Instance], rng: np.random.Generator
) -> Iterator[Review]:
    """Another object in place of the one that was looked for, unless the two overlap, as clothes and people do."""
    if not others:
        return
    other = others[int(rng.integers(len(others)))]
    mask = other.mask()
    if not (mask & truth).any():
        shown = [mask, corrupt_mask(mask, [truth], rng)]
        seen = Observation(image, mask, label, other.box)
        yield from _glance(policy, seen, mask, [encode_mask(m) for m in shown], wrong=True)


def _glance(
    policy: EmbeddedPolicy, observed: Observation, wanted: Mask, shown: Sequence[dict[str, Any]], wrong: bool = False
) -> Iterator[Review]:
    glimpse = policy.glimpse(observed)
    if glimpse is None:
        return
    right = encode_mask(wanted)
    yield {
        "window": tuple(int(v) for v in glimpse.view.window), "crop": (glimpse.view.height, glimpse.view.width),
        "box": None if glimpse.box is None else tuple(float(v) for v in glimpse.box),
        "presence": float(glimpse.presence[0]),
        "maps": [m[0].half().clone() for m in glimpse.maps[:4]], "context": glimpse.context[0].half().clone(),
        "wanted": right, "shown": list(shown), "wrong": wrong,
        "ious": [0.0 if wrong else _iou(m, right) for m in shown],
    }  # fmt: skip


def _iou(a: dict[str, Any], b: dict[str, Any]) -> float:
    return float(rle_codec.iou([a], [b], [0])[0, 0])


def _decode(rle: dict[str, Any]) -> Mask:
    return np.ascontiguousarray(rle_codec.decode(rle), np.bool_)


class ReviewDataset:
    """Draws batches.

    Args:
        reviews: From `make_reviews`.
        config: Of the network.
        mirror: Mirror half of the reviews, and show some of them another corrupted mask each time.
    """

    def __init__(self, reviews: Sequence[Review], config: PolicyConfig, mirror: bool = True) -> None:
        self.reviews, self.config, self.mirror = reviews, config, mirror

    def __len__(self) -> int:
        """The number of reviews."""
        return len(self.reviews)

    def batch(self, rng: np.random.Generator, count: int) -> ReviewBatch:
        """Draw `count` reviews."""
        return self.make([int(i) for i in rng.integers(len(self.reviews), size=count)], rng)

    def make(self, chosen: Sequence[int], rng: np.random.Generator) -> ReviewBatch:
        """The batch of these reviews, each with one of its masks."""
        side = self.config.view
        rows = []
        for number in chosen:
            review = self.reviews[number]
            pick, flip = int(rng.integers(len(review["shown"]))), bool(self.mirror and rng.random() < 0.5)
            mask, wanted, overlap = _decode(review["shown"][pick]), _decode(review["wanted"]), review["ious"][pick]
            view, box = View(review["window"], *review["crop"]), review["box"]
            if self.mirror and wanted.any() and rng.random() < _SPOILED:
                mask = _spoil(wanted, view, rng)
                overlap = 0.0 if review["wrong"] else iou(mask, wanted)
            cut, right = cut_mask(mask, view), cut_mask(wanted, view)
            maps = pad_maps([_flipped(m, flip) for m in review["maps"]], [side // s for s in (4, 8, 16, 8)])
            context = pad_maps([_flipped(review["context"], flip)], [side // 8])[0]
            if flip:
                width = mask.shape[1]
                x0, y0, x1, y1 = view.window
                view = View((width - x1, y0, width - x0, y1), view.height, view.width)
                box = box and (width - box[2], box[1], width - box[0], box[3])
                cut, right = cut[:, ::-1], right[:, ::-1]
            state = draw_state(np.ascontiguousarray(cut), box, view, side)
            rows.append((maps, context, review["presence"], state, _pad(right, side // 4), overlap))
        maps_, contexts, presences, states, rights, ious = zip(*rows, strict=True)
        return ReviewBatch(
            [torch.stack(column).float() for column in zip(*maps_, strict=True)], torch.stack(contexts).float(),
            torch.tensor(presences), torch.from_numpy(np.stack(states)), torch.from_numpy(np.stack(rights))[:, None],
            torch.tensor(ious, dtype=torch.float32),
        )  # fmt: skip


def _spoil(wanted: Mask, view: View, rng: np.random.Generator) -> Mask:
    """A new corrupted mask, inside of the view."""
    x0, y0, x1, y1 = view.window
    mask = np.zeros_like(wanted)
    if wanted[y0:y1, x0:x1].any():
        mask[y0:y1, x0:x1] = corrupt_mask(wanted[y0:y1, x0:x1], (), rng)
    return mask


def _flipped(map_: Tensor, flip: bool) -> Tensor:
    return map_.flip(-1) if flip else map_


def _pad(map_: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(np.pad(map_, ((0, side - map_.shape[0]), (0, side - map_.shape[1]))))
