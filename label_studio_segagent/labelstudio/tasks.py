"""Tasks, predictions and Data Manager views of a project, through Label Studio's API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import ApiError, InputError
from .client import LabelStudioClient

__all__ = ["iterate_tasks", "merge_data", "put_prediction", "put_view"]

_PAGE = 100
_TRIES = 5


def iterate_tasks(client: LabelStudioClient, project: int, **query: Any) -> Iterator[dict[str, Any]]:
    """All tasks of a project with their annotations and predictions, page by page; `view=…` those of a tab.

    Raises:
        ApiError: Label Studio refused or failed.
    """
    page = 1
    while True:
        # Without `review` Label Studio would ask the ML backend, perhaps ourselves, for predictions of these tasks.
        answer = client.call(
            "GET", "/api/tasks", project=project, page=page, page_size=_PAGE, fields="all", review="true", **query
        )
        yield from answer["tasks"]
        if page * _PAGE >= int(answer.get("total") or 0) or not answer["tasks"]:
            return
        page += 1


def merge_data(client: LabelStudioClient, project: int, task: int, columns: Mapping[str, Any]) -> None:
    """Set columns of a task's data and leave the others as they are, also when somebody changes them meanwhile.

    Label Studio replaces the whole data at once (LABEL_STUDIO.md, section 7), so it is read again after it was written;
    what another writer's change has undone is written again.

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
