from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig, BertModel, BertTokenizerFast

from label_studio_segagent.embedded.sentences import Sentences

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "dog", "red", "sports", "car"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Sentences:
    """A small random model of the class of MiniLM."""
    folder: Path = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return Sentences(folder)


def test_names_become_unit_vectors(model: Sentences) -> None:
    vectors = model.embed(["dog", "red sports car"])
    assert vectors.shape == (2, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_what_else_is_embedded_does_not_matter(model: Sentences) -> None:
    names = ["red sports car", "dog", "car"]
    alone = np.concatenate([model.embed([name]) for name in names])
    np.testing.assert_allclose(model.embed(names), alone, atol=1e-5)
