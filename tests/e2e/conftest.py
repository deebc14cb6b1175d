"""A real Label Studio for the whole run, and our real server connected to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support import Backend

from label_studio_segagent.demo import demo_photos
from label_studio_segagent.labelstudio.local import LocalLabelStudio, find_label_studio
from label_studio_segagent.live_demo import start_backend

REPOSITORY = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLabelStudio]:
    program = find_label_studio(REPOSITORY / ".venv-label-studio")
    if program is None:
        pytest.skip("no Label Studio; `make e2e` installs it")
    server = LocalLabelStudio(program, tmp_path_factory.mktemp("label-studio"))
    with server:
        yield server


@pytest.fixture(scope="session")
def personal_token(label_studio: LocalLabelStudio) -> str:
    """The user's personal access token; Label Studio gives a user only one."""
    return label_studio.create_personal_access_token()


@pytest.fixture(scope="session")
def backend(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("backend")
    os.environ["PYTHONUNBUFFERED"] = "1"
    # What these tests look for must not move when weights are trained anew.
    process, url = start_backend(label_studio, folder, SEGAGENT_POLICY="saliency")
    version = httpx.post(f"{url}/setup", json={}).json()["model_version"]
    yield Backend(url, version, folder, process)
    process.terminate()
    process.wait(60)


@pytest.fixture(scope="session")
def photo_paths() -> list[Path]:
    return [photo.path for photo in demo_photos()]
