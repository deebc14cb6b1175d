"""The demo: pre-annotate the photographs that come with the package, measure, and draw what happened."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image as PilImage

from .agent.agent import SegAgent
from .agent.rollout import Rollout
from .datasets.coco import read_coco
from .datasets.coco_writer import CocoWriter, keep_picture
from .hlmat.arrays import Image, Mask
from .hlmat.trajectory import encode_mask, write_trajectories
from .labelstudio.config import LabelConfig
from .labelstudio.regions import write_region
from .pictures import result_panel, sheet, trajectory_strip
from .training.evaluation import pair_masks

__all__ = ["DEMO_DATA", "Photo", "demo_config", "demo_photos", "match", "run_demo", "write_results"]

DEMO_DATA = Path(str(files(__package__))) / "demo_data"


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph and what is on it.

    Attributes:
        path: The file.
        image: RGB uint8 (H, W, 3).
        masks: For each label the masks of its instances, bool (H, W); empty lists where they are not known.
    """

    path: Path
    image: Image
    masks: dict[str, list[Mask]]


def demo_photos() -> list[Photo]:
    """The photographs that come with the package, with their hand-drawn masks."""
    photos: dict[str, Photo] = {}
    for sample in read_coco(DEMO_DATA / "demo.json"):
        name = Path(sample.path).name
        photo = photos.setdefault(name, Photo(DEMO_DATA / "images" / name, sample.image, {}))
        photo.masks.setdefault(sample.prompt, []).append(sample.mask)
    return list(photos.values())


def demo_config(labels: Sequence[str]) -> str:
    """A labelling config for brush masks with smart key points and rectangles."""
    items = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in labels)
    return f"""<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="brush" toName="image" smart="true">
{items}
  </BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true" smartOnly="true">
{items}
  </KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true" smartOnly="true">
{items}
  </RectangleLabels>
</View>"""


def match(rollouts: Sequence[Rollout], masks: Sequence[Mask]) -> list[tuple[int, float]]:
    """For each true mask (index or -1, IoU) of the rollout that covers it; each rollout once, largest IoU first."""
    return pair_masks([rollout.mask for rollout in rollouts], masks)


def run_demo(
    agent: SegAgent,
    photos: Sequence[Photo],
    out: Path,
    progress: Callable[[Photo], None] = lambda _: None,
) -> list[tuple[str, str, float, float]]:
    """Segment every labelled object of the photographs and write what `write_results` writes.

    Args:
        agent: Segments.
        photos: Photographs with the labels to look for.
        out: Folder to write to; made when missing.
        progress: Called after each photograph.

    Returns:
        (photograph, label, true IoU, predicted IoU) for each object that has a true mask.
    """
    found: list[tuple[Photo, str, list[Rollout]]] = []
    rows = []
    for photo in photos:
        for label, rollouts in zip(
            photo.masks, agent.segment_all_batch([(photo.image, label) for label in photo.masks]), strict=True
        ):
            found.append((photo, label, rollouts))
            for index, value in match(rollouts, photo.masks[label]):
                rows.append((photo.path.name, label, value, rollouts[index].predicted_iou if index >= 0 else 0.0))
        progress(photo)
    write_results(out, found, agent.version)
    return rows


def write_results(out: Path, found: Sequence[tuple[Photo, str, list[Rollout]]], version: str) -> None:
    """Write strips, masks, trajectories, Label Studio tasks with predictions, and a COCO file into a folder.

    `sheet.png`, `strips/<photo>-<label>-<n>.png` (click by click), `masks/…png`, `trajectories.jsonl`,
    `label_studio.json` (tasks to import, with predictions), `label_config.xml`, and `coco.json` with `images/`, where
    photographs of the same name get a number: `load_dataset` reads the folder.

    Args:
        out: The folder; made when missing. Files of an earlier run with the same names are replaced.
        found: For each photograph and label the rollouts.
        version: The model version.
    """
    (out / "strips").mkdir(parents=True, exist_ok=True)
    (out / "masks").mkdir(exist_ok=True)
    (out / "trajectories.jsonl").unlink(missing_ok=True)
    labels = list(dict.fromkeys(label for _, label, _ in found))
    config = LabelConfig.parse(demo_config(labels))
    outputs = {label.name: (control, label) for control, label in config.outputs("image", {})}
    regions: dict[Path, list[dict[str, Any]]] = defaultdict(list)
    scores: dict[Path, list[float]] = defaultdict(list)
    coco = CocoWriter(out, labels)
    names = _keep_photographs([photo.path for photo, _, _ in found], out)
    used: set[str] = set()
    for photo, label, rollouts in found:
        image = coco.add_image(names[photo.path], (photo.image.shape[0], photo.image.shape[1]))
        truth = match(rollouts, photo.masks[label])
        for number, rollout in enumerate(rollouts):
            stem = _unused(f"{photo.path.stem}-{_file_name(label)}-{number + 1}", used)
            true_iou = next((value for index, value in truth if index == number), 0.0) if truth else None
            strip = trajectory_strip(photo.image, rollout, true_iou)
            PilImage.fromarray(strip).save(out / "strips" / f"{stem}.png")
            PilImage.fromarray(rollout.mask.astype(np.uint8) * 255).save(out / "masks" / f"{stem}.png")
            kept = out / "images" / names[photo.path]
            rollout.trajectory.image = str(kept.resolve()) if kept.is_file() else kept.name
            regions[photo.path] += write_region(rollout.mask, *outputs[label], rollout.predicted_iou)
            scores[photo.path].append(rollout.predicted_iou)
            coco.add_object(image, label, encode_mask(rollout.mask), score=round(rollout.predicted_iou, 4))
        write_trajectories(out / "trajectories.jsonl", [rollout.trajectory for rollout in rollouts])
    _write_sheet(out / "sheet.png", found)
    tasks = [
        {
            "data": {"image": name},
            "predictions": [
                {
                    "model_version": version,
                    "score": round(float(np.mean(scores[path])), 4) if scores[path] else 0.0,
                    "result": regions[path],
                }
            ],
        }
        for path, name in names.items()
    ]
    (out / "label_studio.json").write_text(json.dumps(tasks, ensure_ascii=False), "utf-8", "backslashreplace")
    (out / "label_config.xml").write_text(demo_config(labels), "utf-8", "backslashreplace")
    coco.write("coco.json")


def _keep_photographs(paths: Sequence[Path], out: Path) -> dict[Path, str]:
    """Copy photographs into `images/`, each under a name that no other one has; returns the names."""
    folder = (out / "images").resolve()
    names = {path: path.name for path in paths if path.resolve().parent == folder}  # they are there already
    used = {name.casefold() for name in names.values()}
    for path in paths:
        if path in names:
            continue
        number, name = 1, path.name
        while name.casefold() in used:
            number += 1
            name = f"{path.stem}-{number}{path.suffix}"
        used.add(name.casefold())
        names[path] = name
        if path.is_file():
            (folder / name).unlink(missing_ok=True)  # of an earlier run
            keep_picture(path, out, name)
    return {path: names[path] for path in dict.fromkeys(paths)}


def _write_sheet(path: Path, found: Sequence[tuple[Photo, str, list[Rollout]]]) -> None:
    """One picture a photograph and label, with the masks of all instances."""
    panels = []
    for photo, label, rollouts in found:
        ratings = ", ".join(f"{rollout.predicted_iou:.2f}" for rollout in rollouts) or "nothing found"
        panels.append(result_panel(photo.image, [rollout.mask for rollout in rollouts], f'"{label}"', ratings))
    PilImage.fromarray(sheet(panels)).save(path)


def _unused(stem: str, used: set[str]) -> str:
    """The stem, or one with a number where another photograph of that name has it already."""
    number, name = 1, stem
    while name in used:
        number += 1
        name = f"{stem}-{number}"
    used.add(name)
    return name


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label)[:60]
