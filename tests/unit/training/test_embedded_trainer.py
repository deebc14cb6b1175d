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
from label_studio_segagent.training.trainer import FitSettings, Fitted, load_trainer, open_image


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


def read(fitted: Fitted, trainer: EmbeddedPolicyTrainer) -> EmbeddedPolicy:
    return EmbeddedPolicy(fitted.model.partition(":")[2], trainer.policy.segmenter)


def test_a_new_label_is_learned_and_old_ones_kept(
    trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    said: list[float] = []
    fitted = trainer.fit(trajectories, tmp_path, progress=lambda share, step: said.append(share))
    before, after = trainer.policy, read(fitted, trainer)
    assert fitted.seconds > 0 and 0 <= fitted.loss < 0.5 and said == sorted(said) and said[-1] == 1
    assert before.query("gizmo").blank and after.net.config.examples == (("gizmo", 4),)
    assert after.query("Gizmos").count == 4 and after.version != before.version
    assert not (tmp_path / "checkpoint.pt").exists()
    image, mask = draw(77)
    # What it knew is what it was.
    for label in ("dog", "person", "object"):
        assert after.locate(image, label) == before.locate(image, label)
    found = after.locate(image, "gizmo")
    assert found and found[0].box is not None
    x0, y0, x1, y1 = found[0].box
    rows, columns = np.nonzero(mask)
    assert x0 < columns.mean() < x1 and y0 < rows.mean() < y1


def test_one_annotation_is_something(
    trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    fitted = trainer.fit(trajectories[:1], tmp_path)
    assert fitted.loss == 0 and read(fitted, trainer).query("gizmo").count == 1


def test_the_order_of_annotations_does_not_matter(
    trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    one, other = (
        read(trainer.fit(found, tmp_path / name), trainer)
        for name, found in (("one", trajectories), ("other", trajectories[::-1]))
    )
    assert one.version == other.version


def test_what_was_deleted_is_forgotten(
    trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    """Later trainings of a project start from the model that it has."""
    renamed = [Trajectory("Other", t.image, t.box, t.steps, t.meta) for t in trajectories]
    all_of_them = trainer.fit([*trajectories, *renamed], tmp_path / "first")
    later = load_trainer(all_of_them.model, trainer.policy.segmenter)
    fewer = read(later.fit(trajectories[:2], tmp_path / "second"), trainer)
    assert dict(fewer.net.config.examples) == {"gizmo": 2, "other": 4}
    direct = read(trainer.fit(trajectories[:2], tmp_path / "direct"), trainer)
    torch.testing.assert_close(fewer.query("gizmo").examples, direct.query("gizmo").examples)


def test_an_interrupted_training_ends_like_one_without_a_break(
    trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("label_studio_segagent.training.embedded_trainer._CHECKPOINT_SECONDS", 0.0)
    whole = trainer.fit(trajectories, tmp_path / "whole")
    looked: list[str] = []

    def interrupted(trajectory: Trajectory) -> Image:
        if len(looked) == 2:
            raise KeyboardInterrupt
        looked.append(trajectory.image)
        return open_image(trajectory)

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(trajectories, tmp_path / "cut", images=interrupted)
    assert not (tmp_path / "cut" / "policy.safetensors").exists()
    again: list[str] = []

    def counted(trajectory: Trajectory) -> Image:
        again.append(trajectory.image)
        return open_image(trajectory)

    resumed = trainer.fit(trajectories, tmp_path / "cut", images=counted, resume=True)
    assert len(again) == 2 and not set(again) & set(looked), "no image twice"
    assert resumed.loss == whole.loss and read(resumed, trainer).version == read(whole, trainer).version


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
    plain, same = trainer.fit(trajectories[:4], tmp_path / "plain"), trainer.fit(clicked, tmp_path / "clicked")
    assert read(same, trainer).version == read(plain, trainer).version


def test_a_spent_budget_leaves_out_images_and_never_all(
    trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    assert read(trainer.fit(trajectories, tmp_path, FitSettings(seconds=0)), trainer).query("gizmo").count == 1


def test_nothing_to_learn_from(trainer: EmbeddedPolicyTrainer, trajectories: list[Trajectory], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        trainer.fit([t for t in trajectories if not t.steps[-1].mask.any()], tmp_path)
    gone = Trajectory("x", "/nowhere.png", None, trajectories[0].steps)
    with pytest.raises(InputError, match="cannot read the image"):
        trainer.fit([gone], tmp_path)
    with pytest.raises(ConfigError, match="cannot be trained"):
        load_trainer("saliency")
