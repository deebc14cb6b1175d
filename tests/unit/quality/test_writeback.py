"""What needs a Label Studio is in tests/e2e/test_qc.py."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from label_studio_segagent.errors import ConfigError
from label_studio_segagent.labelstudio.client import LabelStudioClient
from label_studio_segagent.quality.writeback import add_control, clear, has_control

CONFIG = """<View>
  <!-- ask Kim before you change this -->
  <image name="photo" value="$image"/>
  <BrushLabels name="brush" toName="photo"><Label value="a &amp; b"/></BrushLabels>
</View>"""


@pytest.fixture
def project(web: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": 3, "label_config": CONFIG, "model_version": "segagent-1"}
    web.routes.update({
        "/api/projects/3/": lambda request: fields.update(request.json) if request.method == "PATCH" else fields,
        "/api/tasks": {"tasks": [], "total": 0}, "/api/dm/views/": [],
    })  # fmt: skip
    return fields


def test_the_control_comes_and_goes_and_the_rest_stays(web: Any, project: dict[str, Any]) -> None:
    with closing(LabelStudioClient(web.url)) as client:
        add_control(client, 3)
        added = project["label_config"]
        assert has_control(added) and 'toName="photo"' in added and added.count("qc_issue") == 1
        assert "<!-- ask Kim before you change this -->" in added and 'value="a &amp; b"' in added
        add_control(client, 3)
        assert project["label_config"] == added
        assert clear(client, 3) == 0
    assert project["label_config"].split() == CONFIG.replace('"/>', '" />').split()


def test_boxes_need_an_image(web: Any, project: dict[str, Any]) -> None:
    page = '<Repeater on="$pages"><Image name="p_{{idx}}" value="$pages[{{idx}}]"/></Repeater>'
    for tags, message in (('<Text name="text" value="$text"/>', "has no Image"), (page, "Images in a Repeater")):
        project["label_config"] = f"<View>{tags}</View>"
        with closing(LabelStudioClient(web.url)) as client, pytest.raises(ConfigError, match=message):
            add_control(client, 3)
    project["label_config"] = f'<View>{page}<Image name="cover" value="$cover"/></View>'
    with closing(LabelStudioClient(web.url)) as client:
        add_control(client, 3)
    assert 'toName="cover"' in project["label_config"]
