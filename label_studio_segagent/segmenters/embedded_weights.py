"""The weights file of the embedded segmenter."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..errors import ConfigError
from ..weights import read_weights
from .embedded_net import NetConfig, SegmenterNet

__all__ = ["DEFAULT_WEIGHTS", "load_net"]

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "segmenter.safetensors"


def load_net(path: Path) -> tuple[SegmenterNet, str]:
    """Read weights that ship (folded, float16) into a network for inference, and whose encoder it has, if not its own.

    Raises:
        ConfigError: There is no such file, or it holds something else.
    """
    metadata, state = read_weights(path, "segmenter")
    try:
        sizes = json.loads(metadata["config"])
        net = SegmenterNet(NetConfig(**{**sizes, "channels": tuple(sizes["channels"])}))
        net.fold()
        net.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path} was written by another version of this package: {str(error)[:300]}") from error
    net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, metadata.get("eyes", "")
