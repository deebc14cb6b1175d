"""What needs a Label Studio is in tests/e2e/test_qc.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from label_studio_segagent.datasets.record import Record
from label_studio_segagent.hlmat.trajectory import encode_mask
from label_studio_segagent.quality.project import Annotated
from label_studio_segagent.server.calibrating import _copies


@pytest.mark.parametrize("seed", range(10))
def test_masks_that_say_nothing_are_left_out(seed: int) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    good, empty, other_size = np.zeros((40, 60), bool), np.zeros((40, 60), bool), np.ones((4, 6), bool)
    good[10:30, 10:40] = True
    records = [Record(Path("a.png"), f"{n}", encode_mask(m), f"{n}") for n, m in enumerate((empty, other_size, good))]
    items, true = _copies(Annotated(tuple(records), (), Path("a.png"), {}), image, np.random.default_rng(seed))
    assert 1 <= len(items) == len(true) <= 5 and {prompt for prompt, _ in items} == {"2"} and true[0] == 1.0
    assert _copies(Annotated(tuple(records[:2]), (), Path("a.png"), {}), image, np.random.default_rng(0)) == ([], [])
