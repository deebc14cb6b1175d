"""Annotated objects as evidence: what the embedded policy takes from them, without training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from ..embedded.evidence import mean_feature, weighted_mean
from ..embedded.words import normalise, singulars
from ..hlmat.arrays import Mask
from .embedded_net import PolicyNet
from .embedded_sight import Seen

__all__ = ["Shown", "example_name", "look_at", "look_up", "with_means"]

T = TypeVar("T")
Shown = tuple[Tensor, float]
"""The mean feature of the objects of a label in one image, float32 (features,), and its weight beside others."""


def example_name(prompt: str) -> str:
    """Under which name examples of a label are kept."""
    return normalise(prompt) or prompt.strip()


def look_up(prompt: str, known: Mapping[str, T]) -> T | None:
    """What is known about a label, by its own name or its singular; never by what it means."""
    return next((known[form] for form in singulars(example_name(prompt)) if form in known), None)


def look_at(seen: Seen, masks: Sequence[Mask]) -> Shown | None:
    """What the objects of one label look like in an image; None where the masks are empty.

    Args:
        seen: The image.
        masks: bool (H, W) each.
    """
    if not any(mask.any() for mask in masks):
        return None
    covered = np.any(masks, 0)
    height, width = seen.sensed.features.shape[-2:]
    cover = cv2.resize(covered.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    with torch.inference_mode():
        return mean_feature(seen.sensed.features, torch.from_numpy(np.asarray(cover, np.float32)))


def with_means(net: PolicyNet, means: Mapping[str, Sequence[Shown]]) -> PolicyNet:
    """A network that knows these examples as well; all weights are shared with `net`.

    Args:
        net: Examples that it has under other names stay.
        means: For each name what its objects look like in one image after the other.
    """
    kept = [row for row, (name, _) in enumerate(net.config.examples) if name not in means]
    added = {name: found for name, found in means.items() if found}
    other = copy.copy(net)  # shares modules and parameters
    other._buffers = dict(net._buffers)
    rows = [net.examples[row] for row in kept] + [weighted_mean(found) for found in added.values()]
    other.examples = torch.stack(rows) if rows else net.examples[:0]
    known = [net.config.examples[row] for row in kept] + [(name, len(found)) for name, found in added.items()]
    other.config = replace(net.config, examples=tuple(known))
    return other
