"""`segagent refine` against a small server; tests/e2e/test_qc.py has a real Label Studio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from label_studio_segagent.errors import BusyError
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.regions import write_region
from label_studio_segagent.processes import alone
from label_studio_segagent.server.models import project_folder
from label_studio_segagent.server.refining import refine_project
from label_studio_segagent.server.settings import Settings


def test_a_refined_prediction_replaces_those_of_earlier_versions(
    settings: Callable[..., Settings], web: Any, config: str, task: Any, scene: Sample, tmp_path: Path
) -> None:
    given = settings(label_studio_url=web.url, label_studio_api_key="0" * 40)
    spoilt = scene.mask.copy()
    spoilt[:, 90:] = False
    spoilt[:25, :30] = True
    control, label = LabelConfig.parse(config).outputs("image", {})[0]
    versions = ["refine-old", "refine-older", "qc-1", "segagent-1", "sam", None]
    predictions = [{"id": n, "model_version": v, "result": []} for n, v in enumerate(versions, 1)]
    annotations = [{"id": 5, "result": write_region(spoilt, control, label, 0.5)}]
    one = task() | {"annotations": annotations, "predictions": predictions}
    good = task(2) | {"annotations": [{"id": 6, "result": []}], "predictions": [{**predictions[0], "id": 9}]}
    web.routes.update({
        "/api/projects/3/": {"id": 3, "label_config": config}, "/api/tasks": {"tasks": [one, good], "total": 2},
        "/api/predictions/": {"id": 7}, "/api/predictions/1/": b"", "/api/predictions/2/": b"",
    })  # fmt: skip
    done = refine_project(given, 3, tmp_path / "out", lambda share, step: None)
    assert (done.tasks, done.failures) == (1, [])
    changes = [(r.method, r.path) for r in web.asked if r.method in ("POST", "DELETE")]
    # The new one is there before the old ones go; where nothing new is written nothing goes.
    assert changes == [
        ("POST", "/api/predictions/"), ("DELETE", "/api/predictions/1/"), ("DELETE", "/api/predictions/2/"),
    ]  # fmt: skip


def test_one_refinement_a_project(settings: Callable[..., Settings], web: Any, tmp_path: Path) -> None:
    given = settings(label_studio_url=web.url, label_studio_api_key="0" * 40)
    lock = project_folder(given, 3) / ".refine.lock"
    with alone(lock, "refining"), pytest.raises(BusyError, match="another process is refining the masks of project 3"):
        refine_project(given, 3, tmp_path / "out", lambda share, step: None)
    assert web.asked == []
