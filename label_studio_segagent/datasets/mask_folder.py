"""Folders of photographs and masks: `images/` beside `masks/`, a PNG of the same name for each photograph.

A mask has 0 for the background and one other value, or an id for each instance; 255 beside other values is void, as in
PASCAL VOC. What is on it says the folder that it is in, `masks/<label>/<name>.png`, or one label for all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import ConfigError, InputError
from .record import MaskFile, Record, read_mask_file

__all__ = ["mask_folder_records"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def mask_folder_records(folder: Path, images: Path | None = None, label: str | None = None) -> list[Record]:
    """The objects in the masks of a folder: one for each mask, or for each value of a mask with several.

    A mask that cannot be read, or that has no photograph, becomes a record that cannot be loaded.

    Args:
        folder: Has `masks/` and, without `images`, `images/`.
        images: The folder of the photographs.
        label: What the masks show that are in no folder of their own.

    Raises:
        ConfigError: There are no masks, or nothing says what they show.
    """
    masks = folder / "masks"
    photographs = images or folder / "images"
    files = sorted(path for path in masks.rglob("*") if path.suffix.lower() == ".png")
    if not files:
        raise ConfigError(f"{masks} has no masks (*.png)")
    found = {
        path.relative_to(photographs).with_suffix("").as_posix(): path
        for path in sorted(photographs.rglob("*"), reverse=True)
        if path.suffix.lower() in _SUFFIXES
    }
    records = []
    for file in files:
        name = file.relative_to(masks)
        prompt = name.parent.as_posix() if name.parent.parts else label
        if not prompt:
            raise ConfigError(f"nothing says what the mask {file} shows: give a label, or put it into masks/<label>/")
        image = found.get(name.with_suffix("").as_posix()) or found.get(name.stem) or photographs / f"{name.stem}.jpg"
        for value in _values(file):
            number = "" if value is None else f"/{value}"
            records.append(Record(image, prompt, MaskFile(file, value), f"{name.with_suffix('').as_posix()}{number}"))
    return sorted(records, key=lambda record: record.image)


def _values(file: Path) -> list[int | None]:
    """The values in a mask but 0: [None] where it cannot be read, and 1 for an empty one, which has an empty object."""
    try:
        values, _ = read_mask_file(file)
    except InputError:
        return [None]
    return [int(value) for value in np.unique(values) if value] or [1]
