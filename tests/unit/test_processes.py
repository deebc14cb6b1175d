from __future__ import annotations

import os
from functools import partial

import pytest

from label_studio_segagent.errors import ConfigError
from label_studio_segagent.processes import spread


def scaler(factor: int):  # type: ignore[no-untyped-def]
    return partial(_scale, factor)


def _scale(factor: int, number: int) -> tuple[int, int]:
    if number == 99:
        os._exit(3)
    return factor * number, os.getpid()


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order(jobs: int) -> None:
    found = list(spread(iter(range(20)), partial(scaler, 3), jobs))
    assert [(task, result[0]) for task, result in found] == [(n, 3 * n) for n in range(20)]
    assert (os.getpid() in {result[1] for _, result in found}) == (jobs == 1)


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(ConfigError, match="a process died"):
        list(spread(iter([1, 99, 2]), partial(scaler, 3), 2))


def test_no_process_at_all() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        list(spread(iter([1]), partial(scaler, 3), 0))
