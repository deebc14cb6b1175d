"""What the embedded policy sees: images, parts of them, and views of objects; kept for the next question about them."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..embedded.evidence import Sensed
from ..hlmat.arrays import Box, Image, check_image
from ..parallel import on_cores
from ..segmenters.base import ImageState
from ..segmenters.embedded import EmbeddedSegmenter
from ..segmenters.embedded_views import View, Window, zoom_window
from .embedded_inputs import join_maps, pad_maps, places_of
from .embedded_net import Locator, PolicyNet
from .embedded_targets import part_windows

__all__ = ["Seen", "Sight"]

_IMAGES_KEPT = 16
_VIEWS_KEPT = 6
_EXPAND = 1.35
"""Side of a zoomed window over the object's."""
_FLAT = 4.0
"""Images whose grey levels have a smaller standard deviation show nothing."""


@dataclass(slots=True)
class Seen:
    """An image as the locator saw it.

    Attributes:
        view: The whole image.
        inputs: What locators take: joined maps, and where each place is.
        maps: From `Locator.see`, for each locator that was asked.
        sensed: For the evidence.
        flat: Whether it shows nothing.
        zoomed: The segmenter's maps of views that were looked at.
        parts: Parts of the image by themselves, once they were needed: windows in pixels, and how they were seen.
    """

    view: View
    inputs: tuple[list[torch.Tensor], torch.Tensor]
    maps: dict[Locator, tuple[torch.Tensor, torch.Tensor]]
    sensed: Sensed
    flat: bool
    zoomed: OrderedDict[View, list[torch.Tensor]] = field(default_factory=OrderedDict)
    parts: list[tuple[Window, Seen]] | None = None


class Sight:
    """Looks through the locator's eyes and the segmenter's; safe under threads.

    Args:
        net: With the locator.
        segmenter: Whose views of objects are looked at.
    """

    def __init__(self, net: PolicyNet, segmenter: EmbeddedSegmenter) -> None:
        self.net, self.segmenter = net, segmenter
        self._images: OrderedDict[bytes, Seen] = OrderedDict()
        self._lock = threading.Lock()

    def see(self, image: Image, state: ImageState | None = None) -> Seen:
        """The image through the locator's eyes, kept for the next question about it.

        Args:
            image: RGB uint8 (H, W, 3).
            state: The segmenter's state of it, if there is one: saves the time to make another.
        """
        check_image(image)
        pixels = np.ascontiguousarray(image)
        key = hashlib.blake2b(repr(pixels.shape).encode() + pixels.data, digest_size=16).digest()
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
                return self._images[key]
        seen = self._look(pixels, state)
        with self._lock:
            self._images[key] = seen
            while len(self._images) > _IMAGES_KEPT:
                self._images.popitem(last=False)
        return seen

    def _look(self, image: Image, state: ImageState | None = None) -> Seen:
        side = self.net.config.side
        view = View.of((0, 0, image.shape[1], image.shape[0]), side)
        crop = view.crop(image)
        eyes = self.segmenter.whole_maps(image, state)
        with torch.inference_mode():
            looked = self.net.look(torch.from_numpy(crop).permute(2, 0, 1)[None].float())
            padded = pad_maps(join_maps(looked, eyes), [side // s for s in (8, 16, 32)])
            inputs = padded, places_of(view, side)[None]
            return Seen(view, inputs, {}, self.net.evidence.see(looked[2]), float(crop.std()) < _FLAT)

    def maps(self, seen: Seen, locator: Locator) -> tuple[torch.Tensor, torch.Tensor]:
        """What a locator sees in an image whatever is looked for, kept for the next question."""
        if locator not in seen.maps:
            with torch.inference_mode():
                seen.maps[locator] = locator.see(*seen.inputs)
        return seen.maps[locator]

    def see_parts(self, images: Sequence[tuple[Seen, Image]]) -> None:
        """Look at the parts of images by themselves, where that has not been done."""
        new = list({id(s): (s, image) for s, image in images if s.parts is None and not s.flat}.values())
        windows = [(seen, image, window) for seen, image in new for window in part_windows(image.shape[:2])]
        parts = on_cores(lambda item: self._look(_cut(item[1], item[2])), windows)
        for seen, _ in new:
            seen.parts = [(w, part) for (whole, _, w), part in zip(windows, parts, strict=True) if whole is seen]

    def zoom(self, seen: Seen, image: Image, around: Box) -> tuple[View, list[torch.Tensor]]:
        """The segmenter's view of what is in a box.

        Which one depends on the box alone, not on what was asked before; boxes that differ little share a view.
        """
        step = 2.0 ** math.floor(math.log2(max(around[2] - around[0], around[3] - around[1]) / 6))
        low, high = np.floor(np.array(around[:2]) / step) * step, np.ceil(np.array(around[2:]) / step) * step
        height, width = image.shape[:2]
        rounded = (float(low[0]), float(low[1]), min(float(high[0]), width), min(float(high[1]), height))
        window = zoom_window(rounded, (height, width), _EXPAND, self.segmenter.settings.least)
        view = View.of(window, self.segmenter.settings.zoom)
        with self._lock:
            if view in seen.zoomed:
                seen.zoomed.move_to_end(view)
                return view, seen.zoomed[view]
        with torch.inference_mode():
            maps = self.segmenter.net.encode(torch.from_numpy(view.crop(image)).permute(2, 0, 1)[None].float())
        with self._lock:
            seen.zoomed[view] = maps
            while len(seen.zoomed) > _VIEWS_KEPT:
                seen.zoomed.popitem(last=False)
        return view, maps


def _cut(image: Image, window: Window) -> Image:
    x0, y0, x1, y1 = window
    return np.ascontiguousarray(image[y0:y1, x0:x1])
