from __future__ import annotations

import csv
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coco_files import write_coco
from pycocotools import mask as rle_codec

from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.segmenters.embedded import EmbeddedSegmenter
from label_studio_segagent.segmenters.embedded_net import NetConfig
from label_studio_segagent.training.click_sampling import clicked_error, earlier_clicks, next_click
from label_studio_segagent.training.feeding import SpareCores, ready_batches
from label_studio_segagent.training.mask_corruption import corrupt_mask
from label_studio_segagent.training.segmenter import TrainSettings, train
from label_studio_segagent.training.segmenter_data import CropDataset, read_coco
from label_studio_segagent.training.segmenter_steps import asked_loss, mask_loss


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of two bright shapes on noise, in COCO format."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(6):
        pixels = rng.integers(0, 90, (96, 128, 3)).astype(np.uint8)
        objects = []
        for colour, centre in (((230, 60, 40), (35, 40)), ((50, 220, 90), (90, 55))):
            mask = cv2.circle(np.zeros((96, 128), np.uint8), centre, int(rng.integers(12, 24)), 1, -1)
            pixels[mask > 0] = colour
            objects.append((1, mask))
        pictures.append((pixels, objects))
    return write_coco(tmp_path_factory.mktemp("data"), pictures)


SMOKE = TrainSettings(
    minutes=0.1, crops=((64, 3, 1.0), (96, 2, 1.0)), pretrained=False, log_steps=2, warmup=2, clicks=2,
    checkpoint_minutes=0.02, frozen=0,
)  # fmt: skip
TINY = NetConfig(backbone="lite0", channels=(16, 16, 32), embedding=8, context_blocks=1)


def test_a_run_of_seconds_leaves_everything_and_goes_on(data: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        weights = train([data], tmp_path, SMOKE, config=TINY)
        with (tmp_path / "segmenter.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert rows and all(np.isfinite(float(r["loss"])) for r in rows)
        assert {p.name for p in tmp_path.iterdir()} >= {"checkpoint.pt", "segmenter.csv", "MODEL_CARD.md", weights.name}
        card = (tmp_path / "MODEL_CARD.md").read_text()
        assert "SHA-256" in card and "CC BY 4.0" in card
        assert "* training_iou_last: 0." in card.partition("## Metrics")[2].partition("## Settings")[0]
        segmenter = EmbeddedSegmenter(weights)
        image = np.zeros((60, 80, 3), np.uint8)
        assert segmenter.predict(segmenter.set_image(image), [Click(3, 3)]).mask.shape == (60, 80)
        before = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        train([data], tmp_path, replace(SMOKE, minutes=0.15), config=TINY, resume=True)
        after = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert after["steps"]["segmenter"] > before["steps"]["segmenter"]
        assert after["seconds"]["segmenter"] >= before["seconds"]["segmenter"]
    finally:
        torch.set_num_threads(threads)


def test_crops_show_their_targets(data: Path) -> None:
    dataset = CropDataset([read_coco(data)], [1.0])
    rng = np.random.default_rng(0)
    for _ in range(40):
        sample = dataset.sample(rng, 64, 2)
        assert sample.image.shape == (64, 64, 3) and sample.image.dtype == np.uint8
        for target in sample.targets:
            assert target.truth.shape == (32, 32) and target.truth.dtype == np.bool_ and target.truth.any()
            if target.prior is not None:
                assert target.prior.shape == (16, 16) and 0 <= target.prior.min() <= target.prior.max() <= 1
            if target.key is not None:
                rows, columns = np.nonzero(target.truth)
                small = cv2.resize(target.truth.astype(np.float32), (16, 16), interpolation=cv2.INTER_AREA)
                dataset.remember(target.key, sample.matrix, small, [(float(columns[0]), float(rows[0]), 1.0)])


def test_remembered_answers_come_back_in_place(data: Path) -> None:
    dataset = CropDataset([read_coco(data)], [1.0])
    rng = np.random.default_rng(1)
    overlaps: list[float] = []
    hits: list[bool] = []
    for _ in range(300):
        for target in (sample := dataset.sample(rng, 128, 2)).targets:
            if target.key is not None:
                rows, columns = np.nonzero(cv2.erode(target.truth.astype(np.uint8), np.ones((5, 5))))
                if len(rows):
                    middle = len(rows) // 2
                    small = cv2.resize(target.truth.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)
                    click = (float(columns[middle]), float(rows[middle]), 1.0)
                    dataset.remember(target.key, sample.matrix, small, [click])
            if target.clicks:
                seen = cv2.resize(target.prior, (64, 64)) > 0.5
                overlaps.append((seen & target.truth).sum() / max(1, (seen | target.truth).sum()))
                hits += [bool(target.truth[round(y), round(x)]) for x, y, _ in target.clicks]
    assert len(overlaps) > 30
    assert np.median(overlaps) > 0.75 and np.mean(hits) > 0.9


def test_data_without_masks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(InputError, match="no usable mask"):
        read_coco(tmp_path)


def test_polygons_and_other_layouts_are_learned_from_and_bad_rows_are_counted(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((data / "train.json").read_text())
    shutil.copytree(data / "images", tmp_path / "images")
    ring = [[10, 10, 60, 10, 60, 60, 10, 60]]
    for number, annotation in enumerate(content["annotations"]):
        annotation["segmentation"], annotation["image_id"] = ring, str(annotation["image_id"])
        annotation["iscrowd"] = "0"
        if not number:
            annotation["category_id"] = 77
    for image in content["images"]:
        image["file_name"] = "images\\" + image["file_name"]
    content["images"][0]["width"] = None
    (tmp_path / "train.json").write_text(json.dumps(content))
    sources = read_coco(tmp_path)
    rles = [rle for source in sources for rle in source.rles]
    assert rles and {int(rle_codec.area(rle)) for rle in rles} == {2500}
    assert all(tuple(rle["size"]) == source.image().shape[:2] for source in sources for rle in source.rles)
    assert "1 left out, the first: " in caplog.text and "no category 77" in caplog.text


def test_clicks_hit_the_larger_error(shape: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    empty = np.zeros_like(shape)
    for centred in (0.0, 1.0):
        x, y, sign = next_click(shape, empty, [], rng, centred) or (-1, -1, 0)
        assert sign == 1 and shape[int(y), int(x)]
        x, y, sign = next_click(empty, shape, [], rng, centred) or (-1, -1, 0)
        assert sign == -1 and shape[int(y), int(x)]
    assert next_click(shape, shape, [], rng) is None
    for x, y, sign in earlier_clicks(shape, 6, rng):
        assert shape[int(y), int(x)] == (sign > 0)


def test_a_click_asks_for_the_error_around_it_and_no_other() -> None:
    truth, mask = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    truth[5:35, 5:55] = True
    mask[5:35, 9:55] = True  # a strip of four columns is missing
    mask[20:24, 56:59] = True  # and a speck is too much
    asked = clicked_error(truth, mask, (6.0, 20.0, 1.0))
    assert asked[20, 5:9].all() and not asked[:, 9:].any()
    assert 4 * 5 <= asked.sum() < 4 * 30  # not the whole strip
    assert (clicked_error(truth, mask, (57.0, 21.0, -1.0)) == (mask & ~truth)).all()


def test_what_was_asked_for_and_not_done_costs() -> None:
    truth, asked = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    truth[:, :, 2:6, 2:6] = 1
    asked[0, :, 2:6, 2:3] = 1
    good = (truth * 2 - 1) * 9
    bad = good.clone()
    bad[:, :, 2:6, 2:3] = -9
    assert asked_loss(good, truth, asked) < 1e-3 < 8 < asked_loss(bad, truth, asked)
    assert asked_loss(bad, truth, torch.zeros_like(asked)) == 0


def test_corrupted_masks_are_masks_and_mostly_still_like_the_object() -> None:
    mask = cv2.circle(np.zeros((64, 64), np.uint8), (30, 30), 18, 1, -1).astype(bool)
    other = cv2.circle(np.zeros((64, 64), np.uint8), (52, 52), 8, 1, -1).astype(bool)
    rng = np.random.default_rng(0)
    overlaps = []
    for _ in range(200):
        bad = corrupt_mask(mask, [mask, other], rng)
        assert bad.shape == mask.shape and bad.dtype == np.bool_
        overlaps.append((bad & mask).sum() / (bad | mask).sum())
    assert 0.5 < np.median(overlaps) < 0.95 and min(overlaps) < 0.4 and len(set(overlaps)) > 100


def test_the_loss_falls_towards_the_truth() -> None:
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 4:12, 4:12] = 1
    good, half, bad = ((2 * truth - 1) * s for s in (6.0, 0.5, -6.0))
    losses = [float(mask_loss(x, truth)) for x in (good, half, bad)]
    assert losses == sorted(losses) and losses[0] < 0.1


def test_batches_come_ahead_and_errors_come_through() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        if len(made) > 5:
            raise ValueError("enough")
        return made[-1]

    with ready_batches(make) as batches, pytest.raises(ValueError, match="enough"):
        assert [next(batches) for _ in range(5)] == [0, 1, 2, 3, 4]
        next(batches)
    assert not any(t.name == "batches" for t in threading.enumerate())


def test_threads_give_way_to_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([(0.0, 0.0, 0.0), (4.0, 2.0, 2.0), (8.0, 6.0, 4.0), (12.0, 10.0, 6.0), (16.0, 10.0, 6.0)])
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(SpareCores, "_times", staticmethod(lambda: next(clock)))
    cores = SpareCores(2)
    assert [cores.threads() for _ in range(4)] == [2, 2, 1, 2]
    monkeypatch.setattr(SpareCores, "_times", staticmethod(lambda: None))
    assert SpareCores(2).threads() == 2
