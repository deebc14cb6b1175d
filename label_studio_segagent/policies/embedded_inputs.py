"""From images, masks and boxes to what the embedded policy's network takes; the same at run time and in training."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..hlmat.arrays import Box, Mask
from ..segmenters.embedded_views import View

__all__ = ["affine_of", "cut_mask", "draw_state", "join_maps", "pad_maps", "places_of", "sample_context"]

Float = npt.NDArray[np.float32]


def pad_maps(maps: Sequence[Tensor], sides: Sequence[int]) -> list[Tensor]:
    """Pad maps (…, h, w) with zeros at the right and the bottom to squares of the given sides."""
    return [F.pad(m, (0, side - m.shape[-1], 0, side - m.shape[-2])) for m, side in zip(maps, sides, strict=True)]


def join_maps(maps: Sequence[Tensor], eyes: Sequence[Tensor]) -> list[Tensor]:
    """What the locator's backbone and the segmenter see of a whole image, side by side.

    Args:
        maps: The backbone's, (N, c, h, w) at strides 8, 16 and 32 of its view.
        eyes: The segmenter's, see `EmbeddedSegmenter.whole_maps`.

    Returns:
        Maps at the backbone's three resolutions.
    """
    m8, m16, m32 = maps
    s8, s16, e8 = (
        F.interpolate(m, size=to.shape[-2:], mode="bilinear") for m, to in zip(eyes, (m8, m16, m8), strict=True)
    )
    return [torch.cat([m8, s8, e8], 1), torch.cat([m16, s16], 1), m32]


def places_of(view: View, side: int) -> Tensor:
    """Where each place is: (3, side / 16, side / 16) with x and y in [-1, 1] over the image, and 1 inside of it."""
    cells, height, width = side // 16, view.height // 16, view.width // 16
    out = torch.zeros(3, cells, cells)
    out[0, :height, :width] = torch.linspace(-1, 1, width)[None]
    out[1, :height, :width] = torch.linspace(-1, 1, height)[:, None]
    out[2, :height, :width] = 1
    return out


def cut_mask(mask: Mask, view: View) -> Float:
    """The part of a mask that a view shows, averaged to stride 4 of its crop: float32 (h, w) in [0, 1]."""
    x0, y0, x1, y1 = view.window
    part = mask[y0:y1, x0:x1].astype(np.float32)
    size = (view.width // 4, view.height // 4)
    shrinking = part.shape[1] > size[0] or part.shape[0] > size[1]
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR))


def draw_state(cut: Float, box: Box | None, view: View, side: int) -> Float:
    """A mask (from `cut_mask`) and a box (pixels of the image) as `Reviewer.STATE` maps, (4, side / 4, side / 4)."""
    height, width = cut.shape
    out = np.zeros((4, side // 4, side // 4), np.float32)
    out[0, :height, :width] = cut
    out[3, :height, :width] = 1
    if box is not None:
        x0, y0, x1, y1 = view.box(box) / 4
        xs, ys = np.arange(width) + 0.5, np.arange(height) + 0.5
        across = np.clip(np.minimum(xs - x0, x1 - xs) + 0.5, 0, 1)
        down = np.clip(np.minimum(ys - y0, y1 - ys) + 0.5, 0, 1)
        out[1, :height, :width] = 2 * down[:, None] * across[None] - 1
        out[2, :height, :width] = 1
    return out


def affine_of(view: View, whole: View, side: int, canvas: int) -> Tensor:
    """The (2, 3) matrix for `sample_context`: from places in a padded view to places in the padded whole image.

    Args:
        view: The zoomed view, padded to a square of `side` pixels.
        whole: The view of the whole image, padded to a square of `canvas` pixels.
        side: See there.
        canvas: See there.
    """
    x0, y0, x1, y1 = view.window
    left, top, right, bottom = whole.window
    rows: list[list[float]] = []
    for axis, (low, high, pixels, extent, crop) in enumerate(
        ((x0, x1, view.width, right - left, whole.width), (y0, y1, view.height, bottom - top, whole.height))
    ):
        scale = crop / extent  # pixels of the image -> pixels of the whole crop
        factor = (high - low) / pixels * scale * side / canvas
        shift = 2 * low * scale / canvas + factor - 1
        rows.append([factor if axis == 0 else 0.0, factor if axis == 1 else 0.0, shift])
    return torch.tensor(rows)


def sample_context(context: Tensor, matrices: Tensor, cells: int) -> Tensor:
    """Read maps (N, c, h, w) of the whole image at the places of zoomed views: (N, c, cells, cells)."""
    grid = F.affine_grid(matrices, [len(context), context.shape[1], cells, cells], align_corners=False)
    return F.grid_sample(context, grid, "bilinear", "border", align_corners=False)
