"""Pickles that hold plain data and nothing else, for files of strangers: reading one never runs code.

A pickle is a program; some of its instructions name functions and call them. Here every instruction is looked at
before the first is carried out, and only those are let through that make numbers, texts, lists and dicts. Not even
tuples: as keys of dicts, deeply nested, they would crash or stall the reader.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from typing_extensions import override

from ..errors import ConfigError

__all__ = ["read_plain_pickle"]

_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
_ALLOWED = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT "
    "BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 EMPTY_LIST APPEND "
    "APPENDS LIST EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE".split()
)
_PLAIN = {
    opcode.code.encode("latin-1"): (opcode.name, 0 if opcode.arg is None else opcode.arg.n)
    for opcode in pickletools.opcodes
    if opcode.name in _ALLOWED
}
"""For each instruction that is let through its name and the length of its argument, as `pickletools` says it."""
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4, pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}  # fmt: skip
"""Bytes of the length that comes before an argument."""
_MEMO = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_LARGEST = 2**29
"""Bytes of the largest file; refs(unc).p of RefCOCO has some ten million."""


def read_plain_pickle(path: Path) -> Any:
    """The numbers, texts, lists and dicts in a pickle of any protocol; texts of Python 2 are taken for UTF-8.

    Raises:
        ConfigError: It cannot be read, is damaged, is larger than 512 MB, or holds anything else.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes; pickles of more than {_LARGEST} are not read")
        data = path.read_bytes()
        _check(data, path)
        return _Unpickler(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except (pickle.UnpicklingError, ValueError, LookupError, TypeError, EOFError, MemoryError, OverflowError) as error:
        raise ConfigError(f"{path} is not a pickle, or a damaged one: {type(error).__name__}: {error}") from error


def _check(data: bytes, path: Path) -> None:
    place = number = 0
    while True:
        code = data[place : place + 1]
        if code not in _PLAIN:
            name = _NAMES.get(code, repr(code)) if code else "its end before its stop"
            raise ConfigError(
                f"{path} is refused: at byte {place} is {name}, which plain lists, dicts, texts and numbers do not "
                "need and which may run code, or it is damaged; convert it with a program that you trust"
            )
        name, kind = _PLAIN[code]
        start = place + 1
        if kind >= 0:
            place = start + kind
        elif kind == pickletools.UP_TO_NEWLINE:
            place = data.index(b"\n", start) + 1
        else:
            size = _LENGTHS[kind]
            place = start + size + int.from_bytes(data[start : start + size], "little")
        if place > len(data):
            raise ValueError(f"it ends within the {name} at byte {start - 1}")
        if name == "STOP":
            return
        if name in _MEMO:
            argument = data[start:place]
            index = int(argument) if name == "PUT" else int.from_bytes(argument, "little")
            # A memo is numbered from 0 or 1; a far number would make the reader take memory for all before it.
            if not 0 <= index <= number + 1:
                raise ConfigError(f"{path} is refused: at byte {start - 1} it asks for a memo of {index} entries")
        number += 1


class _Unpickler(pickle.Unpickler):
    """A second line of defence."""

    @override
    def find_class(self, module: str, name: str, /) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")

    @override
    def persistent_load(self, pid: Any, /) -> Any:
        raise pickle.UnpicklingError("a reference out of the file is not plain data")
