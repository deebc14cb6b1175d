"""What a training run leaves behind: weights as they ship, curves, a model card."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from ..segmenters.embedded_net import SegmenterNet

__all__ = ["draw_curves", "save_weights", "write_card"]


def save_weights(net: SegmenterNet, path: Path) -> None:
    """Fold and write `net` as float16 safetensors with its sizes in the metadata; `net` itself stays as it is."""
    folded = copy.deepcopy(net)
    folded.fold()
    state = {k: v.detach().to(torch.float16).contiguous() for k, v in folded.state_dict().items()}
    temporary = path.with_suffix(".part")
    save_file(state, temporary, {"config": json.dumps(asdict(net.config)), "kind": "segagent-segmenter"})
    temporary.replace(path)


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


def write_card(
    out: Path,
    weights: Path,
    data: Sequence[Path],
    settings: dict[str, Any],
    sizes: dict[str, Any],
    figures: dict[str, Any],
    step: int,
    seconds: float,
    *,
    title: str,
    notes: str,
    use: str,
) -> None:
    """Write `MODEL_CARD.md`: what the weights are, what they were trained on, how and how well, their hash."""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    measured = figures or {"none": "the run was too short"}
    metrics, parameters = (
        "\n".join(f"* {key}: {value}" for key, value in rows.items()) for rows in (measured, {**sizes, **settings})
    )
    (out / "MODEL_CARD.md").write_text(
        f"# {title}\n\nFile: `{weights.name}`, {weights.stat().st_size / 1e6:.1f} MB, float16 "
        f"safetensors\nSHA-256: `{digest}`\nTrained: {step} steps, {seconds / 60:.1f} minutes\n\n## Data\n\n"
        + "".join(f"* {d.resolve().name}\n" for d in data)
        + f"\n{notes}\n## Metrics\n\n{metrics}\n\n## Settings\n\n{parameters}\n\n## Use and limits\n\n{use}"
    )
