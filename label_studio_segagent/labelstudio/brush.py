"""Label Studio's brush RLE: a bit stream of runs over the RGBA bytes of an image.

Format: 32 bits count N = 4 * W * H, 5 bits word size - 1, four times 4 bits run-length size - 1, then runs. A run is
1 bit (1: one value repeated, 0: literal values), 2 bits (which of the four sizes), the length - 1 in that size, and one
value or as many as the length says. Only alpha counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import RegionError
from ..hlmat.arrays import Mask, soft_mask

__all__ = ["decode_brush", "encode_brush"]

_WORD = 8
_SIZES = (3, 4, 8, 16)
_HEADER_BITS = 32 + 5 + 4 * 4
_LONGEST = 1 << _SIZES[-1]


def encode_brush(mask: Mask) -> list[int]:
    """The brush RLE of a bool (H, W) mask, as the list of bytes that goes into `value.rle`."""
    flat = np.ascontiguousarray(mask).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = 4 * np.diff(starts, append=flat.size)
    values = flat[starts].astype(np.int64) * 255
    # A run longer than 2^16 is written as several.
    parts = -(-lengths // _LONGEST)
    values = np.repeat(values, parts)
    first_part = np.cumsum(parts) - parts
    split = np.full(int(parts.sum()), _LONGEST, np.int64)
    split[first_part + parts - 1] = lengths - (parts - 1) * _LONGEST
    sizes = np.array(_SIZES)
    index = np.searchsorted(1 << sizes, split)
    bits = sizes[index]
    codes = (((4 + index) << bits) | (split - 1)) << _WORD
    header = 4 * flat.size << 21 | (_WORD - 1) << 16
    for place, size in enumerate(_SIZES):
        header |= (size - 1) << (12 - 4 * place)
    codes = np.concatenate([[header], codes | values])
    widths = np.concatenate([[_HEADER_BITS], 3 + bits + _WORD])
    return [int(byte) for byte in _pack(codes, widths).tobytes()]


def _pack(codes: npt.NDArray[np.int64], widths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Write each code in its width, most significant bit first, one after the other."""
    ends = np.cumsum(widths)
    shift = np.repeat(ends, widths) - 1 - np.arange(int(ends[-1]))
    return np.packbits((np.repeat(codes, widths) >> shift) & 1)


def decode_brush(rle: Sequence[int], height: int, width: int) -> Mask:
    """The bool (H, W) mask of a brush RLE: where alpha is above half of the largest (hand-drawn edges are soft).

    Raises:
        RegionError: The RLE is malformed, or made for an image of another size.
    """
    try:
        if not isinstance(rle, (list, tuple, bytes)):
            raise TypeError(type(rle).__name__)  # bytes(7) would be seven zeros
        data = bytes(rle)
    except (TypeError, ValueError) as error:
        raise RegionError(f"brush RLE must be a list of bytes 0..255, got {str(rle)[:60]}") from error
    stream = _Bits(data)
    count = stream.read(32) if len(data) >= 7 else -1
    if count != 4 * height * width:
        raise RegionError(
            f"brush RLE is for {count} bytes, but the image of {width}x{height} has {4 * height * width}; "
            "was the mask made for another size?"
        )
    word = stream.read(5) + 1
    sizes = [stream.read(4) + 1 for _ in range(4)]
    if word != _WORD:
        raise RegionError(f"brush RLE has words of {word} bits; only {_WORD} is known")
    out = np.zeros(count, np.uint8)
    filled = 0
    while filled < count:
        repeated, size = stream.read(1), sizes[stream.read(2)]
        end = filled + stream.read(size) + 1
        if end > count or stream.exhausted:
            raise RegionError(f"brush RLE ends or overflows after {filled} of {count} bytes")
        if repeated:
            out[filled:end] = stream.read(_WORD)
        else:
            out[filled:end] = stream.read_bytes(end - filled)
        if stream.exhausted:
            raise RegionError(f"brush RLE ends in the middle of the run at {filled} of {count} bytes")
        filled = end
    return soft_mask(out.reshape(height, width, 4)[..., 3])


class _Bits:
    """Reads numbers of up to 32 bits from bytes; reading past the end gives zeros and sets `exhausted`."""

    def __init__(self, data: bytes) -> None:
        padded = np.frombuffer(data + bytes(8), np.uint8).astype(np.uint64)
        self._windows = np.zeros(len(data) + 1, np.uint64)
        for offset in range(5):
            self._windows |= padded[offset : len(data) + 1 + offset] << np.uint64(8 * (4 - offset))
        self._fast: list[int] = self._windows.tolist()
        self._bytes, self._position, self._end = padded, 0, 8 * len(data)

    @property
    def exhausted(self) -> bool:
        return self._position > self._end

    def read(self, bits: int) -> int:
        start = self._position
        self._position = start + bits
        if self._position > self._end:
            return 0
        return self._fast[start >> 3] >> (40 - (start & 7) - bits) & ((1 << bits) - 1)

    def read_bytes(self, count: int) -> npt.NDArray[np.uint64]:
        start, shift = self._position >> 3, self._position & 7
        self._position += 8 * count
        if self._position > self._end:
            raise RegionError("brush RLE ends in the middle of a run")
        return self._windows[start : start + count] >> np.uint64(32 - shift) & np.uint64(255)
