"""What needs a Label Studio is in tests/e2e/test_rank.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from label_studio_segagent.errors import BusyError, InputError
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.processes import alone
from label_studio_segagent.server.models import project_folder
from label_studio_segagent.server.predictor import Predictor
from label_studio_segagent.server.ranking import _look, clear_ranking, rank
from label_studio_segagent.server.settings import Settings

OPEN = """<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image" value="$names"/></View>"""


def test_a_task_without_labels_is_a_failure_of_its_own(
    predictor: Predictor, scene: Sample, uri: Callable[..., str]
) -> None:
    config = LabelConfig.parse(OPEN)
    task: dict[str, Any] = {"id": 1, "data": {"image": uri(scene.image)}}
    with pytest.raises(InputError, match="no label to look for"):
        _look(predictor, config, task)
    task["data"]["names"] = ["object"]
    assert 0 <= _look(predictor, config, task).unsure <= 1


def test_one_ranking_a_project(settings: Callable[..., Settings], web: Any) -> None:
    """Two at once would each write an order of its own, and a clearing would leave half of one."""
    given = settings(label_studio_url=web.url, label_studio_api_key="0" * 40)
    lock = project_folder(given, 3) / ".rank.lock"
    with alone(lock, "ranking"):
        for attempt in (lambda: rank(given, 3, lambda share, step: None), lambda: clear_ranking(given, 3)):
            with pytest.raises(BusyError, match="another process is ranking the tasks of project 3"):
                attempt()
    assert web.asked == []
