from __future__ import annotations

from typing import Any

import pytest

from label_studio_segagent.labelstudio.newest import newest_first


@pytest.mark.parametrize(
    ("items", "order"),
    [
        ([{"id": 9}, {"id": 10}, {"id": 8}], [10, 9, 8]),
        ([{"id": 9, "updated_at": "2026-01-02T00:00:00Z"}, {"id": 10, "updated_at": "2026-01-01T00:00:00Z"}], [9, 10]),
        # The same moment, as different servers write it.
        (
            [{"id": 1, "updated_at": "2026-01-02T03:00:00+03:00"}, {"id": 2, "updated_at": "2026-01-02T00:00:00.0Z"}],
            [2, 1],
        ),
        ([{"id": 1, "created_at": "2026-01-02T00:00:00"}, {"id": 2, "updated_at": "2026-01-01T00:00:00Z"}], [1, 2]),
        ([{"id": 3, "updated_at": "soon"}, {"id": 1, "updated_at": "2026-01-01"}], [1, 3]),
        ([{"id": 1}, {"id": 2, "was_cancelled": True}, 7, None], [1]),
        ([{"id": "x"}, {"id": 2}], [2, "x"]),
    ],
)
def test_the_newest_comes_first(items: list[Any], order: list[Any]) -> None:
    for given in (items, items[::-1]):
        assert [item["id"] for item in newest_first({"annotations": given}, "annotations")] == order


def test_odd_tasks_have_none() -> None:
    for task in (None, 7, [], {}, {"drafts": None}, {"drafts": "x"}, {"drafts": {"id": 1}}):
        assert newest_first(task, "drafts") == []
