"""What an annotator sees: predictions drawn where the object is, and a smart click, in a real browser.

SEGAGENT_SCREENSHOTS names a folder in which to keep the pictures (the ones in docs/ were made so).
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from support import CONFIG, Backend, keep, wait

from label_studio_segagent.datasets.record import Record
from label_studio_segagent.hlmat.arrays import mask_box
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.labelstudio.client import LabelStudioClient
from label_studio_segagent.labelstudio.images import ImageLoader
from label_studio_segagent.labelstudio.local import LocalLabelStudio
from label_studio_segagent.labelstudio.project import read_project
from label_studio_segagent.labelstudio.regions import Region, read_regions

pytestmark = pytest.mark.browser

REGIONS = "return window.Htx?.annotationStore?.selected?.regions.length ?? 0"
REJECT, ACCEPT = (f"//*[contains(@class, 'auto-accept__info')]/following::button[{n}]" for n in (1, 2))
KEEP = "window.Htx.settings.toggleContinuousLabeling()"
SUGGESTIONS = "return window.Htx.annotationStore.selected.suggestions.size"


@dataclass(frozen=True)
class Task:
    id: int
    project: int
    photo: Path
    predicted: Any


@pytest.fixture
def make_task(label_studio: LocalLabelStudio, backend: Backend, photo_paths: list[Path]) -> Callable[[str], Task]:
    def make(config: str) -> Task:
        photo = next(path for path in photo_paths if path.name == "flower.jpg")
        with Image.open(photo) as picture:
            width, height = picture.size
        project = label_studio.create_project("In the browser", config)
        [number] = label_studio.import_files(project, [photo])
        label_studio.connect_backend(project, backend.url, backend.version)
        label_studio.retrieve_predictions(project)
        [region] = read_regions(label_studio.predictions(project)[0]["result"])
        return Task(number, project, photo, region.mask(height, width))

    return make


def open_task(browser: webdriver.Chrome, label_studio: LocalLabelStudio, task: Task) -> None:
    """Open the task and wait until the prediction, copied into a new annotation, is drawn where it belongs."""
    browser.get(f"{label_studio.url}/projects/{task.project}/data?task={task.id}")
    wait(browser, lambda b: b.execute_script(REGIONS) == 1)
    wait(browser, lambda b: iou(drawn(b, task.photo), task.predicted) > 0.85)


def image_rect(browser: webdriver.Chrome) -> dict[str, float]:
    """Where the photograph is in the window; Label Studio may zoom it a little beyond the canvas."""
    return browser.execute_script(
        "return [...document.querySelectorAll('img')].map(i => i.getBoundingClientRect())"
        ".sort((a, b) => b.width - a.width)[0].toJSON()"
    )


def drawn(browser: webdriver.Chrome, photo: Path) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where the window is redder than the photograph (the label is red), at the photograph's size."""
    rect = image_rect(browser)
    corners = (rect["left"], rect["top"], rect["right"], rect["bottom"])
    with Image.open(photo) as original, Image.open(io.BytesIO(browser.get_screenshot_as_png())) as window:
        image = np.asarray(original.convert("RGB")).astype(int)
        seen = np.asarray(window.convert("RGB").resize(original.size, box=corners)).astype(int)
    redder = (seen[..., 0] - seen[..., 1]) - (image[..., 0] - image[..., 1]) > 50
    edge = 24  # zoomed beyond the canvas, with other things there
    redder[:edge] = redder[-edge:] = redder[:, :edge] = redder[:, -2 * edge :] = False
    return redder


def take(browser: webdriver.Chrome, label: int, tool: str) -> None:
    """Switch auto-annotation on, and take the smart tool of a label."""
    if not browser.execute_script("return window.Htx.autoAnnotation"):  # Label Studio remembers it
        browser.find_element(By.CSS_SELECTOR, "[data-testid=bottombar-auto-annotation-toggle]").click()
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, ".lsf-tool_smart"))
    browser.find_elements(By.CSS_SELECTOR, ".lsf-label")[label].click()
    ActionChains(browser).move_to_element(browser.find_element(By.CSS_SELECTOR, ".lsf-tool_smart")).perform()
    named = f".lsf-tool_smart .lsf-tool__extra [aria-label={tool}]"
    wait(browser, lambda b: b.find_element(By.CSS_SELECTOR, named).is_displayed())
    browser.find_element(By.CSS_SELECTOR, named).click()


def place(browser: webdriver.Chrome, task: Task, x: float, y: float) -> tuple[int, int]:
    """Where a pixel of the photograph is in the window."""
    height, width = task.predicted.shape
    rect = image_rect(browser)
    return round(rect["left"] + x / width * rect["width"]), round(rect["top"] + y / height * rect["height"])


def smart_click(browser: webdriver.Chrome, task: Task, x: int, y: int) -> None:
    """Take the smart key point, and click on a pixel of the photograph."""
    take(browser, 1, "key-point-tool")
    actions = ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(*place(browser, task, x, y)).click()
    actions.perform()


def smart_box(browser: webdriver.Chrome, task: Task, x0: float, y0: float, x1: float, y1: float) -> None:
    """Take the smart rectangle, and draw it over these pixels of the photograph."""
    take(browser, 2, "rectangle-tool")
    actions = ActionChains(browser)
    pointer = actions.w3c_actions.pointer_action
    pointer.move_to_location(*place(browser, task, x0, y0)).pointer_down()
    for share in (0.5, 1.0):
        pointer.move_to_location(*place(browser, task, x0 + share * (x1 - x0), y0 + share * (y1 - y0)))
    pointer.pointer_up()
    actions.perform()


def submit(browser: webdriver.Chrome, label_studio: LocalLabelStudio, task: Task) -> list[Region]:
    """Submit the annotation; returns its regions as they are saved."""
    browser.find_element(By.CSS_SELECTOR, "[aria-label='Submit current annotation']").click()
    annotations = f"/api/tasks/{task.id}/annotations/"
    saved = wait(browser, lambda _: label_studio.client.call("GET", annotations))
    return read_regions(saved[0]["result"])


SHAPES = {
    "bitmask": "<BitmaskLabels {on}>{label}</BitmaskLabels>",
    "polygon": "<PolygonLabels {on}>{label}</PolygonLabels>",
    "rectangle": "<RectangleLabels {on}>{label}</RectangleLabels>",
    "labels + brush": '<Labels name="l" toName="image">{label}</Labels><Brush {on}/>',
    "labels + polygon": '<Labels name="l" toName="image" opacity="0.6">{label}</Labels><Polygon {on}/>',
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_where_the_object_is(
    label_studio: LocalLabelStudio, signed_in: webdriver.Chrome, make_task: Callable[[str], Task], shape: str
) -> None:
    label = '<Label value="object" background="#ff0000"/>'
    image = '<Image name="image" value="$image" smoothing="false"/>'
    control = SHAPES[shape].format(label=label, on='name="m" toName="image" opacity="0.6"')
    task = make_task(f"<View>{image}{control}</View>")
    open_task(signed_in, label_studio, task)
    labels = "return window.Htx.annotationStore.selected.regions.map(region => region.labelName)"
    assert signed_in.execute_script(labels) == ["object"]


def test_a_smart_click_adds_an_object(
    label_studio: LocalLabelStudio, signed_in: webdriver.Chrome, make_task: Callable[[str], Task]
) -> None:
    browser, task = signed_in, make_task(CONFIG)
    height, width = task.predicted.shape
    open_task(browser, label_studio, task)
    keep(browser, "prediction.png")

    x, y = 365, 400  # the second flower, at the bottom
    smart_click(browser, task, x, y)
    wait(browser, lambda b: b.execute_script(SUGGESTIONS) == 1)
    wait(browser, lambda b: drawn(b, task.photo)[y - 15 : y - 3, x - 8 : x + 8].mean() > 0.5)
    keep(browser, "smart-click.png")

    browser.find_element(By.XPATH, ACCEPT).click()
    wait(browser, lambda b: b.execute_script(SUGGESTIONS) == 0)
    regions = submit(browser, label_studio, task)
    assert [region.type for region in regions] == ["brushlabels", "brushlabels"]
    masks = [region.mask(height, width) for region in regions]
    assert max(iou(mask, task.predicted) for mask in masks) > 0.98
    assert any(mask[y, x] and not task.predicted[y, x] for mask in masks)


@pytest.mark.parametrize("how", ["kept", "picked again", "a box"])
def test_a_suggestion_accepted_while_the_label_of_the_prompt_is_selected(
    label_studio: LocalLabelStudio, signed_in: webdriver.Chrome, make_task: Callable[[str], Task], how: str,
    backend: Backend, tmp_path: Path,
) -> None:  # fmt: skip
    """Label Studio then saves the mask twice under one id: as a brush, and as a key point or a rectangle."""
    browser, task = signed_in, make_task(CONFIG)
    height, width = task.predicted.shape
    open_task(browser, label_studio, task)
    if how == "kept":  # "Keep label selected after creating a region"
        browser.execute_script(KEEP)
    x, y = 365, 400  # the second flower, at the bottom
    if how == "a box":
        smart_box(browser, task, x - 60, y - 60, min(x + 60, width - 2), min(y + 60, height - 2))
    else:
        smart_click(browser, task, x, y)
    wait(browser, lambda b: b.execute_script(SUGGESTIONS) == 1)
    if how != "kept":
        browser.find_elements(By.CSS_SELECTOR, ".lsf-label")[1 if how == "picked again" else 2].click()
    browser.find_element(By.XPATH, ACCEPT).click()
    wait(browser, lambda b: b.execute_script(SUGGESTIONS) == 0)
    regions = submit(browser, label_studio, task)
    if how == "kept":
        browser.execute_script(KEEP)

    [annotation] = label_studio.client.call("GET", f"/api/tasks/{task.id}/annotations/")
    types = sorted(result["type"] for result in annotation["result"])
    assert types == ["brushlabels", "brushlabels", "rectanglelabels" if how == "a box" else "keypointlabels"]
    assert all("rle" in result["value"] for result in annotation["result"])
    assert [(region.shape, region.labels) for region in regions] == [("brush", ("object",))] * 2
    records, failures = read(label_studio, task.project, tmp_path)
    assert len(records) == 2 and not failures and not any(record.meta.get("absent") for record in records)
    assert any(record.load().mask[y, x] for record in records)

    variables = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token}
    variables |= {"SEGAGENT_DATA_DIR": str(tmp_path / "data"), "SEGAGENT_POLICY": "saliency"}
    command = ["qc", "export", "--project", str(task.project), "--out", str(tmp_path / "out"), "--min-score", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "label_studio_segagent.cli", *command], env=os.environ | variables,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert len(content["images"]) == 1 and len(content["annotations"]) == 2


def test_variables_are_what_the_page_makes_of_them(
    label_studio: LocalLabelStudio, signed_in: webdriver.Chrome, make_task: Callable[[str], Task], backend: Backend,
    tmp_path: Path,
) -> None:  # fmt: skip
    config = """<View><Image name="image" value="$photos[1].url"/>
      <BrushLabels name="brush" toName="image"><Label value="$v" background="#ff0000"/></BrushLabels>
      <Repeater on="$more" indexFlag="{{idx}}"><Image name="page_{{idx}}" value="$more[{{idx}}].page"/>
      <BrushLabels name="b_{{idx}}" toName="page_{{idx}}"><Label value="thing"/></BrushLabels></Repeater></View>"""
    made, browser, client = make_task(CONFIG), signed_in, label_studio.client
    url = client.call("GET", "/api/tasks", project=made.project, fields="all")["tasks"][0]["data"]["image"]
    project = label_studio.create_project("Variables", config)
    data = {"photos": [{"url": "no"}, {"url": url}], "v": "flower", "more": [{"page": url}, {"page": url}]}
    client.call("POST", f"/api/projects/{project}/import", [{"data": data}])
    [found] = client.call("GET", "/api/tasks", project=project)["tasks"]
    label_studio.connect_backend(project, backend.url, backend.version)
    label_studio.retrieve_predictions(project)
    browser.get(f"{label_studio.url}/projects/{project}/data?task={found['id']}")
    wait(browser, lambda b: b.execute_script(REGIONS) == 3)
    pages = "return window.Htx.annotationStore.selected.regions.map(r => r.object.name)"
    assert browser.execute_script(pages) == ["image", "page_0", "page_1"]
    shown = "return window.Htx.annotationStore.selected.regions.map(r => r.labeling.selectedLabels.map(l => l._value))"
    assert browser.execute_script(shown) == [["flower"], ["thing"], ["thing"]]
    submit(browser, label_studio, Task(found["id"], project, made.photo, made.predicted))
    records, failures = read(label_studio, project, tmp_path)
    assert not failures and sorted(record.prompt for record in records) == ["flower", "thing", "thing"]


def read(label_studio: LocalLabelStudio, project: int, folder: Path) -> tuple[list[Record], list[Any]]:
    """What trainings, quality control and exports read of a project, and what failed."""
    failures: list[Any] = []
    client = LabelStudioClient(label_studio.url, label_studio.token)
    with closing(ImageLoader(client, folder / "cache")) as loader:
        found = read_project(
            client, loader, project, folder / "images", absent=True, failed=lambda *why: failures.append(why)
        )
        return list(found), failures


@pytest.mark.parametrize("decision", ["accept", "reject"])
def test_a_smart_click_beside_an_object_corrects_it(
    label_studio: LocalLabelStudio, signed_in: webdriver.Chrome, make_task: Callable[[str], Task], decision: str
) -> None:
    browser, task = signed_in, make_task(CONFIG)
    open_task(browser, label_studio, task)
    distance = cv2.distanceTransform((~task.predicted).astype(np.uint8), cv2.DIST_L2, 5)
    rows, columns = np.nonzero((distance > 4) & (distance < 8))
    middle = len(rows) // 2
    smart_click(browser, task, int(columns[middle]), int(rows[middle]))
    wait(browser, lambda b: b.execute_script(SUGGESTIONS) == 1)
    browser.find_element(By.XPATH, ACCEPT if decision == "accept" else REJECT).click()
    wait(browser, lambda b: b.execute_script(SUGGESTIONS) == 0)
    # Still one region: corrected when that was wanted, and as it was when not.
    [region] = submit(browser, label_studio, task)
    same = iou(region.mask(*task.predicted.shape), task.predicted)
    assert 0.8 < same < 0.999 if decision == "accept" else same == 1


@pytest.mark.parametrize("decision", ["accept", "reject"])
def test_a_smart_box_around_an_object_has_it_done_again(
    label_studio: LocalLabelStudio, signed_in: webdriver.Chrome, make_task: Callable[[str], Task], decision: str
) -> None:
    browser, task = signed_in, make_task(CONFIG)
    open_task(browser, label_studio, task)
    box = mask_box(task.predicted)
    assert box is not None
    height, width = task.predicted.shape
    smart_box(browser, task, *(min(max(v + d, 2), most - 2) for v, d, most in zip(
        box, (-6, -6, 6, 6), (width, height, width, height), strict=True
    )))  # fmt: skip
    wait(browser, lambda b: b.execute_script(SUGGESTIONS) == 1)
    browser.find_element(By.XPATH, ACCEPT if decision == "accept" else REJECT).click()
    wait(browser, lambda b: b.execute_script(SUGGESTIONS) == 0)
    [region] = submit(browser, label_studio, task)
    same = iou(region.mask(height, width), task.predicted)
    assert 0.5 < same < 1 if decision == "accept" else same == 1
