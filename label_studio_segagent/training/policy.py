"""Training of the embedded click policy within a time budget; resumable."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..policies.embedded_net import PolicyConfig, PolicyNet
from ..policies.embedded_weights import fold, save_net
from ..policies.label_text import SALIENT
from ..segmenters.embedded import EmbeddedSegmenter
from .backbone import load_imagenet
from .feeding import SpareCores, keep_memory, ready_batches
from .policy_batches import PolicyDataset
from .policy_calibration import calibrate
from .policy_data import Scene, build_features, is_development, read_scenes
from .policy_states import read_states
from .policy_steps import PolicyReport, policy_loss
from .running import append_row, progress_bar, rate_factor, stopping
from .segmenter_report import draw_curves, write_card

__all__ = ["PolicySettings", "train_policy"]

log = logging.getLogger(__name__)
_COLUMNS = ("step", "minutes", "loss", "heat", "boxes", "dense", "drawn", "rating_error", "rate", "gradient")
_CURVES = ("loss", "heat", "boxes", "dense", "drawn", "rating_error", "rate")
_NOTES = (
    "The backbone has ImageNet weights of EfficientNet-Lite (Apache-2.0). COCO annotations are CC BY 4.0, COCO images\n"
    "under their Flickr terms; ECSSD and Penn-Fudan are published for research. No image is shipped.\n"
)
_USE = (
    "Finds what a label names on photographs, chooses clicks for the embedded segmenter, rates masks. It knows the "
    "labels in its metadata; every other label means the most salient object. Not meant for medical or other safety "
    "decisions; quality on unusual images (microscopy, X-ray, drawings) is unknown.\n"
)


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """How to train.

    Attributes:
        minutes: Time budget, counted over all resumed runs together; computing features comes on top.
        rate: Learning rate.
        decay: AdamW's weight decay.
        scenes: Images in a batch, each with one label to look for and one mask to review.
        warmup: Steps until the full learning rate.
        stable: Share of the budget at the full rate; then it falls along a cosine.
        ema: Decay of the averaged weights, which are the ones that ship.
        checkpoint_minutes: Time between checkpoints.
        log_steps: Steps per line of the log.
        per_scene: Objects per image that are reviewed, largest first.
        seed: Of everything random.
        threads: Of torch, at most; fewer while other programs need the cores.
        pretrained: Start from ImageNet weights.
    """

    minutes: float = 60.0
    rate: float = 1e-3
    decay: float = 0.03
    scenes: int = 8
    warmup: int = 50
    stable: float = 0.5
    ema: float = 0.99
    checkpoint_minutes: float = 5.0
    log_steps: int = 25
    per_scene: int = 4
    seed: int = 0
    threads: int = 2
    pretrained: bool = True


def train_policy(
    data: Sequence[Path], out: Path, settings: PolicySettings, *, segmenter: Path | None = None,
    resume: bool = False, config: PolicyConfig | None = None,
) -> Path:  # fmt: skip
    """Train, and write `policy.safetensors`, `checkpoint.pt`, `log.csv`, `curves.png` and `MODEL_CARD.md` to `out`.

    Masks that rollouts went through are read from `out/states.jsonl` when there is one (see `policy_states`).

    Args:
        data: Folders in COCO format (`images/`, `train.json`).
        out: Made when missing; the features are cached in `out/cache`.
        settings: How.
        segmenter: Weights of the embedded segmenter; by default the shipped ones.
        resume: Go on from `out/checkpoint.pt` when there is one.
        config: Sizes of the network; the labels are filled in.

    Returns:
        The path of the weights.
    """
    keep_memory()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    scenes = read_scenes(data)
    names = sorted({i.label for s in scenes for i in s.instances} - {SALIENT})
    clicker = EmbeddedSegmenter(segmenter)
    sizes = {**asdict(config or PolicyConfig(())), "labels": (SALIENT, *names), "view": clicker.settings.zoom}
    embedding = clicker.net.config
    sizes["segmenter"] = (*embedding.channels, embedding.embedding)
    run = _Run(out, settings, PolicyConfig(**sizes), resume)
    store = build_features(scenes, run.net, clicker, out / "cache", seed=settings.seed, per_scene=settings.per_scene)
    states = read_states(out / "states.jsonl")
    kept = [is_development(s) for s in scenes]
    weights = [0.0 if k else _weight(s) for s, k in zip(scenes, kept, strict=True)]
    dataset = PolicyDataset(scenes, store, run.net.config, states, weights if any(weights) else None)
    log.info("%d images, masks of %d rollouts, from step %d", len(scenes), len(states), run.step)
    run.loop(dataset)
    held = [i for i, k in enumerate(kept) if k] or list(range(len(scenes)))
    figures = calibrate(run.average, PolicyDataset(scenes, store, run.net.config, states, augment=False), held)
    log.info("calibration: %s", figures)
    path = run.export(clicker.version)
    write_card(
        out, path, [str(d) for d in data], {**asdict(settings), **figures}, asdict(run.net.config), run.step,
        run.seconds, title="Embedded click policy", notes=_NOTES, use=_USE,
    )  # fmt: skip
    return path


def _weight(scene: Scene) -> float:
    """How often a scene is drawn: images with much to teach more often."""
    if not scene.instances:
        return 0.3
    return 1.0 + 0.5 * min(len({i.label for i in scene.instances}) - 1, 4)


class _Run:
    """Everything that a checkpoint holds."""

    def __init__(self, out: Path, settings: PolicySettings, config: PolicyConfig, resume: bool) -> None:
        self.out, self.settings = out, settings
        self.net = PolicyNet(config)
        if settings.pretrained:
            load_imagenet(self.net.backbone, config.backbone)
        fold(self.net)
        self.net.backbone.requires_grad_(False)
        self.average = copy.deepcopy(self.net).eval()
        self.optimizer = torch.optim.AdamW(
            self.net.trained(), lr=settings.rate, weight_decay=settings.decay, betas=(0.9, 0.99)
        )
        self.rng = np.random.default_rng(settings.seed)
        self.step, self.seconds, self.stop = 0, 0.0, False
        if resume and (out / "checkpoint.pt").exists():
            self._load(out / "checkpoint.pt")

    def _load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["torch_rng"])

    def save(self, name: str = "checkpoint.pt") -> None:
        """Write a checkpoint; the file is always whole."""
        state = {
            "net": self.net.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds,
            "torch_rng": torch.get_rng_state(), "config": asdict(self.net.config),
        }  # fmt: skip
        temporary = self.out / f".{name}.part"
        torch.save(state, temporary)
        temporary.replace(self.out / name)

    def export(self, segmenter: str) -> Path:
        """Write the averaged weights as they ship."""
        path = self.out / "policy.safetensors"
        save_net(self.average, path, segmenter)
        draw_curves(self.out / "log.csv", self.out / "curves.png", _CURVES)
        return path

    def loop(self, dataset: PolicyDataset) -> None:
        """Train until the budget is spent or a signal to stop comes; checkpoints on the way and at the end."""
        settings, saved = self.settings, time.monotonic()
        budget, lines = settings.minutes * 60, []
        rng = np.random.default_rng((settings.seed, self.step))
        with (
            stopping(self),
            progress_bar(budget, self.seconds) as (progress, bar),
            ready_batches(lambda: dataset.batch(rng, settings.scenes), 2) as batches,
        ):
            cores = SpareCores(settings.threads)
            was_stable = self.seconds < budget * settings.stable
            while self.seconds < budget and not self.stop:
                began = time.monotonic()
                torch.set_num_threads(cores.threads())
                self.optimizer.zero_grad(set_to_none=True)
                loss, report, _ = policy_loss(self.net, next(batches))
                loss.backward()  # type: ignore[no-untyped-call]
                norm = self._update()
                self.seconds += time.monotonic() - began
                lines.append((*_values(report), self.optimizer.param_groups[0]["lr"], norm))
                progress.update(bar, completed=self.seconds, text=f"step {self.step} loss {report.loss:.3f}")
                if self.step % settings.log_steps == 0:
                    self._log(np.mean(lines, 0))
                    lines = []
                if was_stable and self.seconds >= budget * settings.stable:
                    was_stable = False
                    self.save("stable.pt")
                if time.monotonic() - saved > settings.checkpoint_minutes * 60:
                    saved = time.monotonic()
                    self.save()
            if lines:
                self._log(np.mean(lines, 0))
            self.save()

    def _update(self) -> float:
        """Take the step that the gradients say; returns their norm."""
        settings = self.settings
        factor = rate_factor(self.step, settings.warmup, self.seconds / (settings.minutes * 60), settings.stable)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * factor
        norm = float(torch.nn.utils.clip_grad_norm_(self.net.trained(), 5.0))
        if math.isfinite(norm):
            self.optimizer.step()
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        self.step += 1
        return norm

    def _log(self, means: Any) -> None:
        row = (self.step, round(self.seconds / 60, 2), *(round(float(m), 5) for m in means))
        append_row(self.out / "log.csv", _COLUMNS, row)
        log.info("%s", " ".join(f"{k}={v}" for k, v in zip(_COLUMNS, row, strict=True)))


def _values(report: PolicyReport) -> tuple[float, ...]:
    return report.loss, report.heat, report.boxes, report.dense, report.drawn, report.rating_error
