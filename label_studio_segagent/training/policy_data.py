"""What the policy is trained on: annotated scenes, and the frozen features of their images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as rle_codec
from rich.progress import track
from torch import Tensor

from ..datasets.coco import CocoImage, read_coco_file
from ..datasets.image_file import Exif, picture_frame, read_image
from ..datasets.loading import coco_file
from ..datasets.record import Record, mask_rle
from ..errors import InputError
from ..hlmat.arrays import Box
from ..hlmat.metrics import box_iou
from ..policies.embedded import EmbeddedPolicy
from ..policies.embedded_inputs import join_maps
from ..policies.embedded_net import PolicyNet
from ..policies.label_text import SALIENT, normalise
from ..segmenters.embedded import EmbeddedSegmenter
from ..segmenters.embedded_views import View

__all__ = [
    "Instance", "Scene", "WholeFeatures", "cached", "crop_scene", "is_development", "located_box", "read_scenes",
    "shrink", "whole_features",
]  # fmt: skip

log = logging.getLogger(__name__)

T = TypeVar("T")
_LEAST = 0.002
"""Share of the image below which an object is not learned from."""
_VISIBLE = 0.3
"""Share of an object that a cropped scene must show for it to count as one."""
_MOSTLY = 0.8
"""Share that it must show of one object at least."""
_FOUND = 0.35
"""Box IoU from which a located target is taken for the object."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An annotated object.

    Attributes:
        label: Normalised name of its category.
        rle: Its mask, COCO's compressed RLE.
        box: (x0, y0, x1, y1) in pixels.
        share: Its area over that of the image.
        key: Unique over all data sets.
    """

    label: str
    rle: dict[str, Any]
    box: Box
    share: float
    key: str

    def mask(self) -> npt.NDArray[np.bool_]:
        """Its mask, bool (H, W)."""
        return np.ascontiguousarray(rle_codec.decode(self.rle), np.bool_)


@dataclass(frozen=True, slots=True)
class Scene:
    """An image and its annotations.

    Attributes:
        path: Of the image.
        size: (height, width).
        instances: The annotated objects, largest first.
        small: Annotated objects that are too small to learn from; they are not background either.
        known: Labels of which every instance is annotated here.
        corner: (x, y) of the part of the file that this is, whose extent is `size`.
        exif: How the EXIF tag of the file is taken, see `read_image`.
    """

    path: Path
    size: tuple[int, int]
    instances: tuple[Instance, ...]
    small: tuple[Instance, ...]
    known: frozenset[str]
    corner: tuple[int, int] = (0, 0)
    exif: Exif = "applied"

    def image(self) -> npt.NDArray[np.uint8]:
        """RGB uint8 (H, W, 3)."""
        (x, y), (height, width) = self.corner, self.size
        return read_image(self.path, exif=self.exif)[y : y + height, x : x + width]


def read_scenes(roots: Sequence[Path], split: str = "train", exif: Exif | None = None) -> list[Scene]:
    """Read COCO files, or a split of folders with them. `"exhaustive": false` marks images with missing objects.

    What cannot be used is left out and counted in the log; an image that has such objects does not say what it lacks.

    Raises:
        ConfigError: A file cannot be read, or is not a COCO file.
        InputError: There is no usable annotation.
    """
    scenes: list[Scene] = []
    for root in map(Path, roots):
        data = read_coco_file(coco_file(root, split), label=SALIENT, exif=exif)
        known = frozenset(normalise(name) for name in data.names)
        problems = [record.problem for record in data.strays]
        for image in data.images:
            try:
                scenes.append(_scene(image, known, root.name, exif, problems))
            except InputError as error:
                problems.append(str(error))
        if problems:
            log.warning("%s: %d left out, the first: %s", root, len(problems), problems[0])
    if not any(s.instances for s in scenes):
        raise InputError(f"no usable annotation of {split} in {', '.join(map(str, roots))}")
    return scenes


def _scene(image: CocoImage, known: frozenset[str], root: str, exif: Exif | None, problems: list[str]) -> Scene:
    """An image as a scene; why objects of it are left out is added to `problems`."""
    if image.problem:
        raise InputError(image.problem)
    height, width, taken = picture_frame(image.path, image.size, exif)
    found: list[Instance] = []
    before = len(problems)
    for record in image.objects:
        try:
            found.append(_instance(record, (height, width), root))
        except InputError as error:
            problems.append(f"{image.path}: {error}")
    found.sort(key=lambda i: -i.share)
    whole = image.row.get("exhaustive", True) and len(problems) == before
    return Scene(
        image.path, (height, width), tuple(i for i in found if i.share >= _LEAST),
        tuple(i for i in found if i.share < _LEAST), known if whole else frozenset(), exif=taken,
    )  # fmt: skip


def _instance(record: Record, size: tuple[int, int], root: str) -> Instance:
    if record.problem:
        raise InputError(record.problem)
    rle = mask_rle(record.mask, size)
    x, y, w, h = (float(v) for v in rle_codec.toBbox(rle))
    share = float(rle_codec.area(rle)) / (size[0] * size[1])
    return Instance(normalise(record.prompt), rle, (x, y, x + w, y + h), share, f"{root}/{record.id}")


def crop_scene(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """A part of a scene that shows most of one of its objects, larger, as another scene; None where none was found."""
    height, width = scene.size
    for _ in range(6 if scene.instances else 0):
        shown = scene.instances[int(rng.integers(len(scene.instances)))]
        h, w = (int(side * rng.uniform(0.45, 0.9)) for side in (height, width))
        x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        parts: dict[bool, list[Instance]] = {True: [], False: []}
        seen = 0.0
        for instance in (*scene.instances, *scene.small):
            mask = instance.mask()
            part = mask[y : y + h, x : x + w]
            share = int(np.count_nonzero(part)) / max(int(np.count_nonzero(mask)), 1)
            if not part.any():
                continue
            cut = rle_codec.encode(np.asfortranarray(part, np.uint8))
            left, top, across, down = (float(v) for v in rle_codec.toBbox(cut))
            area = float(part.mean())
            known = share > _VISIBLE and area >= _LEAST
            box = (left, top, left + across, top + down)
            parts[known].append(Instance(instance.label, cut, box, area, f"{instance.key}@{x},{y}"))
            seen = max(seen, share) if instance is shown else seen
        if seen > _MOSTLY:
            objects = tuple(sorted(parts[True], key=lambda i: -i.share))
            return Scene(scene.path, (h, w), objects, tuple(parts[False]), scene.known, (x, y), scene.exif)
    return None


def is_development(scene: Scene, share: float = 0.06) -> bool:
    """Whether a training image is kept back for calibration; decided by a hash of its name."""
    digest = hashlib.blake2b(scene.path.name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < share * 2**32


@dataclass(slots=True)
class WholeFeatures:
    """What the frozen backbones see of whole images, in the order of the scenes; float16, not padded.

    Attributes:
        views: The view of each image.
        maps: The locator's, (1, c, h, w) at strides 8, 16 and 32.
        eyes: The segmenter's, see `EmbeddedSegmenter.whole_maps`.
    """

    views: list[View]
    maps: list[list[Tensor]]
    eyes: list[list[Tensor]]

    def joined(self, number: int) -> list[Tensor]:
        """What the locator takes of one scene, float32 (1, c, h, w)."""
        return join_maps([m.float() for m in self.maps[number]], [m.float() for m in self.eyes[number]])


def whole_features(
    scenes: Sequence[Scene], net: PolicyNet, segmenter: EmbeddedSegmenter, cache: Path | None
) -> WholeFeatures:
    """Compute the features of all scenes, or read them from the folder `cache`."""
    names = hashlib.sha256(repr([_seen(s) for s in scenes]).encode()).hexdigest()[:10]
    config = net.config
    views = [View.of((0, 0, s.size[1], s.size[0]), config.side) for s in scenes]

    def look() -> list[list[Tensor]]:
        return [
            _half(net.look(torch.from_numpy(view.crop(scene.image())).permute(2, 0, 1)[None].float()))
            for scene, view in track(list(zip(scenes, views, strict=True)), "features of images")
        ]

    def look_again() -> list[list[Tensor]]:
        return [_half(segmenter.whole_maps(scene.image())) for scene in track(scenes, "features of images, segmenter")]

    maps = cached(cache, f"wholes-{config.backbone}-{config.side}-{names}", look)
    return WholeFeatures(views, maps, cached(cache, f"eyes-{segmenter.version[-10:]}-{names}", look_again))


def _seen(scene: Scene) -> tuple[Any, ...]:
    """What tells the pixels of a scene apart; as it was written before there was `Scene.exif`, where that is usual."""
    turned = () if scene.exif == "applied" else (scene.exif,)
    return (str(scene.path), scene.corner, scene.size, *turned)


def _half(maps: Sequence[Tensor]) -> list[Tensor]:
    return [m.half().contiguous() for m in maps]


def cached(folder: Path | None, name: str, make: Callable[[], T]) -> T:
    """What `make` returns (tensors and plain values), kept in a file; a file that is there is read instead."""
    if folder is None:
        return make()
    path = folder / f"{name}.pt"
    if path.exists():
        found: T = torch.load(path, weights_only=True, mmap=True)
        return found
    folder.mkdir(parents=True, exist_ok=True)
    made = make()
    temporary = path.with_suffix(".part")
    torch.save(made, temporary)
    temporary.replace(path)
    return made


def located_box(policy: EmbeddedPolicy, scene: Scene, instance: Instance, rng: np.random.Generator) -> Box:
    """Where the policy says that an instance is, or a box as wrong as those that it gives.

    Training images are known to the locator, so what it says about them is made a little worse.
    """
    targets = policy.locate(scene.image(), instance.label)
    found = [t.box for t in targets if t.box is not None and box_iou(t.box, instance.box) >= _FOUND]
    near = max(found, key=lambda b: box_iou(b, instance.box)) if found else instance.box
    spread = float(rng.choice([0.02, 0.06, 0.12]) if found else rng.choice([0.1, 0.2]))
    sides = np.array([near[2] - near[0], near[3] - near[1]] * 2)
    x0, y0, x1, y1 = (float(v) for v in np.array(near) + rng.normal(0, spread, 4) * sides)
    return (x0, y0, x1, y1) if x1 > x0 + 1 and y1 > y0 + 1 else near


def shrink(mask: npt.NDArray[np.bool_], height: int, width: int) -> npt.NDArray[np.float32]:
    """A mask averaged to (height, width), float32 in [0, 1]."""
    return np.asarray(cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA), np.float32)
