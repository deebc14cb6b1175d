"""What a training run leaves behind: weights as they ship, and a model card."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..segmenters.embedded_net import SegmenterNet

__all__ = ["save_weights", "write_card"]


def save_weights(net: SegmenterNet, path: Path, eyes: str = "") -> None:
    """Fold and write `net` as float16 safetensors with its sizes in the metadata; `net` itself stays as it is.

    Args:
        net: The network.
        path: The file; always whole.
        eyes: Version of the segmenter whose encoder it has, where that is not its own (`EmbeddedSegmenter.eyes`).
    """
    folded = copy.deepcopy(net)
    folded.fold()
    state = {k: v.detach().to(torch.float16).contiguous() for k, v in folded.state_dict().items()}
    temporary = path.with_suffix(".part")
    metadata = {"config": json.dumps(asdict(net.config)), "kind": "segagent-segmenter", "eyes": eyes}
    save_file(state, temporary, metadata)
    temporary.replace(path)


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
