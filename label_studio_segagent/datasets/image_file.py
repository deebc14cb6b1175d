"""Picture files as pixels: one reader for tasks of Label Studio, for data sets and for files that a command names."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageOps, UnidentifiedImageError

from ..errors import ConfigError, ImageError, InputError
from ..hlmat.arrays import Image

__all__ = ["Exif", "as_exif", "decode_image", "picture_frame", "read_image", "turned_hint"]

Exif = Literal["applied", "ignored"]
"""Whether masks were drawn on a photograph as it is shown, turned by its EXIF tag, or as its pixels are stored."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "JPEG2000")
_HEIF = "HEIF"
"""What pillow-heif calls its format."""
_TURNS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_ORIENTATION = 0x0112
_BITS = 258
"""The TIFF tag with the bits of each channel."""
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_DAMAGE = (OSError, ValueError, LookupError, ArithmeticError, SyntaxError, EOFError, TypeError, struct.error)
"""What Pillow raises for damaged files, by experience."""


def as_exif(text: str | None) -> Exif | None:
    """The `Exif` that a person named, or None for none.

    Raises:
        ConfigError: There is no such one.
    """
    chosen: dict[str | None, Exif | None] = {None: None, "applied": "applied", "ignored": "ignored"}
    if text not in chosen:
        raise ConfigError(f"--exif is {text!r}; it must be applied or ignored")
    return chosen[text]


def decode_image(data: bytes, max_pixels: int | None = None, exif: Exif = "applied") -> Image:
    """Decode an image file as a browser shows it: first frame, what is transparent on white, RGB uint8 (H, W, 3).

    Images of more than 8 bits are scaled, not clipped: the largest value becomes white, unless it is below 255
    (below 1.0 of floating point numbers), and the smallest black where there are negative ones.

    Args:
        data: The file.
        max_pixels: Largest image; by default as large as Pillow takes.
        exif: "ignored" leaves the pixels as they are stored, "applied" turns them by the EXIF tag.

    Raises:
        ImageError: It is not an image of a known format, is damaged, or has more than `max_pixels` pixels. The message
            says what it is instead, if that can be told, and what to do.
    """
    with _opened(data, max_pixels) as picture:
        return _pixels(picture, exif)


def read_image(path: Path, size: tuple[int, int] | None = None, exif: Exif | None = None) -> Image:
    """An image file as RGB uint8 (H, W, 3), see `decode_image`.

    Args:
        path: The file.
        size: (height, width) of masks that were drawn on it, if any.
        exif: On what they were drawn. By default `size` decides, and where it fits both, they were drawn on what is
            shown, as in a browser. The result may be of another size than `size`, where it fits neither.

    Raises:
        InputError: It cannot be read.
    """
    with _file(path) as picture:
        picture.load()  # some formats have their EXIF tags behind the pixels
        return _pixels(picture, _frame(picture, size, exif)[1])


def picture_frame(path: Path, size: tuple[int, int] | None = None, exif: Exif | None = None) -> tuple[int, int, Exif]:
    """(height, width) of an image file and how its EXIF tag is taken, mostly without decoding it; see `read_image`.

    Raises:
        InputError: It cannot be read, or is of another size than `size`.
    """
    with _file(path) as picture:
        (height, width), chosen = _frame(picture, size, exif)
    if size not in (None, (height, width)):
        raise InputError(f"the image {path} is {(height, width)}, its masks {size}{turned_hint(path, size)}")
    return height, width, chosen


def turned_hint(path: Path, size: tuple[int, int] | None) -> str:
    """For messages about a picture that has not the size it should have: what its EXIF tag has to do with it, or ""."""
    try:
        with _file(path) as picture:
            shown, stored = _frame(picture, None, "applied")[0], _frame(picture, None, "ignored")[0]
    except InputError:
        return ""
    if size not in (shown, stored):
        swapped = size == stored[::-1]
        return "; width and height are swapped: has the photograph lost an EXIF tag that turned it?" if swapped else ""
    remedy = "applied" if size == shown else "ignored"
    return f"; the photograph is turned by an EXIF tag: --exif {remedy} takes its masks as drawn on {size}"


def _frame(picture: PilImage.Image, size: tuple[int, int] | None, exif: Exif | None) -> tuple[tuple[int, int], Exif]:
    """(height, width) of an image and how its EXIF tag is taken."""
    stored = (picture.height, picture.width)
    shown = stored[::-1] if picture.getexif().get(_ORIENTATION) in _TURNS else stored
    if exif is None:
        exif = "ignored" if size == stored != shown else "applied"
    return shown if exif == "applied" else stored, exif


def _pixels(picture: PilImage.Image, exif: Exif) -> Image:
    return np.array(_to_rgb(picture if exif == "ignored" else ImageOps.exif_transpose(picture)))


@contextmanager
def _file(path: Path) -> Iterator[PilImage.Image]:
    """The picture in a file; whatever is wrong with it becomes an InputError that names the file."""
    try:
        with _opened(path.read_bytes()) as picture:
            yield picture
    except (OSError, ImageError) as error:
        raise InputError(f"cannot read the image {path}: {error}") from error


@contextmanager
def _opened(data: bytes, max_pixels: int | None = None) -> Iterator[PilImage.Image]:
    """A picture, mostly not decoded yet; whatever is wrong with it becomes an ImageError."""
    formats = (*_FORMATS, _HEIF) if _has_heif() else _FORMATS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: our own limit follows; of odd metadata: they are not used
            with PilImage.open(io.BytesIO(data), formats=formats) as picture:
                width, height = picture.size
                if max_pixels is not None and width * height > max_pixels:
                    raise ImageError(
                        f"the image has {width}x{height} pixels, more than the {max_pixels} allowed; "
                        "downscale it or raise SEGAGENT_MAX_PIXELS"
                    )
                yield _with_8_bits(picture, data) if _has_deep_colours(picture, data) else picture
    except PilImage.DecompressionBombError as error:
        allowed = max_pixels or 2 * (PilImage.MAX_IMAGE_PIXELS or 0)
        raise ImageError(f"the image is larger than the {allowed} pixels allowed: {error}") from error
    except _DAMAGE as error:
        raise ImageError(f"not an image that can be read: {_what_it_is(data) or _damage(data, error)}") from error


@cache
def _has_heif() -> bool:
    """Whether HEIC photographs can be read: pillow-heif is not among what this package needs."""
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _has_deep_colours(picture: PilImage.Image, data: bytes) -> bool:
    """Whether it has several channels of 16 bits, of which Pillow keeps the upper 8, which may all be 0."""
    if picture.format == "PNG":
        return data[24] == 16 and len(picture.getbands()) > 1  # the depth in the header, which is always the first
    depths = getattr(picture, "tag_v2", {}).get(_BITS, ()) if picture.format == "TIFF" else ()
    return len(depths) > 1 and max(depths) == 16


def _with_8_bits(picture: PilImage.Image, data: bytes) -> PilImage.Image:
    """Such a picture with its colours scaled; its EXIF tags are kept."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return picture
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[1::-1] != picture.size:
        return picture
    colours = _scaled(pixels[..., 2::-1])
    alpha = np.asarray(pixels[..., 3:] // 256, np.uint8)
    made = PilImage.fromarray(np.ascontiguousarray(np.concatenate([colours, alpha], 2)))
    made.info["exif"] = picture.getexif().tobytes()
    return made


def _to_rgb(picture: PilImage.Image) -> PilImage.Image:
    if picture.mode.startswith(("I", "F")):  # more than 8 bits would be clipped, not scaled
        picture = PilImage.fromarray(_scaled(np.asarray(picture)))
    if picture.has_transparency_data:  # what shows through is the page, which is white
        picture = PilImage.alpha_composite(PilImage.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")


def _scaled(levels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Levels of any type, (H, W) or (H, W, 3), as uint8."""
    floating = np.issubdtype(levels.dtype, np.floating)
    values = levels.astype(np.float32)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    black = min(low, 0.0)
    if low < 0 and not floating:
        white = max(high, low + 1)
    else:
        white = 1.0 if floating and high <= 1 else max(high, 255.0)
    values = np.nan_to_num(values, nan=black, posinf=high, neginf=low)
    return np.asarray(np.clip((values - black) / (white - black) * 255, 0, 255), np.uint8)


def _damage(data: bytes, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose message names an object in memory
        return f"it starts with {data[:16]!r}; known formats: {', '.join(_FORMATS)}"
    return f"{error} (damaged, or cut short)"


def _what_it_is(data: bytes) -> str:
    """What a file that is no image is, and what to do; "" where that cannot be told."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "it is empty (0 bytes): fetch it again, or look whether the server has the picture at all"
    if b"<svg" in head:
        return "it is an SVG drawing, which has no pixels: save it as PNG"
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in head:
        return (
            "it is a web page (HTML), as a log-in page is: look whether its address is right and whether the token in "
            "LABEL_STUDIO_API_KEY may read it (`segagent doctor` checks that)"
        )
    if head.startswith((b"{", b"[")):
        return "it is text (JSON), as the message of an error is: look whether its address and the token are right"
    if head.startswith(b"<?xml"):
        return "it is text (XML), as the error of a cloud storage is: look whether its address is right and not expired"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: `git lfs pull` fetches the picture"
    if head.startswith(b"%pdf"):
        return "it is a PDF: save its pages as pictures"
    if data[128:132] == b"DICM":
        return "it is a DICOM file: save it as PNG or TIFF of 16 bits"
    if data[4:8] == b"ftyp":
        return _container(data)
    return ""


def _container(data: bytes) -> str:
    """The same of an ISO media file: a photograph of a telephone, or a video."""
    brands = {data[8:12], *(data[start : start + 4] for start in range(16, int.from_bytes(data[:4], "big"), 4))}
    if brands.intersection(_AVIF_BRANDS) and data[8:12] not in _HEIC_BRANDS[:6]:
        return (
            "it is an AVIF picture, damaged or of a kind that this Pillow cannot read: "
            "`pip install --upgrade pillow pillow-heif` (Pillow reads AVIF from 11.3 on), or save it as PNG or JPEG"
        )
    if not brands.intersection(_HEIC_BRANDS):
        return "it is a video, or another file of the MP4 family: save its frames as pictures"
    if _has_heif():
        return "it is a HEIC photograph that pillow-heif cannot read, or a damaged one: save it as PNG or JPEG"
    return "it is a HEIC photograph: `pip install pillow-heif` lets it be read here, or save it as PNG or JPEG"
