"""HLMAT as a Gymnasium environment: look at image and mask, click, get the gain in IoU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from typing_extensions import override

from ..defaults import MAX_CLICKS
from .actions import Action, Click, Finish
from .arrays import Image, Mask
from .metrics import iou
from .trajectory import Sample

__all__ = ["HLMATEnv"]

_PROMPT_CHARACTERS = 256


class _Segmentation(Protocol):
    mask: Mask
    logits: npt.NDArray[np.float32]


class _Segmenter(Protocol):
    """What the environment needs of a segmenter; `label_studio_segagent.Segmenter` has it."""

    def set_image(self, image: Image) -> Any: ...

    def predict(self, state: Any, clicks: Sequence[Click], *, prior: npt.NDArray[Any] | None) -> Any: ...


class HLMATEnv(gym.Env[dict[str, Any], dict[str, Any]]):
    """The Human-Like Mask Annotation Task (SegAgent, arXiv 2503.08625, section 3), registered as "HLMAT-v0".

    Observation (dict): `image` uint8 (H, W, 3), `mask` uint8 0/1 (H, W), `prompt` text.
    Action (dict): `kind` 0 positive click, 1 negative click, 2 finish; `point` (x, y) as fractions of width and height.
    Reward: the gain in IoU of this step. Terminated by *finish*, truncated at `max_clicks`.
    Info: `iou`, `clicks`, `sample` (its id).

    Args:
        samples: What to segment; `reset` goes through them in order, or `reset(options={"sample": i})` picks one.
        segmenter: The tool that turns clicks into masks.
        max_clicks: Clicks an episode may have.
        size: (H, W) that every sample is resized to; the first sample's own size by default.
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        samples: Sequence[Sample],
        segmenter: _Segmenter,
        max_clicks: int = MAX_CLICKS,
        size: tuple[int, int] | None = None,
    ) -> None:
        if not samples:
            raise ValueError("HLMATEnv needs at least one sample")
        self.samples, self.segmenter, self.max_clicks = samples, segmenter, max_clicks
        self.size = size or samples[0].mask.shape
        prompts = {character for sample in samples for character in sample.prompt}
        self.observation_space = gym.spaces.Dict(
            {
                "image": gym.spaces.Box(0, 255, (*self.size, 3), np.uint8),
                "mask": gym.spaces.Box(0, 1, self.size, np.uint8),
                "prompt": gym.spaces.Text(_PROMPT_CHARACTERS, min_length=0, charset="".join(sorted(prompts)) or " "),
            }
        )
        self.action_space = gym.spaces.Dict(
            {"kind": gym.spaces.Discrete(3), "point": gym.spaces.Box(0.0, 1.0, (2,), np.float32)}
        )
        self._next = 0

    @override
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._next = 0
        index = (options or {}).get("sample", self._next)
        self._next = (index + 1) % len(self.samples)
        sample = self.samples[index]
        height, width = self.size
        self._image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_AREA)
        self._target = _resize_mask(sample.mask, self.size)
        self._void = None if sample.void is None else _resize_mask(sample.void, self.size)
        self._sample, self._state = sample, self.segmenter.set_image(self._image)
        self._mask = np.zeros(self.size, bool)
        self._logits: npt.NDArray[np.float32] | None = None
        self._clicks: list[Click] = []
        return self._observation(), self._info()

    @override
    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        move = self._read(action)
        if isinstance(move, Finish):
            return self._observation(), 0.0, True, False, self._info()
        before = self._iou()
        self._clicks.append(move)
        out: _Segmentation = self.segmenter.predict(self._state, self._clicks, prior=self._logits)
        self._mask, self._logits = out.mask, out.logits
        return self._observation(), self._iou() - before, False, len(self._clicks) >= self.max_clicks, self._info()

    def to_action(self, action: Action) -> dict[str, Any]:
        """A Click or Finish as an element of the action space."""
        if isinstance(action, Finish):
            return {"kind": np.int64(2), "point": np.zeros(2, np.float32)}
        point = (action.x / max(self.size[1] - 1, 1), action.y / max(self.size[0] - 1, 1))
        return {"kind": np.int64(0 if action.positive else 1), "point": np.clip(np.array(point, np.float32), 0, 1)}

    def _read(self, action: dict[str, Any]) -> Action:
        if int(action["kind"]) == 2:
            return Finish()
        x, y = (float(value) for value in action["point"])
        return Click(round(x * (self.size[1] - 1)), round(y * (self.size[0] - 1)), int(action["kind"]) == 0)

    def _iou(self) -> float:
        return iou(self._mask, self._target, self._void)

    def _observation(self) -> dict[str, Any]:
        prompt = self._sample.prompt[:_PROMPT_CHARACTERS]
        return {"image": self._image.copy(), "mask": self._mask.astype(np.uint8), "prompt": prompt}

    def _info(self) -> dict[str, Any]:
        return {"iou": self._iou(), "clicks": len(self._clicks), "sample": self._sample.id}


def _resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    return cv2.resize(mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST).astype(bool)


gym.register(id="HLMAT-v0", entry_point="label_studio_segagent.hlmat.env:HLMATEnv")
