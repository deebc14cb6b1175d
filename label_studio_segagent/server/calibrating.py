"""`segagent qc calibrate`: what quality scores are worth on the images of a project."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..datasets.image_file import read_image
from ..errors import ConfigError
from ..hlmat.arrays import Image, Mask
from ..hlmat.metrics import iou
from ..hlmat.trajectory import decode_mask
from ..quality.calibration import Calibration, fit_calibration, shipped
from ..quality.evidence import gather
from ..quality.project import Annotated, FindingStore
from ..training.mask_corruption import corrupt_mask
from .checking import Progress, opened_project, read_annotated
from .models import project_folder
from .settings import Settings

__all__ = ["calibrate_project"]

_ENOUGH = 30
"""Trusted masks that a project needs for a calibration of its own."""
_MOST = 60
_COPIES = 4
_TRUSTED = 0.7
"""Expected IoU from which a mask is trusted where no ground truth says which ones are."""


def calibrate_project(settings: Settings, project: int, progress: Progress) -> tuple[Calibration, np.ndarray[Any, Any]]:
    """Make scores mean the expected IoU on this project's images: from corrupted copies of masks that are trusted.

    Trusted are those of ground-truth annotations; without any, those that score well.

    Returns:
        The calibration, kept for the next check, and (n, 2): shipped expectation and true IoU of each mask.

    Raises:
        ApiError: Label Studio does not answer.
        ConfigError: There is no Label Studio to ask, or there are too few masks to trust.
    """
    folder = project_folder(settings, project)
    with opened_project(settings, project) as (client, loader, agent):
        progress(0.0, "reading annotations")
        annotated = read_annotated(client, loader, project, folder, lambda t, r: None)
        trusted = _trusted(annotated, FindingStore(folder / "quality.jsonl"))
        rng, rows = np.random.default_rng(0), []
        for number, one in enumerate(trusted):
            image = read_image(one.image)
            items, true = _copies(one, image, rng)
            expected = shipped()([judged.evidence for judged in gather(agent, image, items)])
            rows += list(zip(expected, true, strict=True))
            progress((number + 1) / len(trusted), f"judging corrupted copies of {len(trusted)} trusted annotations")
    if not rows:
        raise ConfigError("none of the masks to trust has a pixel and its picture's size")
    cloud = np.array(rows)
    calibration = fit_calibration(cloud[:, 0], cloud[:, 1])
    calibration.save(folder / "calibration.json")
    return calibration, cloud


def _copies(
    one: Annotated, image: Image, rng: np.random.Generator
) -> tuple[list[tuple[str, Mask]], list[float]]:  # fmt: skip
    """The masks of an annotation and corrupted copies of them, each with its label; their true IoUs.

    Empty masks, and those of a picture that was another one then, are left out.
    """
    decoded = [(record.prompt, decode_mask(record.mask)) for record in one.records]
    whole = [(prompt, mask) for prompt, mask in decoded if mask.any() and mask.shape == image.shape[:2]]
    items, true = [], []
    for prompt, mask in whole:
        others = [other for _, other in whole if other is not mask][:4]
        for copy in [mask, *(corrupt_mask(mask, others, rng) for _ in range(_COPIES))]:
            if copy.any():
                items.append((prompt, copy))
                true.append(iou(copy, mask))
    return items, true


def _trusted(annotated: list[Annotated], store: FindingStore) -> list[Annotated]:
    """Annotations with masks to trust, at most so many masks in all."""
    good = [one for one in annotated if one.meta.get("ground_truth") and one.records]
    if not good:
        scores = {key: finding.score for key, finding in store.read().items()}
        good = [
            one for one in annotated
            if one.records and scores.get((one.meta["annotation"], str(one.image)), 0.0) >= _TRUSTED
        ]  # fmt: skip
    chosen, count = [], 0
    for one in good:
        if count < _MOST:
            chosen.append(one)
            count += len(one.records)
    if count < _ENOUGH:
        raise ConfigError(
            f"there are {count} masks to trust and {_ENOUGH} are needed: mark good annotations as ground truth, or run "
            "`segagent qc run` first, so that those that score well can be trusted"
        )
    return chosen
