"""A training without `resume` leaves alone what another one has left in its folder, whatever the family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_mllm

from label_studio_segagent.errors import InputError
from label_studio_segagent.training.policy import PolicySettings, train_policy
from label_studio_segagent.training.segmenter import TrainSettings
from label_studio_segagent.training.segmenter import train as train_segmenter
from label_studio_segagent.training.trainer import load_segmenter_trainer, load_trainer, start_run

FAMILIES: dict[str, Callable[[Path, Path], object]] = {
    "embedded policy": lambda out, scratch: load_trainer("embedded").fit([], out),
    "embedded segmenter": lambda out, scratch: load_segmenter_trainer("embedded").fit([], out),
    "language model": lambda out, scratch: load_trainer(f"hf:{tiny_mllm.make_llava(scratch)}").fit([], out),
    "embedded policy from the start": lambda out, scratch: train_policy([], out, PolicySettings(minutes=0)),
    "embedded segmenter from the start": lambda out, scratch: train_segmenter([], out, TrainSettings(minutes=0)),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trace", ["checkpoint.pt", "curves.csv"])
def test_a_used_folder_is_refused(family: str, trace: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / trace).write_text("of another training")
    with pytest.raises(InputError, match=rf"out holds a run already \({trace}\): resume it .*or name another folder"):
        FAMILIES[family](out, tmp_path / "model")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(trace, "of another training")]


def test_any_trace_counts_and_resuming_is_allowed(tmp_path: Path) -> None:
    start_run(tmp_path / "new", False)
    start_run(tmp_path / "new", False)  # nothing was left there
    (tmp_path / "new" / "notes.txt").touch()
    start_run(tmp_path / "new", False)
    for name in ("checkpoint-40", "locator.csv", "policy.safetensors"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        with pytest.raises(InputError, match=name):
            start_run(tmp_path / name, False)
        start_run(tmp_path / name, True)
