from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from label_studio_segagent.parallel import on_cores


@pytest.fixture(autouse=True)
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_items_are_worked_on_at_the_same_time_and_come_back_in_order() -> None:
    both = threading.Barrier(2, timeout=20)

    def work(item: int) -> tuple[int, int, str]:
        both.wait()
        return item, torch.get_num_threads(), threading.current_thread().name

    done = on_cores(work, [3, 1])
    assert [item for item, _, _ in done] == [3, 1]
    assert [cores for _, cores, _ in done] == [1, 1] and len({name for _, _, name in done}) == 2
    assert torch.get_num_threads() == 2


def test_threads_that_start_later_keep_all_cores() -> None:
    on_cores(lambda item: item, [1, 2])
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2]


@pytest.mark.parametrize("items", [[], [5]])
def test_little_work_stays_here(items: list[int]) -> None:
    here = threading.get_ident()
    assert on_cores(lambda item: (item, threading.get_ident()), items) == [(item, here) for item in items]


def test_one_core_works_alone() -> None:
    torch.set_num_threads(1)
    here = threading.get_ident()
    assert on_cores(lambda item: threading.get_ident(), [1, 2, 3]) == [here] * 3


def test_what_is_raised_comes_back() -> None:
    def fail(item: int) -> None:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 1"):
        on_cores(fail, [1, 2])
    assert on_cores(lambda item: item + 1, [1, 2]) == [2, 3]
