"""What needs a Label Studio is in tests/e2e/test_qc.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from label_studio_segagent.datasets.record import Record
from label_studio_segagent.hlmat.trajectory import encode_mask
from label_studio_segagent.quality.project import Annotated
from label_studio_segagent.server.annotators import _by_picture

PICTURE = Path("a.png")


def annotated(number: int, by: int, label: str, **meta: object) -> Annotated:
    fields = {"task": 1, "annotation": number, "by": by, "region": "r", **meta}
    record = Record(PICTURE, label, encode_mask(np.eye(4, dtype=bool)), "x", (4, 4), fields)
    return Annotated((record,), (), PICTURE, fields)


def test_of_each_annotator_the_newest_counts_in_whatever_order_they_come() -> None:
    given = [annotated(5, 1, "new"), annotated(2, 1, "old"), annotated(3, 2, "other"), annotated(4, 2, "true")]
    given[3] = annotated(4, 2, "true", ground_truth=True)
    pictures, truths = _by_picture(given)
    [drawn], [truth] = pictures.values(), truths.values()
    assert {by: [label for label, _ in found] for by, found in drawn.items()} == {1: ["new"], 2: ["other"]}
    assert [label for label, _ in truth] == ["true"]


def test_the_one_that_was_changed_last_is_the_newest() -> None:
    given = [annotated(5, 1, "old", updated="2026-01-01"), annotated(2, 1, "new", updated="2026-01-02")]
    [drawn] = _by_picture(given)[0].values()
    assert [label for label, _ in drawn[1]] == ["new"]


def test_one_that_cannot_be_read_is_no_vote_for_nothing() -> None:
    lost = Annotated((), ("dog",), PICTURE, {"task": 1, "annotation": 9, "by": 2}, ("cat",))
    nothing = Annotated((), ("dog", "cat"), PICTURE, {"task": 1, "annotation": 8, "by": 3})
    [drawn] = _by_picture([annotated(5, 1, "cat"), lost, nothing])[0].values()
    assert set(drawn) == {1, 3}
