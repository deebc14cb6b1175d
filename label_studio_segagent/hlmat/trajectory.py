"""Trajectories: what happened, mask by mask and click by click; on disk one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import InputError
from .actions import Action, Click, Finish
from .arrays import Box, Mask

__all__ = [
    "Sample", "Step", "Trajectory", "check_mask", "decode_mask", "encode_mask", "read_trajectories", "write_lines",
    "write_trajectories",
]  # fmt: skip

_BLOCK = 2**20
"""Bytes read at a time from the end of a file."""


def encode_mask(mask: Mask) -> dict[str, Any]:
    """A bool (H, W) mask as COCO's compressed RLE: `{"size": [H, W], "counts": "…"}`."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any]) -> Mask:
    """The bool (H, W) mask of COCO's compressed RLE.

    Raises:
        InputError: It is not such an RLE.
    """
    height, width, runs = _runs(rle)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def check_mask(rle: dict[str, Any]) -> None:
    """Make sure that something is COCO's compressed RLE, without decoding it; pycocotools would not.

    Raises:
        InputError: It is not such an RLE.
    """
    _runs(rle)


def _runs(rle: dict[str, Any]) -> tuple[int, int, list[int]]:
    """Height, width and run lengths, of nothing and something in turn, of COCO's compressed RLE."""
    try:
        height, width = (int(n) for n in rle["size"])
        runs = _run_lengths(rle["counts"])
        if min(height, width, *runs) < 0 or sum(runs) != height * width:
            raise ValueError(f"the runs hold {sum(runs)} pixels, the size says {height * width}")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"not a COCO RLE mask: {str(rle)[:80]} ({error})") from error
    return height, width, runs


def _run_lengths(counts: str) -> list[int]:
    """The run lengths in COCO's compressed string, which pycocotools would not check against the size.

    Five bits a character, least significant first, signed; from the fourth run on, less the run two before.
    """
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the counts are cut short or hold a foreign character")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise ValueError("a run is longer than any image")
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= ((codes[ends] >> 4) & 1) << (5 * (place[ends] + 1))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return [int(value) for value in values]


@dataclass(frozen=True, slots=True)
class Sample:
    """One object to segment: what every dataset is read into.

    Attributes:
        image: RGB uint8 (H, W, 3).
        prompt: Label or referring expression.
        mask: Ground truth, bool (H, W).
        void: Pixels that do not count, bool (H, W), or None.
        id: Unique within its dataset.
        path: Of the image file, or "".
        meta: What else is known, as JSON: "weight" (see `training.trainer.weight_of`), "expression" (the prompt
            is a referring expression, which means one object), "exif" (what the mask was drawn on, see
            `datasets.image_file.read_image`, where that was said), ids in Label Studio.
    """

    image: np.ndarray[Any, np.dtype[np.uint8]]
    prompt: str
    mask: Mask
    void: Mask | None = None
    id: str = ""
    path: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One state and what was done in it.

    Attributes:
        mask: The mask before the action, bool (H, W).
        action: The click made next, Finish, or None when the answer could not be parsed or the budget was used up.
        predicted_iou: The policy's rating of `mask`, in [0, 1], or None.
        true_iou: IoU of `mask` with the target, where that is known.
        text: The policy's answer as it was written.
        undone: The click made the mask worse, and the rollout went back to `mask`.
    """

    mask: Mask
    action: Action | None
    predicted_iou: float | None = None
    true_iou: float | None = None
    text: str = ""
    undone: bool = False


@dataclass(slots=True)
class Trajectory:
    """The steps of one rollout; the last one holds the last mask and usually Finish.

    Attributes:
        prompt: Label or referring expression.
        image: Where the image is, for people and datasets; not opened here.
        box: (x0, y0, x1, y1) pixels the rollout started from, or None.
        steps: Oldest first.
        meta: Anything JSON can hold: model version, source, stop reason.
    """

    prompt: str
    image: str = ""
    box: Box | None = None
    steps: list[Step] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def clicks(self) -> list[Click]:
        """The clicks that were kept, in order."""
        return [step.action for step in self.steps if isinstance(step.action, Click) and not step.undone]

    @property
    def target(self) -> Mask | None:
        """What the object really is, bool (H, W): the mask in the meta's "target", else the last mask, if any.

        Raises:
            InputError: The meta's "target" is not COCO's compressed RLE.
        """
        if "target" in self.meta:
            return decode_mask(self.meta["target"])
        return self.steps[-1].mask if self.steps else None

    def to_json(self) -> str:
        """One line of JSON."""
        steps = [
            {
                "mask": encode_mask(step.mask),
                "action": _action_to_json(step.action),
                "predicted_iou": step.predicted_iou,
                "true_iou": step.true_iou,
                "text": step.text,
                "undone": step.undone,
            }
            for step in self.steps
        ]
        fields = {"prompt": self.prompt, "image": self.image, "box": self.box, "steps": steps, "meta": self.meta}
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Trajectory:
        """Read what `to_json` wrote.

        Raises:
            InputError: The line is not a trajectory.
        """
        try:
            fields = json.loads(line)
            steps = [
                Step(
                    mask=decode_mask(step["mask"]),
                    action=_action_from_json(step["action"]),
                    predicted_iou=step["predicted_iou"],
                    true_iou=step["true_iou"],
                    text=step["text"],
                    undone=step["undone"],
                )
                for step in fields["steps"]
            ]
            box = fields["box"]
            return cls(fields["prompt"], fields["image"], tuple(box) if box else None, steps, fields["meta"])
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise InputError(f"not a trajectory: {line[:80]!r} ({error})") from error


def _action_to_json(action: Action | None) -> dict[str, Any] | None:
    if isinstance(action, Click):
        return {"x": action.x, "y": action.y, "positive": action.positive}
    return {"finish": True} if isinstance(action, Finish) else None


def _action_from_json(fields: dict[str, Any] | None) -> Action | None:
    if fields is None:
        return None
    return Finish() if fields.get("finish") else Click(fields["x"], fields["y"], fields["positive"])


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Append trajectories to a JSONL file, one line each; a last line cut short by a crash is removed first."""
    write_lines(path, (trajectory.to_json() for trajectory in trajectories))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Append what `Trajectory.to_json` gave, as `write_trajectories` does; each line before the next is made."""
    _mend(path)
    # Backslashreplace: half a surrogate pair in a prompt cannot be UTF-8, but its escape is JSON.
    with path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as file:
        for line in lines:
            file.write(line + "\n")


def _mend(path: Path) -> None:
    """End the last line of a JSONL file: with a line feed when it can be read, by its removal when not."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = start = file.seek(0, os.SEEK_END)
        last = b""
        while start > 0 and b"\n" not in last:  # only the end of the file is read, which may be gigabytes
            start = max(0, start - _BLOCK)
            file.seek(start)
            last = file.read(end - start)
        last = last[last.rfind(b"\n") + 1 :]
        if not last:
            return
        try:
            Trajectory.from_json(last.decode())
            file.seek(end)
            file.write(b"\n")
        except (InputError, UnicodeDecodeError):
            file.truncate(end - len(last))


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """Read a JSONL file lazily. A last line cut short by a crash is skipped.

    Raises:
        InputError: Another line is not a trajectory; the message has its number.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                trajectory = Trajectory.from_json(line.decode())
            except (InputError, UnicodeDecodeError) as error:
                if not line.endswith(b"\n"):
                    return
                raise InputError(f"{path}, line {number}: {error}") from error
            yield trajectory
