"""SimpleClick (arXiv 2210.11006) from its published checkpoints, `cocolvis_vit_{base,large,huge}.pth`.

There is no part of the network that sees the image alone: the clicks go in with it, so every click is a full pass, and
the state of an image is the resized image.

What differs from the published tool: the whole image is looked at for every click (no zooming in on the object), once
(no mirrored second look), and it is resized with antialiasing. The network takes no boxes: a box is a rectangle as the
earlier mask, with a positive click at its centre where there is none. It rates nothing either: the score is what its
probabilities say of the mask's IoU.

No published checkpoint was at hand when this was written. Names and shapes follow the published code and are checked
at loading; that real weights give the published accuracy is not verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from typing_extensions import override

from ..devices import best_device, place
from ..errors import ConfigError, InputError
from ..hlmat.actions import Click
from ..hlmat.arrays import Box, Image, check_image
from ..weights import UNREADABLE, hash_weights
from .base import ImageState, Query, Segmentation, Segmenter
from .sam_frame import IMAGENET, Frame
from .simpleclick_net import SIDE, SimpleClickNet

__all__ = ["SimpleClickSegmenter"]

Float = npt.NDArray[np.float32]
_RADIUS = 5
"""Pixels of the network around a click that are marked."""
_AT_ONCE = 8
"""Queries in one pass; bounds its memory."""
_ABSENT = -10.0
"""The logit of "surely not the object"."""


@dataclass(frozen=True, slots=True)
class _Resized:
    """What is kept of an image: where it lies in the square (all of it), and the square, uint8 (SIDE, SIDE, 3)."""

    frame: Frame
    pixels: Image


class SimpleClickSegmenter(Segmenter):
    """Click segmentation with a plain vision transformer, for example `simpleclick:cocolvis_vit_large.pth`.

    Args:
        path: The checkpoint.
        device: The best one by default; bfloat16 on CUDA.

    Raises:
        ConfigError: The file cannot be read or holds something else.
    """

    def __init__(self, path: str = "", device: torch.device | None = None) -> None:
        if not path:
            raise ConfigError("'simpleclick' needs a checkpoint, as in 'simpleclick:/models/cocolvis_vit_base.pth'")
        self.net = _load(Path(path))
        self.device = device or best_device()
        digest = hash_weights(self.net, self.net.heads, self.device.type)
        place(self.net, self.device, f"'simpleclick:{path}'")
        self.version = f"simpleclick-{digest}"

    @override
    def set_image(self, image: Image) -> ImageState:
        height, width = check_image(image).shape[:2]
        frame = Frame.fill((height, width), SIDE)
        return ImageState(image, _Resized(frame, frame.resize(image)))

    @override
    def predict(
        self,
        state: ImageState,
        clicks: Sequence[Click],
        *,
        box: Box | None = None,
        prior: npt.NDArray[Any] | None = None,
    ) -> Segmentation:
        return self.predict_batch([Query(state, clicks, box, prior)])[0]

    @override
    def predict_batch(self, queries: Sequence[Query]) -> list[Segmentation]:
        answers = [_nothing(query.state) for query in queries]
        hints = [_hints(query) for query in queries]
        asked = [i for i, hint in enumerate(hints) if hint is not None]
        for start in range(0, len(asked), _AT_ONCE):
            chunk = asked[start : start + _AT_ONCE]
            pixels = np.stack([queries[i].state.features.pixels for i in chunk])
            logits = self._run(pixels, np.stack([hint for i in chunk if (hint := hints[i]) is not None]))
            for i, answer in zip(chunk, logits, strict=True):
                whole = queries[i].state.features.frame.restore(answer)
                answers[i] = Segmentation(whole > 0, _expected_iou(answer), answer)
        return answers

    def _run(self, pixels: Image, hints: Float) -> Float:
        """Logits, float32 (B, SIDE, SIDE)."""
        mean, std = (torch.tensor(v, device=self.device).reshape(1, 3, 1, 1) * 255 for v in IMAGENET)
        images = (torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() - mean) / std
        fast = self.device.type == "cuda"
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=fast):
            logits: Float = self.net(images, torch.from_numpy(hints).to(self.device)).float().cpu().numpy()
        return logits


def _hints(query: Query) -> Float | None:
    """The three maps beside the image, float32 (3, SIDE, SIDE), or None when nothing is asked."""
    if not isinstance(query.state.features, _Resized):
        raise InputError("the image state was made by another segmenter; call set_image of this one")
    frame, clicks, prior = query.state.features.frame, query.clicks, _prior(query)
    if query.box is not None and not any(click.positive for click in clicks):
        x0, y0, x1, y1 = query.box
        clicks = [*clicks, Click((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2)]
    if not clicks and prior is None:
        return None
    hints = np.zeros((3, SIDE, SIDE), np.float32)
    if prior is not None:
        hints[0] = _sigmoid(prior)
    rows, columns = np.ogrid[:SIDE, :SIDE]
    for click, (x, y) in zip(clicks, frame.points(clicks), strict=True):
        hints[1 if click.positive else 2][(rows - y) ** 2 + (columns - x) ** 2 <= _RADIUS**2] = 1
    return hints


def _prior(query: Query) -> Float | None:
    """The logits of the earlier mask, float32 (SIDE, SIDE): the prior, else the box. An empty mask says nothing."""
    frame: Frame = query.state.features.frame
    prior = query.prior
    if prior is None:
        if query.box is None:
            return None
        x0, y0, x1, y1 = (round(v) for v in query.box)
        prior = np.zeros(frame.size, bool)
        prior[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return frame.prior_prompt(prior, SIDE)


def _expected_iou(logits: Float) -> float:
    """The mask's IoU with an object that has each pixel with the probability the network gives it."""
    chances = _sigmoid(logits)
    inside = logits > 0
    union = float(inside.sum() + chances[~inside].sum())
    return float(chances[inside].sum()) / union if union else 0.0


def _sigmoid(logits: Float) -> Float:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))), np.float32)


def _nothing(state: ImageState) -> Segmentation:
    return Segmentation(np.zeros(state.size, bool), 0.0, np.full((SIDE, SIDE), _ABSENT, np.float32))


class _Inert:
    """Stands for the classes of the published code that its checkpoints mention beside the weights."""

    def __init__(self, *args: object) -> None:
        pass


def _load(path: Path) -> SimpleClickNet:
    """Read a checkpoint without running any code from it."""
    if not path.is_file():
        raise ConfigError(f"there is no checkpoint {path}; download one from the SimpleClick project")
    try:
        # The configuration in the published files holds an object of the training code (a loss); nothing needs it.
        mentioned = [n for n in get_unsafe_globals_in_checkpoint(path) if n.startswith("isegm.")]
        with safe_globals([(_Inert, name) for name in mentioned]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["state_dict"] if "state_dict" in content else content
        return SimpleClickNet({name: tensor.float() for name, tensor in state.items()}, _heads(content))
    except UNREADABLE as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise ConfigError(f"{path} is no SimpleClick checkpoint: {reason}") from error


def _heads(content: dict[str, Any]) -> int | None:
    """The number of attention heads in the configuration that published files hold, or None."""
    try:
        return int(content["config"]["params"]["backbone_params"]["value"]["num_heads"])
    except (KeyError, TypeError, ValueError):
        return None
