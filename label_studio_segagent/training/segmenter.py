"""Training of the embedded click segmenter within a time budget; resumable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..datasets.image_file import Exif
from ..defaults import SEGMENTER_MINUTES
from ..segmenters.embedded_net import NetConfig, SegmenterNet
from .backbone import load_imagenet
from .feeding import keep_memory
from .run import Pace, Run
from .segmenter_data import CropDataset, CropSample, read_coco
from .segmenter_report import save_weights, write_card
from .segmenter_steps import train_on
from .trainer import start_run

__all__ = ["TrainSettings", "train"]

log = logging.getLogger(__name__)
_PART = "segmenter"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings(Pace):
    """How to train.

    Attributes:
        rate: Learning rate of the decoder.
        encoder_rate: Learning rate of the encoder, relative to `rate`.
        crops: Batch: (side in pixels, crops, probability) triples.
        targets: Targets per crop, at most.
        clicks: Clicks that are learned from, per target and batch.
        frozen: Blocks of the encoder that keep their ImageNet weights.
    """

    minutes: float = SEGMENTER_MINUTES
    rate: float = 8e-4
    decay: float = 0.02
    clip: float = 2.0
    warmup: int = 100
    stable: float = 0.7
    ema: float = 0.995
    log_steps: int = 50
    encoder_rate: float = 0.25
    crops: tuple[tuple[int, int, float], ...] = ((224, 10, 0.3), (256, 8, 0.45), (320, 5, 0.25))
    targets: int = 2
    clicks: int = 3
    frozen: int = 4


def train(
    data: Sequence[Path], out: Path, settings: TrainSettings, *, weights: Sequence[float] | None = None,
    resume: bool = False, config: NetConfig | None = None, exif: Exif | None = None,
) -> Path:  # fmt: skip
    """Train, and write `segmenter.safetensors`, `checkpoint.pt`, a log, its curves, and `MODEL_CARD.md` to `out`.

    Args:
        data: Folders in COCO format (`images/`, `train.json`), or COCO files.
        out: Made when missing.
        settings: How.
        weights: How often each folder is drawn; by default by the square root of its size.
        resume: Go on from `out/checkpoint.pt` when there is one.
        config: Sizes of the network.
        exif: What masks were drawn on, see `load_dataset`.

    Returns:
        The path of the weights.
    """
    keep_memory()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    start_run(out, resume)
    dataset = CropDataset([read_coco(Path(root), exif=exif) for root in data], weights or [1.0] * len(data))
    if weights is None:
        dataset.weights = np.sqrt([len(s) for s in dataset.sets])
        dataset.weights /= dataset.weights.sum()
    net = SegmenterNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.pretrained:
        load_imagenet(net.encoder, net.config.backbone)
    encoder = list(net.encoder.parameters())
    own = {id(p) for p in encoder}
    rest = [p for p in net.parameters() if id(p) not in own]
    groups = [{"params": encoder, "share": settings.encoder_rate}, {"params": rest, "share": 1.0}]
    run = Run(out, settings, net, groups, [_PART])
    if resume:
        run.load()
    log.info("training on %d images from step %d, minute %.1f", len(dataset), run.steps[_PART], run.seconds[_PART] / 60)
    path = out / "segmenter.safetensors"
    run.loop(
        _PART, settings.minutes, _maker(dataset, settings, run.steps[_PART]),
        lambda samples: asdict(
            train_on(net, samples, dataset, run.rng, steps=settings.clicks, frozen=settings.frozen)
        ),
        lambda: save_weights(run.average, path),
    )  # fmt: skip
    save_weights(run.average, path)
    write_card(
        out, path, data, asdict(settings), asdict(net.config), run.lately(_PART), run.steps[_PART],
        run.seconds[_PART], title="Embedded click segmenter", notes=_NOTES, use=_USE,
    )  # fmt: skip
    return path


def _maker(dataset: CropDataset, settings: TrainSettings, step: int) -> Callable[[], list[CropSample]]:
    """Draws batches; a run that goes on from a later step draws others."""
    rng = np.random.default_rng((settings.seed, step))
    chances = np.array([c[2] for c in settings.crops])

    def make() -> list[CropSample]:
        size, count, _ = settings.crops[int(rng.choice(len(settings.crops), p=chances / chances.sum()))]
        return [dataset.sample(rng, size, settings.targets) for _ in range(count)]

    return make
