from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from label_studio_segagent.errors import ApiError
from label_studio_segagent.labelstudio.client import LabelStudioClient
from label_studio_segagent.labelstudio.tasks import merge_data, put_view


def test_views_sort_numbers_as_numbers(web: Any) -> None:
    web.routes["/api/dm/views/"] = lambda request: {"id": 9} if request.method == "POST" else []
    with closing(LabelStudioClient(web.url)) as client:
        assert put_view(client, 3, "Label next", ["-tasks:data.label_next"], []) == 9
    made = web.asked[-1].json["data"]
    assert made["ordering"] == ["-tasks:data.label_next"]
    # Without it Label Studio casts them to texts, which PostgreSQL sorts 1, 10, 2.
    assert made["columnsDisplayType"] == {"tasks:data.label_next": "Number"}


def test_columns_are_written_again_when_somebody_undid_them(web: Any) -> None:
    """Label Studio replaces the whole data at once: what the other writer changed stays, and ours is there, too."""
    stored: dict[str, Any] = {"image": "a.jpg"}
    intruders = [{"image": "a.jpg", "caption": "new"}]

    def patch(request: Any) -> Any:
        stored.clear()
        stored.update(intruders.pop() if intruders else request.json["data"])
        return {}

    web.routes["/api/tasks"] = lambda request: {"tasks": [{"id": 5, "data": dict(stored)}]}
    web.routes["/api/tasks/5/"] = patch
    with closing(LabelStudioClient(web.url)) as client:
        merge_data(client, 1, 5, {"qc_score": 0.5})
        assert stored == {"image": "a.jpg", "caption": "new", "qc_score": 0.5}
        merge_data(client, 1, 5, {"qc_score": None})
        assert stored == {"image": "a.jpg", "caption": "new"}
        intruders[:] = [{"image": "a.jpg"}] * 9
        with pytest.raises(ApiError, match="somebody else"):
            merge_data(client, 1, 5, {"qc_score": 0.5})
        web.routes["/api/tasks"] = {"tasks": []}
        with pytest.raises(ApiError, match="no task 5"):
            merge_data(client, 1, 5, {"qc_score": 0.5})
