"""What the policy is trained on: annotated scenes, and the frozen features of their images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
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
from ..embedded.words import SALIENT, normalise
from ..errors import InputError
from ..hlmat.arrays import Box
from ..hlmat.metrics import box_iou
from ..policies.embedded import EmbeddedPolicy
from ..policies.embedded_inputs import join_maps
from ..policies.embedded_net import PolicyNet
from ..segmenters.embedded import EmbeddedSegmenter
from ..segmenters.embedded_views import View

__all__ = [
    "Instance", "Scene", "WholeFeatures", "also_known_as", "cached", "is_development", "located_box", "read_scenes",
    "shrink", "whole_features",
]  # fmt: skip

log = logging.getLogger(__name__)

T = TypeVar("T")
_LEAST = 0.002
"""Share of the image below which an object is not learned from."""
_MORE_GENERAL = {"pedestrian": "person"}
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
        exif: How the EXIF tag of the file is taken, see `read_image`.
        apart: Whether instances are told apart; else they are parts of what belongs to a label.
        exclusive: Whether annotated objects do not overlap, so that what is one of them is no other.
    """

    path: Path
    size: tuple[int, int]
    instances: tuple[Instance, ...]
    small: tuple[Instance, ...]
    known: frozenset[str]
    exif: Exif = "applied"
    apart: bool = True
    exclusive: bool = False

    def image(self) -> npt.NDArray[np.uint8]:
        """RGB uint8 (H, W, 3)."""
        return read_image(self.path, exif=self.exif)


def also_known_as(label: str) -> tuple[str, ...]:
    """The label and what is more general."""
    return (label, _MORE_GENERAL[label]) if label in _MORE_GENERAL else (label,)


def read_scenes(roots: Sequence[Path], split: str = "train", exif: Exif | None = None) -> list[Scene]:
    """Read COCO files, or a split of folders with them.

    `"exhaustive": false` marks images with missing objects, `"instances": false` those where touching ones are one.

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
        apart=bool(image.row.get("instances", True)), exclusive=not whole and _exclusive([i.rle for i in found]),
    )  # fmt: skip


def _instance(record: Record, size: tuple[int, int], root: str) -> Instance:
    if record.problem:
        raise InputError(record.problem)
    rle = mask_rle(record.mask, size)
    x, y, w, h = (float(v) for v in rle_codec.toBbox(rle))
    share = float(rle_codec.area(rle)) / (size[0] * size[1])
    return Instance(normalise(record.prompt), rle, (x, y, x + w, y + h), share, f"{root}/{record.id}")


def _exclusive(rles: Sequence[dict[str, Any]]) -> bool:
    """Whether masks cover next to nothing twice."""
    areas = float(np.sum(rle_codec.area(list(rles)))) if rles else 0.0
    return areas > 0 and areas < 1.02 * float(rle_codec.area(rle_codec.merge(list(rles))))


def is_development(scene: Scene, share: float = 0.1) -> bool:
    """Whether a training image is kept back for calibration; decided by a hash of its name."""
    digest = hashlib.blake2b(scene.path.name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < share * 2**32


@dataclass(slots=True)
class WholeFeatures:
    """What the frozen backbones see of whole images, in the order of the scenes; float16, not padded.

    Attributes:
        views: The view of each image.
        maps: The locator's, (1, c, h, w) at strides 8, 16 and 32, and the segmenter's, see
            `EmbeddedSegmenter.whole_maps`.
    """

    views: list[View]
    maps: list[list[Tensor]]

    def joined(self, number: int) -> list[Tensor]:
        """What the locator takes of one scene, float32 (1, c, h, w)."""
        maps = [m.float() for m in self.maps[number]]
        return join_maps(maps[:3], maps[3:])

    def of(self, numbers: Sequence[int]) -> WholeFeatures:
        """Those of some of the scenes."""
        return WholeFeatures([self.views[n] for n in numbers], [self.maps[n] for n in numbers])


def whole_features(
    scenes: Sequence[Scene], net: PolicyNet, segmenter: EmbeddedSegmenter, cache: Path | None
) -> WholeFeatures:
    """Compute the features of all scenes, or read them from the folder `cache`, which gets a file for each data set."""
    config, maps = net.config, list[list[Tensor]]()
    for folder, group in groupby(scenes, lambda scene: scene.path.parent):
        found = list(group)
        digest = hashlib.sha256(repr([_seen(s) for s in found]).encode()).hexdigest()[:10]
        name = f"{folder.parent.name}-{config.backbone}-{config.side}-{segmenter.version[-10:]}-{digest}"

        def look(found: Sequence[Scene] = found, title: str = folder.parent.name) -> list[list[Tensor]]:
            return [_look(scene, net, segmenter) for scene in track(found, f"features of {title}")]

        maps += cached(cache, name, look)
    return WholeFeatures([View.of((0, 0, s.size[1], s.size[0]), config.side) for s in scenes], maps)


def _look(scene: Scene, net: PolicyNet, segmenter: EmbeddedSegmenter) -> list[Tensor]:
    image = scene.image()
    crop = View.of((0, 0, scene.size[1], scene.size[0]), net.config.side).crop(image)
    with torch.inference_mode():
        maps = net.look(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float())
        return _half([*maps, *segmenter.whole_maps(image)])


def _seen(scene: Scene) -> object:
    """What tells the pixels of a scene apart within its folder."""
    return scene.path.name if scene.exif == "applied" else (scene.path.name, scene.exif)


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
