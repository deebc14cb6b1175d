"""A data set from where it is: the format is guessed."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from .coco import coco_records
from .mask_folder import mask_folder_records
from .record import Record, read_json
from .refcoco import refcoco_records
from .segagent_json import segagent_records

__all__ = ["load_dataset"]

_KNOWN = (
    "a COCO file (or a folder with <split>.json and images/, or with annotations/instances_<split>.json), refs(*).p of "
    "the RefCOCO family or its folder, a JSON file of the SegAgent data, or a folder with images/ and masks/"
)


def load_dataset(
    spec: str | Path, *, split: str | None = None, images: Path | None = None, label: str | None = None
) -> list[Record]:
    """The objects of a data set; images and masks are only read by `Record.load` or `load_samples`.

    Args:
        spec: A file or a folder: COCO, the RefCOCO family, the SegAgent data, or photographs with masks.
        split: Part of the data set: a name in refs(*).p, of a JSON file, or of a folder with images/ and masks/.
        images: The folder of the image files, where it is not the usual one of the format.
        label: What objects are called that have no label of their own (masks, the SegAgent data).

    Returns:
        Records in the order of the data set, those on the same picture next to each other.

    Raises:
        ConfigError: Nothing is there, nothing of a format that is known, or it is damaged.
    """
    path = Path(spec)
    if path.is_file():
        return _file(path, split, images, label)
    if not path.is_dir():
        raise ConfigError(f"there is no {path}; a data set is {_KNOWN}")
    if any(path.glob("refs(*).p")):
        return refcoco_records(path, images, split)
    inner = path / split if split is not None and (path / split / "masks").is_dir() else path
    if (inner / "masks").is_dir():
        return mask_folder_records(inner, images, label)
    return _file(_json_file(path, split), None, images, label)


def _file(path: Path, split: str | None, images: Path | None, label: str | None) -> list[Record]:
    if path.suffix == ".p":
        return refcoco_records(path, images, split)
    if split is not None:
        raise ConfigError(f"{path} is one file and has no split {split!r}; leave the split out, or name the folder")
    if path.suffix.lower() != ".json":
        raise ConfigError(f"{path} is no data set that is known; a data set is {_KNOWN}")
    content = read_json(path)
    if isinstance(content, dict) and "annotations" in content:
        return coco_records(path, images, content)
    if isinstance(content, dict) and "data" in content:
        return segagent_records(path, images, label, content)
    raise ConfigError(f"{path} has neither 'annotations', as COCO files have, nor 'data', as the SegAgent data has")


def _json_file(folder: Path, split: str | None) -> Path:
    """The JSON file of a split, or the only one of a folder."""
    files = sorted(p for p in [*folder.glob("*.json"), *folder.glob("annotations/instances_*.json")] if p.is_file())
    names = {path.stem.removeprefix("instances_"): path for path in files}
    if not files:
        raise ConfigError(f"{folder} is no data set that is known; a data set is {_KNOWN}")
    if split is None and len(files) > 1:
        raise ConfigError(f"{folder} has several splits: {', '.join(sorted(names))}; say which")
    chosen = files[0] if split is None else names.get(split)
    if chosen is None:
        raise ConfigError(f"{folder} has no split {split!r}; it has {', '.join(sorted(names))}")
    return chosen
