"""The embedded click segmenter: small weights of our own, made for CPUs.

The whole image is encoded once. A click is first answered on that coarse view; then the surroundings of the object are
looked at again, larger (cf. FocalClick, arXiv 2204.02574). The zoomed view stays in the image's state, so that further
clicks on the same object cost two passes of the decoder and none of the encoder.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from ..errors import InputError
from ..hlmat.actions import Click
from ..hlmat.arrays import Box, Image, Mask, check_image
from ..parallel import on_cores
from .base import ImageState, Query, Segmentation, Segmenter
from .embedded_decoder import Prompt
from .embedded_views import View, object_box, resize_map, without_strays, zoom_window
from .embedded_weights import DEFAULT_WEIGHTS, load_net

__all__ = ["EmbeddedSegmenter", "ViewSettings"]

Float = npt.NDArray[np.float32]
_EMPTY = -10.0  # the logit of "surely not the object"


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """What the segmenter looks at, and how closely.

    Attributes:
        coarse: Long side of the crop that shows the whole image.
        zoom: Long side of the crop that shows the object.
        expand: Side of the zoomed window over the object's.
        least: Smallest side of the zoomed window, in pixels of the image.
        slack: A zoomed window is used again while it is at most this many times as large as a fresh one would be.
        margin: ... and while it shows the object with this margin around it, relative to its sides.
        logits: Long side of the logits handed out, at most.
        views: Zoomed windows kept per image.
        coarse_clicks: The whole image is looked at for the first so many clicks; later on only where no zoomed window
            shows the prior and the clicks.
        mirror: Look at the zoomed window mirrored as well, and average: a little better, a little slower.
    """

    coarse: int = 320
    zoom: int = 320
    expand: float = 1.4
    least: float = 48.0
    slack: float = 2.0
    margin: float = 0.08
    logits: int = 1024
    views: int = 4
    coarse_clicks: int = 3
    mirror: bool = True


@dataclass(slots=True)
class _Features:
    """What `set_image` computes: the coarse view, and the zoomed ones seen so far (newest last)."""

    version: str
    coarse: View
    maps: list[torch.Tensor]
    zoomed: OrderedDict[View, list[torch.Tensor]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class EmbeddedSegmenter(Segmenter):
    """Click segmentation with the weights that ship with this package.

    Args:
        weights: A safetensors file written by `segagent train-embedded segmenter`; by default the shipped one.
        settings: Sizes of the views.

    Attributes:
        eyes: Version of the segmenter whose encoder this one has: its own, but for a fine-tuned one, of which only the
            decoder was trained. To what looks through the encoder, all with the same eyes are the same.

    Raises:
        ConfigError: The weights cannot be read.
    """

    def __init__(self, weights: str | Path | None = None, settings: ViewSettings | None = None) -> None:
        path = Path(weights) if weights else DEFAULT_WEIGHTS
        self.settings = settings or ViewSettings()
        self.net, eyes = load_net(path)
        digest = hashlib.sha256(path.read_bytes())
        digest.update(json.dumps(asdict(self.settings), sort_keys=True).encode())
        self.version = f"embedded-{digest.hexdigest()[:16]}"
        self.eyes = eyes if eyes and self.settings == ViewSettings() else self.version

    def set_image(self, image: Image) -> ImageState:
        """Encode the whole image; see `Segmenter.set_image`."""
        height, width = check_image(image).shape[:2]
        view = View.of((0, 0, width, height), self.settings.coarse)
        return ImageState(image, _Features(self.version, view, self._encode(image, view)))

    def whole_maps(self, image: Image, state: ImageState | None = None) -> list[torch.Tensor]:
        """What the encoder says about a whole image: maps (1, c, h, w) at strides 8 and 16, and embeddings at 8.

        Args:
            image: RGB uint8 (H, W, 3).
            state: Of this image; when this segmenter made it, nothing is computed.
        """
        if state is None or not self._made(state):
            state = self.set_image(image)
        maps: list[torch.Tensor] = state.features.maps[1:4]
        return maps

    def _made(self, state: ImageState) -> bool:
        return isinstance(state.features, _Features) and state.features.version == self.version

    def predict(
        self,
        state: ImageState,
        clicks: Sequence[Click],
        *,
        box: Box | None = None,
        prior: npt.NDArray[Any] | None = None,
    ) -> Segmentation:
        """Segment one object; see `Segmenter.predict`."""
        if not self._made(state):
            raise InputError("the image state was made by another segmenter; call set_image of this one")
        clicks = [_inside(c, state.size) for c in clicks]
        before = None if prior is None else _probability(prior, state.size)
        if not clicks and box is None and before is None:
            return self._compose(state, state.features.coarse, None, 0.0)
        zoomed = None
        if before is not None and len(clicks) > self.settings.coarse_clicks:
            zoomed = self._zoom(state, self._object(before > 0.5, clicks, box, state.size), fresh=False)
        if zoomed is None:
            coarse = state.features.coarse
            logits, score = self._decode(coarse, state.features.maps, state.size, clicks, box, before)
            zoomed = self._zoom(state, self._object(logits > 0, clicks, box, state.size))
            if zoomed is None:
                return self._compose(state, coarse, logits, score)
            if before is None:
                before = _sigmoid(resize_map(logits, *coarse_size(state.size, self.settings.logits)))
        view, maps = zoomed
        logits, score = self._decode(view, maps, state.size, clicks, box, before)
        if box is not None:
            logits = without_strays(logits, view.box(box), view.points(clicks))
        return self._compose(state, view, logits, score)

    @override
    def predict_batch(self, queries: Sequence[Query]) -> list[Segmentation]:
        return on_cores(lambda q: self.predict(q.state, q.clicks, box=q.box, prior=q.prior), queries)

    @override
    def fresh(self, state: ImageState) -> ImageState:
        """Without the zoomed views, which later clicks look at again where they fit."""
        if not self._made(state):
            raise InputError("the image state was made by another segmenter; call set_image of this one")
        features = state.features
        return ImageState(state.image, _Features(features.version, features.coarse, features.maps))

    @override
    def state_bytes(self, state: ImageState) -> int:
        """The image, the coarse maps, and all the zoomed ones that clicks may add."""
        settings, features = self.settings, state.features
        coarse = sum(m.nbytes for m in features.maps)
        side = View.of((0, 0, settings.zoom, settings.zoom), settings.zoom).width
        zoomed = coarse * side**2 // (features.coarse.height * features.coarse.width) * (2 if settings.mirror else 1)
        return int(state.image.nbytes + coarse + settings.views * zoomed)

    @override
    def describe(self, state: ImageState) -> npt.NDArray[np.float32]:
        """Means and maxima of the coarse view's features at stride 16."""
        maps = self.whole_maps(state.image, state)[1][0]
        return torch.cat([maps.mean((1, 2)), maps.amax((1, 2))]).numpy()

    def _encode(self, image: Image, view: View, mirror: bool = False) -> list[torch.Tensor]:
        pixels = torch.from_numpy(view.crop(image)).permute(2, 0, 1)[None].float()
        if mirror:
            pixels = torch.cat([pixels, pixels.flip(3)])
        with torch.inference_mode():
            return self.net.encode(pixels)

    def _decode(
        self, view: View, maps: list[torch.Tensor], size: tuple[int, int], clicks: Sequence[Click], box: Box | None,
        prior: Float | None,
    ) -> tuple[Float, float]:  # fmt: skip
        """The logits (h / 2, w / 2) of a view and the predicted IoU."""
        prompt = _prompt(view, size, clicks, box, prior)
        if maps[0].shape[0] == 2:
            prompt = prompt.with_mirrored(view.width)
        with torch.inference_mode():
            logits, quality = self.net.decode(maps, prompt)
            if len(logits) == 2:
                logits = (logits[:1] + logits[1:].flip(3)) / 2
        return logits[0, 0].numpy(), float(torch.sigmoid(quality).mean())

    def _object(self, mask: Mask, clicks: Sequence[Click], box: Box | None, size: tuple[int, int]) -> Box | None:
        """The box (pixels of the image) around a mask of any resolution, the positive clicks and the user's box."""
        height, width = size
        sx, sy = mask.shape[1] / width, mask.shape[0] / height
        positives = [(c.x, c.y) for c in clicks if c.positive]
        found = object_box(mask, [((x + 0.5) * sx, (y + 0.5) * sy) for x, y in positives])
        boxes = [] if found is None else [(found[0] / sx, found[1] / sy, found[2] / sx, found[3] / sy)]
        boxes += [(x, y, x + 1, y + 1) for x, y in positives]
        if box is not None:
            boxes.append((max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))))
        if not boxes:
            return None
        low, high = np.min(boxes, 0), np.max(boxes, 0)
        return float(low[0]), float(low[1]), float(high[2]), float(high[3])

    def _zoom(self, state: ImageState, found: Box | None, fresh: bool = True) -> tuple[View, list[torch.Tensor]] | None:
        """A view of the object: one that the state has, if it fits, else (if `fresh`) a new one."""
        if found is None:
            return None
        settings, features = self.settings, state.features
        height, width = state.size
        window = zoom_window(found, state.size, settings.expand, settings.least)
        area = (window[2] - window[0]) * (window[3] - window[1])
        mx, my = settings.margin * (found[2] - found[0]), settings.margin * (found[3] - found[1])
        needed = (max(found[0] - mx, 0.0), max(found[1] - my, 0.0),
                  min(found[2] + mx, float(width)), min(found[3] + my, float(height)))  # fmt: skip
        with features.lock:
            for view in reversed(features.zoomed):
                x0, y0, x1, y1 = view.window
                if view.contains(needed) and (x1 - x0) * (y1 - y0) <= settings.slack * area:
                    features.zoomed.move_to_end(view)
                    return view, features.zoomed[view]
        if not fresh:
            return None
        view = View.of(window, settings.zoom)
        maps = self._encode(state.image, view, settings.mirror)
        with features.lock:
            features.zoomed[view] = maps
            while len(features.zoomed) > settings.views:
                features.zoomed.popitem(last=False)
        return view, maps

    def _compose(self, state: ImageState, view: View, logits: Float | None, score: float) -> Segmentation:
        """The answer for the whole image from the logits of a view."""
        height, width = state.size
        mask = np.zeros((height, width), bool)
        low_height, low_width = coarse_size(state.size, self.settings.logits)
        low = np.full((low_height, low_width), _EMPTY, np.float32)
        if logits is None:
            return Segmentation(mask, score, low)
        x0, y0, x1, y1 = view.window
        full = np.asarray(resize_map(logits, y1 - y0, x1 - x0), np.float32)
        mask[y0:y1, x0:x1] = full > 0
        if (low_height, low_width) == (height, width):
            low[y0:y1, x0:x1] = full
        else:
            # The same window in the smaller map, rounded outwards and read from the logits of the view.
            fx, fy = low_width / width, low_height / height
            sx, sy = logits.shape[1] / (x1 - x0), logits.shape[0] / (y1 - y0)
            left, top = int(x0 * fx), int(y0 * fy)
            right, bottom = min(low_width, int(np.ceil(x1 * fx))), min(low_height, int(np.ceil(y1 * fy)))
            xs = ((np.arange(left, right) + 0.5) / fx - x0) * sx - 0.5
            ys = ((np.arange(top, bottom) + 0.5) / fy - y0) * sy - 0.5
            columns, rows = np.meshgrid(xs.astype(np.float32), ys.astype(np.float32))
            low[top:bottom, left:right] = cv2.remap(logits, columns, rows, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
        return Segmentation(mask, score, low)


def coarse_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of the logits handed out for an image of `size`: the same shape, long side at most `side`."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _prompt(view: View, size: tuple[int, int], clicks: Sequence[Click], box: Box | None, prior: Float | None) -> Prompt:
    """What the network is told about one target; `prior` is a probability map of the whole image."""
    packed = view.points(clicks)
    if not len(packed):
        packed = np.zeros((1, 3), np.float32)
    cut = np.zeros((view.height // 4, view.width // 4), np.float32) if prior is None else view.cut(prior, size)
    return Prompt(
        points=torch.from_numpy(packed[None, :, :2].copy()), labels=torch.from_numpy(packed[None, :, 2].copy()),
        prior=torch.from_numpy(np.ascontiguousarray(cut))[None, None],
        has_prior=torch.tensor([float(prior is not None)]), box=torch.from_numpy(view.box(box))[None],
    )  # fmt: skip


def _inside(click: Click, size: tuple[int, int]) -> Click:
    """The click, moved to the border of the image when it is outside."""
    x, y = min(max(click.x, 0.0), size[1] - 1.0), min(max(click.y, 0.0), size[0] - 1.0)
    return click if (x, y) == (click.x, click.y) else Click(x, y, click.positive)


def _sigmoid(logits: npt.NDArray[Any]) -> Float:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))), np.float32)


def _probability(prior: npt.NDArray[Any], size: tuple[int, int]) -> Float:
    """A prior, logits or a bool mask, as probabilities.

    Raises:
        InputError: It is neither.
    """
    if prior.ndim != 2 or not prior.size or prior.dtype.kind not in "bf":
        got = f"{prior.dtype} {prior.shape}"
        raise InputError(f"a prior must be a 2-D array of float logits or a bool mask (H, W); got {got}")
    if prior.dtype == np.bool_:
        if prior.shape != size:
            raise InputError(f"a prior mask must have the image's size {size}; got {prior.shape}")
        return prior.astype(np.float32)
    return _sigmoid(prior)
