"""What every data set is read into first: annotated objects of which neither image nor mask is in memory yet."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage
from pycocotools import mask as coco_mask

from ..errors import ConfigError, InputError
from ..hlmat.arrays import Image, Mask, soft_mask
from ..hlmat.trajectory import Sample, check_mask, decode_mask, encode_mask
from .image_file import Exif, read_image, turned_hint

__all__ = ["MaskFile", "Record", "by_picture", "load_samples", "mask_rle", "read_json", "read_mask_file"]

_FAR = 100_000.0
"""Pixels; no polygon is drawn that reaches further."""
_MOST_VALUES = 64
"""Different values in a mask image from which on they are shades of grey and not instance ids."""
_VOID = 255


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A mask in a picture of its own.

    Attributes:
        path: The file.
        value: The pixel value that means this object, or None when the file could not be read.
    """

    path: Path
    value: int | None


@dataclass(frozen=True, slots=True)
class Record:
    """An annotated object.

    Attributes:
        image: The image file.
        prompt: Label or referring expression.
        mask: As COCO has it (a list of polygons, a compressed or uncompressed RLE), a list of RLEs, or a file.
        id: Unique within its data set.
        size: (height, width) in pixels as the data set says, or None.
        meta: See `Sample`.
        problem: Why it cannot be used, where that was seen when its data set was read.
    """

    image: Path
    prompt: str
    mask: Any
    id: str
    size: tuple[int, int] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def exif(self) -> Exif | None:
        """What its mask was drawn on, where that was said: its meta's "exif", see `read_image`."""
        return self.meta.get("exif")

    @property
    def outline(self) -> str:
        """A digest of image name and mask: equal for the same mask under several prompts."""
        mask = [self.mask.path.name, self.mask.value] if isinstance(self.mask, MaskFile) else self.mask
        return _digest([self.image.name, mask])

    @property
    def key(self) -> str:
        """A digest that is unique over all data sets, and another one when the annotation changes."""
        return _digest([self.id, self.prompt, self.outline])

    def load(self, image: Image | None = None) -> Sample:
        """The sample behind this record.

        Args:
            image: The pixels of `image`, where they have been read already.

        Raises:
            InputError: Image or mask cannot be read, or they do not fit each other.
        """
        if self.problem:
            raise InputError(self.problem)
        file = read_mask_file(self.mask.path) if isinstance(self.mask, MaskFile) else None
        stated = self.size or (file[0].shape if file else _stated_size(self.mask))
        pixels = read_image(self.image, stated, self.exif) if image is None else image
        size = (pixels.shape[0], pixels.shape[1])
        if stated not in (None, size):
            what = f"mask of object {self.id}" if file is None else f"mask {self.mask.path}"
            hint = turned_hint(self.image, stated)
            raise InputError(f"the {what} is {stated}, its image {self.image} {size}{hint}")
        if file is not None:
            values, void = file
            mask, unsure = values == self.mask.value, void if void.any() else None
        else:
            try:
                mask, unsure = _decode(self.mask, size), None
            except InputError as error:
                raise InputError(f"the mask of object {self.id} cannot be read: {error}") from error
        return Sample(pixels, self.prompt, mask, unsure, self.id, str(self.image.resolve()), self.meta)


def _digest(content: Any) -> str:
    text = json.dumps(content, default=str)
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def by_picture(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Groups of neighbours that are on the same picture."""
    for _, group in itertools.groupby(records, key=lambda record: record.image):
        yield list(group)


def load_samples(
    records: Iterable[Record], failed: Callable[[Record, InputError], None] | None = None
) -> Iterator[Sample]:
    """Load records one after the other; neighbours on the same picture share its pixels.

    Args:
        records: What to load.
        failed: Told of each record that cannot be loaded; the others go on. Without it the first one raises.

    Raises:
        InputError: A record cannot be loaded, and there is no `failed`.
    """
    for group in by_picture(records):
        pixels = None
        for record in group:
            try:
                sample = record.load(pixels)
            except InputError as error:
                if failed is None:
                    raise
                failed(record, error)
                continue
            pixels = sample.image
            yield sample


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ConfigError: It cannot be read, or it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path} as JSON: {type(error).__name__}: {error}") from error


def read_mask_file(path: Path) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Mask]:
    """A mask picture: its values, int64 (H, W) with 0 for the background, and its void pixels, bool (H, W).

    255 beside other values is void (as in PASCAL VOC) and becomes 0; alone it is an object like any other value.

    Raises:
        InputError: It cannot be read, is in colour, or has shades of grey instead of values.
    """
    try:
        with PilImage.open(path) as file:
            pixels = np.asarray(file)
    except (OSError, ValueError, SyntaxError, EOFError, PilImage.DecompressionBombError) as error:
        raise InputError(f"cannot read the mask {path}: {error}") from error
    if pixels.ndim == 3:
        colours, alpha = np.split(pixels, [pixels.shape[2] - 1 + pixels.shape[2] % 2], axis=2)
        if alpha.size and np.ptp(alpha) and not np.ptp(colours, axis=(0, 1)).any():  # the mask is in alpha alone
            colours = soft_mask(alpha)
        if (colours != colours[..., :1]).any():
            raise InputError(f"the mask {path} is in colour; it must have one channel: 0 and another value, or ids")
        pixels = colours[..., 0]
    values = pixels.astype(np.int64)
    found = np.unique(values[values != 0])
    if len(found) > _MOST_VALUES:
        raise InputError(
            f"the mask {path} has {len(found)} different values: neither 0 and 1 nor instance ids; threshold it"
        )
    void = (values == _VOID) if pixels.dtype == np.uint8 and len(found) > 1 else np.zeros(values.shape, bool)
    values[void] = 0
    return values, void


def mask_rle(mask: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A mask as COCO files have it, see `Record.mask`, as COCO's compressed RLE.

    Raises:
        InputError: It is no mask, or one of another size than (height, width) `size`.
    """
    if isinstance(mask, dict) and isinstance(mask.get("counts"), str):
        _check_size(mask, size)
        check_mask(mask)
        return mask
    return encode_mask(_decode(mask, size))


def _stated_size(mask: Any) -> tuple[int, int] | None:
    """(height, width) that an RLE, or the first of several, says; None for polygons."""
    rle = mask[0] if isinstance(mask, list) and mask else mask
    size = rle.get("size") if isinstance(rle, dict) else None
    plain = isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size)
    return (size[0], size[1]) if plain and size is not None else None


def _decode(mask: Any, size: tuple[int, int]) -> Mask:
    """A mask as COCO files have it, bool (H, W)."""
    if isinstance(mask, dict):
        return _decode_rle(mask, size)
    if isinstance(mask, list) and mask and all(isinstance(part, dict) for part in mask):
        return np.asarray(np.logical_or.reduce([_decode_rle(part, size) for part in mask]))
    rings = [_ring(ring) for ring in mask] if isinstance(mask, list) else []
    if not any(rings):
        raise InputError(f"neither polygons nor an RLE: {str(mask)[:60]}")
    encoded = coco_mask.merge(coco_mask.frPyObjects([ring for ring in rings if ring], *size))
    return np.ascontiguousarray(coco_mask.decode(encoded), np.bool_)


def _check_size(rle: dict[str, Any], size: tuple[int, int]) -> None:
    """Before anything is decoded: a size of a file's own choosing cannot take the machine's memory."""
    if not isinstance(rle.get("size"), (list, tuple)) or tuple(rle["size"]) != size:
        raise InputError(f"its RLE is of size {str(rle.get('size'))[:40]}, the image {size}")


def _decode_rle(rle: dict[str, Any], size: tuple[int, int]) -> Mask:
    _check_size(rle, size)
    counts = rle.get("counts")
    if isinstance(counts, bytes):
        return decode_mask({"size": size, "counts": counts.decode("ascii", "replace")})
    if not isinstance(counts, list):
        return decode_mask({"size": size, "counts": counts})
    if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != size[0] * size[1]:
        raise InputError(f"the runs of its RLE do not hold {size[0] * size[1]} pixels: {str(counts)[:60]}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(size[1], size[0]).T)


def _ring(ring: Any) -> list[float]:
    """The numbers of a polygon; nothing for one without an area, which some data sets have beside proper ones."""
    if not isinstance(ring, list) or len(ring) % 2 or not all(_is_coordinate(number) for number in ring):
        raise InputError(f"not a polygon [x, y, x, y, …] in pixels: {str(ring)[:60]}")
    return ring if len(ring) >= 6 else []


def _is_coordinate(number: Any) -> bool:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    return math.isfinite(number) and abs(number) <= _FAR
