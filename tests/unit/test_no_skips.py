"""The run itself: what is skipped although it should have been tested fails it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
BODIES = {
    "nothing": "def test(): pass",
    "gpu": "@pytest.mark.gpu\n@pytest.mark.skipif(True, reason='no CUDA')\ndef test(): pass",
    "expected failure": "@pytest.mark.xfail\ndef test(): assert 0",
    "condition": "@pytest.mark.skipif(True, reason='no redis-server')\ndef test(): pass",
    "in a fixture": "@pytest.fixture\ndef x(): pytest.skip('no redis-server')\ndef test(x): pass",
    "the module": "pytest.skip('no redis-server', allow_module_level=True)",
}


def run(folder: Path, body: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    (folder / "test_it.py").write_text(f"import pytest\ndef test_other(): pass\n{body}\n")
    command = [sys.executable, "-m", "pytest", "-p", "no_skips", "-p", "no:cacheprovider", *options, "."]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", BODIES)
def test_a_skip_that_is_not_allowed_fails_the_run_and_says_what_is_missing(name: str, tmp_path: Path) -> None:
    done = run(tmp_path, BODIES[name])
    wrong = name not in ("nothing", "gpu", "expected failure")
    assert done.returncode == wrong, done.stdout
    assert ("NOT TESTED" in done.stdout and ": no redis-server\n" in done.stdout) == wrong


@pytest.mark.parametrize("name", ["in a fixture", "the module"])
def test_the_same_in_several_processes(name: str, tmp_path: Path) -> None:
    done = run(tmp_path, BODIES[name], "-n", "2")
    assert done.returncode == 1 and ": no redis-server\n" in done.stdout


def test_tests_may_be_left_out_on_purpose(tmp_path: Path) -> None:
    assert run(tmp_path, BODIES["in a fixture"], "-k", "other").returncode == 0
