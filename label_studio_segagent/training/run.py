"""A training of our own networks within a time budget: averaged weights, checkpoints, a log, the loop."""

from __future__ import annotations

import copy
import csv
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from .curves import draw_curves
from .feeding import SpareCores, ready_batches
from .running import append_row, progress_bar, rate_factor, stopping

__all__ = ["Pace", "Run"]

T = TypeVar("T")
N = TypeVar("N", bound=nn.Module)
log = logging.getLogger(__name__)
_LAST_ROWS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast to learn, and how long.

    Attributes:
        minutes: Time budget, counted over all resumed runs together.
        rate: Learning rate.
        decay: AdamW's weight decay.
        clip: Largest norm of a gradient.
        warmup: Steps until the full learning rate.
        stable: Share of the budget at the full rate; then it falls along a cosine.
        ema: Decay of the averaged weights, which are the ones that ship.
        checkpoint_minutes: Time between checkpoints.
        log_steps: Steps per line of the log.
        seed: Of everything random.
        threads: Of torch, at most; fewer while other programs need the cores.
        pretrained: Start from ImageNet weights.
    """

    minutes: float
    rate: float
    decay: float
    clip: float
    warmup: int
    stable: float
    ema: float
    log_steps: int
    checkpoint_minutes: float = 5.0
    seed: int = 0
    threads: int = 2
    pretrained: bool = True


class Run(Generic[N]):
    """A training of one or several parts of a network, one after the other.

    Args:
        out: Gets `checkpoint.pt`, `stable.pt` (before the rate falls), and for each part a log and its curves.
        pace: How fast and how long.
        net: What learns; its `config` is written into checkpoints.
        groups: Parameter groups; each may have a `share` of the learning rate.
        parts: Names of the parts.

    Attributes:
        net: What learns.
        average: The averaged weights.
        rng: Source of chance that checkpoints remember.
        steps: Done so far, by part.
        seconds: Spent so far, by part, earlier runs included.
        stop: Whether it was told to stop.
    """

    def __init__(self, out: Path, pace: Pace, net: N, groups: list[dict[str, Any]], parts: Sequence[str]) -> None:
        self.out, self.pace, self.net = out, pace, net
        self.average = copy.deepcopy(net).eval()
        self.optimizer = torch.optim.AdamW(groups, lr=pace.rate, weight_decay=pace.decay, betas=(0.9, 0.99))
        self.rng = np.random.default_rng(pace.seed)
        self.steps, self.seconds, self.stop = dict.fromkeys(parts, 0), dict.fromkeys(parts, 0.0), False

    def load(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        shares = [group.get("share", 1.0) for group in self.optimizer.param_groups]
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, share in zip(self.optimizer.param_groups, shares, strict=True):
            group["share"], group["weight_decay"] = share, self.pace.decay
        torch.set_rng_state(state["torch_rng"])
        if "numpy_rng" in state:
            self.rng.bit_generator.state = state["numpy_rng"]
        if "step" in state:  # the segmenter's, before it was a part
            self.steps, self.seconds = ({part: state[key] for part in self.steps} for key in ("step", "seconds"))
        else:
            self.steps, self.seconds = state["steps"], state["seconds"]

    def save(self, name: str = "checkpoint.pt") -> None:
        """Write a checkpoint; the file is always whole."""
        config: Any = self.net.config
        state = {
            "net": self.net.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "steps": self.steps, "seconds": self.seconds,
            "torch_rng": torch.get_rng_state(), "numpy_rng": self.rng.bit_generator.state, "config": asdict(config),
        }  # fmt: skip
        temporary = self.out / f".{name}.part"
        torch.save(state, temporary)
        temporary.replace(self.out / name)

    def loop(
        self, part: str, minutes: float, draw: Callable[[], T], learn: Callable[[T], Mapping[str, float]],
        saved: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Train one part until its budget is spent or a signal to stop comes; checkpoints on the way and at the end.

        Args:
            part: Its name.
            minutes: Its budget.
            draw: Makes a batch, in a thread.
            learn: Accumulates the gradients of a batch; says what is logged, "loss" among it.
            saved: Called after each checkpoint on the way.
        """
        pace, budget, last = self.pace, minutes * 60, time.monotonic()
        reports: list[dict[str, float]] = []
        if self.stop or self.seconds[part] >= budget:
            return
        with (
            stopping(self),
            progress_bar(budget, self.seconds[part]) as (progress, bar),
            ready_batches(draw, 2) as batches,
        ):
            cores = SpareCores(pace.threads)
            was_stable = self.seconds[part] < budget * pace.stable
            while self.seconds[part] < budget and not self.stop:
                began = time.monotonic()
                torch.set_num_threads(cores.threads())
                rate = pace.rate * rate_factor(
                    self.steps[part], pace.warmup, self.seconds[part] / budget, pace.stable
                )  # fmt: skip
                self.optimizer.zero_grad(set_to_none=True)
                report = dict(learn(next(batches)))
                norm = self._update(part, rate)
                self.seconds[part] += time.monotonic() - began
                reports.append({**report, "rate": rate, "gradient": norm})
                text = f"{part} step {self.steps[part]} loss {report['loss']:.3f}"
                progress.update(bar, completed=self.seconds[part], text=text)
                if self.steps[part] % pace.log_steps == 0:
                    self._log(part, reports)
                    reports = []
                if was_stable and self.seconds[part] >= budget * pace.stable:
                    was_stable = False
                    self.save("stable.pt")
                if time.monotonic() - last > pace.checkpoint_minutes * 60:
                    last = time.monotonic()
                    self.save()
                    saved()
        if reports:
            self._log(part, reports)
        self.save()
        draw_curves(self.out / f"{part}.csv", self.out / f"{part}.png", [*report, "rate"])

    def lately(self, part: str) -> dict[str, float]:
        """How a part did on its training data of late: means over the last rows of its log; nothing without one."""
        path = self.out / f"{part}.csv"
        if not path.exists():
            return {}
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))[-_LAST_ROWS:]
        names = [name for name in rows[-1] if name not in ("step", "minutes", "rate", "gradient")]
        return {f"training_{name}": round(float(np.mean([float(r[name]) for r in rows])), 4) for name in names}

    def _update(self, part: str, rate: float) -> float:
        """Take the step that the gradients say; returns their norm."""
        parameters = []
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
            parameters += group["params"]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.pace.clip))
        if math.isfinite(norm):
            self.optimizer.step()
        decay = min(self.pace.ema, (1 + self.steps[part]) / (10 + self.steps[part]))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                if now.grad is not None:
                    mean.lerp_(now, 1 - decay)
        self.steps[part] += 1
        return norm

    def _log(self, part: str, reports: Sequence[Mapping[str, float]]) -> None:
        means = {name: float(f"{np.mean([r[name] for r in reports]):.5g}") for name in reports[0]}
        row = {"step": self.steps[part], "minutes": round(self.seconds[part] / 60, 2), **means}
        append_row(self.out / f"{part}.csv", list(row), list(row.values()))
        log.info("%s %s", part, " ".join(f"{k}={v}" for k, v in row.items()))
