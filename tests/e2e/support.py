"""What the end-to-end tests share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

CONFIG = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="brush" toName="image" smart="true">
    <Label value="object" background="#ff0000"/>
  </BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true" smartOnly="true">
    <Label value="object" background="#ff0000"/>
  </KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true" smartOnly="true">
    <Label value="object" background="#ff0000"/>
  </RectangleLabels>
</View>"""


@dataclass
class Backend:
    url: str
    version: str
    folder: Path
    process: subprocess.Popen[bytes]


def wait(browser: webdriver.Chrome, condition: Callable[[webdriver.Chrome], Any]) -> Any:
    return WebDriverWait(browser, 60).until(condition)


def keep(browser: webdriver.Chrome, name: str) -> None:
    if folder := os.environ.get("SEGAGENT_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / name))


def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright blob on a dark ground: an object that stands out."""
    rng = np.random.default_rng(number)
    image = rng.integers(20, 60, (180, 240, 3)).astype(np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 2)
    mask = np.zeros((180, 240), np.uint8)
    centre = (int(rng.integers(80, 160)), int(rng.integers(70, 110)))
    axes = (int(rng.integers(35, 55)), int(rng.integers(25, 45)))
    cv2.ellipse(mask, centre, axes, int(rng.integers(180)), 0, 360, 1, -1)
    image[mask > 0] = (230, 190, 60)
    return image, mask > 0


def spoil(mask: np.ndarray) -> np.ndarray:
    """Half of the object, and something that is none."""
    out = mask.copy()
    columns = np.nonzero(mask.any(0))[0]
    out[:, int(columns.mean()) :] = False
    out[:30, :50] = True
    return out
