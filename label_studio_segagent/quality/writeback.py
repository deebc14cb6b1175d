"""Findings where people see them: task columns, a Data Manager tab, and boxes on the picture."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, TreeBuilder, tostring

from defusedxml import ElementTree

from ..errors import ApiError, ConfigError
from ..labelstudio.client import LabelStudioClient
from ..labelstudio.config import QC_CONTROL
from ..labelstudio.tasks import iterate_tasks, merge_data, put_prediction, put_view
from .issues import NAMES
from .project import Finding

__all__ = [
    "ISSUES",
    "SCORE",
    "VIEW",
    "add_control",
    "clear",
    "has_control",
    "put_queue",
    "qc_version",
    "withdraw_findings",
    "write_findings",
]

SCORE, ISSUES = "qc_score", "qc_issues"
"""Columns of the task data."""
VIEW = "QC queue"
_VERSION = "qc-"


def write_findings(
    client: LabelStudioClient, project: int, task: int, findings: Sequence[Finding], version: str, boxes: bool
) -> None:
    """Write what was found in a task's annotations, in place of what was written before.

    The task's score is that of its worst annotation. Annotations themselves are never touched.

    Args:
        client: Of the server.
        project: Project id.
        task: Task id.
        findings: Of all its annotations.
        version: Of the model that judged.
        boxes: Whether the project has the control for boxes.

    Raises:
        ApiError: Label Studio refused or failed.
    """
    score = min(finding.score for finding in findings)
    names = dict.fromkeys(issue["name"] for finding in findings for issue in finding.issues)
    merge_data(client, project, task, {SCORE: round(score, 3), ISSUES: ", ".join(names)})
    mine = [p for p in client.call("GET", "/api/predictions/", task=task) if _ours(p)]
    result = [_box(finding, issue) for finding in findings for issue in finding.issues] if boxes else []
    name = qc_version(version)
    for old in mine:
        if not result or old["model_version"] != name:
            client.call("DELETE", f"/api/predictions/{old['id']}/")
    if result:
        put_prediction(client, {"id": task, "predictions": mine}, result, score, name)


def withdraw_findings(client: LabelStudioClient, project: int, task: int) -> None:
    """Remove what was written about a task whose annotations are gone; nothing is done where the task itself is.

    Raises:
        ApiError: Label Studio refused or failed.
    """
    try:
        merge_data(client, project, task, {SCORE: None, ISSUES: None})
    except ApiError as error:
        if error.status == 404:
            return
        raise
    for old in client.call("GET", "/api/predictions/", task=task):
        if _ours(old):
            client.call("DELETE", f"/api/predictions/{old['id']}/")


def qc_version(version: str) -> str:
    """The model version of quality control's predictions, from that of the model that judged."""
    return _VERSION + version.removeprefix("segagent-")


def put_queue(client: LabelStudioClient, project: int) -> int:
    """Make the Data Manager tab with the worst annotated tasks first, or bring it up to date; returns its id.

    Raises:
        ApiError: Label Studio refused or failed.
    """
    annotated = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
    return put_view(client, project, VIEW, [f"tasks:data.{SCORE}"], [annotated])


def has_control(label_config: str) -> bool:
    """Whether a labelling config has the control for issue boxes."""
    return any(tag.get("name") == QC_CONTROL for tag in _parsed(label_config).iter())


def _parsed(label_config: str) -> Element:
    """A labelling config with its comments, which people write for a reason."""
    parser = ElementTree.DefusedXMLParser(target=TreeBuilder(insert_comments=True))
    parser.feed(label_config)
    root: Element = parser.close()
    return root


def add_control(client: LabelStudioClient, project: int) -> None:
    """Add the control for issue boxes to a project's labelling config, if it has none. Other controls stay as they are.

    Raises:
        ApiError: Label Studio refused or failed.
        ConfigError: The config has no Image, or none outside of a Repeater, which a control beside it cannot name.
    """
    config = str(client.call("GET", f"/api/projects/{project}/")["label_config"])
    if has_control(config):
        return
    root = _parsed(config)
    repeated = {inner for tag in root.iter() if str(tag.tag).lower() == "repeater" for inner in tag.iter()}
    images = [tag for tag in root.iter() if str(tag.tag).lower() == "image"]
    image = next((tag.get("name") for tag in images if tag not in repeated), None)
    if image is None:
        where = "has its Images in a Repeater" if images else "has no Image"
        raise ConfigError(f"the labelling config of project {project} {where}: there is nothing to put boxes on")
    control = SubElement(root, "RectangleLabels", {"name": QC_CONTROL, "toName": str(image)})
    for name in NAMES:
        SubElement(control, "Label", {"value": name, "background": "#e8710a"})
    client.call("PATCH", f"/api/projects/{project}/", {"label_config": tostring(root, "unicode")})


def clear(client: LabelStudioClient, project: int) -> int:
    """Remove every trace: columns, predictions, tab and control; returns how many tasks had something.

    Raises:
        ApiError: Label Studio refused or failed.
    """
    count = 0
    for task in list(iterate_tasks(client, project)):
        marked = SCORE in task["data"] or ISSUES in task["data"]
        mine = [p["id"] for p in task.get("predictions") or [] if _ours(p)]
        if marked:
            merge_data(client, project, task["id"], {SCORE: None, ISSUES: None})
        for prediction in mine:
            client.call("DELETE", f"/api/predictions/{prediction}/")
        count += bool(marked or mine)
    for view in client.call("GET", "/api/dm/views/", project=project):
        if (view.get("data") or {}).get("title") == VIEW:
            client.call("DELETE", f"/api/dm/views/{view['id']}/")
    fields = client.call("GET", f"/api/projects/{project}/")
    if str(fields.get("model_version") or "").startswith(_VERSION):
        client.call("PATCH", f"/api/projects/{project}/", {"model_version": ""})
    if has_control(str(fields["label_config"])):
        root = _parsed(str(fields["label_config"]))
        for parent in root.iter():
            for tag in [tag for tag in parent if tag.get("name") == QC_CONTROL]:
                parent.remove(tag)
        try:
            client.call("PATCH", f"/api/projects/{project}/", {"label_config": tostring(root, "unicode")})
        except ApiError as error:
            if error.status != 400:  # somebody has drawn with it: Label Studio keeps a control that is in use
                raise
    return count


def _ours(prediction: dict[str, Any]) -> bool:
    return str(prediction.get("model_version") or "").startswith(_VERSION)


def _box(finding: Finding, issue: dict[str, Any]) -> dict[str, Any]:
    """An issue as a region of Label Studio."""
    height, width = finding.size
    x0, y0, x1, y1 = issue["box"]
    region = {
        "id": uuid.uuid4().hex[:12], "type": "rectanglelabels", "from_name": QC_CONTROL, "to_name": finding.to_name,
        "original_width": width, "original_height": height, "image_rotation": 0, "score": issue["confidence"],
        "value": {
            "x": x0 / width * 100, "y": y0 / height * 100, "width": (x1 - x0) / width * 100,
            "height": (y1 - y0) / height * 100, "rotation": 0, "rectanglelabels": [issue["name"]],
        },
        "meta": {"text": [f"{issue['label']}: {issue['note']} (annotation {finding.annotation})"]},
    }  # fmt: skip
    return region if finding.item_index is None else {**region, "item_index": finding.item_index}
