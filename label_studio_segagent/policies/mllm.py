"""What all multimodal language models share: from what is seen to a question, and from the answer to a decision."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

import numpy as np
from typing_extensions import override

from ..errors import GrammarError
from ..hlmat.actions import Action, Answer, Click, Finish
from ..hlmat.arrays import Box, Image, check_image
from ..hlmat.overlay import overlay
from .base import Decision, Observation, Policy, Target
from .located import read_targets
from .prompts import BOX_HINT, PLAIN_HINT, PRESETS, REJECTED_HINT
from .resizing import Resize, resized

__all__ = ["TEMPERATURE", "MllmPolicy", "Question", "Reply"]

TEMPERATURE = 0.8
"""Of sampled candidates."""
_ACT_TOKENS = 80
_LOCATE_TOKENS = 768
"""Enough for some twenty boxes; where the list is cut off, those that are complete still count."""
_LONGEST_PROMPT = 500
_PLAIN_TEXT = str.maketrans("<>[]", "‹›()")
"""A prompt comes from a task; models know their control tokens, such as <image>, by these brackets."""


@dataclass(frozen=True, slots=True)
class Question:
    """One user message.

    Attributes:
        images: RGB uint8 (h, w, 3), in the size that the model is to see.
        text: Comes after the images.
        size: (height, width) of the original image when an action is asked for: the answer is complete as soon as it
            can be read, and its log-probability counts. None when it may be any text.
    """

    images: tuple[Image, ...]
    text: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer.

    Attributes:
        text: As the model wrote it; when there is no answer, why.
        logprob: Sum of its tokens' log-probabilities at temperature 1, or None when unknown.
        failed: There is no answer.
    """

    text: str
    logprob: float | None = None
    failed: bool = False


class MllmPolicy(Policy):
    """A policy that asks a multimodal language model; a subclass says how, in `_ask`.

    Args:
        preset: How the model is asked and answers; a key of `prompts.PRESETS`.
        resize: The size in which it sees images.
        model: Content address of the model itself.
        plain_image: Show the image without the mask's tint as well.
    """

    def __init__(self, preset: str, resize: Resize, model: str, *, plain_image: bool = False) -> None:
        self.preset, self.resize, self.plain_image = PRESETS[preset], resize, plain_image
        self.grammar = self.preset.grammar(self.preset.frame(resize))
        texts = (self.preset.act, self.preset.locate, self.preset.coordinates, BOX_HINT, PLAIN_HINT, REJECTED_HINT)
        recipe = repr((preset, texts, resize, plain_image, _ACT_TOKENS, _LOCATE_TOKENS, TEMPERATURE, model))
        self.version = f"mllm-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"

    @abstractmethod
    def _ask(self, questions: Sequence[Question], *, tokens: int, samples: int = 0) -> list[list[Reply]]:
        """Answer questions, in order.

        Args:
            questions: At least one.
            tokens: Length of the longest answer.
            samples: Answers wanted for each question, sampled at `TEMPERATURE`, or 0 for the most likely one.

        Returns:
            At least one reply for each question.
        """

    def _readable(self, text: str, size: tuple[int, int]) -> bool:
        """Whether an answer about an image of (height, width) pixels can be read, so that no more need be written."""
        try:
            self.grammar.parse(text, size)
        except GrammarError:
            return False
        return True

    @override
    def locate_batch(self, items: Sequence[tuple[Image, str]]) -> list[list[Target]]:
        if not items:
            return []
        if not self.preset.locate:
            return self._first_clicks(items)
        questions = [Question((self._shown(image),), self._locate_text(image, prompt)) for image, prompt in items]
        return [
            [] if reply.failed else read_targets(reply.text, self.grammar.frame, _size(image))
            for [reply], (image, _) in zip(self._ask(questions, tokens=_LOCATE_TOKENS), items, strict=True)
        ]

    @override
    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        return [candidates[0] for candidates in self.propose(observations, 1)]

    @override
    def propose(self, observations: Sequence[Observation], count: int) -> list[list[Decision]]:
        if not observations:
            return []
        questions = [self._act_question(seen) for seen in observations]
        replies = self._ask(questions, tokens=_ACT_TOKENS)
        if count > 1:
            more = self._ask(questions, tokens=_ACT_TOKENS, samples=count - 1)
            replies = [[*first, *others] for first, others in zip(replies, more, strict=True)]
        return [
            _distinct([self._read(reply, seen.image) for reply in group])
            for group, seen in zip(replies, observations, strict=True)
        ]

    def _first_clicks(self, items: Sequence[tuple[Image, str]]) -> list[list[Target]]:
        """Where the model clicks first, for models that do not write boxes."""
        decisions = self.act([Observation(image, np.zeros(_size(image), bool), prompt) for image, prompt in items])
        clicks = [decision.action for decision in decisions]
        return [
            [Target(None, (click.x, click.y), 1.0)] if isinstance(click, Click) and click.positive else []
            for click in clicks
        ]

    def _read(self, reply: Reply, image: Image) -> Decision:
        try:
            if reply.failed:
                return Decision(None, None, reply.text)
            answer = self.grammar.parse(reply.text, _size(image))
        except GrammarError:
            return Decision(None, None, reply.text, reply.logprob)
        return Decision(answer.action, answer.predicted_iou, reply.text, reply.logprob)

    def _shown(self, image: Image) -> Image:
        return resized(check_image(image), self.resize(_size(image)))

    def _locate_text(self, image: Image, prompt: str) -> str:
        height, width = size = _size(image)
        corners = (0.12 * width, 0.3 * height, 0.58 * width, 0.94 * height)
        found = json.dumps([{"bbox_2d": self._corners(corners, size), "label": "horse"}])
        return self._fill(self.preset.locate, size, prompt, found=found)

    def _act_question(self, seen: Observation) -> Question:
        height, width = size = _size(check_image(seen.image))
        # Tinted before it is resized: a mask of a few pixels on a large image still shows.
        images = [self._shown(overlay(seen.image, seen.mask))]
        parts = [self.preset.act]
        if seen.box is not None:
            parts.append(BOX_HINT)
        if seen.rejected:
            parts.append(REJECTED_HINT)
        if self.plain_image and seen.mask.any():
            images.append(self._shown(seen.image))
            parts.append(PLAIN_HINT)
        text = self._fill(
            "\n".join(parts),
            size,
            seen.prompt,
            click=self.grammar.format(Answer(Click(0.62 * width, 0.31 * height), 0.58), size),
            finish=self.grammar.format(Answer(Finish(), 0.96), size),
            box="" if seen.box is None else json.dumps(self._corners(seen.box, size)),
            clicks="; ".join(self.grammar.format(Answer(click), size) for click in seen.rejected),
        )
        return Question(tuple(images), text, size)

    def _corners(self, box: Box, size: tuple[int, int]) -> list[float]:
        frame = self.grammar.frame
        return [*frame.to_text(box[0], box[1], size), *frame.to_text(box[2], box[3], size)]

    def _fill(self, template: str, size: tuple[int, int], prompt: str, **more: str) -> str:
        height, width = self.resize(size)
        coordinates = Template(self.preset.coordinates).substitute(width=width, height=height)
        plain = " ".join(prompt.translate(_PLAIN_TEXT).split())[:_LONGEST_PROMPT]
        return Template(template).substitute(prompt=plain, coordinates=coordinates, **more)


def _size(image: Image) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _distinct(decisions: list[Decision]) -> list[Decision]:
    """Decisions with different actions, the first of each; unreadable ones only where there is nothing else."""
    unique: dict[Action, Decision] = {}
    for decision in decisions:
        if decision.action is not None:
            unique.setdefault(decision.action, decision)
    return list(unique.values()) or decisions[:1]
