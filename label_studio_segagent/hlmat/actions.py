"""Actions of the Human-Like Mask Annotation Task and the text in which a model writes them.

A coordinate convention (`Frame`) and a syntax make a grammar. Which one a model was trained on is a property of
the model, so every policy has its own; see `GRAMMARS`.

Source: SegAgent (arXiv 2503.08625), section 3; the Qwen-VL model cards for the absolute and 0..1000 conventions.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from typing_extensions import override

from ..errors import GrammarError

__all__ = [
    "Action", "ActionGrammar", "Answer", "Click", "Finish", "Frame", "GRAMMARS", "JsonGrammar", "LineGrammar",
    "PerMille", "ResizedPixels", "RowColumnDecimals", "RowColumnPerMille",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Click:
    """A positive (this belongs to the object) or negative (this does not) click.

    Attributes:
        x: Column in pixels. Integers address pixel centres: (0, 0) is the centre of the top-left pixel.
        y: Row in pixels.
        positive: The sign.
    """

    x: float
    y: float
    positive: bool = True

    def pixel(self, height: int, width: int) -> tuple[int, int]:
        """The (row, column) of the clicked pixel, clamped into an image of `height` by `width`."""
        return min(max(round(self.y), 0), height - 1), min(max(round(self.x), 0), width - 1)


@dataclass(frozen=True, slots=True)
class Finish:
    """The mask is right; no more clicks."""


Action = Click | Finish


@dataclass(frozen=True, slots=True)
class Answer:
    """What one answer of a model says.

    Attributes:
        action: The next action.
        predicted_iou: The model's rating of the mask it was shown, *before* `action`, in [0, 1], or None.
    """

    action: Action
    predicted_iou: float | None = None


class Frame(ABC):
    """A coordinate convention: pixels of an image <-> the two numbers in the text.

    `size` is always the (height, width) of the original image in pixels.
    """

    @abstractmethod
    def to_text(self, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
        """The two numbers, in the order they are written, for pixel (x, y)."""

    @abstractmethod
    def to_pixel(self, first: float, second: float, size: tuple[int, int]) -> tuple[float, float]:
        """The pixel (x, y) for the two numbers as written; may lie outside the image."""


class RowColumnPerMille(Frame):
    """SegAgent: (row, column) in thousandths of height and width. Decimals in [0, 1) are read as well."""

    @override
    def to_text(self, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
        return round(y / size[0] * 1000), round(x / size[1] * 1000)

    @override
    def to_pixel(self, first: float, second: float, size: tuple[int, int]) -> tuple[float, float]:
        decimals = first < 1 and second < 1 and not (float(first).is_integer() and float(second).is_integer())
        scale = 1.0 if decimals else 1000.0
        return round(second / scale * size[1]), round(first / scale * size[0])


class RowColumnDecimals(RowColumnPerMille):
    """SegAgent's older form: (row, column) as fractions of height and width with three decimals."""

    @override
    def to_text(self, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
        # 1.000 would be read as one thousandth.
        return min(round(y / size[0], 3), 0.999), min(round(x / size[1], 3), 0.999)


class PerMille(Frame):
    """Qwen3-VL and most later families: (x, y) in thousandths of width and height."""

    @override
    def to_text(self, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
        return round(x / size[1] * 1000), round(y / size[0] * 1000)

    @override
    def to_pixel(self, first: float, second: float, size: tuple[int, int]) -> tuple[float, float]:
        return first * size[1] / 1000, second * size[0] / 1000


@dataclass(frozen=True)
class ResizedPixels(Frame):
    """Qwen2.5-VL: absolute (x, y) pixels of the image as the model's processor resized it.

    Attributes:
        resize: (height, width) of the original image -> (height, width) the model saw; the identity by default.
    """

    resize: Callable[[tuple[int, int]], tuple[int, int]] = field(default=lambda size: size)

    @override
    def to_text(self, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
        height, width = self.resize(size)
        return round(x / size[1] * width), round(y / size[0] * height)

    @override
    def to_pixel(self, first: float, second: float, size: tuple[int, int]) -> tuple[float, float]:
        height, width = self.resize(size)
        return first * size[1] / width, second * size[0] / height


class ActionGrammar(ABC):
    """Text <-> action, for one model family.

    Args:
        frame: The coordinate convention.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    @abstractmethod
    def format(self, answer: Answer, size: tuple[int, int]) -> str:
        """Write an answer about an image of `size` = (height, width) pixels."""

    @abstractmethod
    def parse(self, text: str, size: tuple[int, int]) -> Answer:
        """Read a model's answer about an image of `size` = (height, width) pixels.

        Raises:
            GrammarError: No action can be found, or its point lies outside the image.
        """

    def click(self, first: float, second: float, positive: bool, size: tuple[int, int]) -> Click:
        """The click at the two numbers as written, on the image's last row or column when they name its far edge.

        Raises:
            GrammarError: The point lies outside the image.
        """
        if not (abs(first) < _FAR and abs(second) < _FAR):  # NaN compares false
            raise GrammarError(f"point ({first:g}, {second:g}) is not finite or far outside any image")
        x, y = self.frame.to_pixel(first, second, size)
        if not (-0.5 <= x <= size[1] and -0.5 <= y <= size[0]):
            raise GrammarError(
                f"point ({first:g}, {second:g}) is pixel x={x:.1f}, y={y:.1f}, outside the {size[1]}x{size[0]} image; "
                f"is {type(self.frame).__name__} this model's coordinate convention?"
            )
        return Click(min(max(x, 0), size[1] - 1), min(max(y, 0), size[0] - 1), positive)


# Each pattern reads a text in linear time: no two neighbours in it can match the same characters.
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_IOU = re.compile(rf"\bm?IoU\b\s*(?:(?:is\b|=|:)\s*)?({_NUMBER})", re.IGNORECASE)
_POINT = re.compile(
    rf"\b(positive|negative)\b[^\n()\[\]]{{0,40}}[(\[]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[)\]]", re.IGNORECASE
)
_FAR = 1e9
_FINISH = re.compile(r"(?:^|[,;.:])[ \t]*finish(?:ed)?[ \t.!]*$", re.IGNORECASE | re.MULTILINE)


def _percent(value: float) -> float:
    """A rating in percent, clamped to [0, 1]."""
    return min(max(value / 100, 0.0), 1.0)


class LineGrammar(ActionGrammar):
    r"""SegAgent's lines: `Current IOU: 74\nPositive point: (175, 483)` or `Current IOU: 96\nFinish`."""

    @override
    def format(self, answer: Answer, size: tuple[int, int]) -> str:
        lines = [] if answer.predicted_iou is None else [f"Current IOU: {round(answer.predicted_iou * 100)}"]
        if isinstance(answer.action, Click):
            first, second = self.frame.to_text(answer.action.x, answer.action.y, size)
            lines.append(f"{'Positive' if answer.action.positive else 'Negative'} point: ({first:g}, {second:g})")
        else:
            lines.append("Finish")
        return "\n".join(lines)

    @override
    def parse(self, text: str, size: tuple[int, int]) -> Answer:
        rating = _IOU.search(text)
        iou = _percent(float(rating[1])) if rating else None
        point = _POINT.search(text)
        if point:
            return Answer(self.click(float(point[2]), float(point[3]), point[1].lower() == "positive", size), iou)
        if _FINISH.search(text):
            return Answer(Finish(), iou)
        raise GrammarError(f"no point and no 'Finish' in the answer {text[:200]!r}")


class JsonGrammar(ActionGrammar):
    """JSON objects: `{"current_iou": 74, "point_2d": [175, 483], "label": "positive"}` or `{…, "finish": true}`.

    A fenced code block, text around the object, a list with one object, numbers as strings, a rating as a share, and
    the object's name as the label of a point on it are accepted: general models write all of these.
    """

    @override
    def format(self, answer: Answer, size: tuple[int, int]) -> str:
        fields: dict[str, object] = {}
        if answer.predicted_iou is not None:
            fields["current_iou"] = round(answer.predicted_iou * 100)
        if isinstance(answer.action, Click):
            fields["point_2d"] = list(self.frame.to_text(answer.action.x, answer.action.y, size))
            fields["label"] = "positive" if answer.action.positive else "negative"
        else:
            fields["finish"] = True
        return json.dumps(fields)

    @override
    def parse(self, text: str, size: tuple[int, int]) -> Answer:
        fields = _first_object(text)
        rating = _number(fields.get("current_iou"))
        iou = None if rating is None else _percent(rating * 100 if 0 < rating < 1 else rating)
        point = fields.get("point_2d")
        if isinstance(point, list) and len(point) == 2:
            first, second = map(_number, point)
            if first is not None and second is not None:
                positive = "negative" not in str(fields.get("label", "")).lower()
                return Answer(self.click(first, second, positive, size), iou)
        if fields.get("finish") is True:
            return Answer(Finish(), iou)
        raise GrammarError(f"no 'point_2d' of two numbers and no 'finish' in the answer {text[:200]!r}")


def _number(value: object) -> float | None:
    """A finite number, also where it is written as a string, as a percentage, or None."""
    if isinstance(value, str) and len(value) <= _DIGITS:
        try:
            value = float(value.strip().removesuffix("%"))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int) and abs(value) >= _FAR:  # a longer one need not fit a float
        return None
    return float(value) if math.isfinite(value) else None


_BRACES_TRIED = 1000
_DIGITS = 40
"""Of a number in a string, at most."""


def _first_object(text: str) -> dict[str, object]:
    """The first JSON object in a text, which may have prose or a code fence around it."""
    decoder = json.JSONDecoder()
    for match in islice(re.finditer(r"\{(?=\s*[\"}])", text), _BRACES_TRIED):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except ValueError:
            continue
        except RecursionError:  # each further brace would cost as much again
            break
        if isinstance(value, dict):
            return value
    raise GrammarError(f"no JSON object in the answer {text[:200]!r}")


GRAMMARS: dict[str, Callable[[], ActionGrammar]] = {
    "segagent": lambda: LineGrammar(RowColumnPerMille()),
    "segagent-decimals": lambda: LineGrammar(RowColumnDecimals()),
    "pixels": lambda: LineGrammar(ResizedPixels()),
    "per-mille": lambda: LineGrammar(PerMille()),
    "json": lambda: JsonGrammar(PerMille()),
    "json-pixels": lambda: JsonGrammar(ResizedPixels()),
}
"""The grammars by name. For Qwen2.5-VL build `LineGrammar(ResizedPixels(resize))` with the processor's own resize."""
