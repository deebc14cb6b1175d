"""What a language model learns from a trajectory: at every step the policy's own question and the answer to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..hlmat.actions import Answer
from ..hlmat.arrays import Mask
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Trajectory
from ..policies.base import Observation
from ..policies.hf import HfPolicy
from .trainer import ImageReader, weight_of

__all__ = ["Lesson", "collate", "lessons_of"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """One step of a trajectory; its image is read when it is needed."""

    trajectory: Trajectory
    step: int


def lessons_of(trajectories: Sequence[Trajectory]) -> list[Lesson]:
    """The steps that say what to do: those with an action that was not undone, of trajectories that count."""
    return [
        Lesson(trajectory, number)
        for trajectory in trajectories
        if weight_of(trajectory) > 0
        for number, step in enumerate(trajectory.steps)
        if step.action is not None and not step.undone
    ]


def _rating(trajectory: Trajectory, mask: Mask) -> float:
    """The IoU of a mask with what the object really is."""
    truth = trajectory.target
    assert truth is not None  # it has a step
    return iou(mask, truth)


def collate(policy: HfPolicy, lessons: Sequence[Lesson], images: ImageReader) -> dict[str, Any]:
    """A batch for a model: what `policy` would be asked, followed by what it should answer.

    Args:
        policy: Whose questions, grammar and processor are used.
        lessons: The rows.
        images: Gives the image of a trajectory.

    Returns:
        The processor's tensors, with answers appended and padding on the right; `labels` int64 (rows, tokens), -100
        everywhere but on answers and their end-of-text token; `weights` float32 (rows,).
    """
    questions, answers = [], []
    for lesson in lessons:
        trajectory, step = lesson.trajectory, lesson.trajectory.steps[lesson.step]
        image = images(trajectory)
        assert step.action is not None
        rating = step.true_iou if step.true_iou is not None else _rating(trajectory, step.mask)
        size = (image.shape[0], image.shape[1])
        questions.append(policy._act_question(Observation(image, step.mask, trajectory.prompt, trajectory.box)))
        answers.append(policy.grammar.format(Answer(step.action, rating), size))
    inputs = dict(policy._inputs(questions))
    told = [
        [*policy.tokenizer(answer, add_special_tokens=False).input_ids, policy.tokenizer.eos_token_id]
        for answer in answers
    ]
    asked = inputs["attention_mask"].bool()
    lengths = [int(row.sum()) + len(answer) for row, answer in zip(asked, told, strict=True)]
    shape = inputs["input_ids"].shape
    fillers = {"input_ids": policy.tokenizer.pad_token_id, "attention_mask": 0}
    for name in [n for n, t in inputs.items() if t.shape == shape]:
        rows = torch.full((len(told), max(lengths)), fillers.get(name, 0), dtype=inputs[name].dtype)
        for row, (values, seen, answer) in enumerate(zip(inputs[name], asked, told, strict=True)):
            count = int(seen.sum())
            rows[row, :count] = values[seen]
            if name == "input_ids":
                rows[row, count : lengths[row]] = torch.tensor(answer)
            elif name == "attention_mask":
                rows[row, count : lengths[row]] = 1
        inputs[name] = rows
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, answer in enumerate(told):
        labels[row, lengths[row] - len(answer) : lengths[row]] = torch.tensor(answer)
    weights = torch.tensor([weight_of(lesson.trajectory) for lesson in lessons])
    return {**inputs, "labels": labels, "weights": weights}
