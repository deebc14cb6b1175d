"""Keep or replace, exactly; and whole rounds with the oracle, and with a tiny language model that really learns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_mllm
from typer.testing import CliRunner
from typing_extensions import override

from label_studio_segagent import load_policy
from label_studio_segagent.cli import app
from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.actions import GRAMMARS, Action, Click, Finish
from label_studio_segagent.hlmat.annotator import SimulatedAnnotator
from label_studio_segagent.hlmat.arrays import Image
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample, Trajectory, encode_mask, read_trajectories
from label_studio_segagent.policies import Decision, Observation, Policy, Target
from label_studio_segagent.policies.oracle import OraclePolicy
from label_studio_segagent.segmenters import ImageState, Segmentation, Segmenter
from label_studio_segagent.training.mllm_trainer import MllmSettings, MllmTrainer
from label_studio_segagent.training.star import StarSettings, annotate, attempt, star
from label_studio_segagent.training.trainer import Fitted, Trainer

RADIUS = 8
runner = CliRunner()


class Brush(Segmenter):
    """Paints or wipes out a square around each click."""

    version = "brush"

    @override
    def set_image(self, image: Image) -> ImageState:
        return ImageState(image)

    @override
    def predict(self, state: ImageState, clicks: Sequence[Click], *, box: Any = None, prior: Any = None) -> Any:
        mask = np.zeros(state.size, bool)
        for click in clicks:
            row, column = click.pixel(*state.size)
            mask[max(0, row - RADIUS) : row + RADIUS, max(0, column - RADIUS) : column + RADIUS] = click.positive
        return Segmentation(mask, 1.0, np.where(mask, 4, -4).astype(np.float32))


class Script(Policy):
    """Says what it was told to say, answer by answer."""

    version, grammar = "script", GRAMMARS["segagent"]()

    def __init__(self, actions: Sequence[Action | None]) -> None:
        self.actions = list(actions)
        self.seen: list[Observation] = []

    @override
    def locate_batch(self, items: Sequence[tuple[Image, str]]) -> list[list[Target]]:
        return [[] for _ in items]

    @override
    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        self.seen += observations
        return [Decision(self.actions.pop(0), 0.5, "as told") for _ in observations]


def sample(seed: int = 0, top: int = 16) -> Sample:
    """A target of 16 rows by 48 columns: three squares of the brush beside each other."""
    mask = np.zeros((64, 64), bool)
    mask[top : top + 16, 8:56] = True
    image = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image[mask] //= 4
    return Sample(image, "bar", mask, id=f"bar-{seed}")


LEFT, MIDDLE, RIGHT, BESIDE = Click(16, 24), Click(32, 24), Click(48, 24), Click(32, 56)


def actions(trajectory: Trajectory) -> list[Action | None]:
    return [step.action for step in trajectory.steps]


def corrected(number: int) -> Action:
    """What F_sim says after so many of LEFT, MIDDLE, RIGHT."""
    made = (LEFT, MIDDLE, RIGHT)[:number]
    mask = Brush().predict(ImageState(sample().image), made).mask
    return SimulatedAnnotator().next_action(mask, sample().mask, made)


def test_what_helps_is_kept_and_the_rest_replaced() -> None:
    """LEFT helps, BESIDE hurts, RIGHT helps; then even the annotator knows no click that would."""
    policy = Script([LEFT, BESIDE, RIGHT, Finish()])
    [trajectory], tally = attempt(policy, [sample()], Brush(), SimulatedAnnotator(), StarSettings(max_clicks=4))
    correction = corrected(1)
    assert isinstance(correction, Click) and correction not in (LEFT, BESIDE)
    assert actions(trajectory)[:3] == [LEFT, correction, RIGHT]
    assert (tally.kept, tally.replaced, tally.unreadable, tally.trajectories) == (3, 1, 0, 1)
    masks = [Brush().predict(ImageState(sample().image), actions(trajectory)[:n]).mask for n in range(3)]
    for step, mask, seen in zip(trajectory.steps, masks, policy.seen, strict=False):
        assert np.array_equal(step.mask, mask) and np.array_equal(seen.mask, mask), "the rollout went on from there"
        assert step.true_iou == pytest.approx(iou(mask, sample().mask))
    assert [step.text for step in trajectory.steps[:3]] == ["as told", "", "as told"]


def test_finishing_too_early_is_replaced() -> None:
    policy = Script([LEFT, Finish()])
    [trajectory], tally = attempt(policy, [sample()], Brush(), SimulatedAnnotator(), StarSettings(max_clicks=2))
    assert actions(trajectory) == [LEFT, corrected(1), None]
    assert (tally.kept, tally.replaced) == (1, 1)


def test_a_perfect_policy_is_kept_to_the_letter() -> None:
    policy = Script([LEFT, MIDDLE, RIGHT, Finish()])
    [trajectory], tally = attempt(policy, [sample()], Brush(), SimulatedAnnotator())
    assert actions(trajectory) == [LEFT, MIDDLE, RIGHT, Finish()]
    assert (tally.kept, tally.replaced) == (4, 0)
    assert trajectory.steps[-1].true_iou == 1.0


def test_no_click_is_kept_where_the_annotator_is_done() -> None:
    policy = Script([LEFT, MIDDLE, RIGHT, BESIDE])
    [trajectory], tally = attempt(policy, [sample()], Brush(), SimulatedAnnotator())
    assert actions(trajectory) == [LEFT, MIDDLE, RIGHT, Finish()]
    assert (tally.kept, tally.replaced) == (3, 1)


def test_an_unreadable_answer_is_replaced_and_counted() -> None:
    policy = Script([None, Finish()])
    [trajectory], tally = attempt(policy, [sample()], Brush(), SimulatedAnnotator(), StarSettings(max_clicks=1))
    assert actions(trajectory) == [corrected(0), None], "the clicks are used up after the first"
    assert (tally.kept, tally.replaced, tally.unreadable) == (0, 1, 1)


def test_a_gain_must_be_large_enough() -> None:
    policy = Script([LEFT])
    [trajectory], tally = attempt(
        policy, [sample()], Brush(), SimulatedAnnotator(), StarSettings(max_clicks=1, min_gain=0.4)
    )
    assert tally.kept == 0
    assert actions(trajectory) == [Finish()], "the annotator's click gains as little: a person would stop"


def test_samples_in_lockstep_do_not_mix() -> None:
    """More than fit at once, finishing at different times, half of the answers wrong."""
    samples = [sample(seed, top=8 + seed) for seed in range(24)]

    class Noisy(OraclePolicy):
        calls = 0

        @override
        def act(self, observations: Sequence[Observation]) -> list[Decision]:
            self.calls += 1
            right = super().act(observations)
            wrong = Decision(Click(60, 60), 0.1, "")
            masks = [o.mask for o in observations]
            return [wrong if m.sum() // 64 % 3 == 0 or not m.any() else d for m, d in zip(masks, right, strict=True)]

    policy = Noisy(samples)
    together, tally = attempt(policy, samples, Brush(), SimulatedAnnotator())
    assert policy.calls < 24, "one call of the policy for all that are in flight"
    alone = [attempt(policy, [one], Brush(), SimulatedAnnotator())[0][0] for one in samples]
    assert [t.to_json() for t in together] == [t.to_json() for t in alone]
    assert tally.replaced >= 24 and tally.kept > 24 and tally.trajectories == 24
    for trajectory, one in zip(together, samples, strict=True):
        ious = [step.true_iou for step in trajectory.steps]
        assert ious == sorted(ious) and trajectory.meta["object"] == one.id, "every step gains"


class Recorder(Trainer):
    """A trainer that teaches nothing and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__("start")
        self.calls: list[list[Trajectory]] = []

    @override
    def fit(self, trajectories: Any, out: Path, settings: Any = None, **options: Any) -> Fitted:
        self.calls.append(list(trajectories))
        return Fitted(f"model-{len(self.calls)}", 1, 0.5, 0.1)


def test_rounds_learn_from_the_union_and_are_not_repeated(tmp_path: Path) -> None:
    samples = [sample(seed) for seed in range(3)]
    loaded: list[str] = []

    def load(name: str) -> Policy:
        loaded.append(name)
        return OraclePolicy(samples)

    trainer = Recorder()
    rounds = star(trainer, load, Brush(), samples, tmp_path, StarSettings(rounds=1), held_out=samples[:1])
    original = annotate(samples, Brush(), SimulatedAnnotator())
    assert [[t.to_json() for t in call[:3]] for call in trainer.calls] == [[t.to_json() for t in original]] * 2
    own = list(read_trajectories(tmp_path / "round-1" / "trajectories.jsonl"))
    assert [t.to_json() for t in trainer.calls[1][3:]] == [t.to_json() for t in own]
    assert [t.meta["source"] for t in trainer.calls[1]] == ["F_sim"] * 3 + ["StaR+"] * 3
    assert [(r.number, r.model, r.learned_from) for r in rounds] == [(0, "model-1", 3), (1, "model-2", 6)]
    tally = rounds[1].tally
    assert tally.kept + tally.replaced == sum(len(t.steps) for t in own)
    assert tally.replaced == 3, "the last click of each gains nothing with this brush, so that finishing is learned"
    assert rounds[1].miou == pytest.approx(rounds[1].train_miou, abs=0.1) and rounds[1].miou > 0.8
    assert loaded == ["model-1", "model-1", "model-2"], "measured, rolled out, measured"
    assert [r["model"] for r in json.loads((tmp_path / "star.json").read_text())] == ["model-1", "model-2"]
    # What is there is not done again; one more round is.
    again = star(trainer, load, Brush(), samples, tmp_path, StarSettings(rounds=2), held_out=samples[:1])
    assert again[:2] == rounds and len(trainer.calls) == 3 and again[2].model == "model-3"


def test_an_interrupted_round_keeps_its_rollouts(tmp_path: Path) -> None:
    samples = [sample(seed) for seed in range(3)]

    class Failing(Recorder):
        @override
        def fit(self, trajectories: Any, out: Path, settings: Any = None, **options: Any) -> Fitted:
            if len(trajectories) > 3 and len(self.calls) == 1:
                self.calls.append([])
                raise KeyboardInterrupt
            return super().fit(trajectories, out, settings, **options)

    trainer, policy = Failing(), OraclePolicy(samples)
    with pytest.raises(KeyboardInterrupt):
        star(trainer, lambda _: policy, Brush(), samples, tmp_path, StarSettings(rounds=1))
    before = (tmp_path / "round-1" / "trajectories.jsonl").read_bytes()
    rounds = star(trainer, lambda _: policy, Brush(), samples, tmp_path, StarSettings(rounds=1))
    assert (tmp_path / "round-1" / "trajectories.jsonl").read_bytes() == before and rounds[1].learned_from == 6
    assert rounds[1].tally.trajectories == 3


def test_bad_samples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are none"):
        star(Recorder(), lambda _: OraclePolicy([]), Brush(), [], tmp_path)
    with pytest.raises(InputError, match="2 samples have 1 different ids"):
        star(Recorder(), lambda _: OraclePolicy([]), Brush(), [sample(), sample()], tmp_path)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder with images/, train.json and val.json of twelve bars each."""
    from PIL import Image as PilImage

    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for part, first in (("train", 0), ("val", 100)):
        images, annotations = [], []
        for number in range(first, first + 12):
            one = sample(number, top=8 + number % 12)
            PilImage.fromarray(one.image).save(folder / "images" / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
            rle = encode_mask(one.mask)
            annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": rle,
                                "area": int(one.mask.sum()), "bbox": [8, 8, 48, 16], "iscrowd": 0})  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "bar"}]}
        (folder / f"{part}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def model(tmp_path: Path, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGAGENT_PRESET", "segagent")
    return tiny_mllm.make_llava(tmp_path / "model")


def test_star_and_train_from_the_command_line(
    coco: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: Callable[[], None]
) -> None:
    """A language model with random weights, GrabCut, one round; then supervised training on what it left behind."""
    options = [
        "--split",
        "train",
        "--held-out",
        "val",
        "--segmenter",
        "grabcut",
        "--rounds",
        "1",
        "--clicks",
        "2",
        "--epochs",
        "1",
        "--full",
        "--limit",
        "12",
    ]
    command = ["star", f"hf:{model}", "--data", str(coco), "--out", str(tmp_path / "star"), *options]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    rounds = json.loads((tmp_path / "star" / "star.json").read_text())
    assert [r["learned_from"] for r in rounds] == [12, 24]
    assert rounds[1]["tally"]["kept"] + rounds[1]["tally"]["replaced"] > 12
    assert f"SEGAGENT_POLICY={rounds[1]['model']}" in result.output and "kept" in result.output
    assert load_policy(rounds[1]["model"])
    file = tmp_path / "star" / "round-1" / "trajectories.jsonl"
    command = ["train", f"hf:{model}", "--trajectories", str(file), "--epochs", "1", "--out", str(tmp_path / "lora")]
    trained = runner.invoke(app, command)
    assert trained.exit_code == 0, trained.output
    assert f"SEGAGENT_POLICY=hf:{model}+{tmp_path / 'lora' / 'adapter'}" in trained.output
    again = runner.invoke(app, command)
    assert again.exit_code == 1 and "holds a run already" in again.output


def test_star_without_data(tmp_path: Path, clean_environment: None) -> None:
    result = runner.invoke(app, ["star", "hf:x", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and "is no data set that is known" in result.output


def test_a_language_model_improves(model: Path, tmp_path: Path) -> None:
    """All bars lie at the same place, so that a few seconds suffice."""
    samples = [sample(seed) for seed in range(12)]
    fit = MllmSettings(epochs=14, batch=4, full=True, rate=2e-3)
    rounds = star(
        MllmTrainer(f"hf:{model}"), load_policy, Brush(), samples[:10], tmp_path / "star", StarSettings(1, fit=fit),
        held_out=samples[10:],
    )  # fmt: skip
    first, second = (one.miou or 0.0 for one in rounds)
    assert second > 0.75 and second >= first, rounds
    assert rounds[1].tally.kept and rounds[1].tally.trajectories == 10
