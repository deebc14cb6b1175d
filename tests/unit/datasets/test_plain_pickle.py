from __future__ import annotations

import collections
import datetime
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from label_studio_segagent.datasets.plain_pickle import read_plain_pickle
from label_studio_segagent.errors import ConfigError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4),
    max_leaves=20,
)


@given(value=plain, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_of_every_protocol(tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.p"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(path) == value


def test_texts_of_python_2(tmp_path: Path) -> None:
    (tmp_path / "x.p").write_bytes(b"(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9 \\xff'\np3\nsVunicode \\u00e9\np4\nI7\ns.")
    assert read_plain_pickle(tmp_path / "x.p") == {"sent": "café \ufffd", "unicode é": 7}


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("nested", [False, True])
def test_code_is_never_run(tmp_path: Path, protocol: int, nested: bool) -> None:
    mark = tmp_path / "owned"
    content = [{"sentences": [{"sent": Harmful(mark)}]}] if nested else Harmful(mark)
    (tmp_path / "x.p").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ConfigError, match="may run code"):
        read_plain_pickle(tmp_path / "x.p")
    assert not mark.exists()
    pickle.loads((tmp_path / "x.p").read_bytes())  # the attack is real
    assert mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3),
        np.int64(3),
        collections.OrderedDict(a=1),
        {1, 2},
        datetime.date(2020, 1, 1),
        b"bytes",
        bytearray(3),
        (1, 2),
        Path("x"),
        print,
        1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_is_refused(tmp_path: Path, value: Any) -> None:
    for protocol in (2, 5):
        (tmp_path / "x.p").write_bytes(pickle.dumps({"split": value}, protocol))
        with pytest.raises(ConfigError, match=r"x\.p is refused: at byte \d+ is [A-Z]"):
            read_plain_pickle(tmp_path / "x.p")


DEEP = b"\x80\x04" + b"]\x94" * 3000 + b"a" * 2999 + b"."

HOSTILE = {
    "a big memo": b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".",
    "a big memo in text": b"Np99999999999\n.",
    "a negative memo": b"Np-5\n.",
    "a class by a number": b"\x80\x02\x82\x01.",
    "an object from outside": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "an object from outside, in text": b"Pabc\n.",
    "an instance": b"(ios\nsystem\n.",
    "a class from the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "a byte array of terabytes": b"\x80\x05\x96" + struct.pack("<Q", 2**42) + b"abc.",
    "a text of terabytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**42) + b"abc.",
    "a frame of terabytes": b"\x80\x04\x95" + struct.pack("<Q", 2**42) + b"N.",
    "a number of gigabytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"abc.",
    "tuples without end as a key": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "a number with a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a list as a key": b"\x80\x02}]Ns.",
    "an empty stack": b"a.",
    "no end": b"\x80\x02]",
    "nothing": b"",
    "no pickle": b"{}",
    "a new protocol": b"\x80\xffN.",
    "no mark": b"l.",
    "a memo that is not there": b"g7\n.",
    "a broken text": b"S'abc\n.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_files_are_config_errors(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.p").write_bytes(HOSTILE[name])
    with pytest.raises(ConfigError, match=r"x\.p"):
        read_plain_pickle(tmp_path / "x.p")


def test_deep_lists_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "x.p").write_bytes(DEEP)
    value, depth = read_plain_pickle(tmp_path / "x.p"), 0
    while value:
        value, depth = value[0], depth + 1
    assert depth == 2999


@given(st.data())
def test_any_damage_is_an_error_or_a_value(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(pickle.dumps([{"ref_id": 5, "sentences": [{"sent": "ein Hund", "tokens": ["ein"]}]}] * 2, 2))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.p"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        read_plain_pickle(path)
    except ConfigError as error:
        assert "damaged.p" in str(error)


def test_large_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_plain_pickle(tmp_path / "nowhere.p")
    with (tmp_path / "large.p").open("wb") as file:
        file.truncate(2**29 + 1)  # sparse
    with pytest.raises(ConfigError, match="are not read"):
        read_plain_pickle(tmp_path / "large.p")
