"""What needs a Label Studio is in tests/e2e/test_rank.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.server.predictor import Predictor
from label_studio_segagent.server.ranking import _look

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
