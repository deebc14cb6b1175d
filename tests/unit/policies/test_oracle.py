from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.datasets.coco_writer import CocoWriter
from label_studio_segagent.errors import ConfigError
from label_studio_segagent.hlmat.actions import Click, Finish
from label_studio_segagent.hlmat.annotator import SimulatedAnnotator
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample, encode_mask
from label_studio_segagent.policies import Observation
from label_studio_segagent.policies.oracle import OraclePolicy


def two_instances() -> list[Sample]:
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    left, right = np.zeros((40, 80), bool), np.zeros((40, 80), bool)
    left[10:31, 10:31], right[10:31, 50:71] = True, True
    return [Sample(image, "thing", left, id="l"), Sample(image, "thing", right, id="r")]


def see(sample: Sample, mask: np.ndarray | None = None, **more: object) -> Observation:
    return Observation(sample.image, np.zeros_like(sample.mask) if mask is None else mask, sample.prompt, **more)


def test_it_clicks_like_f_sim_and_rates_with_the_true_iou(scene: Sample) -> None:
    policy = OraclePolicy([scene])
    half = scene.mask & (np.arange(160) < 90)
    for mask in (np.zeros_like(half), half, ~scene.mask):
        decision = policy.act([see(scene, mask)])[0]
        assert decision.action == SimulatedAnnotator().next_action(mask, scene.mask)
        assert decision.predicted_iou == iou(mask, scene.mask)
    done = policy.act([see(scene, scene.mask)])[0]
    assert done.action == Finish() and done.predicted_iou == 1


def test_its_clicks_are_exact_to_the_pixel_on_large_images() -> None:
    mask = np.zeros((10, 3000), bool)
    mask[5, 1234] = True
    sample = Sample(np.zeros((10, 3000, 3), np.uint8), "dot", mask)
    assert OraclePolicy([sample]).act([see(sample)])[0].action == Click(1234, 5, True)


def test_instances_are_located_and_told_apart_by_the_box() -> None:
    left, right = two_instances()
    policy = OraclePolicy([left, right])
    assert [target.box for target in policy.locate(left.image.copy(), "thing")] == [(10, 10, 31, 31), (50, 10, 71, 31)]
    click = policy.act([see(left, box=(48.0, 9.0, 70.0, 30.0))])[0].action
    assert click == Click(60, 20, True)
    click = policy.act([see(left, box=(9.0, 9.0, 30.0, 30.0))])[0].action
    assert click == Click(20, 20, True)


def test_instances_are_told_apart_by_the_mask() -> None:
    left, right = two_instances()
    policy = OraclePolicy([left, right])
    assert policy.act([see(left, right.mask)])[0].predicted_iou == 1
    part = right.mask & (np.arange(80) < 60)
    assert policy.act([see(left, part)])[0].predicted_iou == pytest.approx(10 / 21)


def test_rejected_clicks_are_not_repeated() -> None:
    left, right = two_instances()
    decision = OraclePolicy([left]).act([see(left, rejected=(Click(20, 20),))])[0]
    assert decision.action != Click(20, 20, True) and isinstance(decision.action, Click)


def test_void_pixels_do_not_count() -> None:
    left, right = two_instances()
    sample = replace(left, void=right.mask)
    policy = OraclePolicy([sample])
    decision = policy.act([see(sample, left.mask | right.mask)])[0]
    assert decision.predicted_iou == 1 and decision.action == Finish()
    assert policy.version != OraclePolicy([left]).version


def test_unknown_image_or_prompt() -> None:
    left, _ = two_instances()
    policy = OraclePolicy([left])
    assert policy.locate(left.image, "other") == []
    assert policy.locate(left.image[:, ::-1], "thing") == []
    decision = policy.act([Observation(left.image, left.mask, "other")])[0]
    assert decision.predicted_iou == 0
    assert isinstance(decision.action, Click) and not decision.action.positive


def test_version_follows_everything_it_knows(scene: Sample) -> None:
    left, right = two_instances()
    versions = {
        OraclePolicy(samples, annotator).version
        for samples in ([], [left], [right], [left, right], [replace(left, prompt="x")], [scene])
        for annotator in (None, SimulatedAnnotator(jitter=2), SimulatedAnnotator(stop_iou=0.5))
    }
    assert len(versions) == 18
    assert OraclePolicy([left]).version == OraclePolicy([replace(left, id="?")]).version


def test_loaded_from_a_coco_file(demo_json: Path, photos: list[Sample]) -> None:
    policy = load_policy(f"oracle:{demo_json}")
    assert policy.version == OraclePolicy(photos).version
    assert len(policy.locate(photos[2].image, photos[2].prompt)) >= 1


def test_one_bad_row_does_not_silence_it(scene: Sample, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "images").mkdir()
    PilImage.fromarray(scene.image).save(tmp_path / "images" / "a.png")
    writer = CocoWriter(tmp_path)
    image = writer.add_image("a.png", (120, 160))
    writer.add_object(image, scene.prompt, encode_mask(scene.mask))
    writer.add_object(image, "bad", encode_mask(scene.mask), category_id=77)
    policy = load_policy(f"oracle:{writer.write('coco.json')}")
    assert policy.act([see(scene, scene.mask)])[0].predicted_iou == 1 and "no category 77" in caplog.text


@pytest.mark.parametrize("spec", ["oracle", "oracle:", "oracle:/does/not/exist.json"])
def test_without_its_answers(spec: str) -> None:
    with pytest.raises(ConfigError):
        load_policy(spec)


def test_what_a_perfect_annotator_reaches(scene: Sample) -> None:
    agent = SegAgent(OraclePolicy([scene]), load_segmenter("grabcut"))
    rollout = agent.segment(scene.image, "ellipse")
    assert rollout.predicted_iou == iou(rollout.mask, scene.mask) > 0.95
