"""What a run of transformers' Trainer tells as it goes on: curves, TensorBoard events, progress; and its deadline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import transformers
from typing_extensions import override

from .curves import Curves
from .trainer import Progress

__all__ = ["Report"]

_COLUMNS = {"loss": "loss", "eval_loss": "loss_kept_back", "learning_rate": "rate", "grad_norm": "gradient"}


class Report(transformers.TrainerCallback):
    """Writes `curves.csv`, `curves.png` and event files into `out`, and ends the run when its time is used up.

    Args:
        out: The folder of the run.
        budget: Seconds, resumed runs included.
        progress: Told what happens.

    Attributes:
        seconds: Spent so far, resumed runs included.
    """

    def __init__(self, out: Path, budget: float, progress: Progress | None) -> None:
        self.out, self.budget, self.progress = out, budget, progress
        self.seconds = 0.0
        self._curves: Curves | None = None

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before = max((row.get("seconds", 0.0) for row in state.log_history), default=0.0)
        self._began = time.monotonic()
        if state.is_world_process_zero:
            self.out.mkdir(parents=True, exist_ok=True)
            self._curves = Curves(self.out, list(_COLUMNS.values()), state.global_step)

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = self._before + time.monotonic() - self._began
        if self.seconds >= self.budget:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"
        if self.progress and state.is_world_process_zero:
            done = max(state.global_step / max(state.max_steps, 1), self.seconds / self.budget)
            self.progress(min(done, 1.0), f"step {state.global_step} of {state.max_steps}")

    @override
    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = state.log_history[-1]
        self.seconds = self._before + time.monotonic() - self._began
        row["seconds"] = self.seconds
        values = {column: row[name] for name, column in _COLUMNS.items() if name in row}
        if self._curves is not None and values:
            self._curves.add(row["step"], self.seconds / 60, values)

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._curves is not None:
            self._curves.close()

    def loss(self, state: Any) -> float:
        """The best loss on what was kept back, else the last one of training."""
        if state.best_metric is not None:
            return float(state.best_metric)
        return float(next((row["loss"] for row in reversed(state.log_history) if "loss" in row), float("nan")))
