"""Interactive segmentation tools, by name."""

from __future__ import annotations

from ..registry import load_model
from .base import ImageState, Query, Segmentation, Segmenter
from .cache import CacheStats, EmbeddingCache

__all__ = ["CacheStats", "EmbeddingCache", "ImageState", "Query", "Segmentation", "Segmenter", "load_segmenter"]

_FAMILIES = {
    "embedded": "embedded:EmbeddedSegmenter",
    "grabcut": "grabcut:GrabCutSegmenter",
    "hf": "hf_sam:HfSamSegmenter",
    "sam": "sam:SamSegmenter",
    "simpleclick": "simpleclick:SimpleClickSegmenter",
}


def load_segmenter(spec: str) -> Segmenter:
    """Load a segmenter by name: `"embedded"`, `"grabcut"`, `"hf:facebook/sam2.1-hiera-tiny"`, `"sam:vit_b:/x.pth"`, ….

    Raises:
        ConfigError: The name is unknown, or the model behind it cannot be loaded.
    """
    model: Segmenter = load_model("segmenter", spec, _FAMILIES, __name__)
    return model
