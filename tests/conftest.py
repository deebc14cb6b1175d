"""What several test files share: a few drawn masks, an easy scene, and the demo photographs."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import label_studio_segagent
from label_studio_segagent.datasets.coco import read_coco
from label_studio_segagent.hlmat.trajectory import Sample

pytest_plugins = ["no_skips"]

settings.register_profile(
    "segagent",
    max_examples=60,
    deadline=None,  # the machine may be busy
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("segagent")


def draw_shapes() -> dict[str, np.ndarray]:
    """Masks that cover what tends to go wrong, bool (H, W), by name."""

    def blank(height: int = 40, width: int = 60) -> np.ndarray:
        return np.zeros((height, width), np.uint8)

    shapes = {
        "disc": cv2.circle(blank(), (30, 20), 12, 1, -1),
        "ring": cv2.circle(cv2.circle(blank(), (30, 20), 15, 1, -1), (30, 20), 6, 0, -1),
        "two parts": cv2.rectangle(cv2.circle(blank(), (12, 20), 8, 1, -1), (35, 5), (50, 34), 1, -1),
        "island in a hole": cv2.circle(
            cv2.circle(cv2.circle(blank(), (30, 20), 18, 1, -1), (30, 20), 12, 0, -1), (30, 20), 5, 1, -1
        ),
        "at the border": cv2.rectangle(blank(), (0, 0), (25, 39), 1, -1),
        "tall": cv2.ellipse(blank(90, 20), (10, 45), (6, 40), 10, 0, 360, 1, -1),
        "full": blank() + 1,
        "pixel": cv2.rectangle(blank(), (7, 9), (7, 9), 1, -1),
        "corner pixel": cv2.rectangle(blank(), (59, 39), (59, 39), 1, -1),
        "one by one": blank(1, 1) + 1,
    }
    return {name: np.asarray(mask, bool) for name, mask in shapes.items()}


@pytest.fixture(params=sorted(draw_shapes()))
def shape(request: pytest.FixtureRequest) -> np.ndarray:
    """Each of the drawn masks in turn; none is empty."""
    return draw_shapes()[request.param]


@pytest.fixture
def shapes() -> dict[str, np.ndarray]:
    """All drawn masks by name."""
    return draw_shapes()


@pytest.fixture
def scene() -> Sample:
    """An orange ellipse on a blue, slightly noisy ground: easy for any segmenter. 120 x 160."""
    mask = cv2.ellipse(np.zeros((120, 160), np.uint8), (90, 60), (40, 28), 20, 0, 360, 1, -1).astype(bool)
    image = np.where(mask[..., None], (230, 140, 40), (40, 80, 170)).astype(np.int64)
    image += np.random.default_rng(0).integers(-12, 13, image.shape)
    return Sample(np.clip(image, 0, 255).astype(np.uint8), "ellipse", mask, id="scene")


@pytest.fixture(scope="session")
def demo_json() -> Path:
    """The COCO file of the demo photographs."""
    return Path(label_studio_segagent.__file__).parent / "demo_data" / "demo.json"


@pytest.fixture(scope="session")
def photos(demo_json: Path) -> list[Sample]:
    """The objects on the demo photographs."""
    return list(read_coco(demo_json))
