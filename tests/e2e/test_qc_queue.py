"""Thirty annotated photographs, ten of them spoilt: the QC queue, seen in a browser, shows the ten first.

docs/images/qc-queue.png was made by `SEGAGENT_SCREENSHOTS=docs/images pytest tests/e2e/test_qc_queue.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage
from selenium import webdriver
from selenium.webdriver.common.by import By
from support import keep, wait
from typer.testing import CliRunner

from label_studio_segagent.cli import app
from label_studio_segagent.hlmat.arrays import mask_box
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.local import LocalLabelStudio
from label_studio_segagent.labelstudio.regions import write_region

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="subject"/></BrushLabels>
</View>"""
OBJECTS = {"1", "3", "13", "15", "16"}
"""The demo's objects that are used, by id: what stands out on a photograph."""
SPOILT = {1: "elsewhere", 4: "moved", 7: "a third", 8: "missing", 10: "elsewhere", 14: "moved", 16: "a third",
          18: "missing", 22: "elsewhere", 25: "moved"}  # fmt: skip

pytestmark = pytest.mark.browser


@dataclass(frozen=True)
class Drawn:
    """A picture, and what somebody drew on it."""

    image: np.ndarray
    mask: np.ndarray


def pictures(photos: list[Sample]) -> Iterator[Drawn]:
    """Each photograph whole, cut in two ways, and all of that mirrored: thirty pictures."""
    chosen = [photo for photo in photos if photo.id in OBJECTS]
    for low, high in ((0, 1), (0, 0.95), (0.05, 1)):
        for step in (1, -1):
            for photo in chosen:
                height, width = photo.mask.shape
                part = slice(int(low * height), int(high * height)), slice(int(low * width), int(high * width))
                yield Drawn(photo.image[part][:, ::step].copy(), photo.mask[part][:, ::step].copy())


def spoil(drawn: Drawn, how: str) -> Drawn:
    box = mask_box(drawn.mask)
    assert box is not None
    mask = drawn.mask.copy()
    if how == "elsewhere":
        height, width = mask.shape
        mask[:] = False
        mask[: height // 5, : width // 4] = True
        mask &= ~drawn.mask
    elif how == "moved":
        mask = np.roll(mask, int(0.6 * (box[2] - box[0])), 1)
    elif how == "a third":
        mask[:, int(box[0] + (box[2] - box[0]) / 3) :] = False
    else:
        mask[:] = False
    return Drawn(drawn.image, mask)


@pytest.fixture(scope="module")
def project(
    label_studio: LocalLabelStudio, photos: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("photographs")
    drawn = list(pictures(photos))
    paths = [folder / f"{number:02}.jpg" for number in range(len(drawn))]
    for one, path in zip(drawn, paths, strict=True):
        PilImage.fromarray(one.image).save(path, quality=92)
    pid = label_studio.create_project("Thirty photographs", CONFIG)
    tasks = label_studio.import_files(pid, paths)
    control, label = LabelConfig.parse(CONFIG).outputs("image", {})[0]
    for number, (task, one) in enumerate(zip(tasks, drawn, strict=True)):
        given = spoil(one, SPOILT[number]) if number in SPOILT else one
        result = write_region(given.mask, control, label, 1.0)
        label_studio.client.call("POST", f"/api/tasks/{task}/annotations/", {"result": result})
    return {"id": pid, "tasks": tasks}


def test_the_queue_shows_the_spoilt_ones_first(
    label_studio: LocalLabelStudio, signed_in: webdriver.Chrome, project: dict[str, Any], tmp_path: Path
) -> None:
    assert len(project["tasks"]) == 30 and len(SPOILT) == 10
    environment = {
        "LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token,
        "SEGAGENT_DATA_DIR": str(tmp_path),
    }  # fmt: skip
    done = CliRunner().invoke(app, ["qc", "run", "--project", str(project["id"]), "--add-control"], env=environment)
    assert done.exit_code == 0 and "30 annotations, 30 inspected now" in done.output, done.output
    views = label_studio.client.call("GET", "/api/dm/views/", project=project["id"])
    [view] = [v["id"] for v in views if v["data"]["title"] == "QC queue"]

    browser = signed_in
    browser.get(f"{label_studio.url}/projects/{project['id']}/data?tab={view}")
    wait(browser, lambda b: "QC queue" in b.page_source)
    wait(browser, lambda b: len(rows(b)) >= 10)
    wait(browser, lambda b: all(loaded(b)))
    keep(browser, "qc-queue.png")
    first = {int(row.split()[0]) for row in rows(browser)[:10]}
    assert first == {project["tasks"][number] for number in SPOILT}

    # Twenty masks can be trusted, and they are not enough to calibrate by.
    output = CliRunner().invoke(app, ["qc", "calibrate", "--project", str(project["id"])], env=environment).output
    assert "there are 20 masks to trust and 30 are needed" in " ".join(output.split())


def rows(browser: webdriver.Chrome) -> list[str]:
    """The rows of the Data Manager's table, from the top, as they are read."""
    found = browser.find_elements(By.CSS_SELECTOR, "[class*=table__row-wrapper]")
    return [row.text for row in sorted(found, key=lambda row: float(row.location["y"])) if row.text.strip()]


def loaded(browser: webdriver.Chrome) -> list[bool]:
    """Whether each picture of the table is there."""
    script = "return [...document.querySelectorAll('[class*=table] img')].map(i => i.complete && i.naturalWidth > 0)"
    return list(browser.execute_script(script))
