"""Training of the embedded click policy within a time budget; resumable."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.image_file import Exif
from ..defaults import POLICY_MINUTES, TRAJECTORY_MINUTES
from ..embedded.words import SALIENT
from ..policies.embedded import EmbeddedPolicy
from ..policies.embedded_net import PolicyConfig, PolicyNet
from ..policies.embedded_weights import fold, save_net
from ..segmenters.embedded import EmbeddedSegmenter
from .backbone import load_head, load_imagenet
from .feeding import keep_memory
from .policy_calibration import calibrate_rating, calibrate_targets
from .policy_data import Scene, also_known_as, cached, is_development, read_scenes, whole_features
from .policy_evidence import teach
from .policy_judging import JudgeDataset, judging_loss
from .policy_locating import LocatorDataset
from .policy_reviewing import Review, ReviewDataset, make_reviews
from .policy_states import make_states, read_states
from .policy_steps import Report, locating_loss, reviewing_loss
from .run import Pace, Run
from .segmenter_report import write_card
from .trainer import start_run

__all__ = ["PolicySettings", "train_policy"]

log = logging.getLogger(__name__)
_FINETUNING = 0.2
"""Share of the learning rate for what was trained before."""
_SALIENCE = 0.4
"""Share of the locators' time for what stands out; where the other one starts."""
_NOTES = (
    "The backbone has ImageNet weights of EfficientNet-Lite (Apache-2.0). COCO annotations are CC BY 4.0, COCO images\n"
    "under their Flickr terms; ECSSD and Penn-Fudan are published for research. No image is shipped.\n"
)
_USE = (
    "Finds what a label names on photographs, chooses clicks for the embedded segmenter, rates masks. It knows the "
    "labels in its metadata; every other label means the most salient object. Not meant for medical or other safety "
    "decisions; quality on unusual images (microscopy, X-ray, drawings) is unknown.\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings(Pace):
    """How to train. The budget is that of the three trainings; features come on top.

    Attributes:
        locating: Share of the budget for the locators.
        judging: Share for the judge; the rest is for the reviewer.
        trajectory_minutes: Time for making trajectories, at most; none is made for objects that have one.
        review_minutes: Time for making reviews, at most.
        scenes: Images in a batch of the locator.
        prompts: Labels looked for in each of them, at most.
        reviews: Masks in a batch of the reviewer.
        per_scene: Objects per image that are reviewed, largest first.
        crops_judged: Objects in a batch of the judge.
        masks_judged: Masks of each of them.
    """

    minutes: float = POLICY_MINUTES
    rate: float = 1e-3
    decay: float = 0.03
    clip: float = 5.0
    warmup: int = 50
    stable: float = 0.5
    ema: float = 0.99
    log_steps: int = 25
    locating: float = 0.35
    judging: float = 0.35
    trajectory_minutes: float = TRAJECTORY_MINUTES
    review_minutes: float = 15.0
    scenes: int = 6
    prompts: int = 3
    reviews: int = 12
    per_scene: int = 4
    crops_judged: int = 4
    masks_judged: int = 4


def train_policy(
    data: Sequence[Path], out: Path, settings: PolicySettings, *, segmenter: Path | None = None,
    resume: bool = False, config: PolicyConfig | None = None, exif: Exif | None = None,
) -> Path:  # fmt: skip
    """Train locator and judge, make trajectories with them and the segmenter, and train the reviewer on their masks.

    Writes `policy.safetensors`, `states.jsonl` (the trajectories), `checkpoint.pt`, a log and curves of each training,
    and `MODEL_CARD.md` to `out`.

    Args:
        data: Folders in COCO format (`images/`, `train.json`), or COCO files.
        out: Made when missing; features are cached in `out/cache`.
        settings: How.
        segmenter: Weights of the embedded segmenter; by default the shipped ones.
        resume: Go on from `out/checkpoint.pt` when there is one.
        config: Sizes of the network; the labels are filled in.
        exif: What masks were drawn on, see `load_dataset`.

    Returns:
        The path of the weights.
    """
    keep_memory()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    start_run(out, resume)
    scenes = read_scenes(data, exif=exif)
    names = sorted({name for s in scenes for i in s.instances for name in also_known_as(i.label)} - {SALIENT})
    clicker = EmbeddedSegmenter(segmenter)
    sizes = {**asdict(config or PolicyConfig(())), "labels": tuple(names), "view": clicker.settings.zoom}
    embedding = clicker.net.config
    sizes["segmenter"] = (*embedding.channels, embedding.embedding)
    net = PolicyNet(PolicyConfig(**sizes))
    if settings.pretrained:
        load_imagenet(net.backbone, net.config.backbone)
        load_head(net.evidence, net.config.backbone)
    fold(net)
    net.backbone.requires_grad_(False)
    # The judge starts as what the segmenter's decoder is.
    net.judge.load_state_dict(clicker.net.state_dict(), strict=False)
    known = {id(p) for p in net.judge.parameters()} - {id(p) for p in net.judge.rate.parameters()}
    learned = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learned if id(p) not in known]},
        {"params": [p for p in learned if id(p) in known], "share": _FINETUNING},
    ]
    run = Run(out, settings, net, groups, ["salience", "locator", "judge", "reviewer"])
    if resume:
        run.load()
    kept = [is_development(s) for s in scenes]
    if all(kept):
        kept = [False] * len(scenes)
    figures = _train_locator(run, settings, clicker, scenes, kept)
    _train_judge(run, settings, clicker, [s for s, k in zip(scenes, kept, strict=True) if not k])
    path = out / "policy.safetensors"
    if not run.stop:
        save_net(run.average, path, clicker.eyes)
        figures |= _train_reviewer(run, settings, EmbeddedPolicy(path, clicker), scenes, kept)
    save_net(run.average, path, clicker.eyes)
    write_card(
        out, path, data, asdict(settings), asdict(run.net.config), figures,
        sum(run.steps.values()), sum(run.seconds.values()), title="Embedded click policy", notes=_NOTES, use=_USE,
    )  # fmt: skip
    return path


def _train_locator(
    run: Run[PolicyNet], settings: PolicySettings, clicker: EmbeddedSegmenter, scenes: Sequence[Scene],
    kept: Sequence[bool],
) -> Report:  # fmt: skip
    config = run.net.config
    wholes = whole_features(scenes, run.net, clicker, run.out / "cache")
    learned = [i for i, k in enumerate(kept) if not k]
    shown = [scenes[i] for i in learned], wholes.of(learned)
    lessons = teach(run.net.evidence, config.labels, *shown)
    run.average.evidence.load_state_dict(run.net.evidence.state_dict())
    dataset = LocatorDataset(*shown, config, run.net.evidence, lessons)
    rng = np.random.default_rng((settings.seed, run.steps["salience"], run.steps["locator"]))
    minutes = settings.minutes * settings.locating
    run.loop(
        "salience", minutes * _SALIENCE, lambda: dataset.batch(rng, 2 * settings.scenes, 0),
        lambda batch: _learn(*locating_loss(run.net.salience, batch)),
    )  # fmt: skip
    if not run.steps["locator"]:
        for net in (run.net, run.average):
            net.locator.load_state_dict(net.salience.state_dict())
    run.loop(
        "locator", minutes * (1 - _SALIENCE), lambda: dataset.batch(rng, settings.scenes, settings.prompts),
        lambda batch: _learn(*locating_loss(run.net.locator, batch)),
    )  # fmt: skip
    held = [i for i, k in enumerate(kept) if k] or learned
    judging = LocatorDataset(
        [scenes[i] for i in held], wholes.of(held), config, run.net.evidence, lessons.elsewhere(), mirror=False
    )
    return calibrate_targets(run.average, judging)


def _train_judge(
    run: Run[PolicyNet], settings: PolicySettings, clicker: EmbeddedSegmenter, scenes: Sequence[Scene]
) -> None:
    dataset = JudgeDataset(scenes, run.net.config.view)
    rng = np.random.default_rng((settings.seed, run.steps["judge"]))
    run.loop(
        "judge", settings.minutes * settings.judging,
        lambda: dataset.batch(rng, settings.crops_judged, settings.masks_judged),
        lambda batch: _learn(*judging_loss(run.net.judge, clicker.net, batch)),
    )  # fmt: skip


def _train_reviewer(
    run: Run[PolicyNet], settings: PolicySettings, policy: EmbeddedPolicy, scenes: Sequence[Scene], kept: Sequence[bool]
) -> Report:
    config = run.net.config
    states = run.out / "states.jsonl"
    make_states(scenes, policy, states, seconds=settings.trajectory_minutes * 60, seed=settings.seed)
    rollouts = read_states(states)
    seen = hashlib.sha256(repr((policy.version, sorted(rollouts), settings.per_scene, settings.seed)).encode())

    def make() -> list[list[Review]]:
        parts: list[list[Scene]] = [[], []]
        for scene, k in zip(scenes, kept, strict=True):
            parts[k].append(scene)
        return [
            make_reviews(policy, part, rollouts, per_scene=settings.per_scene, seconds=60 * minutes, seed=settings.seed)
            for part, minutes in zip(parts, (0.9 * settings.review_minutes, 0.1 * settings.review_minutes), strict=True)
        ]

    training, held = cached(run.out / "cache", f"reviews-{seen.hexdigest()[:16]}", make)
    log.info("%d reviews, %d kept back, masks of %d rollouts", len(training), len(held), len(rollouts))
    dataset = ReviewDataset(training, config)
    rng = np.random.default_rng((settings.seed, run.steps["reviewer"]))
    minutes = settings.minutes * (1 - settings.locating - settings.judging)
    run.loop(
        "reviewer", minutes, lambda: dataset.batch(rng, settings.reviews),
        lambda batch: _learn(*reviewing_loss(run.net, batch)[:2]),
    )  # fmt: skip
    return calibrate_rating(run.average, ReviewDataset(held or training, config, mirror=False))


def _learn(loss: Tensor, report: Report) -> Report:
    """Accumulate the gradients of a loss; what is logged stays as it is."""
    loss.backward()  # type: ignore[no-untyped-call]
    return report
