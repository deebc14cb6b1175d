"""The protocol of an interactive segmentation tool: encode an image once, then turn clicks into masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..hlmat.actions import Click
from ..hlmat.arrays import Box, Image, Mask

__all__ = ["ImageState", "Query", "Segmentation", "Segmenter"]


@dataclass(slots=True)
class ImageState:
    """An image and whatever a segmenter computed for it once.

    Attributes:
        image: RGB uint8 (H, W, 3).
        features: Private to the segmenter that made this state.
    """

    image: Image
    features: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(slots=True)
class Segmentation:
    """A segmenter's answer.

    Attributes:
        mask: bool (H, W), at the size of the image.
        score: The tool's own estimate of the mask's IoU, in [0, 1].
        logits: float32 (h, w), at a resolution of the tool's own; hand it back as `prior` with the next click.
    """

    mask: Mask
    score: float
    logits: npt.NDArray[np.float32]


@dataclass(slots=True)
class Query:
    """One call of `Segmenter.predict`, for batches; the fields are its arguments."""

    state: ImageState
    clicks: Sequence[Click] = field(default_factory=tuple)
    box: Box | None = None
    prior: npt.NDArray[Any] | None = None


class Segmenter(ABC):
    """An interactive segmentation tool. Implementations are safe to call from several threads.

    Attributes:
        version: Content address of everything that changes the output (weights, settings); part of the model version.
    """

    version: str

    @abstractmethod
    def set_image(self, image: Image) -> ImageState:
        """Encode an image, RGB uint8 (H, W, 3), once for any number of clicks.

        Raises:
            InputError: The array is not such an image.
        """

    @abstractmethod
    def predict(
        self,
        state: ImageState,
        clicks: Sequence[Click],
        *,
        box: Box | None = None,
        prior: npt.NDArray[Any] | None = None,
    ) -> Segmentation:
        """Segment one object.

        Args:
            state: From this segmenter's `set_image`.
            clicks: All clicks so far, oldest first, in pixels. Those outside the image are moved to its border.
            box: (x0, y0, x1, y1) pixels around the object.
            prior: The `logits` of an earlier answer (float), or a mask to start from (bool, at the size of the image).

        Returns:
            The mask of the object. With no click, no box and no prior it is empty.
        """

    def predict_batch(self, queries: Sequence[Query]) -> list[Segmentation]:
        """Answer several queries, in order. Segmenters that gain from batching override this."""
        return [self.predict(q.state, q.clicks, box=q.box, prior=q.prior) for q in queries]

    def fresh(self, state: ImageState) -> ImageState:
        """A state of the same image that has seen no clicks; the same one where clicks leave nothing in it.

        For answers that must not depend on what was asked before.
        """
        return state

    def state_bytes(self, state: ImageState) -> int:
        """Bytes of memory, of CPU and GPU together, that a state holds, or may come to hold: image and features."""
        return state.image.nbytes + _tree_bytes(state.features)

    def describe(self, state: ImageState) -> npt.NDArray[np.float32]:
        """What an image looks like, float32 (d,): images that look alike are near each other.

        By default its colours, coarsely; segmenters whose features say more override this.
        """
        small = cv2.resize(state.image, (8, 8), interpolation=cv2.INTER_AREA)
        return small.astype(np.float32).ravel() / np.float32(255)

    def pack(self, state: ImageState) -> Mapping[str, npt.NDArray[Any]] | None:
        """The features as named arrays, for a cache on disk; None, the default, where encoding anew is as good."""
        return None

    def unpack(self, image: Image, arrays: Mapping[str, npt.NDArray[Any]]) -> ImageState:
        """The state of an image from what `pack` made of it."""
        raise NotImplementedError


def _tree_bytes(features: Any) -> int:
    """Bytes of all arrays and tensors in dataclasses, mappings and sequences."""
    if hasattr(features, "nbytes"):
        return int(features.nbytes)
    if isinstance(features, Mapping):
        return sum(map(_tree_bytes, features.values()))
    if isinstance(features, (list, tuple)):
        return sum(map(_tree_bytes, features))
    if is_dataclass(features):
        return sum(_tree_bytes(getattr(features, f.name)) for f in fields(features))
    return 0
