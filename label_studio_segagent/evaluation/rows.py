"""One object of an evaluation in numbers; on disk one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ..errors import InputError

__all__ = ["Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One object.

    Attributes:
        key: `Record.key`.
        id: Within the data set.
        image: The file.
        prompt: What the agent was asked for.
        label: What the table of labels calls it.
        share: Of the image that the object covers.
        ious: IoU of the start mask and of the mask after each click that was kept.
        ratings: What the policy said that these IoUs are.
        rated: After each of these clicks, the IoU of the mask that was rated best so far; the last one is the result.
        blind: `ious` of the rollout without ratings, or None.
        noc: IoU after each click of the simulated annotator, or None.
        iou: Of the result.
        boundary_iou: Of the result.
        intersection: Pixels, of the result and the object.
        union: Pixels.
        predicted_iou: Of the result, or None where the policy rated nothing.
        clicks: Kept ones.
        undone: Those that were taken back.
        seconds: Share of this object in the time that the objects on its picture took, without reading the files.
        stopped: Why the rollout ended; "not found" where the policy located fewer objects than there are.
        noc_jittered: `noc` of clicks that are a little off, or None.
    """

    key: str
    id: str
    image: str
    prompt: str
    label: str
    share: float
    ious: list[float]
    ratings: list[float | None]
    rated: list[float]
    blind: list[float] | None
    noc: list[float] | None
    iou: float
    boundary_iou: float
    intersection: int
    union: int
    predicted_iou: float | None
    clicks: int
    undone: int
    seconds: float
    stopped: str
    noc_jittered: list[float] | None = None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Row:
        """Read what `to_json` wrote.

        Raises:
            InputError: The line is not a row.
        """
        try:
            return cls(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise InputError(f"not a row of an evaluation: {line[:80]!r} ({error})") from error
