"""The embedding cache: an image is encoded once, whoever asks for it: clicks, tasks, requests, projects."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..defaults import EMBEDDING_CACHE_BYTES
from ..errors import ConfigError
from ..hlmat.arrays import Image, check_image
from .base import ImageState, Segmenter

__all__ = ["CacheStats", "EmbeddingCache"]

_DIGEST = 32
"""Bytes of a digest."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class CacheStats:
    """What a cache has done so far.

    Attributes:
        hits: Requests answered from memory, or by waiting for another thread that was encoding the same image.
        disk_hits: Requests answered from disk.
        misses: Images encoded.
        entries: States in memory.
        bytes: Memory, of CPU and GPU together, that they hold or may come to hold.
    """

    hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    entries: int = 0
    bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the requests, in [0, 1], for which nothing was encoded; 0 before the first."""
        found = self.hits + self.disk_hits
        return found / (found + self.misses) if found + self.misses else 0.0


class EmbeddingCache:
    """Encoded images by content, least recently used ones dropped first. Safe under threads.

    The key is the image's bytes and shape with the segmenter's version, so one cache serves several segmenters.

    Args:
        max_bytes: Memory for states, as `Segmenter.state_bytes` counts it; 0 keeps none.
        folder: Where features are also kept on disk, for segmenters that can `pack` them; None for nowhere. Processes
            may share it.
        folder_bytes: Size of the folder.

    Raises:
        ConfigError: The folder cannot be made.
    """

    def __init__(
        self, max_bytes: int = EMBEDDING_CACHE_BYTES, folder: Path | None = None, folder_bytes: int = 0
    ) -> None:
        self._max_bytes = max_bytes
        self._disk = _Disk(folder, folder_bytes) if folder is not None and folder_bytes > 0 else None
        self._states: OrderedDict[str, tuple[ImageState, int]] = OrderedDict()
        self._encoding: dict[str, Future[ImageState]] = {}
        self._stats = CacheStats()
        self._lock = threading.Lock()

    @property
    def stats(self) -> CacheStats:
        """A snapshot."""
        with self._lock:
            now = self._stats
            return CacheStats(now.hits, now.disk_hits, now.misses, len(self._states), now.bytes)

    def encode(self, segmenter: Segmenter, image: Image) -> ImageState:
        """The segmenter's state of an RGB uint8 (H, W, 3) image; the same one for the same pixels, while it is kept.

        Raises:
            InputError: The array is not such an image.
        """
        key = _key(segmenter, check_image(image))
        with self._lock:
            if key in self._states:
                self._states.move_to_end(key)
                self._stats.hits += 1
                return self._states[key][0]
            flight = self._encoding.get(key)
            if flight is None:
                mine = self._encoding[key] = Future()
            else:
                self._stats.hits += 1
        if flight is not None:
            return flight.result()
        try:
            # A copy: the caller may draw on its own.
            state = self._find_or_encode(key, segmenter, np.array(image, order="C"))
        except BaseException as error:
            with self._lock:
                del self._encoding[key]
            mine.set_exception(error)
            raise
        size = segmenter.state_bytes(state)
        with self._lock:
            del self._encoding[key]
            self._keep(key, state, size)
        mine.set_result(state)
        return state

    def _find_or_encode(self, key: str, segmenter: Segmenter, image: Image) -> ImageState:
        state = self._disk.load(key, segmenter, image) if self._disk else None
        with self._lock:
            if state is not None:
                self._stats.disk_hits += 1
            else:
                self._stats.misses += 1
        if state is None:
            state = segmenter.set_image(image)
            if self._disk:
                self._disk.save(key, segmenter, state)
        return state

    def _keep(self, key: str, state: ImageState, size: int) -> None:
        if size > self._max_bytes:
            return  # it would push out everything else and still not fit
        self._states[key] = (state, size)
        self._stats.bytes += size
        while self._stats.bytes > self._max_bytes:
            _, (_, dropped) = self._states.popitem(last=False)
            self._stats.bytes -= dropped


class _Disk:
    """Features in files: a digest, then safetensors. What cannot be read is a miss."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the folder {folder} for embeddings cannot be made: {error}") from error

    def load(self, key: str, segmenter: Segmenter, image: Image) -> ImageState | None:
        path = self._path(key)
        try:
            data = path.read_bytes()
            if _digest(data[_DIGEST:]) != data[:_DIGEST]:
                raise ValueError("its digest does not fit")
            state = segmenter.unpack(image, load(data[_DIGEST:]))
            os.utime(path)  # the oldest go first
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            log.warning("the cached embedding %s is not used: %s", path, error)
            path.unlink(missing_ok=True)
            return None
        return state

    def save(self, key: str, segmenter: Segmenter, state: ImageState) -> None:
        arrays = segmenter.pack(state)
        if arrays is None:
            return
        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        part = self._folder / f"{uuid4().hex}.part"
        try:
            part.write_bytes(_digest(data) + data)
            part.replace(self._path(key))
            self._shrink()
        except OSError as error:
            log.warning("an embedding cannot be written to %s: %s", self._folder, error)
            part.unlink(missing_ok=True)

    def _shrink(self) -> None:
        files = []
        for path in self._folder.iterdir():
            try:
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            except FileNotFoundError:  # another process was faster
                continue
        surplus = sum(size for _, size, _ in files) - self._max_bytes
        for _, size, path in sorted(files):
            if surplus <= 0:
                break
            path.unlink(missing_ok=True)
            surplus -= size

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.embedding"


def _key(segmenter: Segmenter, image: Image) -> str:
    # SHA-256 has instructions of its own on today's CPUs, and is the fastest good hash there.
    digest = hashlib.sha256(f"{segmenter.version} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
