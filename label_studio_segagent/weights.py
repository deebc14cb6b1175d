"""Weights: reading the files of the embedded models (safetensors, what they hold in the metadata), and naming any."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .errors import ConfigError

__all__ = ["UNREADABLE", "hash_weights", "read_weights"]

UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, pickle.UnpicklingError
)  # fmt: skip
"""What `torch.load` and what builds on it may raise for a file that holds something else."""


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


def hash_weights(model: nn.Module, *settings: object) -> str:
    """A content address, 16 hexadecimal digits: of all tensors of a model, wherever it runs, and of the settings.

    Args:
        model: As it was loaded, before anything is folded or cast.
        settings: Whatever else changes the output; what counts is their `repr`.
    """
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
