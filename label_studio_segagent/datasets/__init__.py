"""Samples from COCO files and other data sets."""

from __future__ import annotations

from .loading import load_dataset
from .record import Record, load_samples

__all__ = ["Record", "load_dataset", "load_samples"]
