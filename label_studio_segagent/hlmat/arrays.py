"""The array types that every room shares, and the check of an image that comes from outside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import InputError

__all__ = ["Box", "Image", "Mask", "check_image", "mask_box", "soft_mask"]

Image = npt.NDArray[np.uint8]
"""RGB, uint8, (H, W, 3)."""
Mask = npt.NDArray[np.bool_]
"""bool, (H, W)."""
Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels; x1 and y1 are exclusive."""


def check_image(image: Image) -> Image:
    """Return `image` when it is RGB uint8 (H, W, 3) and not empty.

    Raises:
        InputError: It is not.
    """
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", type(image).__name__)
        raise InputError(f"an image must be an RGB uint8 array (H, W, 3); got shape {shape}, dtype {dtype}")
    if not image.size:
        raise InputError(f"the image is empty: shape {image.shape}")
    return image


def mask_box(mask: Mask) -> Box | None:
    """The tight (x0, y0, x1, y1) around a bool (H, W) mask, or None when it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def soft_mask(levels: npt.NDArray[np.unsignedinteger]) -> Mask:
    """The pixels of a mask with soft edges, bool (H, W): those with more than half of the largest of its levels."""
    return np.asarray(levels > levels.max(initial=0) / 2)
