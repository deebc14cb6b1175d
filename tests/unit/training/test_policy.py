from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coco_files import write_coco

from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.metrics import box_iou
from label_studio_segagent.hlmat.trajectory import read_trajectories
from label_studio_segagent.policies.embedded import EmbeddedPolicy
from label_studio_segagent.policies.embedded_net import PolicyConfig, PolicyNet
from label_studio_segagent.segmenters.embedded import EmbeddedSegmenter
from label_studio_segagent.segmenters.embedded_net import NetConfig, SegmenterNet
from label_studio_segagent.training.policy import PolicySettings, train_policy
from label_studio_segagent.training.policy_data import located_box, read_scenes, whole_features
from label_studio_segagent.training.policy_evidence import teach
from label_studio_segagent.training.policy_locating import LocatorDataset
from label_studio_segagent.training.policy_reviewing import ReviewDataset, make_reviews
from label_studio_segagent.training.policy_states import make_states, read_states
from label_studio_segagent.training.policy_steps import heat_target
from label_studio_segagent.training.running import rate_factor
from label_studio_segagent.training.segmenter_report import save_weights

SMALL = PolicyConfig((), side=96, text=16, trunk=32, fine=16, review=(16, 16, 32), context=4)
SMOKE = PolicySettings(
    minutes=0.2,
    trajectory_minutes=1,
    scenes=3,
    reviews=4,
    crops_judged=2,
    masks_judged=2,
    warmup=2,
    log_steps=1,
    checkpoint_minutes=0.02,
    pretrained=False,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of a red disc and a green square on noise; one of them shows unannotated discs."""
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(8):
        pixels = rng.integers(0, 90, (96, 128, 3)).astype(np.uint8)
        objects = []
        for category, colour, centre in ((1, (40, 60, 230), (35, 40)), (2, (50, 220, 90), (90, 55))):
            if category == 2 and number % 3 == 0:
                continue
            mask = np.zeros((96, 128), np.uint8)
            radius = int(rng.integers(12, 24))
            if category == 1:
                cv2.circle(mask, centre, radius, 1, -1)
            else:
                cv2.rectangle(mask, (centre[0] - radius, centre[1] - radius), (centre[0] + radius, 90), 1, -1)
            pixels[mask > 0] = colour
            objects.append((category, mask))
        pictures.append((pixels, objects))
    return write_coco(tmp_path_factory.mktemp("data"), pictures, ["Disc", "square", "star"], partial=[7])


@pytest.fixture(scope="module")
def clicker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("segmenter") / "tiny.safetensors"
    save_weights(SegmenterNet(NetConfig("lite0", (16, 16, 32), 8, 1)), path)
    return path


@pytest.fixture(scope="module")
def trained(data: Path, clicker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    threads = torch.get_num_threads()
    try:
        train_policy([data], out, SMOKE, segmenter=clicker, config=SMALL)
    finally:
        torch.set_num_threads(threads)
    return out


def test_a_run_of_seconds_leaves_everything_and_goes_on(trained: Path, data: Path, clicker: Path) -> None:
    for part in ("salience", "locator", "judge", "reviewer"):
        with (trained / f"{part}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert rows and all(np.isfinite(float(r["loss"])) for r in rows)
        assert (trained / f"{part}.png").exists() == (len(rows) > 1)
    assert {p.name for p in trained.iterdir()} >= {"checkpoint.pt", "MODEL_CARD.md", "policy.safetensors"}
    card = (trained / "MODEL_CARD.md").read_text()
    assert "SHA-256" in card
    assert "held_out_rating_error" in card.partition("## Metrics")[2].partition("## Settings")[0]
    policy = EmbeddedPolicy(trained / "policy.safetensors", EmbeddedSegmenter(clicker))
    assert policy.net.config.labels == ("disc", "square")
    before = torch.load(trained / "checkpoint.pt", weights_only=True)
    threads = torch.get_num_threads()
    try:
        longer = replace(SMOKE, minutes=0.25)
        train_policy([data], trained, longer, segmenter=clicker, config=SMALL, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert (
        torch.load(trained / "checkpoint.pt", weights_only=True)["seconds"]["reviewer"] > before["seconds"]["reviewer"]
    )


def test_trajectories_are_kept_and_made_once(trained: Path, data: Path, clicker: Path) -> None:
    trajectories = list(read_trajectories(trained / "states.jsonl"))
    assert len({t.meta["object"] for t in trajectories}) == len(trajectories) == 13
    assert all(s.true_iou is not None for t in trajectories for s in t.steps)
    rollouts = read_states(trained / "states.jsonl")
    assert len(rollouts) == 13 and any(r.box for r in rollouts.values())
    assert all(rle["size"] == [96, 128] for r in rollouts.values() for rle in r.masks)
    policy = EmbeddedPolicy(trained / "policy.safetensors", EmbeddedSegmenter(clicker))
    assert make_states(read_scenes([data]), policy, trained / "states.jsonl", seconds=60) == 0


def test_what_is_looked_for_agrees_with_the_scenes(data: Path, clicker: Path) -> None:
    scenes = read_scenes([data])
    assert [bool(s.known) for s in scenes] == [True] * 7 + [False]
    net = PolicyNet(PolicyConfig(("disc", "square"), side=96, segmenter=(16, 16, 32, 8)))
    wholes = whole_features(scenes, net, EmbeddedSegmenter(clicker), None)
    lessons = teach(net.evidence, net.config.labels, scenes, wholes)
    dataset = LocatorDataset(scenes, wholes, net.config, net.evidence, lessons)
    rng = np.random.default_rng(0)
    for _ in range(10):
        batch = dataset.batch(rng, 4, 2)
        assert len(batch.maps[0]) == 4 <= len(batch.owners) == len(batch.evidence) == len(batch.boxes) <= 8
        for row, boxes in enumerate(batch.boxes):
            inside = batch.region[row, 0] > 0.5
            assert boxes is not None
            assert torch.isnan(batch.present[row]) or batch.present[row] == float(len(boxes) > 0)
            assert bool(inside.any()) == bool(len(boxes))
            if len(boxes):
                down, across = torch.nonzero(inside, as_tuple=True)
                low, high = boxes[:, :2].amin(0), boxes[:, 2:].amax(0)
                assert across.min() >= low[0] - 1 and across.max() <= high[0]
                assert down.min() >= low[1] - 1 and down.max() <= high[1]


def test_reviews_show_what_the_policy_would_see(trained: Path, data: Path, clicker: Path) -> None:
    policy = EmbeddedPolicy(trained / "policy.safetensors", EmbeddedSegmenter(clicker))
    scenes = read_scenes([data])
    reviews = make_reviews(policy, scenes, read_states(trained / "states.jsonl"), per_scene=2)
    right, wrong = ([r for r in reviews if r["wrong"] == told] for told in (False, True))
    assert 13 <= len(right) <= 26 and 0 < len(wrong) <= 13
    assert all(len(r["shown"]) == len(r["ious"]) and r["ious"][1:2] in ([], [1.0]) for r in right)
    assert not any(iou for r in wrong for iou in r["ious"])
    dataset = ReviewDataset(reviews, policy.net.config)
    rng = np.random.default_rng(0)
    for _ in range(10):
        batch = dataset.batch(rng, 4)
        assert ((batch.ious >= 0) & (batch.ious <= 1)).all()
        assert ((batch.wanted >= 0) & (batch.wanted <= 1 + 1e-5)).all()
        for row in range(4):
            mask, wanted, inside = batch.state[row, 0], batch.wanted[row, 0], batch.state[row, 3]
            assert not (mask * (1 - inside)).any() and not (wanted * (1 - inside)).any()
            if batch.ious[row] == 1:
                assert torch.equal(mask, wanted)
            if batch.state[row, 2].any():  # the box holds the object, as far as it was found
                assert (batch.state[row, 1] > 0).any()


def test_boxes_are_those_that_the_policy_gives_or_about_as_wrong(trained: Path, data: Path, clicker: Path) -> None:
    policy = EmbeddedPolicy(trained / "policy.safetensors", EmbeddedSegmenter(clicker))
    scene = read_scenes([data])[1]
    rng = np.random.default_rng(0)
    overlaps = [box_iou(located_box(policy, scene, scene.instances[0], rng), scene.instances[0].box) for _ in range(20)]
    assert 0.4 < np.mean(overlaps) < 0.99 and len(set(overlaps)) > 10


def test_centres_are_marked_exactly() -> None:
    heat = heat_target(torch.tensor([[2.0, 2.0, 6.0, 8.0], [0.0, 0.0, 1.0, 1.0]]), 12)
    assert heat[0].max() == 1 and heat[0, 5, 4] == 1 and heat[1, 0, 0] == 1


def test_nothing_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(InputError, match="no usable annotation"):
        read_scenes([tmp_path])


def test_polygons_and_odd_rows_are_learned_from_as_scenes(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((data / "train.json").read_text())
    shutil.copytree(data / "images", tmp_path / "images")
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[10, 10, 40, 10, 40, 40, 10, 40]]
    content["annotations"][0]["category_id"] = 77
    (tmp_path / "train.json").write_text(json.dumps(content))
    before, scenes = read_scenes([data]), read_scenes([tmp_path])
    assert [scene.path.name for scene in scenes] == [scene.path.name for scene in before]
    lost = content["annotations"][0]["image_id"]
    for number, (scene, other) in enumerate(zip(scenes, before, strict=True), 1):
        assert scene.size == other.size == scene.image().shape[:2]
        assert all(instance.mask()[10:40, 10:40].all() for instance in scene.instances)
        # What an image lacks is not known where one of its objects could not be read.
        assert scene.known == (frozenset() if number == lost else other.known)
    assert "no category 77" in caplog.text


def test_the_learning_rate_rises_stays_and_falls() -> None:
    assert rate_factor(0, 10, 0.0, 0.5) == pytest.approx(0.1)
    assert rate_factor(20, 10, 0.3, 0.5) == 1
    assert rate_factor(20, 10, 1.0, 0.5) == pytest.approx(0.02)
