"""What annotators drew in a project of Label Studio, as records to learn from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..datasets.record import Record
from ..errors import SegAgentError
from .annotations import ACCEPTED_WEIGHT, TaskReader
from .client import LabelStudioClient
from .config import LabelConfig
from .images import ImageLoader
from .tasks import iterate_tasks

__all__ = ["ACCEPTED_WEIGHT", "read_project"]

log = logging.getLogger(__name__)

_Failed = Callable[[Any, str], None]


def _log_failure(task: Any, reason: str) -> None:
    log.warning("task %s: %s", task, reason)


def read_project(
    client: LabelStudioClient,
    images: ImageLoader,
    project_id: int,
    folder: Path,
    *,
    tasks: Iterable[int] | None = None,
    absent: bool = False,
    copied: bool = False,
    failed: _Failed = _log_failure,
) -> Iterator[Record]:
    """The annotated objects of a project: one record for each region with an area and each of its labels.

    Annotations that were cancelled, or that another one was made from, are left out. So are rectangles and ellipses of
    labels that have a brush, bitmask or polygon control: those are prompts, not outlines. Regions that cannot be read,
    whose label no such control has, or whose Image the config does not have, are failures. The prompt is what the
    backend would ask its policy for: the label's hint, alias or value, or the text that the annotator typed.

    The meta of a record has `task`, `annotation`, `updated` (when the annotation was), `by` (the annotator's id),
    `ground_truth`, `region`, `label`, `shape`, `to_name`, `item_index`, and `weight`:
    1, or `ACCEPTED_WEIGHT` where the annotation is its parent prediction, unchanged.

    Args:
        client: The Label Studio.
        images: Fetches the images of tasks.
        project_id: The project.
        folder: Where the images are kept as PNG files, as a browser shows them; made when missing. Those that are
            there are not fetched again.
        tasks: Ids of the tasks to read; all that have an annotation by default.
        absent: Also give a record, with an empty mask and `absent` in its meta, for every label that no result of an
            annotation carries in a picture. Its meta also has `unsaid`: labels of which the annotation has something
            there, but nothing that can be learned, such as a box only, or a damaged mask.
        copied: Also read annotations that somebody else made another one from: they are what their author says.
        failed: Called with the id of a task and what is wrong with it or with one of its regions; everything else goes
            on. By default a warning is logged.

    Raises:
        ApiError: Label Studio does not answer, or there is no such project.
        ConfigError: The labelling config cannot be used.
    """
    project = client.call("GET", f"/api/projects/{int(project_id)}/")
    config = LabelConfig.parse(str(project.get("label_config")) if isinstance(project, dict) else "")
    folder.mkdir(parents=True, exist_ok=True)
    for task in iterate_tasks(client, int(project_id), only=tasks, annotated=True):
        reader = TaskReader(
            config, task, images, folder, client.url, absent=absent, copied=copied,
            failed=partial(failed, task.get("id")),
        )  # fmt: skip
        try:
            records = list(reader.records())
        except SegAgentError as error:
            failed(task.get("id"), str(error))
            continue
        yield from sorted(records, key=lambda record: record.image)
