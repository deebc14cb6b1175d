"""Pickles that hold plain data and nothing else, for files of strangers: reading one never runs code.

A pickle is a program; some of its instructions name functions and call them. Here every instruction is looked at
before the first is carried out (50,000 refs of RefCOCO take some 20 seconds), and only those are let through that make
numbers, texts, lists and dicts. Not even tuples: as keys of dicts, deeply nested, they would crash or stall the reader.
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

_PLAIN = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT "
    "BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 EMPTY_LIST APPEND "
    "APPENDS LIST EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE".split()
)
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
    for number, (opcode, argument, place) in enumerate(pickletools.genops(data)):
        if opcode.name not in _PLAIN:
            raise ConfigError(
                f"{path} is refused: at byte {place} it has the instruction {opcode.name} "
                f"({str(argument)[:60]!r}), which plain lists, dicts, texts and numbers do not need and which may run "
                "code; convert the file with a program you trust"
            )
        # A memo is numbered from 0 or 1; a far number would make the reader take memory for all before it.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= number + 1:
            raise ConfigError(f"{path} is refused: at byte {place} it asks for a memo of {argument} entries")


class _Unpickler(pickle.Unpickler):
    """A second line of defence."""

    @override
    def find_class(self, module: str, name: str, /) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")

    @override
    def persistent_load(self, pid: Any, /) -> Any:
        raise pickle.UnpicklingError("a reference out of the file is not plain data")
