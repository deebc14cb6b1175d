from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from label_studio_segagent.errors import BusyError, ConfigError
from label_studio_segagent.processes import alone, spread


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


def test_one_process_at_a_time_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    code = f"""if True:
        import pathlib, time
        from label_studio_segagent.processes import alone
        with alone(pathlib.Path({str(path)!r})):
            print("there", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "there\n"
        with pytest.raises(BusyError, match="another process is counting; try again"), alone(path, "counting"):
            pass
        other.send_signal(signal.SIGKILL)
        with alone(path):  # waits
            pass
    for _ in range(2):
        with alone(path, "counting"):
            pass
