from __future__ import annotations

import csv
from pathlib import Path

import pytest

from label_studio_segagent.tables import write_table


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_texts_are_not_executed(tmp_path: Path, text: str) -> None:
    write_table(tmp_path / "t.csv", ("a", "b"), [(text, "x" + text)])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["'" + text, "x" + text]]


def test_numbers_stay_numbers_and_odd_texts_readable(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ("a",), [(-1,), (-0.5,), (None,), ("half \ud83d a pair, \u732b",)])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in list(csv.reader(file))[1:4]] == ["-1", "-0.5", ""]
