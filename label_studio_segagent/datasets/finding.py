"""Where the pictures of a data set are: what its file calls them, as many programs write it, against what is there."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["PictureFinder"]


class PictureFinder:
    r"""Finds pictures by the names that a data set has for them.

    A name may have folders that are not there any more (`images/a.jpg` beside the pictures themselves), backslashes
    (`images\a.jpg`, written on Windows), or be an address (`/data/upload/1/a.jpg`, `https://…/a.jpg`): as much of its
    end is taken as can be found.

    Args:
        folders: Where to look, best first.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()] or list(folders[:1])

    def find(self, name: str) -> Path | None:
        """The file that is meant by a name, or None."""
        for tail in _tails(name):
            for folder in self.folders:
                place = folder / tail
                if _is_file(place):
                    return place
        return None

    def where(self) -> str:
        """The folders, for messages."""
        return ", ".join(str(folder) for folder in self.folders)


def _tails(name: str) -> Iterator[str]:
    """A name as it is, then without its first folders, one after the other."""
    yield name
    path = _path(name)
    # macOS writes ü as u and an accent.
    for form in dict.fromkeys((path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path))):
        parts = [part for part in form.split("/") if part and part != "."]
        for first in range(len(parts)):
            yield "/".join(parts[first:])


def _path(name: str) -> str:
    """The path in a name that may be an address or come from Windows."""
    if "://" in name or name.startswith("/data/"):
        try:
            parts = urlsplit(name)
        except ValueError:
            return name
        named = parse_qs(parts.query).get("d")
        return named[0] if named else unquote(parts.path)
    return name.replace("\\", "/")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
