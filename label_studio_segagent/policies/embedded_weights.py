"""The weights file of the embedded policy."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import ConfigError
from ..segmenters.embedded_encoder import ScaledConv
from ..weights import read_weights
from .embedded_net import PolicyConfig, PolicyNet

__all__ = ["DEFAULT_WEIGHTS", "fold", "load_net", "save_net"]

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "policy.safetensors"
_KIND = "segagent-policy"


def fold(net: PolicyNet) -> None:
    """Fold the scales of the backbone into its weights."""
    for module in net.backbone.modules():
        if isinstance(module, ScaledConv):
            module.fold()


def save_net(net: PolicyNet, path: Path, segmenter: str) -> None:
    """Write a network, whose backbone is folded, as float16 safetensors.

    Args:
        net: The network.
        path: The file; always whole.
        segmenter: Version of the segmenter whose maps the reviewer was trained on (`EmbeddedSegmenter.eyes`).
    """
    state = {k: v.detach().to(torch.float16).contiguous() for k, v in net.state_dict().items()}
    metadata = {"config": json.dumps(asdict(net.config)), "kind": _KIND, "segmenter": segmenter}
    temporary = path.with_suffix(".part")
    save_file(state, temporary, metadata)
    temporary.replace(path)


def load_net(path: Path) -> tuple[PolicyNet, str]:
    """Read a network for inference, and the version of the segmenter that it was trained with.

    Raises:
        ConfigError: There is no such file, or it holds something else.
    """
    metadata, state = read_weights(path, "policy")
    try:
        sizes: dict[str, Any] = json.loads(metadata["config"])
        sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}
        config = PolicyConfig(**{**sizes, "examples": tuple((name, count) for name, count in sizes["examples"])})
        net = PolicyNet(config)
        fold(net)
        net.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path} was written by another version of this package: {str(error)[:300]}") from error
    return net.eval().requires_grad_(False), metadata.get("segmenter", "")
