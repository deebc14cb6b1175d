"""Where objects are, read from what a language model wrote about it."""

from __future__ import annotations

import re

from ..hlmat.actions import Frame
from .base import Target

__all__ = ["read_targets"]

# Linear in the length of the text, as no two neighbours can match the same characters.
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_PAIR = rf"({_NUMBER})\s*,\s*({_NUMBER})"
_BOX = re.compile(rf"[\[(]\s*{_PAIR}\s*(?:,\s*|[\])]\s*,\s*[\[(]\s*){_PAIR}\s*[\])]")
"""`[x0, y0, x1, y1]` and `(x0, y0), (x1, y1)`, in JSON or not, whether the text around it is complete or not."""
_POINT = re.compile(rf"[\[(]\s*{_PAIR}\s*[\])]")
_SCORE = re.compile(rf'"(?:score|confidence)"\s*:\s*({_NUMBER})')
_LEAST = 1.0
"""Boxes with a side below this many pixels hold nothing."""


def read_targets(text: str, frame: Frame, size: tuple[int, int]) -> list[Target]:
    """The boxes in a text, or where it has none the points.

    JSON objects with any key (`bbox_2d`, `box_2d`, `point_2d`), lists, code fences, free text and answers that were cut
    off are all read the same way: by their brackets. `"score"` or `"confidence"` in the same braces, as a share or in
    percent, is the score; without one it is 1.

    Args:
        text: A model's answer.
        frame: The convention of its coordinates.
        size: (height, width) of the image in pixels.

    Returns:
        Highest score first, else as written; clipped to the image, without repetitions and without boxes and points
        that lie outside it or hold nothing.
    """
    boxes = [match for match in _BOX.finditer(text)]
    found = boxes or [match for match in _POINT.finditer(text)]
    targets: dict[tuple[float, ...], Target] = {}
    for i, match in enumerate(found):
        numbers = [float(group) for group in match.groups()]
        if max(map(abs, numbers)) > 1e9:
            continue
        before, after = found[i - 1].end() if i else 0, found[i + 1].start() if i + 1 < len(found) else len(text)
        score = _score(text[before : match.start()], text[match.end() : after])
        target = (_box if boxes else _point)(numbers, frame, size, score)
        if target is not None:
            targets.setdefault(target.box or target.point or (), target)
    return sorted(targets.values(), key=lambda target: -target.score)


def _score(before: str, after: str) -> float:
    """The score in the braces around a box, given the text between it and its neighbours."""
    found = _SCORE.search(after.partition("}")[0]) or _SCORE.search(before.rpartition("{")[2])
    if found is None:
        return 1.0
    value = float(found[1])
    return min(max(value / 100 if value > 1 else value, 0.0), 1.0)


def _box(numbers: list[float], frame: Frame, size: tuple[int, int], score: float) -> Target | None:
    x0, y0 = frame.to_pixel(numbers[0], numbers[1], size)
    x1, y1 = frame.to_pixel(numbers[2], numbers[3], size)
    x0, x1 = (min(max(x, 0.0), float(size[1])) for x in (x0, x1))
    y0, y1 = (min(max(y, 0.0), float(size[0])) for y in (y0, y1))
    return Target((x0, y0, x1, y1), None, score) if x1 - x0 >= _LEAST and y1 - y0 >= _LEAST else None


def _point(numbers: list[float], frame: Frame, size: tuple[int, int], score: float) -> Target | None:
    x, y = frame.to_pixel(numbers[0], numbers[1], size)
    if not (-0.5 <= x <= size[1] and -0.5 <= y <= size[0]):
        return None
    return Target(None, (min(max(x, 0.0), size[1] - 1.0), min(max(y, 0.0), size[0] - 1.0)), score)
