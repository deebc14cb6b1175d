from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.datasets import load_samples
from label_studio_segagent.datasets.mask_folder import mask_folder_records
from label_studio_segagent.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photographs of 12 x 8: one with a binary mask, one with two instances and void, one with an empty mask."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for name in ("a.jpg", "b.PNG", "c.d.webp", "unmasked.jpg"):
        PilImage.new("RGB", (12, 8), (50, 60, 70)).save(tmp_path / "images" / name)
    mask = np.zeros((8, 12), np.uint8)
    mask[2:5, 3:9] = 255
    PilImage.fromarray(mask).save(tmp_path / "masks" / "a.png")
    mask[:] = 0
    mask[0:2, 0:2], mask[4:7, 4:7], mask[7] = 1, 2, 255
    PilImage.fromarray(mask).save(tmp_path / "masks" / "b.png")
    PilImage.fromarray(np.zeros((8, 12), np.uint8)).save(tmp_path / "masks" / "c.d.png")
    return tmp_path


def test_one_label_for_all(folder: Path) -> None:
    records = mask_folder_records(folder, label="Zelle")
    assert [(r.id, r.prompt, r.image.name) for r in records] == [
        ("a/255", "Zelle", "a.jpg"),
        ("b/1", "Zelle", "b.PNG"),
        ("b/2", "Zelle", "b.PNG"),
        ("c.d/1", "Zelle", "c.d.webp"),
    ]
    samples = list(load_samples(records))
    assert [int(sample.mask.sum()) for sample in samples] == [18, 4, 9, 0]
    assert samples[0].void is None
    assert samples[1].void is not None and samples[1].void[7].all() and samples[1].void.sum() == 12


def test_labels_from_folders(folder: Path) -> None:
    for label, name in (("große Katze", "a"), ("dog/puppy", "b")):
        place = folder / "masks" / label
        place.mkdir(parents=True)
        (folder / "masks" / f"{name}.png").rename(place / f"{name}.png")
    (folder / "masks" / "c.d.png").unlink()
    records = mask_folder_records(folder)
    assert [(r.id, r.prompt) for r in records] == [
        ("große Katze/a/255", "große Katze"), ("dog/puppy/b/1", "dog/puppy"), ("dog/puppy/b/2", "dog/puppy"),
    ]  # fmt: skip
    assert len(list(load_samples(records))) == 3


def test_several_labels_on_one_photograph_are_neighbours(folder: Path) -> None:
    for label in ("x", "y"):
        (folder / "masks" / label).mkdir()
        for name in ("a", "b"):
            (folder / "masks" / label / f"{name}.png").write_bytes((folder / "masks" / f"{name}.png").read_bytes())
    names = [record.image.name for record in mask_folder_records(folder, label="z")]
    assert names == sorted(names)


def test_photographs_in_folders_like_the_masks(folder: Path) -> None:
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (folder / kind / "x").mkdir()
        (folder / kind / f"a.{suffix}").rename(folder / kind / "x" / f"a.{suffix}")
    assert mask_folder_records(folder, label="z")[-1].image == folder / "images" / "x" / "a.jpg"


def test_what_cannot_be_used_is_lost_alone(folder: Path) -> None:
    (folder / "masks" / "broken.png").write_bytes(b"\x89PNG")
    PilImage.new("RGB", (12, 8)).save(folder / "images" / "broken.jpg")
    PilImage.fromarray(np.ones((8, 12), np.uint8)).save(folder / "masks" / "nobody.png")
    (folder / "masks" / "notes.txt").write_text("not a mask")
    failures: list[str] = []
    records = mask_folder_records(folder, label="x")
    samples = list(load_samples(records, lambda record, error: failures.append(f"{record.id}: {error}")))
    assert len(samples) == 4 and len(failures) == 2
    assert failures[0].startswith("broken: cannot read the mask") and "nobody.jpg" in failures[1]


def test_photographs_elsewhere(folder: Path) -> None:
    (folder / "images").rename(folder / "photos")
    assert len(list(load_samples(mask_folder_records(folder, folder / "photos", "x")))) == 4


def test_nothing_says_what_it_is(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.png shows: give a label, or put it into masks/<label>/"):
        mask_folder_records(folder)


def test_no_masks(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    with pytest.raises(ConfigError, match="no masks"):
        mask_folder_records(tmp_path, label="x")
