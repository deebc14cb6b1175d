"""Teaching the embedded policy the labels of a project: quickly, on a CPU, without forgetting.

Only the label vectors (and biases) of the labels at hand are learned, everything else stays as it is: what the policy
knew about other labels cannot change.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor, nn

from ..errors import InputError
from ..hlmat.arrays import Image, Mask, mask_box
from ..hlmat.trajectory import Trajectory
from ..policies.embedded import EmbeddedPolicy
from ..policies.embedded_net import PolicyNet
from ..policies.label_text import SALIENT, SYNONYMS, LabelBook, normalise
from .policy_data import shrink
from .policy_steps import locator_loss

__all__ = ["fit_policy"]

_ANCHOR = 0.02
"""Pull of a label vector that was known towards what it was."""
_ROUNDS = 60
_BATCH = 4

_Example = tuple[tuple[Tensor, ...], int, Tensor, Tensor, Tensor]


def fit_policy(
    policy: EmbeddedPolicy,
    trajectories: Sequence[Trajectory],
    images: Callable[[Trajectory], Image] | None = None,
    *,
    seconds: float = 60.0,
    seed: int = 0,
) -> EmbeddedPolicy:
    """A policy that also knows the labels of finished rollouts; `policy` itself stays as it is.

    Args:
        policy: Where to start.
        trajectories: Their last masks are right, and all instances of a label in an image have one.
        images: Gives the image of a trajectory, RGB uint8 (H, W, 3); by default the file that it names.
        seconds: Time budget.
        seed: Of the order of examples.

    Raises:
        InputError: There is nothing to learn from.
    """
    grouped: dict[tuple[str, str], list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.steps and trajectory.steps[-1].mask.any():
            key = (_name(policy.book, trajectory.prompt), trajectory.image or str(id(trajectory)))
            grouped.setdefault(key, []).append(trajectory)
    if not grouped:
        raise InputError(f"none of the {len(trajectories)} trajectories ends in a mask: nothing to learn from")
    names = sorted({name for name, _ in grouped})
    net = _with_labels(policy.net, names)
    rows = [net.config.labels.index(name) for name in names]
    read = images or _open
    examples = [
        _example(policy, read(group[0]), names.index(name), [t.steps[-1].mask for t in group])
        for (name, _), group in grouped.items()
    ]
    anchored = torch.tensor([float(name in policy.net.config.labels) for name in names])
    _learn(net, rows, anchored, examples, seconds, np.random.default_rng(seed))
    return policy.with_net(net)


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


def _open(trajectory: Trajectory) -> Image:
    try:
        with PilImage.open(Path(trajectory.image)) as file:
            return np.asarray(file.convert("RGB"))
    except OSError as error:
        raise InputError(f"cannot read the image {trajectory.image!r} of a trajectory: {error}") from error


def _example(policy: EmbeddedPolicy, image: Image, label: int, masks: Sequence[Mask]) -> _Example:
    seen, side = policy.see(image), policy.net.config.side
    view = seen.view
    boxes = [view.box(mask_box(mask)) / 8 for mask in masks]
    height, width = view.height // 8, view.width // 8
    region, counts = torch.zeros(1, side // 8, side // 8), torch.zeros(1, side // 8, side // 8)
    region[0, :height, :width] = torch.from_numpy(np.max([shrink(m, height, width) for m in masks], 0))
    counts[0, :height, :width] = 1
    return seen.maps, label, torch.from_numpy(np.stack(boxes)), region, counts


def _learn(
    net: PolicyNet, rows: Sequence[int], anchored: Tensor, examples: Sequence[_Example], seconds: float,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    before = net.vectors[list(rows)].clone()
    vectors, biases = before.clone().requires_grad_(), net.biases[list(rows)].clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors, biases], 0.02)
    deadline = time.monotonic() + seconds
    for _ in range(_ROUNDS):
        order = rng.permutation(len(examples))
        for start in range(0, len(order), _BATCH):
            chosen = [examples[int(i)] for i in order[start : start + _BATCH]]
            first, second, third = (torch.cat(maps) for maps in zip(*(e[0] for e in chosen), strict=True))
            labels = torch.tensor([e[1] for e in chosen])
            found, _ = net.locator.find((first, second, third), vectors[labels], biases[labels])
            heat, boxes, region = locator_loss(
                found, [e[2] for e in chosen], torch.stack([e[3] for e in chosen]),
                torch.stack([e[4] for e in chosen]),
            )  # fmt: skip
            pull = ((vectors - before).square().sum(1) * anchored).sum()
            optimizer.zero_grad()
            (heat + boxes + region + _ANCHOR * pull).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if time.monotonic() > deadline:
            break
    with torch.no_grad():
        net.vectors[list(rows)] = vectors.detach()
        net.biases[list(rows)] = biases.detach()
