"""Training of the embedded click policy within a time budget; resumable."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..policies.embedded import EmbeddedPolicy
from ..policies.embedded_net import PolicyConfig, PolicyNet
from ..policies.embedded_weights import fold, save_net
from ..policies.label_text import SALIENT
from ..segmenters.embedded import EmbeddedSegmenter
from .backbone import load_imagenet
from .curves import draw_curves
from .feeding import SpareCores, keep_memory, ready_batches
from .policy_calibration import calibrate_rating, calibrate_targets
from .policy_data import Scene, cached, crop_scene, is_development, read_scenes, whole_features
from .policy_locating import LocatorDataset
from .policy_reviewing import Review, ReviewDataset, make_reviews
from .policy_states import make_states, read_states
from .policy_steps import Report, locating_loss, reviewing_loss
from .running import append_row, progress_bar, rate_factor, stopping
from .segmenter_report import write_card

__all__ = ["PolicySettings", "train_policy"]

T = TypeVar("T")
log = logging.getLogger(__name__)
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
        minutes: Time budget of the two trainings, counted over all resumed runs together; features come on top.
        locating: Share of it for the locator; the rest is for the reviewer.
        trajectory_minutes: Time for making trajectories, at most; none is made for objects that have one.
        rate: Learning rate.
        decay: AdamW's weight decay.
        scenes: Images in a batch of the locator.
        crops: Parts of each image that it learns from as well.
        prompts: Labels looked for in each of them, at most.
        reviews: Masks in a batch of the reviewer.
        warmup: Steps until the full learning rate.
        stable: Share of each training at the full rate; then it falls along a cosine.
        ema: Decay of the averaged weights, which are the ones that ship.
        checkpoint_minutes: Time between checkpoints.
        log_steps: Steps per line of the logs.
        per_scene: Objects per image that are reviewed, largest first.
        seed: Of everything random.
        threads: Of torch, at most; fewer while other programs need the cores.
        pretrained: Start from ImageNet weights.
    """

    minutes: float = 60.0
    locating: float = 0.55
    trajectory_minutes: float = 15.0
    rate: float = 1e-3
    decay: float = 0.03
    scenes: int = 8
    crops: int = 1
    prompts: int = 3
    reviews: int = 12
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
    """Train the locator, make trajectories with it and the segmenter, and train the reviewer on their masks.

    Writes `policy.safetensors`, `states.jsonl` (the trajectories), `checkpoint.pt`, a log and curves of each training,
    and `MODEL_CARD.md` to `out`.

    Args:
        data: Folders in COCO format (`images/`, `train.json`).
        out: Made when missing; features are cached in `out/cache`.
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
    kept = [is_development(s) for s in scenes]
    if all(kept):
        kept = [False] * len(scenes)
    figures = _train_locator(run, clicker, scenes, kept)
    path = out / "policy.safetensors"
    if not run.stop:
        save_net(run.average, path, clicker.eyes)
        figures |= _train_reviewer(run, EmbeddedPolicy(path, clicker), scenes, kept)
    save_net(run.average, path, clicker.eyes)
    write_card(
        out, path, data, asdict(settings), asdict(run.net.config), figures,
        sum(run.steps.values()), sum(run.seconds.values()), title="Embedded click policy", notes=_NOTES, use=_USE,
    )  # fmt: skip
    return path


def _train_locator(run: _Run, clicker: EmbeddedSegmenter, scenes: Sequence[Scene], kept: Sequence[bool]) -> Report:
    settings, config = run.settings, run.net.config
    rng = np.random.default_rng(settings.seed)
    learned = [s for s, k in zip(scenes, kept, strict=True) if not k]
    learned += [crop for s in learned for _ in range(settings.crops) if (crop := crop_scene(s, rng)) is not None]
    wholes = whole_features(learned, run.net, clicker, run.out / "cache")
    dataset = LocatorDataset(learned, wholes, config, [_weight(s) for s in learned])
    rng = np.random.default_rng((settings.seed, run.steps["locator"]))
    run.loop(
        "locator", settings.minutes * settings.locating,
        lambda: dataset.batch(rng, settings.scenes, settings.prompts), lambda batch: locating_loss(run.net, batch),
    )  # fmt: skip
    held = [s for s, k in zip(scenes, kept, strict=True) if k] or learned
    seen = whole_features(held, run.net, clicker, run.out / "cache")
    return calibrate_targets(run.average, LocatorDataset(held, seen, config, mirror=False))


def _train_reviewer(run: _Run, policy: EmbeddedPolicy, scenes: Sequence[Scene], kept: Sequence[bool]) -> Report:
    settings, config = run.settings, run.net.config
    states = run.out / "states.jsonl"
    make_states(scenes, policy, states, seconds=settings.trajectory_minutes * 60, seed=settings.seed)
    rollouts = read_states(states)
    seen = hashlib.sha256(repr((policy.version, sorted(rollouts), settings.per_scene, settings.seed)).encode())

    def make() -> list[list[Review]]:
        parts: list[list[Scene]] = [[], []]
        for scene, k in zip(scenes, kept, strict=True):
            parts[k].append(scene)
        return [make_reviews(policy, p, rollouts, per_scene=settings.per_scene, seed=settings.seed) for p in parts]

    training, held = cached(run.out / "cache", f"reviews-{seen.hexdigest()[:16]}", make)
    log.info("%d reviews, %d kept back, masks of %d rollouts", len(training), len(held), len(rollouts))
    dataset = ReviewDataset(training, config)
    rng = np.random.default_rng((settings.seed, run.steps["reviewer"]))
    run.loop(
        "reviewer", settings.minutes * (1 - settings.locating), lambda: dataset.batch(rng, settings.reviews),
        lambda batch: reviewing_loss(run.net, batch)[:2],
    )  # fmt: skip
    return calibrate_rating(run.average, ReviewDataset(held or training, config, mirror=False))


def _weight(scene: Scene) -> float:
    """How often a scene is drawn: images with much to teach more often."""
    if not scene.instances:
        return 0.3
    return 1.0 + 0.5 * min(len({i.label for i in scene.instances}) - 1, 4)


class _Run:
    """Everything that a checkpoint holds, and the loop that both trainings share."""

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
        self.steps, self.seconds, self.stop = {"locator": 0, "reviewer": 0}, {"locator": 0.0, "reviewer": 0.0}, False
        if resume and (out / "checkpoint.pt").exists():
            self._load(out / "checkpoint.pt")

    def _load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.seconds = state["steps"], state["seconds"]
        torch.set_rng_state(state["torch_rng"])

    def save(self) -> None:
        """Write a checkpoint; the file is always whole."""
        state = {
            "net": self.net.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "steps": self.steps, "seconds": self.seconds,
            "torch_rng": torch.get_rng_state(), "config": asdict(self.net.config),
        }  # fmt: skip
        temporary = self.out / ".checkpoint.pt.part"
        torch.save(state, temporary)
        temporary.replace(self.out / "checkpoint.pt")

    def loop(
        self, part: str, minutes: float, draw: Callable[[], T], learn: Callable[[T], tuple[Tensor, Report]]
    ) -> None:
        """Train one part until its budget is spent or a signal to stop comes; checkpoints on the way and at the end."""
        settings, budget, saved = self.settings, minutes * 60, time.monotonic()
        reports: list[Report] = []
        if self.stop or self.seconds[part] >= budget:
            return
        with (
            stopping(self),
            progress_bar(budget, self.seconds[part]) as (progress, bar),
            ready_batches(draw, 2) as batches,
        ):
            cores = SpareCores(settings.threads)
            while self.seconds[part] < budget and not self.stop:
                began = time.monotonic()
                torch.set_num_threads(cores.threads())
                self.optimizer.zero_grad(set_to_none=True)
                loss, report = learn(next(batches))
                loss.backward()  # type: ignore[no-untyped-call]
                progressed = self.seconds[part] / budget
                rate = settings.rate * rate_factor(self.steps[part], settings.warmup, progressed, settings.stable)
                norm = self._update(part, rate)
                self.seconds[part] += time.monotonic() - began
                reports.append({**report, "rate": rate, "gradient": norm})
                text = f"{part} step {self.steps[part]} loss {report['loss']:.3f}"
                progress.update(bar, completed=self.seconds[part], text=text)
                if self.steps[part] % settings.log_steps == 0:
                    self._log(part, reports)
                    reports = []
                if time.monotonic() - saved > settings.checkpoint_minutes * 60:
                    saved = time.monotonic()
                    self.save()
        if reports:
            self._log(part, reports)
        self.save()
        names = [name for name in report if name != "gradient"]
        draw_curves(self.out / f"{part}.csv", self.out / f"{part}.png", names)

    def _update(self, part: str, rate: float) -> float:
        """Take the step that the gradients say; returns their norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = float(torch.nn.utils.clip_grad_norm_(self.net.trained(), 5.0))
        if math.isfinite(norm):
            self.optimizer.step()
        decay = min(self.settings.ema, (1 + self.steps[part]) / (10 + self.steps[part]))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                if now.grad is not None:
                    mean.lerp_(now, 1 - decay)
        self.steps[part] += 1
        return norm

    def _log(self, part: str, reports: Sequence[Report]) -> None:
        means = {name: round(float(np.mean([r[name] for r in reports])), 5) for name in reports[0]}
        row = {"step": self.steps[part], "minutes": round(self.seconds[part] / 60, 2), **means}
        append_row(self.out / f"{part}.csv", list(row), list(row.values()))
        log.info("%s %s", part, " ".join(f"{k}={v}" for k, v in row.items()))
