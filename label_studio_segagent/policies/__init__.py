"""Click policies, by name."""

from __future__ import annotations

from ..registry import load_model
from ..segmenters.base import Segmenter
from .base import Decision, Observation, Policy, Target

__all__ = ["Decision", "Observation", "Policy", "Target", "load_policy"]

_FAMILIES = {
    "embedded": "embedded:EmbeddedPolicy",
    "saliency": "saliency:SaliencyPolicy",
    "hf": "hf_load:load_hf",
    "openai": "openai:load_openai",
    "oracle": "oracle:load_oracle",
}


def load_policy(spec: str, segmenter: Segmenter | None = None) -> Policy:
    """Load a policy by name.

    `"embedded"`, `"embedded:<weights>"`, `"saliency"`; multimodal language models: `"hf:<model>"`,
    `"hf:<model>+<adapter>"`, `"openai:<url>#<model>"`; for evaluation `"oracle:<coco.json>"`.

    Args:
        spec: The name.
        segmenter: The one that it will work with. The embedded policy looks through its eyes when it is embedded, too.

    Raises:
        ConfigError: The name is unknown, or the model behind it cannot be loaded.
    """
    family, _, weights = spec.partition(":")
    if family == "embedded" and segmenter is not None:
        from ..segmenters.embedded import EmbeddedSegmenter
        from .embedded import EmbeddedPolicy

        return EmbeddedPolicy(weights or None, segmenter if isinstance(segmenter, EmbeddedSegmenter) else None)
    model: Policy = load_model("policy", spec, _FAMILIES, __name__)
    return model
