"""Which of a task's annotations, drafts or predictions is the newest: the same rule for everybody who asks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

__all__ = ["newest_first", "newness"]

_FRACTION = re.compile(r"\.\d+")


def newest_first(task: Any, name: str) -> list[dict[str, Any]]:
    """The annotations, drafts or predictions of a task, the newest first; those that were skipped are left out.

    The one that was changed last is the newest; of several without a time, or with the same, that with the largest id.

    Args:
        task: As Label Studio sends it.
        name: "annotations", "drafts" or "predictions".
    """
    items = task.get(name) if isinstance(task, Mapping) else None
    valid = [i for i in items if isinstance(i, dict) and not i.get("was_cancelled")] if isinstance(items, list) else []
    return sorted(valid, key=newness, reverse=True)


def newness(item: Mapping[str, Any]) -> tuple[float, int]:
    """Larger for a newer annotation, draft or prediction: when it was changed, and its id."""
    number = item.get("id")
    return _changed(item), number if isinstance(number, int) else -1


def _changed(item: Mapping[str, Any]) -> float:
    """When it was changed, in seconds since 1970; before all others when nobody knows."""
    for name in ("updated_at", "created_at"):
        try:
            # Python 3.10 reads three or six digits of a second, and no Z.
            text = _FRACTION.sub(lambda digits: f"{digits[0]:0<7.7}", str(item.get(name)))
            time = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            continue
        # Label Studio's times are of UTC.
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
    return float("-inf")
