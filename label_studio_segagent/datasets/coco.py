"""COCO instance files (https://cocodataset.org/#format-data), as many programs write them: the one reader."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConfigError, InputError
from ..hlmat.trajectory import Sample
from .finding import PictureFinder
from .image_file import Exif
from .record import Record, load_samples, read_json
from .rows import CocoRows, coco_size

__all__ = ["CocoFile", "CocoImage", "coco_records", "read_coco", "read_coco_file"]

_NO = ("", "0", "0.0", "false", "no", "none", "null")
_YES = ("1", "1.0", "true", "yes")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of a COCO file, and what was annotated on it.

    Attributes:
        path: Where it is.
        size: (height, width) as the file says, or None.
        row: What else the file says about it.
        objects: Those that can be read, and those with a `Record.problem`; without crowds.
        problem: Why it cannot be used, or "".
    """

    path: Path
    size: tuple[int, int] | None
    row: Mapping[str, Any]
    objects: tuple[Record, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CocoFile:
    """What is in a COCO file.

    Attributes:
        path: The file.
        names: Of its categories.
        images: In the order of the file, those without objects, too.
        strays: Annotations of no image that the file has, each with its `Record.problem`.
        crowds: How many annotations are crowds, which are no objects.
    """

    path: Path
    names: tuple[str, ...]
    images: tuple[CocoImage, ...]
    strays: tuple[Record, ...]
    crowds: int

    @property
    def records(self) -> list[Record]:
        """All objects, image by image."""
        return [record for image in self.images for record in image.objects] + list(self.strays)


def read_coco(path: Path, images: Path | None = None) -> Iterator[Sample]:
    """Read a COCO instances file: one sample an annotation, image by image; crowds are left out.

    Args:
        path: The JSON file.
        images: See `read_coco_file`.

    Raises:
        ConfigError: The file, an annotation or an image cannot be read, or it is not a COCO file.
    """
    try:
        yield from load_samples(coco_records(path, images))
    except InputError as error:
        raise ConfigError(f"cannot read the COCO file {path}: {error}") from error


def coco_records(
    path: Path, images: Path | None = None, content: Any = None, *, label: str | None = None, exif: Exif | None = None
) -> list[Record]:
    """The annotated objects of a COCO instances file, image by image; crowds are left out, and counted in the log.

    What is wrong with one annotation becomes a record that cannot be loaded; the others go on.

    Args:
        path: The JSON file.
        images: See `read_coco_file`.
        content: What is in the file, where it has been read already.
        label: See `read_coco_file`.
        exif: See `read_image`.

    Raises:
        ConfigError: It cannot be read, is not a COCO file, or has no object that can be used.
    """
    found = read_coco_file(path, images, content, label=label, exif=exif)
    records = found.records
    problems = [record.problem for record in records if record.problem]
    if len(problems) == len(records):
        counted = f"{len(records) + found.crowds} annotations, of which {found.crowds} are crowds"
        why = f"; the first that cannot be used: {problems[0]}" if problems else ""
        raise ConfigError(f"{path} has no objects: it has {len(found.images)} images and {counted}{why}")
    if found.crowds or problems:
        log.warning(
            "%s: %d objects on %d images; left out: %d crowds, %d annotations that cannot be used",
            path, len(records) - len(problems), len(found.images), found.crowds, len(problems),
        )  # fmt: skip
    return records


def read_coco_file(
    path: Path, images: Path | None = None, content: Any = None, *, label: str | None = None, exif: Exif | None = None
) -> CocoFile:
    """Read a COCO instances file; masks are not decoded, images not opened.

    Ids that are the same as text are the same (`"1"` and 1), unless there is one of the same type.

    Args:
        path: The JSON file.
        images: The folder of the image files; by default they are looked for beside the JSON, in `images/`, in a folder
            named like the file or its split, and there beside its folder, as COCO, Label Studio, Roboflow and CVAT
            lay them out.
        content: What is in the file, where it has been read already.
        label: What objects are called that have no category.
        exif: See `read_image`.

    Raises:
        ConfigError: It cannot be read, or it is not a COCO file.
    """
    content = read_json(path) if content is None else content
    lists = [content.get(key) for key in ("images", "annotations")] if isinstance(content, dict) else [None]
    if not all(isinstance(rows, list) for rows in lists):
        raise ConfigError(f"{path} is not a COCO file with lists of images, annotations and categories")
    return _Reader(path, PictureFinder(_folders(path, images)), content, label, exif).read()


def _folders(path: Path, images: Path | None) -> list[Path]:
    split = path.stem.removeprefix("instances_")
    if images is not None:
        return [images, images / split, images / "images"]
    beside, above = path.parent, path.parent.parent
    official = [above / split, above / "images" / split] if path.stem.startswith("instances_") else []
    return [
        *official, beside / "images", beside / "images" / split, beside / split, beside, above / "images" / split,
        above / "images", above / split,
    ]  # fmt: skip


class _Reader:
    def __init__(
        self, path: Path, finder: PictureFinder, content: dict[str, Any], label: str | None, exif: Exif | None
    ) -> None:
        self._path, self._finder, self._label = path, finder, label
        self._meta: dict[str, Any] = {} if exif is None else {"exif": exif}
        categories = content.get("categories")
        self._categories = CocoRows(categories if isinstance(categories, list) else [], "category", "name")
        self._images = CocoRows(content["images"], "image", "file_name")
        self._annotations = content["annotations"]
        self._seen: set[str] = set()

    def read(self) -> CocoFile:
        grouped: dict[int, list[Record]] = {}
        strays: list[Record] = []
        crowds = 0
        for number, annotation in enumerate(self._annotations, 1):
            try:
                row = annotation if isinstance(annotation, dict) else {}
                crowd = _is_crowd(row.get("iscrowd"))
                image = self._images.get(row.get("image_id"))
            except InputError as error:
                strays.append(self._record(annotation, number, str(error)))
                continue
            if crowd:
                crowds += 1
            else:
                grouped.setdefault(id(image), []).append(self._record(annotation, number))
        images = [self._image(row, grouped.get(id(row), [])) for row in self._images.rows]
        names = [str(row["name"]) for row in self._categories.rows if row.get("name") is not None]
        return CocoFile(self._path, tuple(names), tuple(_kept_apart(images)), tuple(strays), crowds)

    def _record(self, row: Any, number: int, problem: str = "") -> Record:
        """An annotation; its image is not known yet."""
        row = row if isinstance(row, dict) else {}
        name = f"annotation number {number}" if row.get("id") is None else str(row["id"])
        name = f"{name} (annotation number {number})" if name in self._seen else name
        self._seen.add(name)
        prompt = self._label or ""
        try:
            if row.get("category_id") is not None or not prompt:
                prompt = self._name(row.get("category_id"))
        except InputError as error:
            problem = problem or str(error)
        mask = row.get("segmentation")
        if not problem and mask in (None, [], {}, [[]], ""):
            problem = "it has no outline" + (", only a box" if row.get("bbox") else "")
        text = f"object {name} of {self._path.name} cannot be used: {problem}" if problem else ""
        return Record(self._path, prompt, mask, name, None, self._meta, text)

    def _name(self, category: Any) -> str:
        name = self._categories.get(category).get("name")
        if name in (None, ""):
            raise InputError(f"category {category!r} has no name")
        return str(name)

    def _image(self, row: dict[str, Any], objects: list[Record]) -> CocoImage:
        name = row.get("file_name") or row.get("coco_url")  # LVIS has addresses only
        size = coco_size(row)
        path = self._finder.find(name) if isinstance(name, str) else None
        problem = ""
        if not isinstance(name, str):
            problem = f"image {row.get('id')!r} has no file_name"
        elif path is None:
            path = self._finder.folders[0] / PurePosixPath(name.replace("\\", "/"))
            problem = f"there is no picture {name!r} in {self._finder.where()}; --images says where it is"
        path = path or self._path
        records = [replace(r, image=path, size=size, problem=r.problem or problem) for r in objects]
        return CocoImage(path, size, row, tuple(records), problem)


def _is_crowd(value: Any) -> bool:
    """Whether `iscrowd` says so, which some programs write as text.

    Raises:
        InputError: It says neither.
    """
    text = str(value).strip().lower()
    if text in _NO:
        return False
    if text in _YES:
        return True
    raise InputError(f"its iscrowd is {str(value)[:40]!r}, neither 0 nor 1")


def _kept_apart(images: list[CocoImage]) -> Iterator[CocoImage]:
    """The images; those whose different names lead to one file are no use, unless it has just that name."""
    names: dict[Path, Counter[str]] = {}
    for image in images:
        if not image.problem:
            names.setdefault(image.path, Counter())[str(image.row.get("file_name")).replace("\\", "/")] += 1
    for image in images:
        rivals = names.get(image.path) or Counter[str]()
        name = str(image.row.get("file_name")).replace("\\", "/")
        if image.problem or len(rivals) < 2 or image.path.as_posix().endswith(f"/{name}"):
            yield image
            continue
        problem = f"{', '.join(sorted(rivals)[:3])} would all be the file {image.path}; --images says where they are"
        objects = tuple(replace(r, problem=r.problem or problem) for r in image.objects)
        yield replace(image, objects=objects, problem=problem)
