"""StaR+: a policy improves on its own attempts, step by step.

In every round the current policy is rolled out on the training samples. A click that raised the IoU is kept; any other
action is replaced by that of the simulated annotator for the same state, and the rollout goes on from there. These
trajectories and the original ones together train the *starting* model anew.

Source: SegAgent (arXiv 2503.08625), section 4; docs/SEGAGENT.md, section 5.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..agent.agent import SegAgent
from ..errors import InputError
from ..hlmat.actions import Action, Click, Finish
from ..hlmat.annotator import SimulatedAnnotator
from ..hlmat.arrays import Mask
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Sample, Step, Trajectory, read_trajectories, write_trajectories
from ..policies.base import Observation, Policy
from ..segmenters.base import ImageState, Query, Segmentation, Segmenter
from ..segmenters.cache import EmbeddingCache
from .trainer import FitSettings, ImageReader, Progress, Trainer, open_image

__all__ = ["Round", "StarSettings", "Tally", "annotate", "attempt", "image_reader", "measure", "star"]

_AT_ONCE = 16
"""Rollouts in lockstep."""


@dataclass(frozen=True, slots=True)
class StarSettings:
    """How StaR+ goes about it.

    Attributes:
        rounds: Rollout and training, so many times.
        max_clicks: Clicks of a rollout.
        min_gain: A click is kept when it raises the IoU by more than this (tau_diff).
        fit: How long and how hard each training is.
    """

    rounds: int = 2
    max_clicks: int = 7
    min_gain: float = 0.0
    fit: FitSettings = field(default_factory=FitSettings)


@dataclass(slots=True)
class Tally:
    """What became of a policy's actions.

    Attributes:
        kept: Clicks that raised the IoU, and *finish* where the annotator finishes too.
        replaced: Actions in whose place the annotator's was taken.
        unreadable: Of those replaced, answers that could not be read.
        trajectories: Rollouts made.
    """

    kept: int = 0
    replaced: int = 0
    unreadable: int = 0
    trajectories: int = 0


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


@dataclass(slots=True)
class _Walk:
    """A rollout in which each step is either the policy's or the annotator's."""

    sample: Sample
    state: ImageState
    mask: Mask
    iou: float
    logits: npt.NDArray[Any] | None = None
    clicks: list[Click] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    done: bool = False

    def query(self, click: Click) -> Query:
        return Query(self.state, (*self.clicks, click), prior=self.logits)

    def after(self, answer: Segmentation) -> float:
        return _iou(answer.mask, self.sample)

    def take(self, click: Click, answer: Segmentation, text: str = "") -> None:
        self.steps.append(Step(self.mask, click, true_iou=self.iou, text=text))
        self.clicks.append(click)
        self.mask, self.logits, self.iou = answer.mask, answer.logits, self.after(answer)

    def finish(self, text: str = "") -> None:
        self.steps.append(Step(self.mask, Finish(), true_iou=self.iou, text=text))
        self.done = True

    def trajectory(self, source: str) -> Trajectory:
        """The steps so far, with the last mask."""
        steps = self.steps if self.done else [*self.steps, Step(self.mask, None, true_iou=self.iou)]
        meta = {**self.sample.meta, "source": source, "object": self.sample.id}
        return Trajectory(self.sample.prompt, _image_name(self.sample), steps=steps, meta=meta)


def annotate(
    samples: Sequence[Sample],
    segmenter: Segmenter,
    annotator: SimulatedAnnotator,
    settings: StarSettings | None = None,
) -> list[Trajectory]:
    """The simulated annotator's own trajectories: the original data."""
    return attempt(None, samples, segmenter, annotator, settings)[0]


def attempt(
    policy: Policy | None,
    samples: Sequence[Sample],
    segmenter: Segmenter,
    annotator: SimulatedAnnotator,
    settings: StarSettings | None = None,
    progress: Progress | None = None,
) -> tuple[list[Trajectory], Tally]:
    """Roll a policy out, step by step keeping what raised the IoU and replacing the rest.

    Args:
        policy: Whose actions are tried; None for the annotator alone.
        samples: Images with what to segment and the truth.
        segmenter: Turns clicks into masks.
        annotator: Its action replaces one that raised nothing. Where its click raises nothing either, a person would
            stop, and so *finish* is what is learned.
        settings: The defaults by default.
        progress: Told what happens.

    Returns:
        One trajectory a sample, in order, and what became of the policy's actions.
    """
    settings, tally, cache = settings or StarSettings(), Tally(), EmbeddingCache()
    source = "F_sim" if policy is None else "StaR+"
    waiting = enumerate(samples)
    made: dict[int, Trajectory] = {}
    walks: dict[int, _Walk] = {}
    while True:
        for number, sample in islice(waiting, _AT_ONCE - len(walks)):
            empty = np.zeros(sample.mask.shape, bool)
            walks[number] = _Walk(sample, cache.encode(segmenter, sample.image), empty, _iou(empty, sample))
        if not walks:
            break
        _advance(policy, list(walks.values()), segmenter, annotator, settings.min_gain, tally)
        over = [n for n, walk in walks.items() if walk.done or len(walk.clicks) >= settings.max_clicks]
        made |= {number: walks.pop(number).trajectory(source) for number in over}
        if progress:
            progress(len(made) / max(len(samples), 1), "rollouts")
    tally.trajectories = len(made)
    return [made[number] for number in sorted(made)], tally


def _advance(
    policy: Policy | None,
    walks: Sequence[_Walk],
    segmenter: Segmenter,
    annotator: SimulatedAnnotator,
    min_gain: float,
    tally: Tally,
) -> None:
    """One step of every walk."""
    left, finishing = list(walks), dict[int, str]()
    corrections = {
        id(walk): annotator.next_action(walk.mask, walk.sample.mask, walk.clicks, walk.sample.void) for walk in walks
    }
    if policy is not None:
        seen = [Observation(w.state.image, w.mask, w.sample.prompt, state=w.state) for w in walks]
        decisions = policy.act(seen)
        tried = [(w, d) for w, d in zip(walks, decisions, strict=True) if isinstance(d.action, Click)]
        answers = segmenter.predict_batch([w.query(_click(d.action)) for w, d in tried])
        kept = set()
        for (walk, decision), answer in zip(tried, answers, strict=True):
            if walk.after(answer) > walk.iou + min_gain and not isinstance(corrections[id(walk)], Finish):
                walk.take(_click(decision.action), answer, decision.text)
                kept.add(id(walk))
        left = [walk for walk in walks if id(walk) not in kept]
        finishing = {id(w): d.text for w, d in zip(walks, decisions, strict=True) if isinstance(d.action, Finish)}
        tally.kept += len(kept)
        tally.unreadable += sum(decision.action is None for decision in decisions)
    clicking = [walk for walk in left if isinstance(corrections[id(walk)], Click)]
    answers = segmenter.predict_batch([walk.query(_click(corrections[id(walk)])) for walk in clicking])
    useful = {id(w): a for w, a in zip(clicking, answers, strict=True) if w.after(a) > w.iou + min_gain}
    for walk in left:
        if id(walk) in useful:
            walk.take(_click(corrections[id(walk)]), useful[id(walk)])
        else:
            walk.finish(finishing.get(id(walk), ""))
        if policy is not None:
            agreed = walk.done and id(walk) in finishing
            tally.kept += agreed
            tally.replaced += not agreed


def _image_name(sample: Sample) -> str:
    """What `Trajectory.image` says: the file where there is one, so that others can use the trajectories."""
    return sample.path or sample.id


def _iou(mask: Mask, sample: Sample) -> float:
    return iou(mask, sample.mask, sample.void)


def _click(action: Action | None) -> Click:
    assert isinstance(action, Click)
    return action


def measure(policy: Policy, segmenter: Segmenter, samples: Sequence[Sample], max_clicks: int = 7) -> float:
    """Mean IoU of the masks that an agent of the policy, greedy and with its own rating, makes of the samples."""
    rollouts = SegAgent(policy, segmenter, max_clicks).segment_batch([(s.image, s.prompt) for s in samples])
    return float(np.mean([_iou(r.mask, s) for r, s in zip(rollouts, samples, strict=True)]))


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
        InputError: There is nothing to learn from, or ids repeat.
        ConfigError: The starting model cannot be loaded or trained.
    """
    settings, annotator = settings or StarSettings(), annotator or SimulatedAnnotator()
    if not samples:
        raise InputError("StaR+ needs samples to learn on; there are none")
    images = images or image_reader(samples)
    out.mkdir(parents=True, exist_ok=True)
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
        fields = json.loads(report.read_text("utf-8"))
        rounds.append(Round(**{**fields, "tally": Tally(**fields["tally"])}))
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
        own, tally = list(read_trajectories(file)), Tally(**json.loads(counts.read_text("utf-8")))
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
    known = {_image_name(sample): sample.image for sample in samples}
    return lambda trajectory: known[trajectory.image] if trajectory.image in known else open_image(trajectory)


def _write(path: Path, content: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1), "utf-8")
    part.replace(path)
