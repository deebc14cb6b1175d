"""What Label Studio's image regions look like: the shape that a `value` holds, and its pixels.

Label Studio tells what was drawn by the fields of the value, whatever the result's type says, and so does this module.
Coordinates are percent of the (EXIF-oriented) image.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as PilImage

from ..errors import RegionError
from ..hlmat.arrays import Mask, soft_mask
from .brush import decode_brush
from .polygons import Ring, ring_mask

__all__ = ["BOX_SHAPES", "MASK_SHAPES", "TYPES", "finite", "shape_mask", "shape_of"]

MASK_SHAPES = frozenset({"brush", "bitmask", "magicwand", "polygon", "vector"})
"""Shapes that follow an object's outline: masks, to be learned, refined and corrected."""
BOX_SHAPES = frozenset({"rectangle", "ellipse"})
"""Shapes around an object; where its label has a control of a mask's shape, they only point at it."""
TYPES = frozenset({"labels"} | {f"{s}{end}" for s in (*MASK_SHAPES, *BOX_SHAPES, "keypoint") for end in ("", "labels")})
"""Types of results that are regions of an image, in lower case."""
_FIELDS = (
    ("brush", ("rle",)),
    ("brush", ("maskDataURL",)),
    ("magicwand", ("rle",)),
    ("bitmask", ("imageDataURL",)),
    ("vector", ("vertices",)),
    ("polygon", ("points",)),
    ("ellipse", ("radiusX",)),
    ("rectangle", ("x", "y", "width", "height")),
)
_LONGEST_OUTLINE = 1_000_000
"""Pixels; far more than any drawn outline has."""
_FAR = 200.0
"""Percent; Label Studio lets nobody draw so far outside of the image."""
_SHORT = 0.3
"""A curve with a handle at one end only has another one at the other, this share of the way long (Label Studio's)."""


def shape_of(kind: str, value: Mapping[str, Any]) -> str:
    """What was drawn: one of `MASK_SHAPES` or `BOX_SHAPES`, "keypoint", or "" where nothing says.

    Args:
        kind: Type of a result, in lower case.
        value: Its value. An accepted suggestion may be saved as "keypointlabels" with a brush's `rle`.
    """
    named = kind.removesuffix("labels")
    drawn = [shape for shape, fields in _FIELDS if all(field in value for field in fields)]
    if named in drawn or (named and not drawn):
        return named
    if drawn:
        return drawn[0]
    return "keypoint" if {"x", "y"} <= value.keys() else ""


def shape_mask(shape: str, value: Mapping[str, Any], what: str, height: int, width: int) -> Mask:
    """The pixels of a shape, bool (H, W), for the image's size after EXIF orientation.

    Args:
        shape: See `shape_of`.
        value: Of the result.
        what: Names the region in messages.
        height: Of the image, in pixels.
        width: Likewise.

    Raises:
        RegionError: The value is malformed, not finite, far outside, made for another size, or has no area.
    """
    if "rle" in value and shape in ("brush", "magicwand"):
        return decode_brush(value["rle"], height, width)
    if shape in ("brush", "bitmask") and ("maskDataURL" in value or "imageDataURL" in value):
        return _decode_bitmap(value.get("maskDataURL", value.get("imageDataURL")), height, width)
    if shape == "polygon" and "points" in value:
        return _area(_points(value["points"], what), what, height, width)
    if shape == "vector" and "vertices" in value:
        if not value.get("closed"):
            raise RegionError(f"{what} is not closed and has no area")
        return _area(_curves(value["vertices"], what, height, width), what, height, width)
    if shape == "ellipse" and "radiusX" in value:
        return _fill(_ellipse(value, what, height, width), what, height, width)
    if shape == "rectangle" and {"x", "y", "width", "height"} <= value.keys():
        return _fill(_rectangle(value, what, height, width), what, height, width)
    raise RegionError(f"{what} with the fields {sorted(map(str, value))[:20]} has no area that is known")


def finite(value: Any, what: str) -> float:
    """A number of a result.

    Raises:
        RegionError: It is no number, not finite, or of no size that an image has.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == math.inf:
        raise RegionError(f"{what} is {str(value)[:40]!r}, not a finite number")
    if abs(value) > 1e6:
        raise RegionError(f"{what} is {str(value)[:40]}, far outside the image")
    return float(value)


def _point(point: Any, what: str) -> tuple[float, float]:
    if isinstance(point, Mapping):
        pair = (point.get("x"), point.get("y"))
    elif isinstance(point, (list, tuple)) and len(point) == 2:
        pair = (point[0], point[1])
    else:
        raise RegionError(f"a point must be [x, y], or an object with x and y, got {str(point)[:40]}: {what}")
    return finite(pair[0], f"a point of {what}"), finite(pair[1], f"a point of {what}")


def _points(points: Any, what: str) -> Ring:
    if not isinstance(points, list) or not points:
        raise RegionError(f"{what} has fewer than 3 points: {str(points)[:80]}")
    return [_point(point, what) for point in points]


def _curves(vertices: Any, what: str, height: int, width: int) -> Ring:
    """A closed path of straight lines and cubic Bezier curves, in percent, as Label Studio draws it."""
    ends = _points(vertices, what)
    ring: list[tuple[float, float]] = []
    order = _in_order(vertices)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        start, end = ends[here], ends[there]
        leaving = _handle(vertices[here], "controlPoint2", what)
        arriving = _handle(vertices[there], "controlPoint1", what)
        if leaving is None and arriving is None:
            ring.append(start)
            continue
        along = (_SHORT * (end[0] - start[0]), _SHORT * (end[1] - start[1]))
        leaving = leaving or (start[0] + along[0], start[1] + along[1])
        arriving = arriving or (end[0] - along[0], end[1] - along[1])
        corners = np.array([start, leaving, arriving, end])
        length = float(np.abs(np.diff(corners, axis=0) * (width / 100, height / 100)).sum())
        t = np.linspace(0, 1, 8 + int(min(length, 2000) / 4), endpoint=False)[:, None]
        weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
        ring += [(float(x), float(y)) for x, y in weights @ corners]
    return ring


def _handle(vertex: Any, name: str, what: str) -> tuple[float, float] | None:
    """The handle of a curved vertex, or None."""
    handle = vertex.get(name) if isinstance(vertex, Mapping) and vertex.get("isBezier") else None
    return None if handle is None else _point(handle, f"{name} of {what}")


def _in_order(vertices: Sequence[Any]) -> list[int]:
    """The vertices as they follow each other: by `prevPointId` where that leads through all, else as listed."""
    listed = list(range(len(vertices)))
    pairs = [(v.get("id"), v.get("prevPointId")) if isinstance(v, Mapping) else (None, None) for v in vertices]
    following = {str(before): n for n, (_, before) in enumerate(pairs) if before is not None}
    first = next((n for n, (_, before) in enumerate(pairs) if before is None), 0)
    path: list[int] = []
    now = first if following else None
    while now is not None and now not in path[:1]:
        path.append(now)
        if len(path) > len(listed):
            break
        now = following.get(str(pairs[now][0]))
    return path if sorted(path) == listed else listed


def _area(ring: Ring, what: str, height: int, width: int) -> Mask:
    """The pixels of a ring in percent."""
    if len(ring) < 3:
        raise RegionError(f"{what} has fewer than 3 points: {str(list(ring))[:80]}")
    mask = _fill([(x / 100 * width, y / 100 * height) for x, y in ring], what, height, width)
    far = max((max(abs(x - 50), abs(y - 50)) for x, y in ring), default=0.0)
    if far > _FAR - 50:
        raise _outside(what, ring)
    return mask


def _outside(what: str, ring: Ring) -> RegionError:
    xs, ys = zip(*ring, strict=True)
    return RegionError(
        f"{what} reaches from ({min(xs):g}, {min(ys):g}) to ({max(xs):g}, {max(ys):g}), outside of the image: "
        "are these pixels? Coordinates are percent of the image, 0 to 100"
    )


def _rectangle(value: Mapping[str, Any], what: str, height: int, width: int) -> Ring:
    """Corners in pixels. Label Studio turns a rectangle clockwise about its top-left corner."""
    x, y, w, h = (finite(value.get(name), f"{name} of {what}") / 100 for name in ("x", "y", "width", "height"))
    angle = math.radians(finite(value.get("rotation", 0), "rotation"))
    along, down = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    corners = [(0.0, 0.0), (w * width, 0.0), (w * width, h * height), (0.0, h * height)]
    return [(x * width + a * along[0] + b * down[0], y * height + a * along[1] + b * down[1]) for a, b in corners]


def _ellipse(value: Mapping[str, Any], what: str, height: int, width: int) -> Ring:
    """Points of the outline, in pixels."""
    x, y, rx, ry = (finite(value.get(name), f"{name} of {what}") / 100 for name in ("x", "y", "radiusX", "radiusY"))
    angle = math.radians(finite(value.get("rotation", 0), "rotation"))
    turns = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    a, b = rx * width * np.cos(turns), ry * height * np.sin(turns)
    columns = x * width + a * math.cos(angle) - b * math.sin(angle)
    rows = y * height + a * math.sin(angle) + b * math.cos(angle)
    return list(zip(columns.tolist(), rows.tolist(), strict=True))


def _fill(ring: Ring, what: str, height: int, width: int) -> Mask:
    """The pixels of a ring in pixels, unless its outline is so long that drawing it would take the machine's memory.

    Raises:
        RegionError: It is that long, or all of it is beside the image.
    """
    corners = np.array(ring)
    length = float(np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum())
    if length > _LONGEST_OUTLINE:
        raise RegionError(
            f"the outline is {length:.0f} pixels long on an image of {width}x{height}; "
            f"more than {_LONGEST_OUTLINE} are not drawn: {what}"
        )
    low, high = corners.min(axis=0), corners.max(axis=0)
    if (low >= (width, height)).any() or (high <= 0).any():
        percent = [(float(x) / width * 100, float(y) / height * 100) for x, y in ring]
        raise _outside(f"{what} covers no pixel of the {width}x{height} image: it", percent)
    return ring_mask(ring, height, width)


def _decode_bitmap(url: Any, height: int, width: int) -> Mask:
    """A PNG data URL: the mask is what alpha shows, where it varies, else what is not black.

    A picture that is of one colour and opaque all over is a mask of the whole image, unless it has no alpha to say so.
    """
    if not isinstance(url, str) or not url.startswith("data:image/png;base64,"):
        raise RegionError(f"imageDataURL must start with 'data:image/png;base64,', got {str(url)[:40]!r}")
    try:
        with PilImage.open(io.BytesIO(base64.b64decode(url.partition(",")[2], validate=True)), formats=["PNG"]) as png:
            if png.size != (width, height):
                raise RegionError(f"the bitmap is {png.width}x{png.height}, but the image is {width}x{height}")
            has_alpha = "A" in png.getbands() or "transparency" in png.info
            alpha = np.asarray(png.convert("RGBA"))[..., 3]
            deep = png.mode.startswith(("I", "F"))  # 16 bits, which RGB would clip
            # The lightest channel: the luminance of a dark blue is rounded to black.
            grey = np.asarray(png) if deep else np.asarray(png.convert("RGB")).max(axis=2)
    except (binascii.Error, OSError, ValueError, SyntaxError, PilImage.DecompressionBombError) as error:
        raise RegionError(f"the bitmap cannot be decoded: {error}") from error
    if has_alpha and (alpha.min() != alpha.max() or grey.min() == grey.max() or not alpha.any()):
        return soft_mask(alpha)
    return np.asarray(grey > 0)
