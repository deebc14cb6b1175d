"""The backend for people who run everything through Label Studio's ML SDK: `label-studio-ml start ./backend`.

A thin `LabelStudioMLBase`: prediction and events are the package's own. Works under label-studio-ml 1.0.9 (PyPI) and
written for 2.x (GitHub); what differs is detected, not looked up by version number.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from flask import has_request_context, request
from label_studio_ml import model as sdk

from label_studio_segagent.server.app import project_id
from label_studio_segagent.server.dispatcher import start_background
from label_studio_segagent.server.inbox import Inbox, count_annotations, open_inbox
from label_studio_segagent.server.models import Models, build_predictor, version_store
from label_studio_segagent.server.predictor import Predictor
from label_studio_segagent.server.settings import load_settings


@lru_cache(maxsize=1)
def models() -> Models:
    """The models of this process; the SDK makes a new model object for every project or request."""
    settings = load_settings()
    start_background(settings)
    return Models(settings, build_predictor(settings), version_store(settings))


def predictor() -> Predictor:
    """The predictor of the project that a request is about."""
    body = request.get_json(silent=True) if has_request_context() else None
    return models().predictor(project_id(body.get("project") if isinstance(body, dict) else None))


@lru_cache(maxsize=1)
def inbox() -> Inbox:
    """Where events go, as in our own server."""
    return open_inbox(load_settings().data_dir)


class SegAgentBackend(sdk.LabelStudioMLBase):  # type: ignore[misc]
    """Pre-annotates and answers smart tools like `segagent serve`; settings are the same environment variables."""

    # Label Studio says ANNOTATIONS_DELETED, and the SDK waits for ANNOTATION_DELETED: ask for all there are.
    TRAIN_EVENTS = (
        "ANNOTATION_CREATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATION_DELETED",
        "ANNOTATIONS_DELETED",
        "TASKS_CREATED",
        "TASKS_DELETED",
        "PROJECT_UPDATED",
        "START_TRAINING",
    )

    def setup(self) -> None:
        """2.x: tell the SDK our model version, so that /setup and the predictions agree."""
        self.set("model_version", predictor().model_version)

    def predict(self, tasks: list[Any], context: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """One prediction for each task, in order; {} where there is none."""
        config = self._config()
        if context:
            answer, _ = predictor().interact(tasks[0], config, context)
            return [answer]
        return predictor().predict(tasks, config).results

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Store an event. 2.x calls `fit(event, data)`, 1.0.9 `fit((), event=…, data=…)`."""
        event = kwargs.get("event") or (args[0] if args else "UNKNOWN")
        data = kwargs.get("data") or (args[1] if len(args) > 1 else {})
        store(str(event), data)
        return {}

    def _config(self) -> str:
        # 1.0.9 keeps one model for all projects, so its own label_config may be another project's.
        body = request.get_json(silent=True) if has_request_context() else None
        config = body.get("label_config") if isinstance(body, dict) else None
        return config or self.label_config or ""


def store(event: str, data: dict[str, Any]) -> None:
    """Put an event into the inbox."""
    project = data.get("project")
    body = json.dumps({"action": event, **data}).encode()
    inbox().put(event, project.get("id") if isinstance(project, dict) else None, body, count_annotations(data))


def adapt_old_sdk() -> None:
    """1.0.9: make it report our model version and store events at once.

    Its own job manager starts a process for each event and takes the model version from its job folders, so that
    /setup says "INITIAL" while predictions carry another version; Label Studio would then duplicate predictions.
    """
    manager = getattr(sdk, "LabelStudioMLManager", None)
    if manager is None:
        return

    class InboxJobs(sdk.JobManager):  # type: ignore[misc]
        def get_result(self, model_version: str | None = None) -> dict[str, Any]:
            return {"job_id": predictor().model_version}

        def run_job(self, model_class: type, args: tuple[str, dict[str, Any], str]) -> None:
            event, data, _ = args
            store(event, data)

    manager.get_job_manager = classmethod(lambda cls: InboxJobs())
