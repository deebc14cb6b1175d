from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.segmenters.sam_frame import IMAGENET, Frame

MAKE = {"padded": Frame.pad, "filled": Frame.fill}
SIZES = [(48, 80), (100, 37), (1, 1), (7, 300), (640, 480), (1, 900)]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "inner"), [((480, 640), (768, 1024)), ((100, 37), (1024, 379)), ((1, 3000), (1, 1024))]
)
def test_padding_keeps_the_aspect_ratio(size: tuple[int, int], inner: tuple[int, int]) -> None:
    frame = Frame.pad(size, 1024)
    assert (frame.height, frame.width) == inner
    assert (Frame.fill(size, 1024).height, Frame.fill(size, 1024).width) == (1024, 1024)


def test_pixels_are_normalised_and_padded_with_zeros() -> None:
    image = np.full((10, 20, 3), 255, np.uint8)
    pixels = Frame.pad((10, 20), 40).pixels(image, *IMAGENET, CPU)
    assert pixels.shape == (1, 3, 40, 40)
    white = (1 - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1])
    torch.testing.assert_close(pixels[0, :, :20], white[:, None, None].expand(3, 20, 40))
    assert not pixels[0, :, 20:].any()


def test_points_and_boxes_are_scaled_and_kept_inside() -> None:
    frame = Frame.pad((100, 200), 50)
    np.testing.assert_allclose(frame.points([Click(40, 60), Click(-5, 999)]), [[10, 15], [0, 24.75]])
    np.testing.assert_allclose(frame.box((20, -10, 300, 60)), [5, 0, 50, 15])
    np.testing.assert_allclose(Frame.fill((100, 200), 50).points([Click(40, 60)]), [[10, 30]])
    assert frame.points([]).shape == (0, 2)


def covered_exactly(mask: np.ndarray, frame: Frame, cells: int, row: int, column: int) -> float:
    """The share of one cell's part of the image that the mask covers, by adding up its overlap with every pixel."""
    height, width = frame.size
    inside = total = 0.0
    for y, x in np.ndindex(height, width):
        edges = []
        for low, inner, outer, cell in ((y, frame.height, height, row), (x, frame.width, width, column)):
            start, end = low * inner / outer, (low + 1) * inner / outer
            first, last = cell * frame.side / cells, (cell + 1) * frame.side / cells
            edges.append(max(0.0, min(end, last) - max(start, first)))
        inside += edges[0] * edges[1]
        total += edges[0] * edges[1] * mask[y, x]
    return total / inside if inside > 1e-6 else 0.0


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("size", [(9, 14), (5, 3), (1, 1)])
def test_a_mask_prompt_holds_the_share_of_every_cell(make: str, size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(size) < 0.5
    mask[0, 0] = True
    frame = MAKE[make](size, 32)
    share = 1 / (1 + np.exp(-frame.mask_prompt(mask, 8)))
    assert share.shape == (8, 8)
    for row in range(8):
        for column in range(8):
            expected = min(max(covered_exactly(mask, frame, 8, row, column), 1e-3), 1 - 1e-3)
            assert share[row, column] == pytest.approx(expected, abs=1e-5), (row, column)


def test_padding_is_certainly_not_the_object() -> None:
    prompt = Frame.pad((50, 100), 64).mask_prompt(np.ones((50, 100), bool), 16)
    assert (prompt[:8] > 6.8).all() and (prompt[8:] < -6.8).all()


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("size", SIZES)
def test_what_goes_in_as_a_prompt_comes_out_at_the_same_place(make: str, size: tuple[int, int]) -> None:
    height, width = size
    mask = np.zeros(size, bool)
    mask[height // 4 : max(height // 2, height // 4 + 1), width // 3 : max(2 * width // 3, width // 3 + 1)] = True
    frame = MAKE[make](size, 1024)
    back = frame.restore(frame.mask_prompt(mask, 256)) > 0
    assert back.shape == size
    assert iou(back, mask) > 0.97
    if max(size) <= 256:  # cells are smaller than pixels then: nothing may be lost
        np.testing.assert_array_equal(back, mask)


@pytest.mark.parametrize("make", MAKE)
def test_a_shift_by_one_pixel_is_seen(make: str) -> None:
    mask = np.zeros((60, 200), bool)
    mask[20:40, 50:100] = True
    frame = MAKE[make]((60, 200), 1024)
    back = frame.restore(frame.mask_prompt(mask, 256)) > 0
    np.testing.assert_array_equal(np.flatnonzero(back.any(0))[[0, -1]], [50, 99])
    np.testing.assert_array_equal(np.flatnonzero(back.any(1))[[0, -1]], [20, 39])


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("size", SIZES)
def test_logits_are_enlarged_as_the_published_tools_do(make: str, size: tuple[int, int]) -> None:
    frame = MAKE[make](size, 256)
    logits = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = logits
    if make == "padded":
        maps = F.interpolate(maps, (256, 256), mode="bilinear", align_corners=False)
        maps = maps[..., : frame.height, : frame.width]
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    np.testing.assert_allclose(frame.restore(logits[0, 0].numpy()), expected, atol=2e-3)
