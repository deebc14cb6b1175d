"""Tasks, predictions and Data Manager views of a project, through Label Studio's API."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import ApiError, InputError
from .client import LabelStudioClient

__all__ = ["iterate_tasks", "merge_data", "put_prediction", "put_view"]

_PAGE = 50
"""Tasks asked for at once; masks make them large."""
_TRIES = 5


def iterate_tasks(
    client: LabelStudioClient, project: int, *, view: int | None = None, only: Iterable[int] | None = None,
    annotated: bool = False,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Tasks of a project with their annotations and predictions, by their ids; each once, whatever comes and goes.

    Images in cloud storage keep their own addresses, which Label Studio can sign again at any time.

    Args:
        client: Of the server.
        project: Project id.
        view: Id of a Data Manager tab: its tasks alone.
        only: These tasks alone, as far as they are there; a tab does not count then.
        annotated: Those with an annotation alone.

    Raises:
        ApiError: Label Studio refused or failed, or answered with something else.
        InputError: The project has no such tab.
    """
    always = [_condition("total_annotations", 0)] if annotated else []
    if only is not None:
        wanted = sorted(set(only))
        for start in range(0, len(wanted), _PAGE):
            yield from _page(client, project, always, wanted[start : start + _PAGE])
        return
    ways = [[]] if view is None else _conditions(client, project, view)
    last = 0
    for task in heapq.merge(*(_by_id(client, project, [*always, *way]) for way in ways), key=lambda task: task["id"]):
        if task["id"] != last:  # several conditions of a tab hold for it
            yield task
        last = task["id"]


def _by_id(client: LabelStudioClient, project: int, conditions: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """By the last id and not by page numbers: these shift when tasks come and go, and get slower with every page."""
    last = 0
    while True:
        page = _page(client, project, [*conditions, _condition("id", last)])
        new = [task for task in page if task["id"] > last]
        if not new:
            return
        yield from new
        last = new[-1]["id"]


def _condition(column: str, above: int) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": "greater", "type": "Number", "value": above}


def _conditions(client: LabelStudioClient, project: int, view: int) -> list[list[dict[str, Any]]]:
    """The conditions of a tab: lists of which one must hold as a whole."""
    found = next((v for v in client.call("GET", "/api/dm/views/", project=project) if v.get("id") == view), None)
    if found is None:
        raise InputError(f"project {project} has no Data Manager tab {view}; its address in the browser ends in ?tab=…")
    filters = (found.get("data") or {}).get("filters") or {}
    items = list(filters.get("items") or [])
    return [[item] for item in items] if items and filters.get("conjunction") == "or" else [items]


def _page(
    client: LabelStudioClient, project: int, conditions: Sequence[Any], included: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """The tasks with the least ids for which all conditions hold."""
    query: dict[str, Any] = {"filters": {"conjunction": "and", "items": list(conditions)}, "ordering": ["tasks:id"]}
    if included is not None:
        query["selectedItems"] = {"all": False, "included": list(included)}
    answer = client.call(
        "GET", "/api/tasks", project=project, page=1, page_size=_PAGE, fields="all", resolve_uri="false",
        review="true",  # or Label Studio asks the ML backend, perhaps ourselves, for predictions of these tasks
        query=json.dumps(query),
    )  # fmt: skip
    page = answer.get("tasks") if isinstance(answer, dict) else None
    if not isinstance(page, list) or not all(isinstance(t, dict) and isinstance(t.get("id"), int) for t in page):
        raise ApiError(f"GET /api/tasks answered with something else than tasks: {str(answer)[:100]}")
    return sorted(page, key=lambda task: int(task["id"]))


def merge_data(client: LabelStudioClient, project: int, task: int, columns: Mapping[str, Any]) -> None:
    """Set columns of a task's data and leave the others as they are, also when somebody changes them meanwhile.

    Label Studio replaces the whole data at once, so it is read again after it was written; what another writer's change
    has undone is written again.

    Args:
        client: Of the server.
        project: Project id.
        task: Task id.
        columns: Name to value; None deletes a column.

    Raises:
        ApiError: Label Studio refused, the task is gone, or others kept overwriting the columns.
    """
    for _ in range(_TRIES):
        data = _data(client, project, task)
        wanted = {k: v for k, v in {**data, **columns}.items() if not (k in columns and v is None)}
        if wanted == data:
            return
        client.call("PATCH", f"/api/tasks/{task}/", {"data": wanted})
    raise ApiError(f"the data of task {task} is being changed by somebody else all the time; try again later")


def _data(client: LabelStudioClient, project: int, task: int) -> dict[str, Any]:
    """The data of a task as it is stored.

    Asked for by its own address, a task without predictions would get some first, perhaps from ourselves, and the URLs
    of its cloud storage would be replaced by others.
    """
    answer = client.call(
        "GET", "/api/tasks", project=project, page=1, page_size=1, resolve_uri="false", review="true",
        query=json.dumps({"selectedItems": {"all": False, "included": [task]}}),
    )  # fmt: skip
    found = [one for one in answer["tasks"] if one["id"] == task]
    if not found:
        raise ApiError(f"project {project} has no task {task} any more", 404)
    return dict(found[0]["data"])


def put_prediction(
    client: LabelStudioClient, task: Mapping[str, Any], result: Sequence[Any], score: float, version: str
) -> int:
    """Store a prediction of a task in place of an earlier one of the same version; returns its id.

    Args:
        client: Of the server.
        task: As `iterate_tasks` gives it, with its predictions.
        result: Regions.
        score: Of the prediction.
        version: Its model version.

    Raises:
        ApiError: Label Studio refused or failed.
    """
    fields = {"task": task["id"], "result": list(result), "score": score, "model_version": version}
    mine = [p["id"] for p in task.get("predictions") or [] if p.get("model_version") == version]
    for surplus in mine[1:]:
        client.call("DELETE", f"/api/predictions/{surplus}/")
    if mine:
        client.call("PATCH", f"/api/predictions/{mine[0]}/", fields)
        return int(mine[0])
    return int(client.call("POST", "/api/predictions/", fields)["id"])


_HIDDEN = (
    "tasks:annotations_results", "tasks:predictions_results", "tasks:predictions_model_versions",
    "tasks:predictions_score", "tasks:file_upload", "tasks:storage_filename", "tasks:created_at", "tasks:updated_at",
    "tasks:updated_by", "tasks:avg_lead_time", "tasks:draft_exists", "tasks:annotations_ids", "tasks:annotators",
    "tasks:inner_id", "tasks:completed_at", "tasks:cancelled_annotations", "tasks:ground_truth",
)  # fmt: skip


def _columns_shown(*names: str) -> dict[str, list[str]]:
    """The `hiddenColumns` of a view: what most people do not need, without `names`."""
    hidden = [name for name in _HIDDEN if name not in names]
    return {"explore": hidden, "labeling": hidden}


def put_view(
    client: LabelStudioClient, project: int, title: str, ordering: Sequence[str], filters: Sequence[Mapping[str, Any]],
    shown: Sequence[str] = (),
) -> int:  # fmt: skip
    """Make a Data Manager tab, or bring the one of this title up to date; returns its id.

    Args:
        client: Of the server.
        project: Project id.
        title: Of the tab.
        ordering: Columns of numbers to sort by, such as "tasks:data.qc_score"; with "-" before it, largest first.
        filters: Each with filter, operator, type and value.
        shown: Columns, of those usually hidden, to show.

    Raises:
        ApiError: Label Studio refused or failed.
        InputError: The project does not exist.
    """
    data = {
        "title": title, "type": "list", "target": "tasks", "ordering": list(ordering),
        "filters": {"conjunction": "and", "items": [dict(item) for item in filters]},
        "hiddenColumns": _columns_shown(*shown),
        # Or Label Studio on PostgreSQL sorts columns of the data as texts: 1, 10, 2.
        "columnsDisplayType": {name.lstrip("-"): "Number" for name in ordering},
    }  # fmt: skip
    body = {"project": project, "data": data}
    try:
        views = client.call("GET", "/api/dm/views/", project=project)
    except ApiError as error:
        if error.status == 404:
            raise InputError(f"there is no project {project} at {client.url}") from error
        raise
    for view in views:
        if (view.get("data") or {}).get("title") == title:
            return int(client.call("PATCH", f"/api/dm/views/{view['id']}/", body)["id"])
    return int(client.call("POST", "/api/dm/views/", body)["id"])
