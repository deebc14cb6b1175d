"""The square that models of the SAM family look at, and the way between it and the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..hlmat.actions import Click
from ..hlmat.arrays import Box, Image, Mask

__all__ = ["IMAGENET", "Frame"]

Float = npt.NDArray[np.float32]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of R, G and B in ImageNet, where 255 is 1; what most encoders want taken out."""
_CERTAIN = 1e-3
"""A mask handed to the model says "object" with the probability 1 - _CERTAIN, which is a logit of 6.9."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an image lies in the model's square: at its top left.

    Attributes:
        size: (height, width) of the image.
        side: Of the square, in pixels of the model.
        height: Of the resized image in the square.
        width: Likewise.
        padded: Whether the square was padded (SAM, SAM-HQ) rather than filled (SAM 2, SAM 3, EdgeTAM).
    """

    size: tuple[int, int]
    side: int
    height: int
    width: int
    padded: bool

    @classmethod
    def pad(cls, size: tuple[int, int], side: int) -> Frame:
        """The long side fills the square, the rest is padding."""
        scale = side / max(size)
        return cls(size, side, max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5)), True)

    @classmethod
    def fill(cls, size: tuple[int, int], side: int) -> Frame:
        """Both sides fill the square, whatever the aspect ratio."""
        return cls(size, side, side, side, False)

    def resize(self, image: Image) -> Image:
        """The image in the square, uint8 (height, width, 3): bilinear with antialiasing, as the published tools do."""
        resized = PIL.Image.fromarray(image).resize((self.width, self.height), PIL.Image.Resampling.BILINEAR)
        return np.asarray(resized)

    def points(self, clicks: Sequence[Click]) -> Float:
        """Clicks, moved into the image, as float32 (K, 2): x and y in the square.

        Pixel x goes to x * scale, as in the published tools; the models add the half pixel themselves.
        """
        limits = np.array([self.size[1] - 1, self.size[0] - 1])
        inside = np.clip(np.array([(c.x, c.y) for c in clicks], np.float64).reshape(-1, 2), 0, limits)
        return np.asarray(inside * self._scale, np.float32)

    def box(self, box: Box) -> Float:
        """A box, cut to the image, as float32 (4,): x0, y0, x1, y1 in the square."""
        corners = np.clip(np.array(box, np.float64).reshape(2, 2), 0, [self.size[1], self.size[0]])
        return np.asarray((corners * self._scale).reshape(4), np.float32)

    @property
    def _scale(self) -> npt.NDArray[np.float64]:
        return np.array([self.width / self.size[1], self.height / self.size[0]])

    def prior_prompt(self, prior: npt.NDArray[Any] | None, cells: int) -> npt.NDArray[np.float32] | None:
        """The logits that go in for a prior, float32 (cells, cells), or None. An empty mask says nothing.

        Raises:
            InputError: It is neither a bool mask of the image nor logits of that size.
        """
        if prior is None:
            return None
        if prior.dtype == np.bool_:
            if prior.shape != self.size:
                raise InputError(f"a prior mask must have the image's size {self.size}; got {prior.shape}")
            return self.mask_prompt(prior, cells) if prior.any() else None
        if prior.shape != (cells, cells):
            raise InputError(
                f"a prior must be a bool mask (H, W) or logits of this segmenter, ({cells}, {cells}); "
                f"got {prior.dtype} {prior.shape}"
            )
        return np.asarray(prior, np.float32)

    def mask_prompt(self, mask: Mask, cells: int) -> Float:
        """A mask as the logits that the model takes for an earlier answer of its own.

        Each cell holds the log-odds of the share that the mask covers of the cell's part of the image, at most +-6.9,
        so that edges are exact and soft at any ratio of the two resolutions; padding is certainly not the object.

        Args:
            mask: bool (H, W).
            cells: Cells along a side of the square.

        Returns:
            float32 (cells, cells) over the whole square.
        """
        height, width = self.size
        # Sums over the rectangle above and to the left of every corner; four of them give any rectangle's sum.
        sums = cv2.integral(mask.astype(np.uint8))
        step = self.side / cells
        rows = np.minimum(np.arange(cells + 1) * step * height / self.height, height)
        columns = np.minimum(np.arange(cells + 1) * step * width / self.width, width)
        corners = _between(_between(sums, rows, 0), columns, 1)
        areas = np.diff(rows)[:, None] * np.diff(columns)
        covered = np.diff(np.diff(corners, axis=0), axis=1) / np.maximum(areas, 1e-9)
        covered = np.clip(covered, _CERTAIN, 1 - _CERTAIN)
        return np.asarray(np.log(covered / (1 - covered)), np.float32)

    def restore(self, logits: Float) -> Float:
        """Logits over the square, float32 (h, w), as logits at the size of the image, (H, W), bilinearly.

        With OpenCV, since that takes a tenth of torch's time on a CPU.
        """
        if self.padded:  # the padding must be cut in whole pixels of the model
            square = cv2.resize(logits, (self.side, self.side), interpolation=cv2.INTER_LINEAR)
            logits = np.asarray(square[: self.height, : self.width], np.float32)
        whole = cv2.resize(logits, (self.size[1], self.size[0]), interpolation=cv2.INTER_LINEAR)
        return np.asarray(whole, np.float32)

    def pixels(self, image: Image, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
        """What the encoder gets: float32 (1, 3, side, side), normalised, then padded with zeros.

        Args:
            image: uint8 (H, W, 3).
            mean: Of R, G and B, where 255 is 1.
            std: Likewise.
            device: Where the encoder runs.
        """
        resized = torch.from_numpy(self.resize(image).copy()).to(device).permute(2, 0, 1)[None].float()
        means, stds = (torch.tensor(v, device=device).reshape(1, 3, 1, 1) * 255 for v in (mean, std))
        return F.pad((resized - means) / stds, (0, self.side - self.width, 0, self.side - self.height))


def _between(values: npt.NDArray[np.number], at: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """The values at fractional indices along an axis, linearly between whole ones."""
    low = np.minimum(at.astype(int), values.shape[axis] - 2)
    part = np.expand_dims(at - low, 1 - axis)
    return np.asarray(values.take(low, axis) * (1 - part) + values.take(low + 1, axis) * part, np.float64)
