"""Data sets as commands name them: files, folders, or a project of a Label Studio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import ConfigError

if TYPE_CHECKING:
    from .datasets import Record

__all__ = ["DATA_HELP", "ExifOption", "PolicyOption", "SegmenterOption", "opened"]

DATA_HELP = (
    "COCO (a JSON file, or a folder as COCO, Label Studio, CVAT or Roboflow lay it out), the RefCOCO family (refs(*).p "
    "or its folder), a JSON file of the SegAgent data, a folder with images/ and masks/ (PNG), or "
    "[b]label-studio:<project id>[/b]."
)
PolicyOption = Annotated[
    str | None,
    typer.Option(
        help="Click policy: embedded, hf:<model>, hf:<model>+<adapter>, openai:<url>#<model>, saliency, or "
        "oracle:<coco.json>. Default: SEGAGENT_POLICY."
    ),
]
SegmenterOption = Annotated[
    str | None,
    typer.Option(
        help="Segmentation tool: embedded, hf:<model>, sam:<size>:<file>, simpleclick:<file>, or grabcut. Default: "
        "SEGAGENT_SEGMENTER."
    ),
]
ExifOption = Annotated[
    str | None,
    typer.Option(
        metavar="applied|ignored",
        help="What masks were drawn on: photographs turned by their EXIF tags (Label Studio, CVAT, browsers), or as "
        "they are stored. By default the sizes in the data set say it, and where they fit both, applied.",
    ),
]
_LABEL_STUDIO = "label-studio:"


@contextmanager
def opened(
    data: str, pictures: Path, split: str | None, images: Path | None, label: str | None,
    failures: list[tuple[str, str]], exif: str | None = None,
) -> Iterator[Iterable[Record]]:  # fmt: skip
    """The records of a data set; those of a project only come one by one, while this is open.

    Args:
        data: See `DATA_HELP`.
        pictures: Folder that keeps the images of a project, unless `images` is given.
        split: See `load_dataset`.
        images: See `load_dataset`.
        label: See `load_dataset`.
        failures: Gets (task, reason) for each task of a project that cannot be read.
        exif: See `load_dataset`.

    Raises:
        ConfigError: There is no such data set, or Label Studio's address is not set.
        ApiError: Label Studio refuses or fails a call.
    """
    if not data.startswith(_LABEL_STUDIO):
        from .datasets import load_dataset
        from .datasets.image_file import as_exif

        yield load_dataset(data, split=split, images=images, label=label, exif=as_exif(exif))
        return
    from .labelstudio.client import LabelStudioClient
    from .labelstudio.images import ImageLoader
    from .labelstudio.project import read_project
    from .server.settings import load_settings

    number = data.removeprefix(_LABEL_STUDIO)
    if not number.isdecimal():
        raise ConfigError(f"{data!r} must name a project by its number, as in its address: label-studio:12")
    if split is not None:
        raise ConfigError(f"{data} is a project of Label Studio and has no split {split!r}; leave it out")
    if exif is not None:
        raise ConfigError(f"{data} is a project of Label Studio, which shows photographs turned; leave --exif out")
    settings = load_settings()
    if not settings.label_studio_url:
        raise ConfigError("LABEL_STUDIO_URL is not set; without it no project can be read")
    client = LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key.get_secret_value(), timeout=60)
    loader = ImageLoader(
        client, settings.data_dir / "images", allowed_hosts=settings.allowed_image_hosts,
        max_bytes=settings.max_image_bytes, max_pixels=settings.max_pixels, cache_bytes=settings.image_cache_bytes,
    )  # fmt: skip
    try:
        yield read_project(
            client, loader, int(number), images or pictures,
            failed=lambda task, reason: failures.append((f"task {task}", reason)),
        )  # fmt: skip
    finally:
        loader.close()
