"""What a fresh machine installs is what was tested."""

from __future__ import annotations

import re
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import label_studio_segagent
from label_studio_segagent.labelstudio import local

ROOT = Path(__file__).parents[2]
LOCKS = [*sorted((ROOT / "lock").iterdir()), Path(local.__file__).with_name("label-studio.txt")]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def locked(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([A-Za-z0-9._!-]+)$", path.read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_holds_a_name_and_a_version_a_line_and_no_addresses(path: Path) -> None:
    names = [canonicalize_name(name) for name in locked(path)]
    assert len(names) == len(path.read_text("utf-8").splitlines()) == len(set(names))


def test_everything_that_is_installed_for_the_tests_is_locked() -> None:
    """All requirements, however deep, of the package with its extra dev, and what the Makefile installs without any."""
    lock = {canonicalize_name(name): number for name, number in locked(ROOT / "lock" / "cpu.txt").items()}
    found = re.search(r"^WITHOUT_REQUIREMENTS = (.+)$", MAKEFILE, re.MULTILINE)
    assert found
    assert {canonicalize_name(name) for name in found[1].split()} <= lock.keys()
    seen: set[tuple[str, str]] = set()
    todo = [("label-studio-segagent", ""), ("label-studio-segagent", "dev")]
    while todo:
        name, extra = todo.pop()
        for text in requires(name) or ():
            one = Requirement(text)
            if one.marker and not one.marker.evaluate({"extra": extra}):
                continue
            assert canonicalize_name(one.name) in lock, f"{name} needs {one.name}, which lock/cpu.txt does not have"
            assert one.specifier.contains(lock[canonicalize_name(one.name)], prereleases=True)
            for key in ((one.name, ""), *((one.name, e) for e in one.extras)):
                if key not in seen:
                    seen.add(key)
                    todo.append(key)


def test_python_3_10_gets_the_same_where_it_can() -> None:
    newest, oldest = locked(ROOT / "lock" / "cpu.txt"), locked(ROOT / "lock" / "cpu-python3.10.txt")
    assert oldest["torch"] == newest["torch"]
    assert {"numpy", "pillow", "httpx", "pytest"} <= oldest.keys()


def test_the_lock_is_what_everything_installs_by() -> None:
    for line in re.findall(r"^.*pip.* install .*$|^\t\$\(PIP\) .*$", MAKEFILE, re.MULTILINE):
        assert "-c .venv/lock.txt" in line or line.startswith("PIP = "), line
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    assert "COPY lock/cpu.txt" in dockerfile and "pip install -c lock.txt ." in dockerfile


def test_the_types_are_shipped() -> None:
    assert (Path(label_studio_segagent.__file__).parent / "py.typed").is_file()
    assert version("label-studio-segagent") == label_studio_segagent.__version__


def test_no_file_cites_a_document_that_is_not_here() -> None:
    cited = re.compile(r"\b(?:docs/)?[A-Za-z_-]+\.md\b")
    names = {path.name for folder in (ROOT, ROOT / "docs", ROOT / "backend") for path in folder.glob("*.md")}
    made = {"MODEL_CARD.md"}  # what trainings write
    for path in Path(label_studio_segagent.__file__).parent.rglob("*.py"):
        for citation in cited.findall(path.read_text("utf-8")):
            assert Path(citation).name in names | made, f"{path} cites {citation}"
