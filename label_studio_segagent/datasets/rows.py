"""Rows of COCO files, found by their ids as different programs write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError

__all__ = ["CocoRows", "coco_size"]


class CocoRows:
    """Rows of a COCO file by their ids.

    Args:
        rows: The list in the file.
        what: One of them, for messages.
        named: The key of what tells two of them apart.
    """

    def __init__(self, rows: Iterable[Any], what: str, named: str) -> None:
        self.rows = [row for row in rows if isinstance(row, dict)]
        self._what, self._named = what, named
        self._exact: dict[Any, list[dict[str, Any]]] = {}
        self._text: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            number = row.get("id")
            if isinstance(number, (str, int, float)):
                self._exact.setdefault(number, []).append(row)
                self._text.setdefault(_as_text(number), []).append(row)

    def get(self, number: Any) -> dict[str, Any]:
        """The row with an id.

        Raises:
            InputError: There is none, or several that differ.
        """
        found = []
        if isinstance(number, (str, int, float)):
            found = self._exact.get(number) or self._text.get(_as_text(number)) or []
        if not found:
            raise InputError(f"the file has no {self._what} {repr(number)[:60]}{self._known()}")
        names = {str(row.get(self._named)) for row in found}
        if len(names) > 1:
            raise InputError(
                f"the file has several of {self._what} {repr(number)[:60]}: {', '.join(sorted(names))[:80]}"
            )
        return found[0]

    def _known(self) -> str:
        known = ", ".join(f"{row.get('id')!r}" for row in self.rows[:8])
        return f"; it has {known}" + (", …" if len(self.rows) > 8 else "") if known else f" (it has no {self._what})"


def _as_text(number: Any) -> str:
    return str(number).strip().removesuffix(".0")  # tables turn 1 into 1.0, and text of that


def coco_size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) of an image where its row says both."""
    try:
        height, width = (int(float(row[side])) for side in ("height", "width"))
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None
