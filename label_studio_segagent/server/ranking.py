"""`segagent rank`: which tasks to label next, put where Label Studio sorts and samples by it (active learning)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, SegAgentError
from ..labelstudio.config import LabelConfig
from ..labelstudio.tasks import iterate_tasks, merge_data, put_prediction, put_view
from ..processes import alone
from ..training.acquisition import labelling_order, look_twice
from .models import Models, build_predictor, need_client, project_folder, version_store
from .predictor import Predictor
from .settings import Settings

__all__ = ["COLUMN", "VIEW", "Ranked", "clear_ranking", "rank"]

log = logging.getLogger(__name__)
COLUMN = "label_next"
"""Column of the task data with the position in the order, 1 first."""
VIEW = "Label next"
_KNOWN = 500
"""Annotated tasks, the newest, whose images count as known."""
Progress = Callable[[float, str], None]


@dataclass(slots=True)
class Ranked:
    """What a ranking did.

    Attributes:
        order: Task ids, the one to label next first.
        unsure: Their uncertainty, in [0, 1].
        failures: (task id, reason) of tasks that could not be looked at.
        view: Id of the Data Manager tab.
        version: Of the model that looked.
    """

    order: list[int]
    unsure: list[float]
    failures: list[tuple[int, str]]
    view: int
    version: str


@dataclass(slots=True)
class _Look:
    """What the agent thinks of a task."""

    task: dict[str, Any]
    prediction: dict[str, Any]
    unsure: float
    features: npt.NDArray[np.float32]


def rank(settings: Settings, project: int, progress: Progress, sampling: bool = False) -> Ranked:
    """Order the tasks of a project that nobody has labelled, the most instructive first.

    Every such task gets a prediction of the current model, whose score is its place in the order (0 first, so that
    Label Studio's uncertainty sampling and sorting by score follow it), and a column `label_next` in its data; the
    project gets the Data Manager tab "Label next". Ranking again replaces all that.

    Args:
        settings: Of the server.
        project: Project id.
        progress: Told the share done, and what is being done.
        sampling: Also let the project serve tasks by uncertainty sampling, from this model's predictions.

    Raises:
        ApiError: Label Studio does not answer.
        BusyError: Another process is ranking the tasks of the project.
        ConfigError: There is no Label Studio to ask, or the labelling config cannot be used.
        InputError: There is no such project.
    """
    client = need_client(settings)
    with _alone(settings, project), closing(client), closing(build_predictor(settings)) as base:
        predictor = Models(settings, base, version_store(settings)).predictor(project)
        fields = client.call("GET", f"/api/projects/{project}/")
        config = LabelConfig.parse(str(fields.get("label_config")))
        tasks = list(iterate_tasks(client, project))
        new = [t for t in tasks if not t.get("total_annotations")]
        known = [t for t in tasks if t.get("total_annotations")][-_KNOWN:]
        ranked = Ranked([], [], [], 0, predictor.model_version)
        looks: list[_Look] = []
        for number, task in enumerate(new):
            try:
                looks.append(_look(predictor, config, task))
            except SegAgentError as error:
                ranked.failures.append((task["id"], str(error)))
            progress(0.8 * (number + 1) / len(new), f"looking at {len(new)} tasks")
        seen = [f for f in (_features_or_none(predictor, config, task) for task in known) if f is not None]
        features = np.stack([look.features for look in looks]) if looks else np.zeros((0, 1))
        order = labelling_order(np.array([x.unsure for x in looks]), features, np.stack(seen) if seen else None)
        for place, index in enumerate(order):
            look = looks[index]
            score = round(place / max(len(order) - 1, 1), 4)
            put_prediction(client, look.task, look.prediction["result"], score, predictor.model_version)
            merge_data(client, project, look.task["id"], {COLUMN: place + 1})
            ranked.order.append(look.task["id"])
            ranked.unsure.append(look.unsure)
            progress(0.8 + 0.2 * (place + 1) / len(order), "writing the order to Label Studio")
        ranked.view = put_view(
            client, project, VIEW, [f"tasks:data.{COLUMN}"],
            [{"filter": "filter:tasks:total_annotations", "operator": "equal", "type": "Number", "value": 0}],
            ["tasks:predictions_score"],
        )  # fmt: skip
        if sampling and ranked.order:
            changes = {"sampling": "Uncertainty sampling", "model_version": predictor.model_version}
            client.call("PATCH", f"/api/projects/{project}/", changes)
        return ranked


def clear_ranking(settings: Settings, project: int) -> int:
    """Take the column `label_next` away from all tasks; returns from how many. Predictions stay.

    Raises:
        ApiError: Label Studio does not answer.
        BusyError: Another process is ranking the tasks of the project.
        ConfigError: There is no Label Studio to ask.
    """
    with _alone(settings, project), closing(need_client(settings)) as client:
        marked = [t["id"] for t in iterate_tasks(client, project) if COLUMN in (t.get("data") or {})]
        for task in marked:
            merge_data(client, project, task, {COLUMN: None})
        return len(marked)


def _alone(settings: Settings, project: int) -> AbstractContextManager[None]:
    """Keeps others from writing another order into the project meanwhile."""
    return alone(project_folder(settings, project) / ".rank.lock", f"ranking the tasks of project {project}")


def _look(predictor: Predictor, config: LabelConfig, task: dict[str, Any]) -> _Look:
    items = predictor.items(config, task, 0)
    if not items:
        raise InputError("there is no label to look for: neither the labelling config nor the task's data has one")
    agent = predictor.agent
    found, unsure = look_twice(agent, [(item.image, item.prompt) for item in items])
    features = agent.segmenter.describe(agent.encode(items[0].image))
    return _Look(task, predictor.prediction(zip(items, found, strict=True)), unsure, features)


def _features_or_none(
    predictor: Predictor, config: LabelConfig, task: dict[str, Any]
) -> npt.NDArray[np.float32] | None:
    try:
        items: Sequence[Any] = predictor.items(config, task, 0)
    except SegAgentError as error:
        log.info("task %s does not count as known: %s", task.get("id"), error)
        return None
    agent = predictor.agent
    return agent.segmenter.describe(agent.encode(items[0].image)) if items else None
