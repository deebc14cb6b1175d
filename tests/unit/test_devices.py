from __future__ import annotations

import pytest
import torch
from torch import nn

from label_studio_segagent.devices import best_device, place
from label_studio_segagent.errors import ConfigError
from label_studio_segagent.weights import hash_weights


def test_the_best_device_is_there() -> None:
    assert torch.zeros(1, device=best_device()).device.type in ("cuda", "mps", "cpu")
    assert (best_device().type == "cuda") == torch.cuda.is_available()


def test_a_model_is_made_ready() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    place(model, torch.device("cpu"), "x")
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_model_that_does_not_fit() -> None:
    class Huge(nn.Linear):
        def to(self, *args: object) -> nn.Module:  # type: ignore[override]
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match="'hf:huge' does not fit into the memory of cuda; choose a smaller model"):
        place(Huge(1, 1), torch.device("cuda"), "'hf:huge'")


def test_versions_follow_every_tensor_and_setting() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))  # has a tensor without dimensions

    version = hash_weights(model(), "setting")
    assert hash_weights(model(), "setting") == version and len(version) == 16
    assert hash_weights(model(), "other") != version
    for name in model().state_dict():
        changed = model()
        changed.state_dict()[name].add_(1)
        assert hash_weights(changed, "setting") != version, name
