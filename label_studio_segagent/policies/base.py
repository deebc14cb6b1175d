"""The protocol of a click policy: a model that looks at an image and a mask and answers with an action, as text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ..hlmat.actions import Action, ActionGrammar, Answer, Click
from ..hlmat.arrays import Box, Image, Mask
from ..segmenters.base import ImageState

__all__ = ["Decision", "Observation", "Policy", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where an object is.

    Attributes:
        box: (x0, y0, x1, y1) pixels, or None when only a point is known.
        point: (x, y) pixels, or None when only the box is known.
        score: Confidence in [0, 1].
    """

    box: Box | None
    point: tuple[float, float] | None
    score: float


@dataclass(frozen=True, slots=True)
class Observation:
    """The state that a policy sees: SegAgent drops the history, which is what makes refining any mask possible.

    Attributes:
        image: RGB uint8 (H, W, 3).
        mask: The current mask, bool (H, W).
        prompt: The label or referring expression.
        box: (x0, y0, x1, y1) pixels around the instance that is being segmented, when it is known.
        rejected: Clicks that were tried on exactly this mask and made it worse: not to be repeated.
        state: The segmenter's state for the image, for policies that share its features.
    """

    image: Image
    mask: Mask
    prompt: str
    box: Box | None = None
    rejected: tuple[Click, ...] = ()
    state: ImageState | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's answer to one observation.

    Attributes:
        action: The next action, or None when the answer could not be parsed.
        predicted_iou: The policy's rating of the observation's mask, *before* the action, in [0, 1], or None.
        text: The answer as the model wrote it.
        logprob: Sum of the answer's token log-probabilities, or None where there are no tokens.
    """

    action: Action | None
    predicted_iou: float | None
    text: str
    logprob: float | None = None


class Policy(ABC):
    """A click policy. Implementations are safe to call from several threads.

    Attributes:
        grammar: How this policy writes actions.
        version: Content address of everything that changes its answers; part of the model version.
    """

    grammar: ActionGrammar
    version: str

    @abstractmethod
    def locate_batch(self, items: Sequence[tuple[Image, str]]) -> list[list[Target]]:
        """Find the instances of each (image, prompt); one list a pair, best first, empty where there is none."""

    @abstractmethod
    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        """Rate each observation's mask and choose the next action; one decision an observation, in order."""

    def propose(self, observations: Sequence[Observation], count: int) -> list[list[Decision]]:
        """Several candidate decisions for each observation, for a search to choose from.

        Policies that write text sample it; for the others the one decision of `act` is the only candidate.

        Args:
            observations: States of rollouts.
            count: Candidates wanted for each, at least 1.

        Returns:
            For each observation, in order, 1 to `count` decisions with different actions, the one of `act` first.
            Answers that cannot be parsed are left out unless there is nothing else.
        """
        return [[decision] for decision in self.act(observations)]

    def tireless(self) -> Policy:
        """This policy, clicking on where it would be content, as far as that can be asked of it; for evaluation."""
        return self

    def locate(self, image: Image, prompt: str) -> list[Target]:
        """`locate_batch` for a single image, RGB uint8 (H, W, 3)."""
        return self.locate_batch([(image, prompt)])[0]

    def decide(self, action: Action, predicted_iou: float, image: Image) -> Decision:
        """A decision for models that do not write text themselves: it goes through the text protocol all the same."""
        size = (image.shape[0], image.shape[1])
        text = self.grammar.format(Answer(action, predicted_iou), size)
        return Decision(self.grammar.parse(text, size).action, predicted_iou, text)
