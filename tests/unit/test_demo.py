from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.agent.rollout import Rollout
from label_studio_segagent.datasets import load_dataset, load_samples
from label_studio_segagent.demo import Photo, demo_config, demo_photos, match, run_demo
from label_studio_segagent.hlmat.trajectory import Sample, Trajectory, read_trajectories
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.regions import read_regions
from label_studio_segagent.training.trainer import open_image


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    """Two photographs that come with the package, one of them with several labels."""
    photos = {photo.path.stem: photo for photo in demo_photos()}
    return [photos["pagoda"], photos["fig_bowl"]]


@pytest.fixture(scope="module")
def agent() -> SegAgent:
    return SegAgent(load_policy("saliency"), load_segmenter("grabcut"), max_clicks=3)


@pytest.fixture
def drawing(scene: Sample) -> Photo:
    """A small image: much faster than a photograph."""
    return Photo(Path("drawing.png"), scene.image, {"ellipse": [scene.mask]})


@pytest.fixture(scope="module")
def done(
    photos: list[Photo], agent: SegAgent, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[str, str, float, float]], list[Photo]]:
    """The output folder, the rows, and the photographs that progress was reported for."""
    seen: list[Photo] = []
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return out, run_demo(agent, photos, out, seen.append), seen


def test_at_least_six_photographs_with_masks_come_with_the_package() -> None:
    photos = demo_photos()
    assert len(photos) >= 6
    for photo in photos:
        assert photo.path.exists() and photo.masks
        for masks in photo.masks.values():
            assert all(mask.shape == photo.image.shape[:2] and mask.any() for mask in masks)


def test_one_row_for_each_true_object(done: Any, photos: list[Photo]) -> None:
    _, rows, seen = done
    expected = [(p.path.name, label) for p in photos for label, masks in p.masks.items() for _ in masks]
    assert [row[:2] for row in rows] == expected
    assert all(0 <= row[2] <= 1 and 0 <= row[3] <= 1 for row in rows)
    assert any(row[2] > 0.5 for row in rows)
    assert seen == photos


def masks_on_disk(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(PilImage.open(path)) > 127 for path in sorted((out / "masks").glob("*.png"))}


def test_every_mask_has_its_strip(done: Any, photos: list[Photo]) -> None:
    out = done[0]
    masks = masks_on_disk(out)
    assert masks and all(mask.any() for mask in masks.values())
    assert sorted(masks) == sorted(path.stem for path in (out / "strips").glob("*.png"))
    for path in (out / "strips").glob("*.png"):
        strip = np.asarray(PilImage.open(path))
        assert strip.ndim == 3 and strip.shape[1] > 400 and strip.std() > 10
    assert (out / "sheet.png").stat().st_size > 10_000


def test_coco_is_read_by_pycocotools(done: Any, photos: list[Photo]) -> None:
    out = done[0]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out / "coco.json"))
    assert sorted(i["file_name"] for i in coco.imgs.values()) == sorted(photo.path.name for photo in photos)
    sizes = {photo.path.name: photo.image.shape[:2] for photo in photos}
    labels = [label for photo in photos for label in photo.masks]
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(dict.fromkeys(labels))
    masks = []
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        image = coco.imgs[annotation["image_id"]]
        assert mask.shape == sizes[image["file_name"]] == (image["height"], image["width"])
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox(coco.annToRLE(annotation)).tolist()
        assert 0 <= annotation["score"] <= 1
        masks.append(mask)
    assert sorted(m.sum() for m in masks) == sorted(m.sum() for m in masks_on_disk(out).values())


def test_label_studio_regions_are_the_masks(done: Any, photos: list[Photo], agent: SegAgent) -> None:
    out = done[0]
    tasks = json.loads((out / "label_studio.json").read_text("utf-8"))
    config = LabelConfig.parse((out / "label_config.xml").read_text("utf-8"))
    known = {label.name for _, label in config.outputs("image", {})}
    assert [task["data"]["image"] for task in tasks] == [photo.path.name for photo in photos]
    masks = masks_on_disk(out)
    count = 0
    for task, photo in zip(tasks, photos, strict=True):
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == agent.version and 0 <= prediction["score"] <= 1
        for region in read_regions(prediction["result"]):
            (label,) = region.labels
            assert label in known and region.from_name == "brush" and region.to_name == "image"
            stems = [s for s in masks if s.startswith(f"{photo.path.stem}-{label.replace(' ', '_')}-")]
            found = region.mask(*photo.image.shape[:2])
            assert any((found == masks[stem]).all() for stem in stems)
            count += 1
    assert count == len(masks)


def test_trajectories_end_with_the_masks(done: Any, photos: list[Photo]) -> None:
    trajectories = list(read_trajectories(done[0] / "trajectories.jsonl"))
    assert len(trajectories) == len(masks_on_disk(done[0]))
    assert {Path(trajectory.image).name for trajectory in trajectories} <= {photo.path.name for photo in photos}


def test_what_is_written_is_read_again(done: Any, photos: list[Photo]) -> None:
    records = load_dataset(done[0])
    samples = list(load_samples(records))
    assert {record.image for record in records} <= {done[0] / "images" / photo.path.name for photo in photos}
    masks = list(masks_on_disk(done[0]).values())
    assert len(samples) == len(masks) and all(any(np.array_equal(s.mask, m) for m in masks) for s in samples)
    images = {photo.path.name: photo.image for photo in photos}
    for sample in samples:
        assert np.array_equal(sample.image, images[Path(sample.path).name])
        assert sample.prompt in next(p.masks for p in photos if p.path.name == Path(sample.path).name)
    for trajectory in read_trajectories(done[0] / "trajectories.jsonl"):
        assert open_image(trajectory).shape[:2] == trajectory.steps[-1].mask.shape


def test_photographs_that_are_in_the_folder_already_stay_there(agent: SegAgent, drawing: Photo, tmp_path: Path) -> None:
    paths = [tmp_path / "other" / "a.png", tmp_path / "images" / "a.png", tmp_path / "A.PNG"]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        PilImage.fromarray(np.roll(drawing.image, number, 1)).save(path)
    run_demo(agent, [Photo(path, np.array(PilImage.open(path)), {"ellipse": []}) for path in paths], tmp_path)
    names = [task["data"]["image"] for task in json.loads((tmp_path / "label_studio.json").read_text())]
    assert names == ["a-2.png", "a.png", "A-3.PNG"]
    for path, name in zip(paths, names, strict=True):
        assert np.array_equal(np.array(PilImage.open(path)), np.array(PilImage.open(tmp_path / "images" / name)))


def test_a_second_run_replaces_the_first(agent: SegAgent, drawing: Photo, tmp_path: Path) -> None:
    for _ in range(2):
        run_demo(agent, [drawing], tmp_path)
    count = len(masks_on_disk(tmp_path))
    assert len(list(read_trajectories(tmp_path / "trajectories.jsonl"))) == count
    assert len(json.loads((tmp_path / "coco.json").read_text())["annotations"]) == count


def test_nothing_found_is_still_written(agent: SegAgent, tmp_path: Path) -> None:
    blank = Photo(tmp_path / "blank.png", np.full((40, 60, 3), 77, np.uint8), {"cat": [np.eye(40, 60, dtype=bool)]})
    rows = run_demo(agent, [blank], tmp_path / "out")
    assert rows == [("blank.png", "cat", 0.0, 0.0)]
    (task,) = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert task["predictions"][0]["result"] == [] and task["predictions"][0]["score"] == 0.0


@pytest.mark.parametrize("label", ['say "cheese" & <smile>', "猫", "a/b\\c", "x" * 300, "../../etc"])
def test_any_label_is_a_valid_config_and_file_name(label: str, agent: SegAgent, drawing: Photo, tmp_path: Path) -> None:
    (output,) = LabelConfig.parse(demo_config([label])).outputs("image", {})
    assert output[1].name == label
    run_demo(agent, [Photo(drawing.path, drawing.image, {label: []})], tmp_path / "out")
    assert {path.parent for path in (tmp_path / "out").rglob("*.png")} <= {
        tmp_path / "out", tmp_path / "out" / "masks", tmp_path / "out" / "strips"
    }  # fmt: skip
    assert list((tmp_path / "out" / "masks").iterdir())


def rollout(mask: np.ndarray) -> Rollout:
    return Rollout(mask, 0.5, Trajectory("x"), "finish")


def test_match_takes_each_rollout_once_best_pair_first() -> None:
    def band(start: int, stop: int) -> np.ndarray:
        mask = np.zeros((1, 20), bool)
        mask[:, start:stop] = True
        return mask

    truth = [band(0, 10), band(8, 19), band(19, 20)]
    found = [rollout(band(7, 19)), rollout(band(0, 9))]
    assert match(found, truth) == [(1, pytest.approx(0.9)), (0, pytest.approx(11 / 12)), (-1, 0.0)]
    assert match([rollout(band(0, 19))], truth[:2]) == [(-1, 0.0), (0, pytest.approx(11 / 19))]
    assert match([], truth) == 3 * [(-1, 0.0)]
    assert match(found, []) == []
