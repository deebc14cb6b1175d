"""A real Label Studio for the whole run, and our real server connected to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from support import Backend, wait

from label_studio_segagent.demo import demo_photos
from label_studio_segagent.labelstudio.local import LocalLabelStudio, find_label_studio
from label_studio_segagent.live_demo import start_backend

REPOSITORY = Path(__file__).parents[2]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1500,1100"
)


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


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver; as root, `make system` installs Debian's")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    chrome = webdriver.Chrome(service=webdriver.ChromeService(driver), options=options)
    yield chrome
    chrome.quit()


@pytest.fixture(scope="session")
def signed_in(browser: webdriver.Chrome, label_studio: LocalLabelStudio) -> webdriver.Chrome:
    browser.get(f"{label_studio.url}/user/login/")
    browser.find_element(By.NAME, "email").send_keys(label_studio.user)
    browser.find_element(By.NAME, "password").send_keys(label_studio.password)
    browser.find_element(By.NAME, "password").submit()
    wait(browser, lambda b: "/login" not in b.current_url)
    return browser
