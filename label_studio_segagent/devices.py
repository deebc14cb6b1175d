"""Where models run: the best device of this machine."""

from __future__ import annotations

import torch
from torch import nn

from .errors import ConfigError

__all__ = ["best_device", "place"]


def best_device() -> torch.device:
    """CUDA where there is a GPU, else Apple's, else the CPU. `CUDA_VISIBLE_DEVICES` chooses among several, or none."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def place(model: nn.Module, device: torch.device, name: str) -> None:
    """Move a model to a device, ready for inference.

    Args:
        model: Changed in place.
        device: Where to.
        name: What the operator calls the model, for the message.

    Raises:
        ConfigError: It does not fit.
    """
    try:
        model.eval().requires_grad_(False).to(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{name} does not fit into the memory of {device}; choose a smaller model, free the device, or hide it "
            "(CUDA_VISIBLE_DEVICES='') to use the CPU"
        ) from error
