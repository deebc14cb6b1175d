"""StaR+: a policy improves on its own attempts, step by step.

In every round the current policy is rolled out on the training samples. A click that raised the IoU is kept; any other
action is replaced by that of the simulated annotator for the same state, and the rollout goes on from there. These
trajectories and the original ones together train the *starting* model anew.

Source: SegAgent (arXiv 2503.08625), section 4.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..agent.agent import SegAgent
from ..defaults import MAX_CLICKS
from ..errors import InputError
from ..hlmat.annotator import SimulatedAnnotator
from ..hlmat.trajectory import Sample, Trajectory, read_trajectories, write_trajectories
from ..policies.base import Policy
from ..segmenters.base import Segmenter
from .attempts import StarSettings, Tally, annotate, attempt, image_name, true_iou
from .trainer import ImageReader, Progress, Trainer, open_image

__all__ = ["Round", "image_reader", "measure", "star"]

T = TypeVar("T")


@dataclass(slots=True)
class Round:
    """One round: 0 is training on the original trajectories alone.

    Attributes:
        number: Of the round.
        model: The trained model, as `load_policy` takes it.
        tally: Of the rollouts that it learned from.
        learned_from: Trajectories in its training, the original ones included.
        loss: Of its training.
        train_miou: Mean IoU of its own rollouts on (at most so many as held out) training samples.
        miou: The same on held-out samples, or None without any.
        seconds: For rollouts, training and measuring.
    """

    number: int
    model: str
    tally: Tally
    learned_from: int
    loss: float
    train_miou: float
    miou: float | None
    seconds: float


def measure(policy: Policy, segmenter: Segmenter, samples: Sequence[Sample], max_clicks: int = MAX_CLICKS) -> float:
    """Mean IoU of the masks that an agent of the policy, greedy and with its own rating, makes of the samples."""
    rollouts = SegAgent(policy, segmenter, max_clicks).segment_batch([(s.image, s.prompt) for s in samples])
    return float(np.mean([true_iou(r.mask, s) for r, s in zip(rollouts, samples, strict=True)]))


def star(
    trainer: Trainer,
    load: Callable[[str], Policy],
    segmenter: Segmenter,
    samples: Sequence[Sample],
    out: Path,
    settings: StarSettings | None = None,
    *,
    annotator: SimulatedAnnotator | None = None,
    original: Sequence[Trajectory] | None = None,
    held_out: Sequence[Sample] = (),
    images: ImageReader | None = None,
    progress: Progress | None = None,
) -> list[Round]:
    """Train on the original trajectories, then improve round by round. What is done already in `out` is not repeated.

    Args:
        trainer: Of the starting model, from which every round is trained.
        load: Makes a policy of a model's name.
        segmenter: Turns clicks into masks.
        samples: To learn on; their ids must differ.
        out: Gets a folder `round-N` each: `trajectories.jsonl`, the training run, `round.json`; and `star.json`.
        settings: The defaults by default.
        annotator: F_sim; the default one by default.
        original: The original trajectories; by default those that the annotator makes of `samples`.
        held_out: To measure on, never learned from.
        images: Gives the image of a trajectory; by default that of the sample it was made of, or the file it names.
        progress: Told what happens.

    Returns:
        The rounds, round 0 first.

    Raises:
        InputError: There is nothing to learn from, ids repeat, `out` holds another run, or a file there is damaged.
        ConfigError: The starting model cannot be loaded or trained.
    """
    settings, annotator = settings or StarSettings(), annotator or SimulatedAnnotator()
    if not samples:
        raise InputError("StaR+ needs samples to learn on; there are none")
    images = images or image_reader(samples)
    out.mkdir(parents=True, exist_ok=True)
    _check_same(out / "settings.json", {
        "start": trainer.start, "segmenter": segmenter.version, "max_clicks": settings.max_clicks,
        "min_gain": settings.min_gain, "samples": _digest(samples), "held_out": _digest(held_out),
    })  # fmt: skip
    original = annotate(samples, segmenter, annotator, settings) if original is None else original
    rounds: list[Round] = []
    for number in range(settings.rounds + 1):
        folder = out / f"round-{number}"
        report = folder / "round.json"
        if not report.exists():
            previous = rounds[-1].model if rounds else ""
            found = _round(
                number, previous, trainer, load, segmenter, samples, folder, settings, annotator, original, held_out,
                images, progress,
            )  # fmt: skip
            _write(report, asdict(found))
        rounds.append(_read(report, lambda fields: Round(**{**fields, "tally": Tally(**fields["tally"])})))
        _write(out / "star.json", [asdict(one) for one in rounds])
    return rounds


def _round(
    number: int,
    previous: str,
    trainer: Trainer,
    load: Callable[[str], Policy],
    segmenter: Segmenter,
    samples: Sequence[Sample],
    folder: Path,
    settings: StarSettings,
    annotator: SimulatedAnnotator,
    original: Sequence[Trajectory],
    held_out: Sequence[Sample],
    images: ImageReader,
    progress: Progress | None,
) -> Round:
    began = time.monotonic()
    folder.mkdir(exist_ok=True)
    own: list[Trajectory] = []
    tally = Tally()
    if number:
        file, counts = folder / "trajectories.jsonl", folder / "tally.json"
        if not counts.exists():
            file.unlink(missing_ok=True)
            own, tally = attempt(load(previous), samples, segmenter, annotator, settings, progress)
            write_trajectories(file, own)
            _write(counts, asdict(tally))
        own, tally = list(read_trajectories(file)), _read(counts, lambda fields: Tally(**fields))
    union = [*original, *own]
    fitted = trainer.fit(union, folder / "fit", settings.fit, images=images, resume=True, progress=progress)
    policy = load(fitted.model)
    shown = samples[: len(held_out) or 100]
    train_miou = measure(policy, segmenter, shown, settings.max_clicks)
    miou = measure(policy, segmenter, held_out, settings.max_clicks) if held_out else None
    seconds = time.monotonic() - began
    return Round(number, fitted.model, tally, len(union), fitted.loss, train_miou, miou, seconds)


def image_reader(samples: Sequence[Sample]) -> ImageReader:
    """Finds the images of trajectories among samples; others are opened by the name of the file.

    Raises:
        InputError: Ids repeat.
    """
    ids = {sample.id for sample in samples}
    if len(ids) < len(samples):
        raise InputError(f"{len(samples)} samples have {len(ids)} different ids; each needs one of its own")
    known = {image_name(sample): sample.image for sample in samples}
    return lambda trajectory: known[trajectory.image] if trajectory.image in known else open_image(trajectory)


def _digest(samples: Sequence[Sample]) -> str:
    names = json.dumps([[sample.id, sample.prompt] for sample in samples])
    return hashlib.blake2b(names.encode(), digest_size=8).hexdigest()


def _check_same(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with another run than the one that a folder holds."""
    if not path.exists():
        _write(path, settings)
    before: dict[str, Any] = _read(path, lambda fields: {**fields})
    other = {name: before.get(name) for name in settings if before.get(name) != settings[name]}
    if other:
        raise InputError(f"{path.parent} holds a run with other settings: {other}; name another folder")


def _read(path: Path, make: Callable[[Any], T]) -> T:
    """What an earlier call wrote as JSON.

    Raises:
        InputError: It is something else now.
    """
    try:
        return make(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete it, and what it stands for is done again"
        ) from error


def _write(path: Path, content: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1), "utf-8")
    part.replace(path)
