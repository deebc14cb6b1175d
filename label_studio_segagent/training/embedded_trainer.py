"""Teaching the embedded policy the labels of a project: in closed form, without forgetting.

Annotated objects are kept as what they look like on average, one row a label: nothing else of the policy changes, so
what it knew about other labels stays as it is, and what it learns depends on the annotations alone, not on their order.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from ..embedded.evidence import weighted_mean
from ..errors import ConfigError, InputError
from ..hlmat.arrays import Mask
from ..hlmat.trajectory import Trajectory
from ..policies import load_policy
from ..policies.embedded import EmbeddedPolicy
from ..policies.embedded_examples import Shown, example_name, look_at, with_means
from ..policies.embedded_weights import save_net
from ..segmenters.base import Segmenter
from .trainer import FitSettings, Fitted, ImageReader, Progress, Trainer, open_image, start_run, weight_of

__all__ = ["EmbeddedPolicyTrainer"]

_CHECKPOINT_SECONDS = 5.0
Key: TypeAlias = tuple[str, str]
"""Name and image."""


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
        """See `Trainer.fit`.

        There are no optimizer steps and no curves. `Fitted.loss` says how unlike the examples of a label are: 1 -
        cosine of each with the mean of the others, seen from the centre of all images; 0 where no label has two.
        """
        settings, report = settings or FitSettings(), progress or (lambda share, step: None)
        started = time.monotonic()
        start_run(out, resume)
        grouped = _group(trajectories)
        checkpoint = out / "checkpoint.pt"
        shown = _load(checkpoint) if resume else {}
        saved = started
        for number, (key, group) in enumerate(grouped.items()):
            if key not in shown:
                if shown and time.monotonic() - started > settings.seconds:
                    break
                seen = self.policy.sight.see((images or open_image)(group[0]))
                found = look_at(seen, [t.target for t in group if t.target is not None])
                if found is not None:
                    shown[key] = found[0], found[1] * max(map(weight_of, group))
            report((number + 1) / len(grouped), f"looking at examples of {key[0]}")
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                saved = time.monotonic()
                _save(shown, checkpoint)
        means: dict[str, list[Shown]] = defaultdict(list)
        for (name, _), example in shown.items():
            means[name].append(example)
        path = out / "policy.safetensors"
        save_net(with_means(self.policy.net, means), path, self.policy.segmenter.eyes)
        checkpoint.unlink(missing_ok=True)
        loss = _unlikeness(means.values(), self.policy.net.evidence.centre)
        return Fitted(f"embedded:{path}", 0, loss, time.monotonic() - started)


def _group(trajectories: Sequence[Trajectory]) -> dict[Key, list[Trajectory]]:
    """The trajectories of each label and image that has something of it, images in random but fixed order.

    Raises:
        InputError: None of them ends in a mask.
    """
    grouped: dict[Key, list[Trajectory]] = {}
    for trajectory in trajectories:
        target: Mask | None = trajectory.target if trajectory.steps else None
        if target is not None and target.any() and weight_of(trajectory) > 0:
            key = (example_name(trajectory.prompt), trajectory.image or str(id(trajectory)))
            grouped.setdefault(key, []).append(trajectory)
    if not grouped:
        raise InputError(f"none of the {len(trajectories)} trajectories ends in a mask: nothing to learn from")
    keys = sorted(grouped)
    return {keys[int(i)]: grouped[keys[int(i)]] for i in np.random.default_rng(0).permutation(len(keys))}


def _unlikeness(labels: Iterable[Sequence[Shown]], centre: Tensor) -> float:
    found = []
    for examples in labels:
        for i, (mean, _) in enumerate(examples):
            if others := [*examples[:i], *examples[i + 1 :]]:
                found.append(1 - float(F.cosine_similarity(mean - centre, weighted_mean(others) - centre, dim=0)))
    return float(np.mean(found)) if found else 0.0


def _save(shown: dict[Key, Shown], path: Path) -> None:
    """Write the checkpoint; always whole."""
    temporary = path.with_suffix(".part")
    torch.save([(*key, mean, weight) for key, (mean, weight) in shown.items()], temporary)
    temporary.replace(path)


def _load(path: Path) -> dict[Key, Shown]:
    if not path.exists():
        return {}
    return {(name, image): (mean, weight) for name, image, mean, weight in torch.load(path, weights_only=True)}
