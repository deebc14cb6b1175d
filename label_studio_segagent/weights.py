"""Weights files of the embedded models: safetensors with what they hold in the metadata."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .errors import ConfigError

__all__ = ["read_weights"]


def read_weights(path: Path, model: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The metadata and the tensors, as float32, of a weights file.

    Args:
        path: The file.
        model: "segmenter" or "policy": what it must hold.

    Raises:
        ConfigError: There is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"no {model} weights at {path}; train them with `segagent train-embedded {model}`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} is not a safetensors file: {error}") from error
    if metadata.get("kind") != f"segagent-{model}":
        raise ConfigError(f"{path} holds no {model} (its kind is {metadata.get('kind')!r})")
    return metadata, state
