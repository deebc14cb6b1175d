"""The report of an evaluation: one HTML file with numbers, plots, and the best and worst rollouts as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image as PilImage

from ..agent.rollout import Rollout
from ..datasets.image_file import read_image
from ..errors import InputError
from ..hlmat.arrays import Image
from ..hlmat.trajectory import Trajectory, decode_mask, read_trajectories
from ..pictures import trajectory_strip
from ..tables import write_table
from .rows import Row

__all__ = ["METRICS", "draw", "number", "write_csv", "write_report"]

METRICS = {
    "miou": "mIoU", "ciou": "cIoU", "boundary_iou": "boundary IoU", "start_miou": "mIoU of the start masks",
    "gain": "gain over the start masks", "clicks": "clicks used", "undone": "of which undone",
}  # fmt: skip
_EXTREMES = 6
_DOTS = 2000
_LABELS = 60
_COLOURS = {"last": "#c0504d", "rated": "#3b7dd8", "blind": "#888888"}
_COLUMNS = (
    "id", "image", "prompt", "label", "share", "iou", "boundary_iou", "intersection", "union", "predicted_iou",
    "clicks", "undone", "seconds", "stopped",
)  # fmt: skip


def write_csv(rows: Sequence[Row], path: Path, max_clicks: int) -> None:
    """A line an object; `iou_after_0`, … hold the IoU of the mask after so many clicks, empty where fewer were made."""
    columns = (*_COLUMNS, *(f"iou_after_{clicks}" for clicks in range(max_clicks + 1)))
    write_table(path, columns, ((*(getattr(row, name) for name in _COLUMNS), *row.ious) for row in rows))


def write_report(results: dict[str, Any], rows: Sequence[Row], trajectories: Path, path: Path) -> None:
    """Write the report.

    Args:
        results: As in `results.json`.
        rows: All objects.
        trajectories: The JSONL file that `evaluate` wrote.
        path: The HTML file; it needs no other files.

    Raises:
        InputError: The trajectories cannot be read.
    """
    ranked = sorted(rows, key=lambda row: (-row.iou, row.key))
    best, worst = ranked[:_EXTREMES], ranked[::-1][:_EXTREMES]
    wanted = {row.key for row in (*best, *worst)}
    found = {
        str(trajectory.meta.get("key")): trajectory
        for trajectory in read_trajectories(trajectories)
        if trajectory.meta.get("key") in wanted
    }
    environment = Environment(loader=PackageLoader("label_studio_segagent.evaluation"), autoescape=True)
    page = environment.get_template("report.html").render(
        results=results, metrics=METRICS, number=number, lines=_lines(results["per_click"]), dots=_dots(rows),
        labels=list(results["labels"].items())[:_LABELS], more=max(0, len(results["labels"]) - _LABELS),
        parts=[
            (title, [(row, _encoded(row, found[row.key])) for row in part if row.key in found])
            for title, part in (("Best", best), ("Worst", worst))
        ],
    )  # fmt: skip
    path.write_text(page, "utf-8", "backslashreplace")


def draw(row: Row, trajectory: Trajectory) -> Image:
    """What happened on an object, click by click, with the true mask at the end; RGB uint8.

    Raises:
        InputError: The image is gone.
    """
    meta = trajectory.meta
    rollout = Rollout(decode_mask(meta["result"]), float(meta["predicted_iou"]), trajectory, str(meta["stopped"]))
    image = read_image(Path(trajectory.image), rollout.mask.shape, meta.get("exif"))
    return trajectory_strip(image, rollout, row.iou, trajectory.target)


def _encoded(row: Row, trajectory: Trajectory) -> str | None:
    """The picture as base64 JPEG; None where the image is gone."""
    try:
        picture = draw(row, trajectory)
    except InputError:
        return None
    file = io.BytesIO()
    PilImage.fromarray(picture).save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode("ascii")


def number(estimate: dict[str, Any], digits: int = 3) -> str:
    """`0.812 [0.790, 0.833]`."""
    if estimate["value"] is None:
        return "-"
    value = f"{estimate['value']:.{digits}f}"
    return (
        value if estimate["low"] is None else f"{value} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"
    )


def _lines(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The per-click plot: 440 x 220 from (50, 20), IoU 1 at the top."""
    step = 440 / max(len(table) - 1, 1)
    lines = []
    for name, colour in _COLOURS.items():
        points = [(50 + step * line["clicks"], 20 + 220 * (1 - line[name]["value"])) for line in table if name in line]
        if points:
            lines.append({"name": name, "colour": colour, "points": points})
    return lines


def _dots(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """The scatter plot of predicted (right) and true IoU (up): 240 x 240 from (50, 20)."""
    pairs = np.array([(row.predicted_iou, row.iou) for row in rows if row.predicted_iou is not None]).reshape(-1, 2)
    if len(pairs) > _DOTS:
        pairs = pairs[np.random.default_rng(0).choice(len(pairs), _DOTS, replace=False)]
    return [(50 + 240 * float(x), 20 + 240 * (1 - float(y))) for x, y in pairs]
