"""How a training went: curves as CSV, as a picture, and as TensorBoard event files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["Curves", "draw_curves"]


class Curves:
    """Curves of one training: `curves.csv`, `curves.png`, and event files where tensorboardX is installed.

    The file is whole at any time, and a resumed training repeats no row.

    Args:
        out: The folder of the training.
        columns: What is drawn, besides "step" and "minutes".
        step: The last step that counts: 0 for a new training, that of the checkpoint for a resumed one.
    """

    def __init__(self, out: Path, columns: Sequence[str], step: int = 0) -> None:
        self._out, self._columns = out, ("step", "minutes", *columns)
        self._rows: list[Mapping[str, Any]] = []
        if step and (out / "curves.csv").exists():
            with (out / "curves.csv").open(newline="") as file:
                known = csv.DictReader(file)
                if known.fieldnames == list(self._columns):  # else written by another version
                    self._rows = [row for row in known if int(row["step"]) <= step]
        self._events = _event_writer(out, step)

    def add(self, step: int, minutes: float, values: Mapping[str, float]) -> None:
        """Add a row; columns without a value stay empty."""
        self._rows.append({"step": step, "minutes": round(minutes, 3), **values})
        temporary = self._out / "curves.csv.part"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        temporary.replace(self._out / "curves.csv")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def close(self) -> None:
        """Draw the picture and close the event file."""
        if self._events is not None:
            self._events.close()
        draw_curves(self._out / "curves.csv", self._out / "curves.png", self._columns[2:])


def _event_writer(out: Path, step: int) -> Any:
    """TensorBoard's writer, or None without tensorboardX: who has not installed it does not look at event files."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    # Tells TensorBoard to forget what an interrupted training wrote after its checkpoint.
    return SummaryWriter(str(out), purge_step=step + 1)


def draw_curves(log: Path, path: Path, names: Sequence[str]) -> None:
    """Plot columns of a training log over its minutes, one panel each; empty cells are left out."""
    if not log.exists():
        return
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    panels = []
    for name in names:
        points = np.array([(float(r["minutes"]), float(r[name])) for r in rows if r[name]])
        if len(points) > 1:
            panels.append(_panel(name, points[:, 0], points[:, 1]))
    if panels:
        cv2.imwrite(str(path), np.concatenate(panels, 0))


def _panel(
    name: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], width: int = 900, height: int = 180
) -> npt.NDArray[np.uint8]:
    canvas = np.full((height, width, 3), 255, np.uint8)
    low, high = float(y.min()), float(y.max())
    spread = max(high - low, 1e-12)
    columns = 70 + (x - x[0]) / max(x[-1] - x[0], 1e-9) * (width - 90)
    rows = height - 25 - (y - low) / spread * (height - 50)
    cv2.polylines(canvas, [np.stack([columns, rows], 1).astype(np.int32)], False, (180, 90, 20), 1, cv2.LINE_AA)
    for text, row in ((f"{high:.4g}", 28), (f"{low:.4g}", height - 22)):
        cv2.putText(canvas, text, (4, row), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (90, 90, 90), 1, cv2.LINE_AA)
    title = f"{name} (minute {x[0]:.0f} to {x[-1]:.0f}; last {y[-1]:.4g})"
    cv2.putText(canvas, title, (75, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas
