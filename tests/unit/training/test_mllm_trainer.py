"""Real training steps of a tiny LLaVA with random weights."""

from __future__ import annotations

import csv
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_mllm
import torch
from safetensors.torch import load_file

from label_studio_segagent import load_policy
from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.actions import Click, Finish
from label_studio_segagent.hlmat.arrays import Image
from label_studio_segagent.hlmat.trajectory import Step, Trajectory
from label_studio_segagent.policies import Observation
from label_studio_segagent.policies.hf import HfPolicy
from label_studio_segagent.training.lessons import collate, lessons_of
from label_studio_segagent.training.mllm_trainer import MllmSettings, MllmTrainer
from label_studio_segagent.training.trainer import keep_back, load_trainer

EMPTY = np.zeros((40, 56), bool)
DONE = EMPTY.copy()
DONE[5:20, 5:30] = True
QUICK = MllmSettings(epochs=4, batch=4, at_once=4, full=True, rate=2e-3)


@pytest.fixture(autouse=True)
def _environment(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGAGENT_PRESET", "segagent")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mllm.make_llava(tmp_path_factory.mktemp("base"))


def image_of(trajectory: Trajectory) -> Image:
    number = int(trajectory.image)
    return np.random.default_rng(number).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def some(count: int, prompt: str = "cat") -> list[Trajectory]:
    steps = [Step(EMPTY, Click(17, 12), true_iou=0.0), Step(DONE, Finish(), true_iou=1.0)]
    return [Trajectory(prompt, str(number), steps=steps) for number in range(count)]


def fit(base: Path, out: Path, settings: MllmSettings = QUICK, count: int = 12, **more: Any) -> Any:
    return MllmTrainer(f"hf:{base}").fit(some(count), out, settings, images=image_of, **more)


def losses(out: Path, column: str = "loss") -> list[float]:
    with (out / "curves.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def answers(model: str) -> list[str]:
    image = image_of(some(1)[0])
    return [d.text for d in load_policy(model).act([Observation(image, mask, "cat") for mask in (EMPTY, DONE)])]


def test_a_small_model_learns_to_answer(base: Path, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    done = fit(base, tmp_path, replace(QUICK, epochs=20), progress=lambda share, text: told.append((share, text)))
    assert answers(done.model) == ["Current IOU: 0\nPositive point: (300, 304)", "Current IOU: 100\nFinish"]
    assert done.loss < 0.3 and done.loss == pytest.approx(min(losses(tmp_path, "loss_kept_back")))
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] / 10
    assert [share for share, _ in told] == sorted(share for share, _ in told) and told[-1][0] == 1.0
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("vision" in name for name in changed), "the image encoder is frozen"
    assert {"multi_modal_projector.linear_1.weight", "language_model.lm_head.weight"} <= changed


def test_a_run_leaves_curves_behind(base: Path, tmp_path: Path) -> None:
    done = fit(base, tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    [events] = tmp_path.glob("events.out.tfevents.*")
    length = struct.unpack("<Q", events.read_bytes()[:8])[0]
    assert b"brain.Event:2" in events.read_bytes()[12 : 12 + length], "the first record of an event file"
    assert b"loss_kept_back" in events.read_bytes()
    with (tmp_path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == sorted(int(r["step"]) for r in rows)
    assert int(rows[-1]["step"]) == done.steps == 22, "11 images learned from, one kept back, four epochs of 22 steps"


def test_an_adapter_is_loaded_like_any_other_and_trained_on(base: Path, tmp_path: Path) -> None:
    settings = replace(QUICK, full=False, epochs=6, rank=4)
    done = fit(base, tmp_path / "a", settings)
    assert done.model == f"hf:{base}+{tmp_path / 'a' / 'adapter'}"
    assert losses(tmp_path / "a")[-1] < losses(tmp_path / "a")[0]
    assert answers(done.model) != answers(f"hf:{base}")
    names = load_file(tmp_path / "a" / "adapter" / "adapter_model.safetensors")
    assert names and not any("vision" in name for name in names)
    assert any("multi_modal_projector" in name for name in names), "the projector learns"
    more = MllmTrainer(done.model).fit(some(12), tmp_path / "b", settings, images=image_of)
    assert more.loss < done.loss, "it went on from the adapter"
    assert more.model == f"hf:{base}+{tmp_path / 'b' / 'adapter'}"


@pytest.mark.parametrize("full", [True, False])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    base: Path, tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, full=full)
    whole = fit(base, tmp_path / "whole", settings)

    class Interruption(Exception):
        pass

    def interrupt(share: float, text: str) -> None:
        if share > 0.55:
            raise Interruption

    with pytest.raises(Interruption):
        fit(base, tmp_path / "parts", settings, progress=interrupt)
    with pytest.raises(InputError, match="holds a run already"):
        fit(base, tmp_path / "parts", settings)
    resumed = fit(base, tmp_path / "parts", settings, resume=True)
    assert (resumed.steps, resumed.loss) == (whole.steps, pytest.approx(whole.loss, rel=1e-4))
    again = fit(base, tmp_path / "parts", settings, resume=True)
    assert again == resumed and resumed.seconds > 0, "nothing is left to do"
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
    name = "model/model.safetensors" if full else "adapter/adapter_model.safetensors"
    one, other = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)
    longer = fit(base, tmp_path / "parts", replace(settings, epochs=5), resume=True)
    assert longer.steps > resumed.steps, "but more may be wanted"


def test_the_seed_decides(base: Path, tmp_path: Path) -> None:
    short = replace(QUICK, epochs=1)
    first, again, other = (fit(base, tmp_path / str(i), replace(short, seed=s)) for i, s in enumerate((1, 1, 2)))
    assert first.loss == again.loss != other.loss


def test_it_stops_early_when_what_was_kept_back_gets_no_better(base: Path, tmp_path: Path) -> None:
    """All answers are the same but those kept back, so that learning the others makes these less likely."""
    kept, _ = keep_back(some(12), 0)
    wrong = [
        replace_steps(t, [Step(EMPTY, Click(50, 30, False), true_iou=0.77)]) if t.image == kept[0].image else t
        for t in some(12)
    ]
    settings = replace(QUICK, epochs=60, patience=2)
    done = MllmTrainer(f"hf:{base}").fit(wrong, tmp_path, settings, images=image_of)
    assert done.steps < 330
    assert done.loss == pytest.approx(min(losses(tmp_path, "loss_kept_back"))), "and the best model is kept"


def replace_steps(trajectory: Trajectory, steps: list[Step]) -> Trajectory:
    return Trajectory(trajectory.prompt, trajectory.image, steps=steps)


def test_the_time_budget_ends_a_run_in_good_order(base: Path, tmp_path: Path) -> None:
    done = fit(base, tmp_path, replace(QUICK, epochs=10_000, seconds=1.5))
    assert 0 < done.steps < 20_000 and done.seconds < 30
    assert len(answers(done.model)) == 2


def policy_of(base: Path) -> HfPolicy:
    policy = load_policy(f"hf:{base}")
    assert isinstance(policy, HfPolicy)
    return policy


def test_labels_are_on_the_answer_alone_and_follow_the_very_question(base: Path) -> None:
    policy = policy_of(base)
    trajectories = [*some(1, "a very long description of a cat on the left"), *some(1)]
    lessons = lessons_of(trajectories)
    batch = collate(policy, lessons, image_of)
    for row, lesson in enumerate(lessons):
        step = lesson.trajectory.steps[lesson.step]
        seen = Observation(image_of(lesson.trajectory), step.mask, lesson.trajectory.prompt)
        asked = policy._inputs([policy._act_question(seen)])
        length = asked["input_ids"].shape[1]
        ids = batch["input_ids"][row]
        assert ids[:length].tolist() == asked["input_ids"][0].tolist(), "exactly what inference asks, without padding"
        torch.testing.assert_close(batch["pixel_values"][row], asked["pixel_values"][0])
        told = batch["labels"][row] != -100
        assert told.nonzero().flatten().tolist() == list(range(length, length + int(told.sum())))
        expected = ("Current IOU: 0\nPositive point: (300, 304)", "Current IOU: 100\nFinish")[lesson.step]
        assert policy.tokenizer.decode(ids[told]) == expected + "</s>"
        assert batch["attention_mask"][row].sum() == length + told.sum()
        assert (ids[length + int(told.sum()) :] == policy.tokenizer.pad_token_id).all()


def test_padding_does_not_change_the_loss(base: Path) -> None:
    policy = policy_of(base)
    lessons = lessons_of([*some(1, "a very long description of a cat on the left"), *some(1)])

    def loss(rows: list[Any]) -> Any:
        batch = collate(policy, rows, image_of)
        labels = batch.pop("labels")
        batch.pop("weights")
        with torch.no_grad():
            logits = policy.model(**batch).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none").sum(1)

    torch.testing.assert_close(loss(lessons), torch.cat([loss([one]) for one in lessons]), rtol=1e-4, atol=1e-4)


def test_what_counts_as_a_lesson() -> None:
    click = Click(1, 2)
    steps = [Step(EMPTY, click), Step(DONE, click, undone=True), Step(DONE, None)]
    counted, ignored = Trajectory("cat", steps=steps), Trajectory("cat", steps=steps, meta={"weight": 0})
    assert [(lesson.trajectory, lesson.step) for lesson in lessons_of([counted, ignored])] == [(counted, 0)]


def test_without_a_true_iou_the_last_mask_is_the_truth(base: Path) -> None:
    policy = policy_of(base)
    trajectory = Trajectory("cat", "0", steps=[Step(DONE & (np.arange(56) < 15), Click(20, 9)), Step(DONE, Finish())])
    labels = collate(policy, lessons_of([trajectory]), image_of)["labels"]
    texts = [policy.tokenizer.decode(row[row != -100]) for row in labels]
    assert texts[0].startswith("Current IOU: 40\n") and texts[1].startswith("Current IOU: 100\n")


def test_weights_count(base: Path, tmp_path: Path) -> None:
    """Of two contradicting sets of answers the one with more weight is learned."""
    light, heavy = some(6), some(6)
    for trajectory in light:
        trajectory.steps = [Step(EMPTY, Finish(), true_iou=0.9)]
        trajectory.meta["weight"] = 0.02
    for trajectory in heavy:
        trajectory.meta["weight"] = 2.0
    done = MllmTrainer(f"hf:{base}").fit([*light, *heavy], tmp_path, replace(QUICK, epochs=24), images=image_of)
    assert answers(done.model)[0].startswith("Current IOU: 0\n")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda t: t.steps.clear(), InputError, "nothing to learn from"),
        (lambda t: setattr(t, "image", "no/such.png"), InputError, "no/such.png"),
    ],
)
def test_bad_trajectories(
    base: Path, tmp_path: Path, change: Callable[[Trajectory], None], error: type[Exception], match: str
) -> None:
    trajectories = some(2)
    for trajectory in trajectories:
        change(trajectory)
    with pytest.raises(error, match=match):
        load_trainer(f"hf:{base}").fit(trajectories, tmp_path / "out", QUICK)


def test_bad_models(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no-such-folder"):
        MllmTrainer(f"hf:{base}+{tmp_path / 'no-such-folder'}").fit(some(1), tmp_path / "a", images=image_of)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"tensorboardX: pip install 'label-studio-segagent\[mllm\]'"):
        fit(base, tmp_path / "b")


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import test_mllm_trainer as t
base, out = Path(sys.argv[1]), Path(sys.argv[2])
done = t.fit(base, out, t.replace(t.QUICK, epochs=1))
print("steps", done.steps)
"""


def test_two_processes_train_as_one(base: Path, tmp_path: Path) -> None:
    """`accelerate launch` on two CPU processes."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(path=[str(Path(__file__).parent), str(Path(tiny_mllm.__file__).parent)]))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines",
               "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
               str(script), str(base), str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "steps 6" in done.stdout, "22 answers, four at a time"
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert answers(f"hf:{tmp_path / 'out' / 'model'}")
