from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.arrays import Image
from label_studio_segagent.hlmat.trajectory import Step, Trajectory, encode_mask
from label_studio_segagent.policies.embedded import EmbeddedPolicy
from label_studio_segagent.training.embedded_trainer import EmbeddedPolicyTrainer
from label_studio_segagent.training.evaluation import LabelledImage, to_trajectories
from label_studio_segagent.training.trainer import FitSettings, load_trainer


def draw(number: int) -> tuple[Image, np.ndarray]:
    """A bright disc on noise."""
    rng = np.random.default_rng(number)
    mask = np.zeros((90, 120), np.uint8)
    cv2.circle(mask, (int(rng.integers(30, 90)), int(rng.integers(30, 60))), int(rng.integers(12, 24)), 1, -1)
    image = rng.integers(0, 90, (90, 120, 3)).astype(np.uint8)
    image[mask > 0] = (240, 200, 40)
    return image, mask > 0


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory) -> list[Trajectory]:
    folder = tmp_path_factory.mktemp("images")
    found = []
    for number in range(4):
        image, mask = draw(number)
        PilImage.fromarray(image).save(folder / f"{number}.png")
        found.append(LabelledImage(str(folder / f"{number}.png"), "Gizmo", (encode_mask(mask),), str(number)))
    plain = folder / "nothing.png"
    PilImage.fromarray(np.random.default_rng(9).integers(0, 90, (90, 120, 3)).astype(np.uint8)).save(plain)
    found.append(LabelledImage(str(plain), "Gizmo", (), "nothing"))
    return to_trajectories(found)


@pytest.fixture(scope="module")
def trainer() -> EmbeddedPolicyTrainer:
    made = load_trainer("embedded")
    assert isinstance(made, EmbeddedPolicyTrainer)
    return made


def test_a_new_label_is_learned_and_old_ones_kept(
    trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    said: list[float] = []
    settings = FitSettings(seconds=60, epochs=25)
    fitted = trainer.fit(trajectories, tmp_path, settings, progress=lambda share, step: said.append(share))
    before, after = trainer.policy, EmbeddedPolicy(fitted.model.partition(":")[2], trainer.policy.segmenter)
    assert fitted.steps == 50 and fitted.seconds > 0 and said == sorted(said) and said[-1] == 1
    assert "gizmo" not in before.net.config.labels and after.net.config.labels[-1] == "gizmo"
    assert after.book.find("gizmos") == "gizmo" and after.version != before.version
    assert (tmp_path / "curves.csv").read_text().count("\n") == 26 and (tmp_path / "curves.png").exists()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert not (tmp_path / "checkpoint.pt").exists()
    image, mask = draw(77)
    # What it knew is what it was, to the bit.
    for label in ("dog", "person", "object"):
        assert after.locate(image, label) == before.locate(image, label)
    rows = before.net.vectors.shape[0]
    assert torch.equal(after.net.vectors[:rows], before.net.vectors.half().float())
    found = after.locate(image, "gizmo")
    assert found and found[0].box is not None
    x0, y0, x1, y1 = found[0].box
    rows_, columns = np.nonzero(mask)
    assert x0 < columns.mean() < x1 and y0 < rows_.mean() < y1


def test_an_interrupted_training_ends_like_one_without_a_break(
    trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer.fit(trajectories, tmp_path / "whole", FitSettings(seconds=60, epochs=6))

    class Killed(BaseException):
        pass

    def kill(share: float, step: str) -> None:
        if step.startswith("learning") and share > 0.65:
            raise Killed

    with pytest.raises(Killed):
        trainer.fit(trajectories, tmp_path / "cut", FitSettings(seconds=60, epochs=6), progress=kill)
    assert not (tmp_path / "cut" / "policy.safetensors").exists()
    resumed = trainer.fit(trajectories, tmp_path / "cut", FitSettings(seconds=60, epochs=6), resume=True)
    assert resumed.steps == whole.steps and resumed.loss == pytest.approx(whole.loss, rel=1e-5)
    steps = [row.split(",")[0] for row in (tmp_path / "cut" / "curves.csv").read_text().splitlines()]
    assert steps == ["step", "2", "4", "6", "8", "10", "12"], "no epoch twice"
    first, second = (EmbeddedPolicy(f.model.partition(":")[2], trainer.policy.segmenter) for f in (whole, resumed))
    assert torch.allclose(first.net.vectors, second.net.vectors)


def test_known_labels_stay_near_what_they_were(
    trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    renamed = [Trajectory("Hunde", t.image, None, t.steps, t.meta) for t in trajectories]
    settings = FitSettings(seconds=60, epochs=2)
    fitted = trainer.fit(renamed, tmp_path, settings)
    after = EmbeddedPolicy(fitted.model.partition(":")[2], trainer.policy.segmenter)
    assert len(after.net.config.labels) - len(trainer.policy.net.config.labels) in (0, 1)


def test_the_target_counts_not_the_last_mask(
    trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    """Click trajectories often end before the mask is right; several are of one object."""
    clicked = []
    for done in trajectories[:4]:
        half = done.steps[-1].mask.copy()
        half[:, : half.shape[1] // 2] = False
        target = encode_mask(done.steps[-1].mask)
        for _ in range(2):
            steps = [Step(half, None, None, 0.5)]
            clicked.append(Trajectory(done.prompt, done.image, None, steps, {"target": target}))
    settings = FitSettings(seconds=60, epochs=4)
    plain = trainer.fit(trajectories[:4], tmp_path / "plain", settings)
    same = trainer.fit(clicked, tmp_path / "clicked", settings)
    assert same.loss == pytest.approx(plain.loss, rel=1e-4)


def test_nothing_to_learn_from(trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        trainer.fit([t for t in trajectories if not t.steps[-1].mask.any()], tmp_path)
    gone = Trajectory("x", "/nowhere.png", None, trajectories[0].steps)
    with pytest.raises(InputError, match="cannot read the image"):
        trainer.fit([gone], tmp_path)
    with pytest.raises(ConfigError, match="cannot be trained"):
        load_trainer("saliency")
