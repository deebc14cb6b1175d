from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.segmenters import ImageState, Query, load_segmenter
from label_studio_segagent.segmenters.embedded import EmbeddedSegmenter, ViewSettings
from label_studio_segagent.segmenters.embedded_net import NetConfig, SegmenterNet
from label_studio_segagent.segmenters.embedded_views import View, object_box, without_strays, zoom_window
from label_studio_segagent.segmenters.embedded_weights import load_net
from label_studio_segagent.training.segmenter_report import save_weights

SMALL = ViewSettings(coarse=96, zoom=96, logits=128)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that answer with something; what they answer does not matter here."""
    torch.manual_seed(0)
    net = SegmenterNet(NetConfig(backbone="lite0", context_blocks=1))
    with torch.no_grad():
        net.head.bias.fill_(0.2)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_weights(net, path)
    return path


@pytest.fixture(scope="module")
def segmenter(weights: Path) -> EmbeddedSegmenter:
    return EmbeddedSegmenter(weights, SMALL)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 80, (120, 170, 3)).astype(np.uint8)
    return cv2.circle(pixels, (60, 50), 30, (220, 180, 40), -1)


def same(a: object, b: object) -> None:
    np.testing.assert_array_equal(a.mask, b.mask)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
    assert a.score == pytest.approx(b.score, abs=1e-5)


@pytest.mark.parametrize("size", [(120, 170), (300, 90), (33, 900), (7, 5), (1, 1), (640, 480)])
def test_answers_have_the_size_of_the_image(segmenter: EmbeddedSegmenter, size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 255, (*size, 3)).astype(np.uint8)
    state = segmenter.set_image(image)
    out = segmenter.predict(state, [Click(size[1] // 2, size[0] // 2)])
    assert out.mask.shape == size and out.mask.dtype == np.bool_
    assert out.logits.dtype == np.float32 and out.logits.ndim == 2 and max(out.logits.shape) <= 128
    assert 0 <= out.score <= 1
    again = segmenter.predict(state, [Click(0, 0), Click(1, 0, False)], prior=out.logits)
    assert again.mask.shape == size


@pytest.mark.parametrize("limit", [128, 1024])
def test_logits_lie_where_the_mask_is(weights: Path, image: np.ndarray, limit: int) -> None:
    segmenter = EmbeddedSegmenter(weights, replace(SMALL, logits=limit))
    out = segmenter.predict(segmenter.set_image(image), [Click(60, 50), Click(150, 100, False)])
    height, width = image.shape[:2]
    whole = cv2.resize(out.logits, (width, height), interpolation=cv2.INTER_LINEAR) > 0
    assert out.logits.shape == ((90, 128) if limit == 128 else (height, width))
    assert (whole == out.mask).mean() > 0.97


def test_nothing_asked_nothing_found(segmenter: EmbeddedSegmenter, image: np.ndarray) -> None:
    out = segmenter.predict(segmenter.set_image(image), [])
    assert not out.mask.any() and out.score == 0 and (out.logits < 0).all()


def test_every_kind_of_prompt_counts(segmenter: EmbeddedSegmenter, image: np.ndarray) -> None:
    state = segmenter.set_image(image)
    mask = np.zeros(image.shape[:2], bool)
    mask[20:80, 30:90] = True
    base = segmenter.predict(state, [Click(60, 50)])
    others = [
        segmenter.predict(state, [Click(60, 50, False)]),
        segmenter.predict(state, [Click(60, 50), Click(100, 100, False)]),
        segmenter.predict(state, [Click(60, 50)], box=(30, 20, 90, 80)),
        segmenter.predict(state, [Click(60, 50)], prior=mask),
        segmenter.predict(state, [], prior=mask),
        segmenter.predict(state, [], box=(30, 20, 90, 80)),
    ]
    for other in others:
        assert np.abs(other.logits - base.logits).max() > 1e-3


def test_a_cached_view_answers_like_a_fresh_one(segmenter: EmbeddedSegmenter, image: np.ndarray) -> None:
    used = segmenter.set_image(image)
    first = segmenter.predict(used, [Click(60, 50)])
    kept = len(used.features.zoomed)
    same(segmenter.predict(used, [Click(60, 50)]), first)
    assert len(used.features.zoomed) == kept == 1
    same(segmenter.predict(segmenter.set_image(image), [Click(60, 50)]), first)


def test_a_batch_answers_like_single_calls(segmenter: EmbeddedSegmenter, image: np.ndarray) -> None:
    states = [segmenter.set_image(image), segmenter.set_image(image[:, ::-1].copy())]
    queries = [Query(states[i % 2], [Click(20 + 10 * i, 50, i % 3 > 0)]) for i in range(4)]
    queries.append(Query(states[0], [], box=(10, 10, 50, 60)))
    for query, out in zip(queries, segmenter.predict_batch(queries), strict=True):
        same(out, segmenter.predict(query.state, query.clicks, box=query.box, prior=query.prior))


@pytest.mark.parametrize("shared", [True, False], ids=["one state", "fresh ones"])
def test_threads_do_not_disturb_each_other(weights: Path, image: np.ndarray, shared: bool) -> None:
    """To the bit. On a state that threads share, where no view that another one has looked at may be used again."""
    segmenter = EmbeddedSegmenter(weights, replace(SMALL, slack=0.0) if shared else SMALL)
    state = segmenter.set_image(image)
    clicks = [Click(10.0 + 15 * i, 40) for i in range(8)]
    alone = [segmenter.predict(segmenter.set_image(image), [c]) for c in clicks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda c: segmenter.predict(state if shared else segmenter.fresh(state), [c]), clicks))
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a.mask, b.mask) and np.array_equal(a.logits, b.logits) and a.score == b.score
    assert shared == (0 < len(state.features.zoomed) <= SMALL.views)


def test_clicks_outside_move_to_the_border(segmenter: EmbeddedSegmenter, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    outside = segmenter.predict(segmenter.set_image(image), [Click(-50, height + 50)])
    same(outside, segmenter.predict(segmenter.set_image(image), [Click(0, height - 1)]))
    assert segmenter.predict(segmenter.set_image(image), [Click(1e9, -1e9)]).mask.shape == (height, width)


@pytest.mark.parametrize(
    "prior",
    [np.zeros((3, 3), bool), np.zeros((4, 4, 4), np.float32), np.ones((120, 170), np.uint8), np.zeros((0, 0))],
    ids=["another size", "no map", "a mask of integers, which are no logits", "empty"],
)
def test_bad_priors_are_refused(segmenter: EmbeddedSegmenter, image: np.ndarray, prior: np.ndarray) -> None:
    with pytest.raises(InputError, match="prior"):
        segmenter.predict(segmenter.set_image(image), [Click(5, 5)], prior=prior)


def test_bad_images_and_foreign_states_are_refused(segmenter: EmbeddedSegmenter, image: np.ndarray) -> None:
    with pytest.raises(InputError):
        segmenter.set_image(image.astype(np.float32))
    with pytest.raises(InputError, match="another segmenter"):
        segmenter.predict(ImageState(image, None), [Click(5, 5)])


def test_loading(weights: Path, tmp_path: Path) -> None:
    one, two = load_segmenter(f"embedded:{weights}"), EmbeddedSegmenter(weights)
    assert one.version == two.version and one.version.startswith("embedded-")
    assert EmbeddedSegmenter(weights, replace(ViewSettings(), zoom=64)).version != one.version
    with pytest.raises(ConfigError, match="no segmenter weights"):
        load_segmenter(f"embedded:{tmp_path / 'missing'}")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        load_segmenter(f"embedded:{tmp_path / 'text'}")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ConfigError, match="holds no segmenter"):
        load_segmenter(f"embedded:{tmp_path / 'other'}")


@pytest.mark.parametrize("config", [None, "{", "[]", '{"channels": 3}', '{"backbone": "b7", "channels": [1, 2, 3]}'])
def test_weights_of_another_version(config: str | None, weights: Path, tmp_path: Path) -> None:
    metadata = {"kind": "segagent-segmenter", **({} if config is None else {"config": config})}
    save_file(load_file(weights), tmp_path / "old", metadata)
    with pytest.raises(ConfigError, match="another version"):
        EmbeddedSegmenter(tmp_path / "old")


def test_weights_that_lack_tensors(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    state.pop("head.weight")
    with safe_open(weights, "pt") as file:
        save_file(state, tmp_path / "partial", file.metadata())
    with pytest.raises(ConfigError, match=r"(?s)another version.*head\.weight"):
        EmbeddedSegmenter(tmp_path / "partial")


def test_shipped_weights_compute_the_same_as_trained_ones(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = SegmenterNet(NetConfig(backbone="lite0", context_blocks=1)).eval()
    with torch.no_grad():
        for module in net.encoder.modules():
            if getattr(module, "scale", None) is not None:
                module.scale.uniform_(0.5, 1.5)
    save_weights(net, tmp_path / "w.safetensors")
    pixels = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        for a, b in zip(net.encode(pixels), load_net(tmp_path / "w.safetensors")[0].encode(pixels), strict=True):
            torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)


def test_views_map_there_and_back() -> None:
    view = View.of((20, 10, 120, 60), 128)
    assert (view.height, view.width) == (64, 128)
    points = view.points([Click(20, 10), Click(119, 59, False), Click(19, 30)])
    np.testing.assert_allclose(points[:, :2], [[0.14, 0.14], [126.86, 62.86]], atol=1e-5)
    np.testing.assert_array_equal(points[:, 2], [1, -1])
    np.testing.assert_allclose(view.box((20, 10, 120, 60)), [0, 0, 128, 64])
    assert not view.box(None).any()
    ramp = np.tile(np.arange(200, dtype=np.float32), (100, 1))
    cut = view.cut(ramp, (100, 200))
    assert cut.shape == (16, 32)
    np.testing.assert_allclose(cut[0], 20 + (np.arange(32) + 0.5) * 100 / 32 - 0.5, atol=0.6)
    np.testing.assert_array_equal(View.of((0, 0, 200, 100), 200).cut(ramp[::2, ::2], (100, 200)).shape, (24, 48))


def test_the_box_of_an_object_leaves_out_specks() -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:60, 30:70] = True
    mask[90, 90] = mask[5, 5] = True
    assert object_box(mask, []) == (30, 20, 70, 60)
    assert object_box(mask, [(90.2, 90.7)]) == (30, 20, 91, 91)
    assert object_box(np.zeros((4, 4), bool), []) is None


@pytest.mark.parametrize("box", [(0, 0, 10, 10), (5, 40, 6, 41), (0, 0, 200, 100), (190, 90, 200, 100)])
def test_the_zoom_window_holds_the_box_inside_the_image(box: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = zoom_window(box, (100, 200), 1.4, 48)
    assert 0 <= x0 <= box[0] and 0 <= y0 <= box[1] and box[2] <= x1 <= 200 and box[3] <= y1 <= 100


def test_parts_outside_of_the_box_that_nobody_clicked_are_not_of_the_object() -> None:
    logits = np.full((40, 60), -3.0, np.float32)
    logits[10:20, 10:20], logits[10:20, 18:26], logits[30:35, 40:45], logits[2:5, 50:55] = 2, 2, 2, 2
    box, click = np.array([16, 16, 44, 44], np.float32), np.array([[84, 64, 1], [104, 6, -1]], np.float32)
    kept = without_strays(logits, box, click)
    assert ((kept > 0)[:, :30] == (logits > 0)[:, :30]).all()  # it may stick out
    assert (kept > 0)[30:35, 40:45].all() and not (kept > 0)[2:5, 50:55].any()
    assert not (without_strays(logits, box, np.zeros((0, 3), np.float32)) > 0)[30:35, 40:45].any()


def test_a_fresh_state_remembers_no_clicks(segmenter: EmbeddedSegmenter, image: np.ndarray) -> None:
    state = segmenter.set_image(image)
    expected = segmenter.predict(state, [Click(60, 50)])
    assert state.features.zoomed
    fresh = segmenter.fresh(state)
    assert fresh.features.maps is state.features.maps and not fresh.features.zoomed
    segmenter.predict(state, [Click(150, 100)])
    same(segmenter.predict(segmenter.fresh(state), [Click(60, 50)]), expected)
    with pytest.raises(InputError, match="another segmenter"):
        segmenter.fresh(ImageState(image))
    other = load_segmenter("grabcut")
    kept = other.set_image(image)
    assert other.fresh(kept) is kept
