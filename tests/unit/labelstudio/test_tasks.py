from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import parse_qs

import pytest

from label_studio_segagent.errors import ApiError, InputError
from label_studio_segagent.labelstudio.client import LabelStudioClient
from label_studio_segagent.labelstudio.tasks import iterate_tasks, merge_data, put_view


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


class Project:
    """/api/tasks and the tabs of a project, in which tasks come and go between two requests."""

    def __init__(self, web: Any, ids: list[int], meanwhile: Callable[[int], None] = lambda _: None) -> None:
        self.ids, self.meanwhile, self.asked = set(ids), meanwhile, 0
        web.routes["/api/tasks"] = self.page
        web.routes["/api/dm/views/"] = [
            {"id": 4, "data": {"filters": {"conjunction": "and", "items": [self.above(100), self.below(300)]}}},
            {"id": 5, "data": {"filters": {"conjunction": "or", "items": [self.above(190), self.below(110)]}}},
            {"id": 6, "data": {"title": "Default", "ordering": ["-tasks:id"]}},
        ]

    @staticmethod
    def above(value: int) -> dict[str, Any]:
        return {"filter": "filter:tasks:inner_id", "operator": "greater", "type": "Number", "value": value}

    @staticmethod
    def below(value: int) -> dict[str, Any]:
        return {"filter": "filter:tasks:inner_id", "operator": "less", "type": "Number", "value": value}

    def page(self, request: Any) -> Any:
        fields = {name: values[0] for name, values in parse_qs(request.query).items()}
        query = json.loads(fields["query"])
        assert (query["ordering"], query["filters"]["conjunction"]) == (["tasks:id"], "and")
        found = sorted(self.ids)
        for item in query["filters"]["items"]:
            assert item["filter"] in ("filter:tasks:id", "filter:tasks:inner_id")
            limit, more = item["value"], item["operator"] == "greater"
            found = [n for n in found if (n > limit if more else n < limit)]
        wanted = query.get("selectedItems", {"included": found})["included"]
        found = [n for n in found if n in wanted]
        start = (int(fields["page"]) - 1) * int(fields["page_size"])
        self.asked += 1
        self.meanwhile(self.asked)
        return {"tasks": [{"id": n} for n in found[start : start + int(fields["page_size"])]], "total": len(found)}


def listed(web: Any, **options: Any) -> list[int]:
    with closing(LabelStudioClient(web.url)) as client:
        return [task["id"] for task in iterate_tasks(client, 1, **options)]


def test_no_task_is_passed_over_or_met_twice_while_others_come_and_go(web: Any) -> None:
    def meanwhile(asked: int) -> None:
        project.ids -= {asked * 3, asked * 3 + 1}  # seen already: pages of numbers would shift
        project.ids.add(1000 + asked) if asked < 4 else None

    project = Project(web, list(range(1, 331)), meanwhile)
    found = listed(web)
    assert found == sorted(set(found)) and set(range(60, 331)) <= set(found) and {1001, 1002, 1003} <= set(found)


def test_many_tasks_take_a_request_for_some_dozens_of_them(web: Any) -> None:
    project = Project(web, list(range(7, 2007)))
    assert listed(web) == list(range(7, 2007))
    assert project.asked <= 2000 / 50 + 1


@pytest.mark.parametrize(
    ("view", "expected"),
    [(4, set(range(101, 300))), (5, {*range(1, 110), *range(191, 401)}), (6, set(range(1, 401)))],
    ids=["all conditions", "any condition", "no condition"],
)
def test_the_tasks_of_a_tab(web: Any, view: int, expected: set[int]) -> None:
    Project(web, list(range(1, 401)))
    assert listed(web, view=view) == sorted(expected)


def test_any_of_two_conditions_that_both_hold_is_one_task(web: Any) -> None:
    project = Project(web, [1, 2, 3])
    both = {"conjunction": "or", "items": [project.above(0), project.below(3)]}
    web.routes["/api/dm/views/"] = [{"id": 4, "data": {"filters": both}}]
    assert listed(web, view=4) == [1, 2, 3]


def test_a_tab_that_is_not_there(web: Any) -> None:
    Project(web, [1])
    with pytest.raises(InputError, match=r"project 1 has no Data Manager tab 77; .*\?tab="):
        listed(web, view=77)


def test_some_tasks_of_which_one_is_gone(web: Any) -> None:
    project = Project(web, list(range(1, 100)))
    assert listed(web, only=[98, 3, 3, 120]) == [3, 98] and listed(web, only=[]) == [] and project.asked == 1


def test_a_server_that_gives_the_same_page_for_ever_ends_it(web: Any) -> None:
    web.routes["/api/tasks"] = {"tasks": [{"id": 2}, {"id": 1}]}
    assert listed(web) == [1, 2]
    web.routes["/api/tasks"] = {"tasks": 5}
    with pytest.raises(ApiError, match="something else than tasks"):
        listed(web)
