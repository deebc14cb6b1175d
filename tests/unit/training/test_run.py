from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from label_studio_segagent.training.run import Pace, Run

PACE = Pace(
    minutes=0.02, rate=0.05, decay=0.0, clip=10.0, warmup=2, stable=0.5, ema=0.9, log_steps=5, checkpoint_minutes=0.005,
    threads=1,
)  # fmt: skip


@dataclass
class Config:
    width: int = 3


class Line(nn.Module):
    """A part that learns and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.line, self.other = nn.Linear(3, 1), nn.Linear(3, 1)


@pytest.fixture(autouse=True)
def _threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def make(out: Path, pace: Pace = PACE) -> Run[Line]:
    torch.manual_seed(0)
    net = Line()
    return Run(out, pace, net, [{"params": list(net.parameters()), "share": 1.0}], ["first", "second"])


def learn(run: Run[Line], part: str, minutes: float) -> list[int]:
    made: list[int] = []

    def step(batch: Tensor) -> dict[str, float]:
        loss = (run.net.line(batch) - batch.sum(1, keepdim=True)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": float(loss.detach())}

    run.loop(part, minutes, lambda: torch.randn(16, 3), step, lambda: made.append(run.steps[part]))
    return made


def test_a_run_learns_averages_and_goes_on(tmp_path: Path) -> None:
    run = make(tmp_path)
    before = run.net.other.weight.detach().clone()
    made = learn(run, "first", PACE.minutes)
    assert run.seconds["first"] >= 1.2 and run.steps["first"] > 20 and run.steps["second"] == 0
    assert made and made == sorted(made), "told of checkpoints on the way"
    with (tmp_path / "first.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["loss"]) < 0.01 < float(rows[0]["loss"]) and float(rows[-1]["rate"]) < PACE.rate
    assert torch.allclose(run.average.line.weight, torch.ones(1, 3), atol=0.05)
    assert torch.equal(run.net.other.weight, before) and torch.equal(run.average.other.weight, before)
    assert {p.name for p in tmp_path.iterdir()} == {"first.csv", "first.png", "checkpoint.pt", "stable.pt"}
    assert run.lately("first") == {"training_loss": pytest.approx(0, abs=0.1)} and run.lately("second") == {}
    steps = run.steps["first"]
    again = make(tmp_path, replace(PACE, decay=0.1))
    again.load()
    assert again.steps == {"first": steps, "second": 0} and again.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert torch.equal(again.average.line.weight, run.average.line.weight)
    learn(again, "first", PACE.minutes)
    assert again.steps["first"] == steps, "its budget is spent"
    learn(again, "second", 0.002)
    assert again.steps["second"] > 0 and (tmp_path / "second.csv").exists()


def test_a_run_that_was_stopped_begins_nothing_more(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.stop = True
    learn(run, "first", 1.0)
    assert run.steps["first"] == 0


def test_checkpoints_of_before_go_on(tmp_path: Path) -> None:
    """The segmenter's had no parts."""
    run = make(tmp_path)
    run.save()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["steps"], state["numpy_rng"]
    torch.save({**state, "step": 7, "seconds": 3.5}, tmp_path / "checkpoint.pt")
    net = Line()
    old = Run(tmp_path, PACE, net, [{"params": list(net.parameters())}], ["segmenter"])
    old.load()
    assert (old.steps, old.seconds) == ({"segmenter": 7}, {"segmenter": 3.5})
