"""Folders of photographs and masks: `images/` beside `masks/`, a PNG of the same name for each photograph, or several.

A mask has 0 for the background and one other value, or an id for each instance; 255 beside other values is void, as in
PASCAL VOC. What is on it says the folder that it is in, `masks/<label>/<name>.png`, or one label for all. Several masks
of one photograph are numbered, `<name>-1.png`, `<name>-2.png`. Labels that are no names for folders are written in
`mask_labels.json`, each for the folder that stands for it (`MaskFolderWriter`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image as PilImage

from ..errors import ConfigError, InputError
from ..hlmat.arrays import Mask
from .record import MaskFile, Record, read_json, read_mask_file

__all__ = ["MaskFolderWriter", "mask_folder_records"]

_LABELS = "mask_labels.json"
_NUMBER = re.compile(r"-[0-9]+$")
_LONGEST = 50
"""Characters of a folder's name: file systems take 255 bytes, and a character may be four."""

_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".pgm", ".ppm",
    ".jp2",
)  # fmt: skip


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
    labels = _labels(folder)
    records = []
    for file in files:
        name = file.relative_to(masks)
        prompt = labels.get(name.parent.as_posix(), name.parent.as_posix()) if name.parent.parts else label
        if not prompt:
            raise ConfigError(f"nothing says what the mask {file} shows: give a label, or put it into masks/<label>/")
        whole = name.with_suffix("").as_posix()
        names = (whole, name.stem, _NUMBER.sub("", whole), _NUMBER.sub("", name.stem))
        image = next((found[each] for each in names if each in found), photographs / f"{name.stem}.jpg")
        for value in _values(file):
            number = "" if value is None else f"/{value}"
            records.append(Record(image, prompt, MaskFile(file, value), f"{whole}{number}"))
    return sorted(records, key=lambda record: record.image)


def _values(file: Path) -> list[int | None]:
    """The values in a mask but 0: [None] where it cannot be read, and 1 for an empty one, which has an empty object."""
    try:
        values, _ = read_mask_file(file)
    except InputError:
        return [None]
    return [int(value) for value in np.unique(values) if value] or [1]


def _labels(folder: Path) -> dict[str, str]:
    """Labels by the folders that stand for them."""
    path = folder / _LABELS
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict) or not all(isinstance(label, str) for label in content.values()):
        raise ConfigError(f"{path} must have a label for each folder of masks: {{folder: label}}")
    return content


class MaskFolderWriter:
    """Writes masks, one PNG an object, as `mask_folder_records` reads them; masks that it wrote before are removed.

    Args:
        folder: Where `masks/` is; made when something is written. The photographs belong into `images/` beside it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folders: dict[str, str] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        for name in (name for name in _labels(folder) if name == Path(name).name):
            for file in (folder / "masks" / name).glob("*.png"):
                file.unlink()

    def add(self, picture: str, label: str, mask: Mask) -> None:
        """Write the mask, bool (H, W), of an object on the photograph of that file name."""
        name = self._folders.get(label) or self._new_folder(label)
        place = self._folder / "masks" / name
        place.mkdir(parents=True, exist_ok=True)
        stem = Path(picture).stem
        self._counts[stem, name] += 1
        PilImage.fromarray(mask.astype(np.uint8) * 255).save(place / f"{stem}-{self._counts[stem, name]}.png")

    def write(self) -> None:
        """Write which folder stands for which label."""
        path = self._folder / _LABELS
        content = {name: label for label, name in self._folders.items()}
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8", "backslashreplace")

    def _new_folder(self, label: str) -> str:
        """A folder of its own for a label, as much like it as file systems allow."""
        plain = "".join(c if c.isalnum() or c in " -_" else "_" for c in label)[:_LONGEST].strip() or "object"
        taken = {name.casefold() for name in self._folders.values()}
        name, number = plain, 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        self._folders[label] = name
        return name
