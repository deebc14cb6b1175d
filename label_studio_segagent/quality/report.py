"""The quality report of a project as one HTML file: histogram, worst regions as pictures, annotators, labels."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image as PilImage

from ..datasets.image_file import read_image
from ..hlmat.arrays import Image, mask_box
from ..hlmat.trajectory import decode_mask
from ..pictures import result_panel
from .export import Verdict

__all__ = ["calibration_curve", "write_report"]

_WORST = 24
_BINS = 20


def write_report(verdicts: Sequence[Verdict], path: Path, title: str, least: float) -> None:
    """Write the report.

    Args:
        verdicts: On every region of the project.
        path: The HTML file; it needs no other files.
        title: Of the project.
        least: Smallest score of a region that is kept.
    """
    scored = [v for v in verdicts if v.score is not None]
    counts, _ = np.histogram([v.score or 0.0 for v in scored], bins=_BINS, range=(0, 1))
    most = max(int(counts.max(initial=0)), 1)
    bars = [
        {"x": 40 + 28 * i, "height": 130 * int(n) / most, "count": int(n), "low": i / _BINS < least}
        for i, n in enumerate(counts)
    ]
    worst = sorted((v for v in scored if not v.kept), key=lambda v: v.score or 0.0)[:_WORST]
    environment = Environment(loader=PackageLoader("label_studio_segagent.quality"), autoescape=True)
    page = environment.get_template("report.html").render(
        title=title, least=least, bars=bars, total=len(verdicts), kept=sum(v.kept for v in verdicts),
        worst=[{"verdict": v, "picture": _picture(v)} for v in worst],
        annotators=_table(scored, lambda v: v.record.meta.get("by")), labels=_table(scored, lambda v: v.record.prompt),
        issues=_issues(scored),
    )  # fmt: skip
    path.write_text(page, "utf-8", "backslashreplace")


def calibration_curve(cloud: np.ndarray[Any, Any], fitted: Callable[[Any], Any]) -> Image:
    """A picture of true IoU against expected IoU: the masks, the diagonal, and the calibration; RGB uint8.

    Args:
        cloud: (n, 2): shipped expectation and true IoU.
        fitted: The calibration.
    """
    side, edge = 480, 50
    picture = np.full((side + 2 * edge, side + 2 * edge, 3), 255, np.uint8)

    def place(x: float, y: float) -> tuple[int, int]:
        return round(edge + x * side), round(edge + (1 - y) * side)

    cv2.rectangle(picture, place(0, 0), place(1, 1), (120, 120, 120), 1)
    cv2.line(picture, place(0, 0), place(1, 1), (180, 180, 180), 1, cv2.LINE_AA)
    for x, y in cloud:
        cv2.circle(picture, place(float(x), float(y)), 3, (150, 180, 230), -1, cv2.LINE_AA)
    xs = np.linspace(0, 1, 101)
    line = np.array([place(float(x), float(y)) for x, y in zip(xs, fitted(xs), strict=True)], np.int32)
    cv2.polylines(picture, [line], False, (200, 80, 20), 2, cv2.LINE_AA)
    for value in (0.0, 0.5, 1.0):
        x, y = place(value, 0)
        cv2.putText(picture, f"{value:g}", (x - 10, y + 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        x, y = place(0, value)
        cv2.putText(picture, f"{value:g}", (x - 35, y + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    text = "true IoU (up) of masks by expected IoU (right); line: calibration"
    cv2.putText(picture, text, (edge, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return picture


def _picture(verdict: Verdict) -> str:
    """The region on its picture, with the box of its surest issue, cut to its surroundings, as base64 JPEG."""
    image, mask = read_image(verdict.record.image).copy(), decode_mask(verdict.record.mask)
    region = str(verdict.record.meta["region"])
    issues = [i for i in verdict.finding.issues if region in i["regions"]] if verdict.finding else []
    for issue in issues[:1]:
        x0, y0, x1, y1 = (round(v) for v in issue["box"])
        cv2.rectangle(image, (x0, y0), (x1, y1), (232, 113, 10), max(2, image.shape[1] // 200))
    box = mask_box(mask) or (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
    w, h = box[2] - box[0], box[3] - box[1]
    margin = 0.4 * max(w, h) + 10
    x0, y0 = max(0, int(box[0] - margin)), max(0, int(box[1] - margin))
    x1, y1 = int(box[2] + margin), int(box[3] + margin)
    panel = result_panel(image[y0:y1, x0:x1], [mask[y0:y1, x0:x1]], verdict.record.prompt, f"{verdict.score:.2f}")
    file = io.BytesIO()
    PilImage.fromarray(panel).save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _table(verdicts: Sequence[Verdict], key: Callable[[Verdict], Any]) -> list[Mapping[str, Any]]:
    groups: dict[Any, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[key(verdict)].append(verdict)
    rows = [
        {
            "name": name, "regions": len(group), "mean": float(np.mean([v.score for v in group])),
            "rejected": sum(not v.kept for v in group),
        }
        for name, group in groups.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: float(row["mean"]))


def _issues(verdicts: Sequence[Verdict]) -> list[tuple[str, int]]:
    counts: dict[str, int] = defaultdict(int)
    for finding in {id(v.finding): v.finding for v in verdicts if v.finding}.values():
        for issue in finding.issues:
            counts[issue["name"]] += 1
    return sorted(counts.items(), key=lambda item: -item[1])
