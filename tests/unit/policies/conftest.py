"""A tiny embedded policy with random weights: what it answers does not matter, that it answers properly does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from label_studio_segagent.policies.embedded import EmbeddedPolicy
from label_studio_segagent.policies.embedded_net import PolicyConfig, PolicyNet
from label_studio_segagent.policies.embedded_weights import fold, save_net
from label_studio_segagent.segmenters.embedded import EmbeddedSegmenter, ViewSettings
from label_studio_segagent.segmenters.embedded_net import NetConfig, SegmenterNet
from label_studio_segagent.training.segmenter_report import save_weights

TINY = NetConfig(backbone="lite0", channels=(16, 16, 32), embedding=8, context_blocks=1)


@pytest.fixture(scope="session")
def tiny_segmenter(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedSegmenter:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("segmenter") / "tiny.safetensors"
    save_weights(SegmenterNet(TINY), path)
    return EmbeddedSegmenter(path, ViewSettings(coarse=96, zoom=96, logits=128))


@pytest.fixture(scope="session")
def policy_weights(tmp_path_factory: pytest.TempPathFactory, tiny_segmenter: EmbeddedSegmenter) -> Path:
    torch.manual_seed(1)
    config = PolicyConfig(
        ("cat", "person"), side=128, view=96, segmenter=(16, 16, 32, 8), text=16, trunk=32, fine=16,
        review=(16, 16, 32), context=4,
    )  # fmt: skip
    net = PolicyNet(config)
    fold(net)
    with torch.no_grad():
        net.locator.heads.bias[0] = 0.5
        net.calibration[2:] = torch.tensor([0.3, 0.1])
        net.evidence.prototypes.normal_()
    path = tmp_path_factory.mktemp("policy") / "tiny.safetensors"
    save_net(net, path, tiny_segmenter.version)
    return path


@pytest.fixture(scope="session")
def tiny_policy(policy_weights: Path, tiny_segmenter: EmbeddedSegmenter) -> EmbeddedPolicy:
    return EmbeddedPolicy(policy_weights, tiny_segmenter)
