"""Training of the embedded click segmenter within a time budget; resumable."""

from __future__ import annotations

import copy
import csv
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..segmenters.embedded_net import NetConfig, SegmenterNet
from .backbone import load_imagenet
from .curves import draw_curves
from .feeding import SpareCores, keep_memory, ready_batches
from .running import append_row, progress_bar, rate_factor, stopping
from .segmenter_data import CropDataset, CropSample, read_coco
from .segmenter_report import save_weights, write_card
from .segmenter_steps import StepReport, train_on

__all__ = ["TrainSettings", "train"]

log = logging.getLogger(__name__)
_COLUMNS = ("step", "minutes", "loss", "iou_first", "iou_last", "quality_error", "rate", "gradient", "seconds")
_CURVES = ("loss", "iou_first", "iou_last", "quality_error", "rate")
_FIGURES = ("loss", "iou_first", "iou_last", "quality_error")
_LAST_ROWS = 10
_NOTES = (
    "The encoder starts from ImageNet weights of EfficientNet-Lite (Apache-2.0). COCO annotations are\n"
    "CC BY 4.0, COCO images under their Flickr terms; ECSSD and Penn-Fudan are published for research. "
    "No image is shipped.\n"
)
_USE = (
    "Turns clicks, boxes and prior masks on photographs into masks. Its score is a trained estimate of the mask's "
    "IoU. Not meant for medical or other safety decisions; quality on unusual images (microscopy, X-ray, drawings) is "
    "unknown.\n"
)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train.

    Attributes:
        minutes: Time budget, counted over all resumed runs together.
        rate: Learning rate of the decoder.
        encoder_rate: Learning rate of the encoder, relative to `rate`.
        decay: AdamW's weight decay.
        crops: Batch: (side in pixels, crops, probability) triples.
        targets: Targets per crop, at most.
        steps: Clicks that are learned from, per target and batch.
        frozen: Blocks of the encoder that keep their ImageNet weights.
        warmup: Steps until the full learning rate.
        stable: Share of the budget at the full rate; then it falls along a cosine.
        ema: Decay of the averaged weights, which are the ones that ship.
        checkpoint_minutes: Time between checkpoints.
        log_steps: Steps per line of the log.
        seed: Of everything random.
        threads: Of torch, at most; fewer while other programs need the cores.
        pretrained: Start from ImageNet weights.
    """

    minutes: float = 120.0
    rate: float = 8e-4
    encoder_rate: float = 0.25
    decay: float = 0.02
    crops: tuple[tuple[int, int, float], ...] = ((224, 10, 0.3), (256, 8, 0.45), (320, 5, 0.25))
    targets: int = 2
    steps: int = 3
    frozen: int = 4
    warmup: int = 100
    stable: float = 0.7
    ema: float = 0.995
    checkpoint_minutes: float = 5.0
    log_steps: int = 50
    seed: int = 0
    threads: int = 2
    pretrained: bool = True


def train(
    data: Sequence[Path], out: Path, settings: TrainSettings, *, weights: Sequence[float] | None = None,
    resume: bool = False, config: NetConfig | None = None,
) -> Path:  # fmt: skip
    """Train, and write `segmenter.safetensors`, `checkpoint.pt`, `log.csv`, `curves.png` and `MODEL_CARD.md` to `out`.

    Args:
        data: Folders in COCO format (`images/`, `train.json`).
        out: Made when missing.
        settings: How.
        weights: How often each folder is drawn; by default by the square root of its size.
        resume: Go on from `out/checkpoint.pt` when there is one.
        config: Sizes of the network.

    Returns:
        The path of the weights.
    """
    keep_memory()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    dataset = CropDataset([read_coco(Path(root)) for root in data], weights or [1.0] * len(data))
    if weights is None:
        dataset.weights = np.sqrt([len(s) for s in dataset.sets])
        dataset.weights /= dataset.weights.sum()
    run = _Run(out, settings, config or NetConfig(), resume)
    log.info("training on %d images from step %d, minute %.1f", len(dataset), run.step, run.seconds / 60)
    run.loop(dataset)
    path = run.export()
    write_card(
        out, path, data, asdict(settings), asdict(run.net.config), run.figures(), run.step, run.seconds,
        title="Embedded click segmenter", notes=_NOTES, use=_USE,
    )  # fmt: skip
    return path


class _Run:
    """Everything that a checkpoint holds."""

    def __init__(self, out: Path, settings: TrainSettings, config: NetConfig, resume: bool) -> None:
        self.out, self.settings = out, settings
        self.net = SegmenterNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.pretrained and not (resume and (out / "checkpoint.pt").exists()):
            load_imagenet(self.net.encoder, config.backbone)
        self.average = copy.deepcopy(self.net).eval()
        encoder = list(self.net.encoder.parameters())
        own = {id(p) for p in encoder}
        rest = [p for p in self.net.parameters() if id(p) not in own]
        groups = [{"params": encoder, "share": settings.encoder_rate}, {"params": rest, "share": 1.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, weight_decay=settings.decay, betas=(0.9, 0.99))
        self.rng = np.random.default_rng(settings.seed)
        self.step, self.seconds, self.stop = 0, 0.0, False
        if resume and (out / "checkpoint.pt").exists():
            self._load(out / "checkpoint.pt")

    def _load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, share in zip(self.optimizer.param_groups, (self.settings.encoder_rate, 1.0), strict=True):
            group["share"], group["weight_decay"] = share, self.settings.decay
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["torch_rng"])
        self.rng.bit_generator.state = state["numpy_rng"]

    def save(self, name: str = "checkpoint.pt") -> None:
        """Write a checkpoint; the file is always whole."""
        state = {
            "net": self.net.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds,
            "torch_rng": torch.get_rng_state(), "numpy_rng": self.rng.bit_generator.state,
            "config": asdict(self.net.config),
        }  # fmt: skip
        temporary = self.out / f".{name}.part"
        torch.save(state, temporary)
        temporary.replace(self.out / name)

    def export(self) -> Path:
        """Write the averaged weights as they ship."""
        path = self.out / "segmenter.safetensors"
        save_weights(self.average, path)
        draw_curves(self.out / "log.csv", self.out / "curves.png", _CURVES)
        return path

    def figures(self) -> dict[str, float]:
        """How it went on the training crops of late: means over the last rows of the log."""
        if not (log := self.out / "log.csv").exists():
            return {}
        with log.open(newline="") as file:
            rows = list(csv.DictReader(file))[-_LAST_ROWS:]
        return {f"training_{name}": round(float(np.mean([float(r[name]) for r in rows])), 4) for name in _FIGURES}

    def factor(self) -> float:
        """The learning rate now, relative to the full one."""
        settings = self.settings
        return rate_factor(self.step, settings.warmup, self.seconds / (settings.minutes * 60), settings.stable)

    def update(self, samples: list[CropSample], dataset: CropDataset) -> tuple[StepReport, float]:
        """One optimisation step; returns its report and the norm of the gradient."""
        factor = self.factor()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * group["share"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        settings = self.settings
        report = train_on(self.net, samples, dataset, self.rng, steps=settings.steps, frozen=settings.frozen)
        norm = float(torch.nn.utils.clip_grad_norm_(self.net.parameters(), 2.0))
        if math.isfinite(norm):
            self.optimizer.step()
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        self.step += 1
        return report, norm

    def loop(self, dataset: CropDataset) -> None:
        """Train until the budget is spent or a signal to stop comes; checkpoints on the way and at the end."""
        budget, saved, lines = self.settings.minutes * 60, time.monotonic(), []
        with (
            stopping(self),
            progress_bar(budget, self.seconds) as (progress, bar),
            ready_batches(self._maker(dataset)) as batches,
        ):
            cores = SpareCores(self.settings.threads)
            was_stable = self.seconds < budget * self.settings.stable
            while self.seconds < budget and not self.stop:
                began = time.monotonic()
                torch.set_num_threads(cores.threads())
                report, norm = self.update(next(batches), dataset)
                spent = time.monotonic() - began
                self.seconds += spent
                lines.append((report.loss, report.first, report.last, report.quality, norm, spent))
                progress.update(bar, completed=self.seconds, text=f"step {self.step} loss {report.loss:.3f}")
                if self.step % self.settings.log_steps == 0:
                    self._log(np.mean(lines, 0))
                    lines = []
                if was_stable and self.seconds >= budget * self.settings.stable:
                    was_stable = False
                    self.save("stable.pt")
                if time.monotonic() - saved > self.settings.checkpoint_minutes * 60:
                    saved = time.monotonic()
                    self.save()
                    self.export()
            if lines:
                self._log(np.mean(lines, 0))
            self.save()

    def _maker(self, dataset: CropDataset) -> Callable[[], list[CropSample]]:
        rng = np.random.default_rng((self.settings.seed, self.step))
        crops, targets = self.settings.crops, self.settings.targets
        chances = np.array([c[2] for c in crops])

        def make() -> list[CropSample]:
            size, count, _ = crops[int(rng.choice(len(crops), p=chances / chances.sum()))]
            return [dataset.sample(rng, size, targets) for _ in range(count)]

        return make

    def _log(self, means: Any) -> None:
        loss, first, last, quality, norm, spent = (round(float(m), 4) for m in means)
        row = (self.step, round(self.seconds / 60, 2), loss, first, last, quality,
               self.optimizer.param_groups[1]["lr"], norm, spent)  # fmt: skip
        append_row(self.out / "log.csv", _COLUMNS, row)
        log.info("%s", " ".join(f"{k}={v}" for k, v in zip(_COLUMNS, row, strict=True)))
