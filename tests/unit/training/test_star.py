"""Whole rounds with the oracle, and with a tiny language model that really learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_mllm
from bars import Brush, sample
from typer.testing import CliRunner
from typing_extensions import override

from label_studio_segagent import load_policy
from label_studio_segagent.cli import app
from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.annotator import SimulatedAnnotator
from label_studio_segagent.hlmat.trajectory import Trajectory, encode_mask, read_trajectories
from label_studio_segagent.policies import Policy
from label_studio_segagent.policies.oracle import OraclePolicy
from label_studio_segagent.training.attempts import StarSettings, annotate
from label_studio_segagent.training.mllm_trainer import MllmSettings, MllmTrainer
from label_studio_segagent.training.star import star
from label_studio_segagent.training.trainer import Fitted, Trainer

runner = CliRunner()


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
    # Another run is no continuation of this one.
    with pytest.raises(InputError, match="other settings: {'samples'.*name another folder"):
        star(trainer, load, Brush(), samples[:2], tmp_path, StarSettings(rounds=1), held_out=samples[:1])
    trainer.start = "another"
    with pytest.raises(InputError, match="other settings: {'start': 'start'}"):
        star(trainer, load, Brush(), samples, tmp_path, StarSettings(rounds=1), held_out=samples[:1])
    assert len(trainer.calls) == 3


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


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"unknown": 1}', "\0", "[" * 5000])
@pytest.mark.parametrize("name", ["settings.json", "round-0/round.json", "round-1/tally.json", "round-1/round.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    samples = [sample(seed) for seed in range(2)]

    def run() -> None:
        star(Recorder(), lambda _: OraclePolicy(samples), Brush(), samples, tmp_path, StarSettings(rounds=1))

    run()
    if name.endswith("tally.json"):
        (tmp_path / "round-1" / "round.json").unlink()
    path = tmp_path / name
    path.write_text(content)
    expected = (
        "other settings" if (name, content) == ("settings.json", '{"unknown": 1}') else "is damaged .*; delete it"
    )
    with pytest.raises(InputError, match=rf"(?s){expected}") as caught:
        run()
    assert str(path if "damaged" in expected else path.parent) in str(caught.value)
    path.unlink()
    run()
    assert path.exists()


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
