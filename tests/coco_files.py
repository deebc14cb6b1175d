"""Pictures and masks made in a test, as a folder in COCO format."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from label_studio_segagent.datasets.coco_writer import CocoWriter
from label_studio_segagent.hlmat.trajectory import encode_mask

Picture = tuple[np.ndarray, Sequence[tuple[int, np.ndarray]]]
"""Pixels, BGR uint8 (H, W, 3); (category, mask uint8 (H, W)) of every object."""


def write_coco(
    root: Path, pictures: Iterable[Picture], categories: Sequence[str] = ("thing",), partial: Collection[int] = ()
) -> Path:
    """Write `train.json` and `images/`; returns the folder.

    Args:
        root: An empty folder.
        pictures: What to write.
        categories: Names of the categories 1, 2, ...
        partial: Numbers of the pictures in which not every object is annotated.
    """
    (root / "images").mkdir()
    writer = CocoWriter(root, categories)
    for number, (pixels, objects) in enumerate(pictures):
        name, (height, width) = f"{number}.png", pixels.shape[:2]
        cv2.imwrite(str(root / "images" / name), pixels)
        image = writer.add_image(name, (height, width), exhaustive=number not in partial)
        for category, mask in objects:
            writer.add_object(image, categories[category - 1], encode_mask(mask.astype(bool)))
    writer.write("train.json")
    return root
