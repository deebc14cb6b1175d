"""`segagent qc annotators`: how well the annotators of a project agree, and what most of them drew."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from ..hlmat.arrays import Mask
from ..hlmat.trajectory import decode_mask
from ..labelstudio.newest import newness
from ..quality.consensus import annotator_scores, consensus, pixel_rule
from ..quality.export import write_consensus
from ..quality.project import Annotated
from .checking import read_annotated
from .models import build_loader, need_client, project_folder
from .settings import Settings

__all__ = ["compare_annotators"]

log = logging.getLogger(__name__)
_Picture = tuple[int, str]
_Drawn = list[tuple[str, Mask]]


def compare_annotators(
    settings: Settings, project: int, out: Path | None = None, rule: str = "majority"
) -> tuple[dict[Any, dict[str, Any]], int, int]:
    """How well the annotators of a project agree with each other and with ground truth.

    Args:
        settings: Of the server.
        project: Project id.
        out: Folder for `consensus.json`, the objects that most of the annotators of a picture drew, in COCO format.
        rule: What makes one mask of theirs; see `pixel_rule`.

    Returns:
        See `annotator_scores`; the number of pictures that several people drew on, and of objects agreed upon.

    Raises:
        ApiError: Label Studio does not answer.
        ConfigError: There is no Label Studio to ask, or what the rule needs is not installed.
        InputError: There is no such rule.
    """
    fuse = pixel_rule(rule)
    client = need_client(settings)
    folder = project_folder(settings, project)
    with closing(client), closing(build_loader(settings, client)) as loader:
        annotated = read_annotated(
            client, loader, project, folder, lambda t, r: log.warning("task %s: %s", t, r), copied=True
        )
    pictures, truths = _by_picture(annotated)
    scores = annotator_scores(list(pictures.values()), [truths.get(key) for key in pictures])
    several = {key: drawn for key, drawn in pictures.items() if len(drawn) > 1}
    agreed = {key: consensus(list(drawn.values()), fuse) for key, drawn in several.items()}
    if out is not None:
        write_consensus(agreed, out)
    return scores, len(several), sum(map(len, agreed.values()))


def _by_picture(annotated: Iterable[Annotated]) -> tuple[dict[_Picture, dict[Any, _Drawn]], dict[_Picture, _Drawn]]:
    """By (task, image file): the newest that each annotator drew, and the ground truth."""
    pictures: dict[_Picture, dict[Any, _Drawn]] = {}
    truths: dict[_Picture, _Drawn] = {}
    for one in sorted(annotated, key=_newness):
        if one.unsaid and not one.records:
            continue  # something is there that nobody could read
        key = (one.meta["task"], str(one.image))
        drawn = [(record.prompt, decode_mask(record.mask)) for record in one.records]
        if one.meta.get("ground_truth"):
            truths[key] = drawn
        else:
            pictures.setdefault(key, {})[one.meta.get("by")] = drawn
    return pictures, truths


def _newness(one: Annotated) -> tuple[float, int]:
    return newness({"id": one.meta["annotation"], "updated_at": one.meta.get("updated")})
