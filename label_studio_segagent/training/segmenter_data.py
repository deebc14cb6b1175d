"""Training crops for the click segmenter: images and masks in COCO format, augmented, with previous masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle_codec

from ..datasets.coco import read_coco_file
from ..datasets.image_file import Exif, picture_frame, read_image
from ..datasets.loading import coco_file
from ..datasets.record import mask_rle
from ..errors import InputError
from .mask_corruption import corrupt_mask

__all__ = ["CropDataset", "CropSample", "Source", "Target", "crop_image", "crop_mask", "crop_matrix", "read_coco"]

log = logging.getLogger(__name__)

Float = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Key = tuple[int, int, int]
"""(set, image, object)."""


@dataclass(slots=True)
class Target:
    """One object to segment in a crop.

    Attributes:
        truth: bool (S / 2, S / 2).
        prior: float32 (S / 4, S / 4), the probability of a previous mask, or None.
        box: (x0, y0, x1, y1) in pixels of the crop, or None.
        clicks: Clicks that led to `prior`, (x, y, sign) in pixels of `truth`; None when they are to be made up.
        key: What to remember the network's answer under, or None.
    """

    truth: Bools
    prior: Float | None = None
    box: tuple[float, float, float, float] | None = None
    clicks: list[tuple[float, float, float]] | None = None
    key: Key | None = None


@dataclass(slots=True)
class CropSample:
    """A crop and the targets in it.

    Attributes:
        image: uint8 (S, S, 3).
        targets: At least one.
        matrix: (2, 3), from pixels of the image to pixels of the crop (edges, not centres).
    """

    image: Bytes
    targets: list[Target]
    matrix: Float


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the network said about an object in a crop of the whole image."""

    probability: Bytes
    clicks: npt.NDArray[np.float64]
    matrix: Float


@dataclass(slots=True)
class Source:
    """An image and the objects in it.

    Attributes:
        image: Gives the pixels, RGB uint8 (H, W, 3); called for every crop.
        rles: At least one mask, COCO's compressed RLE.
        weight: How often it is drawn, in (0, 1], relative to others.
    """

    image: Callable[[], Bytes]
    rles: list[dict[str, Any]]
    weight: float = 1.0

    def box(self, index: int) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels around an object."""
        x, y, w, h = (float(v) for v in rle_codec.toBbox(self.rles[index]))
        return x, y, x + w, y + h


class CropDataset:
    """Random crops of images with masks: half of them whole images, half of them zoomed to an object.

    Args:
        sets: Images; none of the sets is empty.
        weights: How often each set is drawn, relative to each other.
    """

    def __init__(self, sets: Sequence[Sequence[Source]], weights: Sequence[float]) -> None:
        self.sets = sets
        self.weights = np.asarray(weights, float) / sum(weights)
        self._answers: dict[Key, _Answer] = {}

    def __len__(self) -> int:
        """The number of images."""
        return sum(len(s) for s in self.sets)

    def remember(
        self, key: Key, matrix: Float, probability: Float, clicks: Sequence[tuple[float, float, float]]
    ) -> None:
        """Keep the network's answer on a whole image, to be the prior of a zoomed crop later, as at run time.

        Args:
            key: Of the target.
            matrix: Of the crop.
            probability: float32 (S / 4, S / 4).
            clicks: (x, y, sign) in pixels of the target's `truth`.
        """
        points = np.array(clicks, float).reshape(-1, 3)
        points[:, :2] = (points[:, :2] * 2 + 1 - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
        self._answers[key] = _Answer((probability * 255).astype(np.uint8), points, matrix)

    def sample(self, rng: np.random.Generator, size: int, targets: int) -> CropSample:
        """Draw a crop of `size` with at most `targets` targets (at least one)."""
        while True:
            group = int(rng.choice(len(self.sets), p=self.weights))
            sources = self.sets[group]
            index = int(rng.integers(len(sources)))
            if len(sources[index].rles) < 3 and rng.random() < 0.3:
                # Images with more objects have more to teach.
                index = int(rng.integers(len(sources)))
            if sources[index].weight < 1 and rng.random() >= sources[index].weight:
                continue
            sample = self._crop((group, index), rng, size, targets)
            if sample is not None:
                return sample

    def _crop(self, place: tuple[int, int], rng: np.random.Generator, size: int, targets: int) -> CropSample | None:
        source = self.sets[place[0]][place[1]]
        image = source.image()
        height, width = image.shape[:2]
        chosen = int(rng.integers(len(source.rles)))
        zoom = bool(rng.random() < 0.5)
        matrix = crop_matrix(source.box(chosen) if zoom else (0.0, 0.0, width, height), zoom, size, rng)
        order = [chosen] + [int(i) for i in rng.permutation(len(source.rles)) if i != chosen]
        views: list[tuple[Key, Bools]] = []
        for index in order[: 2 * targets + 1]:
            mask = crop_mask(np.asarray(rle_codec.decode(source.rles[index]), np.bool_), matrix, size)
            # At least about 6 x 6 pixels of the crop.
            if np.count_nonzero(mask) >= max(9, 0.0004 * mask.size):
                views.append(((*place, index), mask))
        if not views:
            return None
        others = [view for _, view in views]
        picked: list[tuple[Key | None, Bools]] = [*views[:targets]]
        if len(views) > 1 and rng.random() < 0.05:
            picked[-1] = (None, others[0] | others[1])
        if len(picked) < targets and rng.random() < 0.5:
            picked.append(picked[0])
        made: list[Target] = []
        for key, view in picked:
            target = Target(view, key=None if zoom else key)
            if zoom and key in self._answers and rng.random() < 0.5:
                self._recall(target, self._answers[key], matrix, size)
            elif rng.random() < (0.5 if zoom else 0.2):
                target.prior = _some_prior(view, others, size, rng)
            if rng.random() < 0.25:
                target.box = _some_box(view, rng)
            made.append(target)
        return CropSample(crop_image(image, matrix, size, rng), made, matrix)

    @staticmethod
    def _recall(target: Target, answer: _Answer, matrix: Float, size: int) -> None:
        """Give `target` an earlier answer as its prior, and the clicks that led to it."""
        to_image = np.linalg.inv(np.vstack([answer.matrix, [0, 0, 1]]))
        # Both crops are seen at a quarter of their resolution.
        between = np.vstack([matrix, [0, 0, 1]]) @ to_image
        between[:2, 2] /= 4
        warped = _warp(answer.probability, between[:2].astype(np.float32), size // 4, 1.0)
        target.prior = warped.astype(np.float32) / np.float32(255)
        points = (answer.clicks[:, :2] @ matrix[:, :2].T + matrix[:, 2] - 1) / 2
        inside = ((points > -0.5) & (points < size / 2 - 0.5)).all(1)
        target.clicks = [(float(x), float(y), float(s)) for (x, y), s in
                         zip(points[inside], answer.clicks[inside, 2], strict=True)]  # fmt: skip


def _some_prior(view: Bools, others: Sequence[Bools], size: int, rng: np.random.Generator) -> Float:
    prior = corrupt_mask(view, others, rng).astype(np.float32)
    if rng.random() < 0.5:
        prior = np.asarray(cv2.GaussianBlur(prior, (0, 0), float(rng.uniform(0.5, 4))), np.float32)
    return np.asarray(cv2.resize(prior, (size // 4, size // 4), interpolation=cv2.INTER_AREA), np.float32)


def _some_box(view: Bools, rng: np.random.Generator) -> tuple[float, float, float, float] | None:
    """A box around a mask, in pixels of the crop: drawn by hand, or as far off as a policy's."""
    rows, columns = np.flatnonzero(view.any(1)), np.flatnonzero(view.any(0))
    x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    spread = float(rng.choice([0.04, 0.12, 0.25], p=[0.5, 0.25, 0.25]))
    box = (np.array([x0, y0, x1, y1]) + rng.normal(0, spread, 4) * (x1 - x0, y1 - y0, x1 - x0, y1 - y0)) * 2
    if box[2] - box[0] <= 4 or box[3] - box[1] <= 4:
        return None
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def read_coco(root: Path, split: str = "train", exif: Exif | None = None) -> list[Source]:
    """The images of a folder in COCO format, without very small objects; what cannot be used is counted in the log.

    Args:
        root: The file, or a folder that has it and the pictures.
        split: Its name in that folder.
        exif: See `read_image`.

    Raises:
        ConfigError: The file cannot be read, or is not a COCO file.
        InputError: It has no usable mask.
    """
    data = read_coco_file(coco_file(root, split), label="object", exif=exif)
    problems = [record.problem for record in data.strays]
    sources: list[Source] = []
    for image in data.images:
        rles = []
        if not image.objects:
            continue
        try:
            height, width, taken = picture_frame(image.path, image.size, exif)
        except InputError as error:
            problems.append(image.problem or str(error))
            continue
        least = max(64, 0.0008 * width * height)
        for record in image.objects:
            try:
                if record.problem:
                    raise InputError(record.problem)
                rles.append(mask_rle(record.mask, (height, width)))
            except InputError as error:
                problems.append(f"{image.path}: {error}")
        if rles := [rle for rle in rles if rle_codec.area(rle) >= least]:
            sources.append(Source(cache(partial(read_image, image.path, exif=taken)), rles))
    if problems:
        log.warning("%s: %d left out, the first: %s", root, len(problems), problems[0])
    if not sources:
        raise InputError(f"no usable mask of {split} in {root}")
    return sources


def crop_matrix(box: tuple[float, float, float, float], zoom: bool, size: int, rng: np.random.Generator) -> Float:
    """The 2x3 matrix from pixels of the image to pixels of a square crop that shows `box`."""
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0)
    if zoom:
        side = max(side * float(np.exp(rng.uniform(np.log(1.1), np.log(2.5)))), 40.0)
        shift = rng.uniform(-0.5, 0.5, 2) * max(side - max(x1 - x0, y1 - y0), 0.1 * side) * 0.8
    else:
        side *= float(rng.uniform(0.65, 1.05))
        shift = rng.uniform(-0.1, 0.1, 2) * side
    stretch = float(np.exp(rng.uniform(-0.18, 0.18)))
    angle = float(np.deg2rad(rng.normal(0, 6))) if rng.random() < 0.4 else 0.0
    scale = size / side
    flip = -1.0 if rng.random() < 0.5 else 1.0
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(
        [scale * stretch * flip, scale / stretch]
    )
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) + shift
    offset = np.array([size / 2, size / 2]) - linear @ centre
    return np.concatenate([linear, offset[:, None]], 1).astype(np.float32)


def crop_image(image: Bytes, matrix: Float, size: int, rng: np.random.Generator) -> Bytes:
    """The crop, uint8 (size, size, 3), that a matrix shows of an image, with its colours changed a little."""
    return _colour(_warp(image, matrix, size, 1.0, (124, 116, 104)), rng)


def crop_mask(mask: Bools, matrix: Float, size: int) -> Bools:
    """The same of a mask, bool (H, W), at half the resolution: (size / 2, size / 2)."""
    return np.asarray(_warp(mask.astype(np.uint8) * 255, matrix, size // 2, 0.5) > 127)


def _warp(
    image: Bytes, matrix: Float, size: int, factor: float, border: tuple[int, int, int] | int = 0
) -> npt.NDArray[np.uint8]:
    """Warp into (size, size), shrinking by area averaging first where much detail would alias."""
    matrix = matrix * factor
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.7:
        shrink = max(scale, 0.1)
        height, width = image.shape[:2]
        small = np.asarray(cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA), np.uint8)
        ratio = np.diag([width / small.shape[1], height / small.shape[0]]).astype(np.float32)
        matrix = np.concatenate([matrix[:, :2] @ ratio, matrix[:, 2:]], 1)
        image = small
    # Pixel centres: x_crop + 0.5 = A (x_image + 0.5) + b.
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2] @ np.array([0.5, 0.5], np.float32) - 0.5
    value = border if isinstance(border, tuple) else (border,) * 3
    warped = cv2.warpAffine(image, centred, (size, size), flags=cv2.INTER_LINEAR, borderValue=value)
    return np.asarray(warped, np.uint8)


def _colour(image: Bytes, rng: np.random.Generator) -> Bytes:
    if rng.random() < 0.25:
        return image
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3)
    pixels = image.astype(np.float32) * gain.astype(np.float32)
    grey = pixels.mean(2, keepdims=True)
    saturation, contrast = rng.uniform(0.6, 1.4), rng.uniform(0.75, 1.25)
    if rng.random() < 0.05:
        saturation = 0.0
    pixels = grey + (pixels - grey) * saturation
    pixels = (pixels - 118) * contrast + 118 + rng.uniform(-15, 15)
    if rng.random() < 0.1:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.4, 1.2))), np.float32)
    if rng.random() < 0.1:
        pixels = pixels + rng.normal(0, rng.uniform(2, 10), pixels.shape).astype(np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)
