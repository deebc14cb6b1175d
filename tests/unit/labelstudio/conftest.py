"""What the tests of reading annotations share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from studio import Studio

from label_studio_segagent.datasets.record import Record
from label_studio_segagent.labelstudio.client import LabelStudioClient
from label_studio_segagent.labelstudio.images import ImageLoader
from label_studio_segagent.labelstudio.project import read_project


@pytest.fixture
def studio(web: Any) -> Studio:
    return Studio(web)


Read = Callable[..., list[Record]]


@pytest.fixture
def read(studio: Studio, tmp_path: Path) -> Iterator[Read]:
    """`read(tasks…)`: the records of these tasks; failures are kept in `read.failures`."""
    with closing(LabelStudioClient(studio.web.url, "0" * 40)) as client:
        loader = ImageLoader(client, tmp_path / "cache")

        def run(*tasks: Any, **options: Any) -> list[Record]:
            studio.tasks = list(tasks)
            run.failures = []  # type: ignore[attr-defined]
            if "failed" in options:
                del options["failed"]
            else:
                options["failed"] = lambda *failure: run.failures.append(failure)  # type: ignore[attr-defined]
            return list(read_project(client, loader, 7, tmp_path / "images", **options))

        yield run
        loader.close()
