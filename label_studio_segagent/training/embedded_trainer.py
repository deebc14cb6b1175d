"""Teaching the embedded policy the labels of a project: quickly, on a CPU, without forgetting.

Only the label vectors (and biases) of the labels at hand are learned, everything else stays as it is: what the policy
knew about other labels cannot change.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import ConfigError, InputError
from ..hlmat.arrays import Image, Mask, mask_box
from ..hlmat.trajectory import Trajectory
from ..policies import load_policy
from ..policies.embedded import EmbeddedPolicy
from ..policies.embedded_net import PolicyNet
from ..policies.embedded_weights import save_net
from ..policies.label_text import SALIENT, SYNONYMS, LabelBook, normalise
from ..segmenters.base import Segmenter
from .curves import Curves
from .policy_data import shrink
from .policy_steps import locator_loss
from .trainer import FitSettings, Fitted, ImageReader, Progress, Trainer, open_image, start_run, weight_of

__all__ = ["EmbeddedPolicyTrainer"]

_ANCHOR = 0.02
"""Pull of a label vector that was known towards what it was."""
_EPOCHS = 60.0
_RATE = 0.02
_BATCH = 4
_LOOKING = 0.5
"""Share of the time budget that looking at the images may take."""
_KEPT_BACK = 24
"""From so many examples on, an eighth is kept back to tell when to stop."""


@dataclass(slots=True)
class _Example:
    """One label in one image, as the locator's head sees it; sizes are those of the padded square at stride 8."""

    maps: tuple[Tensor, ...]
    label: int
    boxes: Tensor
    region: Tensor
    counts: Tensor
    weight: float


class EmbeddedPolicyTrainer(Trainer):
    """Teaches labels to an embedded policy.

    A trajectory's `target` (its last mask, where it does not name another) is taken for right; all instances of a label
    in an image must have one. An empty one says that there is nothing of the label.

    Args:
        start: "embedded" or "embedded:<weights>".
        segmenter: The one that the policy works with; the embedded one by default.
    """

    clicks = False

    def __init__(self, start: str, segmenter: Segmenter | None = None) -> None:
        super().__init__(start)
        policy = load_policy(start, segmenter)
        if not isinstance(policy, EmbeddedPolicy):
            raise ConfigError(f"{start!r} is no embedded policy")
        self.policy = policy

    @override
    def fit(
        self,
        trajectories: Sequence[Trajectory],
        out: Path,
        settings: FitSettings | None = None,
        *,
        images: ImageReader | None = None,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> Fitted:
        settings, report = settings or FitSettings(), progress or (lambda share, step: None)
        start_run(out, resume)
        groups = _group(self.policy.book, trajectories)
        names = sorted({name for name, _ in groups})
        net = _with_labels(self.policy.net, names)
        run = _Run(
            net, names, [name in self.policy.net.config.labels for name in names], settings, out / "checkpoint.pt"
        )
        if resume:
            run.load()
        examples = run.look(self.policy, groups, images or open_image, report)
        run.learn(examples, out, report)
        path = out / "policy.safetensors"
        save_net(run.finish(), path, self.policy.segmenter.eyes)
        return Fitted(f"embedded:{path}", run.steps, run.loss, run.seconds)


def _group(book: LabelBook, trajectories: Sequence[Trajectory]) -> dict[tuple[str, str], list[Trajectory]]:
    """The trajectories of each (label, image).

    Raises:
        InputError: None of them ends in a mask.
    """
    grouped: dict[tuple[str, str], list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.steps:
            key = (_name(book, trajectory.prompt), trajectory.image or str(id(trajectory)))
            grouped.setdefault(key, []).append(trajectory)
    # A label of which no image has anything cannot be learned.
    seen = {name for (name, _), group in grouped.items() if any(_truth(t).any() for t in group)}
    if not seen:
        raise InputError(f"none of the {len(trajectories)} trajectories ends in a mask: nothing to learn from")
    return {key: group for key, group in grouped.items() if key[0] in seen}


def _truth(trajectory: Trajectory) -> Mask:
    """What the object really is, bool (H, W)."""
    truth = trajectory.target
    assert truth is not None  # those without a step have been left out
    return truth


def _name(book: LabelBook, prompt: str) -> str:
    """The label that a prompt means; the prompt itself when nobody knows it."""
    name = book.find(prompt)
    plain = normalise(prompt)
    return plain if name == SALIENT and plain and SYNONYMS.get(plain) != SALIENT else name


def _with_labels(net: PolicyNet, names: Sequence[str]) -> PolicyNet:
    """A copy of the network with vectors for new labels, which start as "what stands out"."""
    net = copy.deepcopy(net)
    fresh = [name for name in names if name not in net.config.labels]
    if fresh:
        net.config = replace(net.config, labels=(*net.config.labels, *fresh))
        for key in ("vectors", "biases"):
            values: Tensor = getattr(net, key).detach()
            setattr(net, key, nn.Parameter(torch.cat([values, values[:1].repeat_interleave(len(fresh), 0)])))
    return net.requires_grad_(False)


class _Run:
    """Learning the vectors of some labels, with checkpoints."""

    def __init__(
        self, net: PolicyNet, names: Sequence[str], known: Sequence[bool], settings: FitSettings, checkpoint: Path
    ) -> None:
        self.net, self.names, self.settings, self.checkpoint = net, names, settings, checkpoint
        self.rows = [net.config.labels.index(name) for name in names]
        self.anchored = torch.tensor([float(k) for k in known])
        self.before = net.vectors[self.rows].clone()
        self.vectors = self.before.clone().requires_grad_()
        self.biases = net.biases[self.rows].clone().requires_grad_()
        self.best = (self.before.clone(), self.biases.detach().clone())
        self.optimizer = torch.optim.Adam([self.vectors, self.biases], settings.rate or _RATE)
        self.round, self.steps, self.spent, self.least, self.worse = 0, 0, 0.0, float("inf"), 0
        self.loss = float("nan")
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent, interrupted runs included."""
        return self.spent + time.monotonic() - self.started

    def look(
        self, policy: EmbeddedPolicy, groups: dict[tuple[str, str], list[Trajectory]], images: ImageReader,
        report: Progress,
    ) -> list[_Example]:  # fmt: skip
        """What there is to learn from, in random order; the images that there is no time for are left out."""
        rng = np.random.default_rng(self.settings.seed)
        keys = sorted(groups)
        paths = sorted({image for _, image in keys})
        place = {paths[int(i)]: n for n, i in enumerate(rng.permutation(len(paths)))}
        keys.sort(key=lambda key: (place[key[1]], key[0]))
        deadline, found = time.monotonic() + _LOOKING * self.settings.seconds, []
        for number, (name, path) in enumerate(keys):
            group = groups[name, path]
            found.append(_example(policy, images(group[0]), self.names.index(name), group))
            report(0.4 * (number + 1) / len(keys), f"looking at {len(paths)} images")
            if time.monotonic() > deadline:
                break
        return found

    def learn(self, examples: Sequence[_Example], out: Path, report: Progress) -> None:
        """Go through the examples until the time is up, the epochs are over or nothing is gained any more."""
        kept = examples[: len(examples) // 8] if len(examples) >= _KEPT_BACK else []
        rest = examples[len(kept) :]
        rounds = round(self.settings.epochs or _EPOCHS)
        weights = np.array([e.weight for e in rest])
        uneven = bool((weights != weights[0]).any() and weights.sum() > 0)
        chances = weights / weights.sum() if uneven else None
        curves = Curves(out, ("loss", "kept_back"), self.steps)
        while self.round < rounds and self.seconds < self.settings.seconds:
            rng = np.random.default_rng((self.settings.seed, self.round))
            order = rng.choice(len(rest), len(rest), p=chances) if uneven else rng.permutation(len(rest))
            starts = range(0, len(rest), _BATCH)
            losses = [self._step([rest[int(i)] for i in order[s : s + _BATCH]]) for s in starts]
            with torch.no_grad():
                judged = [float(self._loss(kept[s : s + _BATCH])) for s in range(0, len(kept), _BATCH)]
            self.loss = float(np.mean(judged or losses))
            self.round += 1
            self.worse = 0 if self.loss < self.least else self.worse + 1
            if self.loss < self.least or not kept:
                self.least = min(self.loss, self.least)
                self.best = (self.vectors.detach().clone(), self.biases.detach().clone())
            judgement = {"kept_back": self.loss} if kept else {}
            curves.add(self.steps, self.seconds / 60, {"loss": float(np.mean(losses)), **judgement})
            share = max(self.round / rounds, self.seconds / self.settings.seconds)
            report(0.4 + 0.6 * min(share, 1.0), f"learning {', '.join(self.names)[:60]}")
            self.save()
            if kept and self.worse >= 4 * self.settings.patience:
                break
        curves.close()
        self.loss = self.least if kept else self.loss

    def finish(self) -> PolicyNet:
        """The network with the best vectors."""
        with torch.no_grad():
            self.net.vectors[self.rows], self.net.biases[self.rows] = self.best
        self.checkpoint.unlink(missing_ok=True)
        return self.net

    def save(self) -> None:
        """Write the checkpoint; always whole."""
        state = {
            "names": list(self.names), "vectors": self.vectors.detach(), "biases": self.biases.detach(),
            "best": self.best, "optimizer": self.optimizer.state_dict(), "round": self.round, "steps": self.steps,
            "spent": self.seconds, "least": self.least, "worse": self.worse,
        }  # fmt: skip
        temporary = self.checkpoint.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint)

    def load(self) -> None:
        """Go on from the checkpoint, if there is one for these labels."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        if state["names"] != list(self.names):
            return
        with torch.no_grad():
            self.vectors.copy_(state["vectors"])
            self.biases.copy_(state["biases"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = tuple(state["best"])
        self.round, self.steps, self.spent = state["round"], state["steps"], state["spent"]
        self.least, self.worse = state["least"], state["worse"]

    def _step(self, chosen: Sequence[_Example]) -> float:
        pull = ((self.vectors - self.before).square().sum(1) * self.anchored).sum()
        loss = self._loss(chosen)
        self.optimizer.zero_grad()
        (loss + _ANCHOR * pull).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.steps += 1
        return float(loss.detach())

    def _loss(self, chosen: Sequence[_Example]) -> Tensor:
        maps = tuple(torch.cat(column) for column in zip(*(e.maps for e in chosen), strict=True))
        labels = torch.tensor([e.label for e in chosen])
        found, _ = self.net.locator.find((maps[0], maps[1], maps[2]), self.vectors[labels], self.biases[labels])
        heat, boxes, region = locator_loss(
            found, [e.boxes for e in chosen], torch.stack([e.region for e in chosen]),
            torch.stack([e.counts for e in chosen]),
        )  # fmt: skip
        return heat + boxes + region


def _example(policy: EmbeddedPolicy, image: Image, label: int, group: Sequence[Trajectory]) -> _Example:
    # Several trajectories may be of the same object.
    masks: list[Mask] = list({truth.tobytes(): truth for t in group if (truth := _truth(t)).any()}.values())
    seen, side = policy.sight.see(image), policy.net.config.side
    view = seen.view
    boxes = np.stack([view.box(mask_box(m)) / 8 for m in masks]) if masks else np.zeros((0, 4), np.float32)
    height, width = view.height // 8, view.width // 8
    region, counts = torch.zeros(1, side // 8, side // 8), torch.zeros(1, side // 8, side // 8)
    if masks:
        region[0, :height, :width] = torch.from_numpy(np.max([shrink(m, height, width) for m in masks], 0))
    counts[0, :height, :width] = 1
    return _Example(seen.maps, label, torch.from_numpy(boxes), region, counts, min(map(weight_of, group)))
