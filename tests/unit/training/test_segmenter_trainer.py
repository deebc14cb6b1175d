"""Real training of small networks on drawings, and a little of the one that ships."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from typer.testing import CliRunner

from label_studio_segagent import load_policy, load_segmenter
from label_studio_segagent.cli import app
from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.actions import Click, Finish
from label_studio_segagent.hlmat.trajectory import Step, Trajectory, encode_mask, write_trajectories
from label_studio_segagent.segmenters.embedded import EmbeddedSegmenter
from label_studio_segagent.segmenters.embedded_net import NetConfig, SegmenterNet
from label_studio_segagent.training import segmenter_trainer
from label_studio_segagent.training.evaluation import LabelledImage, to_trajectories
from label_studio_segagent.training.segmenter_report import save_weights
from label_studio_segagent.training.segmenter_trainer import EmbeddedSegmenterTrainer
from label_studio_segagent.training.trainer import FitSettings, load_segmenter_trainer

QUICK = FitSettings(seconds=600, epochs=12, rate=3e-3, patience=50)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter_trainer, "_CROPS", ((96, 3),))
    monkeypatch.setattr(segmenter_trainer, "_ROUND", 6)
    monkeypatch.setattr(segmenter_trainer, "_EXAM", 2)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A segmenter that has learned nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("segmenter") / "tiny.safetensors"
    save_weights(SegmenterNet(NetConfig("lite0", (16, 16, 32), 8, 1)), path)
    return f"embedded:{path}"


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory) -> list[Trajectory]:
    """Ten pictures of two bright discs on noise, and one of nothing."""
    folder, found = tmp_path_factory.mktemp("images"), []
    rng = np.random.default_rng(0)
    for number in range(11):
        pixels, masks = rng.integers(0, 90, (96, 128, 3)).astype(np.uint8), []
        for colour, x in (((230, 60, 40), 35), ((50, 220, 90), 92))[: 2 * (number < 10)]:
            mask = cv2.circle(np.zeros((96, 128), np.uint8), (x, int(rng.integers(35, 60))), 20, 1, -1) > 0
            pixels[mask] = colour
            masks.append(encode_mask(mask))
        path = folder / f"{number}.png"
        PilImage.fromarray(pixels).save(path)
        found.append(LabelledImage(str(path), "disc", tuple(masks), str(number)))
    return to_trajectories(found)


def column(out: Path, name: str) -> list[float]:
    header, *rows = [line.split(",") for line in (out / "curves.csv").read_text().splitlines()]
    return [float(row[header.index(name)]) for row in rows if row[header.index(name)]]


def masks_of(segmenter: EmbeddedSegmenter) -> np.ndarray:
    image = np.zeros((96, 128, 3), np.uint8)
    cv2.circle(image, (60, 50), 22, (240, 80, 50), -1)
    return segmenter.predict(segmenter.set_image(image), [Click(60, 50)]).logits


def test_it_learns_and_the_encoder_stays(start: str, trajectories: list[Trajectory], tmp_path: Path) -> None:
    trainer = load_segmenter_trainer(start)
    assert isinstance(trainer, EmbeddedSegmenterTrainer)
    said: list[float] = []
    done = trainer.fit(trajectories, tmp_path, QUICK, progress=lambda share, step: said.append(share))
    assert done.steps == 36, "18 objects, twelve times, six in a batch"
    assert said == sorted(said) and said[-1] == 1.0
    losses, judged = column(tmp_path, "loss"), column(tmp_path, "kept_back")
    assert losses[-1] < 0.8 * losses[0]
    assert done.loss == min(judged) < judged[0] - 0.1, "the start model was judged, too"
    assert {p.name.partition(".out.")[0] for p in tmp_path.iterdir()} == {
        "segmenter.safetensors", "curves.csv", "curves.png", "events"
    }  # fmt: skip
    before, after = trainer.segmenter, load_segmenter(done.model)
    assert isinstance(after, EmbeddedSegmenter)
    assert after.version != before.version and after.eyes == before.eyes == before.version
    assert not np.allclose(masks_of(before), masks_of(after))
    pixels = torch.rand(1, 3, 64, 96) * 255
    for old, new in zip(before.net.encode(pixels), after.net.encode(pixels), strict=True):
        assert torch.equal(old, new)
    again = EmbeddedSegmenterTrainer(done.model)
    assert again.segmenter.eyes == before.version, "and so on"


def test_an_interrupted_training_ends_like_one_without_a_break(
    start: str, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    trainer, settings = load_segmenter_trainer(start), FitSettings(seconds=1e6, epochs=6)
    whole = trainer.fit(trajectories, tmp_path / "whole", settings)

    class Killed(BaseException):
        pass

    def kill(share: float, step: str) -> None:
        if share > 0.7:
            raise Killed

    with pytest.raises(Killed):
        trainer.fit(trajectories, tmp_path / "cut", settings, progress=kill)
    assert not (tmp_path / "cut" / "segmenter.safetensors").exists()
    resumed = trainer.fit(trajectories, tmp_path / "cut", settings, resume=True)
    assert resumed.steps == whole.steps == 18 and resumed.loss == pytest.approx(whole.loss, rel=1e-5)
    assert column(tmp_path / "cut", "loss") == pytest.approx(column(tmp_path / "whole", "loss"), rel=1e-4)
    assert np.allclose(*(masks_of(EmbeddedSegmenterTrainer(f.model).segmenter) for f in (whole, resumed)), atol=1e-3)
    other = trainer.fit(trajectories, tmp_path / "other", FitSettings(seconds=1e6, epochs=6, seed=1))
    assert other.loss != whole.loss


def test_it_stops_early_with_the_best_and_in_time(start: str, trajectories: list[Trajectory], tmp_path: Path) -> None:
    harmful = FitSettings(seconds=600, epochs=100, rate=3.0, patience=2)
    done = load_segmenter_trainer(start).fit(trajectories, tmp_path / "early", harmful)
    assert done.steps < 100 and done.loss == min(column(tmp_path / "early", "kept_back"))
    short = load_segmenter_trainer(start).fit(trajectories[:4], tmp_path / "short", FitSettings(seconds=0.5))
    assert 0 < short.steps < 240 and load_segmenter(short.model)


def test_the_shipped_policy_works_with_the_shipped_segmenter_fine_tuned(
    trajectories: list[Trajectory], tmp_path: Path, caplog: pytest.LogCaptureFixture, clean_environment: None
) -> None:
    """From the command line."""
    file = tmp_path / "clicks.jsonl"
    write_trajectories(file, trajectories[:6])
    command = ["train", "embedded", "--segmenter", "--trajectories", str(file), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--epochs", "1"])
    assert result.exit_code == 0, result.output
    model = f"embedded:{tmp_path / 'out' / 'segmenter.safetensors'}"
    assert f"SEGAGENT_SEGMENTER={model}" in result.output
    tuned, shipped = load_segmenter(model), load_segmenter("embedded")
    assert tuned.version != shipped.version
    with caplog.at_level(logging.WARNING):
        policy = load_policy("embedded", tuned)
    assert not caplog.records, "it looks through the same eyes"
    image = np.asarray(PilImage.open(trajectories[0].image))
    assert policy.locate(image, "object") == load_policy("embedded", shipped).locate(image, "object")
    result = CliRunner().invoke(app, [*command[:1], "grabcut", *command[2:]])
    assert result.exit_code == 1 and "'grabcut' cannot be trained" in result.output


def test_nothing_to_learn_from(start: str, trajectories: list[Trajectory], tmp_path: Path) -> None:
    trainer = load_segmenter_trainer(start)
    with pytest.raises(InputError, match="nothing to learn from"):
        trainer.fit(trajectories[-1:], tmp_path)
    small, large = (np.ones((n, n), bool) for n in (30, 40))
    path = trajectories[0].image
    speck = np.arange(900).reshape(30, 30) < 15
    for mask, weight in ((small, 0), (speck, 1)):
        with pytest.raises(InputError, match="nothing to learn from"):
            trainer.fit([Trajectory("x", path, None, [Step(mask, Finish())], {"weight": weight})], tmp_path)
    with pytest.raises(InputError, match="30 x 30 pixels large, the image is 128 x 96"):
        trainer.fit([Trajectory("x", path, None, [Step(small, Finish())])], tmp_path)
    with pytest.raises(InputError, match="different sizes"):
        trainer.fit([Trajectory("x", path, None, [Step(mask, Finish())]) for mask in (small, large)], tmp_path)
    with pytest.raises(InputError, match="cannot read the image"):
        trainer.fit([Trajectory("x", "/nowhere.png", None, [Step(small, Finish())])], tmp_path)
    with pytest.raises(ConfigError, match="no segmenter weights at"):
        load_segmenter_trainer("embedded:/nowhere.safetensors")


def test_weights_and_large_images(start: str, tmp_path: Path) -> None:
    """What counts for little is drawn seldom; what is large is looked at smaller."""
    pixels = np.zeros((100, 2000, 3), np.uint8)
    mask = np.zeros((100, 2000), bool)
    mask[20:80, 100:400] = True
    PilImage.fromarray(pixels).save(tmp_path / "wide.png")
    one = Trajectory("x", str(tmp_path / "wide.png"), None, [Step(mask, Finish())], {"weight": 0.5})
    two = Trajectory("x", "elsewhere", None, [Step(mask, Finish())], {"weight": 0.1})
    sources = segmenter_trainer._sources([one, two], segmenter_trainer.open_image)
    first, second = sorted(sources, key=lambda source: -source.weight)
    assert (first.weight, second.weight) == (1.0, pytest.approx(0.2))
    assert first.image().shape == (80, 1600, 3) and first.box(0) == (80, 16, 320, 64)
