"""What all models that follow Segment Anything share (SAM, arXiv 2304.02643): a heavy encoder, a light decoder.

Prompts as in the published tools: three masks to choose from for a single click, which may mean a part or the whole,
one mask for everything else; and the logits of an answer go back in with the next click.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from ..errors import InputError
from ..hlmat.actions import Click
from ..hlmat.arrays import Box, Image, check_image
from .base import ImageState, Query, Segmentation, Segmenter
from .sam_frame import Frame

__all__ = ["Looks", "Prompts", "SamFamily"]

Maps = tuple[Tensor, ...]
_AT_ONCE, _AT_ONCE_ON_CPU = 16, 4
"""Queries in one pass of the decoder, which bounds its memory. On a CPU, eight with a decoder of SAM's size take 1.4
times as long as one by one, since they leave its cache."""
_ABSENT = -10.0
"""The logit of "surely not the object"."""


@dataclass(frozen=True, slots=True)
class Looks:
    """How a model wants to see an image.

    Attributes:
        side: Of its square, in pixels.
        cells: Cells along a side of its mask prompts and of its answers.
        padded: Whether the square is padded rather than filled.
        mean: Of R, G and B, where 255 is 1.
        std: Likewise.
        clamp: Answers are cut to +-clamp before they go back in as prompts, or None.
    """

    side: int
    cells: int
    padded: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clamp: float | None = None


@dataclass(frozen=True, slots=True)
class Prompts:
    """B prompts of one kind, in the frame of the model.

    Attributes:
        points: float32 (B, K, 2), x and y, or None.
        labels: int64 (B, K), 1 for positive and 0 for negative, or None.
        boxes: float32 (B, 4), x0, y0, x1, y1, or None.
        masks: float32 (B, 1, cells, cells) logits, or None.
        multimask: Whether three masks are wanted rather than one.
    """

    points: Tensor | None
    labels: Tensor | None
    boxes: Tensor | None
    masks: Tensor | None
    multimask: bool


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The features of an image: where it lies in the square, and the encoder's maps, float32 (1, c, h, w) each."""

    version: str
    frame: Frame
    maps: Maps


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A query in the frame of the model; arrays as in `Prompts`, without the batch."""

    index: int
    encoded: _Encoded
    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    box: npt.NDArray[np.float32] | None
    mask: npt.NDArray[np.float32] | None

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """Only queries of one kind share a batch: padded points would change the answer, if ever so little."""
        return len(self.points), self.box is not None, self.mask is not None


class SamFamily(Segmenter):
    """Everything but the model itself. Safe under threads: images are encoded one at a time, clicks in parallel.

    Args:
        looks: How the model wants to see an image.
        device: Where it runs. On CUDA the encoder computes in bfloat16; the decoder is small and stays exact.
        version: Content address of the weights and the settings.
    """

    def __init__(self, looks: Looks, device: torch.device, version: str) -> None:
        self.looks, self.device = looks, device
        self.version = version
        self._at_once = _AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE
        self._encoding = threading.Lock()  # two at once would need twice the memory and not be faster

    @abstractmethod
    def _encode(self, pixels: Tensor) -> Maps:
        """The encoder's maps, (1, c, h, w) each, of float32 (1, 3, side, side)."""

    @abstractmethod
    def _decode(self, images: Sequence[Maps], prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Logits (B, M, cells, cells) and scores (B, M) for B prompts, each with the maps of its image."""

    @override
    def set_image(self, image: Image) -> ImageState:
        height, width = check_image(image).shape[:2]
        frame = self._frame((height, width))
        pixels = frame.pixels(image, self.looks.mean, self.looks.std, self.device)
        fast = self.device.type == "cuda"
        with self._encoding, torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=fast):
            maps = tuple(m.float() for m in self._encode(pixels))
        return ImageState(image, _Encoded(self.version, frame, maps))

    def _frame(self, size: tuple[int, int]) -> Frame:
        return Frame.pad(size, self.looks.side) if self.looks.padded else Frame.fill(size, self.looks.side)

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
        answers = [self._nothing(query.state) for query in queries]
        kinds: dict[tuple[int, bool, bool], list[_Prepared]] = defaultdict(list)
        for index, query in enumerate(queries):
            prepared = self._prepare(index, query)
            if prepared.kind != (0, False, False):
                kinds[prepared.kind].append(prepared)
        for (count, boxed, masked), group in kinds.items():
            multimask = count == 1 and not boxed and not masked
            for start in range(0, len(group), self._at_once):
                chunk = group[start : start + self._at_once]
                with torch.inference_mode():
                    logits, scores = self._decode([p.encoded.maps for p in chunk], self._stack(chunk, multimask))
                    best = scores.argmax(1)
                    for row, prepared in enumerate(chunk):
                        chosen = logits[row, best[row]].float().cpu().numpy()
                        score = float(scores[row, best[row]])
                        answers[prepared.index] = self._answer(prepared.encoded.frame, chosen, score)
        return answers

    def _prepare(self, index: int, query: Query) -> _Prepared:
        encoded = query.state.features
        if not isinstance(encoded, _Encoded) or encoded.version != self.version:
            raise InputError("the image state was made by another segmenter; call set_image of this one")
        frame = encoded.frame
        return _Prepared(
            index,
            encoded,
            frame.points(query.clicks),
            np.array([c.positive for c in query.clicks], np.int64),
            None if query.box is None else frame.box(query.box),
            frame.prior_prompt(query.prior, self.looks.cells),
        )

    def _stack(self, group: Sequence[_Prepared], multimask: bool) -> Prompts:
        def stacked(arrays: Sequence[npt.NDArray[Any] | None]) -> Tensor | None:
            given = [array for array in arrays if array is not None and array.size]
            return torch.from_numpy(np.stack(given)).to(self.device) if given else None

        masks = stacked([p.mask for p in group])
        return Prompts(
            points=stacked([p.points for p in group]),
            labels=stacked([p.labels for p in group]),
            boxes=stacked([p.box for p in group]),
            masks=None if masks is None else masks[:, None],
            multimask=multimask,
        )

    def _answer(self, frame: Frame, logits: npt.NDArray[np.float32], score: float) -> Segmentation:
        mask = frame.restore(logits) > 0
        if self.looks.clamp is not None:
            logits = np.clip(logits, -self.looks.clamp, self.looks.clamp)
        return Segmentation(mask, min(max(score, 0.0), 1.0), logits)

    def _nothing(self, state: ImageState) -> Segmentation:
        cells = self.looks.cells
        return Segmentation(np.zeros(state.size, bool), 0.0, np.full((cells, cells), _ABSENT, np.float32))

    @override
    def pack(self, state: ImageState) -> Mapping[str, npt.NDArray[Any]]:
        return {str(i): tensor.cpu().numpy() for i, tensor in enumerate(state.features.maps)}

    @override
    def unpack(self, image: Image, arrays: Mapping[str, npt.NDArray[Any]]) -> ImageState:
        maps = tuple(torch.from_numpy(arrays[str(i)]).to(self.device) for i in range(len(arrays)))
        return ImageState(image, _Encoded(self.version, self._frame((image.shape[0], image.shape[1])), maps))
