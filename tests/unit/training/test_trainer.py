from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.trajectory import Step, Trajectory
from label_studio_segagent.training.trainer import open_image


def trajectory(path: Path, size: tuple[int, int], **meta: str) -> Trajectory:
    return Trajectory("x", str(path), steps=[Step(np.zeros(size, bool), None)], meta=meta)


def test_images_are_read_as_their_masks_were_drawn(tmp_path: Path) -> None:
    exif = PilImage.Exif()
    for orientation, name in ((6, "turned.png"), (3, "upside down.png")):
        exif[0x0112] = orientation
        pixels = np.zeros((10, 20, 3), np.uint8)
        pixels[0] = 255
        PilImage.fromarray(pixels).save(tmp_path / name, exif=exif)
    assert open_image(trajectory(tmp_path / "turned.png", (20, 10))).shape == (20, 10, 3)
    assert open_image(trajectory(tmp_path / "turned.png", (10, 20))).shape == (10, 20, 3)
    upside_down = tmp_path / "upside down.png"
    assert open_image(trajectory(upside_down, (10, 20)))[-1].all()
    assert open_image(trajectory(upside_down, (10, 20), exif="ignored"))[0].all()
    assert open_image(trajectory(upside_down, (10, 20), exif="nonsense"))[-1].all()


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    PilImage.fromarray(np.array([[0, 1200, 4095]], np.uint16)).save(tmp_path / "a.png")
    assert open_image(trajectory(tmp_path / "a.png", (1, 3)))[0, :, 0].tolist() == [0, 74, 255]


def test_what_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PilImage.new("L", (100, 100)).save(tmp_path / "bomb.png")
    (tmp_path / "page.png").write_text("<html>log in</html>")
    monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", 4000)
    for name, words in (("bomb", "8000 pixels allowed"), ("page", "web page"), ("gone", "No such file")):
        with pytest.raises(InputError, match=rf"{name}\.png.*{words}"):
            open_image(trajectory(tmp_path / f"{name}.png", (100, 100)))
